"""Bins as boxes in the image, against numbers worked out by hand and what the operator reads."""

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable.ops.sampling import bin_boxes


def test_aligned_bins_tile_the_box():
    bins = bin_boxes([[2.25, 3.0, 8.25, 7.0]], output_size=(3, 2), spatial_scale=0.5, aligned=True)
    assert bins.shape == (1, 3, 2, 4)
    for i in range(3):
        for j in range(2):
            y, x = 2.25 + 2 * i, 3 + 2 * j
            np.testing.assert_allclose(bins[0, i, j], [y, x, y + 2, x + 2])


def test_other_bins_tile_the_rounded_box_to_the_end_of_its_last_pixel():
    bins = bin_boxes([[2.5, -2.5, 6.4, 1.5]], output_size=1, aligned=False)  # halves away from 0
    np.testing.assert_array_equal(bins[0, 0, 0], [3, -3, 7, 3])


def test_least_size_of_a_box():
    inverted = [[9.0, 9.0, 3.0, 3.0]]
    other = bin_boxes(inverted, output_size=1, spatial_scale=0.5, aligned=False)
    np.testing.assert_allclose(other[0, 0, 0], [9, 9, 9.2, 9.2], rtol=1e-6)
    aligned = bin_boxes(inverted, output_size=1, spatial_scale=0.5, aligned=True)
    np.testing.assert_array_equal(aligned[0, 0, 0], inverted[0])


def test_offsets_are_in_units_of_the_box():
    offsets = tf.constant([1.0, -2.0], shape=[1, 1, 1, 2])
    bins = bin_boxes([[0.0, 0.0, 10.0, 20.0]], offsets, output_size=1, gamma=0.25, aligned=True)
    np.testing.assert_allclose(bins[0, 0, 0], [2.5, -10, 12.5, 10])


def test_classes_and_parts():
    offsets = tf.random.normal([2, 2, 1, 3, 2])
    boxes = tf.constant([[0.0, 0.0, 9.0, 9.0], [3.0, 1.0, 4.0, 8.0]])
    arguments = {"output_size": (4, 3), "aligned": True}
    bins = bin_boxes(boxes, offsets, **arguments)
    assert bins.shape == (2, 4, 3, 3, 4)
    parts = tf.repeat(tf.repeat(offsets, 2, axis=1), 3, axis=2)
    for group in range(3):
        expected = bin_boxes(boxes, parts[:, :, :, group], **arguments)
        np.testing.assert_array_equal(bins[:, :, :, group], expected)


@pytest.mark.parametrize(("aligned", "centre"), [(True, 0.5), (False, 0.5 * 3 / 4)])
@pytest.mark.parametrize("spatial_scale", [1.0, 0.25])
def test_bins_are_where_the_operator_samples(aligned, centre, spatial_scale):
    """Maps of y and x, pooled, give the mean position of the samples, 4 along each axis."""
    y, x = np.meshgrid(np.arange(64.0), np.arange(64.0), indexing="ij")
    maps = tf.constant(np.stack([y, x], axis=-1)[None], tf.float32)
    boxes = tf.constant([[11.4, 12.6, 40.2, 31.5], [20.0, 20.5, 27.0, 29.5]]) / spatial_scale
    offsets = tf.random.uniform([2, 3, 2, 2], -1, 1)
    arguments = {"output_size": (3, 2), "spatial_scale": spatial_scale, "aligned": aligned}
    means = tf_deformable.deformable_roi_pool(maps, boxes, [0, 0], offsets, **arguments)
    bins = bin_boxes(boxes, offsets, **arguments)
    low, high = bins[..., :2], bins[..., 2:]
    expected = (low + centre * (high - low)) * spatial_scale - 0.5
    np.testing.assert_allclose(means, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_result_has_the_dtype_of_boxes(dtype):
    offsets = tf.zeros([1, 1, 1, 2], tf.bfloat16)
    boxes = tf.constant([[1003.5, 0, 2007.5, 1]], dtype)
    bins = bin_boxes(boxes, offsets, output_size=1, aligned=False)
    assert bins.dtype == dtype
    np.testing.assert_array_equal(bins[0, 0, 0], [1004, 0, 2009, 2])


def test_unknown_shapes_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec([None, 4]), tf.TensorSpec([None] * 5)])
    def graph(boxes, offsets):
        bins = bin_boxes(boxes, offsets, output_size=(4, 2))
        assert bins.shape.as_list() == [None, 4, 2, None, 4]
        return bins

    boxes, offsets = tf.random.uniform([3, 4]), tf.random.normal([3, 2, 2, 5, 2])
    expected = bin_boxes(boxes, offsets, output_size=(4, 2))
    np.testing.assert_allclose(graph(boxes, offsets), expected, rtol=1e-6)


@pytest.mark.parametrize("boxes", [[], tf.zeros([0, 4])], ids=["list", "tensor"])
def test_no_boxes(boxes):
    assert bin_boxes(boxes, output_size=2).shape == (0, 2, 2, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": tf.zeros([3, 5])}, ValueError, r"boxes must have shape \[R,4\], .* \[3,5\]"),
        ({"boxes": tf.zeros([3, 4], tf.float16)}, ValueError, "boxes must have dtype .* float16"),
        ({"offsets": tf.zeros([3, 2])}, ValueError, r"offsets must have shape .* \[3,2\]"),
        ({"offsets": tf.zeros([3, 2, 2, 3])}, ValueError, r"offsets must .* \[3,2,2,3\]"),
        ({"output_size": 0}, ValueError, r"output_size must be positive, got \[0,0\]"),
        ({"spatial_scale": 0}, ValueError, "spatial_scale must be positive, got 0"),
        ({"gamma": "0.1"}, TypeError, "gamma must be a number"),
        ({"aligned": 1}, TypeError, "aligned must be True or False"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match="^bin_boxes: " + message):
        bin_boxes(**{"boxes": tf.zeros([3, 4]), "output_size": 2, **change})
