"""A training gives the same weights again, bit by bit, where TensorFlow's operators do."""

from __future__ import annotations

from tests.ops.processes import lines_with_threads

_TRAINING = """
import hashlib
import tensorflow as tf
import tf_deformable

tf.keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()
images, boxes = tf.keras.Input((None, None, 3)), tf.keras.Input((None, 4))
features = tf_deformable.DeformableConv2D(8, 3, padding="same", modulated=True)(images)
features = tf.keras.layers.Activation("relu")(features)
pooled = [
    tf_deformable.DeformableRoIPool(3, offset_units=(8,), modulated=True)([features, boxes]),
    tf_deformable.DeformablePSRoIPool(3, 3, score_filters=8)([features, boxes]),
]
model = tf.keras.Model([images, boxes], tf.keras.layers.Add()(pooled))
model.compile(tf.keras.optimizers.Adam(0.01), "mse")
corners = tf.random.uniform([16, 5, 2], 0, 12)
boxes = tf.concat([corners, corners + tf.random.uniform([16, 5, 2], 4, 12)], axis=-1)
targets = tf.random.normal([16, 5, 3, 3, 8])
model.fit([tf.random.normal([16, 24, 24, 3]), boxes], targets, batch_size=8, epochs=3, verbose=0)
for number, weight in enumerate(model.get_weights()):
    print(number, weight.shape, hashlib.sha256(weight.tobytes()).hexdigest())
"""


def test_training_again() -> None:
    first, second = lines_with_threads(_TRAINING, (2, 2))
    assert len(first) > 10
    assert first == second
