"""Bilinear interpolation, with zeros outside of the map and gradients where samples are.

    x(q) = sum_r max(0, 1 - |r_y - q_y|) * max(0, 1 - |r_x - q_x|) * x[r]

Gradients are TensorFlow's own: floor is held constant, so that the derivative at an integer
coordinate is the one of the cell `[floor(q), floor(q) + 1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_deformable._geometry.sizes import Dim


class Cells(NamedTuple):
    """Where samples lie: in which squares between four pixels, and where in these."""

    rows: tf.Tensor  # int64: those of the upper pixels, -2 where a sample touches none
    columns: tf.Tensor  # int64: those of the left pixels, likewise
    down: tf.Tensor  # in [0, 1), how far below the upper pixels
    right: tf.Tensor  # in [0, 1)


def cells_of(y: tf.Tensor, x: tf.Tensor, height: Dim, width: Dim) -> Cells:
    """Returns where samples lie.

    Args:
        y: positions in pixels of their maps, float32 or float64.
        x: likewise, of the same shape.
        height: of the maps, a size or what broadcasts to the positions.
        width: likewise.

    Returns:
        In the shape of the positions. A sample that is NaN in one coordinate is NaN in both.
    """
    dtype = y.dtype
    # A position that touches no pixel, +-inf included, moves to a finite one that touches none
    # either: its value and its gradients are zero. NaN in one coordinate becomes NaN in both, and
    # reads where no pixel is.
    far = tf.constant(-2, dtype)
    is_nan = tf.math.is_nan(y) | tf.math.is_nan(x)
    either = y + x
    y = tf.where((y < -1) | (y >= tf.cast(height, dtype)), far, y)
    x = tf.where((x < -1) | (x >= tf.cast(width, dtype)), far, x)
    top = tf.floor(tf.stop_gradient(tf.where(is_nan, far, y)))  # in [-2, H-1]
    left = tf.floor(tf.stop_gradient(tf.where(is_nan, far, x)))
    y, x = tf.where(is_nan, either, y), tf.where(is_nan, either, x)
    return Cells(tf.cast(top, tf.int64), tf.cast(left, tf.int64), y - top, x - left)


def interpolated(
    cells: Cells, shape: Sequence[Any], pixels: Callable[[int, int], tf.Tensor]
) -> tf.Tensor:
    """Returns the values of samples.

    Args:
        cells: where they lie.
        shape: to which their axes are reshaped; broadcasts to what `pixels` returns.
        pixels: from 0 or 1 down and 0 or 1 to the right to the values of that pixel of each cell.
    """
    down, right = tf.reshape(cells.down, shape), tf.reshape(cells.right, shape)
    return (
        (1 - down) * (1 - right) * pixels(0, 0)
        + (1 - down) * right * pixels(0, 1)
        + down * (1 - right) * pixels(1, 0)
        + down * right * pixels(1, 1)
    )
