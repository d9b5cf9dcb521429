"""SavedModels for TensorFlow without the package: portable, or native with the library beside."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_deformable import _native
from tf_deformable._version import __version__
from tf_deformable.export import _portable, _tracing

# Where the library lies in a native SavedModel: TensorFlow leaves this folder to its users.
EXTRA = "assets.extra"
_UNKNOWN_SIZE = 64
_CALLS = 5

_README = """\
This model holds operators of tf_deformable {version}. A process that has TensorFlow {tensorflow},
and not the Python package, serves it after one line more than usual:

    import tensorflow as tf
    tf.load_op_library("{extra}/{library}")  # the path, from where the process runs
    model = tf.saved_model.load("...")  # the folder that {extra} is in

In C or C++ that line is TF_LoadLibrary("{extra}/{library}", status). {kernels} must lie in the same
folder as {library}.
"""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a portable model takes beside the native one.

    Attributes:
        portable_seconds: of one call of the exported model, the quickest of a few.
        native_seconds: of the same model with the native operators, in the same process.
        shapes: of the inputs, by name.
    """

    portable_seconds: float
    native_seconds: float
    shapes: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
        return (
            f"one call takes {self.portable_seconds * 1e3:.3g} ms, with the native operators "
            f"{self.native_seconds * 1e3:.3g} ms ({shapes})"
        )


def saved_model(
    model: Any,
    path: _tracing.PathLike,
    portable: bool = True,
    *,
    input_signature: Sequence[Any] | None = None,
    example_inputs: Any = None,
    measure: bool = True,
) -> Cost | None:
    """Writes a SavedModel that processes without this package load and serve.

    The portable form holds TensorFlow's own operators only and gives the same numbers. It needs
    nothing but TensorFlow, and takes more time and memory. The native form holds the compiled
    operators; the folder `assets.extra` in it gets the two files of the library, and a README that
    says how to load them. That is one line, `tf.load_op_library(...)`.

    Any model that can be saved can be exported: functional, subclassed, with `tf.function`s inside
    that have been traced. Where operators are replaced, that happens in what is written: the model
    stays as it is. What the SavedModel holds besides, as signatures of other names, gradients
    and training steps of a `tf.Module`, becomes portable too.

    Example:
        >>> layers = [tf.keras.Input((None, None, 3)), tf_deformable.DeformableConv2D(4, 3)]
        >>> model = tf.keras.Sequential(layers)
        >>> tf_deformable.export.saved_model(model, folder / "portable", measure=False)
        >>> images = tf.ones([1, 8, 8, 3])
        >>> exported = tf.saved_model.load(str(folder / "portable"))
        >>> np.testing.assert_allclose(exported.serve(images), model(images), atol=1e-5)

    Args:
        model: a Keras model, built; a `tf.Module`; or the folder of a SavedModel that was exported
            with native operators.
        path: folder to write. A SavedModel that is there is replaced.
        portable: whether the package's operators are replaced by TensorFlow's.
        input_signature: `tf.TensorSpec`s for the arguments of a call of the model, as `tf.function`
            takes them. Default: of a Keras model what it was built with, which for a subclassed
            one are the sizes of its first call; of a `tf.Module` the signatures of its functions.
            It makes the signature "serving_default", of a Keras model also the function `serve`.
        example_inputs: what the cost is measured with: a dictionary by the names of the inputs of
            "serving_default", or a tensor if there is one input. Default: random numbers in [0, 1);
            unknown sizes are 64, that of the batch is 1.
        measure: whether the cost of the portable form is measured, and printed.

    Returns:
        The cost, if it was measured: there must be a signature, the model must hold operators of
        the package, and take the inputs. Otherwise None.

    Raises:
        TypeError: model is of another kind.
        ValueError: the model has not been built, or example_inputs are not its inputs.
        FileExistsError: path is there, and is neither empty nor a SavedModel.
        tf_deformable.NativeLibraryError: `portable=False`, and there is no library.
    """
    with _tracing.temporary_folder() as temporary:
        native = temporary / "native"
        _tracing.write_saved_model(model, native, input_signature)
        if not portable:
            if _portable.custom_operators(native) or not _native.is_available():
                _add_library(native)
            _tracing.put(native, path)
            return None
        had_operators = bool(_portable.custom_operators(native))
        result = temporary / "portable"
        shutil.copytree(native, result, ignore=shutil.ignore_patterns(EXTRA))
        _portable.make_portable(result)
        cost = _cost(result, native, example_inputs) if measure and had_operators else None
        _tracing.put(result, path)
    return cost


def _add_library(folder: Path) -> None:
    library = Path(_native.get_library_path())
    files = [library, library.with_name(_native.KERNELS)]
    extra = folder / EXTRA
    extra.mkdir(exist_ok=True)
    for file in files:
        shutil.copy2(file, extra / file.name)
    text = _README.format(
        version=__version__,
        tensorflow=".".join(_native.built_for().split(".")[:2]),
        extra=EXTRA,
        library=library.name,
        kernels=_native.KERNELS,
    )
    (extra / "README").write_text(text)


def _cost(portable: Path, native: Path, example_inputs: Any) -> Cost | None:
    """Measures one call of each, in turn, and prints what comes out."""
    loaded = [tf.saved_model.load(str(folder)) for folder in (portable, native)]
    try:
        signatures = [_tracing.signature_of(one, _tracing.DEFAULT_SIGNATURE) for one in loaded]
    except ValueError:
        print(f"tf_deformable: {portable} has no signature to measure")
        return None
    if example_inputs is None:
        inputs = _made_up_inputs(_tracing.input_specs(signatures[0]))
    else:
        inputs = _tracing.named_inputs(signatures[0], example_inputs)
    shapes = {name: tuple(tensor.shape.as_list()) for name, tensor in inputs.items()}
    try:
        seconds = _seconds_of_calls(signatures, inputs)
    except tf.errors.OpError as error:
        if example_inputs is not None:
            raise
        print(
            f"tf_deformable: the cost was not measured, since made-up inputs of shapes {shapes} do "
            f"not fit (give example_inputs): {error.message.splitlines()[0]}"
        )
        return None
    cost = Cost(seconds[0], seconds[1], shapes)
    print(f"tf_deformable: the portable model is written, {cost}")
    return cost


def _seconds_of_calls(signatures: Sequence[Any], inputs: dict[str, tf.Tensor]) -> list[float]:
    seconds = [float("inf") for _ in signatures]
    for call in range(1 + _CALLS):
        for number, signature in enumerate(signatures):
            start = time.perf_counter()
            for output in signature(**inputs).values():
                output.numpy()  # The call itself may return before the work is done.
            if call > 0:  # The first one also compiles.
                seconds[number] = min(seconds[number], time.perf_counter() - start)
    return seconds


def _made_up_inputs(specs: dict[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
    random = tf.random.Generator.from_seed(0)  # Leaves the global generator alone.
    inputs = {}
    for name, spec in specs.items():
        known = [None] * 4 if spec.shape.rank is None else spec.shape.as_list()
        sizes = [
            size if size is not None else 1 if axis == 0 else _UNKNOWN_SIZE
            for axis, size in enumerate(known)
        ]
        inputs[name] = tf.cast(random.uniform(sizes), spec.dtype)
    return inputs
