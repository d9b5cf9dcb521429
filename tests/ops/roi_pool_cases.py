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
