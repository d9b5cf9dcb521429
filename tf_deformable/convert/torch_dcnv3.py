"""`DCNv3` from and to the state dicts of InternImage."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_deformable.convert import layouts
from tf_deformable.convert.files import Array, WeightsSource, read_weights
from tf_deformable.convert.matching import Matching, joined
from tf_deformable.convert.torch_parameters import (
    Parameter,
    arguments_of,
    check_arguments,
    described,
    linear,
    load_parameters,
)
from tf_deformable.layers.dcnv3 import DCNv3
from tf_deformable.ops import _arguments

# What a file says of a layer, so that no argument can.
_FROM_FILE = (
    "remove_center",
    "center_feature_scale",
    "depthwise_kernel_size",
    "normalization",
    "use_bias",
)
# Where the normalisation is within `dw_conv.1`, before or after a transposition.
_NORMALIZATIONS = {"layer": "dw_conv.1.1", "batch": "dw_conv.1.0"}


def dcnv3_layer_from_torch(
    weights: WeightsSource,
    prefix: str = "",
    *,
    groups: int,
    kernel_size: int | tuple[int, int] = 3,
    key: str | None = None,
    ignore: str | None = None,
    **layer_arguments: Any,
) -> Any:
    """Returns a layer `DCNv3` with the weights of one of InternImage's.

    It reads what `DCNv3` and `DCNv3_pytorch` of InternImage's `ops_dcnv3` save, in its networks as
    `levels.0.blocks.0.dcn`. Offsets (dx, dy) become (dy, dx), and taps, column by column there, go
    row by row.

    Example:
        >>> shapes = {"input_proj": (16, 16), "output_proj": (16, 16), "offset": (36, 16),
        ...           "mask": (18, 16), "dw_conv.0": (16, 1, 3, 3), "dw_conv.1.1": (16,)}
        >>> weights = {f"dcn.{n}.weight": np.random.normal(size=s) for n, s in shapes.items()}
        >>> weights |= {f"dcn.{n}.bias": np.zeros(s[0]) for n, s in shapes.items()}
        >>> layer = tf_deformable.convert.dcnv3_layer_from_torch(weights, "dcn", groups=2)
        >>> layer(tf.zeros([1, 8, 8, 16])).shape
        TensorShape([1, 8, 8, 16])

    Args:
        weights: a state dict (arrays or tensors by name) or a file, see `read_weights`.
        prefix: name of the module.
        groups: int, the module's `group`, which the weights do not tell.
        kernel_size: int or (height, width), likewise; InternImage has 3.
        key: under which key of the checkpoint the state dict is, see `read_weights`.
        ignore: regular expression for names under the prefix that may be left.
        **layer_arguments: further arguments of the layer: `offset_scale`, `activation`, `name` and
            so on. The default of `padding` is what InternImage has.

    Returns:
        The layer, built.

    Raises:
        ImportError, FileNotFoundError: see `read_weights`.
        TypeError: an argument is none of the layer's, or one that the file decides.
        ValueError: weights are missing, have another shape, or are left under the prefix; the
            message lists them all.
    """
    op = "dcnv3_layer_from_torch"
    check_arguments(op, "DCNv3", layer_arguments, arguments_of(DCNv3), _FROM_FILE)
    arrays = read_weights(weights, key)
    prefix = prefix.strip(".")
    kernel = _arguments.positive_pair(op, "kernel_size", kernel_size)
    layer = _layer_of_shapes(op, arrays, prefix, groups, kernel, layer_arguments)
    load_parameters(
        op,
        describe_dcnv3(layer),
        dcnv3_parameters(layer),
        arrays,
        prefix,
        ignore=ignore,
        not_needed=DCNV3_COUNTERS,
    )
    return layer


# What batch normalisation of PyTorch counts, which nothing needs.
DCNV3_COUNTERS = (f"{_NORMALIZATIONS['batch']}.num_batches_tracked",)


def dcnv3_parameters(layer: Any) -> list[Parameter]:
    """Returns what InternImage has for the variables of a built layer."""
    reorders = {
        name: [functools.partial(_reordered, function, layer) for function in functions]
        for name, functions in {
            "offset": (layouts.offsets_from_dcnv3, layouts.dcnv3_from_offsets),
            "mask": (layouts.mask_from_dcnv3, layouts.dcnv3_from_mask),
        }.items()
    }
    height, width, channels, _ = layer.depthwise_kernel.shape
    parameters = [
        *linear("input_proj", layer.input_kernel, layer.input_bias),
        Parameter(
            "dw_conv.0.weight",
            layer.depthwise_kernel,
            (channels, 1, height, width),
            _first_axes_last,
            _first_axes_last,
        ),
        Parameter("dw_conv.0.bias", layer.depthwise_bias, (channels,)),
        *_normalization(layer, channels),
        *linear("offset", layer.offset_kernel, layer.offset_bias, *reorders["offset"]),
        *linear("mask", layer.mask_kernel, layer.mask_bias, *reorders["mask"]),
        *linear("output_proj", layer.output_kernel, layer.output_bias),
    ]
    if layer.center_feature_scale:  # Parameters of the module, not of a linear one in it.
        weight, bias = linear("center", layer.center_kernel, layer.center_bias)
        parameters += [
            weight._replace(name="center_feature_scale_proj_weight"),
            bias._replace(name="center_feature_scale_proj_bias"),
        ]
    return parameters


def describe_dcnv3(layer: Any) -> str:
    """Returns the layer for messages."""
    names = ("groups", "kernel_size", "remove_center", "center_feature_scale", "normalization")
    return described(layer, names)


def _normalization(layer: Any, channels: int) -> list[Parameter]:
    if layer.normalization is None:
        return []
    name, variables = _NORMALIZATIONS[layer.normalization], layer.normalization_layer
    named = {"weight": variables.gamma, "bias": variables.beta}
    if layer.normalization == "batch":
        named |= {"running_mean": variables.moving_mean, "running_var": variables.moving_variance}
    return [Parameter(f"{name}.{kind}", one, (channels,)) for kind, one in named.items()]


def _reordered(function: Any, layer: Any, array: Array) -> Array:
    result = function(array, layer.kernel_size, remove_center=layer.remove_center)
    return np.asarray(result)


def _first_axes_last(array: Array) -> Array:
    """`[C, 1, h, w]` to `[h, w, C, 1]`, and back."""
    return array.transpose(2, 3, 0, 1)


def _layer_of_shapes(
    op: str,
    arrays: Mapping[str, Array],
    prefix: str,
    groups: int,
    kernel_size: tuple[int, int],
    layer_arguments: dict[str, Any],
) -> Any:
    """Returns a built layer for weights of these shapes."""
    matching = Matching(op, arrays, ())
    mask = matching.shape(joined(prefix, "mask.weight"), "[outputs,inputs]")
    depthwise = matching.shape(joined(prefix, "dw_conv.0.weight"), "[C,1,h,w]")
    target = f"a module DCNv3 {prefix!r}"
    matching.check(target)  # If it returns, there are both shapes.
    assert mask is not None and depthwise is not None
    taps = kernel_size[0] * kernel_size[1]
    # InternImage has none of them without a normalisation.
    normalization = "layer"
    if joined(prefix, _NORMALIZATIONS["batch"], "weight") in arrays:
        normalization = "batch"
    outputs = [groups * (taps - is_removed) for is_removed in (False, True)]
    if mask[0] not in outputs:
        matching.refuse(
            f"{joined(prefix, 'mask.weight')} has {mask[0]} outputs, which for "
            f"groups={groups} and kernel_size={kernel_size} must be {outputs[0]}, or {outputs[1]} "
            "without the center"
        )
    matching.check(target)
    layer = DCNv3(
        groups,
        kernel_size,
        remove_center=mask[0] == outputs[1],
        center_feature_scale=joined(prefix, "center_feature_scale_proj_weight") in arrays,
        depthwise_kernel_size=(depthwise[2], depthwise[3]),
        normalization=normalization,
        **layer_arguments,
    )
    first = layer.data_format == "channels_first"
    layer.build((None, mask[1], None, None) if first else (None, None, None, mask[1]))
    return layer
