"""Gradients of gradients, which are rarely needed and have no kernels of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def gradients_of_gradients(
    function: Callable[..., tf.Tensor],
    primals: Sequence[tf.Tensor],
    grad_output: tf.Tensor,
    upstream: Sequence[tf.Tensor],
) -> list[Any]:
    """Differentiates the gradients of a function, which the reference computes.

    Args:
        function: of the primals.
        primals: what it is differentiated by.
        grad_output: what its gradients were computed with.
        upstream: what comes from above for each of these gradients.

    Returns:
        The gradients of the primals, and of `grad_output`.
    """
    primals = list(primals)
    with tf.GradientTape() as outer:
        outer.watch([*primals, grad_output])
        with tf.GradientTape() as inner:
            inner.watch(primals)
            output = function(*primals)
        grads = inner.gradient(output, primals, output_gradients=grad_output)
    return outer.gradient(
        grads,
        [*primals, grad_output],
        output_gradients=list(upstream),
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
