"""The parts of an offset branch: the dense convolution with gradients, and the gradient scale."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.layers._offset_branch import scale_gradient
from tf_deformable.reference.conv2d_branch import convolution

STRIDES_AND_DILATIONS = [
    ((1, 1), (1, 1)),
    ((2, 1), (1, 1)),
    ((1, 1), (2, 3)),
    ((2, 2), (2, 2)),  # one gcd takes all
    ((4, 2), (2, 2)),  # a stride remains
    ((2, 2), (4, 2)),  # a dilation remains
    ((2, 1), (3, 2)),  # both remain
]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("strides", "dilations"), STRIDES_AND_DILATIONS)
@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 1)])
@pytest.mark.parametrize("size", [(11, 12), (14, 13)])
def test_convolution_equals_conv2d(padding, strides, dilations, kernel_size, size):
    inputs = tf.random.normal([2, *size, 3], dtype=tf.float64)
    filters = tf.random.normal([*kernel_size, 3, 4], dtype=tf.float64)
    np.testing.assert_allclose(
        convolution(inputs, filters, strides=strides, padding=padding, dilations=dilations),
        tf.nn.conv2d(inputs, filters, strides, padding, dilations=dilations),
        atol=1e-12,
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("strides", "dilations"), STRIDES_AND_DILATIONS)
def test_convolution_has_gradients_for_unknown_sizes(padding, strides, dilations):
    inputs = tf.random.normal([2, 11, 12, 2], dtype=tf.float64)
    filters = tf.random.normal([3, 2, 2, 3], dtype=tf.float64)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 2], tf.float64)])
    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch([inputs, filters])
            outputs = convolution(
                inputs, filters, strides=strides, padding=padding, dilations=dilations
            )
            loss = tf.reduce_sum(outputs**2)
        return tape.gradient(loss, [inputs, filters])

    def loss(inputs, filters):
        outputs = tf.nn.conv2d(inputs, filters, strides, padding, dilations=dilations)
        return tf.reduce_sum(outputs**2)

    along = [tf.random.normal(t.shape, dtype=tf.float64) for t in (inputs, filters)]
    step = 1e-4
    above = loss(inputs + step * along[0], filters + step * along[1])
    below = loss(inputs - step * along[0], filters - step * along[1])
    by_inputs, by_filters = gradients(inputs)
    np.testing.assert_allclose(
        tf.reduce_sum(by_inputs * along[0]) + tf.reduce_sum(by_filters * along[1]),
        (above - below) / (2 * step),
        rtol=1e-5,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_scale_gradient_is_the_identity_with_a_scaled_gradient(dtype):
    x = tf.constant([1.0, -3.0, np.inf], dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = scale_gradient(x, 0.25)
    upstream = tf.constant([1.0, 2.0, -8.0], dtype)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(tape.gradient(y, x, upstream), upstream * 0.25)


def test_scale_gradient_twice_differentiated():
    x = tf.constant(3.0)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = scale_gradient(x, 0.5) ** 3
        gradient = inner.gradient(y, x)  # 3 x^2 / 2, in which x is scaled again
    assert float(gradient) == 13.5
    assert float(outer.gradient(gradient, x)) == 0.5 * 6 * 3 * 0.5
