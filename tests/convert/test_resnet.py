"""Whole networks, beside what PyTorch and torchvision computed with the same weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.named_weights import named_weights
from tf_deformable import DeformableConv2D, convert
from tf_deformable.models import compare, deformify

GOLDEN = Path(__file__).parents[1] / "golden"
LAST_LAYERS = {
    "stage1": "conv2_block3_out",
    "stage2": "conv3_block4_out",
    "stage3": "conv4_block6_out",
    "stage4": "conv5_block3_out",
}
PREFIX = {"mmdet": "backbone", "detectron2": "backbone.bottom_up"}


@functools.cache
def _recorded(case: str) -> tuple[Any, dict[str, Any], dict[str, np.ndarray]]:
    recorded = np.load(GOLDEN / f"torch_resnet50_{case}.npz")
    meta = json.loads(str(recorded["meta"]))
    return recorded, meta["arguments"], named_weights(meta["shapes"])


@functools.cache
def _narrow() -> dict[str, np.ndarray]:
    """mmdetection's weights of a network that is an eighth as wide."""
    _, _, weights = _recorded("mmdet")
    # 27 are the outputs of an offset convolution.
    shapes = {
        name: [n // 8 if n > 27 else n for n in array.shape] for name, array in weights.items()
    }
    return named_weights(shapes)


@pytest.mark.parametrize("case", PREFIX)
def test_features_are_those_of_pytorch(case: str) -> None:
    recorded, arguments, weights = _recorded(case)
    model = convert.resnet_from_torch(
        weights | {"roi_head.bbox_head.fc_cls.weight": np.ones([2, 2])},
        PREFIX[case],
        strides=arguments["strides"],
        dilations=arguments["dilations"],
    )
    stages = tf.keras.Model(
        model.input, {stage: model.get_layer(n).output for stage, n in LAST_LAYERS.items()}
    )
    features = stages(convert.nhwc_from_nchw(recorded["images"]))

    for stage, maps in features.items():
        step = 4 if stage == "stage4" else 16
        got, expected = convert.nchw_from_nhwc(maps[..., ::step]).numpy(), recorded[stage]
        assert expected.std() > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    assert model.output is model.get_layer("conv5_block3_out").output

    deformable = [layer for layer in model.layers if isinstance(layer, DeformableConv2D)]
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    assert len(deformable) == sum(blocks[stage] for stage in arguments["deformable_stages"])
    assert {layer.modulated for layer in deformable} == {arguments["modulated"]}
    assert {layer.offset_groups for layer in deformable} == {arguments["offset_groups"]}
    # The offsets matter.
    for layer in deformable:
        layer.offset_kernel.assign(tf.zeros_like(layer.offset_kernel))
    moved = model(convert.nhwc_from_nchw(recorded["images"]))
    assert np.abs(convert.nchw_from_nhwc(moved[..., ::4]) - recorded["stage4"]).max() > 0.1


def test_normalization_is_frozen() -> None:
    model = convert.resnet_from_torch(_narrow(), "backbone")
    normalizations = [
        layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    assert len(normalizations) == 53
    assert not any(layer.trainable_weights for layer in normalizations)
    images = tf.random.normal([2, 64, 64, 3])
    before = [weight.numpy() for layer in normalizations for weight in layer.weights]
    np.testing.assert_allclose(model(images, training=True), model(images), atol=1e-5)
    after = [weight.numpy() for layer in normalizations for weight in layer.weights]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_is_the_network_of_deformify() -> None:
    """The layers of Keras' own ResNet-50, made deformable, by the same names."""
    model = convert.resnet_from_torch(_recorded("mmdet")[2], "backbone")
    keras = deformify(
        tf.keras.applications.ResNet50(weights=None, include_top=False),
        "conv[345]_block._2_conv",
        modulated=True,
    )
    theirs = {layer.name: type(layer).__name__ for layer in keras.layers[1:]}
    ours = {layer.name: type(layer).__name__ for layer in model.layers[1:]}
    assert ours == theirs
    # Keras' convolutions have biases, which normalization makes superfluous.
    biases = sum(layer.filters for layer in keras.layers if getattr(layer, "use_bias", False))
    assert model.count_params() == keras.count_params() - biases


def test_trains_saves_and_is_analysed(tmp_path: Path) -> None:
    model = convert.resnet_from_torch(
        _narrow(), "backbone", offset_learning_rate_multiplier=0.1, name="backbone"
    )
    assert model.get_layer("conv5_block1_2_conv").offset_learning_rate_multiplier == 0.1
    images = tf.random.normal([1, 64, 64, 3])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert len(gradients) == 53 + 13 * 2 and all(g is not None for g in gradients)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    assert compare(model, loaded, input_size=(64, 64)).changes == ()


def test_older_names_of_mmdetection_and_first_blocks_that_are_plain() -> None:
    """`conv2_offset` beside conv2; and `fallback_on_stride`, no offsets where there is a stride."""
    state = {
        name.replace("conv2.conv_offset", "conv2_offset"): array
        for name, array in _narrow().items()
        if "0.conv2.conv_offset" not in name
    }
    model = convert.resnet_from_torch(state, "backbone")
    kinds = [type(model.get_layer(f"conv4_block{i}_2_conv")).__name__ for i in (1, 2, 3, 4, 5, 6)]
    assert kinds == ["Conv2D"] + ["DeformableConv2D"] * 5


def test_styles_differ_and_pad_alike() -> None:
    images = tf.random.normal([1, 70, 64, 3])
    outputs = [
        convert.resnet_from_torch(_narrow(), "backbone", style=style)(images)
        for style in ("pytorch", "caffe")
    ]
    assert outputs[0].shape == outputs[1].shape == [1, 3, 2, 256]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2


def test_last_stage_dilated() -> None:
    """Without offsets, every second pixel of the dilated network is one of the network's."""
    model = convert.resnet_from_torch(_narrow(), "backbone")
    for layer in model.layers:
        if isinstance(layer, DeformableConv2D):
            layer.offset_kernel.assign(tf.zeros_like(layer.offset_kernel))
            layer.offset_bias.assign(tf.zeros_like(layer.offset_bias))
    dilated = deformify(model, layers=None, dilate_last_stage=True)
    assert dilated.get_layer("conv5_block2_2_conv").padding == ((2, 2), (2, 2))
    images = tf.random.normal([1, 64, 96, 3])
    outputs = dilated(images)
    assert outputs.shape == [1, 4, 6, 256]
    np.testing.assert_allclose(outputs[:, ::2, ::2], model(images), atol=1e-5)


def _without(*parts: str, **more: np.ndarray) -> dict[str, np.ndarray]:
    state = {n: a for n, a in _narrow().items() if not any(part in n for part in parts)}
    return state | {f"backbone.{name}": array for name, array in more.items()}


def test_says_what_is_missing_wrong_and_left() -> None:
    state = _without(
        *("layer2.3.conv1.weight", "layer3.5.bn2.running_var", "layer4.1.conv2.conv_offset.bias"),
        **{"fc.weight": np.ones([5, 256]), "layer1.0.bn1.bias": np.ones([9], np.float32)},
    )
    with pytest.raises(ValueError) as raised:
        convert.resnet_from_torch(state, "backbone")
    assert str(raised.value) == (
        "resnet_from_torch: the weights are not those of a ResNet-50 'backbone'; nothing is loaded"
        "\n  missing: backbone.layer2.3.conv1.weight, backbone.layer3.5.bn2.running_var, "
        "backbone.layer4.1.conv2.conv_offset.bias"
        "\n  wrong: backbone.layer1.0.bn1.bias must have shape [8], got [9]"
        "\n  not used: backbone.fc.weight"
    )


def test_another_depth_is_not_taken_for_this_one() -> None:
    with pytest.raises(
        ValueError, match="missing: backbone.layer3.6.conv1.weight, backbone.layer3"
    ):
        convert.resnet_from_torch(_narrow(), "backbone", depth=101)
    deeper = {"layer3.6.conv1.weight": np.ones([32, 128, 1, 1], np.float32)}
    with pytest.raises(ValueError, match="not used: backbone.layer3.6.conv1.weight$"):
        convert.resnet_from_torch(_without(**deeper), "backbone")
    convert.resnet_from_torch(_without(**deeper), "backbone", ignore="layer3[.]6[.].*")


def test_a_lost_offset_convolution_is_not_taken_for_a_plain_block() -> None:
    with pytest.raises(ValueError, match="layer3.2.conv2 has no offset convolution, and others"):
        convert.resnet_from_torch(_without("layer3.2.conv2.conv_offset"), "backbone")


def test_another_network() -> None:
    with pytest.raises(
        ValueError,
        match=r"neither conv1.weight nor stem.conv1.weight\n.* begin with: backbone.bn, backbone",
    ):
        convert.resnet_from_torch(_narrow())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 18}, ValueError, "depth must be one of .50, 101, 152., got 18"),
        ({"style": "keras"}, ValueError, "style must be one of .* got 'keras'"),
        ({"strides": (1, 2, 2)}, ValueError, "strides must be four positive integers"),
        ({"dilations": (1, 1, 1, 0)}, ValueError, "dilations must be four positive integers"),
        ({"padding": 1}, TypeError, "padding is what the convolution has"),
        ({"modulate": True}, TypeError, "no argument 'modulate'; similar names: modulated"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert.resnet_from_torch(_narrow(), "backbone", **arguments)
