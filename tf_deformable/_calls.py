"""Many calls of an operator as one call, for `tf.vectorized_map` and Jacobians.

The axis that counts the calls comes first; it is folded into an axis that the operator has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf


class Calls:
    """What the calls read.

    Args:
        count: how many there are, a scalar.
        inputs: the operator's inputs, or `[count, ...]` where every call has its own.
        is_stacked: where it has.
    """

    def __init__(
        self, count: tf.Tensor, inputs: Sequence[tf.Tensor], is_stacked: Sequence[bool]
    ) -> None:
        self.count = tf.cast(count, tf.int32)
        self.inputs = list(inputs)
        self._is_stacked = list(is_stacked)

    def differ(self, numbers: Sequence[int]) -> bool:
        """Whether calls differ in one of the inputs of these numbers."""
        return any(self._is_stacked[number] for number in numbers)

    def size(self, number: int, axis: int) -> tf.Tensor:
        """The size of an input along an axis, counted as the operator counts, or from the end."""
        if axis >= 0:
            axis += self._is_stacked[number]
        return tf.shape(self.inputs[number])[axis]

    def folded(self, number: int, axis: int, parts: int | tf.Tensor = 1) -> tf.Tensor:
        """An input of all calls, one after the other along an axis.

        Args:
            number: of the input.
            axis: counted as the operator counts, negative from the end.
            parts: if the axis has several parts, calls follow one another in each of them.
        """
        tensor = self.inputs[number]
        rank = tensor.shape.rank - self._is_stacked[number]
        axis %= rank
        if self._is_stacked[number]:
            tensor = tf.transpose(tensor, [*range(1, axis + 1), 0, *range(axis + 1, rank + 1)])
        else:
            tensor = tf.repeat(tf.expand_dims(tensor, axis), self.count, axis=axis)
        shape = tf.shape(tensor)
        before, after, size = shape[:axis], shape[axis + 2 :], shape[axis + 1]
        if not (isinstance(parts, int) and parts == 1):
            split = [self.count, parts, size // parts]
            tensor = tf.reshape(tensor, tf.concat([before, split, after], axis=0))
            order = list(range(rank + 2))
            order[axis], order[axis + 1] = axis + 1, axis
            tensor = tf.transpose(tensor, order)
        return tf.reshape(tensor, tf.concat([before, [self.count * size], after], axis=0))

    def unfolded(
        self, tensor: tf.Tensor, axis: int, size: tf.Tensor, parts: int | tf.Tensor = 1
    ) -> tf.Tensor:
        """An output of all calls as `[count, ...]`.

        Args:
            tensor: the output.
            axis: along which calls follow one another, as in `folded`.
            size: of that axis in a single call.
            parts: as in `folded`.
        """
        rank = tensor.shape.rank
        axis %= rank
        shape = tf.shape(tensor)
        before, after = shape[:axis], shape[axis + 1 :]
        split = [parts, self.count, size // parts]
        tensor = tf.reshape(tensor, tf.concat([before, split, after], axis=0))
        others = [place for place in range(rank + 2) if place != axis + 1]
        tensor = tf.transpose(tensor, [axis + 1, *others])
        return tf.reshape(tensor, tf.concat([[self.count], before, [size], after], axis=0))

    def one_by_one(
        self,
        function: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
        outputs: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        """The outputs of all calls, as `[count, ...]`, made in a loop.

        Args:
            function: makes a call with the operator's inputs.
            outputs: of one call, for their shapes and dtypes.
        """
        own = [number for number in range(len(self.inputs)) if self._is_stacked[number]]

        def call(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            inputs = list(self.inputs)
            for number, value in zip(own, values, strict=True):
                inputs[number] = value
            return function(inputs)

        signature = [tf.TensorSpec(output.shape, output.dtype) for output in outputs]
        values = [self.inputs[number] for number in own]
        return list(tf.map_fn(call, values, fn_output_signature=signature))
