"""Serves one batch as a process that has TensorFlow and not the package would.

python serve_with_tensorflow.py MODEL INPUTS.npz OUTPUTS.npy [LIBRARY]

INPUTS.npz holds the inputs of the signature under their names.
"""

import sys

import numpy as np
import tensorflow as tf

directory, inputs, outputs, *library = sys.argv[1:]
for path in library:
    tf.load_op_library(path)
model = tf.saved_model.load(directory)
serve = model.signatures["serving_default"]
(response,) = serve(
    **{name: tf.constant(value) for name, value in np.load(inputs).items()}
).values()
np.save(outputs, response)

assert "tf_deformable" not in sys.modules
