"""What `DeformableConv2D` computes, how it is built, and what it refuses."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import _native, config
from tf_deformable.layers import DeformableConv2D


def tap_channels(layer):
    return layer.offset_groups * layer.kernel_size[0] * layer.kernel_size[1]


def move_all_taps(layer, y, x):
    """Lets every tap of every pixel sample (y, x) pixels from its place."""
    taps = tap_channels(layer)
    bias = layer.offset_bias.numpy()
    bias[: 2 * taps] = np.tile([y, x], taps)
    layer.offset_bias.assign(bias)


def randomize(layer, scale=1.0):
    """Gives the weights of the offset branch values that deform."""
    for weight in (layer.offset_kernel, layer.offset_bias):
        weight.assign(tf.random.normal(weight.shape, stddev=scale, dtype=weight.dtype))


# --- In place of a Conv2D ------------------------------------------------------------------------


def test_takes_every_argument_of_conv2d_with_its_default():
    conv = inspect.signature(tf.keras.layers.Conv2D.__init__).parameters
    ours = inspect.signature(DeformableConv2D.__init__).parameters
    assert list(conv) == [name for name in ours if name in conv]
    for name, parameter in conv.items():
        default = parameter.default
        assert ours[name].default == (1 if default == (1, 1) else default), name


def test_is_the_packages_public_name():
    assert tf_deformable.DeformableConv2D is DeformableConv2D


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "strides": (2, 1), "padding": "same"},
        {"kernel_size": 3, "dilation_rate": (1, 2), "padding": "SAME", "use_bias": False},
        {"kernel_size": 4, "strides": 3, "activation": "relu"},
        {"kernel_size": 1, "offset_groups": 2},
        {"kernel_size": (1, 5), "padding": "same", "modulated": True, "mask_initial_value": 1.0},
    ],
)
def test_untrained_layer_equals_conv2d(arguments):
    inputs = tf.random.normal([2, 9, 12, 4])
    layer = DeformableConv2D(6, bias_initializer="ones", **arguments)
    outputs = layer(inputs)
    shared = inspect.signature(tf.keras.layers.Conv2D.__init__).parameters
    conv = tf.keras.layers.Conv2D(6, **{k: v for k, v in arguments.items() if k in shared})
    conv.build(inputs.shape)
    conv.set_weights(layer.get_weights()[: len(conv.weights)])
    np.testing.assert_allclose(outputs, conv(inputs), atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "dilation_rate"), [(2, 2), ((2, 3), (3, 2)), ((1, 2), (2, 1))])
def test_strides_and_dilation_together(padding, strides, dilation_rate):
    inputs = tf.random.normal([2, 11, 12, 3])
    layer = DeformableConv2D(
        4, 3, strides, padding, dilation_rate=dilation_rate, bias_initializer="ones"
    )
    outputs = layer(inputs)
    expected = 1 + tf.nn.conv2d(
        inputs, layer.kernel.numpy(), strides, padding.upper(), dilations=dilation_rate
    )
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_groups_see_their_own_channels():
    inputs = tf.random.normal([2, 7, 7, 6])
    layer = DeformableConv2D(4, 3, groups=2)
    outputs = layer(inputs)
    assert layer.kernel.shape == (3, 3, 3, 4)
    for group in range(2):
        expected = tf.nn.conv2d(
            inputs[..., 3 * group : 3 * group + 3],
            layer.kernel.numpy()[..., 2 * group : 2 * group + 2],
            1,
            "VALID",
        )
        np.testing.assert_allclose(outputs[..., 2 * group : 2 * group + 2], expected, atol=1e-5)


def test_mask_of_an_untrained_layer_is_one_half_as_in_the_paper():
    inputs = tf.random.normal([2, 6, 6, 3])
    layer = DeformableConv2D(4, 3, modulated=True, bias_initializer="ones")
    outputs = layer(inputs)
    expected = 0.5 * tf.nn.conv2d(inputs, layer.kernel.numpy(), 1, "VALID") + 1
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


# --- Offsets and mask ----------------------------------------------------------------------------


def test_constant_offset_equals_conv2d_of_the_shifted_input():
    inputs = tf.random.normal([2, 8, 9, 3])
    layer = DeformableConv2D(4, 3)
    layer.build(inputs.shape)
    move_all_taps(layer, 2, -1)
    shifted = tf.pad(inputs, [[0, 0], [0, 2], [1, 0], [0, 0]])[:, 2:, :-1]
    expected = tf.nn.conv2d(shifted, layer.kernel.numpy(), 1, "VALID")
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-5)


def test_offset_groups_move_their_own_channels():
    inputs = tf.random.normal([1, 6, 6, 4])
    layer = DeformableConv2D(4, 1, offset_groups=2, kernel_initializer="ones")
    layer.build(inputs.shape)
    layer.offset_bias.assign([0.0, 0.0, 1.0, 0.0])  # The second group reads one row below.
    below = tf.pad(inputs, [[0, 0], [0, 1], [0, 0], [0, 0]])[:, 1:]
    expected = tf.reduce_sum(inputs[..., :2] + below[..., 2:], axis=-1, keepdims=True)
    np.testing.assert_allclose(layer(inputs), tf.repeat(expected, 4, axis=-1), atol=1e-5)


def test_offset_branch_is_a_convolution_with_the_layers_geometry():
    inputs = tf.random.normal([2, 11, 12, 4])
    layer = DeformableConv2D(
        6, (3, 2), (2, 1), "same", dilation_rate=(1, 2), offset_groups=2, modulated=True
    )
    layer.build(inputs.shape)
    randomize(layer)
    offsets, mask = layer.compute_offsets(inputs)
    branch = layer.offset_bias.numpy() + tf.nn.conv2d(
        inputs, layer.offset_kernel.numpy(), (2, 1), "SAME", dilations=(1, 2)
    )
    assert branch.shape[-1] == 3 * 2 * 3 * 2
    np.testing.assert_allclose(offsets, branch[..., :24], atol=1e-5)
    np.testing.assert_allclose(mask, tf.sigmoid(branch[..., 24:]), atol=1e-6)


def test_mask_logits_are_the_last_channels_and_span_zero_to_twice_the_initial_value():
    inputs = tf.random.normal([1, 4, 4, 2])
    for initial_value in (0.5, 1.0):
        layer = DeformableConv2D(3, 1, modulated=True, mask_initial_value=initial_value)
        layer.build(inputs.shape)
        plain = tf.nn.conv2d(inputs, layer.kernel.numpy(), 1, "VALID")
        for logit, mask in ((-100.0, 0.0), (0.0, initial_value), (100.0, 2 * initial_value)):
            layer.offset_bias.assign([0.0, 0.0, logit])
            np.testing.assert_allclose(layer(inputs), mask * plain, atol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_are_what_the_functional_operator_takes(data_format, modulated):
    layer = DeformableConv2D(
        4, 3, 2, "same", data_format, modulated=modulated, use_bias=False, offset_groups=3
    )
    inputs = tf.random.normal([2, 9, 8, 3] if data_format == "channels_last" else [2, 3, 9, 8])
    layer.build(inputs.shape)
    randomize(layer)
    offsets, mask = layer.compute_offsets(inputs)
    assert (mask is not None) == modulated
    expected = tf_deformable.deformable_conv2d(
        inputs,
        layer.kernel.numpy(),
        offsets,
        mask,
        strides=2,
        data_format="NHWC" if data_format == "channels_last" else "NCHW",
    )
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-6)


def test_channels_first_is_channels_last_transposed():
    inputs = tf.random.normal([2, 9, 8, 3])
    arguments = {"strides": (2, 1), "modulated": True, "activation": "tanh"}
    last = DeformableConv2D(4, 3, data_format="channels_last", **arguments)
    last.build(inputs.shape)
    randomize(last)
    first = DeformableConv2D(4, 3, data_format="channels_first", **arguments)
    first.build([2, 3, 9, 8])
    first.set_weights(last.get_weights())
    outputs = first(tf.transpose(inputs, [0, 3, 1, 2]))
    assert outputs.shape == first.compute_output_shape((2, 3, 9, 8)) == (2, 4, 4, 6)
    np.testing.assert_allclose(outputs, tf.transpose(last(inputs), [0, 3, 1, 2]), atol=1e-6)
    np.testing.assert_array_equal(
        first.sampling_positions(tf.transpose(inputs, [0, 3, 1, 2])),
        last.sampling_positions(inputs),
    )


def test_sampling_positions_are_the_grid_plus_the_offsets():
    layer = DeformableConv2D(2, 3, strides=2, padding="same", offset_groups=2)
    inputs = tf.random.normal([1, 4, 5, 2])
    layer.build(inputs.shape)
    move_all_taps(layer, 0.5, -0.25)
    positions = layer.sampling_positions(inputs)
    assert positions.shape == (1, 2, 3, 2, 3, 3, 2)
    # 4 rows: one row of padding, below. 5 columns: one column on either side.
    for group in range(2):
        np.testing.assert_allclose(positions[0, 0, 0, group, 0, 0], [0 + 0.5, -1 - 0.25])
        np.testing.assert_allclose(positions[0, 1, 2, group, 2, 1], [4 + 0.5, 4 - 0.25])


def test_offsets_inside_a_model_are_read_from_the_features_before_the_layer():
    model = tf.keras.Sequential(
        [
            tf.keras.Input((None, None, 3)),
            tf.keras.layers.Conv2D(4, 3, strides=2),
            DeformableConv2D(5, 3, modulated=True),
        ]
    )
    layer = model.layers[1]
    features = tf.keras.Model(model.inputs, layer.input)(tf.random.normal([2, 15, 11, 3]))
    offsets, mask = layer.compute_offsets(features)
    assert offsets.shape == (2, 5, 3, 18)
    assert mask.shape == (2, 5, 3, 9)
    assert layer.sampling_positions(features).shape == (2, 5, 3, 1, 3, 3, 2)


def test_offsets_before_the_layer_is_built():
    layer = DeformableConv2D(2, 3)
    for method in (layer.compute_offsets, layer.sampling_positions):
        with pytest.raises(ValueError, match="must be built"):
            method(tf.zeros([1, 5, 5, 2]))


# --- Shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "dilation_rate"), [(1, 1), ((3, 2), (1, 2))])
def test_compute_output_shape(data_format, padding, strides, dilation_rate, is_keras_3):
    layer = DeformableConv2D(4, (3, 2), strides, padding, data_format, dilation_rate)
    shape = (2, 9, 8, 3) if data_format == "channels_last" else (2, 3, 9, 8)
    inferred = layer.compute_output_shape(shape)
    assert isinstance(inferred, tuple if is_keras_3 else tf.TensorShape)
    assert tuple(inferred) == layer(tf.zeros(shape)).shape

    unknown = (None, None, None, 3) if data_format == "channels_last" else (None, 3, None, None)
    expected = (None, None, None, 4) if data_format == "channels_last" else (None, 4, None, None)
    assert tuple(layer.compute_output_shape(unknown)) == expected


def test_one_model_for_all_batch_and_image_sizes():
    model = tf.keras.Sequential(
        [tf.keras.Input((None, None, 3)), DeformableConv2D(4, 3, 2, dilation_rate=2)]
    )
    assert tuple(model.output_shape) == (None, None, None, 4)
    randomize(model.layers[0])
    for shape in ([1, 9, 8, 3], [3, 12, 7, 3]):
        inputs = tf.random.normal(shape)
        np.testing.assert_allclose(
            model.predict(inputs, verbose=0), model.layers[0](inputs), atol=1e-5
        )


def test_function_traced_with_unknown_shapes():
    layer = DeformableConv2D(4, 3, 2, "same", dilation_rate=(3, 2), modulated=True)
    layer.build((None, None, None, 3))
    randomize(layer)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
    def graph(inputs):
        return layer(inputs), layer.sampling_positions(inputs)

    inputs = tf.random.normal([2, 9, 8, 3])
    outputs, positions = graph(inputs)
    np.testing.assert_allclose(outputs, layer(inputs), atol=1e-5)
    np.testing.assert_allclose(positions, layer.sampling_positions(inputs), atol=1e-5)


def test_empty_batch():
    assert DeformableConv2D(4, 3)(tf.zeros([0, 9, 8, 3])).shape == (0, 7, 6, 4)


# --- Dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "variables", "tolerance"),
    [
        ("float64", "float64", 1e-12),
        ("float32", "float32", 1e-5),
        ("mixed_float16", "float32", 1e-2),
        ("mixed_bfloat16", "float32", 8e-2),
        ("float16", "float16", 1e-2),
    ],
)
def test_dtype_policies(policy, variables, tolerance):
    inputs = np.random.default_rng(0).uniform(size=[2, 7, 7, 3])
    arguments = {"modulated": True, "offset_bias_initializer": tf.keras.initializers.Constant(0.5)}
    exact = DeformableConv2D(4, 3, dtype="float64", **arguments)
    expected = exact(inputs)
    layer = DeformableConv2D(4, 3, dtype=policy, **arguments)
    layer.build(inputs.shape)
    layer.set_weights([weight.astype(variables) for weight in exact.get_weights()])
    outputs = layer(inputs)
    compute_dtype = policy.removeprefix("mixed_")
    assert outputs.dtype == compute_dtype
    assert {tf.as_dtype(weight.dtype).name for weight in layer.weights} == {variables}
    np.testing.assert_allclose(tf.cast(outputs, tf.float64), expected, atol=tolerance)
    offsets, mask = layer.compute_offsets(inputs)
    of_positions = "float64" if policy == "float64" else "float32"
    assert offsets.dtype == mask.dtype == layer.sampling_positions(inputs).dtype == of_positions


def test_integer_images_are_cast():
    images = np.random.default_rng(0).integers(0, 255, [2, 7, 7, 3], dtype=np.uint8)
    layer = DeformableConv2D(4, 3)
    np.testing.assert_allclose(layer(images), layer(images.astype(np.float32)))


# --- In models -----------------------------------------------------------------------------------


def test_functional_and_subclassed_models():
    inputs = tf.keras.Input((None, None, 3))
    outputs = DeformableConv2D(4, 3, padding="same")(inputs)
    functional = tf.keras.Model(inputs, tf.keras.layers.concatenate([inputs, outputs]))
    assert functional(tf.zeros([2, 5, 6, 3])).shape == (2, 5, 6, 7)

    class Subclassed(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = DeformableConv2D(4, 3, modulated=True)

        def call(self, inputs):
            return tf.reduce_mean(self.layer(inputs), axis=[1, 2])

    subclassed = Subclassed()
    assert subclassed(tf.zeros([2, 5, 6, 3])).shape == (2, 4)
    assert len(subclassed.trainable_weights) == 4


def test_time_distributed():
    layer = tf.keras.layers.TimeDistributed(DeformableConv2D(4, 3))
    model = tf.keras.Sequential([tf.keras.Input((5, 8, 9, 2)), layer])
    assert tuple(model.output_shape) == (None, 5, 6, 7, 4)
    assert model(tf.zeros([2, 5, 8, 9, 2])).shape == (2, 5, 6, 7, 4)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_layer_says_whether_xla_compiles_it(backend):
    layer = DeformableConv2D(4, 3)
    with tf_deformable.config.use_backend(backend):
        compiled = tf.function(layer, jit_compile=True)
        if layer.supports_jit:
            inputs = tf.ones([1, 5, 5, 2])
            np.testing.assert_allclose(compiled(inputs), layer(inputs), rtol=1e-5, atol=1e-6)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match="No registered"):
                compiled(tf.ones([1, 5, 5, 2]))
        assert layer.supports_jit is (backend == "reference" or config.build_info()["xla"])
        layer.supports_jit = False
        assert layer.supports_jit is False


def test_on_a_gpu_xla_wants_the_cuda_kernels(monkeypatch):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [f"the {kind}"])
    info = config.build_info()
    assert DeformableConv2D(4, 3).supports_jit is (info["xla"] and info["cuda"] is not None)


def test_without_a_library_nothing_is_for_xla(monkeypatch):
    def load():
        raise tf_deformable.NativeLibraryError("none")

    monkeypatch.setattr(_native, "load", load)
    assert DeformableConv2D(4, 3).supports_jit is False


def test_keras_on_another_backend(monkeypatch):
    monkeypatch.setattr(tf.keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="needs the TensorFlow backend of Keras .* got 'jax'"):
        DeformableConv2D(4, 3)


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": 0}, "filters must be a positive integer, got 0"),
        ({"filters": 2.5}, "filters must be a positive integer, got 2.5"),
        ({"filters": True}, "filters must be a positive integer, got True"),
        ({"kernel_size": (3, 0)}, r"kernel_size must be .* two of them .*, got \(3, 0\)"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be .*, got \(3, 3, 3\)"),
        ({"strides": -1}, "strides must be .*, got -1"),
        ({"dilation_rate": "2"}, "dilation_rate must be .*, got '2'"),
        ({"padding": "causal"}, "padding must be 'valid', 'same', a .*, got 'causal'"),
        ({"padding": -1}, "padding must be 'valid', 'same', a .*, got -1"),
        ({"data_format": "NHWC"}, "data_format must be 'channels_last' or .*, got 'NHWC'"),
        ({"groups": 0}, "groups must be a positive integer, got 0"),
        ({"groups": 3}, "filters must be a multiple of groups=3, got 4"),
        ({"offset_groups": 0}, "offset_groups must be a positive integer, got 0"),
        ({"modulated": "relu"}, "modulated must be True or False, got 'relu'"),
        ({"mask_initial_value": 0.7}, "mask_initial_value must be 0.5 or 1.0, got 0.7"),
        (
            {"offset_learning_rate_multiplier": -0.1},
            "offset_learning_rate_multiplier must be a finite number of at least 0, got -0.1",
        ),
        (
            {"offset_learning_rate_multiplier": float("nan")},
            "offset_learning_rate_multiplier must be .*, got nan",
        ),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match="DeformableConv2D: " + message):
        DeformableConv2D(**{"filters": 4, "kernel_size": 3, **change})


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({}, (2, 9, 3), r"inputs must have rank 4, got \(2, 9, 3\)"),
        ({}, (2, 9, 9, None), "inputs must have a known number of channels, got"),
        ({"groups": 2}, (2, 9, 9, 3), "inputs channels must be a multiple of groups=2, got 3"),
        (
            {"offset_groups": 2},
            (2, 9, 9, 3),
            "inputs channels must be a multiple of the offset groups, got C=3 and G=2",
        ),
        (
            {"dilation_rate": (1, 4)},
            (None, 9, 8, 3),
            r"the dilated kernel must fit into .* kernel extent \[3,9\] and padded size \[9,8\]",
        ),
    ],
)
def test_bad_inputs(arguments, shape, message):
    with pytest.raises(ValueError, match="DeformableConv2D: " + message):
        DeformableConv2D(4, 3, **arguments).build(shape)


def test_other_channels_than_built_for():
    layer = DeformableConv2D(4, 3)
    layer.build((None, None, None, 3))
    with pytest.raises(ValueError, match="expected axis -?[13]"):
        layer(tf.zeros([2, 9, 9, 5]))
