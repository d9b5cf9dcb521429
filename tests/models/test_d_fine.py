"""KerasHub's D-FINE computes the same with this package's attention."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles.deformable_attention import multi_scale_deformable_attention as oracle
from tf_deformable.models import accelerate_d_fine

SIZES = [(4, 5), (2, 3), (1, 2)]
POINTS = [3, 6, 1]
BATCH, QUERIES, HEADS, DEPTH = 2, 5, 3, 4


class Attention(tf.keras.layers.Layer):
    """Stands for KerasHub's layer: calls its attribute with KerasHub's arguments."""

    def __init__(self, method="default", shapes=SIZES):
        super().__init__()
        self.ms_deformable_attn_core = None
        self.method, self.shapes = method, shapes

    def call(self, inputs):
        value, locations, weights = inputs
        slices = [height * width for height, width in SIZES]
        return self.ms_deformable_attn_core(
            *(value, tf.constant(SIZES), locations, weights),
            *(POINTS, slices, self.shapes, len(SIZES), tf.shape(locations)[1], self.method),
        )


def arrays():
    random = np.random.default_rng(0)
    shape = [BATCH, QUERIES, HEADS, sum(POINTS)]
    pixels = sum(height * width for height, width in SIZES)
    return [
        random.normal(size=[BATCH, pixels, HEADS, DEPTH]).astype(np.float32),
        random.uniform(-0.3, 1.3, [*shape, 2]).astype(np.float32),  # (x, y)
        random.uniform(size=shape).astype(np.float32),
    ]


def expected(value, locations, weights, method):
    """Level by level: the operator's oracle has one number of points for all."""
    output, first, pixel = np.zeros([BATCH, QUERIES, HEADS * DEPTH]), 0, 0
    for (height, width), count in zip(SIZES, POINTS, strict=True):
        points = slice(first, first + count)
        at = locations[..., points, ::-1][:, :, :, None] * np.array([height, width])
        if method == "discrete":
            at = np.clip(np.floor(at + 0.5), 0, np.array([height, width]) - 1)
        else:
            at -= 0.5
        output += oracle(
            value[:, pixel : pixel + height * width],
            [(height, width)],
            at,
            weights[..., points][:, :, :, None],
            np.zeros(output.shape),
            coordinates="pixels",
        )["output"]
        first, pixel = first + count, pixel + height * width
    return output


@pytest.mark.parametrize("method", ["default", "discrete"])
@pytest.mark.parametrize("shapes", [SIZES, None, SIZES[:1]], ids=["constant", "tensor", "too few"])
def test_levels_with_points_of_their_own(method, shapes):
    layer = Attention(method, shapes)
    model = tf.keras.Sequential([layer])
    assert accelerate_d_fine(model) is model
    inputs = arrays()

    got = layer(inputs)

    np.testing.assert_allclose(got, expected(*inputs, method), atol=1e-5)
    graph = tf.function(layer)(inputs)
    np.testing.assert_allclose(graph, got, atol=1e-6)


@pytest.mark.parametrize("method", ["default", "discrete"])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_positions_in_half_precision_are_not_rounded_again(dtype, method):
    layer = accelerate_d_fine(Attention(method))
    narrow = [tf.cast(array, dtype) for array in arrays()]
    rounded = [tf.cast(tensor, tf.float32).numpy() for tensor in narrow]

    got = layer.ms_deformable_attn_core(
        *(narrow[0], tf.constant(SIZES), *narrow[1:]), POINTS, None, SIZES, len(SIZES), None, method
    )

    assert got.dtype == dtype
    want = expected(*rounded, method)
    eps = 2.0**-10 if dtype == tf.float16 else 2.0**-7
    np.testing.assert_allclose(tf.cast(got, tf.float32), want, rtol=eps, atol=1e-5)


def test_what_keras_has_traced_is_traced_anew():
    layer = Attention()
    inputs = [tf.keras.Input(array.shape[1:], batch_size=BATCH) for array in arrays()]
    layer.ms_deformable_attn_core = lambda value, *_: tf.zeros([BATCH, QUERIES, HEADS * DEPTH])
    model = tf.keras.Model(inputs, layer(inputs))
    assert not model.predict(arrays(), verbose=0).any()

    accelerate_d_fine(model)

    want = expected(*arrays(), "default")
    np.testing.assert_allclose(model.predict(arrays(), verbose=0), want, atol=1e-5)


def test_the_discrete_method_has_no_gradient_to_locations():
    layer = accelerate_d_fine(Attention("discrete"))
    inputs = [tf.constant(array) for array in arrays()]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(layer(inputs))
    by_value, by_locations, by_weights = tape.gradient(loss, inputs)
    assert by_locations is None
    assert np.abs(by_value).max() > 0 and np.abs(by_weights).max() > 0


def test_models_without_such_layers_are_refused():
    model = tf.keras.Sequential([tf.keras.layers.Dense(3)], name="plain")
    message = "accelerate_d_fine: model must hold layers of KerasHub's D-FINE"
    with pytest.raises(ValueError, match=re.escape(message) + ".*got 'plain', which has none"):
        accelerate_d_fine(model)
    with pytest.raises(TypeError, match="accelerate_d_fine: model must be a Keras model, got int"):
        accelerate_d_fine(3)


# --- The real one --------------------------------------------------------------------------------


def d_fine(method):
    """A small D-FINE whose weights are such that features stay near 1."""
    keras_hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    backbone = keras_hub.models.HGNetV2Backbone(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[
            [8, 8, 16, 1, 2, 3],
            [16, 8, 32, 1, 2, 3],
            [32, 16, 64, 1, 2, 5],
            [64, 32, 128, 1, 2, 5],
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 128],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=(None, None, 3),
        out_features=["stage2", "stage3", "stage4"],
    )
    model = keras_hub.models.DFineBackbone(
        backbone=backbone,
        decoder_in_channels=[32] * 3,
        encoder_hidden_dim=32,
        num_denoising=0,
        num_labels=5,
        hidden_dim=32,
        learn_initial_query=False,
        num_queries=20,
        anchor_image_size=(96, 64),
        feat_strides=[8, 16, 32],
        num_feature_levels=3,
        encoder_in_channels=[32, 64, 128],
        encode_proj_layers=[2],
        num_attention_heads=4,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.34,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        decoder_method=method,
        decoder_n_points=[3, 6, 3],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        out_features=["stage2", "stage3", "stage4"],
        image_shape=(None, None, 3),
        seed=0,
    )
    random = np.random.default_rng(1)
    for weight in model.weights:
        if weight.dtype == "float32" and len(weight.shape) >= 2 and "embedding" not in weight.path:
            inputs = weight.shape[0] if "encoder_attn" in weight.path else weight.shape[:-1]
            weight.assign(weight + random.normal(size=weight.shape) / np.sqrt(np.prod(inputs)))
    return model


@pytest.mark.parametrize("method", ["default", "discrete"])
def test_the_models_outputs_and_gradients_stay(method, is_keras_3):
    if not is_keras_3:
        pytest.skip("KerasHub needs Keras 3")
    model = d_fine(method)
    images = np.random.default_rng(2).uniform(size=[2, 96, 64, 3]).astype(np.float32)
    named = ("last_hidden_state", "intermediate_logits", "intermediate_predicted_corners")

    def step():
        with tf.GradientTape() as tape:
            outputs = model(images, training=False)
            loss = sum(tf.reduce_sum(outputs[name] ** 2) for name in named)
        gradients = tape.gradient(loss, model.trainable_weights)
        return outputs, [None if g is None else np.array(g) for g in gradients]

    outputs, gradients = step()
    predicted = model.predict(images, verbose=0)
    assert accelerate_d_fine(model) is model
    our_outputs, our_gradients = step()

    assert np.abs(outputs["encoder_last_hidden_state"]).max() > 0.1
    for name in named:
        np.testing.assert_allclose(our_outputs[name], outputs[name], atol=1e-4)
    again = model.predict(images, verbose=0)
    np.testing.assert_allclose(again[named[0]], predicted[named[0]], atol=1e-4)
    attention = 0
    for weight, ours, theirs in zip(model.trainable_weights, our_gradients, gradients, strict=True):
        assert (ours is None) == (theirs is None), weight.path
        if theirs is not None:
            # Biases of keys have no gradient but rounding.
            tolerance = 1e-4 * np.abs(theirs).max() + 1e-3
            np.testing.assert_allclose(ours, theirs, atol=tolerance, err_msg=weight.path)
            attention += "encoder_attn" in weight.path and np.abs(theirs).max() > 0.1
    assert attention == (8 if method == "default" else 4)
