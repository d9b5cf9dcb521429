"""The parts of detectors, one by one: what each computes of small tensors, without training."""

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable.layers import DeformableConv2D, DeformablePSRoIPool, DeformableRoIPool, RoIPool
from tf_deformable.models import (
    Detector,
    boxes,
    detector,
    faster_rcnn_head,
    feature_pyramid_network,
    region_proposal_network,
    rfcn_head,
)
from tf_deformable.models.detection.box_layers import Best, BoxesByLevel, Joined, Regions
from tf_deformable.models.detection.targets import as_batch

layers = tf.keras.layers


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def backbone(maps=1):
    """Of stride 4, or of strides 4 and 8."""
    images = tf.keras.Input((None, None, 1))
    features = layers.Conv2D(4, 3, strides=4, padding="same")(images)
    last = layers.Conv2D(4, 3, padding="same", name="last")(features)
    coarse = layers.Conv2D(4, 3, strides=2, padding="same")(last)
    return tf.keras.Model(images, [last, coarse] if maps == 2 else last)


def part_of(model, layer):
    """The model up to a layer."""
    return tf.keras.Model(model.inputs, model.get_layer(layer).output)


# --- Networks ------------------------------------------------------------------------------------


def test_the_network_of_proposals_is_a_convolution_with_relu_and_two_of_one_pixel():
    network = region_proposal_network(3, 2, 2, units=5)
    network.set_weights([random(*w.shape, seed=n) for n, w in enumerate(network.get_weights())])
    features = random(1, 4, 6, 3)

    logits, deltas = network(features)

    kernel, bias = network.get_layer("shared").get_weights()
    hidden = np.maximum(tf.nn.conv2d(features, kernel, 1, "SAME") + bias, 0)
    for got, name in ((logits, "rpn_logits"), (deltas, "rpn_deltas")):
        kernel, bias = network.get_layer(name).get_weights()
        expected = (hidden @ kernel[0, 0] + bias).reshape(1, 4 * 6 * 2, -1)
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert logits.shape[2] == 3 and deltas.shape[2] == 4


CORNERS = np.float32([[[0, 0, 20, 20], [4, 8, 30, 24], [10, 3, 17, 35]]])


@pytest.mark.parametrize("kind", [RoIPool, DeformableRoIPool])
def test_a_head_pools_at_the_scale_of_its_stride_and_has_hidden_layers(kind):
    head = faster_rcnn_head(6, 3, 4, deformable=kind is DeformableRoIPool, bins=2, units=(9, 7))
    features = random(1, 8, 9, 6)

    pooled = RoIPool(2, spatial_scale=1 / 4)([features, CORNERS])
    np.testing.assert_allclose(part_of(head, "pooling")([features, CORNERS]), pooled, atol=1e-5)

    hidden = np.reshape(pooled, [1, 3, 24])
    for name in ("hidden_1", "hidden_2"):
        kernel, bias = head.get_layer(name).get_weights()
        hidden = np.maximum(hidden @ kernel + bias, 0)
    for got, name in zip(head([features, CORNERS]), ("logits", "deltas"), strict=True):
        kernel, bias = head.get_layer(name).get_weights()
        np.testing.assert_allclose(got, hidden @ kernel + bias, atol=1e-4)


def test_of_a_pyramid_each_map_is_pooled_at_its_own_scale():
    head = faster_rcnn_head(6, 3, (4, 8, 16), bins=2, units=(4,))
    for stride in (4, 8, 16):
        assert head.get_layer(f"pooling_{stride}").spatial_scale == 1 / stride


@pytest.mark.parametrize("deformable", [False, True])
def test_the_votes_of_rfcn_are_means_of_bins_at_the_scale_of_the_stride(deformable):
    head = rfcn_head(6, 3, 4, deformable=deformable, bins=3)
    features = random(1, 8, 9, 6)
    for got, name, depth in zip(
        head([features, CORNERS]), ("logits", "deltas"), (4, 4), strict=True
    ):
        pool = head.get_layer(f"pooling_{name}")
        assert pool.spatial_scale == 1 / 4
        bins = part_of(head, f"pooling_{name}")([features, CORNERS]).numpy()
        assert bins.shape == (1, 3, 3, 3, depth)
        np.testing.assert_allclose(got, bins.mean(axis=(2, 3)), atol=1e-5)
    if deformable:  # The classes move their bins each by itself, the corrections together.
        of_logits, of_deltas = (head.get_layer(f"pooling_{n}") for n in ("logits", "deltas"))
        assert isinstance(of_logits, DeformablePSRoIPool)
        assert not of_logits.class_agnostic and of_deltas.class_agnostic


# --- Boxes between the networks ------------------------------------------------------------------


def test_regions_are_the_anchors_of_all_maps_corrected():
    regions = Regions((4, 8), ((8,), (16,)), (1.0, 2.0))
    maps = [np.zeros([1, 3, 5, 1], np.float32), np.zeros([1, 2, 3, 1], np.float32)]
    anchors = [
        boxes.anchor_boxes(each.shape[1:3], stride, (size,), (1.0, 2.0))
        for each, stride, size in zip(maps, (4, 8), (8, 16), strict=True)
    ]
    expected = np.concatenate(anchors)

    assert expected.shape == ((3 * 5 + 2 * 3) * 2, 4)
    np.testing.assert_allclose(expected[-2], [4, 12, 20, 28])  # around (12, 20), 16 x 16
    np.testing.assert_array_equal(regions.anchors(maps), expected)
    deltas = random(1, len(expected), 4)
    np.testing.assert_allclose(
        regions([*maps, deltas])[0], boxes.decode(expected, deltas)[0], atol=1e-4
    )


def test_logits_and_deltas_of_maps_are_joined_in_the_order_of_the_maps():
    pairs = [(random(2, n, 3, seed=n), random(2, n, 4, seed=-n % 7)) for n in (5, 2, 1)]
    for got, each in zip(Joined()(pairs), zip(*pairs, strict=True), strict=True):
        np.testing.assert_array_equal(got, np.concatenate(each, axis=1))


def test_the_best_boxes_are_cut_to_the_image_and_those_of_the_background_left_out():
    corners = np.float32([[[-5, 2, 9, 12], [10, 30, 50, 70], [0, 0, 4, 4], [12, 2, 18, 9]]])
    # Of two classes and, last, the background.
    logits = np.float32([[[3, 0, 0], [0, 4, 0], [0, 0, 9], [0.1, 0, 0]]])
    images = np.zeros([1, 40, 60, 3], np.float32)
    best = Best(3, 0.5, score_threshold=0.5)

    with tf.GradientTape() as tape:
        inputs = [tf.constant(corners), tf.constant(logits)]
        tape.watch(inputs)
        found = best([*inputs, images])
        total = tf.reduce_sum(found["boxes"]) + tf.reduce_sum(found["scores"])

    assert found["counts"] == [2]
    np.testing.assert_array_equal(found["classes"][0, :2], [1, 0])
    np.testing.assert_allclose(found["boxes"][0, :2], [[10, 30, 40, 60], [0, 2, 9, 12]])
    scores = [np.exp(4) / (np.exp(4) + 2), np.exp(3) / (np.exp(3) + 2)]
    np.testing.assert_allclose(found["scores"][0, :2], scores, rtol=1e-5)
    assert tape.gradient(total, inputs) == [None, None]


def test_boxes_of_other_levels_are_zeros():
    squares = np.float32([[[0, 0, size, size] for size in (30, 130, 300, 60)]])
    got = BoxesByLevel((8, 16), 224.0)(squares)
    is_fine = np.array([1, 1, 0, 1])[:, None]
    np.testing.assert_array_equal(got[0][0], squares[0] * is_fine)
    np.testing.assert_array_equal(got[1][0], squares[0] * (1 - is_fine))


# --- Put together --------------------------------------------------------------------------------


def test_defaults_of_the_anchors_and_of_the_networks():
    model = detector(backbone(), 3)
    assert model.stride == 4 and model.anchor_sizes == (64, 128, 256)
    assert model.aspect_ratios == (0.5, 1, 2)
    # The proposals are of one class, objects, whatever the classes are.
    logits, deltas = model.rpn(np.zeros([1, 2, 3, 4], np.float32))
    assert logits.shape == (1, 2 * 3 * 9, 2) and deltas.shape == (1, 2 * 3 * 9, 4)
    assert model.rpn.get_layer("shared").filters == 256
    assert model.get_layer("proposals").get_config()["iou_threshold"] == 0.7
    assert model.get_layer("detections").get_config()["iou_threshold"] == 0.3

    pyramid = detector(backbone(2), 3, pyramid=(0, 1))
    assert pyramid.stride == (4, 8) and pyramid.anchor_sizes == ((32,), (64,))
    alone = detector(backbone(), 3, "rpn", rpn_units=6)
    assert alone.rpn(np.zeros([1, 1, 1, 4], np.float32))[0].shape == (1, 9, 4)
    assert alone.rpn.get_layer("shared").filters == 6


@pytest.mark.parametrize("deformable", [False, True])
def test_the_pooling_is_deformable_as_the_backbone_is(deformable):
    model = detector(backbone(), 3, deformable=deformable)
    assert isinstance(model.head.get_layer("pooling"), DeformableRoIPool) == deformable
    assert isinstance(model.backbone.get_layer("last"), DeformableConv2D) == deformable


def test_a_last_stage_that_is_dilated_stays_of_plain_convolutions():
    images = tf.keras.Input((None, None, 1))
    features = layers.Conv2D(4, 3, strides=2, padding="same")(images)
    features = layers.Conv2D(4, 3, strides=2, padding="same", name="strided")(features)
    features = layers.Conv2D(4, 3, padding="same", name="last")(features)
    network = tf.keras.Model(images, features)

    model = detector(network, 3, dilate_last_stage=True)

    assert model.stride == 2 and model.backbone.get_layer("last").dilation_rate == (2, 2)
    assert not any(isinstance(layer, DeformableConv2D) for layer in model.backbone.layers)


def test_a_neck_reduces_the_channels_and_has_relu():
    model = detector(backbone(), 3, "rpn", channels=5)
    features = model.backbone(random(1, 32, 32, 1)).numpy()
    assert features.shape == (1, 8, 8, 5)
    assert features.min() == 0 < features.max()


def test_a_level_and_a_pyramid_exclude_each_other():
    with pytest.raises(ValueError, match="pyramid must be None with a level"):
        detector(backbone(2), 3, pyramid=(0, 1), level=0)


# --- Losses --------------------------------------------------------------------------------------


def losses_of(corners):
    """Of an image of zeros with these objects."""
    model = detector(
        backbone(), 2, anchor_sizes=(16,), aspect_ratios=(1.0,), sampled_anchors=10**6,
        head_arguments={"bins": 2, "units": (4,)}, proposals=4,
    )  # fmt: skip
    targets = {"boxes": np.float32([corners]), "labels": np.array([[1] * len(corners)])}
    return model.losses_of(np.zeros([1, 32, 32, 1], np.float32), targets)


def test_the_losses_of_no_images_are_zeros():
    """What a replica gets when the last batch has fewer images than there are replicas."""
    # Without convolutions: those of TensorFlow fail without images.
    images = tf.keras.Input((32, 32, 1))
    pooled = tf.keras.Model(images, layers.AveragePooling2D(4)(images))
    features = tf.keras.Input((8, 8, 1))
    outputs = [layers.Reshape((64, n))(layers.Dense(n)(features)) for n in (3, 4)]
    model = Detector(pooled, tf.keras.Model(features, outputs), None, 2, 4, (16,))
    targets = {"boxes": np.zeros([0, 1, 4], np.float32), "labels": np.zeros([0, 1], int)}
    losses = model.losses_of(np.zeros([0, 32, 32, 1], np.float32), targets)
    assert {name: float(value) for name, value in losses.items()} == dict.fromkeys(losses, 0.0)


def test_an_object_that_no_anchor_overlaps_well_teaches_the_best_of_them():
    small = [[7, 7, 15, 15]]  # A quarter of the anchor around (10, 10), the best.
    assert boxes.iou([[[2.0, 2, 18, 18]]], [small])[0, 0, 0] == 0.25
    assert losses_of(small)["rpn_boxes"] > 0


def test_the_loss_of_boxes_is_the_sum_of_the_huber_losses_of_their_sides():
    terms = losses_of([[2, 2, 18, 18], [1.5, 7, 17.5, 23]])
    # Anchors that overlap by 0.6 with one of them have deltas; the untrained network has others.
    centers = np.stack(np.meshgrid(*[np.arange(2, 32, 4.0)] * 2, indexing="ij"), axis=-1)
    anchors = np.concatenate([centers - 8, centers + 8], axis=-1).reshape(1, -1, 4)
    objects = np.float32([[[2, 2, 18, 18], [1.5, 7, 17.5, 23]]])
    overlaps = boxes.iou(np.float32(anchors), objects).numpy()[0]
    positive = (overlaps.max(axis=1) >= 0.6) | np.any(
        overlaps >= overlaps.max(axis=0) - 1e-4, axis=1
    )
    negative = ~positive & (overlaps.max(axis=1) < 0.4)
    wanted = boxes.encode(np.float32(anchors), objects[:, overlaps.argmax(axis=1)]).numpy()[0]
    # Of images of zeros an untrained network makes deltas of zeros: all its biases are zeros.
    size = np.abs(wanted)
    huber = np.where(size <= 1, size**2 / 2, size - 0.5).sum(axis=1)
    expected = huber[positive].sum() / (positive.sum() + negative.sum())
    np.testing.assert_allclose(terms["rpn_boxes"], expected, rtol=1e-4)
    np.testing.assert_allclose(terms["rpn_classes"], np.log(2), rtol=1e-5)


def test_targets_without_area_or_label_are_padding():
    corners = np.float32([[[0, 0, 4, 4], [3, 3, 3, 9], [2, 8, 5, 8], [5, 5, 1, 9], [1, 1, 2, 2]]])
    labels = np.array([[0, 1, 1, 1, -1]])
    batch = as_batch(np.zeros([1, 9, 9, 1]), {"boxes": corners, "labels": labels})
    np.testing.assert_array_equal(batch.labels, [[0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(batch.boxes[0], [[0, 0, 4, 4], *[[0] * 4] * 4])
    # Ragged labels beside boxes that have area where there is no object.
    given = {
        "boxes": np.tile(corners[:, :1], [2, 2, 1]),
        "labels": tf.ragged.constant([[0], [1, 1]]),
    }
    batch = as_batch(np.zeros([2, 9, 9, 1]), given)
    np.testing.assert_array_equal(batch.labels, [[0, -1], [1, 1]])
    assert not batch.boxes[0, 1].numpy().any()


@pytest.mark.parametrize("coarse", [2, 3, 5])
def test_strides_of_a_pyramid_grow_by_whole_factors(coarse):
    images = tf.keras.Input((30, 30, 1))
    maps = [layers.Conv2D(2, 1, strides=stride)(images) for stride in (2, coarse)]
    with pytest.raises(ValueError, match=f"got strides .*2.*{coarse}"):
        feature_pyramid_network(tf.keras.Model(images, maps), 4)


class Seen(tf.keras.metrics.Metric):
    """Keeps the detections that it is given."""

    def __init__(self):
        super().__init__(name="seen")
        self.detections = []

    def update_state(self, targets, detections, sample_weight=None):
        self.detections.append({name: np.array(each) for name, each in detections.items()})

    def result(self):
        return tf.zeros([])


@pytest.mark.parametrize("kind", ["rpn", "faster_rcnn", "rfcn"])
def test_metrics_see_the_detections_that_the_model_returns(kind):
    heads = {"faster_rcnn": {"bins": 2, "units": (4,)}, "rfcn": {"bins": 2}}
    model = detector(
        backbone(), 2, kind, anchor_sizes=(12,), head_arguments=heads.get(kind), proposals=6,
        score_threshold=0.0,
    )  # fmt: skip
    images = random(2, 32, 40, 1)
    corners = np.float32([[[2, 3, 15, 18], [8, 20, 24, 36]], [[10, 8, 26, 22], [0, 0, 0, 0]]])
    targets = {"boxes": corners, "labels": np.array([[1, 0], [1, -1]])}
    seen = Seen()
    model.compile("sgd", metrics=[seen], run_eagerly=True)

    model.evaluate(images, targets, verbose=0)

    (found,) = seen.detections
    for name, expected in model(images).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-3, err_msg=name)
