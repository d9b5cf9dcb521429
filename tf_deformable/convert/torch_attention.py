"""`MultiScaleDeformableAttention` from and to the state dicts of PyTorch's modules."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tf_deformable.convert.files import Array, WeightsSource, read_weights
from tf_deformable.convert.matching import Matching, joined
from tf_deformable.layers.deformable_attention import MultiScaleDeformableAttention

# What a file says of a layer, so that no argument can.
_FROM_FILE = ("num_points", "head_dim", "output_dim", "use_bias")
_ARGUMENTS = {
    *inspect.signature(MultiScaleDeformableAttention).parameters,
    "dtype",
    "trainable",
} - {"kwargs"}


class _Projection(NamedTuple):
    """One of the layer's linear functions, and the `nn.Linear` that it is in PyTorch."""

    layer: str
    torch: str
    is_pairs: bool = False  # of (y, x), where PyTorch has (x, y)


# Deformable DETR, mmcv and transformers have the same names.
_PROJECTIONS = (
    _Projection("value", "value_proj"),
    _Projection("offset", "sampling_offsets", is_pairs=True),
    _Projection("attention", "attention_weights"),
    _Projection("output", "output_proj"),
)


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
    for name in layer_arguments:
        if name in _FROM_FILE:
            raise TypeError(f"{op}: {name} is what the file says, and no argument")
        if name not in _ARGUMENTS:
            raise TypeError(f"{op}: MultiScaleDeformableAttention has no argument {name!r}")
    arrays = read_weights(weights, key)
    prefix = prefix.strip(".")
    layer = _layer_of_shapes(op, arrays, prefix, num_heads, num_levels, layer_arguments)
    load_attention(op, layer, arrays, prefix, ignore)
    return layer


def load_attention(
    op: str, layer: Any, arrays: Mapping[str, Array], prefix: str, ignore: str | None
) -> None:
    """Gives a built layer the weights under a prefix; `op` is the public function, for messages."""
    matching = Matching(op, arrays, [f"{prefix}." if prefix else ""], ignore)
    for projection, kernel, bias in _variables(layer):
        name = joined(prefix, projection.torch)
        inputs, outputs = kernel.shape
        array = matching.take(f"{name}.weight", (outputs, inputs))
        matching.plan(kernel, _exchanged(projection, array).T)
        if bias is not None:
            array = matching.take(f"{name}.bias", (outputs,))
            matching.plan(bias, _exchanged(projection, array))
    matching.load(_describe(layer))


def attention_arrays(layer: Any, prefix: str) -> dict[str, Array]:
    """Returns the weights of a built layer by the names that they have in PyTorch."""
    state = {}
    for projection, kernel, bias in _variables(layer):
        name = joined(prefix, projection.torch)
        state[f"{name}.weight"] = _exchanged(projection, np.array(kernel.numpy()).T)
        if bias is not None:
            state[f"{name}.bias"] = _exchanged(projection, np.array(bias.numpy()))
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


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
        projection.layer: matching.shape(
            joined(prefix, projection.torch, "weight"), "[outputs,inputs]"
        )
        for projection in _PROJECTIONS
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


def _variables(layer: Any) -> Iterator[tuple[_Projection, Any, Any]]:
    for projection in _PROJECTIONS:
        kernel, bias = (getattr(layer, f"{projection.layer}_{kind}") for kind in ("kernel", "bias"))
        yield projection, kernel, bias


def _exchanged(projection: _Projection, array: Array) -> Array:
    """Outputs, the first axis, in the other framework's order."""
    return array[np.arange(len(array)) ^ 1] if projection.is_pairs else array


def _describe(layer: Any) -> str:
    names = ("num_heads", "num_levels", "num_points", "head_dim", "output_dim", "use_bias")
    config = ", ".join(f"{name}={getattr(layer, name)}" for name in names)
    return f"MultiScaleDeformableAttention({config})"
