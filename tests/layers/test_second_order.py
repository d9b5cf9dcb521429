"""Gradients of gradients through every layer, as a gradient penalty takes them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import (
    DeformableConv2D,
    DeformablePSRoIPool,
    DeformableRoIPool,
    PSRoIPool,
    RoIPool,
    config,
)

BOXES = np.array([[[1, 2, 5.5, 6.5], [0, 0, 7, 7]], [[3, 1, 6, 5], [0, 0, 0, 0]]])
# Off the integers, at which derivatives by offsets jump.
MOVED = {
    "offset_kernel_initializer": tf.keras.initializers.RandomNormal(stddev=0.05, seed=1),
    "offset_bias_initializer": tf.keras.initializers.Constant(0.3),
}
LAYERS = {
    "conv": lambda: DeformableConv2D(3, 3, dtype="float64", **MOVED),
    "conv, dilated": lambda: DeformableConv2D(
        3, 3, padding="same", dilation_rate=2, modulated=True, dtype="float64", **MOVED
    ),
    "conv, strides and dilations": lambda: DeformableConv2D(
        3, 2, strides=2, dilation_rate=3, padding="same", dtype="float64", **MOVED
    ),
    "conv, limited offsets": lambda: DeformableConv2D(
        3, 3, max_offset=2.0, dtype="float64", **MOVED
    ),
    "RoI": lambda: RoIPool(2, dtype="float64"),
    "PSRoI": lambda: PSRoIPool(2, 2, dtype="float64"),
    "deformable RoI": lambda: DeformableRoIPool(
        2, aligned=True, modulated=True, offset_units=(4,), dtype="float64", **MOVED
    ),
    "deformable PSRoI": lambda: DeformablePSRoIPool(
        2, 2, score_filters=3, aligned=True, dtype="float64", **MOVED
    ),
}


@pytest.fixture
def inputs():
    return tf.constant(np.random.default_rng(0).normal(size=[2, 8, 8, 4]))


def call(layer, inputs):
    return layer(inputs if isinstance(layer, DeformableConv2D) else [inputs, tf.constant(BOXES)])


def penalty_and_gradients(layer, inputs):
    """A gradient penalty of the inputs, and its gradients by weights and inputs."""
    variables = [*layer.trainable_variables, inputs]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            loss = tf.reduce_sum(tf.sin(call(layer, inputs)))
        penalty = tf.reduce_sum(inner.gradient(loss, inputs) ** 2)
    return penalty, outer.gradient(penalty, variables, unconnected_gradients="zero")


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_a_gradient_penalty(name, in_graph, backend, inputs):
    layer = LAYERS[name]()
    with config.use_backend(backend):
        call(layer, inputs)
        function = tf.function(penalty_and_gradients) if in_graph else penalty_and_gradients
        _, gradients = function(layer, inputs)
        assert all(np.isfinite(g).all() for g in gradients)

        # Along a random direction of the inputs, and of each weight, against differences.
        random, step = np.random.default_rng(1), 1e-6
        *of_weights, of_inputs = [np.asarray(g) for g in gradients]
        direction = random.normal(size=inputs.shape)
        ends = [
            penalty_and_gradients(layer, inputs + sign * step * direction)[0] for sign in (1, -1)
        ]
        expected = float(ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose((of_inputs * direction).sum(), expected, rtol=1e-4, atol=1e-6)
        for variable, gradient in zip(layer.trainable_variables, of_weights, strict=True):
            value = variable.numpy()
            direction = random.normal(size=value.shape)
            ends = []
            for sign in (1, -1):
                variable.assign(value + sign * step * direction)
                ends.append(float(penalty_and_gradients(layer, inputs)[0]))
            variable.assign(value)
            expected = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(
                (gradient * direction).sum(), expected, rtol=1e-4, atol=1e-6, err_msg=variable.name
            )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_in_half_precision(policy, in_graph):
    layer = DeformableConv2D(3, 3, modulated=True, dtype=policy, **MOVED)
    inputs = tf.random.normal([2, 8, 8, 4])
    layer(inputs)
    function = tf.function(penalty_and_gradients) if in_graph else penalty_and_gradients
    _, gradients = function(layer, inputs)
    for gradient in gradients:
        assert gradient.dtype == tf.float32
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_forward_mode(policy):
    """The derivative along a direction, against the reverse mode."""
    inputs = tf.random.normal([2, 8, 8, 4])
    direction = tf.random.normal(inputs.shape)
    layer = DeformableConv2D(3, 3, modulated=True, dtype=policy, **MOVED)
    layer(inputs)
    with tf.autodiff.ForwardAccumulator(inputs, direction) as accumulator:
        outputs = tf.cast(layer(inputs), tf.float32)
    upstream = tf.random.normal(outputs.shape)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(tf.cast(layer(inputs), tf.float32) * upstream)
    forward = tf.reduce_sum(accumulator.jvp(outputs) * upstream)
    reverse = tf.reduce_sum(tape.gradient(loss, inputs) * direction)
    tolerance = 1e-4 if policy == "float32" else 0.1
    np.testing.assert_allclose(forward, reverse, rtol=tolerance, atol=10 * tolerance)
