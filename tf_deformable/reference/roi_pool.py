"""RoI pooling in plain TensorFlow: gather the pixels that every bin's samples touch, and average.

    y[r, i, j, d] = mask[r, i, j] * sum_s x(q_s)[d] / n
    q_s = start + (i, j) * bin + gamma * offset * size + sample s

A sample interpolates between the pixels at the floor and at the ceiling of its position. The
samples of a bin are a grid, and each axis decides by itself where they are and how much the pixels
weigh: what is computed per axis are rows (columns) and their weights. Gradients are TensorFlow's
own; those of clamped samples and of samples on a pixel are stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_deformable._geometry.boxes import box_extent, check_box_indices
from tf_deformable._geometry.roi_pool import RoIPoolGeometry, roi_pool_checks, roi_pool_geometry
from tf_deformable._geometry.sizes import LARGEST_INTEGER, Dim, Pair, dims, known, shape_of

# A bin of more samples than this weighs each with nothing.
_MOST_SAMPLES = 2**30


def deformable_roi_pool(
    inputs: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    offsets: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    samples_per_bin: int = 4,
    gamma: float = 0.1,
    aligned: bool = True,
    name: str | None = None,
) -> tf.Tensor:
    """RoI pooling, plain, deformable or modulated, without the library.

    The user's entry point is `tf_deformable.deformable_roi_pool`, which also converts arguments to
    tensors; this function takes tensors. It works with unknown static shapes, under
    `jit_compile=True` (but for `samples_per_bin=0`, where the boxes decide how much there is to
    compute), and is differentiable any number of times, though not in boxes.

    Args:
        inputs: `[N, H, W, C]`, float16, bfloat16, float32 or float64.
        boxes: `[R, 4]`, (y1, x1, y2, x2) in pixels of the image, float32 or float64.
        box_indices: `[R]`, int32: the image of each box, or -1, which gives zeros.
        offsets: `[R, part_h, part_w, 2]`, normalised (dy, dx), the dtype of inputs, or None.
        mask: `[R, ph, pw]`, the dtype of inputs, or None.
        output_size: number of bins, an integer or (ph, pw).
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis; 0, if aligned: as many as the bin has pixels.
        gamma: scale of the offsets.
        aligned: RoIAlign's geometry, or that of the authors' operator.
        name: of the operation in a graph.

    Returns:
        `[R, ph, pw, C]` in the dtype of inputs. float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: static shapes or attributes break a rule of the operator.
        tf.errors.InvalidArgumentError: a box index is neither -1 nor an image; not under
            `jit_compile=True`, where such boxes give zeros.
    """
    operator = "deformable_roi_pool"
    with tf.name_scope(name or operator):
        if offsets is not None:
            roi_pool_checks(operator).rank("offsets", offsets)
            offsets = tf.expand_dims(offsets, 3)
        return roi_pool(
            operator,
            inputs,
            boxes,
            box_indices,
            offsets,
            mask,
            output_size=_pair(output_size),
            group_size=1,
            spatial_scale=spatial_scale,
            samples_per_bin=samples_per_bin,
            gamma=gamma,
            aligned=aligned,
        )


def deformable_psroi_pool(
    inputs: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    offsets: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    *,
    output_size: int | Sequence[int],
    group_size: int,
    spatial_scale: float = 1.0,
    samples_per_bin: int = 4,
    gamma: float = 0.1,
    aligned: bool = True,
    name: str | None = None,
) -> tf.Tensor:
    """Position-sensitive RoI pooling, plain, deformable or modulated, without the library.

    As `deformable_roi_pool` is for `tf_deformable.deformable_roi_pool`, this is for
    `tf_deformable.deformable_psroi_pool`.

    Args:
        inputs: `[N, H, W, k*k*D]`; channels are ordered (map row, map column, D).
        boxes: `[R, 4]`, (y1, x1, y2, x2) in pixels of the image.
        box_indices: `[R]`, int32: the image of each box, or -1, which gives zeros.
        offsets: `[R, part_h, part_w, classes, 2]`, normalised (dy, dx), or None.
        mask: `[R, ph, pw]` or None.
        output_size: number of bins, an integer or (ph, pw).
        group_size: k.
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis; 0, if aligned: as many as the bin has pixels.
        gamma: scale of the offsets.
        aligned: RoIAlign's geometry, or that of the authors' operator.
        name: of the operation in a graph.

    Returns:
        `[R, ph, pw, D]` in the dtype of inputs.

    Raises:
        ValueError: as `deformable_roi_pool`.
        tf.errors.InvalidArgumentError: likewise.
    """
    operator = "deformable_psroi_pool"
    with tf.name_scope(name or operator):
        return roi_pool(
            operator,
            inputs,
            boxes,
            box_indices,
            offsets,
            mask,
            output_size=_pair(output_size),
            group_size=group_size,
            spatial_scale=spatial_scale,
            samples_per_bin=samples_per_bin,
            gamma=gamma,
            aligned=aligned,
        )


def roi_pool(
    operator: str,
    inputs: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    offsets: tf.Tensor | None,
    mask: tf.Tensor | None,
    *,
    output_size: Pair,
    group_size: int,
    spatial_scale: float,
    samples_per_bin: int,
    gamma: float,
    aligned: bool,
) -> tf.Tensor:
    """Both operators in one, as the registered operator is.

    Args:
        operator: whose name messages begin with.
        inputs: `[N, H, W, k*k*D]`.
        boxes: `[R, 4]`.
        box_indices: `[R]`.
        offsets: `[R, part_h, part_w, classes, 2]` or None.
        mask: `[R, ph, pw]` or None.
        output_size: (ph, pw).
        group_size: k.
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis.
        gamma: scale of the offsets.
        aligned: RoIAlign's geometry, or that of the authors' operator.
    """
    g = roi_pool_geometry(
        operator,
        inputs,
        boxes,
        box_indices,
        offsets,
        mask,
        output_size=output_size,
        group_size=group_size,
        spatial_scale=spatial_scale,
        samples_per_bin=samples_per_bin,
        gamma=gamma,
        aligned=aligned,
    )
    dtype = inputs.dtype
    compute_dtype = tf.float64 if dtype == tf.float64 else tf.float32

    images = tf.cast(check_box_indices(operator, box_indices, g.batch), tf.int64)
    is_pooled = (images >= 0) & (images < g.batch)  # [R]; the others are padding
    # tf.where, not a product: whatever padding holds, it has neither values nor gradients.
    images = tf.where(is_pooled, images, 0)
    boxes = tf.stop_gradient(tf.cast(boxes, compute_dtype))
    is_finite = tf.reduce_all(tf.math.is_finite(boxes), axis=1)
    boxes = tf.where(tf.expand_dims(is_finite & is_pooled, 1), boxes, 0)
    y1, x1, y2, x2 = tf.unstack(boxes, num=4, axis=1)
    is_nan = _as_bins(is_pooled & ~is_finite)
    if offsets is None:
        dy = dx = tf.zeros([1, 1, 1], compute_dtype)
    else:
        offsets = _offsets_of_bins(tf.cast(offsets, compute_dtype), g)
        offsets = tf.where(tf.expand_dims(_as_bins(is_pooled), -1), offsets, 0)
        dy, dx = tf.unstack(offsets, num=2, axis=-1)
        is_nan |= tf.math.is_nan(dy) | tf.math.is_nan(dx)
    is_read = _as_bins(is_pooled) & ~is_nan

    rows = np.arange(g.pooled_height)[:, None]
    columns = tf.repeat(np.arange(g.pooled_width), g.classes)
    y = _axis(y1, y2, rows, dy, is_nan, is_read, g.pooled_height, g.height, g)
    x = _axis(x1, x2, columns, dx, is_nan, is_read, g.pooled_width, g.width, g)

    bins = g.boxes * g.pooled_height * g.pooled_width * g.classes
    samples = shape_of(bins, _last_size(y.weights) * _last_size(x.weights), 1)
    places = tf.reshape(_places(images, y.pixels, x.pixels, g), samples)
    values = tf.gather_nd(_vectors(tf.cast(inputs, compute_dtype), g), places)
    weights = tf.expand_dims(y.weights, -1) * tf.expand_dims(x.weights, -2)
    outputs = tf.reduce_sum(tf.reshape(weights, samples) * values, axis=1)
    of_bins = (g.boxes, g.pooled_height, g.pooled_width * g.classes, g.depth // g.classes)
    outputs = tf.reshape(outputs, shape_of(*of_bins))
    outputs /= tf.expand_dims(tf.maximum(y.count * x.count, 1), -1)
    outputs = tf.reshape(outputs, [g.boxes, g.pooled_height, g.pooled_width, g.depth])
    if mask is not None:
        shape = [g.boxes, g.pooled_height, g.pooled_width, 1]
        mask = tf.reshape(tf.cast(mask, compute_dtype), shape)
        outputs *= tf.where(tf.expand_dims(_as_bins(is_pooled), -1), mask, 0)
    return tf.cast(outputs, dtype)


def _as_bins(tensor: tf.Tensor) -> tf.Tensor:
    """`[R]` to `[R, 1, 1]`, which broadcasts to `[R, ph, pw*classes]`."""
    return tf.reshape(tensor, [-1, 1, 1])


def _offsets_of_bins(offsets: tf.Tensor, g: RoIPoolGeometry) -> tf.Tensor:
    """`[R, part_h, part_w, classes, 2]` to `[R, ph, pw*classes, 2]`."""
    parts = shape_of(g.boxes, g.part_height, g.part_width, g.classes * 2)
    offsets = tf.reshape(offsets, parts)
    offsets = _parts_of_bins(offsets, 1, g.part_height, g.pooled_height)
    offsets = _parts_of_bins(offsets, 2, g.part_width, g.pooled_width)
    bins = shape_of(g.boxes, g.pooled_height, g.pooled_width * g.classes, 2)
    return tf.reshape(offsets, bins)


def _parts_of_bins(offsets: tf.Tensor, axis: int, parts: Dim, bins: int) -> tf.Tensor:
    """Takes the part of each bin, along one axis."""
    if known(parts):
        if parts == bins:
            return offsets
        part_of_bin = np.arange(bins) * parts // bins
    else:
        # LiteRT divides int32 alone, which may not hold the product of bins and parts.
        dtype = tf.int32 if bins * bins <= LARGEST_INTEGER else tf.int64
        bin_number, parts = tf.range(bins, dtype=dtype), tf.cast(parts, dtype)
        part_of_bin = bin_number * (parts // bins) + bin_number * (parts % bins) // bins
    return tf.gather(offsets, part_of_bin, axis=axis)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """What the bins read along one axis; all broadcast to `[R, ph, pw*classes, ...]`."""

    pixels: tf.Tensor  # [..., 2*samples], floors, then ceilings; beyond the map: nothing is read
    weights: tf.Tensor  # [..., 2*samples], zero where nothing is read, NaN in a bin that is NaN
    count: tf.Tensor  # [...], samples that the mean is taken over


def _axis(
    low: tf.Tensor,
    high: tf.Tensor,
    index: tf.Tensor,
    offsets: tf.Tensor,
    is_nan: tf.Tensor,
    is_read: tf.Tensor,
    bins: int,
    limit: Dim,
    g: RoIPoolGeometry,
) -> _Axis:
    """Weighs the pixels of one axis.

    Args:
        low: `[R]`, where the boxes begin, in pixels of the image.
        high: `[R]`, where they end.
        index: `[ph, 1]` or `[pw*classes]`, the bin's number.
        offsets: `[R, ph, pw*classes]` or `[1, 1, 1]`, normalised.
        is_nan: whether the bin is NaN.
        is_read: whether the bin reads the map.
        bins: number of bins.
        limit: pixels of the map.
        g: the geometry of the pooling.
    """
    dtype = low.dtype
    size_of_map = tf.cast(limit, dtype)
    extent = box_extent(low, high, g.spatial_scale, aligned=g.aligned)
    start, size = map(_as_bins, extent)
    bin_size = size / bins
    # No offset moves nothing, however large the box: zero times infinity is no number.
    shift = tf.clip_by_value(g.gamma * size, dtype.min, dtype.max)
    base = start + tf.cast(index, dtype) * bin_size + offsets * shift

    if not g.aligned:
        sample = tf.range(g.samples_per_bin, dtype=dtype)
        step = bin_size / g.samples_per_bin
        position = tf.expand_dims(base, -1) + sample * tf.expand_dims(step, -1)
        is_kept = (position >= -0.5) & (position <= size_of_map - 0.5)
        count = tf.reduce_sum(tf.cast(is_kept, dtype), axis=-1)
    else:
        if g.samples_per_bin > 0:
            count = tf.constant(g.samples_per_bin, dtype)
            sample = tf.range(g.samples_per_bin, dtype=dtype)
            step = bin_size / count
        else:
            count, step, sample = _samples_for_every_pixel(bin_size, base, size_of_map)
        position = tf.expand_dims(base, -1) + (sample + 0.5) * tf.expand_dims(step, -1)
        is_kept = (position >= -1) & (position <= size_of_map)
        is_kept &= sample < tf.expand_dims(count, -1)

    last = tf.maximum(size_of_map - 1, 0)
    inside = tf.clip_by_value(tf.where(is_kept, position, 0), 0, last)
    floor = tf.floor(tf.stop_gradient(inside))
    moves = is_kept & tf.equal(position, inside) & tf.not_equal(position, floor)
    position = tf.where(moves, position, tf.stop_gradient(inside))

    is_nan, is_read = tf.expand_dims(is_nan, -1), tf.expand_dims(is_read, -1)
    fraction = position - floor  # in [0, 1)
    # A term of the position, so that the derivative by the offset is NaN as well.
    fraction += tf.where(is_nan, tf.constant(float("nan"), dtype), 0) * tf.where(
        is_nan, tf.expand_dims(base, -1), 0
    )
    is_weighed = is_kept | is_nan
    floor_weights = tf.where(is_weighed, 1 - fraction, 0)
    ceil_weights = tf.where(is_weighed, fraction, 0)
    pixels = tf.cast(floor, tf.int64)
    beyond = tf.constant(limit, tf.int64) if known(limit) else limit
    floors = tf.where(is_kept & is_read, pixels, beyond)  # the same if the map is empty
    ceilings = tf.where(moves & is_read, pixels + 1, beyond)
    return _Axis(
        pixels=tf.concat([floors, ceilings], axis=-1),
        weights=tf.concat([floor_weights, ceil_weights], axis=-1),
        count=count,
    )


def _samples_for_every_pixel(
    bin_size: tf.Tensor, base: tf.Tensor, size_of_map: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As many samples as the bin has pixels: their count, distance and, `[..., n]`, numbers.

    Numbers are those of the samples that may lie in the map, or beyond the count.
    """
    count = tf.math.ceil(bin_size)
    count = tf.where((count >= 1) & (count <= _MOST_SAMPLES), count, 0)
    step = bin_size / tf.maximum(count, 1)
    # Two and more samples are more than half a pixel apart.
    most = tf.clip_by_value(tf.reduce_max(count), 1, 2 * size_of_map + 6)
    before = tf.math.floor((-1 - tf.stop_gradient(base)) / step) - 1
    first = tf.where((before > 0) & (before < count), before, 0)
    return count, step, tf.expand_dims(first, -1) + tf.range(most, dtype=base.dtype)


def _places(
    images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, g: RoIPoolGeometry
) -> tf.Tensor:
    """Where among `_vectors` each bin and class reads: `[R, ph, pw*classes, 2*samples, 2*samples]`.

    Args:
        images: `[R]`.
        rows: int64, broadcasts to `[R, ph, pw*classes, 2*samples]`.
        columns: likewise.
        g: the geometry of the pooling.
    """
    per_pixel = g.group_size * g.group_size * g.classes
    map_rows = np.arange(g.pooled_height) * g.group_size // g.pooled_height * g.group_size
    map_columns = np.arange(g.pooled_width) * g.group_size // g.pooled_width
    in_rows = np.reshape(map_rows, [-1, 1, 1]) * g.classes
    in_columns = tf.repeat(map_columns * g.classes, g.classes)
    in_columns += tf.tile(tf.range(g.classes, dtype=tf.int64), [g.pooled_width])

    rows += tf.reshape(images * (g.height + 1), [-1, 1, 1, 1])
    rows = rows * ((g.width + 1) * per_pixel) + in_rows
    columns = columns * per_pixel + tf.expand_dims(in_columns, 1)
    return tf.expand_dims(rows, -1) + tf.expand_dims(columns, -2)


def _vectors(inputs: tf.Tensor, g: RoIPoolGeometry) -> tf.Tensor:
    """The channels of each pixel, map and class: `[N*(H+1)*(W+1)*k*k*classes, D/classes]`.

    The last row and column of pixels are zero and stand for all that is not read, so that every
    gather is in range, on an empty map and without images too.
    """
    no_image = max(1 - g.batch, 0) if known(g.batch) else tf.maximum(1 - g.batch, 0)
    inputs = tf.pad(inputs, [[0, no_image], [0, 1], [0, 1], [0, 0]])
    return tf.reshape(inputs, [-1, g.depth // g.classes])


def _last_size(tensor: tf.Tensor) -> Dim:
    return dims(tensor, 4)[-1]


def _pair(size: int | Sequence[int]) -> Pair:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
