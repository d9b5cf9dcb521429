"""Layers from PyTorch's state dicts, beside what torchvision computed; and out again."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import DeformableConv2D, MultiScaleDeformableAttention, convert

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = np.load(GOLDEN / "torch_layers.npz")
LAYERS = json.loads(str(RECORDED["meta"]))["layers"]


def _state(case: str) -> dict[str, np.ndarray]:
    start = f"{case}/state/"
    return {n.removeprefix(start): RECORDED[n] for n in RECORDED.files if n.startswith(start)}


def _arguments(case: str) -> dict[str, Any]:
    """The arguments of `layer_from_torch` for a module: what the file does not say."""
    module = LAYERS[case]["module"]
    mine = {"stride": "strides", "padding": "padding", "dilation": "dilation_rate"}
    return {mine[name]: value for name, value in module.items() if name in mine}


def _names(case: str) -> dict[str, str]:
    prefix, branch, mask = LAYERS[case]["names"]
    given = case == "torchvision"
    return {"prefix": prefix, **({"offset_prefix": branch, "mask_prefix": mask} if given else {})}


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("case", LAYERS)
def test_computes_what_pytorch_computes(case: str, data_format: str) -> None:
    layer = convert.layer_from_torch(
        _state(case), **_names(case), **_arguments(case), data_format=data_format
    )
    inputs, expected = RECORDED[f"{case}/inputs"], RECORDED[f"{case}/outputs"]
    if data_format == "channels_last":
        inputs, expected = (convert.nhwc_from_nchw(maps) for maps in (inputs, expected))

    np.testing.assert_allclose(layer(inputs), expected, atol=2e-5, rtol=1e-5)
    spec = LAYERS[case]
    assert layer.modulated == spec["modulated"]
    assert layer.offset_groups == spec["offset_groups"]
    assert layer.groups == spec["module"].get("groups", 1)
    assert layer.use_bias == spec["module"].get("bias", True)
    # The offsets matter: a layer that has lost them computes something else.
    layer.offset_kernel.assign(tf.zeros_like(layer.offset_kernel))
    assert np.abs(layer(inputs) - expected).max() > 0.5


@pytest.mark.parametrize("case", LAYERS)
def test_out_again_bit_by_bit(case: str) -> None:
    state = _state(case)
    layer = convert.layer_from_torch(state, **_names(case), **_arguments(case))
    names = dict(
        zip(("prefix", "offset_prefix", "mask_prefix"), LAYERS[case]["names"], strict=True)
    )

    again = convert.torch_state_dict(layer, **names, as_numpy=True)

    assert set(again) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype and again[name].flags.c_contiguous


def test_loads_a_layer_of_a_model() -> None:
    state = _state("dcnv2")
    layer = DeformableConv2D(
        6, 3, strides=2, padding=1, offset_groups=4, modulated=True, name="deformable"
    )
    model = tf.keras.Sequential([tf.keras.Input((None, None, 4)), layer])

    convert.load_torch_layer(model.get_layer("deformable"), state, "dcn")

    inputs, expected = (
        convert.nhwc_from_nchw(RECORDED[f"dcnv2/{part}"]) for part in ("inputs", "outputs")
    )
    np.testing.assert_allclose(model(inputs), expected, atol=2e-5, rtol=1e-5)


def test_names_that_begin_with_an_underscore_or_are_empty() -> None:
    state, arguments = _state("dcnv2"), _arguments("dcnv2")
    for start in ("_orig_mod.", ""):
        renamed = {name.replace("dcn.", start, 1): array for name, array in state.items()}
        layer = convert.layer_from_torch(renamed, start, **arguments)
        again = convert.torch_state_dict(
            layer, start, offset_prefix=f"{start}conv_offset_mask", as_numpy=True
        )
        assert set(again) == set(renamed)


def test_several_offset_convolutions() -> None:
    state = _state("dcnv2")
    state |= {n.replace("conv_offset_mask", "conv_offset"): a for n, a in state.items()}
    with pytest.raises(
        ValueError, match="several .* 'dcn': dcn.conv_offset, dcn.conv_offset_mask;"
    ):
        convert.layer_from_torch(state, "dcn")
    with pytest.raises(ValueError, match="not used: dcn.conv_offset.weight, dcn.conv_offset.bias$"):
        convert.layer_from_torch(state, "dcn", offset_prefix="dcn.conv_offset_mask")
    convert.layer_from_torch(
        state, "dcn", offset_prefix="dcn.conv_offset_mask", ignore="conv_offset[.].*"
    )


def test_mask_of_twice_the_sigmoid() -> None:
    state, arguments = _state("dcnv2"), _arguments("dcnv2")
    inputs = convert.nhwc_from_nchw(RECORDED["dcnv2/inputs"])
    once = convert.layer_from_torch(state, "dcn", **arguments)
    twice = convert.layer_from_torch(state, "dcn", mask_initial_value=1.0, **arguments)
    bias = state["dcn.bias"]
    np.testing.assert_allclose(twice(inputs) - bias, 2 * (once(inputs) - bias), atol=1e-4)


def test_mixed_precision_and_float64() -> None:
    state, arguments = _state("mmcv_v2"), _arguments("mmcv_v2")
    half = convert.layer_from_torch(state, "head.dcn", dtype="mixed_float16", **arguments)
    wide = convert.layer_from_torch(
        {name: array.astype(np.float64) + 1e-12 for name, array in state.items()},
        "head.dcn",
        dtype="float64",
        **arguments,
    )
    np.testing.assert_array_equal(
        convert.oihw_from_hwio(tf.convert_to_tensor(half.kernel)), state["head.dcn.weight"]
    )
    exact = convert.torch_state_dict(wide, "head.dcn", as_numpy=True)["head.dcn.weight"]
    np.testing.assert_array_equal(exact, state["head.dcn.weight"].astype(np.float64) + 1e-12)


def test_offsets_of_other_features_and_given_ones() -> None:
    random = np.random.default_rng(0)
    state = {
        "weight": random.normal(size=[4, 3, 3, 3]).astype(np.float32),
        "conv_offset.weight": random.normal(size=[54, 8, 3, 3]).astype(np.float32),
        "conv_offset.bias": random.normal(size=[54]).astype(np.float32),
    }
    aligned = convert.layer_from_torch(
        state, offset_source="features", modulated=True, groups=2, padding=1
    )
    assert aligned.offset_groups == 2
    assert aligned([tf.zeros([1, 8, 8, 6]), tf.zeros([1, 8, 8, 8])]).shape == [1, 8, 8, 4]

    given = convert.layer_from_torch(
        {"weight": state["weight"]}, offset_source="given", offset_groups=3, groups=2
    )
    assert given([tf.zeros([1, 8, 8, 6]), tf.zeros([1, 6, 6, 54])]).shape == [1, 6, 6, 4]
    assert set(convert.torch_state_dict(given, as_numpy=True)) == {"weight"}


def test_what_the_number_of_channels_leaves_open() -> None:
    """54 outputs are offsets of 3 groups, or offsets and masks of 2; 3 do not divide 4 channels."""

    def state(channels: int) -> dict[str, np.ndarray]:
        return {
            "weight": np.zeros([2, channels, 3, 3], np.float32),
            "conv_offset.weight": np.zeros([54, channels, 3, 3], np.float32),
            "conv_offset.bias": np.zeros([54], np.float32),
        }

    layer = convert.layer_from_torch(state(4))
    assert (layer.modulated, layer.offset_groups) == (True, 2)
    with pytest.raises(ValueError, match="54 outputs, .* offsets of 3 groups, .* masks of 2: say"):
        convert.layer_from_torch(state(6))
    assert convert.layer_from_torch(state(6), modulated=False).offset_groups == 3
    assert convert.layer_from_torch(state(6), offset_groups=2).modulated
    by_name = {name.replace("offset.", "offset_mask."): v for name, v in state(6).items()}
    assert convert.layer_from_torch(by_name).modulated


def test_offset_convolution_without_bias() -> None:
    state = {n: a for n, a in _state("mmcv_v1").items() if not n.endswith("offset.bias")}
    with pytest.raises(ValueError, match="missing: head.dcn.conv_offset.bias$"):
        convert.layer_from_torch(state, "head.dcn")
    layer = convert.layer_from_torch(state, "head.dcn", offset_use_bias=False)
    assert not np.any(layer.offset_bias.numpy())


def _changed(**changes: Any) -> dict[str, np.ndarray]:
    """The state of mmcv's modulated layer with some arrays replaced, or removed (None)."""
    state = _state("mmcv_v2")
    for name, value in changes.items():
        state.pop(f"head.dcn.{name}", None)
        if value is not None:
            state[f"head.dcn.{name}"] = value
    return state


BROKEN = {
    "kernel missing": (
        _changed(weight=None),
        "missing: head.dcn.weight",
    ),
    "branch missing": (
        _changed(**{"conv_offset.weight": None}),
        "missing: the offset convolution, none of head.dcn.conv_offset, "
        "head.dcn.conv_offset_mask, head.dcn_offset has a weight; where it has another name, say "
        "offset_prefix",
    ),
    "bias missing and others left": (
        _changed(**{"conv_offset.bias": None, "gamma": np.ones(6), "beta": np.ones(6)}),
        "missing: head.dcn.conv_offset.bias\n  not used: head.dcn.gamma, head.dcn.beta",
    ),
    "another bias": (
        _changed(bias=np.ones(5, np.float32)),
        "wrong: head.dcn.bias must have shape [6], got [5]",
    ),
    "another layer type": (
        _changed(weight=np.ones([6, 4], np.float32)),
        "wrong: head.dcn.weight must have shape [F,C/groups,kh,kw], got [6,4]",
    ),
    "another kernel size of the branch": (
        _changed(**{"conv_offset.weight": np.ones([36, 4, 1, 1], np.float32)}),
        "wrong: head.dcn.conv_offset.weight has a kernel (1, 1), and a DeformableConv2D makes its "
        "offsets with that of the convolution, (3, 2): make them in a Conv2D of their own, and "
        'give them, offset_source="given"',
    ),
    "channels that no layer has": (
        _changed(**{"conv_offset.weight": np.ones([35, 4, 3, 2], np.float32)}),
        "wrong: head.dcn.conv_offset has 35 outputs, which for 6 taps and 4 channels must be 12 "
        "times the number of offset groups (offsets) or 18 times it (offsets and masks)",
    ),
    "channels that no group divides": (
        _changed(weight=np.ones([6, 3, 3, 2], np.float32)),
        "wrong: the offset convolution reads 4 channels, which is no multiple of the 3 of a group "
        "of the convolution",
    ),
    "quantised": (
        _changed(weight=np.ones([6, 4, 3, 2], np.int8)),
        "wrong: head.dcn.weight must hold floating-point numbers, got int8",
    ),
    "nothing under the prefix": (
        {"head.fc.weight": np.ones([2, 2])},
        "missing: head.dcn.weight, head.dcn.conv_offset.weight\n"
        "  the names there are: head.fc.weight",
    ),
}


@pytest.mark.parametrize(("state", "message"), BROKEN.values(), ids=BROKEN)
def test_says_what_is_missing_wrong_and_left(state: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        convert.layer_from_torch(state, "head.dcn", padding=1)
    text = str(raised.value)
    assert text.startswith("layer_from_torch: the weights are not those of ")
    assert "; nothing is loaded\n  " in text
    assert text.endswith(message)


def test_a_layer_that_does_not_fit_stays_as_it_was() -> None:
    layer = DeformableConv2D(6, (3, 2), offset_groups=2, modulated=True)
    layer.build((None, None, None, 4))
    before = [weight.numpy() for weight in layer.weights]
    for state in (
        _changed(bias=None),
        _changed(bias=np.ones(5, np.float32)),
        _changed(**{"conv_offset.bias": None}),
        _changed(extra=np.ones(5, np.float32)),
    ):
        with pytest.raises(ValueError, match="nothing is loaded"):
            convert.load_torch_layer(layer, state, "head.dcn")
        for weight, value in zip(layer.weights, before, strict=True):
            np.testing.assert_array_equal(weight.numpy(), value)
    convert.load_torch_layer(layer, _changed(), "head.dcn")
    assert any(np.any(w.numpy() != v) for w, v in zip(layer.weights, before, strict=True))


def test_what_is_left_may_be_named() -> None:
    state = _state("detectron2") | {
        "backbone.bottom_up.res5.0.conv2.norm.weight": np.ones(6, np.float32),
        "backbone.bottom_up.res5.0.conv2.norm.bias": np.ones(6, np.float32),
        "backbone.bottom_up.res5.0.conv3.weight": np.ones([6, 6, 1, 1], np.float32),
    }
    prefix, arguments = "backbone.bottom_up.res5.0.conv2", _arguments("detectron2")
    with pytest.raises(ValueError, match="not used: .*conv2.norm.weight, .*conv2.norm.bias$"):
        convert.layer_from_torch(state, prefix, **arguments)
    convert.layer_from_torch(state, prefix, ignore="norm[.].*", **arguments)
    with pytest.raises(ValueError, match="not used: .*conv2.norm.bias$"):
        convert.layer_from_torch(state, prefix, ignore="norm[.]w.*", **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"filters": 3}, TypeError, "filters is what the file says"),
        ({"paddings": 3}, TypeError, "DeformableConv2D has no argument 'paddings'"),
        ({"ignore": "("}, ValueError, "ignore must be a regular expression, got '('"),
        ({"offset_groups": 3}, ValueError, "with offset_groups=3"),
        ({"modulated": False}, ValueError, "conv_offset has 36 outputs"),
        ({"groups": 2}, ValueError, "head.dcn.weight must have shape [6,2,3,2], got [6,4,3,2]"),
        (
            {"offset_source": "given", "offset_prefix": "head.dcn.conv_offset"},
            ValueError,
            "offset_prefix and mask_prefix must be None",
        ),
        ({"offset_source": "given"}, ValueError, "not used: head.dcn.conv_offset.weight"),
        ({"offset_prefix": "elsewhere"}, ValueError, "missing: elsewhere.weight"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        convert.layer_from_torch(_state("mmcv_v2"), "head.dcn", **arguments)
    assert message in str(raised.value)


def test_refuses_other_layers() -> None:
    conv = tf.keras.layers.Conv2D(3, 3)
    with pytest.raises(TypeError, match="MultiScaleDeformableAttention or DCNv3, got Conv2D"):
        convert.torch_state_dict(conv)
    with pytest.raises(TypeError, match="MultiScaleDeformableAttention or DCNv3, got Conv2D"):
        convert.load_torch_layer(conv, {})
    layer = DeformableConv2D(3, 3, name="fresh")
    with pytest.raises(ValueError, match="layer 'fresh' has no weights yet: call it first"):
        convert.torch_state_dict(layer)
    layer.build((None, None, None, 2))
    with pytest.raises(ValueError, match="mask_prefix must be None for a layer that makes no mask"):
        convert.torch_state_dict(layer, mask_prefix="mask", as_numpy=True)
    given = DeformableConv2D(3, 3, modulated=True, offset_source="given")
    given.build([(None, None, None, 2), (None, None, None, 18), (None, None, None, 9)])
    with pytest.raises(ValueError, match="mask_prefix must be None for a layer that makes no mask"):
        convert.torch_state_dict(given, mask_prefix="mask", as_numpy=True)
    attention = MultiScaleDeformableAttention(2, 1, 1)
    attention.build([(None, None, 4), (None, None, 1, 2), (None, None, 4)])
    for argument in ({"offset_prefix": "o"}, {"mask_prefix": "m"}, {"offset_use_bias": False}):
        with pytest.raises(ValueError, match="offset_use_bias are for a DeformableConv2D"):
            convert.load_torch_layer(attention, {}, "a", **argument)


# --- With PyTorch ---


def test_tensors_and_modules_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    layer = convert.layer_from_torch(
        {name: torch.from_numpy(array) for name, array in _state("mmcv_v2").items()},
        "head.dcn",
        **_arguments("mmcv_v2"),
    )
    state = convert.torch_state_dict(layer)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    module = torch.nn.Conv2d(4, 6, (3, 2))
    module.load_state_dict({n: t for n, t in state.items() if "." not in n})
    module = torch.nn.Conv2d(4, 36, (3, 2))
    start = "conv_offset."
    module.load_state_dict({n.removeprefix(start): t for n, t in state.items() if start in n})
    np.testing.assert_array_equal(
        module.weight.detach(), _state("mmcv_v2")["head.dcn.conv_offset.weight"]
    )
    half = convert.layer_from_torch(
        {name: tensor.bfloat16() for name, tensor in state.items()}, **_arguments("mmcv_v2")
    )
    np.testing.assert_allclose(
        tf.convert_to_tensor(half.kernel), tf.convert_to_tensor(layer.kernel), rtol=1e-2, atol=1e-2
    )


def test_torchvision_computes_what_a_layer_computes() -> None:
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    layer = DeformableConv2D(
        6,
        3,
        strides=2,
        padding=1,
        offset_groups=2,
        modulated=True,
        offset_kernel_initializer="glorot_normal",
        bias_initializer="random_normal",
    )
    inputs = tf.random.normal([2, 9, 10, 4])
    expected = layer(inputs)

    class Pack(torchvision.ops.DeformConv2d):
        def __init__(self) -> None:
            super().__init__(4, 6, 3, stride=2, padding=1)
            self.conv_offset = torch.nn.Conv2d(4, 54, 3, stride=2, padding=1)

        def forward(self, maps: Any) -> Any:
            offsets, mask = torch.split(self.conv_offset(maps), [36, 18], dim=1)
            return super().forward(maps, offsets, torch.sigmoid(mask))

    module = Pack()
    module.load_state_dict(convert.torch_state_dict(layer))
    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs.numpy()).permute(0, 3, 1, 2))
    np.testing.assert_allclose(convert.nhwc_from_nchw(outputs.numpy()), expected, atol=1e-5)
    again = convert.layer_from_torch(module.state_dict(), strides=2, padding=1)
    for one, other in zip(layer.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_without_pytorch_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    layer = DeformableConv2D(3, 3)
    layer.build((None, None, None, 2))
    with pytest.raises(ImportError, match=re.escape("pip install 'tf_deformable[torch]'")):
        convert.torch_state_dict(layer)
