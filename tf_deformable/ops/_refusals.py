"""What the compiled operators refuse, said of the arguments that the caller gave.

An operator says what it was given. That is not always what the function was called with: maps are
transposed, and offsets get an axis.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


@tf.autograph.experimental.do_not_convert
def refusing_as_given(compute: Callable[[], tf.Tensor], check: Callable[[], object]) -> tf.Tensor:
    """Returns what a compiled operator computes, and puts its refusal in the caller's terms.

    What only the run of a graph shows is out of reach: that refusal is the operator's own.

    Args:
        compute: calls the operator.
        check: checks the same call in Python, by the same rules, and raises errors that name and
            show the arguments as the caller gave them. It costs nothing unless the operator
            refuses.

    Raises:
        ValueError, tf.errors.InvalidArgumentError: of the kind that the operator raised, with the
            message of the check if that refuses as well.
    """
    try:
        return compute()
    except (ValueError, tf.errors.InvalidArgumentError) as refusal:
        try:
            check()
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            message = str(error)
        else:
            raise
        if isinstance(refusal, ValueError):
            raise ValueError(message) from None
        raise tf.errors.InvalidArgumentError(refusal.node_def, refusal.op, message) from None
