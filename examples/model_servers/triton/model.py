"""A SavedModel in the Python backend of NVIDIA's Triton Inference Server.

Triton's model repository holds, for each model,

    NAME/1/model.py         this file
    NAME/1/saved_model.py   the one beside this folder
    NAME/1/saved_model/     what `tf_deformable.export.saved_model(..., portable=False)` wrote

and needs no `config.pbtxt`: inputs and outputs are those of the SavedModel. `instance_group` in one
says how many processes answer requests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tensorflow as tf
import triton_python_backend_utils as triton

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
from saved_model import RequestError, SavedModel  # noqa: E402

_TYPES = {
    tf.bool: "TYPE_BOOL",
    tf.int32: "TYPE_INT32",
    tf.int64: "TYPE_INT64",
    tf.float16: "TYPE_FP16",
    tf.float32: "TYPE_FP32",
    tf.float64: "TYPE_FP64",
}


class TritonPythonModel:
    """What Triton makes one of in every process that serves the model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Tells Triton the inputs and outputs, which it checks requests by."""
        model = SavedModel(_HERE / "saved_model")
        config.set_max_batch_size(0)  # Requests that differ in size are no batch.
        for name, spec in model.inputs.items():
            config.add_input(_tensor(name, spec))
        for name, spec in model.outputs.items():
            config.add_output(_tensor(name, spec))
        return config

    def initialize(self, args: Any) -> None:
        """Loads the model."""
        self._model = SavedModel(_HERE / "saved_model")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers requests, one by one."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        try:
            outputs = self._model(arrays)
        except RequestError as error:
            code = triton.TritonError.INVALID_ARG
            return triton.InferenceResponse([], triton.TritonError(str(error), code))
        return triton.InferenceResponse([triton.Tensor(*output) for output in outputs.items()])


def _tensor(name: str, spec: tf.TensorSpec) -> dict[str, Any]:
    dims = [-1 if size is None else size for size in spec.shape]
    return {"name": name, "data_type": _TYPES[spec.dtype], "dims": dims}
