"""Derivatives of derivatives, forward mode, and what they cost."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_attention_cases import Case as AttentionCase
from tests.ops.deformable_conv2d_cases import Case as ConvCase
from tests.ops.processes import ROOT
from tests.ops.roi_pool_cases import Case as RoICase
from tf_deformable import config

Tensors = dict[str, tf.Tensor]
Function = Callable[[Tensors], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Operator:
    """A function of everything that it is differentiated by, and values for that."""

    function: Function
    values: Tensors
    changes: Tensors  # a direction of each, short enough to stay between pixels


def _conv(**changes: Any) -> Operator:
    case = dataclasses.replace(ConvCase(size=(5, 4)), **changes)
    arrays = case.arrays()
    del arrays["grad_output"]

    def function(values: Tensors) -> tf.Tensor:
        return tf_deformable.deformable_conv2d(**values, **case.attributes())

    return _operator(function, arrays)


def _roi(**changes: Any) -> Operator:
    case = dataclasses.replace(RoICase(boxes=4, output_size=(2, 3), depth=3), **changes)
    # With this seed no sample is nearer to where its derivative jumps than differences reach.
    arrays = case.arrays(seed=5)
    del arrays["grad_output"]
    boxes = {name: tf.constant(arrays.pop(name)) for name in ("boxes", "box_indices")}

    def function(values: Tensors) -> tf.Tensor:
        return tf_deformable.deformable_psroi_pool(**values, **boxes, **case.attributes())

    return _operator(function, arrays)


def _attention(**changes: Any) -> Operator:
    case = dataclasses.replace(AttentionCase(), **changes)
    arrays = case.arrays()
    del arrays["grad_output"]

    def function(values: Tensors) -> tf.Tensor:
        return tf_deformable.multi_scale_deformable_attention(**values, **case.attributes())

    return _operator(function, arrays)


def _operator(function: Function, arrays: dict[str, np.ndarray]) -> Operator:
    random = np.random.default_rng(7)
    changes = {
        name: tf.constant(random.uniform(-1, 1, array.shape) * 2**-14)
        for name, array in arrays.items()
    }
    values = {name: tf.constant(array) for name, array in arrays.items()}
    return Operator(function, values, changes)


OPERATORS = {
    "convolution": _conv,
    "convolution, no mask": lambda: _conv(mask=False, bias=False, groups=1, offset_groups=1),
    "convolution, SAME": lambda: _conv(padding="SAME", strides=(1, 2), dilations=(1, 1)),
    "convolution, VALID": lambda: _conv(padding="VALID", size=(7, 5), strides=(1, 1)),
    "RoI": _roi,
    "RoI, aligned": lambda: _roi(aligned=True),
    "RoI, as many as pixels": lambda: _roi(aligned=True, samples_per_bin=0, spatial_scale=1.0),
    "RoI, plain": lambda: _roi(part_size=None, mask=False),
    "RoI, no mask": lambda: _roi(mask=False),
    "RoI, mask alone": lambda: _roi(part_size=None),
    "attention": _attention,
    "attention, pixels": lambda: _attention(coordinates="pixels"),
    "attention, points of each level": lambda: _attention(points=(2, 1, 3)),
}


@pytest.fixture(params=OPERATORS, scope="module")
def operator(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param]()


def _loss(operator: Operator, values: Tensors) -> tf.Tensor:
    """Curved, so that no derivative of any order is zero."""
    return tf.reduce_sum(tf.sin(operator.function(values)))


def _gradients(operator: Operator, values: Tensors) -> Tensors:
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = _loss(operator, values)
    return tape.gradient(loss, values)


def _moved(operator: Operator, names: list[str], by: float) -> Tensors:
    changes = operator.changes
    return {
        name: value + by * changes[name] if name in names else value
        for name, value in operator.values.items()
    }


def _difference(function: Callable[[Tensors], Any], operator: Operator, names: list[str]) -> Any:
    """Along the changes of these variables, with an error of the fourth order."""
    one, two = (
        tf.nest.map_structure(
            lambda a, b: (a - b) / 2,
            function(_moved(operator, names, step)),
            function(_moved(operator, names, -step)),
        )
        for step in (1, 2)
    )
    return tf.nest.map_structure(lambda a, b: (8 * a - b) / 6, one, two)


def _assert_close(got: Tensors, expected: Tensors) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(np.abs(value).max(initial=0), 1e-6)
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-6 * scale, err_msg=name)


def _each_and_all(operator: Operator) -> list[list[str]]:
    return [[name] for name in operator.values] + [list(operator.values)]


def test_forward_mode(operator: Operator, backend: str) -> None:
    for names in _each_and_all(operator):
        primals = [operator.values[name] for name in names]
        tangents = [operator.changes[name] for name in names]
        with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
            outputs = operator.function(operator.values)
        expected = _difference(operator.function, operator, names)
        _assert_close({"jvp": accumulator.jvp(outputs)}, {"jvp": expected})


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_reverse_over_reverse(operator: Operator, in_graph: bool, backend: str) -> None:
    def product(values: Tensors, changes: Tensors) -> Tensors:
        """The Hessian times the changes."""
        with tf.GradientTape() as tape:
            tape.watch(values)
            gradients = _gradients(operator, values)
        return tape.gradient(gradients, values, output_gradients=changes)

    call = tf.function(product) if in_graph else product
    for names in _each_and_all(operator):
        nothing = {name: tf.zeros_like(value) for name, value in operator.values.items()}
        changes = {**nothing, **{name: operator.changes[name] for name in names}}
        expected = _difference(lambda values: _gradients(operator, values), operator, names)
        _assert_close(call(operator.values, changes), expected)


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ["convolution", "convolution, no mask", "RoI"])
def test_forward_over_reverse(name: str, in_graph: bool, backend: str) -> None:
    operator = OPERATORS[name]()
    names = list(operator.values)

    def product() -> Tensors:
        primals, tangents = (list(t.values()) for t in (operator.values, operator.changes))
        with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
            gradients = _gradients(operator, operator.values)
        return {name: accumulator.jvp(gradient) for name, gradient in gradients.items()}

    got = (tf.function(product) if in_graph else product)()
    expected = _difference(lambda values: _gradients(operator, values), operator, names)
    _assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("convolution", "eager"),
        ("convolution", "graph"),
        ("convolution", "forward"),
        ("RoI", "eager"),
        ("RoI", "graph"),
    ],
)
def test_third_derivatives(name: str, mode: str, backend: str) -> None:
    """The gradient of a gradient penalty, reverse and forward."""
    operator = OPERATORS[name]()

    def gradient_of_penalty(values: Tensors) -> Tensors:
        with tf.GradientTape() as tape:
            tape.watch(values)
            gradients = _gradients(operator, values)
            penalty = tf.add_n([tf.reduce_sum(gradient**2) for gradient in gradients.values()])
        return tape.gradient(penalty, values)

    def along_changes() -> Tensors:
        if mode == "forward":
            primals, tangents = (list(t.values()) for t in (operator.values, operator.changes))
            with tf.autodiff.ForwardAccumulator(primals, tangents) as accumulator:
                gradients = gradient_of_penalty(operator.values)
            return {name: accumulator.jvp(gradient) for name, gradient in gradients.items()}
        with tf.GradientTape() as tape:
            tape.watch(operator.values)
            gradients = gradient_of_penalty(operator.values)
        return tape.gradient(gradients, operator.values, output_gradients=operator.changes)

    got = (tf.function(along_changes) if mode == "graph" else along_changes)()
    _assert_close(got, _difference(gradient_of_penalty, operator, list(operator.values)))


def test_a_derivative_where_the_first_is_zero(backend: str) -> None:
    """What is skipped because it is zero has derivatives: here those of a penalty of nothing."""
    operator = _conv(bias=False)
    values = {**operator.values, "filters": tf.zeros_like(operator.values["filters"])}

    def penalty(values: Tensors) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = tf.reduce_sum(operator.function(values))
        return tf.reduce_sum(tape.gradient(outputs, values)["inputs"] ** 2)

    with tf.GradientTape() as second:
        second.watch(values)
        with tf.GradientTape() as first:
            first.watch(values)
            value = penalty(values)
        gradients = first.gradient(value, values)
    assert value == 0 and not np.any(gradients["filters"])
    along = operator.changes["filters"]
    got = second.gradient(gradients["filters"], values["filters"], output_gradients=along)

    # The penalty is quadratic in the filters.
    expected = 2 * penalty({**values, "filters": along})
    np.testing.assert_allclose(tf.reduce_sum(got * along), expected, rtol=1e-10)
    assert expected > 0


@pytest.mark.parametrize("is_converted", [True, False])
@pytest.mark.parametrize("name", ["inputs", "filters", "offsets", "mask"])
def test_hessian_by_jacobian(name: str, is_converted: bool, backend: str) -> None:
    case = ConvCase(batch=1, size=(3, 2), channels=2, filters=2, kernel=(2, 2), groups=1)
    case = dataclasses.replace(case, offset_groups=1, strides=(1, 1), dilations=(1, 1))
    _check_hessian(_conv(**dataclasses.asdict(case)), name, is_converted)


@pytest.mark.parametrize("is_converted", [True, False])
@pytest.mark.parametrize("name", ["inputs", "offsets", "mask"])
def test_hessian_of_roi_pooling_by_jacobian(name: str, is_converted: bool, backend: str) -> None:
    sizes = {"batch": 1, "size": (4, 3), "boxes": 2, "group_size": 1, "depth": 2}
    operator = _roi(**sizes, part_size=(1, 2), classes=2, output_size=(2, 2))
    _check_hessian(operator, name, is_converted)


def _check_hessian(operator: Operator, name: str, is_converted: bool) -> None:
    value = operator.values[name]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(value)
        with tf.GradientTape() as inner:
            inner.watch(value)
            loss = _loss(operator, {**operator.values, name: value})
        gradient = inner.gradient(loss, value)
    hessian = outer.jacobian(gradient, value, experimental_use_pfor=is_converted)
    got = tf.tensordot(hessian, operator.changes[name], axes=len(value.shape))
    expected = _difference(lambda values: _gradients(operator, values), operator, [name])[name]
    _assert_close({name: got}, {name: expected})


def test_custom_gradient_around(operator: Operator, backend: str) -> None:
    @tf.custom_gradient
    def twice(*values: tf.Tensor) -> Any:
        arguments = dict(zip(operator.values, values, strict=True))
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = operator.function(arguments)

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            return [2 * g for g in tape.gradient(outputs, arguments, upstream).values()]

        return outputs, gradient

    values = operator.values
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(values)
        own, plain = tf.sin(twice(*values.values())), tf.sin(operator.function(values))
    expected = {name: 2 * g for name, g in tape.gradient(plain, values).items()}
    _assert_close(tape.gradient(own, values), expected)


# --- The native second derivative, against the reference's ---


@pytest.mark.parametrize(
    "name", ["attention, pixels", *(name for name in OPERATORS if name.startswith("conv"))]
)
@pytest.mark.parametrize("places", ["integers", "borders", "not finite", "huge"])
def test_second_derivatives_at_special_places(name: str, places: str) -> None:
    operator = OPERATORS[name]()
    random = np.random.default_rng(2)
    sampling = "offsets" if "offsets" in operator.values else "sampling_locations"
    offsets = operator.values[sampling].numpy()
    if places == "integers":
        offsets = np.round(offsets)
    elif places == "borders":  # -1 and the last rows and columns are among them
        offsets = random.integers(-6, 7, offsets.shape) + random.choice([0, 2**-40], offsets.shape)
    elif places == "not finite":
        offsets.ravel()[::41] = np.nan
        offsets.ravel()[::17] = np.inf
    else:
        offsets = offsets * 10.0 ** random.integers(0, 30, offsets.shape)
    values = {**operator.values, sampling: tf.constant(offsets)}
    upstream = tf.random.normal(operator.function(values).shape, dtype=tf.float64, seed=1)
    results = {}
    for backend in ("native", "reference"):
        with config.use_backend(backend), tf.GradientTape() as outer:
            outer.watch([values, upstream])
            with tf.GradientTape() as inner:
                inner.watch(values)
                outputs = operator.function(values)
            gradients = inner.gradient(outputs, values, output_gradients=upstream)
        variables = {**values, "upstream": upstream}
        changes = operator.changes
        results[backend] = outer.gradient(
            gradients, variables, output_gradients=changes, unconnected_gradients="zero"
        )
    for key, value in results["reference"].items():
        have, want = results["native"][key].numpy(), value.numpy()
        if key == sampling:  # By the same offset twice, the reference has zero at NaN.
            have, want = (np.where(np.isnan(offsets), 0, array) for array in (have, want))
        scale = np.abs(want[np.isfinite(want)]).max(initial=0)
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-11 * scale, err_msg=key)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("sampling", ["narrow", "float32"])
def test_second_derivatives_in_half_precision(dtype: tf.DType, sampling: str) -> None:
    """Differences of neighbouring pixels are not lost: the features vary by little."""
    case = ConvCase(size=(9, 8), channels=8, filters=4, groups=1, offset_groups=2, bias=False)
    arrays = case.arrays()
    arrays["inputs"] = 8 + arrays["inputs"] / 4
    narrow = {name: tf.cast(array, dtype) for name, array in arrays.items()}
    if sampling == "float32":
        narrow |= {name: tf.cast(narrow[name], tf.float32) for name in ("offsets", "mask")}

    def second(values: Tensors) -> Tensors:
        values = dict(values)
        upstream = values.pop("grad_output")
        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                outputs = tf_deformable.deformable_conv2d(**values, **case.attributes())
            gradients = inner.gradient(outputs, values, output_gradients=upstream)
        along = tf.ones_like(gradients["offsets"])
        return outer.gradient(gradients["offsets"], values, output_gradients=along)

    got = second(narrow)
    expected = second({name: tf.cast(value, tf.float64) for name, value in narrow.items()})
    eps = 2.0**-10 if dtype == tf.float16 else 2.0**-7
    for name, value in expected.items():
        have = tf.cast(got[name], tf.float64)
        scale = np.abs(value).max()
        np.testing.assert_allclose(have, value, rtol=eps, atol=eps * scale / 4, err_msg=name)


@pytest.mark.parametrize("operator", ["conv", "roi", "attention"])
def test_the_memory_of_second_derivatives(operator: str) -> None:
    """The reference keeps all samples several times, in more than a gigabyte."""
    process = subprocess.run(
        [sys.executable, "-c", _PEAK, operator], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 256


# The memory of the gradient of a gradient penalty, in MiB; the map has 4.
_PEAK = """
import sys
import tensorflow as tf
import tf_deformable

tf.random.set_seed(0)
features = tf.random.normal([4, 64, 64, 64])
if sys.argv[1] == "conv":
    values = {
        "inputs": features,
        "filters": tf.random.normal([3, 3, 64, 64]),
        "offsets": tf.random.normal([4, 64, 64, 18]),
        "mask": tf.random.uniform([4, 64, 64, 9]),
    }
    function = tf_deformable.deformable_conv2d
    fixed = {}
elif sys.argv[1] == "attention":
    values = {
        "value": tf.reshape(features, [4, 64 * 64, 4, 16]),
        "sampling_locations": tf.random.uniform([4, 4096, 4, 1, 4, 2]),
        "attention_weights": tf.random.uniform([4, 4096, 4, 1, 4]),
    }
    function = tf_deformable.multi_scale_deformable_attention
    fixed = {"spatial_shapes": [(64, 64)]}
else:
    corners = tf.random.uniform([256, 2], 0, 600)
    fixed = {
        "boxes": tf.concat([corners, corners + tf.random.uniform([256, 2], 50, 400)], axis=1),
        "box_indices": tf.range(256) % 4,
        "output_size": 7,
        "spatial_scale": 1 / 16,
    }
    values = {
        "inputs": features,
        "offsets": tf.random.normal([256, 7, 7, 2]) / 4,
        "mask": tf.random.uniform([256, 7, 7]),
    }
    function = tf_deformable.deformable_roi_pool


def penalty_and_gradients(values):
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values)
            loss = tf.reduce_sum(function(**values, **fixed) ** 2)
        gradients = inner.gradient(loss, values)
        penalty = tf.add_n([tf.reduce_sum(g**2) for g in gradients.values()])
    return penalty, outer.gradient(penalty, values)


def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


before = most()
penalty_and_gradients(values)
print(most() - before)
"""
