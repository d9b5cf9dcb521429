"""Models as ONNX files, by tf2onnx."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_deformable import _native
from tf_deformable.export import _onnx_operators, _portable, _tracing

_OLDEST_OPSET = 19
_NEWEST_OPSET = 22
# ONNX Runtime (1.32) runs RoiAlign up to the operator set before this one.
_ROI_ALIGN_IS_RARE = 22


def onnx(
    model: Any,
    path: _tracing.PathLike,
    opset: int = _OLDEST_OPSET,
    *,
    input_signature: Sequence[Any] | None = None,
    signature: str = _tracing.DEFAULT_SIGNATURE,
    deform_conv: bool = True,
    float16: bool = False,
) -> Any:
    """Writes a model as an ONNX file.

    Deformable convolution becomes ONNX' own `DeformConv`, RoI pooling without offsets and with
    `aligned=True` its `RoiAlign` (up to opset 21: no runtime that was tried has that of opset 22);
    every other pooling becomes Gather and arithmetic, as attention and DCNv3 do. All other
    layers are what tf2onnx makes of them, non-maximum suppression included. Sizes that the model
    leaves open stay open. Inputs and outputs have the names of the signature (inputs are in the
    order of these) and keep their layout: images are NHWC as they are in Keras.

    tf2onnx, onnx and their dependencies are needed: `pip install tf_deformable[onnx]`.

    Args:
        model: as in `saved_model`.
        path: of the file.
        opset: of the standard operators, 19 to 22. DeformConv came with 19.
        input_signature: as in `saved_model`.
        signature: which of a model's signatures is exported.
        deform_conv: False makes Gather and arithmetic of the convolution too, for runtimes that
            have no `DeformConv`.
        float16: whether a convolution of which all tensors are float16 stays one. By default it is
            computed in float32, as TensorFlow does: in half precision a runtime also rounds the
            positions.

    Returns:
        The model, an `onnx.ModelProto` that `onnx.checker` has found to be correct.

    Raises:
        ImportError: tf2onnx or onnx is missing.
        TypeError: model is of another kind.
        ValueError: opset is not supported; there is no such signature; the model holds operators
            that tf2onnx does not convert, or a convolution of unknown kernel size.
        tf_deformable.NativeLibraryError: with `deform_conv` the compiled operators are needed on
            the way.
    """
    if opset not in range(_OLDEST_OPSET, _NEWEST_OPSET + 1):
        raise ValueError(
            f"export.onnx: opset must be from {_OLDEST_OPSET} to {_NEWEST_OPSET}, got {opset}"
        )
    onnx_package, tf2onnx = _needed("onnx"), _needed("tf2onnx")
    if deform_conv:
        _native.load()  # Without it a model would hold no operator that can become one of ONNX.
    with _tracing.temporary_folder() as temporary:
        folder = temporary / "model"
        _tracing.write_saved_model(model, folder, input_signature)
        replacements = _onnx_operators.replacements(
            deform_conv=deform_conv, roi_align=opset < _ROI_ALIGN_IS_RARE, float16=float16
        )
        _portable.make_portable(folder, replacements)
        loaded = tf.saved_model.load(str(folder))
        function = _tracing.signature_of(loaded, signature)
        specs = _tracing.input_specs(function)

        def call(*tensors: tf.Tensor) -> Any:
            return function(**dict(zip(specs, tensors, strict=True)))

        with _errors_of("tf2onnx") as errors, _collected_often():
            proto, _ = tf2onnx.convert.from_function(
                tf.function(call, autograph=False),
                list(specs.values()),
                opset=_onnx_operators.CONVERTER_OPSET,
                custom_op_handlers=dict(_onnx_operators.handlers()),
            )
    if errors:  # It goes on after an error, with what is left of the model.
        raise ValueError("export.onnx: tf2onnx does not convert the model: " + "; ".join(errors))
    proto = _at_opset(onnx_package, proto, opset)
    onnx_package.checker.check_model(proto, full_check=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx_package.save_model(proto, str(path))
    return proto


def _needed(package: str) -> Any:
    try:
        module = importlib.import_module(package)
        importlib.import_module(f"{package}.checker" if package == "onnx" else f"{package}.convert")
    except ImportError as error:
        raise ImportError(
            f"export.onnx needs the package {package}, which cannot be imported ({error}): "
            'pip install "tf_deformable[onnx]"'
        ) from error
    return module


@contextlib.contextmanager
def _collected_often() -> Iterator[None]:
    """Frees at once what is dropped inside, and is kept alive by cycles alone.

    tf2onnx copies its graph, weights included, before each of its optimizers, which adds up to some
    fifty times the weights: Python's collector waits for the new objects to be a quarter of all,
    and TensorFlow has a million. These are set aside meanwhile, so that they neither count nor cost
    time.
    """
    if gc.get_freeze_count():  # Another's, who would find it undone.
        yield
        return
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.collect()  # of nothing: the collector counts anew what has survived a collection
    gc.set_threshold(thresholds[0], 2, 1)
    try:
        yield
        gc.collect()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextlib.contextmanager
def _errors_of(logger_name: str) -> Iterator[list[str]]:
    """Collects the errors that a package logs, and keeps its lesser messages from the screen."""
    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(record.getMessage())

    logger = logging.getLogger(logger_name)
    collector = Collector(logging.ERROR)
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [collector], False
    logger.setLevel(logging.ERROR)
    try:
        yield errors
    finally:
        logger.handlers[:], logger.propagate, level = before
        logger.setLevel(level)


def _at_opset(onnx_package: Any, proto: Any, opset: int) -> Any:
    """Takes a model to the operator set that is wanted, and DeformConv to where it belongs."""
    proto.opset_import.add(domain=_onnx_operators.PENDING_DOMAIN, version=1)
    from onnx import version_converter

    proto = version_converter.convert_version(proto, opset)
    constants = {tensor.name for tensor in proto.graph.initializer}
    for node in _nodes(proto.graph):
        if node.domain == _onnx_operators.PENDING_DOMAIN:
            node.domain = ""
        if node.op_type == "Reshape" and node.input[1] not in constants:
            # A size of 0 that is computed is one, as without boxes; ONNX would copy the input's.
            del node.attribute[:]
            node.attribute.append(onnx_package.helper.make_attribute("allowzero", 1))
    used = {"", *(node.domain for node in _nodes(proto.graph))}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


def _nodes(graph: Any) -> Any:
    """Yields the nodes of a graph and of the graphs inside of it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
