"""KerasHub's networks made deformable: small ones of random weights. Skipped without keras-hub."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import analysis
from tf_deformable.layers import DeformableConv2D
from tf_deformable.models import compare, deeplab, deformify, detector
from tf_deformable.models.surgery.select import output_stride

if not hasattr(tf.keras, "ops"):
    pytest.skip("KerasHub is for Keras 3", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # KerasHub's own
keras_hub = pytest.importorskip("keras_hub")
hub = keras_hub.models

IMAGES = {"image_shape": (64, 64, 3)}


def resnet(**arguments):
    return hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        **{**IMAGES, **arguments},
    )


def mobilenet():
    return hub.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144], [72]],
        stackwise_num_blocks=[2, 2, 1],
        stackwise_num_filters=[[16, 16], [24, 24], [24]],
        stackwise_kernel_size=[[3, 3], [5, 5], [5]],
        stackwise_num_strides=[[2, 1], [2, 1], [1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25], [0.3]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2], [2]],
        output_num_filters=32,
        input_num_filters=16,
        input_activation="hard_swish",
        output_activation="hard_swish",
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=8,
        squeeze_and_excite=0.5,
        **IMAGES,
    )


def efficientnet():
    return hub.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1] * 3,
        stackwise_input_filters=[8, 8, 16],
        stackwise_output_filters=[8, 16, 24],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_strides=[1, 2, 2],
        stackwise_squeeze_and_excite_ratios=[0.25] * 3,
        stackwise_block_types=["v1", "unfused", "fused"],
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        **IMAGES,
    )


def densenet():
    return hub.DenseNetBackbone([2, 2, 2], growth_rate=8, **IMAGES)


def cspnet():
    return hub.CSPNetBackbone(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=1,
        stem_padding="same",
        stackwise_depth=[1, 1, 1],
        stackwise_strides=[1, 2, 2],
        stackwise_num_filters=[8, 16, 32],
        block_type="dark_block",
        stage_type="dark",
        **IMAGES,
    )


def mit():
    return hub.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[16, 32],
        **IMAGES,
    )


def vitdet():
    return hub.ViTDetBackbone(
        hidden_size=16,
        num_layers=2,
        intermediate_dim=32,
        num_heads=2,
        global_attention_layer_indices=[1],
        patch_size=16,
        num_output_channels=8,
        window_size=2,
        **IMAGES,
    )


def hgnetv2():
    return hub.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[16, 32],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=[[8, 8, 16, 1, 2, 3], [16, 8, 32, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        **IMAGES,
    )


def deeplab_v3():
    return hub.DeepLabV3Backbone(
        image_encoder=resnet(),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        dilation_rates=[6, 12],
        upsampling_size=4,
        **IMAGES,
    )


def retinanet():
    return hub.RetinaNetBackbone(
        image_encoder=resnet(), min_level=3, max_level=5, use_p5=False, **IMAGES
    )


# Network, the convolutions that "conv5" chooses.
NETWORKS = {
    "ResNet": (resnet, ["stack3_block0_2_conv"]),
    "MobileNet": (mobilenet, None),
    "EfficientNet": (efficientnet, ["block3a_expand_conv"]),
    "DenseNet": (densenet, ["stack3_block1_2_conv", "stack3_block2_2_conv"]),
    "CSPNet": (cspnet, ["stage_2_block_0_dark_block_conv_2"]),
    "MiT": (mit, None),
    "VGG": (lambda: hub.VGGBackbone([1, 1, 1], [8, 16, 16], **IMAGES), ["block3_conv1"]),
    "Xception": (
        lambda: hub.XceptionBackbone([[8, 8], [16, 16]], [True, True], **IMAGES),
        ["block2_sepconv1_depthwise", "block2_sepconv2_depthwise"],
    ),
    "ViTDet": (vitdet, None),
    "HGNetV2": (hgnetv2, None),
    "SegFormer": (lambda: hub.SegFormerBackbone(mit(), projection_filters=16), None),
    "DeepLabV3": (deeplab_v3, ["stack3_block0_2_conv"]),
    "DeepLabV3ImageSegmenter": (
        lambda: hub.DeepLabV3ImageSegmenter(deeplab_v3(), num_classes=3),
        ["stack3_block0_2_conv"],
    ),
    "RetinaNet": (retinanet, ["stack3_block0_2_conv", "output_conv_P5"]),
    "RetinaNetObjectDetector": (
        lambda: hub.RetinaNetObjectDetector(retinanet(), num_classes=3),
        ["output_conv_P5", "stack3_block0_2_conv"],
    ),
    "ImageClassifier": (
        lambda: hub.ImageClassifier(resnet(), num_classes=5),
        ["stack3_block0_2_conv"],
    ),
}


def images():
    return np.random.default_rng(0).uniform(size=[2, 64, 64, 3]).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_they_did(name):
    build, chosen = NETWORKS[name]
    model = build()
    copy = deformify(model)
    assert type(copy) is type(tf.keras.Model(model.inputs, model.outputs))
    layers = copy._flatten_layers(include_self=False, recursive=True)
    found = [layer.name for layer in layers if isinstance(layer, DeformableConv2D)]
    assert found and (chosen is None or found == chosen)
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    assert copy.output_names == model.output_names
    expected, got = model(images()), copy(images())
    tf.nest.assert_same_structure(expected, got)
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(got), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    pyramid = getattr(model, "pyramid_outputs", {})
    assert list(getattr(copy, "pyramid_outputs", {})) == list(pyramid)
    changes = compare(model, copy).changes
    assert len(changes) == len(found)
    assert {row.name for row in analysis.offset_report(copy, images()).layers} >= set(found)


def test_pyramid_is_that_of_the_network():
    model = resnet()
    copy = deformify(model)
    expected, got = (
        tf.keras.Model(each.input, dict(each.pyramid_outputs))(images()) for each in (model, copy)
    )
    for name in ("P2", "P3", "P4", "P5"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4)
    # KerasHub's own networks take the copy for a backbone.
    feature_pyramid = hub.RetinaNetBackbone(
        image_encoder=copy, min_level=3, max_level=5, use_p5=False, **IMAGES
    )
    assert list(feature_pyramid(images())) == ["P3", "P4", "P5"]


def test_all_that_the_copy_has_learned_is_in_its_file(tmp_path):
    copy = deformify(mobilenet())
    copy.save(tmp_path / "copy.keras")
    loaded = tf.keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_allclose(loaded(images()), copy(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level, stride", [(None, 32), ("P4", 16), ("P2", 4)])
def test_detector(level, stride):
    # Without "conv5" of its own the stem of P2 is what is on its coarsest maps.
    model = detector(
        resnet(image_shape=(None, None, 3)), 2, "rpn", deformable=True, level=level, rpn_units=8
    )
    assert model.stride == stride == output_stride(model.backbone)
    assert any(isinstance(layer, DeformableConv2D) for layer in model.backbone.layers)
    model.compile("sgd")
    targets = {"boxes": np.array([[[8.0, 8, 40, 40]]] * 2), "labels": np.array([[0], [1]])}
    history = model.fit(images(), targets, verbose=0).history
    assert np.isfinite(history["loss"][-1])


def test_detector_on_the_feature_pyramid_of_a_retinanet():
    assert detector(retinanet(), 2, "rpn", level="P3").stride == 8
    assert detector(retinanet(), 2, "rpn").stride == 32
    with pytest.raises(ValueError, match=r"there are 'P3' \(stride 8\), 'P4' \(stride 16\)"):
        detector(retinanet(), 2, "rpn", level="P2")


def test_detector_on_several_maps():
    targets = {"boxes": np.array([[[8.0, 8, 40, 40]]] * 2), "labels": np.array([[0], [1]])}
    small = {"rpn_units": 8, "proposals": 8, "head_arguments": {"bins": 2, "units": (8,)}}
    plain = resnet(image_shape=(None, None, 3))
    model = detector(plain, 2, pyramid=("P5", "P3", "P2"), channels=8, deformable=True, **small)
    assert model.stride == (4, 8, 32)
    assert isinstance(model.backbone.get_layer("stack3_block0_2_conv"), DeformableConv2D)
    features = detector(retinanet(), 2, pyramid=("P3", "P4", "P5"), **small)
    assert features.stride == (8, 16, 32) and len(features.backbone.outputs) == 3
    for each in (model, features):
        each.compile("sgd")
        assert np.isfinite(each.fit(images(), targets, verbose=0).history["loss"][-1])
    with pytest.raises(ValueError, match="level must be one of the maps .* got 'P9'"):
        detector(plain, 2, pyramid=("P3", "P9"))


def test_deeplab_with_a_dilated_last_stage():
    model = deeplab(resnet(), 3, deformable=True, dilate_last_stage=True)
    assert model(images()).shape == (2, 64, 64, 3)
    assert model.get_layer("stack3_block0_2_conv").dilation_rate == (2, 2)


def test_a_network_without_convolutions_to_reach_says_so():
    model = hub.ViTBackbone(
        patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, **IMAGES
    )
    with pytest.raises(ValueError, match="no convolution .* there are: .*patching"):
        deformify(model)
