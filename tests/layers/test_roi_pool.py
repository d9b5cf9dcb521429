"""What the RoI pooling layers compute, how they are built, and what they refuse."""

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tests.xla import needs_lowering
from tf_deformable import DeformablePSRoIPool, DeformableRoIPool, PSRoIPool, RoIPool, config

GEOMETRY = {"output_size": (3, 2), "spatial_scale": 0.5, "samples_per_bin": 2}
PADDING = ([0.0] * 4, [-1.0] * 4)


@pytest.fixture
def features():
    return tf.random.normal([2, 12, 14, 8])


@pytest.fixture
def boxes():
    """Boxes of two images 24x28, the last of each is padding."""
    return tf.constant(
        [
            [[2.0, 3.0, 17.0, 22.0], [5.5, 1.0, 9.0, 30.0], PADDING[0]],
            [[-4.0, 0.0, 12.0, 12.0], [8.0, 8.0, 20.0, 26.0], PADDING[1]],
        ]
    )


def flat(boxes):
    """Boxes and their indices as the functional operators take them."""
    return tf.reshape(boxes, [-1, 4]), [0, 0, -1, 1, 1, -1]


def per_image(tensor):
    return tf.reshape(tensor, [2, 3, *tensor.shape[1:]])


def all_layers(**arguments):
    """One of each for features of 8 channels."""
    arguments = {**GEOMETRY, **arguments}
    return [
        RoIPool(**arguments),
        PSRoIPool(group_size=2, **arguments),
        DeformableRoIPool(offset_units=(5,), modulated=True, **arguments),
        DeformablePSRoIPool(group_size=2, **arguments),
        DeformablePSRoIPool(group_size=2, score_filters=3, class_agnostic=True, **arguments),
    ]


def every_layer(function):
    """Runs a test with a maker of each layer: they are made under the fixtures of the test."""
    ids = ["RoIPool", "PSRoIPool", "DeformableRoIPool", "DeformablePSRoIPool", "agnostic"]
    makers = [lambda i=i, **arguments: all_layers(**arguments)[i] for i in range(len(ids))]
    return pytest.mark.parametrize("make", makers, ids=ids)(function)


def randomize(layer, scale=0.5):
    """Gives the weights of the offset branch values that move bins."""
    for weight in layer.weights:
        if "offset" in weight.name:
            weight.assign(tf.random.normal(weight.shape, stddev=scale, dtype=weight.dtype))


def built(layer, features, boxes):
    layer.build([features.shape, boxes.shape])
    randomize(layer)
    return layer


# --- What they compute ---------------------------------------------------------------------------


def test_are_the_packages_public_names():
    for name in ("RoIPool", "PSRoIPool", "DeformableRoIPool", "DeformablePSRoIPool"):
        assert getattr(tf_deformable, name) is getattr(tf_deformable.layers, name)


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_pool_is_the_operator_without_offsets(features, boxes, aligned):
    expected = tf_deformable.deformable_roi_pool(
        features, *flat(boxes), **GEOMETRY, aligned=aligned
    )
    outputs = RoIPool(**GEOMETRY, aligned=aligned)([features, boxes])
    np.testing.assert_array_equal(outputs, per_image(expected))


def test_one_sample_per_pixel(features, boxes):
    geometry = {**GEOMETRY, "samples_per_bin": 0, "aligned": True}
    expected = tf_deformable.deformable_roi_pool(features, *flat(boxes), **geometry)
    np.testing.assert_array_equal(RoIPool(**geometry)([features, boxes]), per_image(expected))


def test_psroi_pool_is_the_operator_without_offsets(features, boxes):
    expected = tf_deformable.deformable_psroi_pool(features, *flat(boxes), group_size=2, **GEOMETRY)
    outputs = PSRoIPool(group_size=2, **GEOMETRY)([features, boxes])
    np.testing.assert_array_equal(outputs, per_image(expected))


@pytest.mark.parametrize("units", [(), (6,), (6, 5)])
@pytest.mark.parametrize(("modulated", "initial_value"), [(False, 0.5), (True, 0.5), (True, 1.0)])
def test_deformable_roi_pool(features, boxes, units, modulated, initial_value):
    layer = DeformableRoIPool(
        **GEOMETRY,
        gamma=0.25,
        offset_units=units,
        modulated=modulated,
        mask_initial_value=initial_value,
    )
    outputs = built(layer, features, boxes)([features, boxes])

    plain = tf_deformable.deformable_roi_pool(features, *flat(boxes), **GEOMETRY)
    branch = tf.reshape(plain, [6, 3 * 2 * 8])
    *hidden, kernel, bias = layer.get_weights()
    assert len(hidden) == 2 * len(units)
    for n in range(len(units)):
        assert hidden[2 * n].shape[1] == units[n]
        branch = tf.nn.relu(branch @ hidden[2 * n] + hidden[2 * n + 1])
    branch = branch @ kernel + bias
    assert branch.shape == (6, 18 if modulated else 12)
    offsets = tf.reshape(branch[:, :12], [6, 3, 2, 2])
    mask = None
    if modulated:
        mask = 2 * initial_value * tf.sigmoid(tf.reshape(branch[:, 12:], [6, 3, 2]))
    expected = tf_deformable.deformable_roi_pool(
        features, *flat(boxes), offsets, mask, gamma=0.25, **GEOMETRY
    )
    np.testing.assert_allclose(outputs, per_image(expected), atol=1e-5)
    assert not np.allclose(outputs, per_image(plain), atol=0.1)

    got_offsets, got_mask = layer.compute_offsets([features, boxes])
    np.testing.assert_allclose(got_offsets, per_image(offsets), atol=1e-5)
    if modulated:
        np.testing.assert_allclose(got_mask, per_image(mask), atol=1e-5)
    else:
        assert got_mask is None


@pytest.mark.parametrize("initializer", ["glorot_uniform", tf.ones])
def test_hidden_layers_start_with_numbers_of_their_own(features, boxes, initializer):
    layer = DeformableRoIPool(1, offset_units=(8, 8), offset_hidden_kernel_initializer=initializer)
    layer([features, boxes])
    first, _, second, *_ = layer.get_weights()
    assert first.shape == second.shape == (8, 8)
    assert np.array_equal(first, second) == (initializer is tf.ones)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("output_size", [2, (3, 5)])
def test_deformable_psroi_pool(features, boxes, class_agnostic, output_size):
    geometry = {**GEOMETRY, "output_size": output_size, "group_size": 2}
    layer = DeformablePSRoIPool(
        score_filters=3,
        gamma=0.25,
        class_agnostic=class_agnostic,
        bias_initializer="ones",
        **geometry,
    )
    outputs = built(layer, features, boxes)([features, boxes])

    kernel, bias, offset_kernel, offset_bias = layer.get_weights()
    classes = 1 if class_agnostic else 3
    assert kernel.shape == (1, 1, 8, 2 * 2 * 3)
    assert offset_kernel.shape == (1, 1, 8, 2 * 2 * classes * 2)
    fields = features @ offset_kernel[0, 0] + offset_bias
    offsets = tf_deformable.deformable_psroi_pool(fields, *flat(boxes), **geometry)
    offsets = tf.reshape(offsets, [*offsets.shape[:3], classes, 2])
    scores = features @ kernel[0, 0] + bias
    expected = tf_deformable.deformable_psroi_pool(
        scores, *flat(boxes), offsets, gamma=0.25, **geometry
    )
    np.testing.assert_allclose(outputs, per_image(expected), atol=1e-5)
    np.testing.assert_allclose(
        layer.compute_offsets([features, boxes]), per_image(offsets), atol=1e-5
    )


def test_offset_fields_are_ordered_map_class_y_x(features):
    """A constant field is pooled to its constant: channels can be told apart by their biases."""
    layer = DeformablePSRoIPool(2, 2, score_filters=3, spatial_scale=0.5)
    boxes = tf.constant([[[4.0, 4.0, 16.0, 16.0]]])
    layer.build([[1, 12, 14, 8], boxes.shape])
    layer.offset_bias.assign(tf.range(24, dtype=tf.float32))
    offsets = layer.compute_offsets([features[:1], boxes])
    np.testing.assert_allclose(offsets[0, 0], np.arange(24).reshape([2, 2, 3, 2]), rtol=1e-6)


def test_a_class_follows_its_own_offset(features):
    layer = DeformablePSRoIPool(
        1, group_size=1, score_filters=2, spatial_scale=1.0, aligned=True, gamma=0.5
    )
    boxes = tf.constant([[[2.0, 2.0, 6.0, 6.0]]])
    layer.build([[1, 12, 14, 8], boxes.shape])
    layer.kernel.assign(tf.repeat(layer.kernel.numpy()[..., :1], 2, axis=-1))
    layer.offset_bias.assign([0.0, 0.0, 1.0, 2.0])  # of the second: 2 pixels down, 4 to the right
    outputs = layer([features[:1], boxes])
    moved = layer([features[:1], boxes + tf.constant([2.0, 4.0, 2.0, 4.0])])
    np.testing.assert_allclose(outputs[..., 1], moved[..., 0], atol=1e-5)
    assert abs(float(outputs[0, 0, 0, 0, 0] - outputs[0, 0, 0, 0, 1])) > 1e-3
    np.testing.assert_allclose(
        layer.bin_boxes([features[:1], boxes])[0, 0, 0, 0],
        [[2.0, 2.0, 6.0, 6.0], [4.0, 6.0, 8.0, 10.0]],
    )


@pytest.mark.parametrize("aligned", [False, True])
def test_untrained_deformable_roi_pool_equals_plain(features, boxes, aligned):
    plain = RoIPool(**GEOMETRY, aligned=aligned)([features, boxes])
    for arguments, factor in (
        ({}, 1.0),
        ({"offset_units": (16, 16)}, 1.0),
        ({"modulated": True}, 0.5),
        ({"modulated": True, "mask_initial_value": 1.0}, 1.0),
    ):
        layer = DeformableRoIPool(**GEOMETRY, aligned=aligned, **arguments)
        np.testing.assert_allclose(layer([features, boxes]), factor * plain, atol=1e-6)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_untrained_deformable_psroi_pool_equals_plain(features, boxes, class_agnostic):
    layer = DeformablePSRoIPool(
        group_size=2,
        score_filters=3,
        class_agnostic=class_agnostic,
        bias_initializer="random_normal",
        **GEOMETRY,
    )
    outputs = layer([features, boxes])
    scores = tf.keras.layers.Conv2D(12, 1)
    scores.build(features.shape)
    scores.set_weights(layer.get_weights()[:2])
    plain = PSRoIPool(group_size=2, **GEOMETRY)([scores(features), boxes])
    np.testing.assert_allclose(outputs, plain, atol=1e-5)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_untrained_deformable_layer_stands_where_a_plain_one_stood(boxes, class_agnostic):
    maps = tf.random.normal([2, 12, 14, 2 * 2 * 5])
    layer = DeformablePSRoIPool(group_size=2, class_agnostic=class_agnostic, **GEOMETRY)
    plain = PSRoIPool(group_size=2, **GEOMETRY)
    np.testing.assert_allclose(layer([maps, boxes]), plain([maps, boxes]), atol=1e-6)
    assert [tuple(w.shape) for w in layer.weights] == [
        (1, 1, 20, 8 if class_agnostic else 40),
        (8 if class_agnostic else 40,),
    ]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("source", ["inputs", "features"])
@pytest.mark.parametrize("score_filters", [None, 5])
def test_what_the_offset_fields_are_made_of(boxes, source, score_filters, data_format):
    maps = tf.random.normal([2, 12, 14, 2 * 2 * 5])
    others = tf.random.normal([2, 12, 14, 3])
    layer = DeformablePSRoIPool(
        group_size=2,
        offset_source=source,
        score_filters=score_filters,
        data_format=data_format,
        **GEOMETRY,
    )
    inputs = [maps, boxes, others] if source == "features" else [maps, boxes]
    if data_format == "channels_first":
        inputs = [tf.transpose(t, [0, 3, 1, 2]) if t.shape.rank == 4 else t for t in inputs]
    layer.build([tensor.shape for tensor in inputs])
    randomize(layer)
    *scoring, kernel, bias = layer.get_weights()
    fields = (others if source == "features" else maps) @ kernel[0, 0] + bias
    arguments = {**GEOMETRY, "group_size": 2}
    offsets = tf_deformable.deformable_psroi_pool(fields, *flat(boxes), **arguments)
    offsets = tf.reshape(offsets, [6, 3, 2, 5, 2])
    scores = maps @ scoring[0][0, 0] + scoring[1] if scoring else maps
    expected = tf_deformable.deformable_psroi_pool(scores, *flat(boxes), offsets, **arguments)
    outputs = layer(inputs)
    assert layer.compute_output_shape([t.shape for t in inputs]) == outputs.shape
    if data_format == "channels_first":
        outputs = tf.transpose(outputs, [0, 1, 3, 4, 2])
    np.testing.assert_allclose(outputs, per_image(expected), atol=1e-5)
    np.testing.assert_allclose(layer.compute_offsets(inputs), per_image(offsets), atol=1e-5)
    assert layer.bin_boxes(inputs).shape == (2, 3, 3, 2, 5, 4)


def test_ways_to_give_other_features(boxes):
    maps, others = tf.random.normal([2, 12, 14, 8]), tf.random.normal([2, 12, 14, 3])
    layer = DeformablePSRoIPool(2, 2, offset_source="features")
    expected = layer([maps, boxes, others])
    for outputs in (
        layer(maps, boxes, others),
        layer(maps, boxes, offset_features=others),
        layer({"features": maps, "boxes": boxes, "offset_features": others}),
    ):
        np.testing.assert_array_equal(outputs, expected)
    layer = DeformablePSRoIPool(2, 2, offset_source="features")  # when built, Keras checks first
    with pytest.raises(ValueError, match=r"must be \[features, boxes, offset_features\]"):
        layer([maps, boxes])
    with pytest.raises(ValueError, match="offset_features must have the batch, height and width"):
        layer([maps, boxes, others[:, 1:]])
    with pytest.raises(ValueError, match="offset_features must have rank 4"):
        layer([maps, boxes, others[0]])
    with pytest.raises(ValueError, match="offset_features must have a known number of channels"):
        DeformablePSRoIPool(2, 2, offset_source="features").build(
            [maps.shape, boxes.shape, (2, 12, 14, None)]
        )


def test_channels_of_a_layer_that_makes_score_maps():
    layer = DeformablePSRoIPool(3, 3, score_filters=5)
    assert tuple(layer.compute_output_shape([(1, 9, 9, 2), (1, 7, 4)])) == (1, 7, 3, 3, 5)


def test_score_maps_without_bias(features, boxes):
    layer = DeformablePSRoIPool(2, 2, score_filters=3, use_bias=False, bias_initializer="ones")
    layer([features, boxes])
    assert layer.bias is None and len(layer.weights) == 3


# --- Padding -------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("aligned", [False, True])
def test_padding_is_zero_and_leaves_other_boxes_alone(make, features, boxes, aligned):
    layer = make(aligned=aligned)
    layer.build([features.shape, boxes.shape])
    randomize(layer)
    outputs = layer([features, boxes])
    np.testing.assert_array_equal(outputs[:, 2], tf.zeros_like(outputs[:, 2]))
    assert np.abs(outputs[:, :2]).max() > 0.1
    alone = layer([features, boxes[:, :2]])
    np.testing.assert_allclose(outputs[:, :2], alone, atol=1e-6)
    bins = layer.bin_boxes([features, boxes])
    np.testing.assert_array_equal(bins[:, 2], tf.zeros_like(bins[:, 2]))


@pytest.mark.parametrize("padding", PADDING)
@every_layer
def test_padding_has_no_gradients(make, features, boxes, padding):
    layer = make()
    layer.build([features.shape, boxes.shape])
    randomize(layer)
    only_padding = tf.broadcast_to(padding, boxes.shape)
    with tf.GradientTape() as tape:
        tape.watch(features)
        loss = tf.reduce_sum(layer([features, only_padding]) + 1.0)
    variables = [variable for variable in layer.trainable_weights]
    for gradient in tape.gradient(loss, [features, *variables]):
        assert not np.any(gradient)


@every_layer
def test_more_padding_changes_no_gradient(make, features, boxes):
    layer = make()
    layer.build([features.shape, boxes.shape])
    randomize(layer)

    def gradients(boxes):
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.reduce_sum(layer([features, boxes]) ** 2)
        return tape.gradient(loss, [features, *layer.trainable_weights])

    more = tf.pad(boxes, [[0, 0], [2, 3], [0, 0]])
    for expected, got in zip(gradients(boxes), gradients(more), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@every_layer
def test_features_that_are_not_numbers_do_not_leak_through_padding(make, boxes):
    features = tf.fill([2, 12, 14, 8], np.nan)
    outputs = make()([features, boxes])
    assert np.isnan(outputs[:, :2]).any(axis=(2, 3, 4)).all()
    np.testing.assert_array_equal(outputs[:, 2], tf.zeros_like(outputs[:, 2]))


def test_boxes_that_only_look_like_padding(features):
    """Three zeros are a box, and so are a point and a box of the first pixel alone."""
    boxes = tf.constant([[[0.0, 0.0, 0.0, 5.0], [3.0, 3.0, 3.0, 3.0], [-1.0, -1.0, 0.0, 0.0]]])
    assert np.abs(RoIPool(2)([features[:1], boxes])).max(axis=(2, 3, 4)).all()


# --- Shapes --------------------------------------------------------------------------------------


@every_layer
def test_compute_output_shape(make, features, boxes, is_keras_3):
    layer = make()
    inferred = layer.compute_output_shape([features.shape, boxes.shape])
    assert isinstance(inferred, tuple if is_keras_3 else tf.TensorShape)
    assert tuple(inferred) == layer([features, boxes]).shape
    unknown = layer.compute_output_shape([(None, None, None, 8), (None, None, 4)])
    assert tuple(unknown) == (None, None, *inferred[2:])
    assert layer.compute_output_shape([(2, None, None, 8), (None, 5, 4)])[:2] == (2, 5)


def test_plain_pooling_of_an_unknown_number_of_channels(features, boxes):
    layer = RoIPool(**GEOMETRY)
    assert tuple(layer.compute_output_shape([(2, 9, 9, None), (2, 5, 4)])) == (2, 5, 3, 2, None)

    @tf.function(input_signature=[tf.TensorSpec([None] * 4), tf.TensorSpec([None, None, 4])])
    def graph(features, boxes):
        return layer([features, boxes])

    np.testing.assert_allclose(graph(features, boxes), layer([features, boxes]), atol=1e-6)


@every_layer
def test_one_model_for_all_numbers_of_boxes_and_sizes_of_maps(make):
    inputs = [tf.keras.Input((None, None, 8)), tf.keras.Input((None, 4))]
    layer = make()
    outputs = layer(inputs)
    model = tf.keras.Model(inputs, outputs)
    assert tuple(model.output_shape[:4]) == (None, None, 3, 2)
    assert model.output_shape[4] is not None
    randomize(layer)
    for batch, height, width, count in ((1, 9, 8, 4), (3, 12, 7, 1), (2, 5, 5, 0)):
        features = np.random.default_rng(0).normal(size=[batch, height, width, 8])
        boxes = np.random.default_rng(1).uniform(0, 9, [batch, count, 4]) + [0, 0, 9, 9]
        arrays = [features.astype(np.float32), boxes.astype(np.float32)]
        predicted = model.predict(arrays, verbose=0)
        assert predicted.shape[:2] == (batch, count)
        np.testing.assert_allclose(predicted, layer(arrays), atol=1e-5)


@every_layer
def test_function_traced_with_unknown_shapes(make, features, boxes):
    layer = make()
    layer.build([[None, None, None, 8], [None, None, 4]])
    randomize(layer)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 8]), tf.TensorSpec([None, None, 4])]
    )
    def graph(features, boxes):
        outputs = layer([features, boxes])
        assert outputs.shape.as_list()[2:4] == [3, 2]
        assert outputs.shape[4] is not None
        return outputs, layer.bin_boxes([features, boxes])

    outputs, bins = graph(features, boxes)
    np.testing.assert_allclose(outputs, layer([features, boxes]), atol=1e-5)
    np.testing.assert_allclose(bins, layer.bin_boxes([features, boxes]), atol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the batch size of features"):
        graph(features, boxes[:1])


@every_layer
@pytest.mark.parametrize(("batch", "count"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_pool(make, batch, count):
    outputs = make()([tf.zeros([batch, 12, 14, 8]), tf.zeros([batch, count, 4])])
    assert outputs.shape[:4] == (batch, count, 3, 2)


# --- Dtypes --------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [("float64", 1e-5), ("float32", 0.0), ("mixed_float16", 2e-2), ("mixed_bfloat16", 2e-1)],
)
def test_dtype_policies(make, policy, tolerance, features, boxes):
    exact = built(make(), features, boxes)
    layer = make(dtype=policy)
    layer.build([features.shape, boxes.shape])
    layer.set_weights(exact.get_weights())
    outputs = layer([features, boxes])
    assert outputs.dtype == policy.removeprefix("mixed_")
    np.testing.assert_allclose(
        tf.cast(outputs, tf.float32), exact([features, boxes]), atol=tolerance
    )
    assert layer.bin_boxes([features, boxes]).dtype == "float32"


@pytest.fixture
def far_boxes():
    """Boxes whose coordinates neither float16 nor bfloat16 has, of an image of 4096x1 pixels."""
    low = np.array([1003.3, 2047.5, 3001.5, 4001.0, 513.7], np.float32)
    zero = np.zeros_like(low)
    return np.stack([low, zero, low + np.float32(7.3), zero + 1], axis=1)[None]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("aligned", [False, True])
def test_half_precision_does_not_touch_the_coordinates(policy, aligned, far_boxes):
    """The features are one row of steps of 1: what is pooled is a position modulo 8."""
    ramp = (np.arange(4096) % 8).astype(np.float32).reshape([1, -1, 1, 1])
    geometry = {"output_size": (2, 1), "samples_per_bin": 2, "aligned": aligned}
    expected = RoIPool(**geometry, dtype="float32")([ramp, far_boxes])
    outputs = RoIPool(**geometry, dtype=policy)([ramp, far_boxes])
    np.testing.assert_array_equal(outputs, tf.cast(expected, outputs.dtype))
    # This would show otherwise:
    rounded = np.array(tf.cast(tf.cast(far_boxes, outputs.dtype), tf.float32))
    assert np.abs(RoIPool(**geometry)([ramp, rounded]) - expected).max() > 0.2


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_coordinates_in_a_functional_model_under_a_mixed_policy(policy, far_boxes):
    ramp = (np.arange(4096) % 8).astype(np.float32).reshape([1, -1, 1, 1])
    expected = RoIPool((2, 1), samples_per_bin=2)([ramp, far_boxes])
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        inputs = [tf.keras.Input((None, 1, 1)), tf.keras.Input((None, 4))]
        layer = DeformableRoIPool((2, 1), samples_per_bin=2)
        model = tf.keras.Model(inputs, layer(inputs))
        outputs = model.predict([ramp, far_boxes], verbose=0)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    np.testing.assert_array_equal(outputs, tf.cast(expected, outputs.dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_layer
def test_boxes_in_half_precision_are_refused(make, features, boxes, dtype):
    with pytest.raises(ValueError, match="boxes must be float32 or float64.*autocast=False.*got"):
        make()([features, tf.cast(boxes, dtype)])


@pytest.mark.filterwarnings("ignore:Layer 'head.*' looks like it has unbuilt state:UserWarning")
def test_subclassed_model_under_a_mixed_policy(features, boxes):
    """Such a model casts its inputs, unless it is told not to."""

    class Head(tf.keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.pool = RoIPool(**GEOMETRY, dtype="mixed_bfloat16")

        def call(self, inputs):
            return self.pool(inputs)

    with pytest.raises(ValueError, match="autocast=False"):
        Head(dtype="mixed_bfloat16")([features, boxes])
    outputs = Head(dtype="mixed_bfloat16", autocast=False)([features, boxes])
    expected = RoIPool(**GEOMETRY, dtype="mixed_bfloat16")([features, boxes])
    np.testing.assert_array_equal(outputs, expected)


def test_boxes_of_other_dtypes(features):
    boxes = np.array([[[2, 3, 17, 22]], [[0, 0, 12, 12]]])
    expected = RoIPool(**GEOMETRY)([features, boxes.astype(np.float32)])
    for dtype in (np.int32, np.int64, np.uint8, np.float64):
        outputs = RoIPool(**GEOMETRY)([features, boxes.astype(dtype)])
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
    images = (100 * features.numpy()).astype(np.int32)
    pooled = RoIPool(**GEOMETRY)([images, boxes])
    np.testing.assert_allclose(pooled, RoIPool(**GEOMETRY)([images.astype(np.float32), boxes]))


# --- XLA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_layers_say_whether_xla_compiles_them(backend):
    has_lowering = config.build_info()["xla"]
    with config.use_backend(backend):
        for layer in all_layers():
            assert layer.supports_jit is (backend == "reference" or has_lowering)
        # The boxes decide how much there is to compute: that the reference cannot.
        layer = RoIPool(2, samples_per_bin=0, aligned=True)
        assert layer.supports_jit is (backend == "native" and has_lowering)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_lowering), "reference"])
def test_layers_under_xla(backend, features, boxes):
    with config.use_backend(backend):
        for layer in all_layers():
            built(layer, features, boxes)
            compiled = tf.function(lambda *inputs, layer=layer: layer(inputs), jit_compile=True)
            np.testing.assert_allclose(
                compiled(features, boxes), layer([features, boxes]), rtol=1e-4, atol=1e-4
            )


# --- Refusals ------------------------------------------------------------------------------------


COMMON_REFUSALS = [
    ({"output_size": 0}, "output_size must be a positive integer or two .*, got 0"),
    ({"output_size": (7, 7, 7)}, r"output_size must be .*, got \(7, 7, 7\)"),
    ({"spatial_scale": 0}, "spatial_scale must be a finite number above 0, got 0"),
    ({"spatial_scale": float("inf")}, "spatial_scale must be .*, got inf"),
    ({"spatial_scale": "1/16"}, "spatial_scale must be .*, got '1/16'"),
    (
        {"samples_per_bin": 0, "aligned": False},
        r"samples_per_bin must be .*\(or 0 with aligned=True.*, got 0",
    ),
    ({"samples_per_bin": -1, "aligned": True}, "samples_per_bin must be .*, got -1"),
    ({"samples_per_bin": 2.0}, "samples_per_bin must be .*, got 2.0"),
    ({"samples_per_bin": False, "aligned": True}, "samples_per_bin must be .*, got False"),
    ({"aligned": 1}, "aligned must be True or False, got 1"),
]
OFFSET_REFUSALS = [
    ({"gamma": float("nan")}, "gamma must be a finite number, got nan"),
    ({"gamma": True}, "gamma must be a finite number, got True"),
    (
        {"offset_learning_rate_multiplier": -1},
        "offset_learning_rate_multiplier must be a finite number of at least 0, got -1",
    ),
]


@every_layer
@pytest.mark.parametrize(("change", "message"), COMMON_REFUSALS)
def test_bad_geometry(make, change, message):
    with pytest.raises(ValueError, match=r"RoIPool: " + message):
        make(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *OFFSET_REFUSALS,
        ({"offset_units": 8}, "offset_units must be a tuple of positive integers, got 8"),
        ({"offset_units": (8, 0)}, "each of offset_units must be a positive integer, got 0"),
        ({"modulated": "yes"}, "modulated must be True or False, got 'yes'"),
        ({"mask_initial_value": 0.0}, "mask_initial_value must be 0.5 or 1.0, got 0.0"),
    ],
)
def test_bad_arguments_of_deformable_roi_pool(change, message):
    with pytest.raises(ValueError, match="^DeformableRoIPool: " + message):
        DeformableRoIPool(7, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *OFFSET_REFUSALS,
        ({"score_filters": 0}, "score_filters must be a positive integer, got 0"),
        ({"offset_source": "given"}, "offset_source must be 'inputs' or 'features', got 'given'"),
        ({"group_size": 0}, ".* must be a positive integer.*, got 0"),
        ({"group_size": (7, 7), "output_size": 7}, r"group_size must be .*, got \(7, 7\)"),
        ({"class_agnostic": None}, "class_agnostic must be True or False, got None"),
    ],
)
def test_bad_arguments_of_deformable_psroi_pool(change, message):
    with pytest.raises(ValueError, match="^DeformablePSRoIPool: " + message):
        DeformablePSRoIPool(**{"output_size": 7, "group_size": 7, **change})


def test_bad_group_size_of_psroi_pool():
    with pytest.raises(ValueError, match="^PSRoIPool: group_size must be .*, got -2"):
        PSRoIPool(7, -2)


@every_layer
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 9, 8), (2, 5, 4)], r"features must have rank 4 \[B,H,W,C\], got \(2, 9, 8\)"),
        ([(2, 9, 9, 8), (5, 4)], r"boxes must have shape \[B,R,4\], got \(5, 4\)"),
        ([(2, 9, 9, 8), (2, 5, 5)], r"boxes must have shape \[B,R,4\], got \(2, 5, 5\)"),
        (
            [(2, 9, 9, 8), (3, 5, 4)],
            r"boxes must have the batch size of features \(2\), got \(3, 5, 4\)",
        ),
    ],
)
def test_bad_shapes(make, shapes, message):
    with pytest.raises(ValueError, match="RoIPool: " + message):
        make().compute_output_shape(shapes)
    with pytest.raises(ValueError, match="RoIPool: " + message):
        make()([tf.zeros(shape) for shape in shapes])


@every_layer
def test_not_features_and_boxes(make, features, boxes):
    with pytest.raises(ValueError, match=r"RoIPool: inputs must be \[features, boxes\], got"):
        make()(features)
    with pytest.raises(ValueError, match=r"RoIPool: inputs must be \[features, boxes\], got"):
        make()([features, boxes, boxes])


def test_channels_of_score_maps():
    message = r"features channels must be a positive multiple of group_size\*group_size=9, got 8"
    for cls in (PSRoIPool, DeformablePSRoIPool):
        with pytest.raises(ValueError, match="PSRoIPool: " + message):
            cls(3, 3)([tf.zeros([1, 9, 9, 8]), tf.zeros([1, 2, 4])])
    with pytest.raises(ValueError, match="PSRoIPool: " + message):
        PSRoIPool(3, 3).compute_output_shape([(1, 9, 9, 8), (1, 2, 4)])


@pytest.mark.parametrize("layer", [DeformableRoIPool(2), DeformablePSRoIPool(2, 2)])
def test_weights_need_known_channels(layer):
    with pytest.raises(ValueError, match="features must have a known number of channels, got"):
        layer.build([(2, 9, 9, None), (2, 5, 4)])


@pytest.mark.parametrize("cls", [DeformableRoIPool, DeformablePSRoIPool])
def test_other_channels_than_built_for(cls, features, boxes):
    layer = cls(2, 2) if cls is DeformablePSRoIPool else cls(2)
    layer([features, boxes])
    with pytest.raises(ValueError, match="expected axis -?3"):
        layer([features[..., :5], boxes])


@pytest.mark.parametrize("method", ["compute_offsets", "bin_boxes"])
def test_offsets_before_the_layer_is_built(method, features, boxes):
    for layer in (DeformableRoIPool(2), DeformablePSRoIPool(2, 2)):
        with pytest.raises(ValueError, match="must be built"):
            getattr(layer, method)([features, boxes])


def test_keras_on_another_backend(monkeypatch):
    monkeypatch.setattr(tf.keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="needs the TensorFlow backend of Keras .* got 'jax'"):
        RoIPool(7)
