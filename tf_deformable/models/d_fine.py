"""KerasHub's D-FINE with this package's attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_deformable._keras import sublayers
from tf_deformable.convert.layouts import yx_from_xy
from tf_deformable.layers.deformable_attention import MultiScaleDeformableAttention
from tf_deformable.ops.deformable_attention import multi_scale_deformable_attention

_ATTRIBUTE = "ms_deformable_attn_core"  # of KerasHub's DFineMultiscaleDeformableAttention


def accelerate_d_fine(model: Any) -> Any:
    """Lets the decoder of KerasHub's D-FINE call this package's operator.

    KerasHub gathers the four neighbours of every sample of the deformable attention into tensors of
    their own. Afterwards every decoder layer of the model calls
    `tf_deformable.multi_scale_deformable_attention` in its place, which computes the same, to
    rounding, with the same gradients; weights, configuration and saved files stay what they are.
    Both of D-FINE's methods are there, "default" and "discrete" (the nearest pixel, no gradient to
    locations), and its own number of points of each level.

    A model that is loaded or cloned is KerasHub's again: call it once more. What Keras has traced
    before (`predict`, `fit`) is traced anew.

    Example:
        .. code-block:: python

            detector = keras_hub.models.DFineObjectDetector.from_preset("dfine_small_coco")
            tf_deformable.models.accelerate_d_fine(detector)

    Args:
        model: `keras_hub.models.DFineBackbone`, `DFineObjectDetector`, or another model of Keras 3
            that holds one. It is changed.

    Returns:
        The model.

    Raises:
        TypeError: model is not a Keras model or layer.
        ValueError: no layer of the model has the attention of D-FINE.
    """
    if not isinstance(model, tf.keras.layers.Layer):
        raise TypeError(
            f"accelerate_d_fine: model must be a Keras model, got {type(model).__name__}"
        )
    layers = [layer for layer in sublayers(model) if hasattr(layer, _ATTRIBUTE)]
    if not layers:
        raise ValueError(
            "accelerate_d_fine: model must hold layers of KerasHub's D-FINE "
            f"(with the attribute {_ATTRIBUTE}), got {model.name!r}, which has none"
        )
    for layer in layers:
        setattr(layer, _ATTRIBUTE, _attention)
        layer.supports_jit = MultiScaleDeformableAttention.operators_support_jit()
    for function in ("train_function", "test_function", "predict_function"):
        if getattr(model, function, None) is not None:
            setattr(model, function, None)
    return model


def _attention(
    value: tf.Tensor,
    dynamic_spatial_shapes: tf.Tensor,
    sampling_locations: tf.Tensor,
    attention_weights: tf.Tensor,
    num_points: Sequence[int],
    slice_sizes: Sequence[int],
    spatial_shapes: Sequence[tuple[int, int]],
    num_levels: int,
    num_queries: Any,
    method: str = "default",
) -> tf.Tensor:
    """What KerasHub's `multi_scale_deformable_attention_v2` computes, with its arguments.

    Args:
        value: `[N, S, heads, D]`.
        dynamic_spatial_shapes: `[levels, 2]`, used where there are no `spatial_shapes`.
        sampling_locations: `[N, Q, heads, sum of num_points, 2]`, (x, y).
        attention_weights: `[N, Q, heads, sum of num_points]`.
        num_points: points of each level.
        slice_sizes: pixels of each level; they follow from the sizes.
        spatial_shapes: height and width of each level.
        num_levels: number of levels.
        num_queries: Q; it follows from the shapes.
        method: "discrete" for the nearest pixel, anything else for bilinear samples.

    Returns:
        `[N, Q, heads*D]`.
    """
    del slice_sizes, num_queries
    if spatial_shapes is None or len(spatial_shapes) != num_levels:
        spatial_shapes = dynamic_spatial_shapes
    # Half precision would round the positions; what it has rounded already stays so.
    is_narrow = value.dtype in (tf.float16, tf.bfloat16)
    dtype = tf.float32 if is_narrow else value.dtype
    locations = yx_from_xy(tf.cast(sampling_locations, dtype))
    coordinates = "normalized"
    if method == "discrete":
        level = np.repeat(np.arange(num_levels), num_points)  # of each point
        sizes = tf.gather(tf.cast(spatial_shapes, dtype), level)
        nearest = tf.floor(locations * sizes + 0.5)
        locations = tf.stop_gradient(tf.minimum(tf.maximum(nearest, 0), sizes - 1))
        coordinates = "pixels"
    return multi_scale_deformable_attention(
        value,
        spatial_shapes,
        locations,
        tf.cast(attention_weights, dtype),
        coordinates=coordinates,
        num_points=num_points,
    )
