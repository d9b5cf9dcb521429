"""Positions followed through a model, against the gradient: which pixels does a unit depend on?"""

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.analysis import small_models as models
from tf_deformable import analysis

layers = tf.keras.layers


def functional(*steps, size=(None, None), channels=1):
    inputs = tf.keras.Input((*size, channels))
    outputs = inputs
    for step in steps:
        outputs = step(outputs)
    return tf.keras.Model(inputs, outputs)


def check_against_the_gradient(model, images, unit, layers, exact=True):
    """The last of the model's layers must be the one that unit belongs to."""
    found = analysis.sampling_locations(model, images, unit=unit, layers=layers)
    seen = models.influence(model, images, unit)
    assert seen.any(axis=(1, 2)).all()
    for image, expected in enumerate(seen):
        marked = models.pixels(found.points(image), expected.shape)
        np.testing.assert_array_equal(marked, expected)
    return found


@pytest.mark.parametrize("unit", [(5, 7), (0, 0), (11, 2)])
def test_one_layer_with_fractional_offsets(unit):
    model = functional(models.deformable("a"))
    images = np.random.default_rng(1).uniform(size=(2, 12, 13, 1)).astype(np.float32)
    model(images)
    models.randomise_offsets(model, integers=False)
    found = check_against_the_gradient(model, images, unit, ["a"])
    np.testing.assert_array_equal(found.center, [unit] * 2)
    expected = model.layers[1].sampling_positions(images).numpy()[:, unit[0], unit[1]]
    np.testing.assert_allclose(found.positions, expected.reshape(2, 9, 2), atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("unit", [(3, 4), (0, 6)])
def test_stacked_layers_sample_what_the_unit_depends_on(depth, unit):
    """Offsets are integers, so that positions are pixels: 729 of them, through three layers."""
    names = "abc"[:depth]
    model = functional(*(models.deformable(name) for name in names))
    images = models.integer_images(2, 9, 11)
    model(images)
    models.randomise_offsets(model, low=-2, high=3)
    found = check_against_the_gradient(model, images, unit, list(names))
    assert found.layers == tuple(names)
    assert found.positions.shape == (2, *[9] * depth, 2)
    assert [level.shape[1:-1] for level in found.levels] == [(9,) * (i + 1) for i in range(depth)]


def test_strides_dilations_and_padding_of_the_layers_themselves():
    model = functional(
        models.deformable("a", strides=2, padding="valid"),
        models.deformable("b", kernel_size=(3, 2), dilation_rate=(2, 3)),
        models.deformable("c", strides=(1, 2), padding="valid", kernel_size=(2, 3)),
    )
    images = models.integer_images(2, 22, 25)
    model(images)
    models.randomise_offsets(model, low=-1, high=2)
    for unit in ((4, 2), (0, 0), (8, 4)):
        found = check_against_the_gradient(model, images, unit, ["a", "b", "c"])
        assert found.positions.shape == (2, 6, 6, 9, 2)


def test_masks_are_those_of_the_taps():
    layer = models.deformable("a", kernel_size=(2, 3), modulated=True, offset_groups=2, filters=2)
    model = functional(layers.Conv2D(2, 1), layer)
    images = models.integer_images(1, 5, 6)
    model(images)
    logits = np.arange(12) / 12.0
    layer.offset_bias.assign(np.concatenate([np.zeros(24), logits]))

    (samples,) = analysis.layer_samples(model, images)

    expected = (1 / (1 + np.exp(-logits))).reshape(2, 2, 3)  # group, tap row, tap column
    np.testing.assert_allclose(
        samples.mask, np.broadcast_to(expected, [1, 5, 6, 2, 2, 3]), atol=1e-6
    )


BETWEEN = {
    "a 1x1 convolution": [lambda: models.plain(1)],
    "a stride": [lambda: models.plain(1, strides=2)],
    "padding": [lambda: layers.ZeroPadding2D(((2, 1), (0, 3)))],
    "cropping": [lambda: layers.Cropping2D(((1, 0), (2, 1)))],
    "normalisation": [lambda: layers.BatchNormalization(epsilon=0.0), lambda: layers.LeakyReLU()],
    "pooling of one pixel": [lambda: layers.MaxPooling2D(1, 2)],
    "a dense layer for every cell": [lambda: layers.Dense(1, kernel_initializer="ones")],
    "a nested model": [lambda: functional(models.plain(1, strides=2))],
}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_lies_between_two_layers_is_followed(between):
    first, second = models.deformable("a"), models.deformable("b")
    model = functional(models.plain(1), first, *(make() for make in BETWEEN[between]), second)
    images = models.integer_images(2, 12, 14)
    model(images)
    models.randomise_offsets(model, low=-1, high=2)
    for unit in ((2, 3), (4, 1)):
        check_against_the_gradient(model, images, unit, ["a", "b"])


# What widens the receptive field is placed in its middle.
WIDER = {
    "3x3": (lambda: models.plain(3), 1),
    "3x3 of stride 2": (lambda: models.plain(3, strides=2), 1),
    "3x3 of stride 2, valid": (lambda: models.plain(3, strides=2, padding="valid"), 1),
    "3x3 of dilation 2": (lambda: models.plain(3, dilation_rate=2), 2),
    "5x5 of dilation 3, valid": (lambda: models.plain(5, dilation_rate=3, padding="valid"), 6),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depthwise_initializer="ones"), 1),
    "an average of three": (lambda: layers.AveragePooling2D(3, 2, padding="same"), 1),
    "an average of two": (lambda: layers.AveragePooling2D(2), 0.5),
    "a transposed convolution": (
        lambda: layers.Conv2DTranspose(1, 2, strides=2, kernel_initializer="ones"),
        0,
    ),
}


@pytest.mark.parametrize("size", [(16, 17), (19, 16)])
@pytest.mark.parametrize("kind", WIDER)
def test_a_cell_is_in_the_middle_of_its_receptive_field(kind, size):
    make, reach = WIDER[kind]
    step = make()
    model = functional(step, models.deformable("a", kernel_size=1))
    images = np.ones((1, *size, 1), np.float32)
    outputs = model(images)
    unit = (outputs.shape[1] // 2, outputs.shape[2] // 2)
    found = analysis.sampling_locations(model, images, unit=unit)
    seen = np.argwhere(models.influence(model, images, unit)[0])
    y, x = found.center[0]
    if kind != "a transposed convolution":
        np.testing.assert_array_equal((seen.min(axis=0) + seen.max(axis=0)) / 2, (y, x))
        np.testing.assert_array_equal(seen.max(axis=0) - seen.min(axis=0), 2 * reach)
    else:  # every pixel is spread over 2x2 cells, which are hence a quarter of a pixel off
        np.testing.assert_array_equal(seen[0], np.round((y, x)))
        np.testing.assert_array_equal(np.abs(found.center[0] - seen[0]), 0.25)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_upsampling_keeps_centres_of_pixels_aligned(interpolation):
    model = functional(
        layers.UpSampling2D(3, interpolation=interpolation), models.deformable("a"), size=(6, 7)
    )
    images = np.ones((1, 6, 7, 1), np.float32)
    centers = analysis.unit_centers(model, images)["a"]
    np.testing.assert_allclose(
        centers[1:20:3, 1:20:3], np.moveaxis(np.mgrid[:6, :7], 0, -1), atol=1e-9
    )
    np.testing.assert_allclose(centers[5, 0], [5 / 3 - 1 / 3, -1 / 3])


def test_branches_that_join_are_placed_in_the_middle_of_both():
    inputs = tf.keras.Input((None, None, 2))
    main = layers.Conv2D(4, 3, strides=2, padding="same")(inputs)  # even sizes: 2p to 2p+2
    shortcut = layers.Conv2D(4, 1, strides=2)(inputs)  # 2p
    joined = layers.ReLU()(layers.Add()([main, shortcut]))
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(joined)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(squeezed)
    joined = layers.Multiply()([layers.Concatenate()([joined, joined]), gate])
    model = tf.keras.Model(inputs, models.deformable("a")(joined))
    centers = analysis.unit_centers(model, np.ones((1, 8, 10, 2), np.float32))["a"]
    np.testing.assert_array_equal(centers, 2 * np.moveaxis(np.mgrid[:4, :5], 0, -1) + 1)


def test_residual_blocks_are_followed_through_their_deformable_layers():
    inputs = tf.keras.Input((None, None, 1))
    features = inputs
    for name in "abc":
        branch = models.deformable(name)(models.plain(1)(features))
        features = layers.Add()([features, models.plain(1)(branch)])
    model = tf.keras.Model(inputs, features)
    images = models.integer_images(1, 9, 9)
    model(images)
    found = analysis.sampling_locations(model, images, unit=(4, 4))
    assert found.layers == ("a", "b", "c")
    assert found.positions.shape == (1, 9, 9, 9, 2)
    assert analysis.sampling_locations(model, images, unit=(4, 4), depth=2).layers == ("b", "c")
    skipping = analysis.sampling_locations(model, images, unit=(4, 4), layers=["a", "c"])
    assert skipping.layers == ("a", "c") and skipping.positions.shape == (1, 9, 9, 2)


def test_layers_that_are_not_chosen_count_as_plain():
    model = functional(
        models.deformable("a", padding="valid", dilation_rate=2),
        models.plain(1),
        models.deformable("b"),
    )
    images = models.integer_images(1, 12, 12)
    model(images)
    models.randomise_offsets(model)
    found = analysis.sampling_locations(model, images, unit=(3, 4), depth=1)
    np.testing.assert_array_equal(found.center, [[5, 6]])  # "a" is valid, of dilation 2
    layer = model.get_layer("b")
    features = tf.keras.Model(model.inputs[0], layer.input)(images)
    expected = layer.sampling_positions(features).numpy()[:, 3, 4].reshape(1, 9, 2) + 2
    np.testing.assert_allclose(found.positions, expected, atol=1e-5)


def test_untrained_layers_sample_the_regular_grid():
    model = functional(*(models.deformable(name, dilation_rate=2) for name in "abc"))
    found = analysis.sampling_locations(model, np.ones((1, 30, 30, 1), np.float32), unit=(15, 14))
    for level, regular in zip(found.levels, found.regular, strict=True):
        np.testing.assert_array_equal(level, regular)
    assert len(found.points()) == 729
    assert {tuple(p) for p in found.points()} == {
        (15.0 + y, 14.0 + x) for y in range(-6, 7, 2) for x in range(-6, 7, 2)
    }


def test_positions_between_cells_interpolate_the_offsets():
    """`b` samples half way between cells of `a`, whose offsets are a ramp: the mean of both."""
    model = functional(models.deformable("a", kernel_size=1), models.deformable("b", kernel_size=1))
    ramp = np.broadcast_to(np.arange(8.0, dtype=np.float32)[None, :, None, None], (1, 8, 8, 1))
    model(ramp)
    a, b = models.deformable_layers(model)
    a.offset_kernel.assign(np.array([0.25, -0.5]).reshape(1, 1, 1, 2))
    b.offset_bias.assign([0.5, 0.25])
    found = analysis.sampling_locations(model, ramp, unit=(3, 2))
    np.testing.assert_allclose(found.levels[0][0, 0], [3.5, 2.25], atol=1e-6)
    np.testing.assert_allclose(
        found.positions[0, 0, 0], [3.5 + 0.25 * 3.5, 2.25 - 0.5 * 3.5], atol=1e-6
    )


def test_weights_are_the_product_of_the_modulation_and_zero_outside():
    model = functional(
        models.deformable("a", modulated=True, mask_initial_value=1.0),
        models.plain(1),
        models.deformable("b", modulated=True),
    )
    images = models.integer_images(1, 6, 6)
    model(images)
    logits = np.arange(9.0) / 4 - 1
    for layer in models.deformable_layers(model):
        layer.offset_bias.assign(np.concatenate([np.zeros(18), logits]))
    found = analysis.sampling_locations(model, images, unit=(0, 3))
    mask = 1 / (1 + np.exp(-logits))
    top = np.arange(9) < 3  # the taps above
    np.testing.assert_allclose(found.weights[0][0], np.where(top, 0, mask), atol=1e-6)
    # From row 0 the taps above leave the map, from row 1 none does.
    below = np.where(top[:, None], 0, mask[:, None]) * (2 * mask)
    below[3:6, :3] = 0
    np.testing.assert_allclose(found.weights[1][0], below, atol=1e-6)
    assert len(found.points()) == np.count_nonzero(below)
    assert len(found.points(regular=True)) == 81


def test_offset_groups_are_taps_of_their_own():
    model = functional(models.deformable("a", offset_groups=2), channels=2)
    images = models.integer_images(1, 7, 7, channels=2)
    model(images)
    models.randomise_offsets(model)
    assert analysis.sampling_locations(model, images, unit=(3, 3)).positions.shape == (1, 18, 2)
    check_against_the_gradient(model, images, (3, 3), ["a"])


def test_pixel_chooses_the_nearest_unit_for_each_image():
    model = functional(models.plain(3, strides=2), models.deformable("a"))
    images = models.integer_images(2, 16, 16)
    found = analysis.sampling_locations(model, images, pixel=[(7.4, 2.6), (0, 15)])
    np.testing.assert_array_equal(found.unit, [[3, 1], [0, 7]])
    np.testing.assert_array_equal(found.center, [[7, 3], [1, 15]])


def test_channels_first():
    inputs = tf.keras.Input((2, None, None))
    outputs = models.deformable("a", data_format="channels_first")(inputs)
    model = tf.keras.Model(inputs, models.deformable("b", data_format="channels_first")(outputs))
    images = models.integer_images(1, 9, 8, channels=2).transpose(0, 3, 1, 2)
    model(images)
    models.randomise_offsets(model, low=-1, high=2)
    found = analysis.sampling_locations(model, images, unit=(4, 5))
    assert found.layers == ("a", "b")
    seen = models.influence(model, images, (4, 5), channels_first=True)[0]
    np.testing.assert_array_equal(models.pixels(found.points(), seen.shape), seen)


class Subclassed(tf.keras.Model):
    """Layers in a list and in a function, arithmetic between them, two inputs, no `training`."""

    def __init__(self):
        super().__init__()
        self.blocks = [models.deformable(name) for name in "ab"]
        self.head = tf.keras.Sequential([models.plain(1, strides=2), models.deformable("c")])
        self.inner = self._inner

    def _inner(self, features):
        for block in self.blocks:
            features = tf.nn.leaky_relu(block(features) + 0.0 * features)
        return features

    def call(self, inputs):
        return self.head(self.inner(inputs["image"])) + inputs["bias"]

    @property
    def layers(self):
        return [*self.blocks, self.head]


@pytest.mark.parametrize("wrap", [False, True], ids=["eager", "in a tf.function"])
def test_subclassed_models(wrap):
    model = Subclassed()
    inputs = {"image": models.integer_images(2, 12, 12), "bias": np.zeros((2, 1, 1, 1), "float32")}
    model(inputs)
    if wrap:  # traced with weights, not while Keras builds the model
        model.inner = tf.function(model._inner)
        model(inputs)
    models.randomise_offsets(model, low=-1, high=2)
    found = analysis.sampling_locations(model, inputs, unit=(3, 2))
    assert found.layers == ("a", "b", "c")
    seen = models.influence(
        lambda image: model({"image": image, "bias": inputs["bias"]}), inputs["image"], (3, 2)
    )
    for image in range(2):
        marked = models.pixels(found.points(image), (12, 12))
        np.testing.assert_array_equal(marked, seen[image])
    assert not tf.config.functions_run_eagerly()


def test_a_layer_that_is_called_twice_has_two_names():
    shared = models.deformable("shared")
    model = functional(shared, models.plain(1), shared)
    images = models.integer_images(1, 8, 8)
    assert [s.name for s in analysis.layer_samples(model, images)] == ["shared#0", "shared#1"]
    found = analysis.sampling_locations(model, images, unit=(4, 4))
    assert found.layers == ("shared#0", "shared#1")
    one = analysis.sampling_locations(model, images, unit=(4, 4), layers=["shared#0"])
    assert one.positions.shape == (1, 9, 2)
    for both in (shared, "shared"):
        with pytest.raises(ValueError, match="layers must name one call each .* several calls"):
            analysis.sampling_locations(model, images, unit=(4, 4), layers=[both])


def test_two_images_of_the_same_size():
    inputs = [tf.keras.Input((None, None, 1), name=name) for name in ("one", "other")]
    tower = functional(models.plain(1, strides=2), models.deformable("a"))
    joined = layers.Subtract()([tower(image) for image in inputs])
    model = tf.keras.Model(inputs, models.deformable("b")(joined))
    images = [models.integer_images(1, 12, 14, seed=seed) for seed in (0, 1)]
    found = [
        analysis.sampling_locations(model, images, unit=(2, 3), layers=[name, "b"])
        for name in ("a#0", "a#1")
    ]
    for each in found:
        np.testing.assert_array_equal(each.center, [[4, 6]])
        np.testing.assert_array_equal(each.positions, each.regular[-1])
    small = [images[0], images[1][:, :8]]
    tower_alone = tf.keras.Model(inputs, [tower(image) for image in inputs])
    with pytest.raises(ValueError, match="cannot be followed to the image"):
        analysis.unit_centers(tower_alone, small)


def test_layers_with_inputs_beside_their_features():
    inputs = tf.keras.Input((9, 9, 1))
    first = models.deformable("a", offset_source="features")([inputs, models.plain(3)(inputs)])
    flow = layers.Lambda(lambda t: tf.repeat(0 * t, 2, axis=-1), output_shape=(9, 9, 2))(first)
    second = models.deformable("b", adds_flow=True)
    model = tf.keras.Model(inputs, second([first, flow]))
    models.randomise_offsets(model)
    images = models.integer_images(1, 9, 9)
    found = analysis.sampling_locations(model, images, unit=(4, 5))
    assert found.layers == ("a", "b")
    marked = models.pixels(found.points(), (9, 9))
    np.testing.assert_array_equal(marked, models.influence(model, images, (4, 5))[0])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = functional(models.deformable("a"), models.deformable("b", modulated=True))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    images = models.integer_images(1, 9, 9)
    model(images)
    found = analysis.sampling_locations(model, images, unit=(4, 4))
    np.testing.assert_array_equal(found.positions, found.regular[-1])
    np.testing.assert_allclose(found.weights[-1], 0.5)


def test_the_reference_backend_gives_the_same():
    model = functional(models.deformable("a"), models.deformable("b"))
    images = models.integer_images(1, 9, 9)
    model(images)
    models.randomise_offsets(model)
    expected = analysis.sampling_locations(model, images, unit=(4, 4))
    with tf_deformable.config.use_backend("reference"):
        found = analysis.sampling_locations(model, images, unit=(4, 4))
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-5)


def test_offsets_that_are_not_numbers_count_for_nothing():
    model = functional(models.deformable("a"), models.deformable("b"))
    images = models.integer_images(1, 9, 9)
    model(images)
    first, second = models.deformable_layers(model)
    first.offset_bias.assign([np.inf] + [0] * 17)  # its outputs are finite
    second.offset_bias.assign([np.nan, 0, 0, np.inf, *[0] * 14])
    found = analysis.sampling_locations(model, images, unit=(4, 4))
    assert len(found.points()) == 7 * 8
    assert np.isfinite(found.points()).all()


def test_nothing_of_it_stays_behind():
    base = tf_deformable.layers._base.OperatorLayer
    before = base.__call__
    model = functional(models.deformable("a"))
    with pytest.raises(ValueError, match="unit must be"):
        analysis.sampling_locations(model, models.integer_images(1, 4, 4), unit=(4, 0))
    assert base.__call__ is before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "one of unit and pixel must be given"),
        ({"unit": (0, 0), "pixel": (0, 0)}, TypeError, "one of unit and pixel must be given"),
        ({"unit": (6, 0)}, ValueError, r"unit must be .* below \(6, 6\).*got \[6, 0\]"),
        ({"unit": (0.5, 0)}, ValueError, r"unit must be .* integers"),
        ({"pixel": [[0, 0]] * 3}, ValueError, r"pixel must be .*\[1,2\].* got shape \[3, 2\]"),
        ({"unit": (0, 0), "depth": 0}, ValueError, "depth must be a positive integer, got 0"),
        ({"unit": (0, 0), "layers": ["x"]}, ValueError, r"\('a', 'b'\), got 'x': no call"),
        ({"unit": (0, 0), "layers": []}, ValueError, "layers must name a layer, got none"),
        ({"unit": (0, 0), "layers": ["b", "a"]}, ValueError, "got 'b' and then 'a', which does"),
    ],
)
def test_bad_arguments(arguments, error, message):
    model = functional(models.deformable("a"), models.deformable("b"))
    with pytest.raises(error, match=message):
        analysis.sampling_locations(model, models.integer_images(1, 6, 6), **arguments)


def test_a_model_without_deformable_layers_is_refused():
    model = functional(models.plain(3))
    with pytest.raises(ValueError, match="must call a DeformableConv2D, got"):
        analysis.layer_samples(model, np.ones((1, 4, 4, 1), np.float32))


def test_an_operator_that_moves_pixels_about_is_named():
    model = functional(
        layers.Lambda(lambda t: tf.reverse(t, [1]), output_shape=(6, 6, 1)),
        models.deformable("a"),
        size=(6, 6),
    )
    with pytest.raises(ValueError, match="'a' cannot be followed to the image.*ReverseV2"):
        analysis.sampling_locations(model, models.integer_images(1, 6, 6), unit=(0, 0))
