"""What the branches that predict offsets have in common."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def scale_gradient(tensor: tf.Tensor, factor: float) -> tf.Tensor:
    """Returns the tensor; the gradient that reaches it is multiplied by `factor`."""

    @tf.custom_gradient
    def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.identity(x), lambda upstream: upstream * tf.cast(factor, upstream.dtype)

    return identity(tensor)
