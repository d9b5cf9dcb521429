"""Where boxes lie on a map, and which image they are of."""

from __future__ import annotations

import tensorflow as tf

from tf_deformable._geometry.sizes import Dim

_LEAST_SIZE = 0.1  # of a box, in pixels of the map, unless aligned


def box_extent(
    low: tf.Tensor, high: tf.Tensor, spatial_scale: float, *, aligned: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where boxes begin on the map and how large they are, along each axis.

    Args:
        low: where they begin, in pixels of the image.
        high: where they end, likewise; unless `aligned`, the last pixel inside.
        spatial_scale: pixels of the map per pixel of the image.
        aligned: RoIAlign's geometry instead of the authors'.
    """
    if aligned:
        return low * spatial_scale - 0.5, (high - low) * spatial_scale
    start = _round(low) * spatial_scale - 0.5
    size = (_round(high) + 1) * spatial_scale - 0.5 - start
    # tf.maximum would keep the NaN of infinity minus infinity.
    return start, tf.where(size > _LEAST_SIZE, size, tf.constant(_LEAST_SIZE, low.dtype))


def check_box_indices(operator: str, box_indices: tf.Tensor, batch: Dim) -> tf.Tensor:
    """Returns the indices, checked when they are known: in eager mode now, in a graph when it runs.

    Compilers drop the check.

    Raises:
        tf.errors.InvalidArgumentError: an index is neither -1 nor in [0, batch).
    """
    wrong = (box_indices < -1) | (tf.cast(box_indices, tf.int64) >= batch)
    places = tf.range(tf.size(box_indices))
    place = tf.reduce_min(tf.where(wrong, places, tf.int32.max))  # the first that is wrong
    value = tf.reduce_sum(tf.where(tf.equal(places, place), box_indices, 0))
    rule = f"{operator}: box_indices must be -1 (padding) or in [0,N)"
    if not tf.executing_eagerly():
        message = [f"{rule}, N:", batch, "got:", value, "at:", place]  # printed in brackets each
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(wrong), message)]):
            return tf.identity(box_indices)
    if tf.reduce_any(wrong):
        got = f"{rule} = [0,{batch}), got {value} at {place}"
        raise tf.errors.InvalidArgumentError(None, None, got)
    return box_indices


def _round(value: tf.Tensor) -> tf.Tensor:
    """To the nearest integer, halves away from zero; tf.round takes them to even numbers."""
    magnitude = tf.abs(value)
    whole = tf.floor(magnitude)
    return tf.sign(value) * tf.where(magnitude - whole >= 0.5, whole + 1, whole)
