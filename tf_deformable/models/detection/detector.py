"""Detectors as Keras models: their parts put together, trained, and run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable._keras import IS_KERAS_3, is_graph, set_dtype_policy
from tf_deformable.models import boxes as box_ops
from tf_deformable.models.detection.box_layers import Best, Decode, Joined, Regions
from tf_deformable.models.detection.targets import Batch, as_batch, with_targets

_layers = tf.keras.layers
_saving = tf.keras.utils if IS_KERAS_3 else tf.keras.saving


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a detector returns for a `Batch`."""

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
        backbone: images to one feature map (channels_last), or to several, the finest first, of as
            many channels (a pyramid): the RPN runs on each of them.
        rpn: as `region_proposal_network` returns it, of one class; without a head, of `classes`.
        head: as `faster_rcnn_head` or `rfcn_head` return it, or None. Of a pyramid, it is made for
            all the maps.
        classes: int, number of classes, background not among them.
        stride: pixels of the image per cell of the features; of a pyramid, those of each map.
        anchor_sizes: square roots of the anchors' areas, in pixels of the image; of a pyramid, one
            for each map, or a sequence for each, all of the same length.
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

    Raises:
        ValueError: the backbone does not return as many maps as there are strides, or the anchors'
            sizes are not those of so many.
    """

    def __init__(
        self,
        backbone: Any,
        rpn: Any,
        head: Any,
        classes: int,
        stride: float | Sequence[float],
        anchor_sizes: Sequence[float] | Sequence[Sequence[float]],
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
        strides, sizes = _per_map(stride, anchor_sizes)
        regions = Regions(strides, sizes, aspect_ratios, name="regions")
        joined = Joined(name="all_anchors")
        best_regions = None if head is None else Best(proposals, 0.7, name="proposals")
        best = Best(detections, iou_threshold, score_threshold, name="detections")

        images = _images_of(backbone, len(strides))
        maps = tf.nest.flatten(backbone(images))
        logits, deltas = joined([rpn(features) for features in maps])
        boxes = regions([*maps, deltas])
        if best_regions is not None:
            chosen = best_regions([boxes, logits, images])["boxes"]
            logits, deltas = head([*maps, chosen])
            boxes = Decode(name="boxes")([chosen, deltas])
        found = best([boxes, logits, images])
        super().__init__(inputs=images, outputs=found, name=name, trainable=trainable)
        self.output_names = sorted(found)  # Of signatures; Keras would call all of them alike.
        self.supports_jit = False  # The non-maximum suppression does not.
        if dtype is not None:
            set_dtype_policy(self, dtype)

        self.backbone, self.rpn, self.head = backbone, rpn, head
        self.classes = classes
        is_pyramid = len(strides) > 1
        self.stride = strides if is_pyramid else strides[0]
        self.anchor_sizes = sizes if is_pyramid else sizes[0]
        self.aspect_ratios = tuple(float(ratio) for ratio in aspect_ratios)
        self.proposals = proposals
        self.detections = detections
        self.sampled_anchors = sampled_anchors
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self._regions, self._best_regions, self._best = regions, best_regions, best
        self._joined = joined
        terms = ["rpn_classes", "rpn_boxes"] + ["classes", "boxes"] * (head is not None)
        self._record = _Record(terms)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the detections in images; in a step of Keras, what its loss is made of."""
        if args and isinstance(args[0], Batch):
            return self._learn(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def anchors(self, features: Any) -> tf.Tensor:
        """Returns the anchors of features `[B, h, w, C]`: `[h * w * anchors per cell, 4]`.

        Of a list of maps these are the anchors of all of them, one map after the other.
        """
        return self._regions.anchors(tf.nest.flatten(features))

    def losses_of(self, images: Any, targets: Any, training: bool = True) -> dict[str, tf.Tensor]:
        """Returns the terms of the loss for images and their targets, as `fit` takes them."""
        return self._learn(as_batch(images, targets), training=training).terms

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
        return super().train_step(with_targets(data))

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of `evaluate`: that of Keras, called with the targets, too."""
        return super().test_step(with_targets(data))

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
            y_pred = self(with_targets((x, y, sample_weight))[0], training=training)
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

    def _learn(self, batch: Batch, training: bool = True) -> _Outcome:
        """Runs the parts as the graph does, but for the objects among the proposals."""
        images = tf.cast(batch.images, self.inputs[0].dtype)
        maps = tf.nest.flatten(self.backbone(images, training=training))
        logits, deltas = self._joined([self.rpn(features, training=training) for features in maps])
        anchors = self.anchors(maps)
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
        boxes = self._regions([*maps, deltas])
        if self._best_regions is not None:
            chosen = self._best_regions([boxes, logits, images])["boxes"]
            # The objects themselves are proposals too: at first, nothing else comes near them.
            proposals = tf.concat([batch.boxes, chosen], axis=1)
            expected, expected_deltas = box_ops.assign(
                proposals, batch.boxes, batch.labels, self.classes
            )
            logits, deltas = self.head([*maps, proposals], training=training)
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


def _per_map(
    stride: float | Sequence[float], anchor_sizes: Sequence[float] | Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Returns the strides of all maps, and the sizes of the anchors on each of them."""
    strides = tuple(float(s) for s in (stride if isinstance(stride, Sequence) else (stride,)))
    maps: Any = anchor_sizes if isinstance(stride, Sequence) else [anchor_sizes]
    sizes = [each if isinstance(each, Sequence) else (each,) for each in maps]
    if len(sizes) != len(strides) or len({len(each) for each in sizes}) != 1:
        raise ValueError(
            "Detector: anchor_sizes must have a size for each of the maps, or as many sizes for "
            f"each, got {anchor_sizes} for strides {strides}"
        )
    return strides, tuple(tuple(float(size) for size in each) for each in sizes)


def _images_of(backbone: Any, maps: int) -> Any:
    """Returns an input for the images that a backbone takes."""
    if not is_graph(backbone):  # It does not say which.
        return tf.keras.Input((None, None, None), name="images")
    counts = len(backbone.inputs), len(backbone.outputs)
    if counts != (1, maps):
        returned = "one feature map" if maps == 1 else f"{maps} maps, as there are strides"
        raise ValueError(
            f"Detector: backbone must take images and return {returned}, got {counts[0]} inputs "
            f"and {counts[1]} outputs"
        )
    (images,) = backbone.inputs
    return tf.keras.Input(tuple(images.shape[1:]), dtype=images.dtype, name="images")


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
