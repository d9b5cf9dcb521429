"""Serves SavedModels with KServe's model server (`pip install kserve`).

    python examples/model_servers/serve_with_kserve.py NAME=FOLDER... --port 8080

FOLDER is what `tf_deformable.export.saved_model(model, FOLDER, portable=False)` wrote. The server
is one process, and answers by the Open Inference Protocol over HTTP, on all addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput
from kserve.utils.numpy_codec import from_np_dtype
from saved_model import RequestError, SavedModel


class Served(Model):
    """A SavedModel as KServe calls it."""

    def __init__(self, name: str, model: SavedModel) -> None:
        super().__init__(name)
        self._model = model
        self.ready = True

    async def predict(self, payload: Any, *unused: Any, **also_unused: Any) -> InferResponse:
        """Answers one request, while others are answered."""
        if not isinstance(payload, InferRequest):  # The first version of the protocol.
            raise InvalidInput("requests must be those of the Open Inference Protocol, /v2/models")
        try:
            arrays = {one.name: one.as_numpy() for one in payload.inputs}
        except ValueError as error:  # Numbers that do not fill the shape.
            raise InvalidInput(str(error)) from error
        try:
            # TensorFlow computes without Python's lock: meanwhile other requests are read.
            answer = await asyncio.to_thread(self._model, arrays)
        except RequestError as error:
            raise InvalidInput(str(error)) from error
        outputs = []
        for name, array in answer.items():
            output = InferOutput(name, list(array.shape), from_np_dtype(array.dtype))
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return InferResponse(payload.id or str(uuid.uuid4()), self.name, outputs)


def main() -> None:
    """Serves until the process is told to end (SIGINT or SIGTERM)."""
    parser = argparse.ArgumentParser(description="Serve SavedModels with KServe.")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="SavedModels to serve")
    parser.add_argument("--port", type=int, default=8080, help="of HTTP")
    arguments = parser.parse_args()
    pairs = [one.partition("=") for one in arguments.models]
    models = [Served(name, SavedModel(folder)) for name, _, folder in pairs]
    ModelServer(http_port=arguments.port, enable_grpc=False).start(models)


if __name__ == "__main__":
    main()
