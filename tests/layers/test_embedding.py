"""The layers inside what TensorFlow and Keras wrap around models: loops, recomputation, copies."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import (
    DCNv3,
    DCNv4,
    DeformableConv2D,
    DeformablePSRoIPool,
    DeformableRoIPool,
    MultiScaleDeformableAttention,
)

# Off the integers, at which derivatives by offsets jump.
MOVED = {
    "offset_kernel_initializer": tf.keras.initializers.RandomNormal(stddev=0.05, seed=1),
    "offset_bias_initializer": tf.keras.initializers.Constant(0.3),
}
LAYERS = {
    "convolution": lambda: DeformableConv2D(4, 3, padding="same", modulated=True, **MOVED),
    "RoI": lambda: DeformableRoIPool(2, offset_units=(4,), modulated=True, **MOVED),
    "PSRoI": lambda: DeformablePSRoIPool(2, 2, score_filters=3, **MOVED),
    "DCNv3": lambda: DCNv3(groups=2),
    "DCNv4": lambda: DCNv4(groups=2, center_feature_scale=True),
    "attention": lambda: MultiScaleDeformableAttention(2, 1, 3),
}
BOXES = tf.constant([[[1.0, 2, 5.5, 6.5], [0, 0, 7, 7]], [[3, 1, 6, 5], [0, 0, 0, 0]]])


@pytest.fixture(params=LAYERS)
def layer(request):
    """A layer that is built."""
    layer = LAYERS[request.param]()
    call(layer, tf.zeros([2, 8, 8, 4]))
    if not isinstance(layer, (DeformableConv2D, DeformableRoIPool, DeformablePSRoIPool)):
        # Where the weights of samples start at zero, offsets have no gradient.
        random = np.random.default_rng(0)
        layer.set_weights([random.normal(0, 0.3, weight.shape) for weight in layer.weights])
    return layer


@pytest.fixture
def images():
    return tf.random.normal([2, 8, 8, 4], seed=3)


def call(layer, images):
    if isinstance(layer, (DeformableRoIPool, DeformablePSRoIPool)):
        return layer([images, BOXES])
    if isinstance(layer, MultiScaleDeformableAttention):
        size = tf.shape(images)
        queries = tf.reshape(images, [size[0], -1, 4])
        points = [size[0], size[1] * size[2], 1, 2]
        return layer([queries, tf.random.stateless_uniform(points, [1, 2]), images])
    return layer(images)


def gradients(function, layer, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(tf.sin(function(images)))
    return tape.gradient(loss, [images, *layer.trainable_variables])


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert np.any(b)


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_recompute_grad(layer, images, in_graph):
    recomputed = tf.recompute_grad(lambda images: call(layer, images))
    run = tf.function(gradients) if in_graph else gradients
    expected = gradients(lambda images: call(layer, images), layer, images)
    assert_same(run(recomputed, layer, images), expected)


@pytest.mark.parametrize("mode", ["full", "activations"])
def test_keras_remat(images, is_keras_3, mode):
    if not is_keras_3:
        pytest.skip("tf-keras has no rematerialization")
    if not hasattr(tf.keras, "RematScope"):
        pytest.skip("this Keras has no rematerialization")
    plain = LAYERS["convolution"]()
    with tf.keras.RematScope(mode=mode):
        layer = LAYERS["convolution"]()
    plain(images), layer(images)
    layer.set_weights(plain.get_weights())
    got = tf.function(gradients)(layer, layer, images)
    assert_same(got, gradients(plain, plain, images))


def test_while_loop(layer, images):
    """Three passes, each over what the last one made of the images."""

    def passes(images):
        def once(i, images):
            outputs = call(layer, images)
            mean = tf.reduce_mean(outputs, axis=range(1, outputs.shape.rank))
            return i + 1, images * (1 + mean[:, None, None, None])

        return tf.while_loop(lambda i, _: i < 3, once, [0, images])[1]

    got = tf.function(gradients)(passes, layer, images)
    assert_same(got, gradients(passes, layer, images))  # in eager mode it is a loop of Python


def test_map_fn(layer):
    batches = tf.random.normal([3, 2, 8, 8, 4], seed=4)

    def mapped(batches):
        return tf.map_fn(lambda images: call(layer, images), batches)

    expected = tf.stack([call(layer, images) for images in batches])
    np.testing.assert_allclose(mapped(batches), expected, atol=1e-5)
    assert_same(tf.function(gradients)(mapped, layer, batches), gradients(mapped, layer, batches))


def test_vectorized_map(layer):
    batches = tf.random.normal([3, 2, 8, 8, 4], seed=4)
    got = tf.vectorized_map(lambda images: call(layer, images), batches)
    np.testing.assert_allclose(got, [call(layer, images) for images in batches], atol=1e-5)


def test_reduce_retracing(layer):
    traces = []

    @tf.function(reduce_retracing=True)
    def step(images):
        traces.append(images.shape)
        return gradients(lambda images: call(layer, images), layer, images)

    for size in (8, 11, 9, 13, 7):
        images = tf.random.normal([2, size, size + 1, 4])
        expected = gradients(lambda images: call(layer, images), layer, images)
        assert_same(step(images), expected)
    assert len(traces) == 2  # of the first size, and of any


def test_run_functions_eagerly(images):
    layer = LAYERS["convolution"]()
    model = tf.keras.Sequential(
        [tf.keras.Input((8, 8, 4)), layer, tf.keras.layers.GlobalAveragePooling2D()]
    )
    weights = model.get_weights()
    trained = []
    for eagerly in (False, True):
        model.set_weights(weights)
        tf.config.run_functions_eagerly(eagerly)
        try:
            model.compile(tf.keras.optimizers.SGD(0.1), "mse")
            for _ in range(2):
                model.train_on_batch(images, tf.ones([2, 4]))
        finally:
            tf.config.run_functions_eagerly(False)
        trained.append(model.get_weights())
    for compiled, eager, before in zip(*trained, weights, strict=True):
        np.testing.assert_allclose(eager, compiled, atol=1e-6)
        assert np.any(compiled != before)


def nested_model():
    inner_input = tf.keras.Input((None, None, 4))
    inner = tf.keras.Model(inner_input, LAYERS["convolution"]()(inner_input), name="inner")
    features, boxes = tf.keras.Input((None, None, 4)), tf.keras.Input((None, 4))
    twice = inner(inner(features))  # a shared model
    pooled = [LAYERS[name]()([twice, boxes]) for name in ("RoI", "PSRoI")]
    return tf.keras.Model([features, boxes], pooled)


def test_cloned_and_nested_models(images):
    model = nested_model()
    clone = tf.keras.models.clone_model(model)
    assert len(clone.weights) == len(model.weights)
    assert not {id(w) for w in clone.weights} & {id(w) for w in model.weights}
    clone.set_weights(model.get_weights())
    got, expected = clone([images, BOXES]), model([images, BOXES])
    tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)

    def flat(model):
        return lambda images: tf.concat(
            [tf.reshape(output, [-1]) for output in model([images, BOXES])], axis=0
        )

    assert_same(gradients(flat(clone), clone, images), gradients(flat(model), model, images))


def test_a_model_in_a_module_with_its_training_step(images, tmp_path):
    """What `tf.saved_model.save` keeps of a function that trains is loaded and trains further."""

    class Trained(tf.Module):
        def __init__(self):
            super().__init__()
            self.layer = LAYERS["convolution"]()
            self.layer(images)
            self.optimizer = tf.keras.optimizers.SGD(0.1)
            self.optimizer.build(self.layer.trainable_variables)

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4])])
        def train(self, images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self.layer(images) - 1) ** 2)
            variables = self.layer.trainable_variables
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, variables), variables, strict=True)
            )
            return loss

    module = Trained()
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    losses = [float(loaded.train(images)) for _ in range(4)]
    np.testing.assert_allclose(losses, [float(module.train(images)) for _ in range(4)], rtol=1e-5)
    assert losses[-1] < losses[0]


def test_functions_around_the_operators(images):
    """AutoGraph's own loops and branches."""
    filters = tf.random.normal([3, 3, 4, 4], seed=1) / 6
    offsets = tf.random.normal([2, 8, 8, 18], seed=2)

    @tf.function
    def function(images, steps):
        for _ in tf.range(steps):
            if tf.reduce_mean(images) < 100:
                images = tf_deformable.deformable_conv2d(images, filters, offsets)
        return images

    expected = images
    for _ in range(3):
        expected = tf_deformable.deformable_conv2d(expected, filters, offsets)
    np.testing.assert_allclose(function(images, tf.constant(3)), expected, atol=1e-5)
