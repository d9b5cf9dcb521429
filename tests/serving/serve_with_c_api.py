"""Serves one batch through TensorFlow's C API, as a serving binary would: no Python TensorFlow.

python serve_with_c_api.py LIBTENSORFLOW MODEL INPUTS.npz OUTPUT OUTPUTS.npy [LIBRARY]

LIBTENSORFLOW exports the C API. INPUTS.npz holds the inputs under the names of their operations in
the graph, OUTPUT is the name of the operation to fetch.
"""

import ctypes
import sys

import numpy as np

TF_FLOAT = 1


class Output(ctypes.Structure):
    """`TF_Output`: one output of an operation."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


libtensorflow, directory, inputs, output_name, outputs, *library = sys.argv[1:]
tf = ctypes.CDLL(libtensorflow)
for function in (
    "TF_NewStatus",
    "TF_NewGraph",
    "TF_NewSessionOptions",
    "TF_LoadLibrary",
    "TF_LoadSessionFromSavedModel",
    "TF_GraphOperationByName",
    "TF_AllocateTensor",
    "TF_TensorData",
):
    getattr(tf, function).restype = ctypes.c_void_p
tf.TF_Message.restype = ctypes.c_char_p
tf.TF_Dim.restype = ctypes.c_int64
tf.TF_TensorByteSize.restype = ctypes.c_size_t

status = ctypes.c_void_p(tf.TF_NewStatus())


def check():
    """Raises what the last call reported."""
    if tf.TF_GetCode(status):
        raise RuntimeError(tf.TF_Message(status).decode())


for path in library:
    tf.TF_LoadLibrary(path.encode(), status)
    check()
graph = ctypes.c_void_p(tf.TF_NewGraph())
session = ctypes.c_void_p(
    tf.TF_LoadSessionFromSavedModel(
        ctypes.c_void_p(tf.TF_NewSessionOptions()),
        None,
        directory.encode(),
        (ctypes.c_char_p * 1)(b"serve"),
        1,
        graph,
        None,
        status,
    )
)
check()


def tensor_of(array):
    """The array as a `TF_Tensor`."""
    assert array.dtype == np.float32
    tensor = tf.TF_AllocateTensor(
        TF_FLOAT,
        (ctypes.c_int64 * array.ndim)(*array.shape),
        array.ndim,
        ctypes.c_size_t(array.nbytes),
    )
    ctypes.memmove(tf.TF_TensorData(ctypes.c_void_p(tensor)), array.tobytes(), array.nbytes)
    return tensor


def output_of(name):
    """The first output of an operation."""
    return Output(tf.TF_GraphOperationByName(graph, name.encode()), 0)


batch = np.load(inputs)
feeds = (Output * len(batch))(*map(output_of, batch))
requests = (ctypes.c_void_p * len(batch))(*map(tensor_of, batch.values()))
fetch = output_of(output_name)
response = ctypes.c_void_p()
tf.TF_SessionRun(
    session,
    None,
    feeds,
    requests,
    len(batch),
    ctypes.byref(fetch),
    ctypes.byref(response),
    1,
    None,
    0,
    None,
    status,
)
check()
shape = [tf.TF_Dim(response, axis) for axis in range(tf.TF_NumDims(response))]
data = ctypes.string_at(tf.TF_TensorData(response), tf.TF_TensorByteSize(response))
np.save(outputs, np.frombuffer(data, np.float32).reshape(shape))
assert "tensorflow" not in sys.modules
