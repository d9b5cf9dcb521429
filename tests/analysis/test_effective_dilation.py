"""Effective dilation against numbers worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tests.analysis import small_models as models
from tf_deformable import analysis
from tf_deformable.ops import sampling_positions


@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 4), (2, 5)])
def test_a_regular_grid_has_its_dilation(dilation, kernel_size):
    offsets = tf.fill([2, 4, 5, 2 * 2 * kernel_size[0] * kernel_size[1]], 0.75)  # all shifted alike
    positions = sampling_positions(
        offsets, kernel_size=kernel_size, input_size=(4, 5), dilations=dilation
    )
    found = analysis.effective_dilation(positions)
    assert found.shape == (2, 4, 5, 2)
    np.testing.assert_array_equal(found, dilation)


def test_unequal_dilations_count_by_their_pairs():
    y, x = np.meshgrid([0, 3, 6], [0, 1, 2], indexing="ij")
    assert analysis.effective_dilation(np.stack([y, x], -1)) == (6 * 3 + 6 * 1) / 12


def test_a_moved_tap_changes_the_distances_to_its_neighbours():
    grid = np.moveaxis(np.mgrid[:3, :3], 0, -1).astype(float)
    corner, middle = grid.copy(), grid.copy()
    corner[0, 0] += (-3, -3)  # two neighbours, at (1, 0) and (0, 1)
    assert analysis.effective_dilation(corner) == pytest.approx((10 + 2 * np.hypot(4, 3)) / 12)
    middle[1, 1] += (0, 2)  # above, below, left, right
    expected = (8 + 2 * np.hypot(1, 2) + 3 + 1) / 12
    assert analysis.effective_dilation(middle) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 2), r"\[...,kh,kw,2\], got \[3, 2\]"), ((3, 3, 3), "got"), ((5, 1, 1, 2), "two taps")],
)
def test_bad_positions(shape, message):
    with pytest.raises(ValueError, match=message):
        analysis.effective_dilation(np.zeros(shape))


@pytest.fixture
def model():
    """Stride 2, then a layer whose grid is spread by 1 + the value of its input."""
    inputs = tf.keras.Input((None, None, 1))
    layer = models.deformable("spread")
    model = tf.keras.Model(inputs, layer(tf.keras.layers.MaxPooling2D(1, 2)(inputs)))
    taps = np.moveaxis(np.mgrid[-1:2, -1:2], 0, -1)  # taps move outwards
    kernel = np.zeros((3, 3, 1, 18), np.float32)
    kernel[1, 1, 0] = taps.ravel()
    layer.offset_kernel.assign(kernel)
    return model


def scene():
    """A large object of value 3 with a small one of value 1 on it, a medium one of value 2."""
    image = np.zeros((1, 64, 80, 1), np.float32)
    boxes = np.array([[[0, 0, 40, 40], [8, 8, 16, 16], [30, 50, 50, 70], [0, 0, 0, 0]]], np.float32)
    for box, value in zip(boxes[0].astype(int), (3, 1, 2, 0), strict=True):
        image[0, box[0] : box[2], box[1] : box[3]] = value
    return image, boxes


def test_filters_are_sorted_by_the_smallest_object_around_their_middle(model):
    image, boxes = scene()
    found = analysis.effective_dilation_by_size(model, image, boxes=boxes, areas=(100, 900))
    assert found.layers == ("spread",)
    assert found.categories == ("small", "medium", "large", "background")
    # Every second pixel of 8x8, of 20x20, and of 40x40 without the small one.
    np.testing.assert_array_equal(found.count, [[16, 100, 400 - 16, 32 * 40 - 500]])
    np.testing.assert_allclose(found.mean, [[2, 3, 4, 1]], atol=1e-5)
    np.testing.assert_allclose(found.std, 0, atol=1e-5)
    header, row = str(found).splitlines()
    assert header.split() == ["layer", "small", "medium", "large", "background"]
    assert row.split() == "spread 2.00 ± 0.00 3.00 ± 0.00 4.00 ± 0.00 1.00 ± 0.00".split()


def test_masks_say_the_same_as_boxes(model):
    image, boxes = scene()
    masks = np.zeros((1, 4, 64, 80), bool)
    for index, (y1, x1, y2, x2) in enumerate(boxes[0].astype(int)):
        masks[0, index, y1:y2, x1:x2] = True
    by_mask = analysis.effective_dilation_by_size(model, image, masks=masks, areas=(100, 900))
    by_box = analysis.effective_dilation_by_size(model, image, boxes=boxes, areas=(100, 900))
    np.testing.assert_array_equal(by_mask.count, by_box.count)
    np.testing.assert_array_equal(by_mask.mean, by_box.mean)


def test_batches_are_pooled_and_missing_categories_are_not_numbers(model):
    image, boxes = scene()
    images = np.concatenate([image, 0 * image, 2 * image])
    objects = np.concatenate([boxes, 0 * boxes, boxes])
    one = analysis.effective_dilation_by_size(model, images, boxes=objects, batch_size=2)
    all_at_once = analysis.effective_dilation_by_size(model, images, boxes=objects)
    np.testing.assert_array_equal(one.count, all_at_once.count)
    np.testing.assert_allclose(one.mean, all_at_once.mean)
    np.testing.assert_allclose(one.std, all_at_once.std)
    assert one.count[0, 1] == one.count[0, 2] == 0  # areas of the paper
    assert np.isnan(one.mean[0, 1]) and np.isnan(one.std[0, 2])
    # Every object is small there: 400 filters of each image, of 3 and 6 times the values of one.
    small = np.concatenate(
        [1 + factor * np.array([1] * 16 + [2] * 100 + [3] * 384) for factor in (1, 2)]
    )
    np.testing.assert_allclose(one.mean[0, 0], small.mean(), rtol=1e-6)
    np.testing.assert_allclose(one.std[0, 0], small.std(), rtol=1e-6)


@pytest.fixture
def every_pixel():
    """A layer of which each unit is in the middle of a pixel of the image."""
    inputs = tf.keras.Input((None, None, 1))
    return tf.keras.Model(inputs, models.deformable("each")(inputs))


def test_objects_count_up_to_their_edges(every_pixel):
    # Pixel i is from i to i + 1, and its middle at i + 0.5: rows 1 and 2, columns 2 to 4.
    box = np.array([[[0.6, 1.5, 3.5, 5.5]]])
    image = np.zeros((1, 6, 8, 1), np.float32)
    found = analysis.effective_dilation_by_size(every_pixel, image, boxes=box, areas=(1, 2))
    np.testing.assert_array_equal(found.count, [[0, 0, 2 * 4, 6 * 8 - 2 * 4]])


@pytest.mark.parametrize(
    ("areas", "category"), [((4, 9), 1), ((3, 4), 2), ((4.01, 9), 0), ((3.99, 4.01), 1)]
)
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_areas_at_a_limit_belong_to_the_larger_category(every_pixel, kind, areas, category):
    image = np.zeros((1, 6, 8, 1), np.float32)
    objects = np.array([[[1, 2, 3, 4]]])
    if kind == "masks":
        objects = np.zeros((1, 1, 6, 8), np.uint8)
        objects[0, 0, 1:3, 2:4] = 255  # anything but 0
    found = analysis.effective_dilation_by_size(every_pixel, image, areas=areas, **{kind: objects})
    expected = [0, 0, 0, 6 * 8 - 4]
    expected[category] = 4
    np.testing.assert_array_equal(found.count, [expected])


def test_masks_end_where_the_image_does():
    # Units above and left of the image, and below and right of it, are on no object.
    inputs = tf.keras.Input((None, None, 1))
    padded = tf.keras.layers.ZeroPadding2D(2)(inputs)
    model = tf.keras.Model(inputs, models.deformable("padded")(padded))
    image, masks = np.zeros((1, 4, 5, 1), np.float32), np.ones((1, 1, 4, 5))
    found = analysis.effective_dilation_by_size(model, image, masks=masks, areas=(1, 2))
    np.testing.assert_array_equal(found.count, [[0, 0, 4 * 5, 8 * 9 - 4 * 5]])


def test_a_box_that_is_turned_inside_out_has_no_area(every_pixel):
    image = np.zeros((1, 6, 8, 1), np.float32)
    boxes = np.array([[[4, 6, 1, 2], [0, 0, 0, 0]]])
    found = analysis.effective_dilation_by_size(every_pixel, image, boxes=boxes)
    np.testing.assert_array_equal(found.count, [[0, 0, 0, 6 * 8]])


def test_both_limits_may_be_the_same(every_pixel):
    image = np.zeros((1, 6, 8, 1), np.float32)
    boxes = np.array([[[0, 0, 2, 2]]])
    found = analysis.effective_dilation_by_size(every_pixel, image, boxes=boxes, areas=(4, 4))
    np.testing.assert_array_equal(found.count, [[0, 0, 4, 6 * 8 - 4]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "one of boxes and masks"),
        ({"boxes": np.zeros((1, 2, 4)), "masks": 1}, TypeError, "one of boxes and masks"),
        ({"boxes": np.zeros((2, 2, 4))}, ValueError, r"boxes must .* N=1 .*got \[2, 2, 4\]"),
        ({"boxes": np.zeros((1, 2, 5))}, ValueError, r"boxes must .* got \[1, 2, 5\]"),
        ({"masks": np.zeros((1, 8, 8))}, ValueError, r"masks must .* got \[1, 8, 8\]"),
        ({"boxes": np.zeros((1, 2, 4)), "areas": (9, 4)}, ValueError, "areas must be .*9, 4"),
        ({"boxes": np.zeros((1, 2, 4)), "areas": (0, 4)}, ValueError, "areas must be .*0, 4"),
        ({"boxes": np.zeros((1, 2, 4)), "layers": ["x"]}, ValueError, "'spread'.*got 'x'"),
    ],
)
def test_bad_arguments(model, arguments, error, message):
    with pytest.raises(error, match=message):
        analysis.effective_dilation_by_size(model, np.zeros((1, 8, 8, 1), np.float32), **arguments)
