"""What TensorFlow's profiler says of the operators."""

from __future__ import annotations

import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable.ops.conv2d_branch import conv2d_branch


def flops(function, *specs):
    graph = tf.function(function).get_concrete_function(*specs).graph
    options = {
        **tf.compat.v1.profiler.ProfileOptionBuilder.float_operation(),
        "output": "none",
    }
    profile = tf.compat.v1.profiler.profile(graph, options=options)
    return profile.total_float_ops


@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 3)])
def test_deformable_convolution(groups, offset_groups):
    def convolve(inputs, filters, offsets, mask=None):
        return tf_deformable.deformable_conv2d(inputs, filters, offsets, mask, strides=2)

    shapes = [2, 9, 8, 6], [3, 2, 6 // groups, 4], [2, 5, 4, offset_groups * 12]
    specs = [tf.TensorSpec(shape) for shape in shapes]
    pixels, taps = 2 * 5 * 4, 6
    product = pixels * 4 * taps * 6 // groups
    sampling = pixels * taps * 6
    assert flops(convolve, *specs) == 2 * (product + 4 * sampling)
    mask = tf.TensorSpec([2, 5, 4, offset_groups * 6])
    assert flops(convolve, *specs, mask) == 2 * (product + 5 * sampling)


def test_the_branch_of_a_convolution():
    def predict(inputs, filters, bias):
        return conv2d_branch(inputs, filters, bias, has_mask=True, strides=(2, 2))

    specs = [tf.TensorSpec(shape) for shape in ([2, 9, 8, 6], [3, 2, 6, 36], [36])]
    assert flops(predict, *specs) == 2 * (2 * 5 * 4) * (3 * 2 * 6 * 36)


def test_roi_pooling():
    def pool(inputs, boxes, box_indices, samples_per_bin=3):
        return tf_deformable.deformable_roi_pool(
            inputs, boxes, box_indices, output_size=(2, 5), samples_per_bin=samples_per_bin,
            aligned=True,
        )  # fmt: skip

    specs = [tf.TensorSpec([1, 9, 8, 6]), tf.TensorSpec([7, 4]), tf.TensorSpec([7], tf.int32)]
    assert flops(pool, *specs) == 2 * 4 * 9 * (7 * 2 * 5 * 6)
    # The boxes decide: no number is better than a wrong one.
    assert flops(lambda *tensors: pool(*tensors, samples_per_bin=0), *specs) == 0


def test_deformable_attention():
    def attend(value, locations, weights):
        return tf_deformable.multi_scale_deformable_attention(
            value, [(2, 3), (1, 1)], locations, weights
        )

    specs = [tf.TensorSpec(shape) for shape in ([2, 7, 3, 5], [2, 9, 3, 2, 4, 2], [2, 9, 3, 2, 4])]
    assert flops(attend, *specs) == 2 * 5 * (2 * 9 * 3 * 2 * 4) * 5


def test_unknown_sizes_have_no_number():
    def convolve(inputs, filters, offsets):
        return tf_deformable.deformable_conv2d(inputs, filters, offsets)

    shapes = [None, 9, 8, 6], [3, 3, 6, 4], [None, 9, 8, 18]
    assert flops(convolve, *[tf.TensorSpec(shape) for shape in shapes]) == 0
