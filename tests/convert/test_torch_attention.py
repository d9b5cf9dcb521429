"""Attention from PyTorch's state dicts, beside what Deformable DETR computed; and out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import MultiScaleDeformableAttention, convert

RECORDED = np.load(Path(__file__).parents[1] / "golden/torch_attention.npz")
META = json.loads(str(RECORDED["meta"]))
SIZES = META["sizes"]
PREFIX = "model.encoder.layers.0.self_attn"
HEADS = {"num_heads": META["num_heads"], "num_levels": len(SIZES)}
SAMPLES = META["num_heads"] * len(SIZES) * META["num_points"]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _state() -> dict[str, np.ndarray]:
    return {n.removeprefix("state/"): RECORDED[n] for n in RECORDED.files if n[:6] == "state/"}


def _layer(**arguments: Any) -> Any:
    return convert.attention_layer_from_torch(_state(), PREFIX, **{**HEADS, **arguments})


@pytest.mark.parametrize("references", ["points", "boxes"])
def test_computes_what_deformable_detr_computes(references: str) -> None:
    layer = _layer()
    inputs = [RECORDED["query"], convert.yx_from_xy(RECORDED[references]), RECORDED["value"]]
    expected = RECORDED[f"outputs_of_{references}"]

    np.testing.assert_allclose(layer(inputs, spatial_shapes=SIZES), expected, atol=1e-5)

    assert layer.num_points == META["num_points"] and layer.head_dim == 24 // META["num_heads"]
    # Offsets and weights matter: without them something else comes out.
    for kernel in (layer.offset_kernel, layer.attention_kernel):
        before = kernel.numpy()
        kernel.assign(tf.zeros_like(kernel))
        assert np.abs(layer(inputs, spatial_shapes=SIZES) - expected).max() > 0.05
        kernel.assign(before)


def test_of_maps_in_a_model() -> None:
    """The same, where maps are given in place of a flat value, and the layer is in a model."""
    shapes = [(None, 24), (None, 1, 2), *[(None, None, 24)] * len(SIZES)]
    inputs = [tf.keras.Input(shape) for shape in shapes]
    attend = MultiScaleDeformableAttention(**HEADS, num_points=META["num_points"])
    model = tf.keras.Model(inputs, attend(inputs))

    convert.load_torch_layer(attend, _state(), PREFIX)

    pixels = np.cumsum([height * width for height, width in SIZES])
    flat = np.split(RECORDED["value"], pixels[:-1], axis=1)
    maps = [part.reshape(2, *size, 24) for part, size in zip(flat, SIZES, strict=True)]
    points = RECORDED["points"][:, :, :1, ::-1]
    expected = _layer()([RECORDED["query"], points, RECORDED["value"]], spatial_shapes=SIZES)
    np.testing.assert_allclose(model([RECORDED["query"], points, *maps]), expected, atol=1e-5)


def test_out_again_bit_by_bit() -> None:
    state = _state()
    again = convert.torch_state_dict(_layer(), PREFIX, as_numpy=True)
    assert again.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype and again[name].flags.c_contiguous


def test_values_of_other_sizes_and_without_bias() -> None:
    """As mmcv's `value_proj_ratio` makes them."""
    random = np.random.default_rng(3)
    shapes = {"value_proj": (8, 6), "output_proj": (10, 8)}
    shapes |= {"sampling_offsets": (2 * 4 * 5 * 2, 12), "attention_weights": (2 * 4 * 5, 12)}
    state = {f"{name}.weight": random.normal(size=shape) for name, shape in shapes.items()}
    for name in ("sampling_offsets", "attention_weights"):
        state[f"{name}.bias"] = random.normal(size=shapes[name][:1])

    layer = convert.attention_layer_from_torch(state, num_heads=2, name="attend")

    assert layer.name == "attend" and not layer.use_bias
    assert (layer.head_dim, layer.num_points, layer.output_dim) == (4, 5, 10)
    again = convert.torch_state_dict(layer, as_numpy=True)
    assert again.keys() == state.keys()
    maps = [tf.zeros([1, size, size, 6]) for size in (8, 4, 2, 1)]
    assert layer([tf.zeros([1, 3, 12]), tf.zeros([1, 3, 1, 2]), *maps]).shape == (1, 3, 10)


def _changed(**changes: Any) -> dict[str, np.ndarray]:
    state = _state() | {f"{PREFIX}.{name}": array for name, array in changes.items()}
    return {name: array for name, array in state.items() if array is not None}


@pytest.mark.parametrize(
    ("state", "arguments", "message"),
    [
        (_changed(**{"value_proj.weight": None}), {}, rf"missing: {PREFIX}.value_proj.weight"),
        (_changed(**{"output_proj.bias": None}), {}, rf"missing: {PREFIX}.output_proj.bias"),
        (
            _changed(**{"attention_weights.bias": np.zeros(5)}),
            {},
            rf"wrong: {PREFIX}.attention_weights.bias must have shape \[{SAMPLES}\], got \[5\]",
        ),
        (
            _changed(**{"sampling_offsets.weight": np.zeros([7, 24])}),
            {},
            rf"sampling_offsets.weight must have shape \[{2 * SAMPLES},24\], got \[7,24\]",
        ),
        (_changed(**{"norm.weight": np.zeros(3)}), {}, rf"not used: {PREFIX}.norm.weight"),
        (_state(), {"num_heads": 5}, r"multiple of num_heads \* num_levels, got num_heads=5"),
    ],
    ids=str,
)
def test_says_what_does_not_fit(
    state: dict[str, np.ndarray], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert.attention_layer_from_torch(state, PREFIX, **{**HEADS, **arguments})


def test_a_layer_that_does_not_fit_stays_as_it_was() -> None:
    layer = _layer()
    before = [weight.numpy() for weight in layer.weights]
    broken = {n: a + 1 for n, a in _changed(**{"output_proj.bias": np.zeros(3)}).items()}
    with pytest.raises(ValueError, match="nothing is loaded"):
        convert.load_torch_layer(layer, broken, PREFIX)
    for weight, array in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), array)


def test_arguments() -> None:
    with pytest.raises(TypeError, match="num_points is what the file says"):
        _layer(num_points=2)
    with pytest.raises(TypeError, match="has no argument 'strides'"):
        _layer(strides=2)
    layer = _layer()
    with pytest.raises(ValueError, match="offset_prefix, mask_prefix and offset_use_bias are for"):
        convert.load_torch_layer(layer, _state(), PREFIX, offset_prefix="offsets")
    with pytest.raises(ValueError, match="are for a DeformableConv2D"):
        convert.torch_state_dict(layer, mask_prefix="mask", as_numpy=True)


# --- With PyTorch ---


def test_a_module_of_pytorch_computes_what_a_layer_computes() -> None:
    """Equation 3 of the paper by `grid_sample`, with the names of its authors' module."""
    torch = pytest.importorskip("torch")
    heads, points, dim = 3, 2, 12
    layer = MultiScaleDeformableAttention(heads, len(SIZES), points)
    shapes = [(None, None, dim), (None, None, 1, 2), *[(None, None, None, dim)] * len(SIZES)]
    layer.build(shapes)
    for number, weight in enumerate(layer.weights):
        weight.assign(tf.random.stateless_normal(weight.shape, [number, 0], stddev=0.4))

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            samples = heads * len(SIZES) * points
            self.sampling_offsets = torch.nn.Linear(dim, samples * 2)
            self.attention_weights = torch.nn.Linear(dim, samples)
            self.value_proj = torch.nn.Linear(dim, dim)
            self.output_proj = torch.nn.Linear(dim, dim)

        def forward(self, query: Any, references: Any, maps: Any) -> Any:
            batch, queries, _ = query.shape
            shape = (batch, queries, heads, len(SIZES), points)
            offsets = self.sampling_offsets(query).view(*shape, 2)
            weights = self.attention_weights(query).view(batch, queries, heads, -1)
            weights = weights.softmax(-1).view(shape)
            outputs = 0
            for level, value in enumerate(maps):  # [B, H, W, C]
                height, width = value.shape[1:3]
                value = self.value_proj(value).permute(0, 3, 1, 2)
                value = value.reshape(batch * heads, dim // heads, height, width)
                moved = offsets[:, :, :, level] / torch.tensor([width, height])
                grid = 2 * (references[:, :, :, None] + moved) - 1  # [B, Q, heads, points, 2]
                grid = grid.transpose(1, 2).reshape(batch * heads, queries, points, 2)
                sampled = torch.nn.functional.grid_sample(
                    value, grid, padding_mode="zeros", align_corners=False
                ).view(batch, heads, -1, queries, points)
                factors = weights[:, :, :, level].transpose(1, 2)[:, :, None]
                outputs = outputs + (sampled * factors).sum(-1)  # [B, heads, D, Q]
            return self.output_proj(outputs.flatten(1, 2).transpose(1, 2))

    module = Attention()
    module.load_state_dict(convert.torch_state_dict(layer))
    random = np.random.default_rng(4)
    query = random.normal(size=[2, 6, dim]).astype(np.float32)
    points_xy = random.uniform(size=[2, 6, 1, 2]).astype(np.float32)
    maps = [random.normal(size=[2, *size, dim]).astype(np.float32) for size in SIZES]
    with torch.no_grad():
        outputs = module(
            torch.from_numpy(query), torch.from_numpy(points_xy), list(map(torch.from_numpy, maps))
        )

    np.testing.assert_allclose(layer([query, points_xy[..., ::-1], *maps]), outputs, atol=1e-5)
    again = convert.attention_layer_from_torch(
        module.state_dict(), num_heads=heads, num_levels=len(SIZES)
    )
    for one, other in zip(layer.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
