"""The bins that deformable RoI pooling moves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tf_deformable.analysis import _calls
from tf_deformable.analysis._calls import Array
from tf_deformable.graphs.layer_calls import LayerCall
from tf_deformable.layers._roi_base import RoILayer
from tf_deformable.ops.sampling import bin_boxes


@dataclasses.dataclass(frozen=True)
class LayerBins:
    """The bins that one call of a RoI pooling layer averaged.

    Boxes are (y1, x1, y2, x2) in the continuous coordinates of the image, pixel i from i to i + 1
    (unless the layer is `aligned`, its boxes are rounded and include their last pixel). `B` images,
    `R` boxes each, `ph` x `pw` bins.
    """

    name: str  # of the layer, with #0, #1, ... if it was called several times
    layer: Any
    map_size: tuple[int, int]  # of the features, in their cells
    boxes: Array  # [B, R, 4], as the layer was given them
    present: NDArray[np.bool_]  # [B, R], False for padding
    bins: Array  # [B, R, ph, pw, 4], or [B, R, ph, pw, classes, 4] if each class has its own
    regular: Array  # [B, R, ph, pw, 4], without offsets


def roi_bins(model: Any, inputs: Any) -> list[LayerBins]:
    """Runs a model and returns the bins of its RoI pooling layers, plain ones too.

    Args:
        model: a Keras model of any kind. Its boxes may be inputs, or proposals of its own.
        inputs: a batch, as the model is called with. It runs in inference mode.

    Returns:
        One for each call of a `DeformableRoIPool`, `DeformablePSRoIPool`, `RoIPool` or `PSRoIPool`,
        in the order of execution.

    Raises:
        ValueError: the model called no such layer.
    """
    found = layer_bins(_calls.record(model, inputs))
    if not found:
        raise ValueError(
            "roi_bins: the model must call a RoI pooling layer of tf_deformable, got "
            f"{getattr(model, 'name', type(model).__name__)!r}"
        )
    return found


def layer_bins(calls: list[LayerCall]) -> list[LayerBins]:
    """`roi_bins` of a model that has run already."""
    return [_bins(call) for call in calls if isinstance(call.layer, RoILayer)]


def _bins(call: LayerCall) -> LayerBins:
    layer = call.layer
    assert isinstance(layer, RoILayer)
    regions = layer.as_regions(call.inputs)
    regular = bin_boxes(
        regions.boxes,
        output_size=layer.output_size,
        spatial_scale=layer.spatial_scale,
        aligned=layer.aligned,
    )
    return LayerBins(
        name=call.name,
        layer=layer,
        map_size=tuple(regions.features.shape[1:3]),
        boxes=_calls.to_numpy(tf.convert_to_tensor(call.inputs[1])),
        present=regions.per_image(regions.box_indices >= 0).numpy(),
        bins=_calls.to_numpy(layer.bin_boxes(call.inputs)),
        regular=_calls.to_numpy(regions.per_image(regions.without_padding(regular))),
    )
