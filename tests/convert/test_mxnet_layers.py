"""Layers of the authors' R-FCN and DeepLab, beside what MXNet computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import convert

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = GOLDEN / "mxnet_layers.params"
RECORDED = np.load(GOLDEN / "mxnet_layers.npz")
INPUTS = convert.nhwc_from_nchw(RECORDED["inputs"])


def test_convolution_where_mxnet_does_not_clamp() -> None:
    layer = convert.layer_from_mxnet(FILE, "res5a_branch2b", padding=2, dilation_rate=2)
    outputs = layer(INPUTS).numpy()
    expected = convert.nhwc_from_nchw(RECORDED["res5a_branch2b"]).numpy()

    assert (layer.offset_groups, layer.modulated, layer.use_bias) == (4, False, False)
    # Less than a pixel outside the map MXNet reads 0, or the last pixel whole; here samples fade.
    y, x = tf.unstack(layer.sampling_positions(INPUTS), axis=-1)
    height, width = INPUTS.shape[1:3]

    def fades(position: tf.Tensor, size: int) -> tf.Tensor:
        before, after = (position > -1) & (position < 0), (position > size - 1) & (position < size)
        return before | after

    same = ~tf.reduce_any(fades(y, height) | fades(x, width), axis=[3, 4, 5]).numpy()
    assert 30 < same.sum() < same.size
    np.testing.assert_allclose(outputs[same], expected[same], atol=1e-5, rtol=1e-5)
    assert np.abs(outputs - expected).max() > 0.1


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("name", "depth"), [("rfcn_cls", 4), ("rfcn_bbox", 2)])
def test_position_sensitive_pooling(name: str, depth: int, data_format: str) -> None:
    layer = convert.psroi_layer_from_mxnet(
        FILE,
        name,
        group_size=3,
        spatial_scale=1 / 16,
        ignore=".*_test",
        data_format=data_format,
    )
    boxes, _ = convert.boxes_from_rois(RECORDED["rois"])
    inputs = INPUTS if data_format == "channels_last" else RECORDED["inputs"]
    outputs = layer([inputs, boxes[None]])[0]
    if data_format == "channels_last":
        outputs = convert.nchw_from_nhwc(outputs)

    assert (layer.score_filters, layer.class_agnostic) == (depth, name == "rfcn_bbox")
    np.testing.assert_allclose(outputs, RECORDED[name], atol=1e-5, rtol=1e-5)
    # The offsets matter.
    layer.offset_kernel.assign(tf.zeros_like(layer.offset_kernel))
    moved = layer([inputs, boxes[None]])[0]
    if data_format == "channels_last":
        moved = convert.nchw_from_nhwc(moved)
    assert np.abs(moved - outputs).max() > 0.01


def test_what_is_missing_wrong_and_left() -> None:
    weights = convert.read_weights(FILE)
    with pytest.raises(ValueError, match="not used: rfcn_bbox_weight_test$"):
        convert.psroi_layer_from_mxnet(weights, "rfcn_bbox", group_size=3)
    with pytest.raises(ValueError, match="have 36 and 72 outputs, which must be 49.D and 98.D"):
        convert.psroi_layer_from_mxnet(weights, "rfcn_cls")
    with pytest.raises(ValueError, match="missing: rfcn_weight, rfcn_offset_t_weight\n"):
        convert.psroi_layer_from_mxnet(weights, "rfcn")
    less = {n: a for n, a in weights.items() if n != "arg:rfcn_cls_offset_t_bias"}
    with pytest.raises(ValueError, match="missing: rfcn_cls_offset_t_bias$"):
        convert.psroi_layer_from_mxnet(less, "rfcn_cls", group_size=3)

    with pytest.raises(ValueError, match="missing: res5b_branch2b_weight, res5b_branch2b_offset"):
        convert.layer_from_mxnet(weights, "res5b_branch2b")
    less = {n: a for n, a in weights.items() if n != "arg:res5a_branch2b_offset_bias"}
    less["arg:res5a_branch2b_gamma"] = np.ones(8)
    with pytest.raises(
        ValueError,
        match="missing: res5a_branch2b_offset_bias\n  not used: res5a_branch2b_gamma$",
    ):
        convert.layer_from_mxnet(less, "res5a_branch2b")
    less["arg:res5a_branch2b_weight"] = np.ones([8, 8])
    with pytest.raises(ValueError, match="wrong: res5a_branch2b_weight must have shape"):
        convert.layer_from_mxnet(less, "res5a_branch2b")
