"""Detectors of the paper on a backbone of the user's choice: class-aware RPN, Faster R-CNN, R-FCN.

Their parts are functional models: `region_proposal_network`, `faster_rcnn_head`, `rfcn_head`. A
`Detector` puts them behind a backbone, and trains and runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_deformable.layers._base import IS_KERAS_3
from tf_deformable.layers.roi_pool import (
    DeformablePSRoIPool,
    DeformableRoIPool,
    PSRoIPool,
    RoIPool,
)
from tf_deformable.models import boxes as box_ops
from tf_deformable.models.surgery import Layers, deformify, images_and_features, output_stride

_layers = tf.keras.layers
_saving = tf.keras.utils if IS_KERAS_3 else tf.keras.saving
_HEADS = ("rpn", "faster_rcnn", "rfcn")


def region_proposal_network(
    channels: int, classes: int, anchors: int, *, units: int = 256, name: str = "rpn"
) -> Any:
    """Returns a network that classifies and corrects the anchors of every cell.

    With `classes` of 1 it proposes regions, objects or not; with those of the data it is the
    class-aware RPN of the paper, a detector by itself.

    Args:
        channels: int, of the features.
        classes: int, number of classes, background not among them.
        anchors: int, number of anchors per cell.
        units: int, channels of the 3x3 convolution.
        name: name of the model.

    Returns:
        A model from features `[B, h, w, channels]` to logits `[B, h * w * anchors, classes + 1]`,
        the background's last, and deltas `[B, h * w * anchors, 4]`, as `boxes.encode` has them.

    Sources:
        Ren et al., Faster R-CNN, NIPS 2015, section 3.1.
    """
    features = tf.keras.Input((None, None, channels), name="features")
    hidden = _layers.Conv2D(units, 3, padding="same", activation="relu", name="shared")(features)
    logits = _layers.Conv2D(anchors * (classes + 1), 1, name="logits")(hidden)
    deltas = _layers.Conv2D(anchors * 4, 1, name="deltas")(hidden)
    outputs = [
        _layers.Reshape((-1, classes + 1), dtype="float32", name="anchor_logits")(logits),
        _layers.Reshape((-1, 4), dtype="float32", name="anchor_deltas")(deltas),
    ]
    return tf.keras.Model(features, outputs, name=name)


def faster_rcnn_head(
    channels: int,
    classes: int,
    stride: float,
    *,
    deformable: bool = False,
    bins: int = 7,
    units: Sequence[int] = (1024, 1024),
    name: str = "faster_rcnn",
    **pooling_arguments: Any,
) -> Any:
    """Returns the network of Faster R-CNN that classifies and corrects proposals.

    RoI pooling, fully connected layers, and one prediction of each kind per box; the corrections
    are the same for all classes.

    Args:
        channels: int, of the features.
        classes: int, number of classes, background not among them.
        stride: pixels of the image per cell of the features.
        deformable: bool, whether the pooling is `DeformableRoIPool`, or `RoIPool`.
        bins: int, height and width of the grid of bins.
        units: sizes of the hidden layers.
        name: name of the model.
        **pooling_arguments: further arguments of the pooling layer; `aligned` is True unless given.

    Returns:
        A model from `[features, boxes]`, `[B, h, w, channels]` and `[B, R, 4]`, to logits
        `[B, R, classes + 1]`, the background's last, and deltas `[B, R, 4]`.

    Sources:
        Ren et al., Faster R-CNN, NIPS 2015; Dai et al., Deformable Convolutional Networks, 2017.
    """
    features, boxes = _head_inputs(channels)
    kind: Any = DeformableRoIPool if deformable else RoIPool
    arguments = {"aligned": True, **pooling_arguments}
    pool = kind(bins, spatial_scale=1 / stride, name="pooling", **arguments)
    hidden = _layers.Reshape((-1, bins * bins * channels))(pool([features, boxes]))
    for number, size in enumerate(units, 1):
        hidden = _layers.Dense(size, activation="relu", name=f"hidden_{number}")(hidden)
    outputs = [
        _layers.Dense(classes + 1, dtype="float32", name="logits")(hidden),
        _layers.Dense(4, dtype="float32", name="deltas")(hidden),
    ]
    return tf.keras.Model([features, boxes], outputs, name=name)


def rfcn_head(
    channels: int,
    classes: int,
    stride: float,
    *,
    deformable: bool = False,
    bins: int = 7,
    name: str = "rfcn",
    **pooling_arguments: Any,
) -> Any:
    """Returns the network of R-FCN that classifies and corrects proposals.

    Position-sensitive score maps by a 1x1 convolution, and the vote (mean) of the bins; the
    corrections are the same for all classes. There are no layers after the pooling.

    Args:
        channels: int, of the features.
        classes: int, number of classes, background not among them.
        stride: pixels of the image per cell of the features.
        deformable: bool, whether the pooling is `DeformablePSRoIPool`, or `PSRoIPool`.
        bins: int, height and width of the grid of bins, and of that of score maps.
        name: name of the model.
        **pooling_arguments: further arguments of the pooling layers; `aligned` is True unless
            given.

    Returns:
        A model as that of `faster_rcnn_head`.

    Sources:
        Dai, Li, He and Sun, R-FCN, NIPS 2016; Dai et al., Deformable Convolutional Networks, 2017.
    """
    features, boxes = _head_inputs(channels)
    arguments = {"spatial_scale": 1 / stride, "aligned": True, **pooling_arguments}
    outputs = []
    for output, filters in (("logits", classes + 1), ("deltas", 4)):
        if deformable:
            is_agnostic = output == "deltas"
            layer: Any = DeformablePSRoIPool
            pooled = layer(
                filters, bins, class_agnostic=is_agnostic, name=f"pooling_{output}", **arguments
            )([features, boxes])
        else:
            maps = _layers.Conv2D(bins * bins * filters, 1, name=f"maps_{output}")(features)
            plain: Any = PSRoIPool
            pooled = plain(bins, bins, name=f"pooling_{output}", **arguments)([maps, boxes])
        outputs.append(_Vote(name=output, dtype="float32")(pooled))
    return tf.keras.Model([features, boxes], outputs, name=name)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class _Vote(tf.keras.layers.Layer):
    """The mean of the bins: `[B, R, ph, pw, D]` to `[B, R, D]`."""

    def call(self, inputs: Any) -> tf.Tensor:
        return tf.reduce_mean(tf.cast(inputs, self.compute_dtype), axis=[2, 3])


def detector(
    backbone: Any,
    classes: int,
    kind: str = "faster_rcnn",
    *,
    deformable: bool = False,
    deformable_pooling: bool | None = None,
    layers: Layers = "conv5",
    dilate_last_stage: bool = False,
    channels: int | None = None,
    anchor_sizes: Sequence[float] = (64, 128, 256),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    rpn_units: int = 256,
    head_arguments: dict[str, Any] | None = None,
    deformify_arguments: dict[str, Any] | None = None,
    **detector_arguments: Any,
) -> Detector:
    """Returns a detector on a backbone.

    Example:
    >>> backbone = tf.keras.applications.ResNet50(weights=None, include_top=False)
    >>> model = tf_deformable.models.detector(backbone, 20, "rfcn", deformable=True)
    >>> model.compile(tf.keras.optimizers.SGD(0.01, momentum=0.9))
    >>> model.fit(images, {"boxes": boxes, "labels": labels})  # zeros and -1 where there are none

    Args:
        backbone: functional or Sequential model, images in, one feature map out (channels_last).
        classes: int, number of classes, background not among them.
        kind: "rpn" (class-aware), "faster_rcnn" or "rfcn".
        deformable: bool, whether the `layers` of the backbone become deformable.
        deformable_pooling: bool, whether the (position-sensitive) RoI pooling is deformable;
            None: as `deformable`.
        layers: which layers of the backbone, see `deformify`.
        dilate_last_stage: bool, whether its last stage keeps its resolution, see `deformify`.
        channels: int, outputs of a 1x1 convolution after the backbone (the paper has 1024, and 256
            before the pooling of Faster R-CNN); None: there is none.
        anchor_sizes: square roots of the anchors' areas, in pixels of the image.
        aspect_ratios: of anchors, heights divided by widths.
        rpn_units: int, channels of the region proposal network.
        head_arguments: further arguments of `faster_rcnn_head` or `rfcn_head`.
        deformify_arguments: further arguments of `deformify`, for example `{"modulated": True}`.
        **detector_arguments: further arguments of `Detector`.

    Raises:
        ValueError: as `deformify`, or its arguments without `deformable`; `kind` is none of these;
            the backbone has several inputs or outputs.
    """
    if kind not in _HEADS:
        raise ValueError(f"detector: kind must be one of {_HEADS}, got {kind!r}")
    images_and_features("detector", backbone)
    if deformify_arguments and not deformable:
        raise ValueError(
            f"detector: deformify_arguments need deformable=True, got {deformify_arguments}"
        )
    if deformable or dilate_last_stage:
        chosen = layers if deformable else None
        backbone = deformify(
            backbone, chosen, dilate_last_stage=dilate_last_stage, **(deformify_arguments or {})
        )
    if channels is not None:
        images, features = images_and_features("detector", backbone)
        reduced = _layers.Conv2D(channels, 1, activation="relu", name="reduce")(features)
        backbone = tf.keras.Model(images, reduced, name=backbone.name)
    stride = output_stride(backbone)
    depth = int(backbone.outputs[0].shape[-1])
    anchors = len(anchor_sizes) * len(aspect_ratios)
    is_rpn = kind == "rpn"
    head = None
    if not is_rpn:
        build = faster_rcnn_head if kind == "faster_rcnn" else rfcn_head
        is_deformable = deformable if deformable_pooling is None else deformable_pooling
        head = build(depth, classes, stride, deformable=is_deformable, **(head_arguments or {}))
    return Detector(
        backbone=backbone,
        rpn=region_proposal_network(depth, classes if is_rpn else 1, anchors, units=rpn_units),
        head=head,
        classes=classes,
        stride=stride,
        anchor_sizes=anchor_sizes,
        aspect_ratios=aspect_ratios,
        **detector_arguments,
    )


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class Detector(tf.keras.Model):
    """Backbone, region proposal network and head, trained together (approximately end to end).

    `fit` takes images `[B, H, W, C]` and a dictionary, `boxes` `[B, M, 4]`, (y1, x1, y2, x2) in
    pixels, zeros where an image has less than M, and `labels` `[B, M]`, -1 where it has less.
    `predict`, and calling it, return what `boxes.select` returns: `boxes`, `scores`, `classes`,
    `counts`. `compile` takes an optimizer; the losses are the model's own: cross entropy of the
    classes and the Huber loss of the deltas, of both stages. Samples cannot be weighted.

    Args:
        backbone: images to one feature map.
        rpn: as `region_proposal_network` returns it, of one class; without a head, of `classes`.
        head: as `faster_rcnn_head` or `rfcn_head` return it, or None.
        classes: int, number of classes, background not among them.
        stride: pixels of the image per cell of the features.
        anchor_sizes: square roots of the anchors' areas, in pixels of the image.
        aspect_ratios: of anchors, heights divided by widths.
        proposals: int, number of boxes per image that reach the head.
        detections: int, number of boxes per image that are returned, at most.
        sampled_anchors: int, number of anchors per image in the loss of the RPN, at most.
        score_threshold: boxes with lower scores are not returned.
        iou_threshold: of the non-maximum suppression at the end; that of proposals is 0.7.
        **kwargs: what every Keras model takes.
    """

    def __init__(
        self,
        backbone: Any,
        rpn: Any,
        head: Any,
        classes: int,
        stride: float,
        anchor_sizes: Sequence[float],
        aspect_ratios: Sequence[float] = (1.0,),
        proposals: int = 300,
        detections: int = 100,
        sampled_anchors: int = 256,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone, self.rpn, self.head = backbone, rpn, head
        self.classes = classes
        self.stride = float(stride)
        self.anchor_sizes = tuple(anchor_sizes)
        self.aspect_ratios = tuple(aspect_ratios)
        self.proposals = proposals
        self.detections = detections
        self.sampled_anchors = sampled_anchors
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        names = ["loss", "rpn_classes", "rpn_boxes"] + ["classes", "boxes"] * (head is not None)
        self._trackers = {name: tf.keras.metrics.Mean(name=name) for name in names}
        self.built = True  # The parts are.

    def call(self, images: Any, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the detections in the images."""
        features = self.backbone(images, training=training)
        logits, deltas = self.rpn(features, training=training)
        image_size = tf.shape(images)[1:3]
        boxes = box_ops.decode(self.anchors(features), deltas)
        if self.head is not None:
            boxes = self._propose(boxes, logits, image_size)
            logits, deltas = self.head([features, boxes], training=training)
            boxes = box_ops.decode(boxes, deltas)
        return box_ops.select(
            boxes,
            tf.nn.softmax(logits)[..., : self.classes],
            count=self.detections,
            iou_threshold=self.iou_threshold,
            score_threshold=self.score_threshold,
            image_size=image_size,
        )

    def anchors(self, features: Any) -> tf.Tensor:
        """Returns the anchors of features `[B, h, w, C]`: `[h * w * anchors per cell, 4]`."""
        size = tf.shape(features)[1:3]
        return box_ops.anchor_boxes(size, self.stride, self.anchor_sizes, self.aspect_ratios)

    def losses_of(self, images: Any, targets: Any, training: bool = True) -> dict[str, tf.Tensor]:
        """Returns the terms of the loss for images and their targets, as `fit` takes them."""
        features = self.backbone(images, training=training)
        logits, deltas = self.rpn(features, training=training)
        anchors = self.anchors(features)
        everywhere = tf.broadcast_to(
            anchors, tf.concat([tf.shape(images)[:1], tf.shape(anchors)], axis=0)
        )
        rpn_classes = int(logits.shape[-1]) - 1
        labels = tf.cast(targets["labels"], tf.int32)
        labels = tf.minimum(labels, rpn_classes - 1)  # with one class, all objects are of it
        expected, expected_deltas = box_ops.assign(
            everywhere,
            targets["boxes"],
            labels,
            rpn_classes,
            positive_iou=0.6,
            negative_iou=0.4,
            keep_best=True,
        )
        weights = box_ops.sample(expected, rpn_classes, self.sampled_anchors)
        terms = _terms(logits, deltas, expected, expected_deltas, rpn_classes, weights)
        losses = dict(zip(("rpn_classes", "rpn_boxes"), terms, strict=True))
        if self.head is None:
            return losses
        proposals = self._propose(
            box_ops.decode(everywhere, tf.stop_gradient(deltas)), logits, tf.shape(images)[1:3]
        )
        # The objects themselves are proposals too: at first, nothing else comes near them.
        proposals = tf.concat([tf.cast(targets["boxes"], tf.float32), proposals], axis=1)
        expected, expected_deltas = box_ops.assign(
            proposals, targets["boxes"], targets["labels"], self.classes
        )
        logits, deltas = self.head([features, proposals], training=training)
        is_box = tf.cast(tf.reduce_any(proposals != 0, axis=-1), tf.float32)
        terms = _terms(logits, deltas, expected, expected_deltas, self.classes, is_box)
        return losses | dict(zip(("classes", "boxes"), terms, strict=True))

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of `fit`."""
        images, targets = _unpack(data)
        with tf.GradientTape() as tape:
            losses = self.losses_of(images, targets)
            total = tf.add_n([*losses.values(), *map(_as_float32, self.losses)])
            scaled = self._scale(total)
        variables = self.trainable_variables
        pairs = zip(tape.gradient(scaled, variables), variables, strict=True)
        self._apply([(gradient, variable) for gradient, variable in pairs if gradient is not None])
        return self._track(total, losses)

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of `evaluate`."""
        images, targets = _unpack(data)
        losses = self.losses_of(images, targets, training=False)
        return self._track(tf.add_n(list(losses.values())), losses)

    @property
    def metrics(self) -> list[Any]:
        """The means of the losses over an epoch."""
        return list(self._trackers.values())

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        parts = {"backbone": self.backbone, "rpn": self.rpn, "head": self.head}
        return {
            **{
                name: None if part is None else _saving.serialize_keras_object(part)
                for name, part in parts.items()
            },
            **{
                name: getattr(self, name)
                for name in (
                    *("classes", "stride", "anchor_sizes", "aspect_ratios", "proposals"),
                    *("detections", "sampled_anchors", "score_threshold", "iou_threshold", "name"),
                )
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Detector:
        """Builds a detector from what `get_config` returned."""
        parts = {
            name: None
            if config[name] is None
            else _saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("backbone", "rpn", "head")
        }
        return cls(**{**config, **parts})

    def _propose(self, boxes: Any, logits: Any, image_size: Any) -> tf.Tensor:
        """Returns the best regions, `[B, proposals, 4]`, zeros where there are less."""
        scores = tf.nn.softmax(tf.stop_gradient(logits))[..., :1]
        found = box_ops.select(
            boxes, scores, count=self.proposals, iou_threshold=0.7, image_size=image_size
        )
        return tf.stop_gradient(found["boxes"])

    def _scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss, scaled so that its gradients do not vanish in float16."""
        if IS_KERAS_3:
            return self.optimizer.scale_loss(loss)
        is_scaled = isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
        return self.optimizer.get_scaled_loss(loss) if is_scaled else loss

    def _apply(self, pairs: list[tuple[Any, Any]]) -> None:
        """Updates variables with gradients of a scaled loss; Keras 3 unscales them by itself."""
        if not IS_KERAS_3 and isinstance(
            self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer
        ):
            gradients, variables = zip(*pairs, strict=True)
            pairs = list(
                zip(self.optimizer.get_unscaled_gradients(gradients), variables, strict=True)
            )
        self.optimizer.apply_gradients(pairs)

    def _track(self, total: tf.Tensor, losses: dict[str, tf.Tensor]) -> dict[str, Any]:
        for name, value in {"loss": total, **losses}.items():
            self._trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self._trackers.items()}


def _unpack(data: Any) -> tuple[Any, dict[str, Any]]:
    """Returns images and targets of what `fit` and `evaluate` were given."""
    images, targets, weights = tf.keras.utils.unpack_x_y_sample_weight(data)
    names = ("boxes", "labels")
    if not isinstance(targets, dict) or any(name not in targets for name in names):
        got = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
        raise ValueError(f"Detector: targets must be a dictionary of {names}, got {got}")
    if weights is not None:
        raise ValueError("Detector: the losses take no sample_weight, got one")
    return images, targets


def _head_inputs(channels: int) -> tuple[Any, Any]:
    features = tf.keras.Input((None, None, channels), name="features")
    return features, tf.keras.Input((None, 4), dtype="float32", name="boxes")


def _terms(
    logits: tf.Tensor,
    deltas: tf.Tensor,
    labels: tf.Tensor,
    expected_deltas: tf.Tensor,
    classes: int,
    weights: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The losses of classes and boxes; those of boxes for objects alone."""
    known = tf.cast(labels >= 0, tf.float32) * weights
    is_object = known * tf.cast(labels < classes, tf.float32)
    count = tf.maximum(tf.reduce_sum(known), 1.0)
    entropy = tf.keras.losses.sparse_categorical_crossentropy(
        tf.maximum(labels, 0), logits, from_logits=True
    )
    distance = tf.keras.losses.huber(expected_deltas, deltas)
    # Objects without overlap have infinite deltas: where, not times zero.
    distance = tf.where(is_object > 0, distance, 0.0)
    return tf.reduce_sum(entropy * known) / count, 4 * tf.reduce_sum(distance) / count


def _as_float32(value: Any) -> tf.Tensor:
    return tf.cast(value, tf.float32)
