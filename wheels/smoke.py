"""Every operator with its gradients, and models that are saved, loaded and served.

Run by `check.py` in an environment that has the wheel, TensorFlow and Keras, and no compiler.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from importlib import metadata

import numpy as np
import tensorflow as tf

import tf_deformable

_SERVER = """
import sys
import numpy as np
import tensorflow as tf

tf.load_op_library(sys.argv[1])
model = tf.saved_model.load(sys.argv[2])
request = np.load(sys.argv[3])
np.testing.assert_allclose(
    model.serve(request["images"], request["boxes"]), request["scores"], rtol=1e-4, atol=1e-4
)
assert "tf_deformable" not in sys.modules
"""


def check_operators() -> None:
    """The compiled operators against the reference: values, and gradients for all inputs.

    Under XLA too, where the library has that: with TensorFlow 2.20 and later.
    """
    minor = int(tf.version.VERSION.split(".")[1])
    has_xla = tf_deformable.config.build_info()["xla"]
    assert has_xla is (minor >= 20), has_xla
    random = np.random.default_rng(0)
    boxes, indices = [[1.0, 2, 6, 7], [0, 0, 5, 5]], [1, 0]

    def convolve(inputs: tf.Tensor, filters: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(inputs, filters, offsets, strides=2)

    def pool(inputs: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_roi_pool(inputs, boxes, indices, offsets, output_size=2)

    def pool_by_position(inputs: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        return tf_deformable.deformable_psroi_pool(
            inputs, boxes, indices, offsets, output_size=2, group_size=2, spatial_scale=1.0
        )

    for function, shapes in [
        (convolve, ([2, 8, 9, 4], [3, 3, 4, 5], [2, 4, 5, 18])),
        (pool, ([2, 8, 9, 4], [2, 2, 2, 2])),
        (pool_by_position, ([2, 8, 9, 12], [2, 2, 2, 3, 2])),
    ]:
        arguments = [tf.constant(random.normal(size=shape)) for shape in shapes]
        results = []
        for backend, jit in [("reference", False), ("native", False)] + [
            ("native", True)
        ] * has_xla:
            with tf_deformable.config.use_backend(backend), tf.GradientTape() as tape:
                tape.watch(arguments)
                output = tf.function(function, jit_compile=jit)(*arguments)
                loss = tf.reduce_sum(output**2)
            results.append([output, *tape.gradient(loss, arguments)])
        for reference, *natives in zip(*results, strict=True):
            for native in natives:
                np.testing.assert_allclose(native, reference, rtol=1e-9, atol=1e-9)


def check_models(folder: pathlib.Path) -> None:
    """A model with every layer: trained, saved, loaded, exported and served."""
    images, boxes = tf.keras.Input((None, None, 3)), tf.keras.Input((None, 4))
    features = tf_deformable.DeformableConv2D(8, 3, padding="same", modulated=True)(images)
    pooled = [
        tf_deformable.RoIPool(2)([features, boxes]),
        tf_deformable.PSRoIPool(2, 1)([features, boxes]),
        tf_deformable.DeformableRoIPool(2)([features, boxes]),
    ]
    pooled = tf.keras.layers.Add()(pooled)
    scores = tf.keras.layers.Dense(3)(tf.keras.layers.Reshape((-1, 2 * 2 * 8))(pooled))
    model = tf.keras.Model([images, boxes], scores)
    model.compile("sgd", "mse")
    random = np.random.default_rng(0)
    request = [random.normal(size=[4, 9, 9, 3]), random.uniform(0, 8, [4, 5, 4])]
    request = [array.astype(np.float32) for array in request]
    model.fit(request, np.zeros([4, 5, 3]), verbose=0)
    expected = model.predict(request, verbose=0)

    model.save(folder / "model.keras")
    loaded = tf.keras.models.load_model(folder / "model.keras")
    np.testing.assert_allclose(loaded.predict(request, verbose=0), expected, rtol=1e-4, atol=1e-4)

    served = tf.Module()
    served.model = model
    specs = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, 4])]
    served.serve = tf.function(lambda images, boxes: model([images, boxes]), specs)
    tf.saved_model.save(served, folder / "exported")
    np.savez(folder / "request.npz", images=request[0], boxes=request[1], scores=expected)
    library = tf_deformable.get_library_path()
    arguments = [library, str(folder / "exported"), str(folder / "request.npz")]
    subprocess.run([sys.executable, "-c", _SERVER, *arguments], check=True)


def main() -> None:
    """Raises an exception if something is not as it must be."""
    assert tf_deformable.config.get_backend() == "native"
    check_operators()
    with tempfile.TemporaryDirectory() as folder:
        check_models(pathlib.Path(folder))
    keras = "keras" if hasattr(tf.keras, "ops") else "tf_keras"
    version = metadata.version(keras)
    print(f"TensorFlow {tf.version.VERSION}, {keras} {version}: all well", flush=True)


if __name__ == "__main__":
    main()
