"""Puts the parts of detectors behind a backbone, and trains and runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_deformable._keras import IS_KERAS_3, is_graph
from tf_deformable.models import boxes as box_ops
from tf_deformable.models.detection.heads import (
    CHANNELS_LAST,
    faster_rcnn_head,
    region_proposal_network,
    rfcn_head,
)
from tf_deformable.models.surgery.deformify import deformify
from tf_deformable.models.surgery.select import Layers, one_map, output_stride

_layers = tf.keras.layers
_saving = tf.keras.utils if IS_KERAS_3 else tf.keras.saving
_HEADS = ("rpn", "faster_rcnn", "rfcn")


def detector(
    backbone: Any,
    classes: int,
    kind: str = "faster_rcnn",
    *,
    deformable: bool = False,
    deformable_pooling: bool | None = None,
    layers: Layers = "conv5",
    dilate_last_stage: bool = False,
    level: str | int | None = None,
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
        >>> backbone = tf.keras.Sequential([
        ...     tf.keras.Input((None, None, 3)),
        ...     tf.keras.layers.Conv2D(8, 3, strides=8, padding="same", activation="relu"),
        ...     tf.keras.layers.Conv2D(8, 3, padding="same", activation="relu")])
        >>> model = tf_deformable.models.detector(backbone, 20, "rfcn", deformable=True)
        >>> model.compile(tf.keras.optimizers.SGD(0.01, momentum=0.9))
        >>> images = tf.zeros([1, 64, 64, 3])
        >>> boxes = tf.constant([[[8.0, 8.0, 40.0, 56.0], [0.0, 0.0, 0.0, 0.0]]])
        >>> labels = tf.constant([[3, -1]])  # the second is padding
        >>> history = model.fit(images, {"boxes": boxes, "labels": labels}, verbose=0)

    Args:
        backbone: functional or Sequential model, images in, feature maps out (channels_last).
        classes: int, number of classes, background not among them.
        kind: "rpn" (class-aware), "faster_rcnn" or "rfcn".
        deformable: bool, whether the `layers` of the backbone become deformable.
        deformable_pooling: bool, whether the (position-sensitive) RoI pooling is deformable;
            None: as `deformable`.
        layers: which layers of the backbone, see `deformify`.
        dilate_last_stage: bool, whether its last stage keeps its resolution, see `deformify`.
        level: str or int, which map of a backbone that returns several: its key or name (`"P4"` of
            KerasHub's `pyramid_outputs`, too), or its index among the outputs; None: the coarsest.
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
            the backbone has several inputs, or no map of that `level`.
    """
    if kind not in _HEADS:
        raise ValueError(f"detector: kind must be one of {_HEADS}, got {kind!r}")
    backbone = one_map("detector", backbone, level)
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
        images, features = backbone.inputs[0], backbone.outputs[0]
        reduced = _layers.Conv2D(channels, 1, activation="relu", name="reduce", **CHANNELS_LAST)(
            features
        )
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


class _Batch(NamedTuple):
    """Images and their targets, padded: what a step of `fit` or `evaluate` calls a detector with.

    With it, the targets come along where Keras' own steps call the model with the images.
    """

    images: Any
    boxes: tf.Tensor
    labels: tf.Tensor


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a detector returns for a `_Batch`."""

    size: tf.Tensor  # number of images
    terms: dict[str, tf.Tensor]  # of the loss
    detections: Callable[[], dict[str, tf.Tensor]]  # only metrics need them


class _Record:
    """The terms of a detector's loss, their weights and means, and the metrics of `compile`.

    Keras does not track what is in it: a metric's state is none of a model's weights.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.loss = tf.keras.metrics.Mean(name="loss")
        self.terms = {name: tf.keras.metrics.Mean(name=name) for name in terms}
        self.weights = dict.fromkeys(terms, 1.0)
        self.metrics: list[Any] = []


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class Detector(tf.keras.Model):
    """Backbone, region proposal network and head, trained together (approximately end to end).

    A functional model from images to what `boxes.select` returns: `boxes`, `scores`, `classes`,
    `counts`. The losses are the model's own: cross entropy of the classes and the Huber loss of
    the deltas, of both stages (`rpn_classes`, `rpn_boxes`, `classes`, `boxes`).

    `fit` and `evaluate` take images `[B, H, W, C]` and a dictionary: `boxes` `[B, M, 4]`,
    (y1, x1, y2, x2) in pixels, and `labels` `[B, M]`. Where an image has fewer than M objects, its
    labels are -1; or both are `tf.RaggedTensor`, and nothing is padded. Boxes without area are
    none. Samples and classes cannot be weighted.

    `Detector.from_config(model.get_config())` is a copy with new weights. `clone_model` of Keras 3
    copies the graph alone, without the losses.

    Args:
        backbone: images to one feature map (channels_last).
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
        name: name of the model.
        trainable: bool, whether the model's weights are trained.
        dtype: dtype policy of the model, None: the global one. The parts have their own; this one
            says whether `compile` scales the loss, for float16.
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
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
    ) -> None:
        regions = _Regions(stride, anchor_sizes, aspect_ratios, name="regions")
        best_regions = None if head is None else _Best(proposals, 0.7, name="proposals")
        best = _Best(detections, iou_threshold, score_threshold, name="detections")

        images = _images_of(backbone)
        features = backbone(images)
        logits, deltas = rpn(features)
        boxes = regions([features, deltas])
        if best_regions is not None:
            chosen = best_regions([boxes, logits, images])["boxes"]
            logits, deltas = head([features, chosen])
            boxes = _Decode(name="boxes")([chosen, deltas])
        found = best([boxes, logits, images])
        super().__init__(inputs=images, outputs=found, name=name, trainable=trainable)
        self.output_names = sorted(found)  # Of signatures; Keras would call all of them alike.
        self.supports_jit = False  # The non-maximum suppression does not.
        if dtype is not None and IS_KERAS_3:
            self.dtype_policy = dtype
        elif dtype is not None:
            self._set_dtype_policy(dtype)

        self.backbone, self.rpn, self.head = backbone, rpn, head
        self.classes = classes
        self.stride = float(stride)
        self.anchor_sizes = tuple(float(size) for size in anchor_sizes)
        self.aspect_ratios = tuple(float(ratio) for ratio in aspect_ratios)
        self.proposals = proposals
        self.detections = detections
        self.sampled_anchors = sampled_anchors
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self._regions, self._best_regions, self._best = regions, best_regions, best
        terms = ["rpn_classes", "rpn_boxes"] + ["classes", "boxes"] * (head is not None)
        self._record = _Record(terms)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the detections in images; in a step of Keras, what its loss is made of."""
        if args and isinstance(args[0], _Batch):
            return self._learn(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def anchors(self, features: Any) -> tf.Tensor:
        """Returns the anchors of features `[B, h, w, C]`: `[h * w * anchors per cell, 4]`."""
        return self._regions.anchors(features)

    def losses_of(self, images: Any, targets: Any, training: bool = True) -> dict[str, tf.Tensor]:
        """Returns the terms of the loss for images and their targets, as `fit` takes them."""
        return self._learn(_batch(images, targets), training=training).terms

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        loss_weights: dict[str, float] | None = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training.

        Args:
            optimizer: as of every Keras model.
            loss: None; the losses are the model's own.
            loss_weights: factors of terms of the loss, by their names; 1 where there is none.
            metrics: a `Metric` or a list of them, whose `update_state` takes the targets and the
                detections, both dictionaries.
            weighted_metrics: None; samples have no weights.
            **kwargs: what else `compile` of a Keras model takes.

        Raises:
            ValueError: an argument is none of these; the message names it.
        """
        for argument, value in (("loss", loss), ("weighted_metrics", weighted_metrics)):
            if value:
                raise ValueError(
                    f"Detector: compile takes no {argument}, the losses are the model's own and "
                    f"samples have no weights; got {value!r}"
                )
        metrics = [metrics] if isinstance(metrics, tf.keras.metrics.Metric) else metrics or []
        if not isinstance(metrics, (list, tuple)) or not all(
            isinstance(metric, tf.keras.metrics.Metric) for metric in metrics
        ):
            raise ValueError(
                "Detector: metrics must be Metric objects whose update_state takes the targets and "
                f"the detections, got {metrics!r}"
            )
        weights = dict.fromkeys(self._record.terms, 1.0)
        given = {} if loss_weights is None else loss_weights
        if not isinstance(given, dict) or not set(given) <= set(weights):
            raise ValueError(
                f"Detector: loss_weights must be a dictionary with keys among {list(weights)}, got "
                f"{loss_weights!r}"
            )
        self._record.weights = weights | {name: float(value) for name, value in given.items()}
        self._record.metrics = list(metrics)
        super().compile(optimizer, **kwargs)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, serialised."""
        config = super().get_compile_config()
        if config:
            own = {"loss_weights": self._record.weights, "metrics": self._record.metrics}
            config = {**config, **_saving.serialize_keras_object(own)}
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model with what `get_compile_config` returned."""
        self.compile(**_saving.deserialize_keras_object(config))
        if hasattr(self.optimizer, "build"):  # So that its saved state finds a place.
            self.optimizer.build(self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of `fit`: that of Keras, called with the targets, too."""
        return super().train_step(_with_targets(data))

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of `evaluate`: that of Keras, called with the targets, too."""
        return super().test_step(_with_targets(data))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Returns the loss, regularisation included, of images `x` and their targets `y`."""
        if not isinstance(y_pred, _Outcome):  # Detections do not tell the loss.
            y_pred = self(_with_targets((x, y, sample_weight))[0], training=training)
        record = self._record
        for name, value in y_pred.terms.items():
            record.terms[name].update_state(value, sample_weight=y_pred.size)
        terms = [record.weights[name] * value for name, value in y_pred.terms.items()]
        regularisation = [tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in self.losses]
        loss = tf.add_n(terms + regularisation)
        if not IS_KERAS_3:  # The step of Keras 3 does so itself.
            record.loss.update_state(loss, sample_weight=y_pred.size)
        # Each is a mean over what its replica saw; the gradients of all are added up.
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics that the model was compiled with; returns the values of all."""
        if self._record.metrics:
            detections = y_pred.detections()
            for metric in self._record.metrics:
                metric.update_state({"boxes": x.boxes, "labels": x.labels}, detections)
        return self.get_metrics_result()

    @property
    def metrics(self) -> list[Any]:
        """The means of the loss and its terms, and what the model was compiled with."""
        record, found = self._record, super().metrics
        if not IS_KERAS_3:  # Its own mean of the loss, which a loaded model has, sees no step.
            unused = [] if self.compiled_loss is None else self.compiled_loss.metrics
            found = [record.loss, *(m for m in found if all(m is not other for other in unused))]
        return [*found, *record.terms.values(), *record.metrics]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, serialised."""
        parts = {"backbone": self.backbone, "rpn": self.rpn, "head": self.head}
        names = (
            *("classes", "stride", "anchor_sizes", "aspect_ratios", "proposals", "detections"),
            *("sampled_anchors", "score_threshold", "iou_threshold"),
        )
        return {
            **{
                name: None if part is None else _saving.serialize_keras_object(part)
                for name, part in parts.items()
            },
            **{name: getattr(self, name) for name in names},
            **tf.keras.layers.Layer.get_config(self),  # that of functional models has the graph
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Detector:
        """Builds a detector from what `get_config` returned."""
        parts = {
            name: None
            if config[name] is None
            else _layers.deserialize(config[name], custom_objects)  # reads older formats, too
            for name in ("backbone", "rpn", "head")
        }
        return cls(**{**config, **parts})

    def _learn(self, batch: _Batch, training: bool = True) -> _Outcome:
        """Runs the parts as the graph does, but for the objects among the proposals."""
        images = tf.cast(batch.images, self.inputs[0].dtype)
        features = self.backbone(images, training=training)
        logits, deltas = self.rpn(features, training=training)
        anchors = self.anchors(features)
        everywhere = tf.broadcast_to(
            anchors, tf.concat([tf.shape(images)[:1], tf.shape(anchors)], axis=0)
        )
        rpn_classes = int(logits.shape[-1]) - 1
        expected, expected_deltas = box_ops.assign(
            everywhere,
            batch.boxes,
            tf.minimum(batch.labels, rpn_classes - 1),  # with one class, all objects are of it
            rpn_classes,
            positive_iou=0.6,
            negative_iou=0.4,
            keep_best=True,
        )
        # An evaluation gives the same loss each time, as that of any model does.
        seed = None if training else (0, 0)
        weights = box_ops.sample(expected, rpn_classes, self.sampled_anchors, seed=seed)
        terms = _terms(logits, deltas, expected, expected_deltas, rpn_classes, weights)
        losses = dict(zip(("rpn_classes", "rpn_boxes"), terms, strict=True))
        boxes = self._regions([features, deltas])
        if self._best_regions is not None:
            chosen = self._best_regions([boxes, logits, images])["boxes"]
            # The objects themselves are proposals too: at first, nothing else comes near them.
            proposals = tf.concat([batch.boxes, chosen], axis=1)
            expected, expected_deltas = box_ops.assign(
                proposals, batch.boxes, batch.labels, self.classes
            )
            logits, deltas = self.head([features, proposals], training=training)
            is_box = tf.cast(tf.reduce_any(tf.not_equal(proposals, 0.0), axis=-1), tf.float32)
            terms = _terms(logits, deltas, expected, expected_deltas, self.classes, is_box)
            losses |= dict(zip(("classes", "boxes"), terms, strict=True))
            objects = tf.shape(batch.boxes)[1]
            logits, deltas = logits[:, objects:], deltas[:, objects:]
            boxes = box_ops.decode(chosen, deltas)
        return _Outcome(
            size=tf.shape(images)[0],
            terms=losses,
            detections=lambda: self._best([boxes, logits, images]),
        )


class _BoxLayer(tf.keras.layers.Layer):
    """A layer of boxes: they are float32, whatever the policy and the features are."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **{**kwargs, "dtype": "float32"})


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class _Regions(_BoxLayer):
    """The boxes that deltas make of the anchors of features: `[B, h * w * anchors, 4]`."""

    def __init__(
        self,
        stride: float,
        anchor_sizes: Sequence[float],
        aspect_ratios: Sequence[float],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._arguments: dict[str, Any] = {
            "stride": float(stride),
            "anchor_sizes": [float(size) for size in anchor_sizes],
            "aspect_ratios": [float(ratio) for ratio in aspect_ratios],
        }

    def anchors(self, features: Any) -> tf.Tensor:
        """Returns the anchors of features: `[h * w * anchors, 4]`."""
        return box_ops.anchor_boxes(tf.shape(features)[1:3], *self._arguments.values())

    def call(self, inputs: Any) -> tf.Tensor:
        features, deltas = inputs
        return box_ops.decode(self.anchors(features), deltas)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments}


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class _Decode(_BoxLayer):
    """The boxes that deltas make of boxes."""

    def call(self, inputs: Any) -> tf.Tensor:
        return box_ops.decode(*inputs)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class _Best(_BoxLayer):
    """What `boxes.select` returns for boxes and the logits of their classes, background's last.

    They are cut to the images; no gradient comes through.
    """

    def __init__(
        self, count: int, iou_threshold: float, score_threshold: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._arguments: dict[str, Any] = {
            "count": int(count),
            "iou_threshold": float(iou_threshold),
            "score_threshold": float(score_threshold),
        }
        self.supports_jit = False  # XLA has no CombinedNonMaxSuppression.

    def call(self, inputs: Any) -> dict[str, tf.Tensor]:
        boxes, logits, images = inputs
        return box_ops.select(
            tf.stop_gradient(boxes),
            tf.nn.softmax(tf.stop_gradient(logits))[..., :-1],
            image_size=tf.shape(images)[1:3],
            **self._arguments,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments}


def _images_of(backbone: Any) -> Any:
    """Returns an input for the images that a backbone takes."""
    if not is_graph(backbone):  # It does not say which.
        return tf.keras.Input((None, None, None), name="images")
    counts = len(backbone.inputs), len(backbone.outputs)
    if counts != (1, 1):
        raise ValueError(
            "Detector: backbone must take images and return one feature map, got "
            f"{counts[0]} inputs and {counts[1]} outputs"
        )
    (images,) = backbone.inputs
    return tf.keras.Input(tuple(images.shape[1:]), dtype=images.dtype, name="images")


def _with_targets(data: Any) -> tuple[_Batch, dict[str, Any]]:
    """Returns what Keras' steps are to work on, of what `fit` and `evaluate` were given."""
    images, targets, weights = tf.keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise ValueError("Detector: the losses take no sample_weight (nor class_weight), got one")
    return _batch(images, targets), targets


def _batch(images: Any, targets: Any) -> _Batch:
    """Returns images and targets, the latter as tensors in which all padding is alike."""
    names = ("boxes", "labels")
    if not isinstance(targets, Mapping) or any(name not in targets for name in names):
        got = sorted(targets) if isinstance(targets, Mapping) else type(targets).__name__
        raise ValueError(f"Detector: targets must be a dictionary of {names}, got {got}")
    boxes = _dense("boxes", targets["boxes"], tf.float32, 0.0, [None, None, 4])
    labels = _dense("labels", targets["labels"], tf.int32, -1, [None, None])
    if not boxes.shape[:2].is_compatible_with(labels.shape):
        raise ValueError(
            "Detector: targets must have as many boxes as labels, got "
            f"{boxes.shape} and {labels.shape}"
        )
    images = tf.nest.flatten(images)
    if len(images) != 1:
        raise ValueError(f"Detector: images must be one tensor, got {len(images)}")
    is_empty = tf.reduce_any(boxes[..., 2:] <= boxes[..., :2], axis=-1)  # False of NaN, an error
    is_object = (labels >= 0) & ~is_empty
    return _Batch(
        images[0],
        tf.where(is_object[..., tf.newaxis], boxes, 0.0),
        tf.where(is_object, labels, -1),
    )


def _dense(name: str, value: Any, dtype: tf.DType, padding: float, shape: list[Any]) -> tf.Tensor:
    """Returns one of the targets as a tensor, padded if it is ragged."""
    if value is None or isinstance(value, tf.SparseTensor):
        raise ValueError(
            f"Detector: {name} must be a tensor or a RaggedTensor, got {type(value).__name__}"
        )
    if isinstance(value, tf.RaggedTensor):
        value = value.to_tensor(padding, shape=shape)
    tensor = tf.cast(value, dtype)
    if not tensor.shape.is_compatible_with(shape):
        letters = "[B, M, 4]" if name == "boxes" else "[B, M]"
        raise ValueError(f"Detector: {name} must be {letters}, got {tensor.shape}")
    return tf.ensure_shape(tensor, shape)  # Generators tell Keras no shapes.


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
