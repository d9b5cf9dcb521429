"""Cases of the deformable convolution: sizes and attributes, data for them, and what to expect."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

import tf_deformable
from tests.oracles import deformable_conv2d as oracle

Arrays = dict[str, np.ndarray]

_EPS = {tf.float64: 2.0**-52, tf.float32: 2.0**-23, tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and attributes of one call; the default is lopsided on purpose."""

    batch: int = 2
    size: tuple[int, int] = (7, 5)
    channels: int = 6
    filters: int = 4
    kernel: tuple[int, int] = (3, 2)
    strides: tuple[int, int] = (2, 1)
    dilations: tuple[int, int] = (2, 1)
    padding: str | tuple[tuple[int, int], tuple[int, int]] = ((1, 2), (2, 0))
    groups: int = 2
    offset_groups: int = 3
    mask: bool = True
    bias: bool = True

    def axes(self) -> list[oracle.Axis]:
        paddings = [self.padding] * 2 if isinstance(self.padding, str) else self.padding
        return [
            oracle.axis(*sizes)
            for sizes in zip(
                self.size, self.kernel, self.strides, self.dilations, paddings, strict=True
            )
        ]

    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, *(axis.output for axis in self.axes()), self.filters)

    def kernel_fits(self) -> bool:
        """Whether the padded inputs hold the kernel; an empty map needs not."""
        sizes_and_axes = zip(self.size, self.axes(), strict=True)
        return all(size == 0 or axis.output > 0 for size, axis in sizes_and_axes)

    def attributes(self, data_format: str = "NHWC") -> dict[str, Any]:
        """The keyword arguments that are not tensors."""
        padding: Any = self.padding
        if not isinstance(padding, str):
            spatial = [list(pads) for pads in padding]
            no = [0, 0]
            padding = [no, *spatial, no] if data_format == "NHWC" else [no, no, *spatial]
        return {
            "strides": self.strides,
            "dilations": self.dilations,
            "padding": padding,
            "data_format": data_format,
        }

    def arrays(self, dtype: tf.DType = tf.float64, seed: int = 0) -> Arrays:
        """Arguments, and the upstream gradient as "grad_output".

        Offsets are odd multiples of 1/32 between -4 and 4. They and the positions they lead to are
        exact in every dtype, so that all dtypes share the cell that a sample falls into, and never
        integers, where the derivative jumps.
        """
        random = np.random.default_rng(seed)
        np_dtype = dtype.as_numpy_dtype
        output_shape = self.output_shape()
        taps = self.offset_groups * self.kernel[0] * self.kernel[1]
        offsets = (2 * random.integers(-64, 64, (*output_shape[:3], 2 * taps)) + 1) / 32
        group_channels = self.channels // self.groups
        arrays = {
            "inputs": random.normal(size=(self.batch, *self.size, self.channels)),
            "filters": random.normal(size=(*self.kernel, group_channels, self.filters)),
            "offsets": offsets,
            "mask": random.uniform(size=(*output_shape[:3], taps)),
            "bias": random.normal(size=self.filters),
            "grad_output": random.normal(size=output_shape),
        }
        if not self.mask:
            del arrays["mask"]
        if not self.bias:
            del arrays["bias"]
        return {name: array.astype(np_dtype) for name, array in arrays.items()}

    def expected(self, arrays: Arrays) -> Arrays:
        """Output and gradients by the oracle."""
        y, x = self.axes()
        return oracle.deformable_conv2d(
            **{"mask": None, "bias": None, **arrays},
            strides=self.strides,
            dilations=self.dilations,
            before=(y.before, x.before),
        )


@functools.cache
def arrays_and_expected(case: Case, dtype: tf.DType = tf.float64) -> tuple[Arrays, Arrays]:
    """The case's data and the oracle's answer, computed once for all tests."""
    arrays = case.arrays(dtype)
    return arrays, case.expected(arrays)


def evaluate(arguments: dict[str, Any], **attributes: Any) -> dict[str, tf.Tensor]:
    """Output and gradients of `tf_deformable.deformable_conv2d`, named as the oracle's."""
    arguments = {name: tf.convert_to_tensor(value) for name, value in arguments.items()}
    grad_output = arguments.pop("grad_output")
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        output = tf_deformable.deformable_conv2d(**arguments, **attributes)
    return {"output": output, **tape.gradient(output, arguments, output_gradients=grad_output)}


def assert_close(got: dict[str, Any], expected: Arrays, dtype: tf.DType = tf.float64) -> None:
    """Same names, shapes and, within what the dtype allows, the same values.

    The bound is rounding, and nothing else: sums in float32 (float64) err by some eps of the
    largest value, and float16 and bfloat16 may round once more, when the result is stored.
    """
    assert got.keys() == expected.keys()
    accumulator = _EPS[tf.float64 if dtype == tf.float64 else tf.float32]
    for name, want in expected.items():
        have = np.asarray(got[name])
        assert have.dtype == dtype.as_numpy_dtype, name
        assert have.shape == want.shape, name
        finite = np.abs(want[np.isfinite(want)])
        scale = max(1.0, finite.max(initial=0.0))
        stored = _EPS[dtype]
        np.testing.assert_allclose(
            have.astype(np.float64),
            want,
            rtol=stored,
            atol=64 * accumulator * scale,
            err_msg=name,
        )
