"""`MultiScaleDeformableAttention` from and to the state dicts of PyTorch's modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
from tf_deformable.layers.deformable_attention import MultiScaleDeformableAttention

# What a file says of a layer, so that no argument can.
_FROM_FILE = ("num_points", "head_dim", "output_dim", "use_bias")
# The layer's projections, as Deformable DETR, mmcv and transformers all name them.
_NAMES = {
    "value": "value_proj",
    "offset": "sampling_offsets",
    "attention": "attention_weights",
    "output": "output_proj",
}


def attention_layer_from_torch(
    weights: WeightsSource,
    prefix: str = "",
    *,
    num_heads: int = 8,
    num_levels: int = 4,
    key: str | None = None,
    ignore: str | None = None,
    **layer_arguments: Any,
) -> Any:
    """Returns a `MultiScaleDeformableAttention` with the weights of one of PyTorch's.

    It reads what these save, which have the same names: `MSDeformAttn` of Deformable DETR
    (`transformer.encoder.layers.0.self_attn`) and of its heirs (Mask2Former, DINO), mmcv's
    `MultiScaleDeformableAttention` (in mmdetection, `encoder.layers.0.self_attn`), and
    `DeformableDetrMultiscaleDeformableAttention` of transformers
    (`model.encoder.layers.0.self_attn`). The offsets, (x, y) there, become (y, x).

    The layer's reference points are (y, x), too, and boxes (y, x, height, width) where they are
    (x, y, width, height) there: `yx_from_xy` exchanges them. What mmcv's module does beside the
    operator (adding the position to the query, the query to the output, dropout) is for the caller.

    Example:
        >>> linear = {"value_proj": 32, "output_proj": 32,
        ...           "sampling_offsets": 4 * 2 * 3 * 2, "attention_weights": 4 * 2 * 3}
        >>> weights = {f"self_attn.{name}.weight": np.random.normal(size=[outputs, 32])
        ...            for name, outputs in linear.items()}
        >>> weights |= {f"self_attn.{name}.bias": np.zeros([outputs])
        ...             for name, outputs in linear.items()}
        >>> layer = tf_deformable.convert.attention_layer_from_torch(
        ...     weights, "self_attn", num_heads=4, num_levels=2)
        >>> layer.num_points, layer.head_dim
        (3, 8)

    Args:
        weights: a state dict (arrays or tensors by name) or a file, see `read_weights`.
        prefix: name of the module.
        num_heads: int, the module's `n_heads` or `num_heads`, which the weights do not tell.
        num_levels: int, its `n_levels` or `num_levels`, likewise.
        key: under which key of the checkpoint the state dict is, see `read_weights`.
        ignore: regular expression for names under the prefix that may be left.
        **layer_arguments: further arguments of the layer, as `name` and `dtype`.

    Returns:
        The layer, built.

    Raises:
        ImportError, FileNotFoundError: see `read_weights`.
        TypeError: an argument is none of the layer's, or one that the file decides.
        ValueError: weights are missing, have another shape, or are left under the prefix; the
            message lists them all.
    """
    op = "attention_layer_from_torch"
    known = arguments_of(MultiScaleDeformableAttention)
    check_arguments(op, "MultiScaleDeformableAttention", layer_arguments, known, _FROM_FILE)
    arrays = read_weights(weights, key)
    prefix = prefix.strip(".")
    layer = _layer_of_shapes(op, arrays, prefix, num_heads, num_levels, layer_arguments)
    load_parameters(
        op, describe_attention(layer), attention_parameters(layer), arrays, prefix, ignore=ignore
    )
    return layer


def attention_parameters(layer: Any) -> list[Parameter]:
    """Returns what the modules of PyTorch have for the variables of a built layer."""
    parameters = []
    for name, module in _NAMES.items():
        kernel, bias = (getattr(layer, f"{name}_{kind}") for kind in ("kernel", "bias"))
        reorder = [_exchanged] * 2 if name == "offset" else []
        parameters += linear(module, kernel, bias, *reorder)
    return parameters


def describe_attention(layer: Any) -> str:
    """Returns the layer for messages."""
    names = ("num_heads", "num_levels", "num_points", "head_dim", "output_dim", "use_bias")
    return described(layer, names)


def _exchanged(array: Array) -> Array:
    """(x, y) in place of (y, x) on the last axis, and the other way."""
    return array[..., np.arange(array.shape[-1]) ^ 1]


def _layer_of_shapes(
    op: str,
    arrays: Mapping[str, Array],
    prefix: str,
    num_heads: int,
    num_levels: int,
    layer_arguments: dict[str, Any],
) -> Any:
    """Returns a built layer for weights of these shapes."""
    matching = Matching(op, arrays, ())
    shapes = {
        name: matching.shape(joined(prefix, module, "weight"), "[outputs,inputs]")
        for name, module in _NAMES.items()
    }
    target = f"an attention module {prefix!r}"
    matching.check(target)  # If it returns, there are all shapes.
    found = {name: shape for name, shape in shapes.items() if shape is not None}
    (value, channels), (samples, query) = found["value"], found["attention"]
    layer = MultiScaleDeformableAttention(num_heads, num_levels, **layer_arguments)  # the rules
    for name, size, factors in (
        ("attention_weights", samples, {"num_heads": num_heads, "num_levels": num_levels}),
        ("value_proj", value, {"num_heads": num_heads}),
    ):
        if size % np.prod(list(factors.values())):
            said = ", ".join(f"{factor}={number}" for factor, number in factors.items())
            matching.refuse(
                f"{joined(prefix, name)} has {size} outputs, which must be a multiple of "
                f"{' * '.join(factors)}, got {said}"
            )
    matching.check(target)
    config = layer.get_config() | {
        "num_points": samples // (num_heads * num_levels),
        "head_dim": value // num_heads,
        "output_dim": found["output"][0],
        "use_bias": joined(prefix, "value_proj.bias") in arrays,
    }
    layer = MultiScaleDeformableAttention.from_config(config)
    levels = [(None, None, None, channels)] * num_levels
    layer.build([(None, None, query), (None, None, num_levels, 2), *levels])
    return layer
