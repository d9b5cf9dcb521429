"""Layers from and to the state dicts of PyTorch; which names a deformable convolution has there."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_deformable.convert.files import Array, WeightsSource, import_torch, read_weights
from tf_deformable.convert.matching import Matching, joined
from tf_deformable.convert.torch_attention import attention_parameters, describe_attention
from tf_deformable.convert.torch_dcnv3 import DCNV3_COUNTERS, dcnv3_parameters, describe_dcnv3
from tf_deformable.convert.torch_parameters import load_parameters, parameter_arrays
from tf_deformable.layers.dcnv3 import DCNv3
from tf_deformable.layers.deformable_attention import MultiScaleDeformableAttention
from tf_deformable.layers.deformable_conv2d import DeformableConv2D

# What the convolution that predicts offsets is called, after the deformable one's name: mmcv and
# DCNv2, DCNv2 with a mask, detectron2 and mmdetection 1.
_BRANCHES = (".conv_offset", ".conv_offset_mask", "_offset")
# What a file says of a layer, so that no argument can.
_FROM_FILE = ("filters", "kernel_size", "use_bias")
_ARGUMENTS = {*inspect.signature(DeformableConv2D).parameters, "dtype", "trainable"} - {"kwargs"}

# Layers whose weights have one name each: what PyTorch has for them, their description for
# messages, and names that may be there for nothing.
_WITHOUT_FILTERS: dict[Any, tuple[Any, Any, tuple[str, ...]]] = {
    MultiScaleDeformableAttention: (attention_parameters, describe_attention, ()),
    DCNv3: (dcnv3_parameters, describe_dcnv3, DCNV3_COUNTERS),
}


@dataclasses.dataclass(frozen=True)
class LayerNames:
    """The names under which a file has the parts of a deformable convolution."""

    convolution: str
    branch: str | None  # None: there is none
    mask: str | None = None  # a convolution of its own for the mask
    offset_use_bias: bool = True
    separator: str = "."  # MXNet's is "_"

    def of(self, part: str, kind: str) -> str:
        """The name of a part's "weight" or "bias"."""
        return f"{part}{self.separator}{kind}" if part else kind

    @property
    def scope(self) -> list[str]:
        """What the names of the layer's weights begin with."""
        parts = (self.convolution, self.branch, self.mask)
        return [self.of(part, "") for part in parts if part is not None]


def branches_of(arrays: Mapping[str, Array], prefix: str) -> list[str]:
    """The names that known packages give the offset convolution, as far as they are there."""
    return [name for name in _branch_names(prefix) if f"{name}.weight" in arrays]


def layer_from_torch(
    weights: WeightsSource,
    prefix: str = "",
    *,
    key: str | None = None,
    offset_prefix: str | None = None,
    mask_prefix: str | None = None,
    offset_use_bias: bool = True,
    ignore: str | None = None,
    **layer_arguments: Any,
) -> Any:
    """Returns a `DeformableConv2D` with the weights of one of PyTorch's.

    It reads what these save: mmcv's `DeformConv2dPack` and `ModulatedDeformConv2dPack` (in
    mmdetection, `backbone.layer4.0.conv2`), detectron2's `DeformConv` and `ModulatedDeformConv` in
    a bottleneck (`backbone.bottom_up.res5.0.conv2`, whose offsets come from `conv2_offset`), the
    `DCN` of DCNv2's own repository (`conv_offset_mask`), and `torchvision.ops.DeformConv2d` with
    the convolution that makes its offsets, which has a name of your own: `offset_prefix`. In all of
    them the mask comes after the offsets (as (o1, o2, mask), where a forward pass cuts the
    channels into three), and is a sigmoid.

    The file says how many filters, groups, offset groups there are, how large the kernel is,
    whether there is a bias and a mask. It does not say strides, padding and dilation.

    Example:
        >>> weights = {
        ...     "head.dcn.weight": np.random.normal(size=[8, 4, 3, 3]),
        ...     "head.dcn.conv_offset.weight": np.zeros([27, 4, 3, 3]),
        ...     "head.dcn.conv_offset.bias": np.zeros([27])}
        >>> layer = tf_deformable.convert.layer_from_torch(
        ...     weights, "head.dcn", strides=2, padding=1)
        >>> layer.modulated, layer(tf.zeros([1, 16, 16, 4])).shape
        (True, TensorShape([1, 8, 8, 8]))

    Args:
        weights: a state dict (arrays or tensors by name) or a file, see `read_weights`.
        prefix: name of the deformable convolution: that of its weight without `.weight`.
        key: under which key of the checkpoint the state dict is, see `read_weights`.
        offset_prefix: name of the convolution that makes the offsets, whole, not only what follows
            `prefix`. By default one of the names above.
        mask_prefix: name of the convolution that makes the mask, if it has one of its own.
        offset_use_bias: bool, whether these two have a bias.
        ignore: regular expression for names under the prefix, all of what follows it, that may be
            left; `"norm[.].*"` for the normalisation that detectron2 keeps in its convolutions.
        **layer_arguments: arguments of `DeformableConv2D`: `strides`, `dilation_rate`, and
            `padding`, which takes PyTorch's numbers (`"same"` pads otherwise, if strides are
            above 1); `activation`, `name` and so on. `mask_initial_value=1.0` for modules whose
            mask is `2 * sigmoid`. `modulated` and `offset_groups` where the file leaves them open,
            and says so; `groups` where the offsets do not come from the inputs (`offset_source`).

    Returns:
        A built `DeformableConv2D`.

    Raises:
        ImportError, FileNotFoundError: see `read_weights`.
        TypeError: an argument is none of `DeformableConv2D`, or one that the file decides.
        ValueError: weights are missing, have another shape, or are left under the prefix; the
            message lists them all. Or the file does not decide between layers.
    """
    op = "layer_from_torch"
    arrays = read_weights(weights, key)
    names = _names(op, arrays, prefix, offset_prefix, mask_prefix, offset_use_bias, layer_arguments)
    layer = layer_of_shapes(op, arrays, names, layer_arguments)
    matching = Matching(op, arrays, names.scope, ignore)
    plan_layer(matching, layer, names)
    matching.load(_describe(layer))
    return layer


def load_torch_layer(
    layer: DeformableConv2D | MultiScaleDeformableAttention | DCNv3,
    weights: WeightsSource,
    prefix: str = "",
    *,
    key: str | None = None,
    offset_prefix: str | None = None,
    mask_prefix: str | None = None,
    offset_use_bias: bool = True,
    ignore: str | None = None,
) -> None:
    """Gives a layer, in a model, say, the weights of a module of PyTorch.

    Args:
        layer: a `DeformableConv2D`, `MultiScaleDeformableAttention` or `DCNv3` that has been built
            (called).
        weights: see `layer_from_torch`, `attention_layer_from_torch` and `dcnv3_layer_from_torch`,
            as all other arguments. Those that say how offsets are made are for a convolution alone.
        prefix: name of the deformable convolution, or of the module of another layer.
        key: under which key of the checkpoint the state dict is.
        offset_prefix: name of the convolution that makes the offsets.
        mask_prefix: name of the convolution that makes the mask, if it has one of its own.
        offset_use_bias: bool, whether these two have a bias.
        ignore: regular expression for names under the prefix that may be left.

    Raises:
        ImportError, FileNotFoundError: see `read_weights`.
        TypeError: `layer` is of another class.
        ValueError: the layer is not built; or weights are missing, have another shape, or are left
            under the prefix. The layer is then as it was. Or an argument is for another layer.
    """
    op = "load_torch_layer"
    _check_layer(op, layer)
    arrays = read_weights(weights, key)
    if not isinstance(layer, DeformableConv2D):
        _check_no_branch(op, offset_prefix, mask_prefix, offset_use_bias)
        parameters, describe, not_needed = _table_of(layer)
        load_parameters(
            op,
            describe(layer),
            parameters(layer),
            arrays,
            prefix.strip("."),
            ignore=ignore,
            not_needed=not_needed,
        )
        return
    names = _names(
        op, arrays, prefix, offset_prefix, mask_prefix, offset_use_bias, layer.get_config()
    )
    matching = Matching(op, arrays, names.scope, ignore)
    plan_layer(matching, layer, names)
    matching.load(_describe(layer))


def torch_state_dict(
    layer: DeformableConv2D | MultiScaleDeformableAttention | DCNv3,
    prefix: str = "",
    *,
    offset_prefix: str | None = None,
    mask_prefix: str | None = None,
    as_numpy: bool = False,
) -> dict[str, Any]:
    """Returns the weights of a layer as a state dict of PyTorch.

    Of a `MultiScaleDeformableAttention` or `DCNv3` it is what the modules load that
    `attention_layer_from_torch` and `dcnv3_layer_from_torch` name. Of a `DeformableConv2D` it is
    what mmcv's packs load, and `torchvision.ops.DeformConv2d` with a convolution `conv_offset`
    beside its weight. For `torchvision.ops.DeformConv2d` by itself the layer's own weights are
    those without a further dot in their name. The module needs the layer's strides and dilation,
    and its padding in numbers. `layer_from_torch` and the others give the same layer again, bit by
    bit.

    Example:
        >>> layer = tf_deformable.DeformableConv2D(8, 3, padding=1)
        >>> layer.build((None, None, None, 4))
        >>> state = tf_deformable.convert.torch_state_dict(layer, "dcn", as_numpy=True)
        >>> for name, array in state.items():
        ...     print(name, array.shape)
        dcn.weight (8, 4, 3, 3)
        dcn.bias (8,)
        dcn.conv_offset.weight (18, 4, 3, 3)
        dcn.conv_offset.bias (18,)

    Args:
        layer: a `DeformableConv2D`, `MultiScaleDeformableAttention` or `DCNv3` that has been built
            (called). A mask that starts at 1 (`mask_initial_value=1.0`) is `2 * sigmoid` of what
            the offset convolution makes.
        prefix: name of the deformable convolution, or of the module of another layer.
        offset_prefix: name of the convolution that makes the offsets, whole; by default
            `conv_offset` under the prefix.
        mask_prefix: name of a convolution of its own for the mask; by default the mask's channels
            follow the offsets'.
        as_numpy: bool, whether to return NumPy arrays, which need no PyTorch.

    Returns:
        Tensors by name, in the dtype of the layer's weights. Of an attention `sampling_offsets`,
        `attention_weights`, `value_proj` and `output_proj`, each with `weight`
        `[outputs, inputs]` and `bias` `[outputs]`. Of DCNv3 InternImage's. Of a convolution
        `weight` `[F, C/groups, kh, kw]`; `bias` `[F]`, if it has one; of the offset convolution, if
        it has one, `weight` `[D, C, kh, kw]` and `bias` `[D]`.

    Raises:
        ImportError: PyTorch is missing. The message names the extra.
        TypeError: `layer` is of another class.
        ValueError: the layer is not built; or `mask_prefix` is given, and it has no mask; or a
            prefix is given that is for another layer.
    """
    op = "torch_state_dict"
    _check_layer(op, layer)
    if not isinstance(layer, DeformableConv2D):
        _check_no_branch(op, offset_prefix, mask_prefix)
        parameters, *_ = _table_of(layer)
        state = parameter_arrays(parameters(layer), prefix)
    else:
        state = _convolution_arrays(op, layer, prefix, offset_prefix, mask_prefix)
    if as_numpy:
        return dict(state)
    torch = import_torch(f"{op}: making tensors of PyTorch")
    return {name: _tensor(torch, array) for name, array in state.items()}


def _tensor(torch: Any, array: Array) -> Any:
    if array.dtype == "bfloat16":  # NumPy's is unknown to PyTorch.
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(array)


def _convolution_arrays(
    op: str, layer: Any, prefix: str, offset_prefix: str | None, mask_prefix: str | None
) -> dict[str, Array]:
    """Returns the weights of a built `DeformableConv2D` by the names that they have in PyTorch."""
    has_branch = layer.offset_source != "given"
    if mask_prefix is not None and not (layer.modulated and has_branch):
        raise ValueError(f"{op}: mask_prefix must be None for a layer that makes no mask")
    state = {joined(prefix, "weight"): _oihw_from_hwio(layer.kernel)}
    if layer.use_bias:
        state[joined(prefix, "bias")] = _array(layer.bias)
    if has_branch:
        branch = joined(prefix, "conv_offset") if offset_prefix is None else offset_prefix
        kernel, bias = _oihw_from_hwio(layer.offset_kernel), _array(layer.offset_bias)
        for name, channels in _parts(layer, branch, mask_prefix):
            state[joined(name, "weight")] = np.ascontiguousarray(kernel[channels])
            state[joined(name, "bias")] = np.ascontiguousarray(bias[channels])
    return state


def layer_of_shapes(
    op: str,
    arrays: Mapping[str, Array],
    names: LayerNames,
    layer_arguments: dict[str, Any],
) -> Any:
    """Returns a built layer for weights of these shapes."""
    for name in layer_arguments:
        if name in _FROM_FILE:
            raise TypeError(f"{op}: {name} is what the file says, and no argument")
        if name not in _ARGUMENTS:
            raise TypeError(f"{op}: DeformableConv2D has no argument {name!r}")
    matching = Matching(op, arrays, ())
    kernel = matching.shape(names.of(names.convolution, "weight"), "[F,C/groups,kh,kw]")
    target = f"a deformable convolution {names.convolution!r}"
    branch = None
    if names.branch is not None:
        branch = matching.shape(names.of(names.branch, "weight"), "[D,C,kh,kw]")
        if kernel and branch and branch[2:] != kernel[2:]:
            matching.refuse(
                f"{joined(names.branch, 'weight')} has a kernel {branch[2:]}, and a "
                f"DeformableConv2D makes its offsets with that of the convolution, {kernel[2:]}: "
                'make them in a Conv2D of their own, and give them, offset_source="given"'
            )
    matching.check(target)
    assert kernel is not None
    filters, depth, height, width = kernel
    arguments = dict(layer_arguments)
    channels = depth * arguments.get("groups", 1)
    if branch is not None:
        if arguments.get("offset_source", "inputs") == "inputs":
            channels = branch[1]
            if channels % depth:
                matching.refuse(
                    f"the offset convolution reads {channels} channels, which is no multiple of "
                    f"the {depth} of a group of the convolution"
                )
                matching.check(target)
            arguments.setdefault("groups", channels // depth)
        weight = arrays[names.of(str(names.branch), "weight")]
        arguments |= branch_arguments(op, names, weight, height * width, channels, arguments)
    layer: Any = DeformableConv2D(
        filters,
        (height, width),
        use_bias=names.of(names.convolution, "bias") in arrays,
        **arguments,
    )
    layer.build(_input_shapes(layer, channels, None if branch is None else branch[1]))
    return layer


def plan_layer(matching: Matching, layer: Any, names: LayerNames) -> None:
    """Takes what a built layer needs."""
    height, width, depth, filters = layer.kernel.shape
    kernel = matching.take(names.of(names.convolution, "weight"), (filters, depth, height, width))
    matching.plan(layer.kernel, _hwio_from_oihw(kernel))
    if layer.use_bias:
        matching.plan(layer.bias, matching.take(names.of(names.convolution, "bias"), (filters,)))
    if layer.offset_source == "given":
        return
    assert names.branch is not None
    height, width, depth, outputs = layer.offset_kernel.shape
    kernels, biases = [], []
    for name, channels in _parts(layer, names.branch, names.mask):
        count = len(range(outputs)[channels])
        kernels.append(matching.take(names.of(name, "weight"), (count, depth, height, width)))
        biases.append(np.zeros(count, np.float32))
        if names.offset_use_bias:
            biases[-1] = matching.take(names.of(name, "bias"), (count,))
    matching.plan(layer.offset_kernel, _hwio_from_oihw(np.concatenate(kernels)))
    matching.plan(layer.offset_bias, np.concatenate(biases))


def _branch_names(prefix: str) -> list[str]:
    return [f"{prefix}{end}" if prefix else end[1:] for end in _BRANCHES]


def _names(
    op: str,
    arrays: Mapping[str, Array],
    prefix: str,
    offset_prefix: str | None,
    mask_prefix: str | None,
    offset_use_bias: bool,
    config: Mapping[str, Any],
) -> LayerNames:
    """The names of a layer's weights; where the branch's are not given, they are looked up."""
    prefix = prefix.strip(".")
    if config.get("offset_source", "inputs") == "given":
        if offset_prefix is not None or mask_prefix is not None:
            raise ValueError(
                f'{op}: offset_prefix and mask_prefix must be None with offset_source="given"'
            )
        return LayerNames(prefix, None)
    if mask_prefix is not None and not config.get("modulated", True):
        raise ValueError(f"{op}: mask_prefix must be None for a layer that is not modulated")
    if offset_prefix is None:
        found = branches_of(arrays, prefix)
        if len(found) > 1:
            raise ValueError(
                f"{op}: there are several offset convolutions for {prefix!r}: {', '.join(found)}; "
                "name one: offset_prefix"
            )
        offset_prefix = found[0] if found else joined(prefix, "conv_offset")
        if not found and joined(prefix, "weight") in arrays:
            known = ", ".join(_branch_names(prefix))
            raise ValueError(
                f"{op}: the weights are not those of a deformable convolution {prefix!r}; nothing "
                f"is loaded\n  missing: the offset convolution, none of {known} has a weight; "
                "where it has another name, say offset_prefix"
            )
    return LayerNames(
        prefix,
        offset_prefix.strip("."),
        None if mask_prefix is None else mask_prefix.strip("."),
        offset_use_bias,
    )


def branch_arguments(
    op: str,
    names: LayerNames,
    weight: Array,
    taps: int,
    channels: int,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """`modulated` and `offset_groups` of a layer whose branch has this kernel, OIHW.

    18 outputs of a 3x3 kernel are offsets, 27 are offsets and a mask. 54 are either; but the offset
    groups, 3 or 2, must divide the channels.

    Raises:
        ValueError: there is no such layer, or there are two.
    """
    outputs = weight.shape[0] if weight.ndim else 0
    choices = []
    for modulated in (False, True):
        # With a convolution of its own for the mask, this one makes the offsets alone.
        per_group = taps * (3 if modulated and names.mask is None else 2)
        groups = outputs // per_group
        if (
            outputs > 0
            and outputs % per_group == 0
            and modulated >= (names.mask is not None)
            and channels % groups == 0
            and arguments.get("modulated", modulated) == modulated
            and arguments.get("offset_groups", groups) == groups
            and (modulated or not (names.branch or "").endswith("conv_offset_mask"))
        ):
            choices.append((modulated, groups))
    if len(choices) == 1:
        return dict(zip(("modulated", "offset_groups"), choices[0], strict=True))
    if choices:
        (_, plain), (_, masked) = choices
        raise ValueError(
            f"{op}: {names.branch} has {outputs} outputs, which may be offsets of "
            f"{plain} groups, or offsets and masks of {masked}: say modulated=False or True"
        )
    given = {n: arguments[n] for n in ("modulated", "offset_groups") if n in arguments}
    raise ValueError(
        f"{op}: the weights are not those of a deformable convolution {names.convolution!r}; "
        f"nothing is loaded\n  wrong: {names.branch} has {outputs} outputs, which for "
        f"{taps} taps and {channels} channels must be {taps * 2} times the number of offset groups "
        f"(offsets) or {taps * 3} times it (offsets and masks)"
        + (f", with {', '.join(f'{n}={v}' for n, v in given.items())}" if given else "")
    )


def _parts(layer: Any, branch: str, mask: str | None) -> list[tuple[str, slice]]:
    """The convolutions that make the outputs of the offset branch, and which of these."""
    if mask is None:
        return [(branch, slice(None))]
    offsets = layer.offset_kernel.shape[3] // 3 * 2
    return [(branch, slice(offsets)), (mask, slice(offsets, None))]


def _input_shapes(layer: Any, channels: int, branch_channels: int | None) -> Any:
    """Shapes of what a layer is called with, of which only channels are known."""

    def shape(depth: int | None) -> tuple[int | None, ...]:
        first = layer.data_format == "channels_first"
        return (None, depth, None, None) if first else (None, None, None, depth)

    depths = {"inputs": channels, "offset_features": branch_channels, "flow": 2}
    shapes = [shape(depths.get(name)) for name in layer.names_of_inputs]
    return shapes if len(shapes) > 1 else shapes[0]


def _check_layer(op: str, layer: Any) -> None:
    kinds: Any = (DeformableConv2D, *_WITHOUT_FILTERS)
    if not isinstance(layer, kinds):
        raise TypeError(
            f"{op}: layer must be a DeformableConv2D, MultiScaleDeformableAttention or DCNv3, "
            f"got {type(layer).__name__}"
        )
    if not layer.built:
        raise ValueError(f"{op}: layer {layer.name!r} has no weights yet: call it first")


def _table_of(layer: Any) -> tuple[Any, Any, tuple[str, ...]]:
    return next(table for kind, table in _WITHOUT_FILTERS.items() if isinstance(layer, kind))


def _check_no_branch(
    op: str, offset_prefix: str | None, mask_prefix: str | None, offset_use_bias: bool = True
) -> None:
    if offset_prefix is not None or mask_prefix is not None or not offset_use_bias:
        raise ValueError(
            f"{op}: offset_prefix, mask_prefix and offset_use_bias are for a DeformableConv2D"
        )


def _describe(layer: Any) -> str:
    config = {
        "filters": layer.filters,
        "kernel_size": layer.kernel_size,
        "groups": layer.groups,
        "offset_groups": layer.offset_groups,
        "modulated": layer.modulated,
        "use_bias": layer.use_bias,
    }
    return f"DeformableConv2D({', '.join(f'{name}={value}' for name, value in config.items())})"


def _array(variable: Any) -> Array:
    return np.array(variable.numpy())


def _hwio_from_oihw(kernel: Array) -> Array:
    return kernel.transpose(2, 3, 1, 0)


def _oihw_from_hwio(variable: Any) -> Array:
    return np.ascontiguousarray(_array(variable).transpose(3, 2, 0, 1))
