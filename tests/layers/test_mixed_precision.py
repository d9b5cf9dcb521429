"""Training under mixed precision: what is learnt, in which dtypes, with a scaled loss."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import DeformableConv2D, DeformablePSRoIPool, DeformableRoIPool

MIXED = ["mixed_float16", "mixed_bfloat16"]
SEEDS = range(3)


@pytest.fixture
def under():
    """Sets the global policy, as a user does for a whole model."""
    before = tf.keras.mixed_precision.global_policy()
    yield tf.keras.mixed_precision.set_global_policy
    tf.keras.mixed_precision.set_global_policy(before)


@pytest.fixture(scope="module")
def gratings():
    """Noisy gratings of eight directions; images to learn from, and others to be asked about."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 8, 768)
    angle = labels * np.pi / 8 + random.uniform(-0.1, 0.1, labels.shape)
    y, x = np.mgrid[:16, :16]
    phase = random.uniform(0, 2 * np.pi, labels.shape)[:, None, None]
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    images = np.sin(along + phase) + random.normal(size=along.shape)
    images = images[..., None].astype(np.float32)
    return (images[:512], labels[:512]), (images[512:], labels[512:])


def accuracy(policy, seed, gratings, under):
    """How often a small network is right after some epochs, and its optimizer."""
    under(policy)
    tf.keras.utils.set_random_seed(seed)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input((16, 16, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            DeformableConv2D(16, 3, strides=2, padding="same", modulated=True, activation="relu"),
            DeformableConv2D(16, 3, padding="same", offset_groups=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8, activation="softmax", dtype="float32"),
        ]
    )
    model.compile(
        tf.keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    seen, others = gratings
    model.fit(*seen, batch_size=64, epochs=7, verbose=0)
    return model.evaluate(*others, verbose=0)[1], model


@pytest.mark.slow
def test_it_learns_what_float32_learns(gratings, under):
    results = {
        policy: [accuracy(policy, seed, gratings, under)[0] for seed in SEEDS]
        for policy in ["float32", *MIXED]
    }
    wide = results["float32"]
    assert min(wide) > 0.5  # Chance is 1/8.
    noise = max(np.ptp(wide), np.sqrt(0.25 / 256))  # of the seeds, or of the images asked about
    for policy in MIXED:
        assert abs(np.mean(results[policy]) - np.mean(wide)) <= noise, results


def test_keras_scales_the_loss(gratings, under):
    _, model = accuracy(
        "mixed_float16", 0, [tuple(a[:64] for a in part) for part in gratings], under
    )
    optimizer = model.optimizer
    assert isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    scale = getattr(optimizer, "dynamic_scale", None)  # Keras 3, else tf-keras
    assert float(optimizer.loss_scale if scale is None else scale) >= 2**10
    for layer in model.layers:
        if isinstance(layer, DeformableConv2D):
            assert layer.compute_dtype == "float16"
            assert {weight.dtype for weight in layer.weights} <= {"float32", tf.float32}
            assert np.any(layer.get_weights()[-1])  # the branch's bias, which starts at zero


FEATURES = [2, 24, 24, 16]
BOXES = tf.constant([[[1.0, 2, 15.5, 16.5], [0, 0, 17, 17]], [[3, 1, 16, 15], [0, 0, 0, 0]]])
MOVED = {
    "offset_kernel_initializer": tf.keras.initializers.RandomNormal(stddev=0.02, seed=1),
    "offset_bias_initializer": tf.keras.initializers.Constant(0.3),
}
LAYERS = {
    "offsets given": lambda: DeformableConv2D(
        12, 3, padding="same", modulated=True, offset_source="given"
    ),
    "convolution": lambda: DeformableConv2D(12, 3, padding="same", modulated=True, **MOVED),
    "RoI": lambda: DeformableRoIPool(2, modulated=True, offset_units=(4,), **MOVED),
    "PSRoI": lambda: DeformablePSRoIPool(2, 2, score_filters=3, **MOVED),
}


def inputs_of(name, features):
    if name == "offsets given":
        positions = features.shape[:3]
        return [features, 0.3 + tf.zeros([*positions, 18]), tf.ones([*positions, 9])]
    return features if name == "convolution" else [features, BOXES]


def make_step(layer, name, policy):
    features = tf.random.normal(FEATURES, seed=1)

    @tf.function
    def step(features, upstream):
        features = tf.cast(features, tf.keras.mixed_precision.Policy(policy).compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(features)
            outputs = layer(inputs_of(name, features))
        upstream = tf.cast(upstream, outputs.dtype)
        variables = layer.trainable_variables
        return tape.gradient(outputs, [features, *variables], output_gradients=upstream)

    return step, features


@pytest.mark.parametrize("policy", MIXED)
@pytest.mark.parametrize("name", LAYERS)
def test_no_map_is_widened(name, policy, under):
    """But for a product or convolution of TensorFlow's that predicts offsets, in float32: its input
    is widened in each pass, and not kept between them, and has a wide gradient.
    """
    under(policy)
    layer = LAYERS[name]()
    outputs = layer(inputs_of(name, tf.zeros(FEATURES)))
    step, features = make_step(layer, name, policy)
    graph = step.get_concrete_function(features, tf.zeros(outputs.shape)).graph
    size = features.shape.num_elements()
    wide = [
        operation.type
        for operation in graph.get_operations()
        if operation.type not in ("Placeholder", "Identity", "Reshape")  # these copy nothing
        for tensor in operation.outputs
        if tensor.dtype == tf.float32 and tensor.shape.num_elements() == size
    ]
    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    expected: dict[str, int] = {}
    if name == "PSRoI":
        expected = {"Cast": 2, "MatMul": 1}
    elif name == "convolution" and on_gpu:
        expected = {"Cast": 2, "Conv2DBackpropInput": 1}
    assert {kind: wide.count(kind) for kind in wide} == expected


@pytest.mark.parametrize("policy", MIXED)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_float32(name, policy, under):
    """Within what the narrow dtype can hold, with a loss scaled as it is in training."""
    results = {}
    for used in ("float32", policy):
        under(used)
        tf.keras.utils.set_random_seed(5)  # the same weights
        layer = LAYERS[name]()
        outputs = layer(inputs_of(name, tf.zeros(FEATURES)))
        step, features = make_step(layer, name, used)
        upstream = tf.random.normal(outputs.shape, seed=2)
        scale = 1.0 if used == "float32" else 2.0**6
        results[used] = [
            tf.cast(gradient, tf.float32) / scale for gradient in step(features, scale * upstream)
        ]
    eps = 2.0**-7 if policy == "mixed_bfloat16" else 2.0**-10
    for narrow, wide in zip(results[policy], results["float32"], strict=True):
        error = tf.norm(narrow - wide) / tf.norm(wide)
        # All that is read is rounded; derivatives by offsets are differences of that.
        assert error < 8 * eps
