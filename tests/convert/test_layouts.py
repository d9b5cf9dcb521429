"""Conversions: each against a definition with loops, and back again."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import convert


def _numbered(*shape: int) -> np.ndarray:
    """An array in which all elements differ."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_maps() -> None:
    nchw = _numbered(2, 3, 4, 5)

    nhwc = convert.nhwc_from_nchw(nchw)

    for n, c, y, x in np.ndindex(nchw.shape):
        assert nhwc[n, y, x, c] == nchw[n, c, y, x]
    np.testing.assert_array_equal(convert.nchw_from_nhwc(nhwc), nchw)


def test_kernels() -> None:
    oihw = _numbered(6, 2, 3, 4)

    hwio = convert.hwio_from_oihw(oihw)

    for f, c, i, j in np.ndindex(oihw.shape):
        assert hwio[i, j, c, f] == oihw[f, c, i, j]
    np.testing.assert_array_equal(convert.oihw_from_hwio(hwio), oihw)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 2), (5, 12)], ids=str)
def test_pairs_of_coordinates(shape: tuple[int, ...]) -> None:
    theirs = _numbered(*shape)

    ours = convert.yx_from_xy(theirs)

    np.testing.assert_array_equal(ours[..., 0::2], theirs[..., 1::2])
    np.testing.assert_array_equal(ours[..., 1::2], theirs[..., 0::2])
    np.testing.assert_array_equal(convert.yx_from_xy(ours), theirs)


def test_an_odd_number_of_coordinates_is_refused() -> None:
    message = (
        "yx_from_xy: the last size of pairs must be known and a multiple of 2, got shape [4,3]"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        convert.yx_from_xy(np.zeros([4, 3]))


def test_taps_of_dcnv3_without_their_center() -> None:
    """InternImage removes the middle one of its taps, which go column by column."""
    theirs = _numbered(2, 24, 2)  # 3 groups
    with_center = np.insert(theirs.reshape(2, 3, 8, 2), 4, -1, axis=2)

    ours = convert.offsets_from_dcnv3(theirs.reshape(2, 48), 3, remove_center=True)
    mask = convert.mask_from_dcnv3(theirs[..., 0], 3, remove_center=True)

    whole = convert.offsets_from_dcnv3(with_center.reshape(2, 54), 3)
    whole = np.delete(np.reshape(whole, [2, 3, 9, 2]), 4, axis=2)
    np.testing.assert_array_equal(ours, whole.reshape(2, 48))
    np.testing.assert_array_equal(mask, whole[..., 1].reshape(2, 24))
    back = convert.dcnv3_from_offsets(ours, 3, remove_center=True)
    np.testing.assert_array_equal(back, theirs.reshape(2, 48))
    back = convert.dcnv3_from_mask(mask, 3, remove_center=True)
    np.testing.assert_array_equal(back, theirs[..., 0])


@pytest.mark.parametrize("kernel_size", [(3, 2), (1, 4), 3], ids=str)
@pytest.mark.parametrize("leading", [(), (5,), (2, 3, 4)], ids=["bias", "kernel", "map"])
def test_offsets_and_masks_of_dcnv3(leading: tuple[int, ...], kernel_size: Any) -> None:
    kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    groups = 2
    theirs = _numbered(*leading, groups * kw * kh * 2)
    their_mask = _numbered(*leading, groups * kw * kh)

    ours = convert.offsets_from_dcnv3(theirs, kernel_size)
    our_mask = convert.mask_from_dcnv3(their_mask, kernel_size)

    for g, i, j in np.ndindex(groups, kh, kw):
        our_tap, their_tap = (g * kh + i) * kw + j, (g * kw + j) * kh + i
        np.testing.assert_array_equal(our_mask[..., our_tap], their_mask[..., their_tap])
        dy, dx = ours[..., 2 * our_tap], ours[..., 2 * our_tap + 1]
        np.testing.assert_array_equal(dx, theirs[..., 2 * their_tap])
        np.testing.assert_array_equal(dy, theirs[..., 2 * their_tap + 1])
    np.testing.assert_array_equal(convert.dcnv3_from_offsets(ours, kernel_size), theirs)
    np.testing.assert_array_equal(convert.dcnv3_from_mask(our_mask, kernel_size), their_mask)


@pytest.mark.parametrize(("kernel_size", "remove_center"), [((3, 2), False), (3, True)])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3, 4)], ids=["bias", "kernel", "map"])
def test_offsets_and_masks_of_dcnv4(
    leading: tuple[int, ...], kernel_size: Any, remove_center: bool
) -> None:
    groups = 3
    taps = 8 if remove_center else 6
    theirs = _numbered(*leading, {6: 56, 8: 72}[taps])
    theirs[..., groups * taps * 3 :] = 0

    ours, our_mask = convert.offsets_and_mask_from_dcnv4(
        theirs, kernel_size, groups, remove_center=remove_center
    )

    of_groups = theirs[..., : groups * taps * 3].reshape(*leading, groups, 3 * taps)
    offsets = of_groups[..., : 2 * taps].reshape(*leading, groups * taps * 2)
    mask = of_groups[..., 2 * taps :].reshape(*leading, groups * taps)
    for got, part, to_theirs in (
        (ours, offsets, convert.dcnv3_from_offsets),
        (our_mask, mask, convert.dcnv3_from_mask),
    ):
        back = to_theirs(got, kernel_size, remove_center=remove_center)
        np.testing.assert_array_equal(back, part)
    packed = convert.dcnv4_from_offsets_and_mask(
        ours, our_mask, kernel_size, remove_center=remove_center
    )
    np.testing.assert_array_equal(packed, theirs)


@pytest.mark.parametrize("count", [0, 3])
def test_rois(count: int) -> None:
    rois = _numbered(count, 5) + 0.25
    rois[:, 0] = [0, 3, -1][:count]

    boxes, box_indices = convert.boxes_from_rois(rois)

    assert box_indices.dtype == tf.int32
    assert boxes.shape == [count, 4]
    for roi, box, index in zip(rois, boxes.numpy(), box_indices.numpy(), strict=True):
        image, x1, y1, x2, y2 = roi
        assert index == image
        assert box.tolist() == [y1, x1, y2, x2]
    np.testing.assert_array_equal(convert.rois_from_boxes(boxes, box_indices), rois)


def test_normalized_boxes() -> None:
    boxes = np.float32([[0, 0, 1, 1], [0.25, 0.5, 0.5, 0.75]])

    ends = convert.boxes_from_normalized(boxes, (40, 80))
    last_pixels = convert.boxes_from_normalized(boxes, tf.constant([40, 80]), inclusive=True)

    assert ends.numpy().tolist() == [[0, 0, 40, 80], [10, 40, 20, 60]]
    assert last_pixels.numpy().tolist() == [[0, 0, 39, 79], [10, 40, 19, 59]]
    assert convert.boxes_from_normalized(boxes[None], [40.0, 80.0]).shape == [1, 2, 4]


@pytest.mark.parametrize("boxes", [0, 3])
def test_offset_planes(boxes: int) -> None:
    classes = 2
    planes = _numbered(boxes, 2 * classes, 3, 4)

    offsets = convert.roi_offsets_from_planes(planes)

    assert offsets.shape == [boxes, 3, 4, classes, 2]
    for r, i, j, c in np.ndindex(boxes, 3, 4, classes):
        dx, dy = planes[r, 2 * c, i, j], planes[r, 2 * c + 1, i, j]
        assert offsets[r, i, j, c].numpy().tolist() == [dy, dx]
    np.testing.assert_array_equal(convert.planes_from_roi_offsets(offsets), planes)


def test_offset_planes_of_one_class() -> None:
    planes = _numbered(2, 2, 3, 4)

    offsets = convert.roi_offsets_from_planes(planes)[..., 0, :]

    np.testing.assert_array_equal(convert.planes_from_roi_offsets(offsets), planes)


@pytest.mark.parametrize("leading", [(), (3, 3, 5), (2, 6, 7)], ids=["bias", "kernel", "map"])
def test_position_sensitive_channels(leading: tuple[int, ...]) -> None:
    k, depth = 3, 4
    theirs = _numbered(*leading, depth * k * k)

    ours = convert.psroi_channels_from_depth_major(theirs, k)

    for row, column, d in np.ndindex(k, k, depth):
        np.testing.assert_array_equal(
            ours[..., (row * k + column) * depth + d], theirs[..., (d * k + row) * k + column]
        )
    np.testing.assert_array_equal(convert.depth_major_from_psroi_channels(ours, k), theirs)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (convert.nhwc_from_nchw, [_numbered(2, 3, 4, 5)]),
        (convert.oihw_from_hwio, [_numbered(2, 3, 4, 5)]),
        (convert.offsets_from_dcnv3, [_numbered(2, 36), 3]),
        (convert.offsets_and_mask_from_dcnv4, [_numbered(2, 56), 3, 2]),
        (convert.boxes_from_rois, [_numbered(2, 5)]),
        (convert.rois_from_boxes, [_numbered(2, 4), np.int32([1, 0])]),
        (convert.boxes_from_normalized, [_numbered(2, 4), np.int32([3, 4])]),
        (convert.roi_offsets_from_planes, [_numbered(2, 4, 3, 3)]),
        (convert.planes_from_roi_offsets, [_numbered(2, 3, 3, 2, 2)]),
        (convert.psroi_channels_from_depth_major, [_numbered(2, 18), 3]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_conversions_in_graphs_with_unknown_sizes(function: Any, arguments: list[Any]) -> None:
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    others = [a for a in arguments if not isinstance(a, np.ndarray)]
    # Sizes that a conversion needs are the last ones.
    specs = [
        tf.TensorSpec([None] * (a.ndim - 1) + [a.shape[-1] if a.ndim > 1 else None], a.dtype)
        for a in arrays
    ]
    graph = tf.function(lambda *a: function(*a, *others), input_signature=specs, autograph=False)

    expected = function(*arguments)
    got = graph(*map(tf.constant, arrays))

    for a, b in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_conversions_keep_the_dtype_and_are_differentiable() -> None:
    offsets = tf.Variable(_numbered(2, 18).astype(np.float16))

    with tf.GradientTape() as tape:
        converted = convert.offsets_from_dcnv3(offsets, 3)
        loss = tf.reduce_sum(converted[:, 0])

    assert converted.dtype == tf.float16
    gradient = tf.convert_to_tensor(tape.gradient(loss, offsets))
    assert gradient.numpy().nonzero()[1].tolist() == [1, 1]  # dy of the first tap


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: convert.nhwc_from_nchw(np.zeros([2, 3])),
            "nhwc_from_nchw: maps must have rank 4 [N,C,H,W], got shape [2,3]",
        ),
        (
            lambda: convert.hwio_from_oihw(np.zeros([2])),
            "hwio_from_oihw: filters must have rank 4 [F,C/groups,kh,kw], got shape [2]",
        ),
        (
            lambda: convert.boxes_from_rois(np.zeros([3, 4])),
            "boxes_from_rois: rois must have shape [R,5], got shape [3,4]",
        ),
        (
            lambda: convert.rois_from_boxes(np.zeros([3, 5]), [0, 0, 0]),
            "rois_from_boxes: boxes must have shape [R,4], got shape [3,5]",
        ),
        (
            lambda: convert.rois_from_boxes(np.zeros([3, 4]), [[0, 0, 0]]),
            "rois_from_boxes: box_indices must have rank 1 [R], got shape [1,3]",
        ),
        (
            lambda: convert.boxes_from_normalized(np.zeros([3, 5]), (4, 4)),
            "boxes_from_normalized: boxes must have shape [...,4], got shape [3,5]",
        ),
        (
            lambda: convert.roi_offsets_from_planes(np.zeros([2, 3, 4, 4])),
            "planes must be dx and dy of every class, got an odd number: 3",
        ),
        (
            lambda: convert.planes_from_roi_offsets(np.zeros([2, 3, 4])),
            "planes_from_roi_offsets: offsets must have rank 5 [R,part_h,part_w,classes,2], "
            "got shape [2,3,4]",
        ),
        (
            lambda: convert.offsets_from_dcnv3(np.zeros([2, 9]), 3),
            "offsets_from_dcnv3: the last size of offsets must be known and a multiple of 18, "
            "got shape [2,9]",
        ),
        (
            lambda: convert.offsets_and_mask_from_dcnv4(np.zeros([2, 54]), 3, groups=2),
            "offsets_and_mask_from_dcnv4: the last size of packed must be G*K*3=54 rounded up to a "
            "multiple of 8, 56, got shape [2,54]",
        ),
        (
            lambda: convert.offsets_and_mask_from_dcnv4(np.zeros([2, 56]), 3, groups=0),
            "offsets_and_mask_from_dcnv4: groups must be positive, got 0",
        ),
        (
            lambda: convert.dcnv4_from_offsets_and_mask(np.zeros([2, 36]), np.zeros([2, 9]), 3),
            "dcnv4_from_offsets_and_mask: offsets must have twice the channels of mask, "
            "got 36 and 9",
        ),
        (
            lambda: convert.psroi_channels_from_depth_major(np.zeros([2, 10]), 3),
            "psroi_channels_from_depth_major: the last size of tensor must be known and a "
            "multiple of 9, got shape [2,10]",
        ),
        (
            lambda: convert.depth_major_from_psroi_channels(np.zeros([]), 3),
            "must be known and a multiple of 9, got shape []",
        ),
        (
            lambda: convert.depth_major_from_psroi_channels(np.zeros([2, 9]), 0),
            "must be known and a multiple of 0, got shape [2,9]",
        ),
        (
            lambda: convert.mask_from_dcnv3(np.zeros([2, 9]), (0, 3)),
            "must be known and a multiple of 0, got shape [2,9]",
        ),
        (
            lambda: convert.offsets_from_dcnv3(np.zeros([2, 9]), 1, remove_center=True),
            "must be known and a multiple of 0, got shape [2,9]",
        ),
    ],
)
def test_wrong_shapes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
