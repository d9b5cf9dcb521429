"""Offsets that do not come from the layer's own inputs: other features, given ones, a flow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import DeformableConv2D, analysis

GEOMETRY = {"strides": 2, "padding": "same", "offset_groups": 2}
TAPS = 2 * 9


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


INPUTS = normal(2, 9, 10, 4)
OTHERS = normal(2, 9, 10, 3, seed=1)
OFFSETS = 2 * normal(2, 5, 5, 2 * TAPS, seed=2)
MASK = normal(2, 5, 5, TAPS, seed=3)
FLOW = 3 * normal(2, 5, 5, 2, seed=4)


def convolved(layer, offsets, mask=None):
    return tf_deformable.deformable_conv2d(
        INPUTS, layer.kernel.numpy(), offsets, mask, bias=layer.bias.numpy(), strides=2
    )


def branch(layer, features):
    kernel, bias = layer.offset_kernel.numpy(), layer.offset_bias.numpy()
    return tf.nn.conv2d(features, kernel, 2, "SAME") + bias


def deformed(**arguments):
    return DeformableConv2D(
        6,
        3,
        **GEOMETRY,
        bias_initializer="random_normal",
        offset_kernel_initializer="random_normal",
        offset_bias_initializer="random_normal",
        **arguments,
    )


# --- Numbers -------------------------------------------------------------------------------------


def test_the_branch_reads_other_features():
    layer = deformed(offset_source="features")
    outputs = layer([INPUTS, OTHERS])
    assert layer.offset_kernel.shape == (3, 3, 3, 2 * TAPS)
    np.testing.assert_allclose(outputs, convolved(layer, branch(layer, OTHERS)), atol=1e-4)


def test_the_branch_of_a_modulated_layer_reads_other_features():
    layer = deformed(offset_source="features", modulated=True)
    outputs = layer([INPUTS, OTHERS])
    offsets, logits = tf.split(branch(layer, OTHERS), [2 * TAPS, TAPS], axis=-1)
    expected = convolved(layer, offsets, tf.sigmoid(logits))
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


def test_given_offsets_are_used_as_they_are():
    layer = DeformableConv2D(6, 3, **GEOMETRY, offset_source="given")
    outputs = layer([INPUTS, OFFSETS])
    assert [w.shape for w in layer.get_weights()] == [(3, 3, 4, 6), (6,)]
    np.testing.assert_allclose(outputs, convolved(layer, OFFSETS), atol=1e-4)


def test_given_offsets_and_mask_are_used_as_they_are():
    layer = DeformableConv2D(6, 3, **GEOMETRY, offset_source="given", modulated=True)
    outputs = layer([INPUTS, OFFSETS, MASK])
    np.testing.assert_allclose(outputs, convolved(layer, OFFSETS, MASK), atol=1e-4)


def test_a_flow_is_added_to_every_tap():
    layer = deformed(adds_flow=True)
    outputs = layer([INPUTS, FLOW])
    offsets = branch(layer, INPUTS) + np.tile(FLOW, [1, 1, 1, TAPS])
    np.testing.assert_allclose(outputs, convolved(layer, offsets), atol=1e-4)


def test_offsets_are_limited_before_the_flow_is_added():
    layer = deformed(offset_source="features", adds_flow=True, max_offset=0.25)
    layer([INPUTS, OTHERS, FLOW])
    offsets, _ = layer.compute_offsets([INPUTS, OTHERS, FLOW])
    residual = offsets - np.tile(FLOW, [1, 1, 1, TAPS])
    expected = 0.25 * np.tanh(branch(layer, OTHERS))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(residual, expected, atol=1e-5)


def test_a_constant_flow_shifts_the_inputs():
    layer = DeformableConv2D(5, 3, padding="same", adds_flow=True)
    flow = np.broadcast_to(np.float32([2, -1]), [2, 9, 10, 2])
    outputs = layer([INPUTS, flow])
    shifted = np.zeros_like(INPUTS)
    shifted[:, :-2, 1:] = INPUTS[:, 2:, :-1]
    inside = (slice(None), slice(1, -4), slice(3, -1))
    expected = tf.nn.conv2d(shifted, layer.kernel.numpy(), 1, "SAME")
    np.testing.assert_allclose(outputs[inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_given_offsets_stay_float32_in_half_precision(policy):
    """A sample at 33 1/8 of a ramp of eighths would read another value if it were rounded."""
    layer = DeformableConv2D(1, 1, offset_source="given", kernel_initializer="ones", dtype=policy)
    ramp = np.arange(64, dtype=np.float32)[None, None, :, None] / 8
    offsets = np.zeros([1, 1, 64, 2], np.float32)
    offsets[..., 1] = 33.125 - np.arange(64)
    got = np.asarray(tf.cast(layer([ramp, offsets]), tf.float32))
    expected = np.float32(tf.cast(33.125 / 8, layer.compute_dtype))
    np.testing.assert_array_equal(got, np.full_like(got, expected))


# --- As a Keras layer ----------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_trains_saves_and_loads(data_format, tmp_path):
    def arranged(array):
        return array.transpose(0, 3, 1, 2) if data_format == "channels_first" else array

    arrays = [arranged(a) for a in (INPUTS, OTHERS, FLOW)]
    inputs = [tf.keras.Input(a.shape[1:]) for a in arrays]
    layer = deformed(
        offset_source="features", adds_flow=True, max_offset=4, modulated=True,
        data_format=data_format, name="align",
    )  # fmt: skip
    model = tf.keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *arranged(np.zeros([1, 5, 5, 6])).shape[1:])
    model.compile("sgd", "mse")
    before = model.get_weights()
    model.fit(arrays, np.zeros([2, *model.output_shape[1:]], np.float32), verbose=0)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, model.get_weights(), strict=True))

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(arrays, verbose=0), model.predict(arrays, verbose=0))


def test_all_ways_to_call():
    layer = deformed(offset_source="features", adds_flow=True)
    expected = layer([INPUTS, OTHERS, FLOW])
    named = {"flow": FLOW, "offset_features": OTHERS, "inputs": INPUTS}
    for outputs in (
        layer(INPUTS, OTHERS, FLOW),
        layer((INPUTS, OTHERS, FLOW)),
        layer(named),
        layer(INPUTS, offset_features=OTHERS, flow=FLOW),
        layer([INPUTS, OTHERS, FLOW], training=True),
    ):
        np.testing.assert_array_equal(outputs, expected)


def test_unknown_sizes():
    inputs = [tf.keras.Input((None, None, c)) for c in (4, 3, 2)]
    layer = deformed(offset_source="features", adds_flow=True)
    model = tf.keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 6)
    got = model([INPUTS, OTHERS, FLOW])
    np.testing.assert_allclose(got, layer([INPUTS, OTHERS, FLOW]), atol=1e-5)


def test_analysis_sees_where_it_samples():
    inputs = [tf.keras.Input((9, 10, c)) for c in (4, 3)]
    flow = tf.keras.Input((5, 5, 2))
    layer = deformed(offset_source="features", adds_flow=True, name="align")
    model = tf.keras.Model([*inputs, flow], layer([*inputs, flow]))
    report = analysis.offset_report(model, [INPUTS, OTHERS, FLOW])
    (row,) = report.layers
    offsets, _ = layer.compute_offsets([INPUTS, OTHERS, FLOW])
    lengths = np.hypot(offsets[..., ::2], offsets[..., 1::2])
    assert row.name == "align"
    np.testing.assert_allclose([row.mean, row.maximum], [lengths.mean(), lengths.max()], rtol=1e-4)


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset_source": "flow"}, "offset_source must be 'inputs', 'features' or 'given', got"),
        ({"offset_source": None}, "offset_source must be 'inputs', 'features' or 'given', got"),
        ({"adds_flow": 1}, "adds_flow must be True or False, got 1"),
        ({"max_offset": 0}, "max_offset must be a finite number above 0, got 0"),
        ({"max_offset": np.inf}, "max_offset must be a finite number above 0, got inf"),
        ({"max_offset": 1, "offset_source": "given"}, "max_offset must be None with offset_source"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"DeformableConv2D: {message}"):
        DeformableConv2D(4, 3, **arguments)


@pytest.mark.parametrize(
    ("arguments", "inputs", "message"),
    [
        ({"offset_source": "features"}, INPUTS, r"must be \[inputs, offset_features\]|2 input"),
        ({"offset_source": "features"}, [INPUTS], r"must be \[inputs, offset_features\]|2 input"),
        ({}, [INPUTS, OTHERS], r"expects 1 input"),
        ({"offset_source": "given"}, [INPUTS, OFFSETS, MASK], "2 input|must be"),
        (
            {"offset_source": "features"},
            [INPUTS, OTHERS[:, 1:]],
            r"offset_features must have shape \(2, 9, 10, None\) beside inputs of shape "
            r"\(2, 9, 10, 4\), got \(2, 8, 10, 3\)",
        ),
        (
            {"offset_source": "given"},
            [INPUTS, OFFSETS[..., 1:]],
            r"offsets must have shape \(2, 5, 5, 36\) beside inputs",
        ),
        (
            {"offset_source": "given", "modulated": True},
            [INPUTS, OFFSETS, MASK[:, :, 1:]],
            r"mask must have shape \(2, 5, 5, 18\) beside inputs",
        ),
        ({"adds_flow": True}, [INPUTS, OFFSETS], r"flow must have shape \(2, 5, 5, 2\) beside"),
        ({"adds_flow": True}, {"inputs": INPUTS}, r"must have the keys \['inputs', 'flow'\], got"),
    ],
)
def test_what_it_is_called_with(arguments, inputs, message):
    with pytest.raises(ValueError, match=message):
        DeformableConv2D(6, 3, **GEOMETRY, **arguments)(inputs)
