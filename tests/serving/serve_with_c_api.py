"""Serves one batch through TensorFlow's C API, as a serving binary would: no Python TensorFlow.

python serve_with_c_api.py LIBTENSORFLOW MODEL INPUT OUTPUT INPUTS.npy OUTPUTS.npy [LIBRARY]

LIBTENSORFLOW exports the C API, INPUT and OUTPUT are names of operations in the graph.
"""

import ctypes
import sys

import numpy as np

TF_FLOAT = 1


class Output(ctypes.Structure):
    """`TF_Output`: one output of an operation."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


libtensorflow, directory, input_name, output_name, inputs, outputs, *library = sys.argv[1:]
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

batch = np.load(inputs)
assert batch.dtype == np.float32
request = ctypes.c_void_p(
    tf.TF_AllocateTensor(
        TF_FLOAT,
        (ctypes.c_int64 * batch.ndim)(*batch.shape),
        batch.ndim,
        ctypes.c_size_t(batch.nbytes),
    )
)
ctypes.memmove(tf.TF_TensorData(request), batch.tobytes(), batch.nbytes)
response = ctypes.c_void_p()
feed, fetch = (
    Output(tf.TF_GraphOperationByName(graph, name.encode()), 0)
    for name in (input_name, output_name)
)
tf.TF_SessionRun(
    session,
    None,
    ctypes.byref(feed),
    ctypes.byref(request),
    1,
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
