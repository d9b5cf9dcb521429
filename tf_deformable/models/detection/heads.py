"""The parts of detectors behind a backbone, as functional models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_deformable.layers.psroi_pool import DeformablePSRoIPool, PSRoIPool
from tf_deformable.layers.roi_pool import DeformableRoIPool, RoIPool
from tf_deformable.models.detection.box_layers import BoxesByLevel

_layers = tf.keras.layers
# The parts read a backbone's map as it must be, whatever is set for all of Keras.
CHANNELS_LAST = {"data_format": "channels_last"}


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
    hidden = _layers.Conv2D(
        units, 3, padding="same", activation="relu", name="shared", **CHANNELS_LAST
    )(features)
    # Names unlike those of the heads: Keras tells the weights of a model by their layers' names.
    logits = _layers.Conv2D(anchors * (classes + 1), 1, name=f"{name}_logits", **CHANNELS_LAST)(
        hidden
    )
    deltas = _layers.Conv2D(anchors * 4, 1, name=f"{name}_deltas", **CHANNELS_LAST)(hidden)
    outputs = [
        _layers.Reshape((-1, classes + 1), dtype="float32", name="anchor_logits")(logits),
        _layers.Reshape((-1, 4), dtype="float32", name="anchor_deltas")(deltas),
    ]
    return tf.keras.Model(features, outputs, name=name)


def faster_rcnn_head(
    channels: int,
    classes: int,
    stride: float | Sequence[float],
    *,
    deformable: bool = False,
    bins: int = 7,
    units: Sequence[int] = (1024, 1024),
    canonical_size: float = 224.0,
    name: str = "faster_rcnn",
    **pooling_arguments: Any,
) -> Any:
    """Returns the network of Faster R-CNN that classifies and corrects proposals.

    RoI pooling, fully connected layers, and one prediction of each kind per box; the corrections
    are the same for all classes. On a pyramid each box is pooled from one of the maps, which
    `boxes.assign_levels` chooses by its size, and the layers after the pooling are those of all
    maps. Each map has a pooling layer of its own, `pooling_8` for that of stride 8.

    Args:
        channels: int, of the features.
        classes: int, number of classes, background not among them.
        stride: pixels of the image per cell of the features; of a pyramid, those of each map, the
            finest first.
        deformable: bool, whether the pooling is `DeformableRoIPool`, or `RoIPool`.
        bins: int, height and width of the grid of bins.
        units: sizes of the hidden layers.
        canonical_size: of a pyramid, square root of the area of the boxes that are pooled at stride
            16, in pixels, see `boxes.assign_levels`.
        name: name of the model.
        **pooling_arguments: further arguments of the pooling layer.

    Returns:
        A model from `[features, boxes]`, `[B, h, w, channels]` and `[B, R, 4]`, to logits
        `[B, R, classes + 1]`, the background's last, and deltas `[B, R, 4]`. Of a pyramid, it takes
        the maps one by one: `[finest, ..., coarsest, boxes]`.

    Sources:
        Ren et al., Faster R-CNN, NIPS 2015; Dai et al., Deformable Convolutional Networks, 2017;
        for pyramids Lin et al., Feature Pyramid Networks, CVPR 2017, section 4.2.
    """
    strides = tuple(stride) if isinstance(stride, Sequence) else (stride,)
    *maps, boxes = inputs = _head_inputs(channels, len(strides))
    kind: Any = DeformableRoIPool if deformable else RoIPool
    arguments = {**pooling_arguments, **CHANNELS_LAST}
    if len(strides) == 1:
        pool = kind(bins, spatial_scale=1 / strides[0], name="pooling", **arguments)
        pooled = pool([maps[0], boxes])
    else:
        boxes_of = BoxesByLevel(strides, canonical_size, name="boxes_by_level")(boxes)
        pools = [
            kind(bins, spatial_scale=1 / s, name=f"pooling_{s:g}", **arguments) for s in strides
        ]
        # Of each box all are zeros but one.
        each = [pool([m, own]) for pool, m, own in zip(pools, maps, boxes_of, strict=True)]
        pooled = _layers.Add(name="pooled")(each)
    hidden = _layers.Reshape((-1, bins * bins * channels))(pooled)
    for number, size in enumerate(units, 1):
        hidden = _layers.Dense(size, activation="relu", name=f"hidden_{number}")(hidden)
    outputs = [
        _layers.Dense(classes + 1, dtype="float32", name="logits")(hidden),
        _layers.Dense(4, dtype="float32", name="deltas")(hidden),
    ]
    return tf.keras.Model(inputs, outputs, name=name)


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
        **pooling_arguments: further arguments of the pooling layers.

    Returns:
        A model as that of `faster_rcnn_head`.

    Sources:
        Dai, Li, He and Sun, R-FCN, NIPS 2016; Dai et al., Deformable Convolutional Networks, 2017.
    """
    features, boxes = _head_inputs(channels, maps=1)
    arguments = {"spatial_scale": 1 / stride, **pooling_arguments, **CHANNELS_LAST}
    outputs = []
    for output, filters in (("logits", classes + 1), ("deltas", 4)):
        if deformable:
            is_agnostic = output == "deltas"
            layer: Any = DeformablePSRoIPool
            pool = layer(
                bins,
                bins,
                score_filters=filters,
                class_agnostic=is_agnostic,
                name=f"pooling_{output}",
                **arguments,
            )
            pooled = pool([features, boxes])
        else:
            maps = _layers.Conv2D(bins * bins * filters, 1, name=f"maps_{output}", **CHANNELS_LAST)(
                features
            )
            plain: Any = PSRoIPool
            pooled = plain(bins, bins, name=f"pooling_{output}", **arguments)([maps, boxes])
        outputs.append(_Vote(name=output, dtype="float32")(pooled))
    return tf.keras.Model([features, boxes], outputs, name=name)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class _Vote(tf.keras.layers.Layer):
    """The mean of the bins: `[B, R, ph, pw, D]` to `[B, R, D]`."""

    def call(self, inputs: Any) -> tf.Tensor:
        return tf.reduce_mean(tf.cast(inputs, self.compute_dtype), axis=[2, 3])


def _head_inputs(channels: int, maps: int) -> list[Any]:
    """Returns inputs for the maps, and for the boxes."""
    names = ["features"] if maps == 1 else [f"features_{number}" for number in range(maps)]
    features = [tf.keras.Input((None, None, channels), name=name) for name in names]
    return [*features, tf.keras.Input((None, 4), dtype="float32", name="boxes")]
