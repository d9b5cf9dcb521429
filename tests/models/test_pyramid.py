"""Detectors on feature pyramids: levels of boxes, the top-down network, training, files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import analysis
from tf_deformable.layers import DeformableConv2D, DeformableRoIPool, RoIPool
from tf_deformable.models import (
    Detector,
    boxes,
    detector,
    faster_rcnn_head,
    feature_pyramid_network,
)

layers = tf.keras.layers
STRIDES = (4, 8, 16)


def backbone(size=(None, None), channels=1, padding="same"):
    """Maps of strides 4, 8 and 16, and of different depths."""
    images = tf.keras.Input((*size, channels))
    x = layers.Conv2D(8, 3, strides=2, padding=padding, activation="relu", name="stem")(images)
    maps = {}
    for level, filters in (("P2", 12), ("P3", 16), ("P4", 20)):
        x = layers.Conv2D(
            filters, 3, strides=2, padding=padding, activation="relu", name=f"{level}_conv"
        )(x)
        maps[level] = x
    return tf.keras.Model(images, list(maps.values()), name="backbone")


def small_detector(kind="faster_rcnn", **arguments):
    head = {"bins": 3, "units": (32,), "canonical_size": 28}  # pixels, at stride 16
    return detector(
        backbone(),
        2,
        kind,
        **{
            **{"pyramid": (0, 1, 2), "channels": 16, "anchor_sizes": (9, 18, 36)},
            **{"aspect_ratios": (1.0,), "rpn_units": 16, "proposals": 24, "detections": 8},
            **{"head_arguments": head if kind == "faster_rcnn" else None, "sampled_anchors": 64},
            **arguments,
        },
    )


def scenes(count):
    """Bright and dark squares on grey, of 6 to 40 pixels."""
    rng = np.random.default_rng(0)
    images = np.full([count, 64, 64, 1], 0.5, np.float32)
    corners = np.zeros([count, 2, 4], np.float32)
    labels = np.full([count, 2], -1)
    for n in range(count):
        for m, sizes in enumerate(((6, 16), (18, 40))[n % 2 :]):
            size = rng.integers(*sizes)
            x_end = 64 if n % 2 else (20, 64)[m]
            y, x = rng.integers(0, 65 - size), rng.integers(20 * m, x_end + 1 - size)
            labels[n, m] = rng.integers(2)
            images[n, y : y + size, x : x + size] = labels[n, m]
            corners[n, m] = y, x, y + size, x + size
    return images, {"boxes": corners, "labels": labels}


def random_boxes(count, largest, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(2), np.log(largest), [count, 2]))
    starts = rng.uniform(0, 50, [count, 2])
    return np.concatenate([starts, starts + sizes], axis=-1).astype(np.float32)


# --- Levels of boxes -----------------------------------------------------------------------------


@pytest.mark.parametrize("canonical_size", [224.0, 100.0])
def test_levels_are_those_of_equation_1(canonical_size):
    some = random_boxes(1000, 2000)
    height, width = (some[:, axis + 2].astype(float) - some[:, axis] for axis in (0, 1))
    k = np.floor(4 + np.log2(np.sqrt(width * height) / canonical_size))
    expected = np.clip(k, 2, 5) - 2
    assert set(expected) == {0, 1, 2, 3}
    got = boxes.assign_levels(some[np.newaxis], (4, 8, 16, 32), canonical_size)
    assert got.dtype == tf.int32
    np.testing.assert_array_equal(got[0], expected)
    # The same where levels are missing: what they would have is the next finer one's.
    got = boxes.assign_levels(some, (4, 16), canonical_size)
    np.testing.assert_array_equal(got, expected >= 2)


def test_levels_at_the_bounds():
    sizes = np.array([0, 55.9, 56, 111.9, 112, 223.9, 224, 447.9, 448, 9000], np.float32)
    squares = np.stack([sizes * 0, sizes * 0, sizes, sizes], axis=-1)
    got = boxes.assign_levels(squares, (4, 8, 16, 32))
    np.testing.assert_array_equal(got, [0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    turned = np.array([[0, 0, -30, 900], [0, 0, 448, 112]], np.float32)
    np.testing.assert_array_equal(boxes.assign_levels(turned, (4, 8, 16, 32)), [0, 2])


def pooled_one_by_one(maps, corners, canonical_size, bins):
    """Each box, pooled alone, from the map of its level."""
    height, width = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    levels = np.floor(4 + np.log2(np.sqrt(height * width) / canonical_size)).clip(2, 4) - 2
    rows = []
    for box, level in zip(corners, levels.astype(int), strict=True):
        pool = RoIPool(bins, spatial_scale=1 / STRIDES[level])
        rows.append(pool([tf.constant(maps[level]), tf.constant(box[None, None])])[0, 0])
    return np.stack(rows), levels


@pytest.mark.parametrize("deformable", [False, True])
def test_head_pools_each_box_from_its_map(deformable):
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=[1, 96 // s, 96 // s, 6]).astype(np.float32) for s in STRIDES]
    corners = random_boxes(40, 80)
    head = faster_rcnn_head(
        6, 3, STRIDES, deformable=deformable, bins=2, units=(8,), canonical_size=56
    )
    kinds = DeformableRoIPool if deformable else RoIPool
    pools = [head.get_layer(f"pooling_{stride}") for stride in STRIDES]
    assert all(isinstance(pool, kinds) for pool in pools)
    expected, levels = pooled_one_by_one(maps, corners, 56, 2)
    assert set(levels) == {0, 1, 2}
    inside = tf.keras.Model(head.inputs, head.get_layer("pooled").output)
    padding = np.array([[0, 0, 0, 0], [-1, -1, -1, -1]], np.float32)
    every = tf.constant(np.concatenate([corners, padding])[np.newaxis])
    tensors = [tf.constant(each) for each in maps]
    got = inside([*tensors, every])[0].numpy()
    np.testing.assert_allclose(got[:40], expected, atol=1e-5)
    assert not np.any(got[40:])
    boxes_alone = every[:, :40]
    logits, deltas = head([*tensors, boxes_alone])
    assert logits.shape == (1, 40, 4) and deltas.shape == (1, 40, 4)
    # What one box says comes from one map.
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensors)
        logits, _ = head([*tensors, boxes_alone])
        parts = [tf.reduce_sum(logits[0, box] * [1.0, 2.0, 3.0, 4.0]) for box in range(6)]
    for part, level in zip(parts, levels, strict=False):
        moved = [np.any(gradient) for gradient in tape.gradient(part, tensors)]
        assert moved == [level == number for number in range(3)]


# --- The top-down network ------------------------------------------------------------------------


def enlarged(coarse, shape):
    """Cells repeated, in plain Python."""
    result = np.zeros(shape, np.float32)
    for y, x in np.ndindex(*shape[1:3]):
        if y // 2 < coarse.shape[1] and x // 2 < coarse.shape[2]:
            result[:, y, x] = coarse[:, y // 2, x // 2]
    return result


@pytest.mark.parametrize("size", [(64, 96), (52, 76), (44, 100)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pyramid_adds_what_coarse_maps_have_seen(size, padding):
    below = backbone(padding=padding)
    network = feature_pyramid_network(below, 5)
    images = np.random.default_rng(0).normal(size=[2, *size, 1]).astype(np.float32)
    above, expected = None, []
    for features, stride in list(zip(below(images), STRIDES, strict=True))[::-1]:
        kernel, bias = network.get_layer(f"fpn_lateral_{stride}").get_weights()
        merged = features.numpy() @ kernel[0, 0] + bias
        if above is not None:
            merged = merged + enlarged(above, merged.shape)
        above = merged
        kernel, bias = network.get_layer(f"fpn_output_{stride}").get_weights()
        expected.insert(0, tf.nn.conv2d(merged, kernel, 1, "SAME") + bias)
    got = network(images)
    assert isinstance(got, list) and len(got) == 3
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_pyramid_keeps_the_shapes_that_are_known(tmp_path):
    network = feature_pyramid_network(backbone((40, 56)), 5, name="pyramid")
    shapes = [tuple(output.shape) for output in network.outputs]
    assert shapes == [(None, 10, 14, 5), (None, 5, 7, 5), (None, 3, 4, 5)]
    network.save(tmp_path / "pyramid.keras")
    loaded = tf.keras.models.load_model(tmp_path / "pyramid.keras")
    images = np.random.default_rng(0).normal(size=[1, 40, 56, 1]).astype(np.float32)
    for one, other in zip(loaded(images), network(images), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_maps_that_make_no_pyramid_are_refused():
    parts = backbone()
    one = tf.keras.Model(parts.input, parts.outputs[0])
    turned = tf.keras.Model(parts.input, parts.outputs[::-1])
    for model in (one, turned):
        with pytest.raises(ValueError, match="must return two maps or more, each with a stride"):
            feature_pyramid_network(model)


# --- Detectors -----------------------------------------------------------------------------------


def test_what_the_parts_are():
    model = small_detector(deformable=True)
    assert model.stride == (4.0, 8.0, 16.0)
    assert model.anchor_sizes == ((9.0,), (18.0,), (36.0,))
    assert isinstance(model.backbone.get_layer("P4_conv"), DeformableConv2D)
    assert not isinstance(model.backbone.get_layer("P3_conv"), DeformableConv2D)
    maps = model.backbone(np.zeros([1, 64, 96, 1], np.float32))
    anchors = model.anchors(maps)
    each = [boxes.anchor_boxes((64 // s, 96 // s), s, (2.25 * s,)) for s in STRIDES]
    np.testing.assert_allclose(anchors, np.concatenate(each), atol=1e-5)
    assert len(each[0]) == 16 * 24
    default = detector(backbone(), 2, pyramid=range(3), channels=8, aspect_ratios=(1.0, 2.0))
    assert default.anchor_sizes == ((32.0,), (64.0,), (128.0,))
    several = detector(
        backbone(), 2, pyramid=(2, 0), channels=8, anchor_sizes=((20, 30), (90, 120))
    )
    assert several.stride == (4.0, 16.0)  # the finest first, whatever the order
    anchors = several.anchors(several.backbone(np.zeros([1, 32, 32, 1], np.float32)))
    assert anchors.shape == ((64 + 4) * 2 * 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "rfcn", "head_arguments": None}, "pyramid must be None with kind 'rfcn'"),
        ({"level": 0}, r"pyramid must be None with a level, got \(0, 1, 2\)"),
        ({"pyramid": (0,)}, "pyramid must be a list of two maps or more, by name or index, got"),
        ({"pyramid": "P2"}, "pyramid must be a list of two maps or more"),
        ({"pyramid": (0, None)}, "pyramid must be a list of two maps or more"),
        ({"pyramid": (0, 7)}, "level must be one of the maps .* got 7; there are"),
        ({"pyramid": (0, -3)}, r"must differ in their strides, got 0 \(4\), -3 \(4\)"),
        ({"channels": None}, r"channels must be given .* got None for maps of \[12, 16, 20\]"),
        ({"anchor_sizes": (8, 16)}, "anchor_sizes must have a size for each of the maps"),
        ({"anchor_sizes": ((8,), (16,), (1, 2))}, "anchor_sizes must have a size for each"),
    ],
)
def test_what_makes_no_detector_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_detector(**arguments)


def test_backbone_must_have_as_many_maps_as_strides():
    model = small_detector("rpn")
    with pytest.raises(ValueError, match="and return 2 maps, as there are strides, got 1 inputs"):
        Detector(model.backbone, model.rpn, None, 2, (4, 8), (9, 18))


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn"])
def test_training_reaches_every_level(kind):
    """Objects of all sizes: every lateral, pooling and deformable layer is moved by them."""
    images, targets = scenes(8)
    model = small_detector(kind, deformable=True)
    model.compile(tf.keras.optimizers.SGD(0.01))
    with tf.GradientTape() as tape:
        loss = tf.add_n(list(model.losses_of(images, targets).values()))
    gradients = tape.gradient(loss, model.trainable_weights)
    names = [getattr(w, "path", w.name) for w in model.trainable_weights]
    still = [n for n, g in zip(names, gradients, strict=True) if g is None or not np.any(g)]
    assert not still
    laterals = [name for name in names if "fpn_lateral" in name]
    poolings = {name.split("/")[-2] for name in names if "pooling_" in name}
    assert len(laterals) == 6
    assert poolings == ({f"pooling_{s}" for s in STRIDES} if kind == "faster_rcnn" else set())


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn"])
def test_detectors_on_pyramids_learn(kind):
    images, targets = scenes(32)
    model = small_detector(kind, deformable=True)
    model.compile(tf.keras.optimizers.Adam(0.005))
    history = model.fit(images, targets, batch_size=8, epochs=60, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    found = model.predict(images, verbose=0)
    right, levels = 0, set()
    for n in range(32):
        overlap = boxes.iou(found["boxes"][n : n + 1, :1], targets["boxes"][n : n + 1]).numpy()[
            0, 0
        ]
        best = overlap.argmax()
        is_right = overlap[best] > 0.5 and found["classes"][n, 0] == targets["labels"][n, best]
        right += is_right
        if is_right:
            levels.add(int(boxes.assign_levels(targets["boxes"][n, best], STRIDES, 28)))
    assert right >= 20 and len(levels) > 1  # of the surest detections


@pytest.mark.slow
def test_learns_digits():
    pytest.importorskip("sklearn", reason="the digits")
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        import digit_scenes
        import digits
    finally:
        sys.path.pop(0)
    scans = digits.load(seed=0, copies=1, max_scans=200).training
    drawn = digit_scenes.compose(scans, 32, np.random.default_rng(0))
    model = detector(
        backbone(),
        10,
        pyramid=(0, 1, 2),
        channels=32,
        deformable=True,
        anchor_sizes=(12, 24, 48),
        aspect_ratios=(1.0,),
        rpn_units=32,
        proposals=24,
        head_arguments={"bins": 3, "units": (64,), "canonical_size": 56},
    )
    model.compile(tf.keras.optimizers.Adam(0.003, clipnorm=10.0))
    targets = {"boxes": drawn.boxes, "labels": drawn.labels}
    history = model.fit(drawn.images, targets, batch_size=8, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert history["rpn_boxes"][-1] < history["rpn_boxes"][0]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    images, targets = scenes(4)
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = small_detector(deformable=True)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    model.compile(tf.keras.optimizers.SGD(0.01))
    history = model.fit(images, targets, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.predict(images, verbose=0)["boxes"].dtype == np.float32


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn"])
def test_saves_and_serves(kind, tmp_path):
    images, targets = scenes(2)
    model = small_detector(kind, deformable=True, score_threshold=0.0)
    model.compile("adam")
    model.fit(images, targets, verbose=0)
    expected = model.predict(images, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert loaded.stride == model.stride and loaded.anchor_sizes == model.anchor_sizes
    assert int(loaded.optimizer.iterations.numpy()) == 1
    model.save_weights(tmp_path / "model.weights.h5")
    twin = Detector.from_config(model.get_config())
    twin.load_weights(tmp_path / "model.weights.h5")
    for copy in (loaded, twin):
        for name, value in copy.predict(images, verbose=0).items():
            np.testing.assert_allclose(value, expected[name], atol=1e-3)

    model.export(str(tmp_path / "exported"))
    tf.saved_model.save(model, str(tmp_path / "saved"))
    larger = np.random.default_rng(0).uniform(size=[1, 80, 48, 1]).astype(np.float32)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    saved = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    (name,) = saved.structured_input_signature[1]
    for request in (images, larger):
        answer = model.predict(request, verbose=0)
        for got in (exported.serve(request), saved(**{name: tf.constant(request)})):
            np.testing.assert_allclose(got["boxes"], answer["boxes"], atol=1e-2)
            np.testing.assert_allclose(got["scores"], answer["scores"], atol=1e-4)


def test_bins_are_in_pixels_of_the_image():
    """Also where a level has no box."""
    images, _ = scenes(2)
    model = small_detector(deformable=True)
    found = {each.layer.name: each for each in analysis.roi_bins(model, images)}
    assert list(found) == [f"pooling_{stride}" for stride in STRIDES]
    present = np.stack([each.present for each in found.values()])
    assert np.all(present.sum(axis=0) <= 1) and present.any()
    for each in found.values():
        np.testing.assert_allclose(
            each.regular[..., 0, 0, :2][each.present], each.boxes[..., :2][each.present], atol=1e-3
        )
    none = small_detector(
        deformable=True, head_arguments={"bins": 3, "units": (8,), "canonical_size": 1e4}
    )
    report = analysis.offset_report(none, images)
    rows = {row.name: row for row in report.layers}
    assert rows["pooling_4"].count > 0 and rows["pooling_16"].count == 0
    assert np.isnan(rows["pooling_16"].mean) and "pooling_16" in str(report)
