"""What stands for a convolution: a deformable layer with its weights."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import tensorflow as tf

from tf_deformable._keras import sublayers
from tf_deformable.layers.deformable_conv2d import DeformableConv2D

_DeformableConv2D: Any = DeformableConv2D
KINDS = (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D, tf.keras.layers.SeparableConv2D)
CONVOLUTIONS = (*KINDS, tf.keras.layers.Conv2DTranspose, DeformableConv2D)
POOLS = (tf.keras.layers.MaxPooling2D, tf.keras.layers.AveragePooling2D)
# The arguments of DeformableConv2D that a convolution has too.
_COMMON_ARGUMENTS = (
    *("name", "trainable", "dtype", "kernel_size", "strides", "padding", "data_format"),
    *("dilation_rate", "activation", "use_bias", "bias_initializer", "bias_regularizer"),
    *("activity_regularizer", "bias_constraint"),
)
_KERNEL_ARGUMENTS = ("initializer", "regularizer", "constraint")
# Those that say what is computed: a replacement has them from the convolution.
_KEPT_ARGUMENTS = {
    *("name", "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate"),
    *("groups", "activation", "use_bias"),
}
_LAYER_ARGUMENTS = (
    set(inspect.signature(DeformableConv2D).parameters) | {"trainable", "dtype"}
) - {*_KEPT_ARGUMENTS, "kwargs"}


def deformable_layer(layer: Any, **layer_arguments: Any) -> Any:
    """Returns a deformable layer with the weights of a convolution, for models of your own class.

    `deformify` cannot look into a subclassed model. Give such a model the layer where its
    constructor makes it. (Keras 3 lets no layer into a model that was called already.)

    Example:
        >>> class Network(tf.keras.Model):
        ...     def __init__(self, conv):
        ...         super().__init__()
        ...         self.conv = tf_deformable.models.deformable_layer(conv)
        ...     def call(self, images):
        ...         return self.conv(images)
        >>> trained = tf.keras.layers.Conv2D(4, 3)
        >>> images = tf.random.normal([1, 8, 8, 3])
        >>> outputs = trained(images)
        >>> np.testing.assert_allclose(Network(trained)(images), outputs, atol=1e-5)

    Args:
        layer: a `Conv2D`, `DepthwiseConv2D` or `SeparableConv2D` that has been built (called).
        **layer_arguments: arguments of `DeformableConv2D`, for example `modulated=True`;
            `mask_initial_value` is 1.0 unless given.

    Returns:
        A built `DeformableConv2D` that computes what `layer` does, or, for a `SeparableConv2D`, a
        Sequential of one and a 1x1 `Conv2D`.

    Raises:
        TypeError: an argument is none of `DeformableConv2D`, or one that the convolution has.
        ValueError: the layer is not built, or of another class.
    """
    check_arguments("deformable_layer", layer_arguments)
    problem = problem_of(layer)
    if problem is None and not layer.built:
        problem = "it has no weights yet: call it first"
    if problem:
        raise ValueError(f"deformable_layer: {layer.name} cannot be replaced: {problem}")
    new = deformable_of(layer, {}, {"mask_initial_value": 1.0, **layer_arguments})
    depth = channels_read(layer)
    has_channels_first = layer.data_format == "channels_first"
    shape = (None, depth, None, None) if has_channels_first else (None, None, None, depth)
    new.build(shape)
    copy_convolution(layer, new)
    return new


def holds_convolutions(layer: Any) -> bool:
    """Returns whether a layer has convolutions that `deformify` replaces, or has made, inside."""
    kinds = (*KINDS, DeformableConv2D)
    return any(isinstance(inner, kinds) for inner in sublayers(layer) if inner is not layer)


def check_arguments(operation: str, arguments: dict[str, Any]) -> None:
    """Refuses what is no argument of a layer that stands for a convolution.

    Raises:
        TypeError: `DeformableConv2D` does not have it, or it says what a convolution computes.
    """
    for name in arguments:
        if name in _KEPT_ARGUMENTS:
            raise TypeError(
                f"{operation}: {name} is what the convolution has, and stays; got {name}="
                f"{arguments[name]!r}"
            )
        if name not in _LAYER_ARGUMENTS:
            similar = difflib.get_close_matches(name, _LAYER_ARGUMENTS)
            hint = f"; similar names: {', '.join(similar)}" if similar else ""
            raise TypeError(f"{operation}: DeformableConv2D has no argument {name!r}{hint}")


def problem_of(layer: Any) -> str | None:
    """Returns why a layer cannot be replaced, None if it can."""
    kind = type(layer).__name__
    if isinstance(layer, DeformableConv2D):
        return "it is deformable already"
    if type(layer) in KINDS:
        return None
    if isinstance(layer, tf.keras.layers.Conv2DTranspose):
        return (
            "it is a Conv2DTranspose, for which there is no deformable operator; "
            "UpSampling2D and a Conv2D, which can be replaced, do the same work"
        )
    if isinstance(layer, KINDS):
        return (
            f"it is a {kind}, which may compute something else than the layer of Keras that it is "
            "derived from; use that one"
        )
    return f"it is a {kind}, not a Conv2D, DepthwiseConv2D or SeparableConv2D"


def kernel_size(layer: Any) -> tuple[int, int]:
    """Returns height and width of the window of a convolution or a pool."""
    size = layer.pool_size if isinstance(layer, POOLS) else layer.kernel_size
    return size[0], size[1]


def channels_read(layer: Any) -> int:
    """The number of channels that a built convolution reads."""
    groups = layer.groups if type(layer) is tf.keras.layers.Conv2D else 1
    return int(_kernel(layer).shape[2]) * groups


def deformable_of(layer: Any, change: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """Returns an unbuilt deformable layer for a convolution."""
    config = {**layer.get_config(), **change}
    common = {name: config[name] for name in _COMMON_ARGUMENTS if name in config}
    if type(layer) is tf.keras.layers.Conv2D:
        return _DeformableConv2D.from_config(
            {
                **common,
                "filters": layer.filters,
                "groups": layer.groups,
                **{f"kernel_{name}": config[f"kernel_{name}"] for name in _KERNEL_ARGUMENTS},
                **arguments,
            }
        )
    channels = int(_kernel(layer).shape[2])
    depthwise = {
        **common,
        "filters": channels * layer.depth_multiplier,
        "groups": channels,
        **{f"kernel_{name}": config[f"depthwise_{name}"] for name in _KERNEL_ARGUMENTS},
        **arguments,
    }
    if type(layer) is tf.keras.layers.DepthwiseConv2D:
        return _DeformableConv2D.from_config(depthwise)
    neutral = {"activation": None, "use_bias": False, "activity_regularizer": None}
    pointwise = {
        **common,
        "name": f"{layer.name}_pointwise",
        "filters": layer.filters,
        **{"kernel_size": (1, 1), "strides": (1, 1), "dilation_rate": (1, 1)},
        **{f"kernel_{name}": config[f"pointwise_{name}"] for name in _KERNEL_ARGUMENTS},
    }
    return tf.keras.Sequential(
        [
            _DeformableConv2D.from_config(
                {**depthwise, **neutral, "name": f"{layer.name}_depthwise"}
            ),
            tf.keras.layers.Conv2D.from_config(pointwise),
        ],
        name=layer.name,
    )


def copy_convolution(old: Any, new: Any) -> None:
    """Copies weights and the `trainable` flag of a convolution into its deformable one."""
    new.trainable = old.trainable
    if type(old) is tf.keras.layers.SeparableConv2D:
        depthwise, with_bias = new.layers
        with_bias.kernel.assign(tf.convert_to_tensor(old.pointwise_kernel))
    else:
        depthwise = with_bias = new
    kernel = tf.convert_to_tensor(_kernel(old))
    if type(old) is not tf.keras.layers.Conv2D:  # [kh, kw, C, multiplier]: C groups of one channel
        kernel = tf.reshape(kernel, [*kernel.shape[:2], 1, -1])
    depthwise.kernel.assign(kernel)
    if old.use_bias:
        with_bias.bias.assign(tf.convert_to_tensor(old.bias))


def _kernel(layer: Any) -> Any:
    """The weights of a convolution's taps; Keras 3 names those of a DepthwiseConv2D otherwise."""
    return layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel
