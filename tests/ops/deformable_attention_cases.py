"""Cases of multi-scale deformable attention: sizes, data for them, and what to expect."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

import tf_deformable
from tests.oracles import deformable_attention as oracle

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and attributes of one call; the default is lopsided on purpose."""

    batch: int = 2
    levels: tuple[tuple[int, int], ...] = ((5, 7), (3, 2), (1, 4))
    heads: int = 3
    depth: int = 5
    queries: int = 4
    points: int | tuple[int, ...] = 2  # of every level, or of each
    coordinates: str = "normalized"

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def num_points(self) -> tuple[int, ...] | None:
        return self.points if isinstance(self.points, tuple) else None

    def attributes(self) -> dict[str, Any]:
        """The arguments that are not differentiated."""
        return {
            "spatial_shapes": self.levels,
            "coordinates": self.coordinates,
            "num_points": self.num_points,
        }

    def samples(self) -> tuple[int, ...]:
        """The shape of attention_weights."""
        rows = (self.batch, self.queries, self.heads)
        if isinstance(self.points, tuple):
            return (*rows, sum(self.points))
        return (*rows, len(self.levels), self.points)

    def sizes(self) -> np.ndarray:
        """The sizes of the levels, to be broadcast to sampling_locations."""
        sizes = np.array(self.levels, np.float64).reshape([-1, 2])
        if isinstance(self.points, tuple):
            return np.repeat(sizes, self.points, axis=0)
        return sizes[:, None]

    def locations(self, positions: np.ndarray) -> np.ndarray:
        """Positions in pixels, of the shape of sampling_locations, as the case's coordinates."""
        if self.coordinates == "pixels":
            return positions
        return (positions + 0.5) / np.maximum(self.sizes(), 1)

    def arrays(self, dtype: tf.DType = tf.float64, seed: int = 0) -> Arrays:
        """Tensors, and the upstream gradient as "grad_output".

        Positions are odd multiples of 1/32 of a pixel, up to 3 pixels outside of the maps: never
        near a pixel's centre, where the derivative jumps.
        """
        random = np.random.default_rng(seed)
        samples = self.samples()
        positions = random.uniform(-3, self.sizes() + 2, size=(*samples, 2))
        positions = (2 * np.floor(positions * 16) + 1) / 32
        arrays = {
            "value": random.normal(size=(self.batch, self.pixels, self.heads, self.depth)),
            "sampling_locations": self.locations(positions),
            "attention_weights": random.uniform(size=samples),
            "grad_output": random.normal(size=(self.batch, self.queries, self.heads * self.depth)),
        }
        return {name: array.astype(dtype.as_numpy_dtype) for name, array in arrays.items()}

    def expected(self, arrays: Arrays) -> Arrays:
        """Output and gradients by the oracle."""
        return oracle.multi_scale_deformable_attention(**arrays, **self.attributes())


@functools.cache
def arrays_and_expected(case: Case, dtype: tf.DType = tf.float64) -> tuple[Arrays, Arrays]:
    """The case's data and the oracle's answer, computed once for all tests."""
    arrays = case.arrays(dtype)
    return arrays, case.expected(arrays)


def evaluate(arguments: dict[str, Any], **attributes: Any) -> dict[str, tf.Tensor]:
    """Output and gradients of the operator, named as the oracle's."""
    arguments = {name: tf.convert_to_tensor(value) for name, value in arguments.items()}
    grad_output = arguments.pop("grad_output")
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        output = tf_deformable.multi_scale_deformable_attention(**arguments, **attributes)
    return {"output": output, **tape.gradient(output, arguments, output_gradients=grad_output)}
