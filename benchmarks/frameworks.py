"""What is measured: the interface that worker.py uses, and what the operators' benchmarks share.

The libraries are imported when an object is made, in the worker: the classes alone need none.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

Data = dict[str, np.ndarray]
Tensors = dict[str, Any]  # of the framework
Call = Callable[[], Tensors]

GRAD = "grad_"  # a result is "output", or this and the name of an input


class Framework:
    """One way to compute the operator, in a process that does nothing else."""

    modes: ClassVar[tuple[str, ...]] = ("forward", "step")
    # Runs in the interpreter that has TensorFlow, not in one of the peers'.
    is_tensorflow: ClassVar[bool] = False
    # What its process has in its environment beside what all have.
    environment: ClassVar[dict[str, str]] = {}
    # The variant of the data on which results must be those of tf_deformable.
    agrees_on: ClassVar[str] = "deformed"

    def __init__(self, threads: int) -> None:
        """Imports and sets up the library; ImportError says that there is none."""
        raise NotImplementedError

    @classmethod
    def supports(cls, case: Any) -> bool:
        """Tells whether it can compute `case` at all."""
        return True

    def versions(self) -> dict[str, str]:
        """Returns names and versions of what computes."""
        raise NotImplementedError

    def load(self, case: Any, data: Data) -> Tensors:
        """Returns the data in the framework's own form; this is not measured."""
        raise NotImplementedError

    def prepare(self, case: Any, mode: str, inputs: Tensors) -> Call:
        """Returns what is measured.

        "forward" computes the output. "step" computes the output and the gradients of all inputs
        for `grad_output`, which is what a layer does in a training step. "eager" is "forward"
        called without tf.function.
        """
        raise NotImplementedError

    def to_numpy(self, name: str, tensor: Any) -> np.ndarray:
        """Returns a result in the layout of tf_deformable."""
        raise NotImplementedError


class TensorFlow(Framework):
    """An expression of TensorFlow."""

    modes = ("forward", "step", "eager")
    is_tensorflow = True
    jit_compile: ClassVar[bool] = False
    differentiated: ClassVar[tuple[str, ...]] = ()

    def __init__(self, threads: int) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.tf = tf

    def expression(self, case: Any, **inputs: Any) -> Any:
        """Returns the output as a tensor."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        one_dnn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "unset")
        return {"TensorFlow": f"{self.tf.version.VERSION} (TF_ENABLE_ONEDNN_OPTS={one_dnn})"}

    def load(self, case: Any, data: Data) -> Tensors:
        def tensor(array: np.ndarray) -> Any:
            is_float = array.dtype == np.float32
            return self.tf.cast(array, case.dtype) if is_float else self.tf.constant(array)

        return {name: tensor(array) for name, array in data.items()}

    def prepare(self, case: Any, mode: str, inputs: Tensors) -> Call:
        tf = self.tf
        inputs = dict(inputs)
        grad_output = inputs.pop("grad_output")
        sources = [name for name in self.differentiated if name in inputs]

        def forward(inputs: Tensors) -> Tensors:
            return {"output": self.expression(case, **inputs)}

        def step(inputs: Tensors, grad_output: Any) -> Tensors:
            with tf.GradientTape() as tape:
                tape.watch([inputs[name] for name in sources])
                output = self.expression(case, **inputs)
            watched = {GRAD + name: inputs[name] for name in sources}
            # The output is returned, lest TensorFlow leaves out what only the output needs.
            return {"output": output, **tape.gradient(output, watched, grad_output)}

        if mode == "eager":
            return lambda: forward(inputs)
        arguments = (inputs, grad_output) if mode == "step" else (inputs,)
        function = tf.function(
            step if mode == "step" else forward, jit_compile=self.jit_compile, autograph=False
        ).get_concrete_function(*arguments)
        return lambda: function(*arguments)

    def to_numpy(self, name: str, tensor: Any) -> np.ndarray:
        exact = self.tf.float64 if tensor.dtype == self.tf.float64 else self.tf.float32
        return self.tf.cast(tensor, exact).numpy()


class KerasLayer(TensorFlow):
    """A layer of Keras, whose weights are among the data."""

    called_with: ClassVar[tuple[str, ...]] = ("inputs",)
    # By the name of the data, the attribute of the layer; those that the layer has not are ignored.
    weights: ClassVar[dict[str, str]] = {}

    def layer(self, case: Any) -> Any:
        """Returns the layer; it need not be built."""
        raise NotImplementedError

    def prepare(self, case: Any, mode: str, inputs: Tensors) -> Call:
        tf, layer = self.tf, self.layer(case)
        arguments = [inputs[name] for name in self.called_with]

        def forward(arguments: list[Any]) -> Tensors:
            return {"output": layer(arguments[0] if len(arguments) == 1 else arguments)}

        forward(arguments)  # makes the weights
        weights = {
            name: getattr(layer, attribute)
            for name, attribute in self.weights.items()
            if getattr(layer, attribute, None) is not None
        }
        for name, weight in weights.items():
            weight.assign(inputs[name])

        def step(arguments: list[Any], grad_output: Any) -> Tensors:
            with tf.GradientTape() as tape:
                tape.watch(arguments[0])
                output = forward(arguments)["output"]
            sources = [arguments[0], *weights.values()]
            gradients = tape.gradient(output, sources, grad_output)
            names = [self.called_with[0], *weights]
            named = {GRAD + n: g for n, g in zip(names, gradients, strict=True)}
            return {"output": output, **named}

        if mode == "eager":
            return lambda: forward(arguments)
        called = (arguments, inputs["grad_output"]) if mode == "step" else (arguments,)
        function = tf.function(
            step if mode == "step" else forward, jit_compile=self.jit_compile, autograph=False
        ).get_concrete_function(*called)
        return lambda: function(*called)


class TfDeformable(TensorFlow):
    """Ours: the compiled operators."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.package = importlib.import_module("tf_deformable")
        self.package.config.set_backend("native")
        importlib.import_module("tf_deformable._native").load()

    def versions(self) -> dict[str, str]:
        library = ctypes.CDLL(self.package.get_library_path())
        to_string = library._ZN13tf_deformable8ToStringENS_6CpuIsaE
        to_string.restype = ctypes.c_char_p
        instruction_set = to_string(library._ZN13tf_deformable14SelectedCpuIsaEv()).decode()
        return {"tf_deformable": f"{self.package.__version__} ({instruction_set} kernels)"}


class Gather(TensorFlow):
    """TensorFlow alone: tf_deformable's reference implementation."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.package = importlib.import_module("tf_deformable")
        self.package.config.set_backend("reference")


class OpenVino(Framework):
    """A single OpenVINO operation; the filters are constants of its model, as in inference."""

    modes = ("forward",)
    constants: ClassVar[tuple[str, ...]] = ()

    def __init__(self, threads: int) -> None:
        import openvino

        self.openvino = openvino
        self.opset = importlib.import_module("openvino.opset8")
        self.threads = threads

    def node(self, case: Any, **inputs: Any) -> Any:
        """Returns the operation on parameters and constants named as in the data."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"OpenVINO": self.openvino.__version__.partition("-")[0]}

    def prepare(self, case: Any, mode: str, inputs: Tensors) -> Call:
        inputs = {name: x for name, x in inputs.items() if name != "grad_output"}
        parameters = {
            name: self.opset.parameter(x.shape, np.float32, name)
            for name, x in inputs.items()
            if name not in self.constants
        }
        constants = {name: self.opset.constant(inputs[name]) for name in self.constants}
        node = self.node(case, **parameters, **constants)
        model = self.openvino.Model([node], list(parameters.values()))
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # otherwise bfloat16, on processors that have it
        }
        request = self.openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        for i, name in enumerate(parameters):
            request.set_input_tensor(i, self.openvino.Tensor(inputs[name], shared_memory=True))

        def call() -> Tensors:
            request.infer()
            return {"output": request.get_output_tensor(0).data}

        return call


class MxNet(Framework):
    """MXNet, which has the operators of the paper's authors."""

    differentiated: ClassVar[tuple[str, ...]] = ()

    def __init__(self, threads: int) -> None:
        import mxnet

        self.mxnet = mxnet

    def expression(self, case: Any, **inputs: Any) -> Any:
        """Returns the output as a tensor."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"MXNet": self.mxnet.__version__}

    def to_tensors(self, arrays: Data) -> Tensors:
        """Copies arrays, and makes room for the gradients."""
        tensors = {name: self.mxnet.nd.array(array) for name, array in arrays.items()}
        for name in self.differentiated:
            if name in tensors:
                tensors[name].attach_grad()
        self.mxnet.nd.waitall()
        return tensors

    def prepare(self, case: Any, mode: str, inputs: Tensors) -> Call:
        inputs = dict(inputs)
        grad_output = inputs.pop("grad_output")
        sources = [name for name in self.differentiated if name in inputs]

        def forward() -> Tensors:
            output = self.expression(case, **inputs)
            output.wait_to_read()
            return {"output": output}

        def step() -> Tensors:
            with self.mxnet.autograd.record():
                output = self.expression(case, **inputs)
            output.backward(grad_output)
            self.mxnet.nd.waitall()
            return {"output": output, **{GRAD + name: inputs[name].grad for name in sources}}

        return step if mode == "step" else forward
