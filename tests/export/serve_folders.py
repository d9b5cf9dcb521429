"""Serves exported models as a process that has TensorFlow and not the package would.

python serve_folders.py [--library FILE] FOLDER...

Every folder holds a SavedModel, `model`, and `request.npz`, the inputs of its signature by their
names; it gets `answer.npz`, the outputs by theirs.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

arguments = sys.argv[1:]
if arguments[0] == "--library":
    tf.load_op_library(arguments[1])
    arguments = arguments[2:]
for folder in map(Path, arguments):
    model = tf.saved_model.load(str(folder / "model"))
    request = {name: tf.constant(value) for name, value in np.load(folder / "request.npz").items()}
    np.savez(folder / "answer.npz", **model.signatures["serving_default"](**request))

assert "tf_deformable" not in sys.modules
