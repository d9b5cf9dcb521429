"""DCNv3's values and gradients, on both backends."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.ops.deformable_conv2d_cases import assert_close
from tests.oracles import dcnv3 as oracle
from tests.oracles.deformable_conv2d import axis
from tf_deformable import convert

pytestmark = pytest.mark.usefixtures("backend")

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("dcnv3_*.npz"))


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and attributes of one call; the default is lopsided on purpose."""

    batch: int = 2
    size: tuple[int, int] = (6, 5)
    channels: int = 6
    groups: int = 3
    kernel_size: tuple[int, int] = (3, 2)
    strides: tuple[int, int] = (2, 1)
    dilations: tuple[int, int] = (1, 2)
    padding: str | tuple[tuple[int, int], tuple[int, int]] = ((1, 2), (2, 0))
    offset_scale: float = 1.0
    remove_center: bool = False

    def axes(self) -> list[Any]:
        pads = [self.padding] * 2 if isinstance(self.padding, str) else self.padding
        sizes = zip(self.size, self.kernel_size, self.strides, self.dilations, pads, strict=True)
        return [axis(*values) for values in sizes]

    def attributes(self) -> dict[str, Any]:
        padding: Any = self.padding
        if not isinstance(padding, str):
            padding = [[0, 0], *map(list, padding), [0, 0]]
        names = ("kernel_size", "strides", "dilations", "offset_scale", "remove_center")
        return {"padding": padding, **{name: getattr(self, name) for name in names}}

    def arrays(self, dtype: tf.DType = tf.float64) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        taps = self.kernel_size[0] * self.kernel_size[1] - self.remove_center
        grid = [self.batch, *(a.output for a in self.axes())]
        samples = self.groups * taps
        arrays = {
            "inputs": random.normal(size=[self.batch, *self.size, self.channels]),
            "offsets": (2 * random.integers(-48, 48, [*grid, samples * 2]) + 1) / 32,
            "mask": random.uniform(size=[*grid, samples]),
            "grad_output": random.normal(size=[*grid, self.channels]),
        }
        return {name: array.astype(dtype.as_numpy_dtype) for name, array in arrays.items()}

    def expected(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        attributes = {name: v for name, v in self.attributes().items() if name != "padding"}
        before = tuple(a.before for a in self.axes())
        return oracle.dcnv3(**arrays, before=before, **attributes)


def evaluate(arguments: dict[str, Any], **attributes: Any) -> dict[str, tf.Tensor]:
    arguments = {name: tf.convert_to_tensor(value) for name, value in arguments.items()}
    grad_output = arguments.pop("grad_output")
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        output = tf_deformable.dcnv3(**arguments, **attributes)
    return {"output": output, **tape.gradient(output, arguments, output_gradients=grad_output)}


CASES = {
    "lopsided": Case(),
    "3x3, SAME": Case(kernel_size=(3, 3), strides=(1, 1), dilations=(1, 1), padding="SAME"),
    "stride 2, SAME": Case(kernel_size=(3, 3), strides=(2, 2), dilations=(1, 1), padding="SAME"),
    "5x3, no center": Case(kernel_size=(5, 3), padding="SAME", remove_center=True),
    "VALID": Case(kernel_size=(2, 2), padding="VALID"),
    "scale 1.1": Case(offset_scale=1.1),
    "scale 0": Case(offset_scale=0.0, dilations=(1, 1)),
    "one group": Case(groups=1),
    "batch 0": Case(batch=0),
    "an empty map": Case(size=(0, 5), padding="SAME"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_agrees_with_the_oracle(case: Case) -> None:
    arrays = case.arrays()

    assert_close(evaluate(arrays, **case.attributes()), case.expected(arrays))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("sampling", [None, tf.float32], ids=["same", "float32"])
def test_agrees_with_the_oracle_in_every_dtype(dtype: tf.DType, sampling: Any) -> None:
    case = CASES["lopsided"]
    arrays = case.arrays(dtype)
    wide = case.arrays(sampling or dtype)
    arrays |= {name: wide[name] for name in ("offsets", "mask")}

    got = evaluate(arrays, **case.attributes())

    expected = case.expected(arrays)
    for names, its_dtype in (
        (("output", "inputs"), dtype),
        (("offsets", "mask"), sampling or dtype),
    ):
        assert_close({n: got[n] for n in names}, {n: expected[n] for n in names}, its_dtype)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_agrees_with_recorded_results_of_internimage(path: pathlib.Path) -> None:
    with np.load(path) as file:
        data = dict(file)
    attributes = json.loads(str(data["meta"]))["attrs"]
    taps = {"kernel_size": attributes["kernel"], "remove_center": attributes["remove_center"]}
    pads = [[pad, pad] for pad in attributes["padding"]]
    arrays = {
        "inputs": data["x"].astype(np.float64),
        "offsets": convert.offsets_from_dcnv3(data["offset"], **taps),
        "mask": convert.mask_from_dcnv3(data["mask"], **taps),
        "grad_output": data["grad_y"].astype(np.float64),
    }

    got = evaluate(
        arrays,
        **taps,
        strides=attributes["strides"],
        padding=[[0, 0], *pads, [0, 0]],
        dilations=attributes["dilations"],
        offset_scale=attributes["offset_scale"],
    )

    expected = {
        "output": data["y"],
        "inputs": data["grad_x"],
        "offsets": convert.offsets_from_dcnv3(data["grad_offset"], **taps),
        "mask": convert.mask_from_dcnv3(data["grad_mask"], **taps),
    }
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_golden_vectors_are_there() -> None:
    assert len(GOLDEN) == 4


def test_it_is_a_depthwise_deformable_convolution_with_filters_of_one() -> None:
    case = dataclasses.replace(CASES["3x3, SAME"], groups=2)
    arrays = case.arrays()
    grad_output = arrays.pop("grad_output")

    convolved = tf_deformable.deformable_conv2d(
        arrays["inputs"],
        np.ones([3, 3, 1, case.channels]),
        arrays["offsets"],
        arrays["mask"],
    )

    got = evaluate({**arrays, "grad_output": grad_output}, **case.attributes())["output"]
    np.testing.assert_allclose(got, convolved, atol=1e-12)


def test_dcnv4_is_dcnv3_with_any_mask() -> None:
    case = CASES["scale 1.1"]
    arrays = case.arrays()
    del arrays["grad_output"]
    arrays["mask"] = 5 * arrays["mask"] - 3

    got = tf_deformable.dcnv4(**arrays, **case.attributes())

    np.testing.assert_array_equal(got, tf_deformable.dcnv3(**arrays, **case.attributes()))
    with pytest.raises(ValueError, match=re.escape("dcnv4: mask must have shape [N,Ho,Wo,G*K]")):
        tf_deformable.dcnv4(**{**arrays, "mask": arrays["mask"][1:]}, **case.attributes())


def test_channels_first_is_a_transposition() -> None:
    case = Case()
    arrays = case.arrays()
    first = {name: np.transpose(array, (0, 3, 1, 2)) for name, array in arrays.items()}
    no, *spatial, _ = case.attributes()["padding"]
    attributes = {**case.attributes(), "padding": [no, no, *spatial], "data_format": "NCHW"}

    got = evaluate(first, **attributes)

    expected = case.expected(arrays)
    assert_close(got, {name: np.transpose(a, (0, 3, 1, 2)) for name, a in expected.items()})


@pytest.mark.parametrize("padding", ["SAME", ((1, 2), (2, 0))])
def test_one_graph_serves_all_sizes(padding: Any) -> None:
    case = Case(padding=padding)
    signature = {name: tf.TensorSpec([None] * 4, tf.float64) for name in case.arrays()}

    @tf.function(input_signature=[signature])
    def function(arguments: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return evaluate(arguments, **case.attributes())

    for other in (case, dataclasses.replace(case, batch=1, size=(8, 9), groups=2)):
        arrays = other.arrays()
        assert_close(
            function({name: tf.constant(a) for name, a in arrays.items()}), other.expected(arrays)
        )


@pytest.mark.parametrize("dilation", [2**25 + 4, 2**31 - 4])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(("taps", "tap"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_taps_beyond_what_float_counts(taps: int, tap: int, scale: float, dilation: int) -> None:
    """Center and tap lie far from the map, on its two sides, and only their sum is on it."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=[1, 4, 5, 4]).astype(np.float32)
    offsets = rng.normal(size=[1, 4, 5, taps, 2]).astype(np.float32)
    reach = (taps - 1) * dilation
    above = int(reach // 2 + (tap * dilation - reach // 2) * scale)  # the tap reads its own pixel
    far = tf_deformable.dcnv3(
        inputs,
        offsets.reshape([1, 4, 5, taps * 2]),
        np.ones([1, 4, 5, taps], np.float32),
        kernel_size=(taps, 1),
        dilations=(dilation, 1),
        offset_scale=scale,
        padding=[[0, 0], [above, reach - above], [0, 0], [0, 0]],
    )
    near = tf_deformable.dcnv3(
        inputs,
        offsets[:, :, :, tap],
        np.ones([1, 4, 5, 1], np.float32),
        kernel_size=1,
        offset_scale=scale,
    )
    np.testing.assert_allclose(far, near, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel_size": (2, 3), "remove_center": True}, ValueError, "odd kernel_size, got [2,3]"),
        ({"kernel_size": (3, 2), "remove_center": True}, ValueError, "odd kernel_size, got [3,2]"),
        ({"kernel_size": 1, "remove_center": True}, ValueError, "kernel_size above 1"),
        ({"remove_center": 1}, TypeError, "remove_center must be True or False, got 1"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be positive, got [0,0]"),
        ({"strides": (1, -1)}, ValueError, "strides must be positive, got [1,-1]"),
        ({"dilations": 0}, ValueError, "dilations must be positive, got [0,0]"),
        ({"dilations": 2**31}, ValueError, "dilations must be at most 2147483647, got"),
        ({"strides": (1, 2**31)}, ValueError, "strides must be at most 2147483647, got"),
        ({"kernel_size": 2**31 - 1}, ValueError, "kernel_size must have at most 1048576 taps, got"),
        ({"kernel_size": (1025, 1024)}, ValueError, "kernel_size must have at most 1048576 taps"),
        ({"kernel_size": (1024, 1024)}, ValueError, "a positive multiple of K*2=2097152, got 36"),
        ({"offset_scale": np.inf}, ValueError, "offset_scale must be finite, got inf"),
        ({"offset_scale": None}, TypeError, "offset_scale must be a number, got None"),
        ({"inputs": np.zeros([2, 5, 8])}, ValueError, "inputs must have rank 4 [N,H,W,C]"),
        (
            {"offsets": np.zeros([2, 5, 6, 20])},
            ValueError,
            "offsets channels must be a positive multiple of K*2=18, got 20",
        ),
        (
            {"offsets": np.zeros([2, 5, 6, 0])},
            ValueError,
            "offsets channels must be a positive multiple of K*2=18, got 0",
        ),
        (
            {"offsets": np.zeros([2, 5, 6, 54])},
            ValueError,
            "inputs channels must be a multiple of G, got C=8, G=3",
        ),
        (
            {"offsets": np.zeros([2, 5, 5, 36])},
            ValueError,
            "offsets must have shape [N,Ho,Wo,G*K*2] = [2,5,6,G*18], got shape [2,5,5,36]",
        ),
        (
            {"mask": np.zeros([2, 5, 6, 9])},
            ValueError,
            "mask must have shape [N,Ho,Wo,G*K] = [2,5,6,18], got shape [2,5,6,9]",
        ),
        ({"kernel_size": (3, 3), "padding": "VALID", "dilations": 4}, ValueError, "must fit into"),
        ({"mask": np.zeros([2, 5, 6, 18], np.float32)}, ValueError, "mask must have the dtype of"),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {
        "inputs": np.zeros([2, 5, 6, 8]),
        "offsets": np.zeros([2, 5, 6, 36]),
        "mask": np.zeros([2, 5, 6, 18]),
    }
    assert tf_deformable.dcnv3(**good).shape == [2, 5, 6, 8]
    with pytest.raises(error, match="dcnv3: .*" + re.escape(message)):
        tf_deformable.dcnv3(**{**good, **changes})


@pytest.mark.parametrize("function", [tf_deformable.dcnv3, tf_deformable.dcnv4])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [2, 8, 5]}, "inputs must have rank 4 [N,C,H,W], got shape [2,8,5]"),
        (
            {"offsets": [2, 36, 5, 5]},
            "offsets must have shape [N,G*K*2,Ho,Wo] = [2,G*18,5,6], got shape [2,36,5,5]",
        ),
        (
            {"mask": [2, 9, 5, 6]},
            "mask must have shape [N,G*K,Ho,Wo] = [2,18,5,6], got shape [2,9,5,6]",
        ),
    ],
)
def test_errors_show_shapes_with_channels_first(
    function: Any, in_graph: bool, changes: dict[str, list[int]], message: str
) -> None:
    shapes = {"inputs": [2, 8, 5, 6], "offsets": [2, 36, 5, 6], "mask": [2, 18, 5, 6], **changes}

    def call() -> tf.Tensor:
        return function(**{n: tf.zeros(s) for n, s in shapes.items()}, data_format="NCHW")

    with pytest.raises(ValueError, match=re.escape(f"{function.__name__}: {message}")):
        (tf.function(call) if in_graph else call)()
