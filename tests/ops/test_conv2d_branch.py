"""The convolution that predicts offsets and mask, on both backends, against NumPy."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.ops.processes import lines_with_threads
from tests.xla import assert_same_bits, compiled, custom_calls, needs_lowering
from tf_deformable import _native, config
from tf_deformable._geometry.padding import Padding, resolve_axes
from tf_deformable.ops.conv2d_branch import conv2d_branch

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of the branch, with values for all that it reads."""

    size: tuple[int, int] = (6, 5)
    channels: int = 7
    batch: int = 2
    kernel_size: tuple[int, int] = (3, 3)
    offset_groups: int = 1
    has_mask: bool = True
    largest_mask: float = 2.0
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    dilations: tuple[int, int] = (1, 1)

    def attributes(self) -> dict[str, Any]:
        return {
            "has_mask": self.has_mask,
            "largest_mask": self.largest_mask,
            "strides": self.strides,
            "padding": self.padding,
            "dilations": self.dilations,
        }

    @property
    def samples(self) -> int:
        return self.offset_groups * self.kernel_size[0] * self.kernel_size[1]

    def arrays(self, seed: int = 3) -> Arrays:
        random = np.random.default_rng(seed)
        filters = self.samples * (3 if self.has_mask else 2)
        shapes = {
            "inputs": (self.batch, *self.size, self.channels),
            "filters": (*self.kernel_size, self.channels, filters),
            "bias": (filters,),
        }
        arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
        arrays["filters"] /= np.sqrt(self.channels)
        return arrays

    def upstream(self, seed: int = 4) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        output_size = [axis.output for axis in self._axes()]
        channels = [2 * self.samples, *([self.samples] if self.has_mask else [])]
        return [random.normal(size=(self.batch, *output_size, c)) for c in channels]

    def _axes(self) -> Any:
        return resolve_axes(self.size, self.kernel_size, self.strides, self.dilations, self.padding)

    def _read_by_taps(self, padded: np.ndarray) -> list[tuple[tuple[int, int], np.ndarray]]:
        """What each tap reads of the padded inputs, as views that can be added to."""
        axes = self._axes()
        views = []
        for tap in np.ndindex(*self.kernel_size):
            slices = [
                slice(start, start + (axis.output - 1) * stride + 1, stride)
                for start, axis, stride in zip(
                    np.multiply(tap, self.dilations), axes, self.strides, strict=True
                )
            ]
            views.append((tap, padded[:, slices[0], slices[1]]))
        return views

    def expected(self, arrays: Arrays, upstream: list[np.ndarray]) -> Arrays:
        """Results and gradients in NumPy."""
        pads = [(0, 0), *((axis.pad_before, axis.pad_after) for axis in self._axes()), (0, 0)]
        padded = np.pad(arrays["inputs"], pads)
        outputs = arrays["bias"] + sum(
            read @ arrays["filters"][tap] for tap, read in self._read_by_taps(padded)
        )
        offsets, logits = np.split(outputs, [2 * self.samples], axis=-1)
        results = {"offsets": offsets}
        of_outputs = upstream[0]
        if self.has_mask:
            sigmoid = 1 / (1 + np.exp(-logits))
            results["mask"] = self.largest_mask * sigmoid
            of_logits = upstream[1] * self.largest_mask * sigmoid * (1 - sigmoid)
            of_outputs = np.concatenate([upstream[0], of_logits], axis=-1)
        of_padded, of_filters = np.zeros_like(padded), np.zeros_like(arrays["filters"])
        for (tap, read), (_, of_read) in zip(
            self._read_by_taps(padded), self._read_by_taps(of_padded), strict=True
        ):
            of_filters[tap] = np.tensordot(read, of_outputs, axes=[(0, 1, 2), (0, 1, 2)])
            of_read += of_outputs @ arrays["filters"][tap].T
        (top, _), (left, _) = pads[1:3]
        height, width = self.size
        results["grad_inputs"] = of_padded[:, top : top + height, left : left + width]
        results["grad_filters"] = of_filters
        results["grad_bias"] = of_outputs.sum(axis=(0, 1, 2))
        return results


CASES = {
    "same": Case(),
    "no mask": Case(has_mask=False),
    "two offset groups": Case(offset_groups=2, largest_mask=1.0),
    "valid": Case(padding="VALID"),
    "explicit": Case(padding=((0, 3), (2, 1))),
    "dilated": Case(dilations=(2, 3)),
    "strides": Case(strides=(2, 3)),
    "strides and dilations": Case(size=(13, 14), strides=(3, 2), dilations=(2, 4)),
    "strides above the kernel": Case(kernel_size=(1, 2), strides=(3, 3)),
    "even kernel": Case(kernel_size=(2, 4), padding="SAME"),
    "one tap": Case(kernel_size=(1, 1)),
    "a large kernel": Case(kernel_size=(7, 5)),
    "one pixel": Case(size=(1, 1)),
    "no image": Case(batch=0),
    "whole vectors": Case(channels=32, size=(9, 30)),
    "four columns beside vectors": Case(channels=32, kernel_size=(2, 2)),
    "three columns beside vectors": Case(channels=32, kernel_size=(1, 3), offset_groups=3),
    "filters that fill vectors": Case(channels=32, offset_groups=16, has_mask=False),
    "copies of several chunks": Case(channels=272, size=(4, 24)),
    "taps with copies of their own": Case(channels=272, size=(5, 3), dilations=(1, 2)),
    "rows longer than a tile": Case(channels=16, size=(3, 470), batch=1),
    "several blocks of filters": Case(channels=3, offset_groups=12),
    "too many channels to pack at once": Case(
        channels=170_000,
        size=(2, 2),
        batch=1,
        kernel_size=(1, 1),
        offset_groups=19,
        has_mask=False,
    ),
    "slabs of filters, one of masks alone": Case(
        channels=4096, size=(2, 3), batch=1, kernel_size=(1, 1), offset_groups=240
    ),
    "strided rows": Case(channels=32, size=(7, 40), strides=(2, 2)),
    "blocks of products": Case(channels=64, size=(3, 20), offset_groups=9),
    "blocks of products that begin within a copy": Case(
        channels=64, size=(3, 40), offset_groups=9, dilations=(1, 2)
    ),
    "splits of tiles, the last one with fewer": Case(channels=4, size=(17, 200), batch=1),
}


def _evaluate(case: Case, arrays: Arrays, upstream: list[np.ndarray], dtype: Any) -> Arrays:
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    tensors = {
        name: tf.cast(array, dtype if name == "inputs" else wide) for name, array in arrays.items()
    }
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        offsets, mask = conv2d_branch(**tensors, **case.attributes())
        outputs = [offsets] if mask is None else [offsets, mask]
    gradients = tape.gradient(
        outputs, tensors, output_gradients=[tf.cast(u, wide) for u in upstream]
    )
    named = dict(zip(("offsets", "mask"), outputs, strict=False))
    return named | {f"grad_{name}": gradient for name, gradient in gradients.items()}


def _assert_close(got: Arrays, expected: Arrays, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        atol = tolerance * np.max(np.abs(want), initial=1)
        np.testing.assert_allclose(
            np.asarray(got[name], np.float64), want, rtol=0, atol=atol, err_msg=name
        )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_numpy(case: Case) -> None:
    arrays, upstream = case.arrays(), case.upstream()
    expected = case.expected(arrays, upstream)
    _assert_close(_evaluate(case, arrays, upstream, tf.float64), expected, 1e-11)
    _assert_close(_evaluate(case, arrays, upstream, tf.float32), expected, 2e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_half_precision_is_that_of_the_inputs_alone(dtype: tf.DType) -> None:
    case = CASES["whole vectors"]
    arrays, upstream = case.arrays(), case.upstream()
    arrays["inputs"] = tf.cast(tf.cast(arrays["inputs"], dtype), tf.float64).numpy()
    expected = case.expected(arrays, upstream)
    got = _evaluate(case, arrays, upstream, dtype)
    dtypes = {name: tensor.dtype for name, tensor in got.items()}
    assert dtypes.pop("grad_inputs") == dtype
    assert set(dtypes.values()) == {tf.float32}
    rounded = got.pop("grad_inputs"), expected.pop("grad_inputs")
    _assert_close(got, expected, 2e-5)
    _assert_close(*({"grad_inputs": value} for value in rounded), float(dtype.as_numpy_dtype(0.01)))


@pytest.mark.usefixtures("backend")
def test_the_mask_keeps_what_a_sigmoid_keeps() -> None:
    """Numbers of any size, infinities and NaN."""
    logits = np.array([-np.inf, -1e30, -200, -88, -20, -1e-3, 0, 1, 30, 90, 1e30, np.inf, np.nan])
    inputs = logits[:, None, None, None]
    filters = np.zeros([1, 1, 1, 3])
    filters[..., 2] = 1
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-logits))
    for dtype in (tf.float32, tf.float64):
        arguments = (tf.cast(value, dtype) for value in (inputs, filters, np.zeros(3)))
        _, mask = conv2d_branch(*arguments, has_mask=True)
        tolerance = 4 * np.finfo(dtype.as_numpy_dtype).eps
        np.testing.assert_allclose(np.ravel(mask), expected, rtol=tolerance, atol=1e-37)


@pytest.mark.parametrize("unknown", [[None] * 4, [None, None, 5, 7], None], ids=str)
def test_shapes_that_the_graph_does_not_know(unknown: Any) -> None:
    case = Case()
    arrays, upstream = case.arrays(), case.upstream()
    expected = _evaluate(case, arrays, upstream, tf.float32)

    @tf.function(input_signature=[tf.TensorSpec(unknown)], autograph=False)
    def evaluate(inputs: tf.Tensor) -> Arrays:
        return _evaluate(case, {**arrays, "inputs": inputs}, upstream, tf.float32)

    got = evaluate(tf.cast(arrays["inputs"], tf.float32))
    _assert_close(got, {name: np.asarray(want) for name, want in expected.items()}, 1e-6)


@pytest.mark.parametrize("has_mask", [False, True], ids=["offsets", "mask"])
def test_gradients_of_gradients_are_those_of_plain_tensorflow(has_mask: bool) -> None:
    case = Case(has_mask=has_mask, strides=(2, 1))
    arrays, upstream = case.arrays(), case.upstream()
    values = {name: tf.constant(array) for name, array in arrays.items()}
    results = []
    for backend in ("native", "reference"):
        with config.use_backend(backend), tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                outputs = conv2d_branch(**values, **case.attributes())
                loss = tf.add_n(
                    [tf.reduce_sum(u * o**3) for u, o in zip(upstream, outputs, strict=False)]
                )
            gradients = inner.gradient(loss, values)
            total = tf.add_n([tf.reduce_sum(tf.sin(g)) for g in gradients.values()])
        results.append(outer.gradient(total, values))
    _assert_close(results[0], {name: g.numpy() for name, g in results[1].items()}, 1e-10)


@pytest.mark.parametrize("own", [["inputs"], ["inputs", "filters"], ["bias"]], ids=str)
def test_many_calls_are_those_one_by_one(own: list[str]) -> None:
    case = Case()
    values = {name: tf.constant(array) for name, array in case.arrays().items()}
    stacked = {name: tf.stack([values[name], 2 * values[name], -values[name]]) for name in own}

    def call(differing: dict[str, tf.Tensor]) -> Any:
        arguments = values | differing
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = conv2d_branch(**arguments, **case.attributes())
            loss = tf.reduce_sum(tf.sin(outputs[0])) + tf.reduce_sum(outputs[1] ** 2)
        return outputs, tape.gradient(loss, arguments)

    got = tf.vectorized_map(call, stacked, fallback_to_while_loop=False)
    for number in range(3):
        expected = call({name: tensors[number] for name, tensors in stacked.items()})
        tf.nest.map_structure(
            lambda g, e, number=number: np.testing.assert_allclose(g[number], e, atol=1e-10),
            got,
            expected,
        )


@needs_lowering
def test_xla_calls_the_same_kernels() -> None:
    case = CASES["whole vectors"]
    arrays, upstream = case.arrays(), case.upstream()

    def evaluate(arrays: Any) -> Any:
        return _evaluate(case, arrays, upstream, tf.float32)

    arguments = {name: tf.cast(array, tf.float32) for name, array in arrays.items()}
    assert_same_bits(compiled(evaluate)(arguments), evaluate(arguments))
    assert custom_calls(evaluate, arguments) >= {
        "tf_deformable_conv2d_branch",
        "tf_deformable_conv2d_branch_grad",
    }


_DIGEST = """
import hashlib
import tensorflow as tf
from tests.ops.test_conv2d_branch import Case, _evaluate

for case in (
    Case(batch=3, size=(24, 25), channels=48, offset_groups=2),
    Case(batch=1, size=(96, 47), channels=12, strides=(2, 1)),
):
    for name, tensor in _evaluate(case, case.arrays(), case.upstream(), tf.float32).items():
        print(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    outputs = lines_with_threads(_DIGEST)
    assert len(outputs[0]) == 10
    assert outputs[0] == outputs[1]


def _call(**changes: Any) -> Any:
    attributes = {
        "strides": [1, 1],
        "dilations": [1, 1],
        "padding": "SAME",
        "num_masks": 1,
        "largest_mask": 1.0,
    }
    filters = changes.pop("filters", [3, 3, 4, 27])
    shapes = {"inputs": [2, 5, 6, 4], "filters": filters, "bias": filters[-1:]}
    shapes |= {name: changes.pop(name) for name in list(changes) if name in shapes}
    tensors = {name: tf.zeros(shape) for name, shape in shapes.items()}
    return _native.load().tf_deformable_conv2d_branch(**tensors, **{**attributes, **changes})


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": [3, 3, 2, 54]}, "filters must have the channels of inputs, got C=4 and "),
        ({"filters": [3, 3, 4, 18]}, "filters output channels must be a multiple of kh*kw*3=27"),
        ({"bias": [9]}, "bias must have shape [F] = [27], got shape [9]"),
        ({"inputs": [5, 6, 4]}, "inputs must have rank 4 [N,H,W,C], got shape [5,6,4]"),
        ({"strides": [0, 1]}, "strides must be 2 positive integers (y, x)"),
        ({"num_masks": 2}, "num_masks must be 0 or 1, got 2"),
        ({"largest_mask": 0.0}, "largest_mask must be positive, got 0"),
        (
            {"inputs": [2, 2, 6, 4], "padding": "VALID"},
            "the dilated kernel must fit into the padded inputs",
        ),
    ],
    ids=str,
)
def test_errors_tell_the_rule(changes: dict[str, Any], message: str, in_graph: bool) -> None:
    function = tf.function(_call) if in_graph else _call
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match=re.escape(f"conv2d_branch: {message}")
    ):
        function(**changes)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "grad_offsets",
            [2, 5, 6, 9],
            "grad_offsets must have shape [N,Ho,Wo,G*kh*kw*2] = [2,5,6,18]",
        ),
        ("grad_mask", [2, 5, 5, 9], "grad_mask must have shape [N,Ho,Wo,G*kh*kw] = [2,5,6,9]"),
        ("mask", [2, 5, 6, 8], "mask must have shape [N,Ho,Wo,G*kh*kw] = [2,5,6,9]"),
    ],
    ids=["grad_offsets", "grad_mask", "mask"],
)
def test_the_gradient_operator_checks_what_it_reads(
    name: str, shape: list[int], message: str
) -> None:
    shapes = {
        "inputs": [2, 5, 6, 4],
        "filters": [3, 3, 4, 27],
        "mask": [2, 5, 6, 9],
        "grad_offsets": [2, 5, 6, 18],
        "grad_mask": [2, 5, 6, 9],
        name: shape,
    }
    tensors: dict[str, Any] = {key: tf.zeros(value) for key, value in shapes.items()}
    tensors |= {key: [tensors[key]] for key in ("mask", "grad_mask")}
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        _native.load().tf_deformable_conv2d_branch_grad(
            **tensors, strides=[1, 1], dilations=[1, 1], padding="SAME", largest_mask=1.0
        )


def test_the_operator_refuses_filters_of_another_precision() -> None:
    inputs, filters = tf.zeros([1, 4, 4, 2]), tf.zeros([1, 1, 2, 2], tf.float64)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="filters must have dtype float beside"
    ):
        conv2d_branch(inputs, filters, tf.zeros([2], tf.float64), has_mask=False)
