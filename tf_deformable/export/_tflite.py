"""Models for LiteRT (TensorFlow Lite), of its builtin operators alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import tensorflow as tf

from tf_deformable.export import _portable, _tracing

# Lines of the converter's message.
_MISSING = re.compile(r"^(?:TF Select|Custom) ops: .*$", re.MULTILINE)
Weights: TypeAlias = Literal["float32", "float16", "int8"]


def tflite(
    model: Any,
    path: _tracing.PathLike,
    weights: Weights = "float32",
    *,
    input_signature: Sequence[Any] | None = None,
    signature: str = _tracing.DEFAULT_SIGNATURE,
    allow_tensorflow_operators: bool = False,
) -> bytes:
    """Writes a model as a file for LiteRT (TensorFlow Lite), by TensorFlow's converter.

    The package's operators become builtin ones of LiteRT, which every interpreter has: nothing has
    to be registered, and no "Flex" delegate to be linked. Sizes that the model leaves open stay
    open: resize the inputs before `allocate_tensors`. Known sizes make
    the graph smaller; give them in `input_signature`.

    Args:
        model: as in `saved_model`.
        path: of the file.
        weights: what they are stored as. "float16" halves the file; "int8" makes it a quarter, for
            weights of 1024 numbers and more ("dynamic range" quantisation: products are
            computed in 8 bits where LiteRT has kernels for it, all else in float32).
        input_signature: as in `saved_model`.
        signature: which of a model's signatures is exported.
        allow_tensorflow_operators: whether what LiteRT has no operator for may stay TensorFlow's
            ("Flex"), as `CombinedNonMaxSuppression` of detectors. Such a file runs only where
            TensorFlow's operators are linked to the interpreter. By default it is an error.

    Returns:
        What is in the file.

    Raises:
        TypeError: model is of another kind.
        ValueError: weights are of another kind; there is no such signature; the model holds
            operators that LiteRT lacks, which the message names.
    """
    if weights not in get_args(Weights):
        allowed = ", ".join(map(repr, get_args(Weights)))
        raise ValueError(f"export.tflite: weights must be one of {allowed}, got {weights!r}")
    with _tracing.temporary_folder() as temporary:
        folder = temporary / "model"
        _tracing.write_saved_model(model, folder, input_signature)
        _portable.make_portable(folder)
        _tracing.signature_of(tf.saved_model.load(str(folder)), signature)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(folder), signature_keys=[signature]
        )
        sets = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if allow_tensorflow_operators:
            sets.append(tf.lite.OpsSet.SELECT_TF_OPS)
        converter.target_spec.supported_ops = sets
        if weights != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            content: bytes = converter.convert()
        except Exception as error:  # The converter's own, which has no public name.
            named = _MISSING.findall(str(error))
            if not named:
                raise
            raise ValueError(
                "export.tflite: LiteRT has not all operators of the model "
                f"(allow_tensorflow_operators keeps those of TensorFlow): {'; '.join(named)}"
            ) from error
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
    return content
