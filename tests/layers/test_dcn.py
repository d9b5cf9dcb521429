"""The layers DCNv3 and DCNv4: values, calls, training, saving, precision."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.oracles.dcnv3 import dcnv3 as oracle
from tests.oracles.deformable_conv2d import axis
from tf_deformable import DCNv3, DCNv4, convert

BOTH = pytest.mark.parametrize("kind", [DCNv3, DCNv4])
CHANNELS, GROUPS = 6, 2
IMAGES = np.random.default_rng(3).normal(size=[2, 7, 6, CHANNELS]).astype(np.float32)
PADS = ((1, 2), (0, 3))
CASES = {
    "as it is": {},
    "stride 2": {"strides": 2},
    "steps that differ": {"strides": (1, 3), "kernel_size": (3, 1)},
    "valid": {"padding": "valid", "kernel_size": (3, 2)},
    "valid, stride 2": {"padding": "valid", "strides": 2},
    "dilated": {"dilation_rate": (1, 2), "padding": "valid", "depthwise_kernel_size": 3},
    "padded": {"padding": PADS, "strides": (2, 1)},
    "depthwise 5": {"depthwise_kernel_size": 5, "padding": 1, "offset_scale": 2.0},
    "depthwise 1": {"depthwise_kernel_size": 1, "strides": 2},
    "no center": {"remove_center": True, "offset_scale": 1.5},
    "the center's feature": {"center_feature_scale": True, "depthwise_kernel_size": 5},
    "no biases": {"use_bias": False},
    "batch": {"normalization": "batch", "activation": "relu"},
    "no normalisation": {"normalization": None, "activation": None},
    "no projections": {"use_projections": False},
    "no output bias": {"use_output_bias": False, "depthwise_kernel_size": 3},
}
OF_ONE = {"normalization": DCNv3, "activation": DCNv3, "use_projections": DCNv4} | {
    "use_output_bias": DCNv4
}
ALL = [
    pytest.param(kind, arguments, id=f"{kind.__name__}, {name}")
    for name, arguments in CASES.items()
    for kind in (DCNv3, DCNv4)
    if all(OF_ONE.get(argument, kind) is kind for argument in arguments)
]


def make(kind, **changes):
    return kind(**{"groups": GROUPS, **changes})


def randomise(layer, scale=0.3):
    """Weights of which no two are alike; offsets of about a pixel."""
    random = np.random.default_rng(8)
    layer.set_weights(
        [
            random.uniform(0.5, 1.5, w.shape)  # variances are positive
            if any(part in w.name for part in ("gamma", "variance"))
            else random.normal(size=w.shape, scale=scale)
            for w in layer.weights
        ]
    )


def expected(layer, images):
    """The papers' equations, in NumPy and float64, on the oracle of the operator."""
    names = [weight.name.split("/")[-1].split(":")[0] for weight in layer.weights]
    w = dict(zip(names, map(np.float64, layer.get_weights()), strict=True))

    def linear(name, x):
        return x @ w[f"{name}_kernel"] + w.get(f"{name}_bias", 0)

    images = np.asarray(images, np.float64)
    has_projections = "input_kernel" in w
    projected = linear("input", images) if has_projections else images
    pads = layer.padding if isinstance(layer.padding, tuple) else [layer.padding.upper()] * 2
    axes = [
        axis(*values)
        for values in zip(
            images.shape[1:3],
            layer.kernel_size,
            layer.strides,
            layer.dilation_rate,
            pads,
            strict=True,
        )
    ]
    hidden = around_centers(layer, images, axes, w)
    if isinstance(layer, DCNv3):
        hidden = normalised(layer, hidden, w)
        hidden = np.asarray(layer.activation(tf.constant(hidden)))
    taps = math.prod(layer.kernel_size) - layer.remove_center
    mask = linear("mask", hidden).reshape(*hidden.shape[:3], layer.groups, taps)
    if isinstance(layer, DCNv3):
        mask = np.exp(mask) / np.exp(mask).sum(axis=-1, keepdims=True)
    sums = oracle(
        projected,
        linear("offset", hidden),
        mask.reshape(*hidden.shape[:3], layer.groups * taps),
        np.zeros([*hidden.shape[:3], images.shape[3]]),
        kernel_size=layer.kernel_size,
        strides=layer.strides,
        dilations=layer.dilation_rate,
        before=tuple(a.before for a in axes),
        offset_scale=layer.offset_scale,
        remove_center=layer.remove_center,
    )["output"]
    if layer.center_feature_scale:
        share = 1 / (1 + np.exp(-linear("center", hidden if isinstance(layer, DCNv3) else sums)))
        share = np.repeat(share, images.shape[3] // layer.groups, axis=-1)
        sums = sums * (1 - share) + projected * share
    return linear("output", sums) if has_projections else sums


def around_centers(layer, images, axes, w):
    """The depthwise convolution, or no convolution, at the center of each window."""
    kernel, bias = w.get("depthwise_kernel"), w.get("depthwise_bias", 0)
    if kernel is None:
        kernel = np.ones([1, 1, images.shape[3], 1])
    batch, height, width, channels = images.shape
    hidden = np.zeros([batch, axes[0].output, axes[1].output, channels])
    for row, column in np.ndindex(*hidden.shape[1:3]):
        corner = []
        for i, pixel in enumerate((row, column)):
            extent = (layer.kernel_size[i] - 1) * layer.dilation_rate[i]
            start = pixel * layer.strides[i] - axes[i].before
            corner.append(start - (kernel.shape[i] - 1 - extent) // 2)
        for i, j in np.ndindex(*kernel.shape[:2]):
            y, x = corner[0] + i, corner[1] + j
            if 0 <= y < height and 0 <= x < width:
                hidden[:, row, column] += images[:, y, x] * kernel[i, j, :, 0]
    return hidden + bias


def normalised(layer, hidden, w):
    if layer.normalization is None:
        return hidden
    if layer.normalization == "batch":
        mean, variance, epsilon = w["moving_mean"], w["moving_variance"], 1e-5
    else:
        mean, variance = hidden.mean(axis=-1)[..., None], hidden.var(axis=-1)[..., None]
        epsilon = 1e-6
    return (hidden - mean) / np.sqrt(variance + epsilon) * w["gamma"] + w["beta"]


@pytest.mark.parametrize(("kind", "arguments"), ALL)
def test_agrees_with_its_definition(kind, arguments):
    layer = make(kind, dtype="float64", **arguments)
    layer(IMAGES)
    randomise(layer)

    got = layer(IMAGES)

    want = expected(layer, IMAGES)
    assert got.shape == want.shape == layer.compute_output_shape(IMAGES.shape)
    np.testing.assert_allclose(got, want, atol=1e-10)


@BOTH
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("arguments", [{}, {"strides": 2, "padding": PADS}], ids=["", "steps"])
def test_one_graph_serves_all_sizes(kind, backend, arguments):
    layer = make(kind, depthwise_kernel_size=5, **arguments)
    layer(IMAGES)
    randomise(layer)
    with tf_deformable.config.use_backend(backend):
        graph = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, CHANNELS])])
        for images in (IMAGES, IMAGES[:1, 1:, 2:], IMAGES[:0]):
            np.testing.assert_allclose(graph(images), expected(layer, images), atol=1e-4)


@BOTH
def test_a_step_with_no_images(kind):
    layer = make(kind, depthwise_kernel_size=5, strides=2)
    layer(IMAGES)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, CHANNELS])])
    def gradients(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(images))
        return tape.gradient(loss, layer.trainable_weights)

    for gradient in gradients(IMAGES[:0]):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_an_untrained_dcnv3_averages_the_window():
    layer = DCNv3(groups=3)
    layer(IMAGES)
    projected = IMAGES @ layer.input_kernel.numpy()

    got = layer(IMAGES)

    padded = np.pad(projected, [[0, 0], [1, 1], [1, 1], [0, 0]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    want = windows.mean(axis=(-2, -1)) @ layer.output_kernel.numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_untrained_dcnv4_gives_zeros_and_learns():
    layer = make(DCNv4)
    with tf.GradientTape() as tape:
        outputs = layer(IMAGES)
        loss = tf.reduce_sum(outputs * IMAGES)
    np.testing.assert_array_equal(outputs, np.zeros(IMAGES.shape))
    assert np.abs(tape.gradient(loss, layer.mask_kernel)).max() > 1e-2


@BOTH
def test_projections_start_with_numbers_of_their_own(kind):
    layer = make(kind)
    layer(IMAGES)
    assert not np.allclose(layer.input_kernel, layer.output_kernel)


@BOTH
def test_gradients_are_those_of_finite_differences(kind):
    layer = make(kind, dtype="float64", depthwise_kernel_size=3, center_feature_scale=True)
    images = tf.Variable(IMAGES[:1].astype(np.float64))
    layer(images)
    randomise(layer)
    direction = np.random.default_rng(0)
    upstream = tf.constant(direction.normal(size=images.shape))

    def loss():
        return tf.reduce_sum(layer(images) * upstream)

    variables = [images, *layer.trainable_weights]
    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        start, step = variable.numpy(), direction.normal(size=variable.shape)
        step *= 1e-6
        variable.assign(start + step)
        after = loss()
        variable.assign(start - step)
        before = loss()
        variable.assign(start)
        np.testing.assert_allclose(
            np.sum(gradient * step), (after - before) / 2, rtol=1e-5, atol=1e-11
        )


def test_weights_of_dcnv4_are_unpacked():
    """The layer with the weights of DCNv4's packed projection gives what the projection gives."""
    layer = make(DCNv4, use_projections=False)
    layer(IMAGES)
    random = np.random.default_rng(5)
    size = convert.dcnv4_from_offsets_and_mask(layer.offset_bias, layer.mask_bias, 3).shape[0]
    kernel, bias = random.normal(size=[CHANNELS, size]), random.normal(size=[size])

    for name, packed in (("kernel", kernel), ("bias", bias)):
        parts = convert.offsets_and_mask_from_dcnv4(packed.astype(np.float32), 3, GROUPS)
        for part, weight in zip(parts, ("offset", "mask"), strict=True):
            getattr(layer, f"{weight}_{name}").assign(part)

    packed = (IMAGES @ kernel + bias).astype(np.float32)
    offsets, mask = convert.offsets_and_mask_from_dcnv4(packed, 3, GROUPS)
    want = tf_deformable.dcnv4(IMAGES, offsets, mask)
    np.testing.assert_allclose(layer(IMAGES), want, atol=1e-4)


@BOTH
def test_what_it_samples(kind):
    layer = make(kind, strides=2, offset_scale=1.5, dilation_rate=2, remove_center=True)
    with pytest.raises(ValueError, match="must be built"):
        layer.compute_offsets(IMAGES)
    layer(IMAGES)
    randomise(layer)

    offsets, mask = layer.compute_offsets(IMAGES)
    positions = layer.sampling_positions(IMAGES).numpy()

    assert offsets.shape == (2, 4, 3, GROUPS * 16) and mask.shape == (2, 4, 3, GROUPS * 8)
    if kind is DCNv3:
        sums = tf.reduce_sum(tf.reshape(mask, [2, 4, 3, GROUPS, 8]), axis=-1)
        np.testing.assert_allclose(sums, np.ones(sums.shape), atol=1e-6)
    moved = np.reshape(offsets, [2, 4, 3, GROUPS, 8, 2])
    taps = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    before = [axis(size, 3, 2, 2, "SAME").before for size in IMAGES.shape[1:3]]
    for row, column, k in np.ndindex(4, 3, 8):
        for i, pixel in enumerate((row, column)):
            center = 2 * pixel - before[i] + 2
            want = center + 1.5 * (2 * (taps[k][i] - 1) + moved[:, row, column, :, k, i])
            np.testing.assert_allclose(positions[:, row, column, :, k, i], want, atol=1e-5)


@BOTH
def test_channels_first_is_a_transposition(kind):
    last = make(kind, strides=2)
    last(IMAGES)
    randomise(last)
    first = make(kind, strides=2, data_format="channels_first")
    images = IMAGES.transpose(0, 3, 1, 2)
    first(images)
    first.set_weights(last.get_weights())

    got = first(images)

    np.testing.assert_allclose(np.transpose(got, [0, 2, 3, 1]), last(IMAGES), atol=1e-6)
    assert first.compute_output_shape(images.shape) == got.shape
    for a, b in zip(first.compute_offsets(images), last.compute_offsets(IMAGES), strict=True):
        np.testing.assert_allclose(np.transpose(a, [0, 2, 3, 1]), b, atol=1e-6)
    np.testing.assert_allclose(
        first.sampling_positions(images), last.sampling_positions(IMAGES), atol=1e-5
    )


def test_batch_normalisation_learns_while_training():
    layer = make(DCNv3, normalization="batch")
    before = layer(IMAGES, training=False)
    mean = layer.normalization_layer.moving_mean.numpy()
    layer(IMAGES, training=True)
    assert np.abs(layer.normalization_layer.moving_mean - mean).max() > 1e-3
    assert before.shape == IMAGES.shape
    assert len(layer.non_trainable_weights) == 2


def model_of(layer):
    images = tf.keras.Input((None, None, CHANNELS))
    return tf.keras.Model(images, layer(images))


@BOTH
def test_saving_and_loading(kind, tmp_path):
    arguments = {"strides": 2, "depthwise_kernel_size": 5}
    if kind is DCNv3:
        arguments["normalization"] = "batch"
    model = model_of(make(kind, **arguments))
    assert model.output_shape == (None, None, None, CHANNELS)
    randomise(model.layers[-1])
    want = model.predict(IMAGES, verbose=0)

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), want, atol=1e-6)

    model.save_weights(tmp_path / "w.weights.h5")
    other = model_of(make(kind, **arguments))
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_allclose(other.predict(IMAGES, verbose=0), want, atol=1e-6)

    bigger = np.concatenate([IMAGES, IMAGES[:1]])  # another batch than any before
    for export in (
        lambda folder: model.export(str(folder)),
        lambda folder: tf_deformable.export.saved_model(model, folder, portable=True),
    ):
        folder = tmp_path / f"exported{len(list(tmp_path.iterdir()))}"
        export(folder)
        served = tf.saved_model.load(str(folder))
        answer = served.serve(bigger) if hasattr(served, "serve") else served(bigger)
        np.testing.assert_allclose(tf.nest.flatten(answer)[0][:2], want, atol=1e-5)


@BOTH
def test_it_trains_in_a_model(kind):
    images = np.random.default_rng(0).normal(size=[16, 8, 8, CHANNELS]).astype(np.float32)
    target = np.roll(images, 2, axis=2)  # two pixels away: a 3x3 window does not reach it
    inputs = tf.keras.Input((8, 8, CHANNELS))
    model = tf.keras.Model(inputs, make(kind, groups=1)(inputs))
    model.compile(tf.keras.optimizers.Adam(0.02), "mse")
    before = model.evaluate(images, target, verbose=0)
    model.fit(images, target, epochs=60, batch_size=16, verbose=0)
    assert model.evaluate(images, target, verbose=0) < 0.4 * before


@BOTH
def test_a_model_of_what_the_layer_computes(kind):
    layer = make(kind)
    model = model_of(layer)
    randomise(layer)
    for method in (layer.compute_offsets, layer.sampling_positions):
        look = tf.keras.Model(model.input, method(layer.input))
        got, want = (tf.nest.flatten(f(IMAGES)) for f in (look, method))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@BOTH
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_precision_policies(kind, policy):
    layer, wide = (
        make(kind, depthwise_kernel_size=3, dtype=policy),
        make(kind, depthwise_kernel_size=3),
    )
    layer(IMAGES), wide(IMAGES)
    randomise(wide)
    layer.set_weights(wide.get_weights())

    with tf.GradientTape() as tape:
        got = layer(IMAGES)
        loss = tf.reduce_sum(tf.cast(got, tf.float32) ** 2)
    gradients = tape.gradient(loss, layer.trainable_weights)

    assert got.dtype == policy.removeprefix("mixed_")
    assert all(tensor.dtype == tf.float32 for tensor in layer.compute_offsets(IMAGES))
    tolerance = {"mixed_float16": 2e-2, "mixed_bfloat16": 1e-1}[policy]
    np.testing.assert_allclose(tf.cast(got, tf.float32), wide(IMAGES), atol=tolerance)
    assert all(g is not None and np.all(np.isfinite(g)) for g in gradients)


@BOTH
def test_config_holds_every_constructor_argument(kind):
    arguments = {
        "groups": 2,
        "kernel_size": (5, 3),
        "strides": (2, 1),
        "padding": ((1, 0), (2, 3)),
        "data_format": "channels_first",
        "dilation_rate": (1, 2),
        "offset_scale": 2.0,
        "remove_center": True,
        "depthwise_kernel_size": (5, 5),
        "use_bias": False,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "depthwise_initializer": "he_uniform",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        **(
            {"normalization": "batch", "activation": "relu"}
            if kind is DCNv3
            else {"use_projections": False, "use_output_bias": True}
        ),
    }
    parameters = set(inspect.signature(kind.__init__).parameters)
    assert parameters - {"self", "kwargs"} == {*arguments, "center_feature_scale"}
    config = kind(**arguments, name="look").get_config()
    default = kind().get_config()
    for argument in (*arguments, "name"):
        assert config[argument] != default[argument], argument
    assert kind.from_config(config).get_config() == config
    assert kind(center_feature_scale=True).get_config()["center_feature_scale"] is True


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 0}, "groups must be a positive integer, got 0"),
        ({"kernel_size": (3, 0)}, "kernel_size must be a positive integer or two"),
        ({"strides": 1.5}, "strides must be a positive integer or two"),
        ({"strides": 2**31}, r"strides must be .* \(y, x\), at most 2147483647, got 2147483648"),
        (
            {"dilation_rate": (1, 2**31)},
            r"dilation_rate must be .* \(y, x\), at most 2147483647, got",
        ),
        ({"padding": 2**31}, r"padding must be .*, at most 2147483647, got 2147483648"),
        ({"padding": "causal"}, "padding must be 'valid', 'same'"),
        ({"offset_scale": math.inf}, "offset_scale must be a finite number, got inf"),
        ({"remove_center": 1}, "remove_center must be True or False, got 1"),
        ({"remove_center": True, "kernel_size": 2}, "kernel_size must be odd with remove_center"),
        (
            {"remove_center": True, "kernel_size": 1},
            "kernel_size must be above 1 with remove_center",
        ),
        (
            {"center_feature_scale": True, "strides": 2},
            "center_feature_scale must be False but for strides of 1 and padding 'same', got True",
        ),
        ({"depthwise_kernel_size": 0}, "depthwise_kernel_size must be a positive integer or two"),
        ({"use_bias": None}, "use_bias must be True or False, got None"),
    ],
)
def test_wrong_arguments(kind, changes, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        make(kind, **changes)


def test_wrong_arguments_of_one_of_them():
    with pytest.raises(ValueError, match="DCNv3: normalization must be 'layer' or 'batch'"):
        make(DCNv3, normalization="group")
    with pytest.raises(ValueError, match="DCNv4: use_projections must be True or False, got 1"):
        make(DCNv4, use_projections=1)
    with pytest.raises(ValueError, match="DCNv4: use_output_bias must be True or False, got 1"):
        make(DCNv4, use_output_bias=1)


@BOTH
def test_wrong_inputs(kind):
    with pytest.raises(ValueError, match="groups must divide the 6 channels, got 4"):
        make(kind, groups=4)(IMAGES)
    with pytest.raises(ValueError, match="known number of channels|must have rank 4"):
        make(kind).build([None, 5, 5, None])
    with pytest.raises(ValueError, match="ndim"):
        make(kind)(IMAGES[0])
    with pytest.raises(ValueError, match="must fit into"):
        make(kind, padding="valid", dilation_rate=4)(IMAGES)


@BOTH
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_xla_compiles_the_layer(kind, backend):
    layer = make(kind)
    layer(IMAGES)
    randomise(layer)

    def step(images):
        with tf.GradientTape() as tape:
            output = layer(images)
            loss = tf.reduce_sum(output**2)
        return [output, *tape.gradient(loss, layer.trainable_weights)]

    with tf_deformable.config.use_backend(backend):
        has_xla = backend == "reference" or tf_deformable.config.build_info()["xla"]
        assert layer.supports_jit is has_xla
        if not has_xla:
            pytest.skip("the headers of this TensorFlow lack XLA's FFI")
        got, want = tf.function(step, jit_compile=True)(IMAGES), step(IMAGES)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
