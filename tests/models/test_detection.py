"""Detectors: boxes and targets, heads, training, detections, files."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.layers import (
    DeformableConv2D,
    DeformablePSRoIPool,
    DeformableRoIPool,
    PSRoIPool,
    RoIPool,
)
from tf_deformable.models import Detector, boxes, detector, faster_rcnn_head, rfcn_head

layers = tf.keras.layers


def backbone():
    images = tf.keras.Input((None, None, 1))
    features = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(images)
    features = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(features)
    features = layers.Conv2D(16, 3, padding="same", activation="relu", name="last")(features)
    return tf.keras.Model(images, features)


def small_detector(kind, **arguments):
    head_arguments = {"faster_rcnn": {"bins": 3, "units": (32,)}, "rfcn": {"bins": 3}}
    return detector(
        backbone(),
        2,
        kind,
        anchor_sizes=(12,),
        aspect_ratios=(1.0,),
        rpn_units=16,
        head_arguments=head_arguments.get(kind),
        proposals=16,
        detections=8,
        sampled_anchors=32,
        **arguments,
    )


def scenes(count):
    """Bright and dark squares on grey, one or two of them."""
    rng = np.random.default_rng(0)
    images = np.full([count, 40, 40, 1], 0.5, np.float32)
    corners = np.zeros([count, 2, 4], np.float32)
    labels = np.full([count, 2], -1)
    for n in range(count):
        for m in range(1 + n % 2):
            size = rng.integers(9, 15)
            y, x = rng.integers(0, 40 - size), 20 * m + rng.integers(0, 20 - size)
            labels[n, m] = rng.integers(2)
            images[n, y : y + size, x : x + size] = labels[n, m]
            corners[n, m] = y, x, y + size, x + size
    return images, {"boxes": corners, "labels": labels}


# --- Boxes ---------------------------------------------------------------------------------------


def test_anchors_lie_on_the_cells_row_by_row():
    anchors = boxes.anchor_boxes((2, 3), 4, (8, 16), (1.0, 4.0)).numpy().reshape(2, 3, 4, 4)
    np.testing.assert_allclose(anchors[0, 0, 0], [-2, -2, 6, 6])
    np.testing.assert_allclose(anchors[0, 0, 1], [-6, 0, 10, 4])  # four times as high as wide
    np.testing.assert_allclose(anchors[1, 2, 2], [6 - 8, 10 - 8, 6 + 8, 10 + 8])


def test_decoding_inverts_encoding():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, [2, 7, 2, 2]).astype(np.float32)
    some, others = (
        np.concatenate([c, c + 5 + rng.uniform(0, 40, c.shape)], -1)
        for c in (corners[:, :, 0], corners[:, :, 1])
    )
    deltas = boxes.encode(some, others)
    np.testing.assert_allclose(boxes.decode(some, deltas), others, rtol=1e-4, atol=1e-3)
    # Centre moved down by a tenth of the height, twice as wide; in units of the variance.
    delta = boxes.encode([[[0.0, 0.0, 10.0, 10.0]]], [[[1.0, -5.0, 11.0, 15.0]]])
    np.testing.assert_allclose(delta[0, 0], [1.0, 0.0, 0.0, np.log(2) / 0.2], atol=1e-5)
    wild = boxes.decode([[0.0, 0.0, 10.0, 10.0]], [[[0.0, 0.0, 900.0, 900.0]]])
    assert np.isfinite(wild).all()


def test_overlaps():
    one = np.array([[[0, 0, 10, 10], [0, 0, 0, 0]]], np.float32)
    others = np.array(
        [[[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0]]], np.float32
    )
    np.testing.assert_allclose(
        boxes.iou(one, others)[0], [[1, 1 / 3, 0, 0], [0, 0, 0, 0]], atol=1e-5
    )


def test_assignment():
    anchors = np.array([[[0, 0, 10, 10], [0, 2, 10, 12], [0, 6, 10, 16], [40, 40, 50, 50],
                         [20, 20, 24, 24]]], np.float32)  # fmt: skip
    objects = np.array([[[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]]], np.float32)
    labels = np.array([[1, 0, -1]])
    got, deltas = boxes.assign(anchors, objects, labels, 3, positive_iou=0.6, negative_iou=0.2)
    np.testing.assert_array_equal(got[0], [1, 1, -1, 3, 3])
    np.testing.assert_allclose(boxes.decode(anchors, deltas)[0, :2], objects[0, [0, 0]], atol=1e-3)
    got, deltas = boxes.assign(
        anchors, objects, labels, 3, positive_iou=0.6, negative_iou=0.2, keep_best=True
    )
    np.testing.assert_array_equal(got[0], [1, 1, -1, 3, 0])  # the best that the second one has
    np.testing.assert_allclose(boxes.decode(anchors, deltas)[0, 4], objects[0, 1], atol=1e-3)
    none, _ = boxes.assign(anchors, objects * 0, labels * 0 - 1, 3, keep_best=True)
    np.testing.assert_array_equal(none[0], [3] * 5)


@pytest.mark.parametrize("bound", [0.5, 0.25])
def test_overlaps_at_the_bounds(bound):
    # Overlaps of exactly 1/2 and 1/4, which float32 has.
    anchors = np.array([[[0, 0, 8, 4], [0, 0, 8, 2]]], np.float32)
    objects, labels = np.array([[[0, 0, 8, 8]]], np.float32), np.array([[1]])
    overlap = int(bound == 0.25)
    above = np.nextafter(np.float32(bound), np.float32(1))
    for positive, expected in ((bound, 1), (above, -1)):
        got, _ = boxes.assign(anchors, objects, labels, 3, positive_iou=positive, negative_iou=0.1)
        assert got[0, overlap] == expected
    for negative, expected in ((bound, -1), (above, 3)):
        got, _ = boxes.assign(anchors, objects, labels, 3, positive_iou=1, negative_iou=negative)
        assert got[0, overlap] == expected


def test_sampling():
    labels = np.array([[0] * 20 + [2] * 60 + [-1] * 20, [0] * 2 + [2] * 98])
    drawn = boxes.sample(labels, 2, 16).numpy()
    assert [drawn[0, :20].sum(), drawn[0, 20:80].sum(), drawn[0, 80:].sum()] == [8, 8, 0]
    assert [drawn[1, :2].sum(), drawn[1, 2:].sum()] == [2, 14]
    assert np.any(drawn != boxes.sample(labels, 2, 16).numpy())


def test_selection():
    corners = np.array([[[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 90, 90]]], np.float32)
    scores = np.array([[[0.9, 0.0], [0.8, 0.7], [0.6, 0.0]]], np.float32)
    found = boxes.select(
        corners, scores, count=5, iou_threshold=0.5, score_threshold=0.1, image_size=(50, 40)
    )
    assert found["counts"] == [3]
    np.testing.assert_allclose(found["scores"][0], [0.9, 0.7, 0.6, 0, 0])
    np.testing.assert_array_equal(found["classes"][0, :3], [0, 1, 0])
    np.testing.assert_allclose(found["boxes"][0, 2], [30, 30, 50, 40])


# --- Heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [faster_rcnn_head, rfcn_head])
@pytest.mark.parametrize("deformable", [False, True])
def test_heads_predict_for_each_box(head, deformable):
    model = head(6, 3, 4, deformable=deformable, bins=3)
    kinds = {
        faster_rcnn_head: (RoIPool, DeformableRoIPool),
        rfcn_head: (PSRoIPool, DeformablePSRoIPool),
    }
    assert any(isinstance(layer, kinds[head][deformable]) for layer in model.layers)
    corners = np.array([[[0, 0, 20, 20], [4, 8, 30, 24]]] * 2, np.float32)
    logits, deltas = model([np.ones([2, 8, 9, 6], np.float32), corners])
    assert logits.shape == (2, 2, 4) and deltas.shape == (2, 2, 4)


# --- Detectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, deformable", [("rpn", False), ("faster_rcnn", True), ("rfcn", True)]
)
def test_detectors_learn(kind, deformable):
    images, targets = scenes(32)
    model = small_detector(kind, deformable=deformable)
    assert isinstance(model.backbone.get_layer("last"), DeformableConv2D) == deformable
    before = model.get_weights()
    model.compile(tf.keras.optimizers.Adam(0.005))
    history = model.fit(images, targets, batch_size=8, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert weight.trainable is False or np.abs(new - old).max() > 0, weight.name

    found = model.predict(images, verbose=0)
    assert found["boxes"].shape == (32, 8, 4)
    right = 0
    for n in range(32):
        overlap = boxes.iou(found["boxes"][n : n + 1, :1], targets["boxes"][n : n + 1]).numpy()[
            0, 0
        ]
        best = overlap.argmax()
        right += overlap[best] > 0.5 and found["classes"][n, 0] == targets["labels"][n, best]
    assert right >= 20  # of the surest detections


def test_steps_are_as_long_in_mixed_precision():
    """float16 needs a scaled loss; the step must not keep, or lose, its scale."""
    images, targets = scenes(4)
    steps = []
    for policy in ("float32", "mixed_float16"):
        tf.keras.mixed_precision.set_global_policy(policy)
        try:
            tf.keras.utils.set_random_seed(0)
            model = small_detector("rpn")
        finally:
            tf.keras.mixed_precision.set_global_policy("float32")
        model.compile(tf.keras.optimizers.SGD(0.1))
        before = model.get_weights()
        model.fit(images, targets, verbose=0)
        steps.append([new - old for new, old in zip(model.get_weights(), before, strict=True)])
    for exact, mixed in zip(*steps, strict=True):
        np.testing.assert_allclose(mixed, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, targets: (images, targets["boxes"]), "targets must be a dictionary of"),
        (lambda images, targets: (images, {"boxes": targets["boxes"]}), r"got \['boxes'\]"),
        (lambda images, targets: (images,), "targets must be a dictionary .* got NoneType"),
        (lambda images, targets: (images, targets, np.ones(2)), "take no sample_weight"),
    ],
)
def test_targets_that_do_not_fit_are_refused(change, message):
    model = small_detector("rpn")
    for step in (model.train_step, model.test_step):
        with pytest.raises(ValueError, match=message):
            step(change(*scenes(2)))


def test_evaluate_reports_the_losses():
    images, targets = scenes(4)
    model = small_detector("faster_rcnn")
    model.compile("sgd")
    losses = model.evaluate(images, targets, verbose=0, return_dict=True)
    assert set(losses) == {"loss", "rpn_classes", "rpn_boxes", "classes", "boxes"}
    parts = sum(value for name, value in losses.items() if name != "loss")
    assert losses["loss"] == pytest.approx(parts, rel=1e-5)


def test_pooling_and_convolution_are_chosen_apart():
    model = small_detector("rfcn", deformable=False, deformable_pooling=True)
    assert not isinstance(model.backbone.get_layer("last"), DeformableConv2D)
    assert isinstance(model.head.get_layer("pooling_logits"), DeformablePSRoIPool)
    with pytest.raises(ValueError, match="kind must be one of"):
        small_detector("yolo")


def test_backbone_and_arguments_of_deformify():
    model = small_detector("rpn", deformable=True, deformify_arguments={"modulated": True})
    assert model.backbone.get_layer("last").modulated
    with pytest.raises(ValueError, match="deformify_arguments need deformable=True, got"):
        small_detector("rpn", deformify_arguments={"modulated": True})
    one = backbone()
    several = tf.keras.Model(one.inputs, [one.outputs[0], one.layers[1].output])
    assert detector(several, 2, channels=8).stride == 4
    assert detector(several, 2, level=1).stride < 4
    with pytest.raises(ValueError, match=r"detector: level must be .*got 2; there are "):
        detector(several, 2, level=2)
    model = detector(one, 2)
    with pytest.raises(ValueError, match="Detector: backbone must .* got 1 inputs and 2 outputs"):
        Detector(several, model.rpn, model.head, 2, 4, (8,))


def test_features_are_reduced_after_the_deformable_layers():
    model = small_detector("faster_rcnn", deformable=True, channels=6)
    assert isinstance(model.backbone.get_layer("last"), DeformableConv2D)
    assert model.backbone.output_shape[-1] == 6 and model.stride == 4
    assert model.head.get_layer("hidden_1").kernel.shape == (3 * 3 * 6, 32)


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn", "rfcn"])
def test_saves_and_serves(kind, tmp_path):
    images, _ = scenes(2)
    model = small_detector(kind, deformable=True, score_threshold=0.0)
    expected = model.predict(images, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    twin = small_detector(kind, deformable=True, score_threshold=0.0)
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(twin(images)["boxes"], expected["boxes"], atol=1e-3)

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images)["boxes"], expected["boxes"], atol=1e-3)

    module = tf.Module()
    module.model = model
    module.serve = tf.function(
        lambda images: model(images), [tf.TensorSpec([None, None, None, 1], tf.float32)]
    )
    tf.saved_model.save(module, str(tmp_path / "saved"))
    served = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(served.serve(images)["boxes"], expected["boxes"], atol=1e-3)
