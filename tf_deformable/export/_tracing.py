"""Writes models of every kind as SavedModels, and reads the signatures of these."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import tensorflow as tf

from tf_deformable import _native, config

DEFAULT_SIGNATURE = "serving_default"
PathLike: TypeAlias = "str | os.PathLike[str]"


def write_saved_model(model: Any, folder: Path, input_signature: Sequence[Any] | None) -> None:
    """Writes a model, with the native operators where they are to be had.

    Args:
        model: a Keras model or layer, a `tf.Module`, or the folder of a SavedModel.
        folder: it does not exist yet.
        input_signature: for a call of the model, or None: the model's own.

    Raises:
        TypeError: the model is of another kind.
        ValueError: it does not say what it is called with, or is given two signatures.
    """
    if isinstance(model, (str, os.PathLike)):
        if not tf.saved_model.contains_saved_model(os.fspath(model)):
            raise ValueError(f"export: model {os.fspath(model)!r} is no folder of a SavedModel")
        if input_signature is not None:
            raise ValueError("export: a SavedModel has its own signatures, got an input_signature")
        shutil.copytree(model, folder)
        return
    kinds: Any = (tf.Module, *_keras_layers())
    if not isinstance(model, kinds):
        raise TypeError(
            "export: model must be a Keras model, a tf.Module or the folder of a SavedModel, got "
            f"{type(model).__name__}"
        )
    with _native_where_possible(), contextlib.redirect_stdout(io.StringIO()):
        if not isinstance(model, _keras_layers()):
            _save_module(model, folder, input_signature)
        elif input_signature is None:
            _check_has_inputs(model)
            model.export(str(folder))
        else:
            archive = tf.keras.export.ExportArchive()
            archive.track(model)
            # A function, since Keras 3 does not take all that an input_signature may hold if it is
            # given a layer.
            serve = tf.function(lambda *args: model(*args), input_signature=list(input_signature))
            serve.get_concrete_function()
            archive.add_endpoint("serve", serve)
            archive.write_out(str(folder))


def _save_module(model: Any, folder: Path, input_signature: Sequence[Any] | None) -> None:
    signatures = None
    if input_signature is not None:
        function = tf.function(lambda *args: model(*args), input_signature=list(input_signature))
        signatures = {DEFAULT_SIGNATURE: function.get_concrete_function()}
    tf.saved_model.save(model, str(folder), signatures=signatures)


def _keras_layers() -> tuple[Any, ...]:
    try:
        return (tf.keras.layers.Layer,)
    except ImportError:  # There are modules without Keras.
        return ()


def _check_has_inputs(model: Any) -> None:
    if not isinstance(model, tf.keras.Model):
        raise ValueError(
            f"export: {type(model).__name__} is a layer and not a model: give an input_signature"
        )


@contextlib.contextmanager
def _native_where_possible() -> Iterator[None]:
    """What is traced inside holds the native operators, if the library is there."""
    with config.use_backend("native" if _native.is_available() else "reference"):
        yield


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone in the end."""
    with TemporaryDirectory(prefix="tf_deformable_export_") as name:
        yield Path(name)


def put(source: Path, target: PathLike) -> None:
    """Moves a SavedModel to where it is wanted, in place of one that is there.

    Raises:
        FileExistsError: there is something else.
    """
    path = Path(target)
    if path.exists():
        is_replaced = path.is_dir() and tf.saved_model.contains_saved_model(str(path))
        if not is_replaced and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(f"export: {path} is there and is no SavedModel to replace")
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, path)


def signature_of(loaded: Any, name: str) -> Any:
    """Returns a signature of a loaded SavedModel.

    Raises:
        ValueError: it has none of that name.
    """
    signatures = dict(loaded.signatures)
    if name not in signatures:
        raise ValueError(
            f"export: the model has no signature {name!r}, but {sorted(signatures)}; "
            "a tf.Module gets one by input_signature"
        )
    return signatures[name]


def input_specs(signature: Any) -> dict[str, tf.TensorSpec]:
    """Returns what a signature is called with, by name; names in alphabetical order.

    A SavedModel keeps no other.
    """
    _, specs = signature.structured_input_signature
    return {name: specs[name] for name in sorted(specs)}


def named_inputs(signature: Any, values: Any) -> dict[str, tf.Tensor]:
    """Returns tensors for a signature, by name.

    Args:
        signature: of a loaded SavedModel.
        values: a tensor, if there is one input, or a dictionary.

    Raises:
        ValueError: names are not those of the signature.
    """
    specs = input_specs(signature)
    if not isinstance(values, Mapping) and len(specs) == 1:
        values = dict.fromkeys(specs, values)
    if not isinstance(values, Mapping) or set(values) != set(specs):
        got = list(values) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(
            f"export: example_inputs must be a dictionary with the keys {list(specs)}, got {got}"
        )
    return {name: tf.cast(values[name], spec.dtype) for name, spec in specs.items()}
