"""DCNv3 from InternImage's state dicts, beside what InternImage computed; and out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import convert
from tf_deformable.layers import DCNv3

RECORDED = np.load(Path(__file__).parents[1] / "golden/torch_dcnv3.npz")
MODULES = json.loads(str(RECORDED["meta"]))["modules"]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _state(case: str) -> dict[str, np.ndarray]:
    start = f"{case}/state/"
    return {n.removeprefix(start): RECORDED[n] for n in RECORDED.files if n.startswith(start)}


def _arguments(case: str) -> dict[str, Any]:
    """What the file does not say."""
    module = MODULES[case]
    arguments = {"groups": module["group"], "offset_scale": module.get("offset_scale", 1.0)}
    if "act_layer" in module:
        arguments["activation"] = module["act_layer"].lower()
    return arguments


def _layer(case: str, **changes: Any) -> Any:
    return convert.dcnv3_layer_from_torch(_state(case), "dcn", **{**_arguments(case), **changes})


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", MODULES)
def test_computes_what_internimage_computes(case: str, data_format: str) -> None:
    layer = _layer(case, data_format=data_format)
    inputs, expected = RECORDED[f"{case}/inputs"], RECORDED[f"{case}/outputs"]
    if data_format == "channels_first":
        inputs, expected = (convert.nchw_from_nhwc(maps) for maps in (inputs, expected))

    np.testing.assert_allclose(layer(inputs), expected, atol=2e-5, rtol=1e-5)

    module = MODULES[case]
    assert layer.center_feature_scale == module.get("center_feature_scale", False)
    assert layer.remove_center == module.get("remove_center", False)
    assert layer.normalization == ("batch" if "norm_layer" in module else "layer")
    for kernel in (layer.offset_kernel, layer.mask_kernel):
        before = kernel.numpy()
        kernel.assign(tf.zeros_like(kernel))
        assert np.abs(layer(inputs) - expected).max() > 0.05
        kernel.assign(before)


@pytest.mark.parametrize("case", MODULES)
def test_out_again_bit_by_bit(case: str) -> None:
    state = _state(case)
    again = convert.torch_state_dict(_layer(case), "dcn", as_numpy=True)
    assert set(state) - set(again) <= {"dcn.dw_conv.1.0.num_batches_tracked"}
    assert set(again) <= set(state)
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name])
        assert array.dtype == state[name].dtype and array.flags.c_contiguous


@pytest.mark.parametrize("remove_center", [False, True])
def test_kernels_that_are_not_square(remove_center: bool) -> None:
    layer = DCNv3(
        2,
        (3, 5),
        depthwise_kernel_size=(5, 3),
        normalization="layer",
        remove_center=remove_center,
    )
    layer.build((None, None, None, 8))
    random = np.random.default_rng(0)
    layer.set_weights([random.normal(size=w.shape) for w in layer.get_weights()])

    state = convert.torch_state_dict(layer, "dcn", as_numpy=True)
    again = convert.dcnv3_layer_from_torch(state, "dcn", groups=2, kernel_size=(3, 5))

    for one, other in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert state["dcn.dw_conv.0.weight"].shape == (8, 1, 5, 3)
    # There taps go column by column, here row by row.
    taps = [(row, column) for column in range(5) for row in range(3)]
    here = [(row, column) for row in range(3) for column in range(5)]
    if remove_center:
        taps.remove((1, 2))
        here.remove((1, 2))
    for there, tap in enumerate(taps):
        of_mask = state["dcn.mask.weight"][len(taps) + there]  # of the second group
        np.testing.assert_array_equal(
            of_mask, layer.mask_kernel[:, len(taps) + here.index(tap)].numpy()
        )
        dx, dy = state["dcn.offset.weight"].reshape(2, len(taps), 2, 8)[1, there]
        kernel = layer.offset_kernel.numpy().reshape(8, 2, len(taps), 2)[:, 1, here.index(tap)]
        np.testing.assert_array_equal([dy, dx], kernel.T)


def test_loads_a_layer_of_a_model() -> None:
    case = "batch_normalization"
    maps = tf.keras.Input((None, None, 12))
    layer = DCNv3(4, normalization="batch", activation="silu")
    model = tf.keras.Model(maps, layer(maps))

    convert.load_torch_layer(layer, _state(case), "dcn")

    outputs = model(RECORDED[f"{case}/inputs"])
    np.testing.assert_allclose(outputs, RECORDED[f"{case}/outputs"], atol=2e-5, rtol=1e-5)


def _changed(**changes: Any) -> dict[str, np.ndarray]:
    state = _state("internimage_t") | {f"dcn.{name}": array for name, array in changes.items()}
    return {name: array for name, array in state.items() if array is not None}


@pytest.mark.parametrize(
    ("state", "arguments", "message"),
    [
        (_changed(**{"offset.bias": None}), {}, "missing: dcn.offset.bias"),
        (_changed(**{"dw_conv.1.1.weight": None}), {}, "missing: dcn.dw_conv.1.1.weight"),
        (_changed(**{"input_proj.bias": np.zeros(3)}), {}, r"must have shape \[12\], got \[3\]"),
        (_changed(**{"gamma": np.zeros(3)}), {}, "not used: dcn.gamma"),
        (_changed(), {"groups": 3}, "must be 27, or 24 without the center"),
        (_changed(), {"kernel_size": (5, 3)}, r"must be 30, or 28 without the center"),
    ],
)
def test_says_what_does_not_fit(
    state: dict[str, np.ndarray], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert.dcnv3_layer_from_torch(state, "dcn", **{"groups": 2, **arguments})


def test_arguments() -> None:
    with pytest.raises(TypeError, match="remove_center is what the file says"):
        _layer("internimage_t", remove_center=True)
    with pytest.raises(TypeError, match="DCNv3 has no argument 'filters'"):
        _layer("internimage_t", filters=3)
    layer = DCNv3(2)
    with pytest.raises(ValueError, match="has no weights yet"):
        convert.load_torch_layer(layer, _state("internimage_t"), "dcn")
