"""Semantic segmentation on a backbone of the user's choice, as the paper's DeepLab."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_deformable.layers._base import as_output_shape
from tf_deformable.models.surgery.deformify import deformify
from tf_deformable.models.surgery.select import Layers, one_map


def deeplab(
    backbone: Any,
    classes: int,
    *,
    deformable: bool = False,
    layers: Layers = "conv5",
    dilate_last_stage: bool = False,
    level: str | int | None = None,
    channels: int | None = None,
    deformify_arguments: dict[str, Any] | None = None,
    name: str = "deeplab",
) -> Any:
    """Returns a network that classifies every pixel: `[B, H, W, 3]` to logits `[B, H, W, classes]`.

    The features of the backbone are reduced to `channels` by a 1x1 convolution, classified by
    another one, and the logits are interpolated bilinearly to the size of the images.

    Example:
        >>> backbone = tf.keras.applications.ResNet50(weights=None, include_top=False)
        >>> model = tf_deformable.models.deeplab(
        ...     backbone, 21, deformable=True, dilate_last_stage=True)
        >>> model.compile(
        ...     "adam",
        ...     tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255),
        ...     metrics=[tf.keras.metrics.MeanIoU(21, ignore_class=255, sparse_y_pred=False)])

    Args:
        backbone: functional or Sequential model, images in, feature maps out (channels_last).
        classes: int, number of classes, background included.
        deformable: bool, whether the `layers` of the backbone become deformable.
        layers: which ones, see `deformify`.
        dilate_last_stage: bool, whether the last stage keeps its resolution, see `deformify`.
        level: str or int, which map of a backbone that returns several: its key or name (`"P4"` of
            KerasHub's `pyramid_outputs`, too), or its index among the outputs; None: the coarsest.
        channels: int, outputs of the first 1x1 convolution (the paper has 1024); None: there is
            none, the features are classified as they are.
        deformify_arguments: further arguments of `deformify`, for example `{"modulated": True}`.
        name: name of the model.

    Returns:
        A functional model with the backbone's layers in it, or copies of them if they changed.

    Raises:
        ValueError: as `deformify`, or its arguments without `deformable`; the backbone has several
            inputs, or no map of that `level`.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.3; Chen et al., DeepLab,
        PAMI 2018.
    """
    backbone = one_map("deeplab", backbone, level)
    if deformify_arguments and not deformable:
        raise ValueError(
            f"deeplab: deformify_arguments need deformable=True, got {deformify_arguments}"
        )
    if deformable or dilate_last_stage:
        chosen = layers if deformable else None
        backbone = deformify(
            backbone, chosen, dilate_last_stage=dilate_last_stage, **(deformify_arguments or {})
        )
    images, features = backbone.inputs[0], backbone.outputs[0]
    if channels is not None:
        features = tf.keras.layers.Conv2D(
            channels, 1, activation="relu", name="reduce", data_format="channels_last"
        )(features)
    scores = tf.keras.layers.Conv2D(classes, 1, name="scores", data_format="channels_last")(
        features
    )
    # The layer's output is float32 whatever the policy; Keras is to know.
    logits = ResizeLike(dtype="float32", name="logits")([scores, images])
    return tf.keras.Model(images, logits, name=name)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class ResizeLike(tf.keras.layers.Layer):
    """Interpolates maps bilinearly to the height and width of others.

    Input shape:
        A list `[maps, others]`: `[B, h, w, C]` and `[B, H, W, D]`.

    Output shape:
        `[B, H, W, C]`, in float32.
    """

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the first of the inputs in the size of the second."""
        maps, others = inputs
        return tf.image.resize(tf.cast(maps, tf.float32), tf.shape(others)[1:3])

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the resized maps."""
        maps, others = (tuple(tf.TensorShape(shape).as_list()) for shape in input_shape)
        return as_output_shape((maps[0], others[1], others[2], maps[3]))
