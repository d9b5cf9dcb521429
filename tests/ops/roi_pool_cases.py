"""Cases of RoI pooling: sizes and attributes, data for them, and what to expect."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

import tf_deformable
from tests.oracles import roi_pool as oracle

Arrays = dict[str, np.ndarray]

# Boxes that are somehow odd, for a map of some 7 x 9 pixels at the scale 0.5.
NOWHERE = {
    "above and left": [-100, -90, -50, -60],
    "below and right": [1000, 900, 1100, 1200],
    "beside": [2, 1000, 12, 1020],
}
ODD = {
    "inverted": [12, 15, 3, 2],
    "inverted, upside down": [12.5, 2, 3, 15],
    "empty": [5, 6, 5, 6],
    "empty, on the border": [-0.5, 0, -0.5, 0],
    "tiny": [5.3, 6.1, 5.30001, 6.10001],
    "one pixel": [4, 4, 5, 5],
    "halves": [2.5, -0.5, 8.5, 11.5],
    "the whole map": [0, 0, 14, 18],
    "more than the map": [-40, -35, 60, 57],
}
HUGE = {
    "huge": [1e30, 1e30, 1.5e30, 2e30],
    "huge to one side": [0, 0, 1e30, 1e30],
    "huge to both sides": [-1e30, -1e30, 1e30, 1e30],
}
NOT_FINITE = {
    "NaN first": [np.nan, 2, 12, 15],
    "NaN last": [3, 2, 12, np.nan],
    "all NaN": [np.nan] * 4,
    "infinite": [3, 2, np.inf, 15],
    "infinite on both sides": [-np.inf, -np.inf, np.inf, np.inf],
    "infinite and outside": [3, np.inf, 12, np.inf],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and attributes of one call; the default is lopsided on purpose."""

    batch: int = 2
    size: tuple[int, int] = (7, 9)
    boxes: int = 5
    output_size: tuple[int, int] = (4, 3)
    group_size: int = 2
    depth: int = 6
    part_size: tuple[int, int] | None = (2, 5)  # None: no offsets
    classes: int = 3
    mask: bool = True
    spatial_scale: float = 0.5
    samples_per_bin: int = 3
    gamma: float = 0.25
    aligned: bool = False

    def output_shape(self) -> tuple[int, ...]:
        return (self.boxes, *self.output_size, self.depth)

    def attributes(self) -> dict[str, Any]:
        """The keyword arguments that are not tensors."""
        names = ("output_size", "group_size", "spatial_scale", "samples_per_bin", "gamma")
        return {name: getattr(self, name) for name in (*names, "aligned")}

    def arrays(self, dtype: tf.DType = tf.float64, seed: int = 0) -> Arrays:
        """Arguments, and the upstream gradient as "grad_output".

        Boxes are in the map or lie across its border, some are padding. Offsets move bins by some
        fraction of their box.
        """
        random = np.random.default_rng(seed)
        boxes_dtype = np.float64 if dtype == tf.float64 else np.float32
        image = np.array(self.size) / self.spatial_scale
        corners = random.uniform(-0.2, 0.8, [self.boxes, 2]) * image
        sizes = random.uniform(0.1, 0.9, [self.boxes, 2]) * image
        channels = self.group_size**2 * self.depth
        arrays = {"inputs": random.normal(size=(self.batch, *self.size, channels))}
        if self.part_size is not None:
            shape = (self.boxes, *self.part_size, self.classes, 2)
            arrays["offsets"] = random.normal(size=shape) / 2
        if self.mask:
            arrays["mask"] = random.uniform(size=(self.boxes, *self.output_size))
        arrays["grad_output"] = random.normal(size=self.output_shape())
        arrays = {name: array.astype(dtype.as_numpy_dtype) for name, array in arrays.items()}
        arrays["boxes"] = np.concatenate([corners, corners + sizes], axis=1).astype(boxes_dtype)
        arrays["box_indices"] = np.arange(self.boxes, dtype=np.int32) % (self.batch + 1) - 1
        return arrays

    def expected(self, arrays: Arrays) -> Arrays:
        """Output and gradients by the oracle."""
        attributes = self.attributes()
        del attributes["output_size"]  # the oracle takes it from the upstream gradient
        for name in ("spatial_scale", "gamma"):
            attributes[name] = float(np.float32(attributes[name]))
        return oracle.deformable_roi_pool(**{"offsets": None, "mask": None, **arrays}, **attributes)


@functools.cache
def arrays_and_expected(case: Case, dtype: tf.DType = tf.float64) -> tuple[Arrays, Arrays]:
    """The case's data and the oracle's answer, computed once for all tests."""
    arrays = case.arrays(dtype)
    return arrays, case.expected(arrays)


def evaluate(arguments: dict[str, Any], **attributes: Any) -> dict[str, tf.Tensor]:
    """Output and gradients of `tf_deformable.deformable_psroi_pool`, named as the oracle's."""
    arguments = {name: tf.convert_to_tensor(value) for name, value in arguments.items()}
    grad_output = arguments.pop("grad_output")
    differentiated = {
        name: tensor for name, tensor in arguments.items() if not name.startswith("box")
    }
    with tf.GradientTape() as tape:
        tape.watch(differentiated)
        output = tf_deformable.deformable_psroi_pool(**arguments, **attributes)
    grads = tape.gradient(output, differentiated, output_gradients=grad_output)
    return {"output": output, **grads}
