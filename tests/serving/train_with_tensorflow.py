"""Trains an exported module as a process that has TensorFlow and not the package would.

python train_with_tensorflow.py MODULE STEPS LOSSES.npy LIBRARY

MODULE has a function `train`, which returns the loss.
"""

import sys

import numpy as np
import tensorflow as tf

directory, steps, losses, library = sys.argv[1:]
tf.load_op_library(library)
module = tf.saved_model.load(directory)
np.save(losses, [module.train() for _ in range(int(steps))])

# Gradients that were not traced are registered by the package alone.
try:
    with tf.GradientTape():
        module.predict()
except LookupError as error:
    assert "TFDeformable>Conv2D" in str(error)
else:
    raise AssertionError("the process found a gradient")

assert "tf_deformable" not in sys.modules
