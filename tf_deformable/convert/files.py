"""Weights from files of PyTorch, safetensors and MXNet, as NumPy arrays by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable.convert.mxnet_file import parse_mxnet_params

Array: TypeAlias = NDArray[Any]
# A state dict (arrays or PyTorch tensors by name), or the path of a file that holds one.
WeightsSource: TypeAlias = "Mapping[str, Any] | str | os.PathLike[str]"

# Before 2.6, weights_only=True could be made to run code (CVE-2025-32434).
_OLDEST_TORCH = (2, 6)
# Under these keys training programs keep the weights, beside what else they save.
_STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict")
_SAFETENSORS_DTYPES: dict[str, Any] = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": tf.bfloat16.as_numpy_dtype},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"},
}


def read_weights(source: WeightsSource, key: str | None = None) -> dict[str, Array]:
    """Reads all weights of a file, or of a state dict, as NumPy arrays.

    No file can run code: of PyTorch's, tensors are read and nothing else (`weights_only=True`), and
    the other two formats hold nothing else.

    Example:
        >>> weights = tf_deformable.convert.read_weights({"conv": {"weight": [1.0]}}, key="conv")
        >>> weights["weight"]
        array([1.])

    Args:
        source: the path of a file, or a mapping from names to arrays or PyTorch tensors. By the
            end of its name the file is
            `.pth`, `.pt`: PyTorch's; needs `torch` (the extra `tf_deformable[torch]`);
            `.safetensors`: needs `safetensors` (the extra `tf_deformable[safetensors]`);
            `.params`: MXNet's; needs nothing. Names keep their `arg:` and `aux:`.
        key: under which key of the checkpoint the weights are. By default they are the checkpoint
            itself, or what it holds as `state_dict`, `model` or `model_state_dict`.

    Returns:
        The arrays by their names, in their own dtypes (bfloat16 of PyTorch as float32).

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package that reads the file is missing. The message names the extra.
        TypeError: `source` is neither a path nor a mapping.
        ValueError: the file is of another format, truncated, or holds other things than arrays.
    """
    if isinstance(source, Mapping):
        return _arrays(_state_dict(source, key, "the mapping"))
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "read_weights: source must be a path or a mapping from names to arrays, got "
            f"{type(source).__name__}"
        )
    path = Path(source)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"read_weights: the name of a file must end in {', '.join(_READERS)}, got {path.name!r}"
        )
    with path.open("rb"):  # Of all that may go wrong, this has an error of its own.
        pass
    return _arrays(_state_dict(read(path), key, str(path)))


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor, of NumPy, PyTorch or TensorFlow."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _state_dict(checkpoint: Any, key: str | None, where: str) -> Mapping[str, Any]:
    """The part of a checkpoint that is a mapping from names to arrays."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"read_weights: {where} must hold arrays by name, got {type(checkpoint).__name__}"
        )
    if key is None and not any(is_array(value) for value in checkpoint.values()):
        key = next((k for k in _STATE_DICT_KEYS if k in checkpoint), None)
    if key is not None:
        if not isinstance(checkpoint.get(key), Mapping):
            raise ValueError(
                f"read_weights: {where} has no weights under the key {key!r}; its keys are "
                f"{', '.join(map(repr, checkpoint)) or 'none'}"
            )
        checkpoint = checkpoint[key]
    return checkpoint


def _arrays(state_dict: Mapping[str, Any]) -> dict[str, Array]:
    arrays = {}
    for name, value in state_dict.items():
        if hasattr(value, "detach"):  # a tensor of PyTorch
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            array = np.asarray(None)
        is_number = array.dtype.kind in "biuf" or array.dtype == tf.bfloat16.as_numpy_dtype
        if not isinstance(name, str) or not is_number:
            hint = f"; if that is the state dict, say key={name!r}" * isinstance(value, Mapping)
            raise ValueError(
                "read_weights: a state dict must hold arrays of numbers by name, got "
                f"{type(value).__name__} for {name!r}{hint}"
            )
        arrays[name] = array
    return arrays


def _read_torch(path: Path) -> Any:
    torch = import_torch("read_weights: reading .pth and .pt files")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # It raises whatever its parts raise.
        raise ValueError(
            f"read_weights: {path} is no checkpoint of PyTorch that holds tensors alone, or not "
            f"all of it ({type(error).__name__}: {_first_line(error)})"
        ) from error


def import_torch(purpose: str) -> Any:
    """Returns PyTorch.

    Raises:
        ImportError: it is missing, or too old to refuse code. The message names the extra.
    """
    torch = _import("torch", "torch", purpose)
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"{purpose} needs PyTorch {oldest} or later, whose weights_only keeps checkpoints from "
            f"running code, got {torch.__version__}: pip install 'tf_deformable[torch]'"
        )
    return torch


def _read_safetensors(path: Path) -> dict[str, Array]:
    safetensors = _import("safetensors", "safetensors", "read_weights: reading .safetensors files")
    try:
        tensors = dict(safetensors.deserialize(path.read_bytes()))
    except Exception as error:  # Its own class of errors has changed its place.
        raise ValueError(
            f"read_weights: {path} is no safetensors file, or not all of it "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    return dict(_decoded(tensors, path))


def _decoded(tensors: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Array]]:
    for name, tensor in tensors.items():
        dtype = _SAFETENSORS_DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise ValueError(
                f"read_weights: {path}: {name} has dtype {tensor['dtype']}; can be read: "
                f"{', '.join(_SAFETENSORS_DTYPES)}"
            )
        yield name, np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])


def _read_mxnet(path: Path) -> dict[str, Array]:
    try:
        return parse_mxnet_params(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"read_weights: {path} is no MXNet parameter file: {error}") from error


def _import(module: str, extra: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {module}, which cannot be imported ({error}): "
            f"pip install 'tf_deformable[{extra}]'"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


_READERS = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
    ".params": _read_mxnet,
}
