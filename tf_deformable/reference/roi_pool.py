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

import tensorflow as tf

from tf_deformable.reference._roi_pool_geometry import (
    RoIPoolGeometry,
    check_box_indices,
    roi_pool_geometry,
)
from tf_deformable.reference._sizes import Dim, Pair

# A bin of more samples than this weighs each with nothing.
_MOST_SAMPLES = 2**30


def deformable_roi_pool(
    inputs: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    offsets: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    *,
    output_size: Pair,
    group_size: int = 1,
    spatial_scale: float = 1.0,
    samples_per_bin: int = 4,
    gamma: float = 0.1,
    aligned: bool = False,
) -> tf.Tensor:
    """RoI pooling: plain, deformable, position-sensitive, modulated, without the library.

    The user's entry points are `tf_deformable.deformable_roi_pool` and `deformable_psroi_pool`,
    which also normalise arguments; this function takes them normalised. It works with unknown
    static shapes, under `jit_compile=True` (but for `samples_per_bin=0`, where the boxes decide how
    much there is to compute), and is differentiable any number of times, though not in boxes.

    Args:
        inputs: `[N, H, W, k*k*D]`, float16, bfloat16, float32 or float64; channels are ordered
            (map row, map column, D).
        boxes: `[R, 4]`, (y1, x1, y2, x2) in pixels of the image, float32 or float64.
        box_indices: `[R]`, int32: the image of each box, or -1, which gives zeros.
        offsets: `[R, part_h, part_w, classes, 2]`, normalised (dy, dx), the dtype of inputs, or
            None.
        mask: `[R, ph, pw]`, the dtype of inputs, or None.
        output_size: (ph, pw).
        group_size: k.
        spatial_scale: pixels of the map per pixel of the image.
        samples_per_bin: along each axis; 0, if aligned: as many as the bin has pixels.
        gamma: scale of the offsets.
        aligned: RoIAlign's geometry instead of the authors'.

    Returns:
        `[R, ph, pw, D]` in the dtype of inputs. float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: static shapes or attributes break a rule of the operator.
        tf.errors.InvalidArgumentError: a box index is neither -1 nor an image; not under
            `jit_compile=True`, where such boxes give zeros.
    """
    g = roi_pool_geometry(
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

    images = tf.cast(check_box_indices(box_indices, g.batch), tf.int64)
    is_pooled = (images >= 0) & (images < g.batch)  # [R]; the others are padding
    # tf.where, not a product: whatever padding holds, it has neither values nor gradients.
    if offsets is None:
        offsets = tf.zeros([1, 1, 1, 1, 2], compute_dtype)
    else:
        offsets = _offsets_of_bins(tf.cast(offsets, compute_dtype), g)
        offsets = tf.where(_as_bins(is_pooled)[..., None], offsets, 0)

    boxes = tf.stop_gradient(tf.cast(boxes, compute_dtype))
    is_finite = tf.reduce_all(tf.math.is_finite(boxes), axis=1)
    is_nan = ~_as_bins(is_finite) | tf.reduce_any(tf.math.is_nan(offsets), axis=-1)
    is_nan &= _as_bins(is_pooled)
    boxes = tf.where((is_finite & is_pooled)[:, None], boxes, 0)
    y1, x1, y2, x2 = tf.unstack(boxes, num=4, axis=1)

    rows = tf.range(g.pooled_height, dtype=tf.int64)[:, None, None]  # beside columns and classes
    columns = tf.range(g.pooled_width, dtype=tf.int64)[:, None]
    y = _axis(y1, y2, rows, offsets[..., 0], is_nan, g.pooled_height, g.height, g)
    x = _axis(x1, x2, columns, offsets[..., 1], is_nan, g.pooled_width, g.width, g)

    maps = rows * g.group_size // g.pooled_height * g.group_size
    maps += columns * g.group_size // g.pooled_width
    is_read = y.is_read[..., :, None] & x.is_read[..., None, :]
    is_read &= _as_bins(is_pooled)[..., None, None]
    values = _gather(tf.cast(inputs, compute_dtype), images, maps, y, x, is_read, g)
    weights = y.weights[..., :, None] * x.weights[..., None, :]
    outputs = tf.reduce_sum(weights[..., None] * values, axis=[-3, -2])
    outputs /= tf.maximum(y.count * x.count, 1)[..., None]
    outputs = tf.reshape(outputs, [g.boxes, g.pooled_height, g.pooled_width, g.depth])
    if mask is not None:
        shape = [g.boxes, g.pooled_height, g.pooled_width, 1]
        mask = tf.reshape(tf.cast(mask, compute_dtype), shape)
        outputs *= tf.where(_as_bins(is_pooled), mask, 0)
    return tf.cast(outputs, dtype)


def _as_bins(tensor: tf.Tensor) -> tf.Tensor:
    """`[R]` to `[R, 1, 1, 1]`, which broadcasts to `[R, ph, pw, classes]`."""
    return tensor[:, None, None, None]


def _offsets_of_bins(offsets: tf.Tensor, g: RoIPoolGeometry) -> tf.Tensor:
    """`[R, part_h, part_w, classes, 2]` to `[R, ph, pw, classes, 2]`."""
    rows = tf.range(g.pooled_height, dtype=tf.int64) * g.part_height // g.pooled_height
    columns = tf.range(g.pooled_width, dtype=tf.int64) * g.part_width // g.pooled_width
    return tf.gather(tf.gather(offsets, rows, axis=1), columns, axis=2)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """What the bins read along one axis; all broadcast to `[R, ph, pw, classes, ...]`."""

    pixels: tf.Tensor  # [..., 2*samples], the floors, then the ceilings
    is_read: tf.Tensor  # [..., 2*samples]
    weights: tf.Tensor  # [..., 2*samples], zero where nothing is read, NaN in a bin that is NaN
    count: tf.Tensor  # [...], samples that the mean is taken over


def _axis(
    low: tf.Tensor,
    high: tf.Tensor,
    index: tf.Tensor,
    offsets: tf.Tensor,
    is_nan: tf.Tensor,
    bins: int,
    limit: Dim,
    g: RoIPoolGeometry,
) -> _Axis:
    """Weighs the pixels of one axis.

    Args:
        low: `[R]`, where the boxes begin, in pixels of the image.
        high: `[R]`, where they end.
        index: the bin's number.
        offsets: `[R, ph, pw, classes]`, normalised.
        is_nan: whether the bin is NaN.
        bins: number of bins.
        limit: pixels of the map.
        g: the geometry of the pooling.
    """
    dtype = low.dtype
    size_of_map = tf.cast(limit, dtype)
    start, size = _as_bins(low * g.spatial_scale - 0.5), _as_bins((high - low) * g.spatial_scale)
    if not g.aligned:
        start = _as_bins(_round(low) * g.spatial_scale - 0.5)
        size = _as_bins((_round(high) + 1) * g.spatial_scale - 0.5) - start
        # tf.maximum would keep the NaN of infinity minus infinity.
        size = tf.where(size > 0.1, size, tf.constant(0.1, dtype))
    bin_size = size / bins
    # No offset moves nothing, however large the box: zero times infinity is no number.
    shift = tf.clip_by_value(g.gamma * size, dtype.min, dtype.max)
    base = start + tf.cast(index, dtype) * bin_size + offsets * shift

    if not g.aligned:
        sample = tf.range(g.samples_per_bin, dtype=dtype)
        position = base[..., None] + sample * (bin_size / g.samples_per_bin)[..., None]
        is_kept = (position >= -0.5) & (position <= size_of_map - 0.5)
        count = tf.reduce_sum(tf.cast(is_kept, dtype), axis=-1)
    else:
        if g.samples_per_bin > 0:
            count = tf.constant(g.samples_per_bin, dtype)
            sample = tf.range(g.samples_per_bin, dtype=dtype)
            step = bin_size / count
        else:
            count, step, sample = _samples_for_every_pixel(bin_size, base, size_of_map)
        position = base[..., None] + (sample + 0.5) * step[..., None]
        is_kept = (position >= -1) & (position <= size_of_map) & (sample < count[..., None])

    last = tf.maximum(size_of_map - 1, 0)
    inside = tf.clip_by_value(tf.where(is_kept, position, 0), 0, last)
    floor = tf.floor(tf.stop_gradient(inside))
    moves = is_kept & (position == inside) & (position != floor)
    position = tf.where(moves, position, tf.stop_gradient(inside))

    is_nan = is_nan[..., None]
    fraction = position - floor  # in [0, 1)
    # A term of the position, so that the derivative by the offset is NaN as well.
    fraction += tf.where(is_nan, tf.constant(float("nan"), dtype), 0) * tf.where(
        is_nan, base[..., None], 0
    )
    is_weighed = is_kept | is_nan
    floor_weights = tf.where(is_weighed, 1 - fraction, 0)
    ceil_weights = tf.where(is_weighed, fraction, 0)
    pixels = tf.cast(floor, tf.int64)
    return _Axis(
        pixels=tf.concat([pixels, pixels + 1], axis=-1),
        is_read=tf.concat([is_kept & (size_of_map > 0), moves], axis=-1) & ~is_nan,
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
    return count, step, first[..., None] + tf.range(most, dtype=base.dtype)


def _gather(
    inputs: tf.Tensor,
    images: tf.Tensor,
    maps: tf.Tensor,
    y: _Axis,
    x: _Axis,
    is_read: tf.Tensor,
    g: RoIPoolGeometry,
) -> tf.Tensor:
    """The pixels of each bin and class: `[R, ph, pw, classes, 2*samples, 2*samples, D/classes]`."""
    maps_and_classes = g.group_size * g.group_size * g.classes
    # The pixel after the last is zero and stands for all that is not read, so that every gather is
    # in range, on an empty map too.
    pixels = g.batch * g.height * g.width
    channels = g.group_size * g.group_size * g.depth
    vectors = tf.pad(tf.reshape(inputs, [pixels, channels]), [[0, 1], [0, 0]])
    vectors = tf.reshape(vectors, [(pixels + 1) * maps_and_classes, g.depth // g.classes])

    rows = _as_bins(images)[..., None] * g.height + y.pixels
    pixel = tf.where(is_read, rows[..., :, None] * g.width + x.pixels[..., None, :], pixels)
    within_pixel = maps[..., None, None] * g.classes + _as_column(
        tf.range(g.classes, dtype=tf.int64)
    )
    return tf.gather_nd(vectors, (pixel * maps_and_classes + within_pixel)[..., None])


def _as_column(tensor: tf.Tensor) -> tf.Tensor:
    """`[n]` to `[n, 1, 1]`."""
    return tensor[:, None, None]


def _round(value: tf.Tensor) -> tf.Tensor:
    """To the nearest integer, halves away from zero; tf.round takes them to even numbers."""
    magnitude = tf.abs(value)
    whole = tf.floor(magnitude)
    return tf.sign(value) * tf.where(magnitude - whole >= 0.5, whole + 1, whole)
