"""Feature pyramid networks (FPN) on backbones that return several maps."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_deformable.models.detection.heads import CHANNELS_LAST
from tf_deformable.models.surgery.select import output_strides

_layers = tf.keras.layers


def feature_pyramid_network(backbone: Any, channels: int = 256, *, name: str | None = None) -> Any:
    """Returns a backbone whose fine maps know what its coarse maps have seen.

    From the coarsest map down, each map is reduced to `channels` by a 1x1 convolution and added to
    the one above it, which is enlarged by repeating its cells; a 3x3 convolution ends each of them.
    There are no activations.

    Example:
        >>> resnet = tf.keras.applications.ResNet50(weights=None, include_top=False)
        >>> names = ["conv3_block4_out", "conv4_block6_out", "conv5_block3_out"]
        >>> backbone = tf.keras.Model(
        ...     resnet.input, [resnet.get_layer(name).output for name in names])
        >>> pyramid = tf_deformable.models.feature_pyramid_network(backbone)
        >>> [tuple(each.shape) for each in pyramid(tf.zeros([1, 64, 96, 3]))]
        [(1, 8, 12, 256), (1, 4, 6, 256), (1, 2, 3, 256)]

    Args:
        backbone: functional model, images in, several feature maps out (channels_last), the finest
            first.
        channels: int, of the maps of the pyramid.
        name: name of the model, None: the backbone's.

    Returns:
        A functional model with the layers of the backbone and as many outputs, of the same sizes.

    Raises:
        ValueError: strides do not grow from map to map by whole factors.

    Sources:
        Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, section 3.
    """
    strides = output_strides(backbone)
    factors = [coarse / fine for fine, coarse in zip(strides, strides[1:], strict=False)]
    if not factors or any(factor < 2 or factor != int(factor) for factor in factors):
        raise ValueError(
            "feature_pyramid_network: backbone must return two maps or more, each with a stride "
            f"that is a multiple of that of the map before, got strides {strides}"
        )
    above = None
    maps: list[Any] = []
    for features, stride, factor in zip(
        backbone.outputs[::-1], strides[::-1], [None, *factors[::-1]], strict=True
    ):
        merged = _layers.Conv2D(channels, 1, name=f"fpn_lateral_{stride:g}", **CHANNELS_LAST)(
            features
        )
        if factor is not None:
            enlarged = _EnlargeLike(factor, name=f"fpn_enlarged_{stride:g}")([above, merged])
            merged = _layers.Add(name=f"fpn_merged_{stride:g}")([merged, enlarged])
        above = merged
        last = _layers.Conv2D(
            channels, 3, padding="same", name=f"fpn_output_{stride:g}", **CHANNELS_LAST
        )
        maps.append(last(merged))
    return tf.keras.Model(backbone.inputs[0], maps[::-1], name=name or backbone.name)


@tf.keras.utils.register_keras_serializable(package="tf_deformable")
class _EnlargeLike(tf.keras.layers.Layer):
    """Repeats the cells of a map `factor` times along both axes, to the size of another map.

    So a cell of the coarse map lies where the anchors have it, over its cells of the fine one,
    whether the size of that is a multiple or not. What is too much is cut off; what is missing, if
    maps are cropped by convolutions without padding, is zeros.
    """

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = int(factor)

    def call(self, inputs: Any) -> tf.Tensor:
        coarse, fine = inputs
        size = tf.shape(fine)[1:3]
        for axis in (1, 2):
            coarse = tf.repeat(coarse, self.factor, axis=axis)
        enlarged = coarse[:, : size[0], : size[1]]
        missing = size - tf.shape(enlarged)[1:3]
        enlarged = tf.pad(enlarged, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
        return tf.ensure_shape(enlarged, [*fine.shape[:3], coarse.shape[3]])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}
