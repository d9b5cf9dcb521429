"""Puts the parts of detectors behind a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_deformable.models.detection.detector import Detector
from tf_deformable.models.detection.heads import (
    CHANNELS_LAST,
    faster_rcnn_head,
    region_proposal_network,
    rfcn_head,
)
from tf_deformable.models.detection.pyramid import feature_pyramid_network
from tf_deformable.models.surgery.deformify import deformify
from tf_deformable.models.surgery.select import Layers, one_map, output_strides, several_maps

_layers = tf.keras.layers
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
    pyramid: Sequence[str | int] | None = None,
    channels: int | None = None,
    anchor_sizes: Sequence[float] | Sequence[Sequence[float]] | None = None,
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
        pyramid: which maps of a backbone that returns several make a feature pyramid, two or more
            of what `level` may be, in any order (`("P2", "P3", "P4", "P5")`): anchors are on all
            of them, and each box is pooled from the one that suits its size, see
            `faster_rcnn_head`. "rfcn" has none.
        channels: int, outputs of a 1x1 convolution after the backbone (the paper has 1024, and 256
            before the pooling of Faster R-CNN); None: there is none. With a `pyramid`, channels of
            a `feature_pyramid_network` on the maps (its paper has 256); None: the maps are taken as
            they are, as those of a network that is such a one already.
        anchor_sizes: square roots of the anchors' areas, in pixels of the image; None: 64, 128 and
            256. Of a pyramid, one for each map, the finest first, or a sequence of sizes for each;
            None: 8 times its stride.
        aspect_ratios: of anchors, heights divided by widths.
        rpn_units: int, channels of the region proposal network.
        head_arguments: further arguments of `faster_rcnn_head` or `rfcn_head`.
        deformify_arguments: further arguments of `deformify`, for example `{"modulated": True}`.
        **detector_arguments: further arguments of `Detector`.

    Raises:
        ValueError: as `deformify`, or its arguments without `deformable`; `kind` is none of these,
            or "rfcn" with a `pyramid`; the backbone has several inputs, or no map of that `level`;
            maps of a pyramid do not fit together, or `level` is given too.
    """
    if kind not in _HEADS:
        raise ValueError(f"detector: kind must be one of {_HEADS}, got {kind!r}")
    if pyramid is None:
        backbone = one_map("detector", backbone, level)
    elif kind == "rfcn" or level is not None:
        others = "kind 'rfcn', whose score maps are of one map" if kind == "rfcn" else "a level"
        raise ValueError(f"detector: pyramid must be None with {others}, got {pyramid!r}")
    else:
        backbone = several_maps("detector", backbone, pyramid)
    if deformify_arguments and not deformable:
        raise ValueError(
            f"detector: deformify_arguments need deformable=True, got {deformify_arguments}"
        )
    if deformable or dilate_last_stage:
        chosen = layers if deformable else None
        backbone = deformify(
            backbone, chosen, dilate_last_stage=dilate_last_stage, **(deformify_arguments or {})
        )
    backbone = _with_neck(backbone, channels)
    strides = output_strides(backbone)
    stride: Any = strides[0] if pyramid is None else strides
    if anchor_sizes is None:
        anchor_sizes = (64, 128, 256) if pyramid is None else [8 * each for each in strides]
    depth = int(backbone.outputs[0].shape[-1])
    of_map = anchor_sizes if pyramid is None else anchor_sizes[0]
    per_cell = len(of_map) if isinstance(of_map, Sequence) else 1
    anchors = per_cell * len(aspect_ratios)
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


def _with_neck(backbone: Any, channels: int | None) -> Any:
    """Returns a backbone with what stands between it and the heads."""
    maps = backbone.outputs
    if channels is None:
        depths = [int(each.shape[-1]) for each in maps]
        if len(set(depths)) > 1:
            raise ValueError(
                "detector: channels must be given where maps of a pyramid differ in theirs, 256 as "
                f"in the paper of feature pyramid networks, say; got None for maps of {depths}"
            )
        return backbone
    if len(maps) > 1:
        return feature_pyramid_network(backbone, channels)
    reduced = _layers.Conv2D(channels, 1, activation="relu", name="reduce", **CHANNELS_LAST)
    return tf.keras.Model(backbone.inputs[0], reduced(maps[0]), name=backbone.name)
