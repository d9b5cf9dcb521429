"""Models out of Python: SavedModels for plain TensorFlow, ONNX, LiteRT (TensorFlow Lite).

Importing it needs nothing but TensorFlow. `onnx` needs the packages of the extra
`tf_deformable[onnx]`, and says so where they are missing.
"""

from tf_deformable.export._onnx import onnx
from tf_deformable.export._saved_model import Cost, saved_model
from tf_deformable.export._tflite import tflite

__all__ = ["Cost", "onnx", "saved_model", "tflite"]
