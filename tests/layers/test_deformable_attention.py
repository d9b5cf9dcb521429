"""The layer of multi-scale deformable attention: values, calls, training, saving, precision."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import MultiScaleDeformableAttention

SIZES = [(5, 6), (3, 2)]
CHANNELS, QUERIES, HEADS, POINTS = 12, 7, 3, 2


def make(**changes):
    arguments = {"num_heads": HEADS, "num_levels": 2, "num_points": POINTS}
    return MultiScaleDeformableAttention(**{**arguments, **changes})


@pytest.fixture
def arrays():
    """Query, reference points, and the maps."""
    random = np.random.default_rng(3)
    values = [
        random.normal(size=[2, QUERIES, CHANNELS]),
        random.uniform(size=[2, QUERIES, 2, 2]),
        *(random.normal(size=[2, *size, 8]) for size in SIZES),
    ]
    return [value.astype(np.float32) for value in values]


def flat(maps):
    return np.concatenate([np.reshape(m, [m.shape[0], -1, m.shape[-1]]) for m in maps], axis=1)


def randomise(layer):
    random = np.random.default_rng(8)
    layer.set_weights([random.normal(size=w.shape, scale=0.3) for w in layer.get_weights()])


def expected(layer, query, references, value, sizes):
    """The definition, on the functional operator's oracle."""
    from tests.oracles.deformable_attention import multi_scale_deformable_attention as oracle

    w = {weight.name.split("/")[-1].split(":")[0]: weight.numpy() for weight in layer.weights}
    heads, levels = layer.num_heads, layer.num_levels
    points = layer.num_points
    points = [points] * levels if isinstance(points, int) else points
    batch, queries, _ = query.shape
    projected = value @ w["value_kernel"] + w["value_bias"]
    offsets = query @ w["offset_kernel"] + w["offset_bias"]
    offsets = offsets.reshape(batch, queries, heads, sum(points), 2)
    logits = query @ w["attention_kernel"] + w["attention_bias"]
    logits = logits.reshape(batch, queries, heads, sum(points))
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    attended, point, pixel = 0, 0, 0
    for level, (size, count) in enumerate(zip(sizes, points, strict=True)):
        reference = references[:, :, min(level, references.shape[2] - 1)][:, :, None, None]
        moved = offsets[:, :, :, point : point + count]
        if references.shape[3] == 4:
            moved = moved / count * reference[..., 2:] / 2
        else:
            moved = moved / np.array(size)
        pixels = size[0] * size[1]
        attended += oracle(
            projected[:, pixel : pixel + pixels].reshape(batch, pixels, heads, -1),
            [size],
            (reference[..., :2] + moved)[:, :, :, None],
            weights[:, :, :, None, point : point + count],
            np.zeros([batch, queries, projected.shape[2]]),
        )["output"]
        point, pixel = point + count, pixel + pixels
    return attended @ w["output_kernel"] + w["output_bias"]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("kind", ["points", "points of all levels", "boxes"])
@pytest.mark.parametrize("num_points", [POINTS, [3, 1]], ids=["same", "of each level"])
def test_agrees_with_its_definition(arrays, num_points, kind, backend):
    query, references, *maps = arrays
    if kind == "points of all levels":
        references = references[:, :, :1]
    elif kind == "boxes":
        sides = np.random.default_rng(0).uniform(0.1, 0.6, references.shape)
        references = np.concatenate([references, sides.astype(np.float32)], axis=-1)
    layer = make(num_points=num_points, head_dim=5, output_dim=9)
    with tf_deformable.config.use_backend(backend):
        layer([query, references, *maps])
        randomise(layer)
        got = layer([query, references, *maps])

    want = expected(layer, query, references, flat(maps), SIZES)
    assert got.shape == (2, QUERIES, 9)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_an_untrained_layer_looks_in_a_direction_of_each_head(arrays):
    layer = make(num_heads=4, num_points=3)
    layer(arrays)

    locations, weights = layer.sampling_locations(arrays)

    pixels = (locations.numpy() - arrays[1][:, :, None, :, None]) * np.array(SIZES)[:, None]
    for head, (dy, dx) in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)]):
        for point in range(3):
            step = np.array([dy, dx]) * (point + 1)
            np.testing.assert_allclose(
                pixels[:, :, head, :, point], np.broadcast_to(step, [2, QUERIES, 2, 2]), atol=1e-5
            )
    np.testing.assert_allclose(weights, np.full(weights.shape, 1 / 6), atol=1e-6)


def test_an_untrained_layer_of_many_heads_looks_whole_pixels_away(arrays):
    layer = make(num_heads=8, head_dim=2, num_points=1)
    layer(arrays)

    locations, _ = layer.sampling_locations(arrays)

    pixels = (locations.numpy() - arrays[1][:, :, None, :, None]) * np.array(SIZES)[:, None]
    around = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
    for head, direction in enumerate(around):
        expected = np.broadcast_to(direction, [2, QUERIES, 2, 1, 2])
        np.testing.assert_allclose(pixels[:, :, head], expected, atol=1e-5)


def test_an_untrained_layer_with_points_of_each_level(arrays):
    layer = make(num_heads=4, num_points=[1, 3])
    layer(arrays)

    locations, weights = layer.sampling_locations(arrays)

    assert locations.shape == (2, QUERIES, 4, 2, 3, 2)
    np.testing.assert_allclose(weights[..., 0, :], np.tile([1 / 4, 0, 0], [2, QUERIES, 4, 1]))
    assert np.all(locations[..., 0, 1:, :] < -1)  # What is missing is far from the map.
    np.testing.assert_allclose(weights[..., 1, :], np.full([2, QUERIES, 4, 3], 1 / 4), atol=1e-6)
    pixels = (locations.numpy() - arrays[1][:, :, None, :, None]) * np.array(SIZES)[:, None]
    np.testing.assert_allclose(pixels[:, :, 1, 0, 0, 0], np.ones([2, QUERIES]), atol=1e-5)
    steps = np.tile([1, 2, 3], [2, QUERIES, 1])
    np.testing.assert_allclose(pixels[:, :, 1, 1, :, 0], steps, atol=1e-5)
    again = MultiScaleDeformableAttention.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("levels", [1, 2])
def test_one_graph_serves_points_of_one_and_of_all_levels(arrays, levels):
    query, references, *maps = arrays
    layer = make()
    layer(arrays)
    randomise(layer)
    specs = [tf.TensorSpec([None, None, CHANNELS]), tf.TensorSpec([None] * 3 + [2])]
    specs += [tf.TensorSpec([None, None, None, 8]) for _ in maps]
    graph = tf.function(lambda *inputs: layer(list(inputs)), input_signature=specs)
    inputs = [query, references[:, :, :levels], *maps]
    np.testing.assert_allclose(graph(*inputs), layer(inputs), atol=1e-5)


def test_projections_start_with_numbers_of_their_own(arrays):
    layer = make(head_dim=4, num_heads=2, output_dim=8)
    layer(arrays)
    assert layer.value_kernel.shape == layer.output_kernel.shape == (8, 8)
    assert not np.allclose(layer.value_kernel, layer.output_kernel)


def test_all_ways_to_call(arrays):
    query, references, *maps = arrays
    layer = make()
    want = layer(arrays)
    value, sizes = flat(maps), tf.constant(SIZES)
    named = {"query": query, "reference_points": references}
    for got in (
        layer(query, references, *maps),
        layer({**named, "value": maps}),
        layer([query, references, value], spatial_shapes=SIZES),
        layer({**named, "value": value}, spatial_shapes=sizes),
        layer(query, references, value, spatial_shapes=sizes),
        tf.function(lambda *inputs: layer(list(inputs)))(*arrays),
    ):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_pixels_that_are_padding_are_not_read(arrays):
    query, references, *maps = arrays
    layer = make()
    layer(arrays)
    randomise(layer)
    mask = np.random.default_rng(1).uniform(size=[2, 36]) < 0.6
    value = flat(maps)
    other = np.where(mask[..., None], value, 1e3).astype(np.float32)

    got, again = (
        layer([query, references, v], spatial_shapes=SIZES, value_mask=mask) for v in (value, other)
    )

    np.testing.assert_array_equal(got, again)
    assert np.abs(got - layer(arrays)).max() > 1e-2


def model_of(layer):
    inputs = [tf.keras.Input((None, CHANNELS)), tf.keras.Input((None, 2, 2))]
    inputs += [tf.keras.Input((None, None, 8)) for _ in SIZES]
    return tf.keras.Model(inputs, layer(inputs))


def test_saving_and_loading(arrays, tmp_path):
    model = model_of(make(head_dim=6, output_dim=5))
    randomise(model.layers[-1])
    want = model.predict(arrays, verbose=0)
    assert want.shape == (2, QUERIES, 5)

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(arrays, verbose=0), want, atol=1e-6)

    model.save_weights(tmp_path / "w.weights.h5")
    other = model_of(make(head_dim=6, output_dim=5))
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_allclose(other.predict(arrays, verbose=0), want, atol=1e-6)

    model.export(str(tmp_path / "exported"))
    served = tf.saved_model.load(str(tmp_path / "exported"))
    bigger = [np.concatenate([a, a[:1]]) for a in arrays]  # another batch than any before
    answer = served.serve(bigger) if hasattr(served, "serve") else served(bigger)
    np.testing.assert_allclose(tf.nest.flatten(answer)[0][:2], want, atol=1e-5)


def test_config_holds_every_constructor_argument():
    arguments = {
        "num_heads": 2,
        "num_levels": 3,
        "num_points": 5,
        "head_dim": 7,
        "output_dim": 9,
        "use_bias": False,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
    }
    parameters = set(inspect.signature(MultiScaleDeformableAttention.__init__).parameters)
    assert parameters - {"self", "kwargs"} == set(arguments)  # or this test is to be completed
    config = MultiScaleDeformableAttention(**arguments, name="look").get_config()
    default = MultiScaleDeformableAttention().get_config()
    for argument in (*arguments, "name"):
        assert config[argument] != default[argument], argument
    again = MultiScaleDeformableAttention.from_config(config)
    assert again.get_config() == config


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_precision_policies(arrays, policy):
    layer, wide = make(dtype=policy), make()
    got, _ = layer(arrays), wide(arrays)
    randomise(wide)
    layer.set_weights(wide.get_weights())

    got = layer(arrays)

    assert got.dtype == {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}.get(
        policy, "float64"
    )
    locations, weights = layer.sampling_locations(arrays)
    assert locations.dtype == weights.dtype == ("float64" if policy == "float64" else "float32")
    tolerance = {"mixed_float16": 2e-2, "mixed_bfloat16": 1e-1}.get(policy, 1e-4)
    np.testing.assert_allclose(tf.cast(got, tf.float32), wide(arrays), atol=tolerance)


def test_it_learns_to_look_where_the_query_says():
    """Queries say where the tip of the one hill of the map is; only there it is 1 high."""
    random = np.random.default_rng(0)
    count, size = 256, 9
    tips = random.uniform(1, size - 2, [count, 2]).round()
    rows, columns = np.mgrid[:size, :size]
    away = np.hypot(rows - tips[:, 0, None, None], columns - tips[:, 1, None, None])
    maps = np.maximum(1 - away / 6, 0)[..., None].astype(np.float32)
    query = ((tips - (size - 1) / 2) / size)[:, None].astype(np.float32)
    references = np.full([count, 1, 1, 2], 0.5, np.float32)

    inputs = [tf.keras.Input(shape) for shape in ((1, 2), (1, 1, 2), (size, size, 1))]
    # Without biases it can give nothing but what it reads.
    layer = MultiScaleDeformableAttention(1, 1, 4, head_dim=4, output_dim=1, use_bias=False)
    model = tf.keras.Model(inputs, layer(inputs))
    model.compile(tf.keras.optimizers.Adam(0.03), "mse")
    target = np.ones([count, 1, 1], np.float32)
    before = model.evaluate([query, references, maps], target, verbose=0)
    model.fit([query, references, maps], target, epochs=40, batch_size=32, verbose=0)
    after = model.evaluate([query, references, maps], target, verbose=0)

    assert after < 2e-3 < 0.1 < before
    locations, weights = layer.sampling_locations([query, references, maps])
    read = tf.reduce_sum(locations * weights[..., None], axis=-2)[:, 0, 0, 0] * size - 0.5
    for axis in (0, 1):  # untrained, all queries read at the same place
        assert np.corrcoef(read[:, axis], tips[:, axis])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads must be a positive integer, got 0"),
        ({"num_levels": 1.5}, "num_levels must be a positive integer, got 1.5"),
        ({"num_points": None}, "num_points must be a positive integer, got None"),
        ({"num_points": [2, 0]}, "num_points must be a positive integer, got 0"),
        ({"num_points": [2]}, "num_points must be an integer or a list of 2, one for each level"),
        ({"head_dim": -1}, "head_dim must be a positive integer, got -1"),
        ({"use_bias": 1}, "use_bias must be True or False, got 1"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=f"MultiScaleDeformableAttention: {message}"):
        make(**changes)


def test_wrong_inputs(arrays):
    query, references, *maps = arrays
    for inputs, message in (
        ([query, references], r"inputs must be \[query, reference_points, value\]"),
        ([query, references, maps[0]], r"must end with one value \[B,S,C\] or 2 maps"),
        ([query[0], references, *maps], "must begin with query"),
        ([query, references[..., :1], *maps], "reference_points must be"),
        ([query, references.repeat(2, axis=3)[..., :3], *maps], "reference_points must be"),
        ([query, references[:, :, :0], *maps], "reference_points must be"),
        ([query, references.repeat(2, axis=2), *maps], "reference_points must be"),
        ([query, references, maps[0], maps[1][..., :3]], "the same number of channels"),
        ([query, references, flat(maps)], "spatial_shapes must be given with a flat value"),
    ):
        with pytest.raises(ValueError, match=message):
            make()(inputs)
    with pytest.raises(ValueError, match="num_heads must divide the channels of the query"):
        make(num_heads=5)(arrays)
    with pytest.raises(ValueError, match="spatial_shapes must not be given with maps"):
        make()(arrays, spatial_shapes=SIZES)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("kind", ["maps", "a flat value"])
def test_xla_compiles_the_layer(arrays, kind, backend):
    query, references, *maps = arrays
    layer = make()
    layer(arrays)
    randomise(layer)

    def step(query, references, *maps):
        inputs, named = [query, references, *maps], {}
        if kind == "a flat value":
            inputs, named = [query, references, maps[0]], {"spatial_shapes": SIZES}
        with tf.GradientTape() as tape:
            output = layer(inputs, **named)
            loss = tf.reduce_sum(output**2)
        return [output, *tape.gradient(loss, layer.trainable_weights)]

    tensors = [query, references, *(maps if kind == "maps" else [flat(maps)])]
    with tf_deformable.config.use_backend(backend):
        assert layer.supports_jit is (
            backend == "reference" or tf_deformable.config.build_info()["xla"]
        )
        if not layer.supports_jit:
            pytest.skip("the headers of this TensorFlow lack XLA's FFI")
        got, want = tf.function(step, jit_compile=True)(*tensors), step(*tensors)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(
    not tf_deformable.config.build_info()["xla"], reason="this TensorFlow lacks XLA's FFI"
)
def test_keras_trains_the_layer_by_xla(arrays):
    losses = []
    for jit_compile in (False, True):
        tf.keras.utils.set_random_seed(1)
        inputs = [tf.keras.Input(array.shape[1:]) for array in arrays]
        model = tf.keras.Model(inputs, make()(inputs))
        model.compile("sgd", "mse", jit_compile=jit_compile)
        target = np.ones([2, QUERIES, CHANNELS], np.float32)
        losses.append(model.fit(arrays, target, epochs=3, verbose=0).history["loss"])
    assert losses[0][2] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
