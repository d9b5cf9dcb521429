"""A SavedModel as what a model server calls: arrays by name in, arrays by name out.

It needs TensorFlow and nothing else: a model with native operators has their library beside it, in
the folder `assets.extra`, if `tf_deformable.export.saved_model(model, folder, portable=False)` has
written it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

_LIBRARIES = "assets.extra/libtf_deformable_tensorflow_*.so"


class RequestError(ValueError):
    """A request that the model does not take; the message is for the client."""


class SavedModel:
    """A signature of a SavedModel. Threads may call it at the same time.

    Args:
        folder: of the SavedModel.
        signature: the name of one of its functions.

    Attributes:
        inputs: `tf.TensorSpec` of each input by its name.
        outputs: `tf.TensorSpec` of each output by its name.
    """

    def __init__(self, folder: str | os.PathLike[str], signature: str = "serving_default") -> None:
        for library in Path(folder).glob(_LIBRARIES):
            tf.load_op_library(str(library))  # Before the model, whose operators are in it.
        self._model = tf.saved_model.load(os.fspath(folder))  # It keeps the weights.
        self._function = self._model.signatures[signature]
        _, self.inputs = self._function.structured_input_signature
        self.outputs = self._function.structured_outputs

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs by their names.

        Args:
            arrays: the inputs by their names.

        Raises:
            RequestError: they are not those of the signature, or an operator refuses them.
        """
        if arrays.keys() != self.inputs.keys():
            raise RequestError(f"inputs must be {sorted(self.inputs)}, got {sorted(arrays)}")
        for name, spec in self.inputs.items():
            array = arrays[name]
            if array.dtype != spec.dtype.as_numpy_dtype:
                raise RequestError(f"{name} must be of {spec.dtype.name}, got {array.dtype}")
            if not spec.shape.is_compatible_with(array.shape):
                raise RequestError(f"{name} must have shape {spec.shape}, got {array.shape}")
        try:
            outputs = self._function(**{name: tf.constant(arrays[name]) for name in arrays})
        except tf.errors.InvalidArgumentError as error:
            raise RequestError(error.message) from error
        return {name: output.numpy() for name, output in outputs.items()}
