"""Serves an exported model: TensorFlow and the operator library, no Keras, no training code.

    python examples/serve.py MODEL INPUTS.npy OUTPUTS.npy --library LIBRARY

MODEL is what `model.export` wrote, LIBRARY is `tf_deformable.get_library_path()`.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np
import tensorflow as tf


def main() -> None:
    """Runs the model on the inputs and writes its outputs."""
    parser = argparse.ArgumentParser(description="Run an exported model on an array of inputs.")
    parser.add_argument("model", help="directory that model.export wrote")
    parser.add_argument("inputs", help="file of the inputs (.npy)")
    parser.add_argument("outputs", help="file to write the outputs to (.npy)")
    parser.add_argument("--library", help="operator library, for a model with native operators")
    arguments = parser.parse_args()

    if arguments.library:
        tf.load_op_library(arguments.library)
    model = tf.saved_model.load(arguments.model)
    outputs = model.serve(tf.constant(np.load(arguments.inputs)))
    np.save(arguments.outputs, outputs.numpy())

    imported = "imported" if "tf_deformable" in sys.modules else "not imported"
    print(f"{len(outputs):,} predictions (process {os.getpid()}, tf_deformable {imported})")


if __name__ == "__main__":
    main()
