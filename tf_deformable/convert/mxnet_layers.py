"""Layers with the weights of the DCN authors' own models, which are MXNet's."""

from __future__ import annotations

from typing import Any

from tf_deformable.convert import layouts
from tf_deformable.convert.files import Array, WeightsSource, read_weights
from tf_deformable.convert.matching import Matching
from tf_deformable.convert.torch_layers import LayerNames, layer_of_shapes, plan_layer
from tf_deformable.layers.psroi_pool import DeformablePSRoIPool


def layer_from_mxnet(
    weights: WeightsSource, name: str, *, ignore: str | None = None, **layer_arguments: Any
) -> Any:
    """Returns a `DeformableConv2D` with the weights of MXNet's `DeformableConvolution`.

    In the authors' networks (R-FCN, DeepLab, Faster R-CNN) layer `res5a_branch2b` has
    `res5a_branch2b_weight`, and its offset convolution `res5a_branch2b_offset_weight` and `_bias`.
    Their arguments there: `padding=2, dilation_rate=2`, with 4 offset groups, as the file says.

    A sample less than a pixel outside the map is something else in MXNet's operator: 0 above and
    left, the last pixel below and right, where here it fades (see the page Conventions). Outputs
    differ there.

    Example:
        >>> weights = {
        ...     "arg:res5a_branch2b_weight": np.random.normal(size=[8, 8, 3, 3]),
        ...     "arg:res5a_branch2b_offset_weight": np.zeros([72, 8, 3, 3]),
        ...     "arg:res5a_branch2b_offset_bias": np.zeros([72])}
        >>> layer = tf_deformable.convert.layer_from_mxnet(
        ...     weights, "res5a_branch2b", padding=2, dilation_rate=2)
        >>> layer.offset_groups, layer.use_bias
        (4, False)

    Args:
        weights: a `.params` file, or arrays by name; see `read_weights`. Names may begin with
            `arg:`.
        name: of the layer.
        ignore: regular expression for names that begin with that of the layer and `_`, all of what
            follows it, that may be left.
        **layer_arguments: arguments of `DeformableConv2D`, see `layer_from_torch`.

    Returns:
        A built `DeformableConv2D`.

    Raises:
        FileNotFoundError: see `read_weights`.
        TypeError: an argument is none of `DeformableConv2D`.
        ValueError: weights are missing, have another shape, or are left; the message lists them.
    """
    op = "layer_from_mxnet"
    arrays = _arguments_of(weights)
    names = LayerNames(name, f"{name}_offset", separator="_")
    layer = layer_of_shapes(op, arrays, names, {"modulated": False, **layer_arguments})
    matching = Matching(op, arrays, names.scope, ignore)
    plan_layer(matching, layer, names)
    matching.load(f"DeformableConv2D {name!r}")
    return layer


def psroi_layer_from_mxnet(
    weights: WeightsSource,
    name: str,
    *,
    group_size: int = 7,
    ignore: str | None = None,
    **layer_arguments: Any,
) -> Any:
    """Returns a `DeformablePSRoIPool` with the weights of a head of the authors' R-FCN.

    There the convolution `rfcn_cls` makes the score maps, `rfcn_cls_offset_t` the offset fields,
    and two calls of `DeformablePSROIPooling` pool them; likewise `rfcn_bbox`. The layer does all
    of it: it takes features and boxes, with `spatial_scale=1 / 16` in these networks.

    Example:
        >>> weights = {
        ...     "arg:rfcn_bbox_weight": np.random.normal(size=[7 * 7 * 8, 16, 1, 1]),
        ...     "arg:rfcn_bbox_bias": np.zeros([7 * 7 * 8]),
        ...     "arg:rfcn_bbox_offset_t_weight": np.zeros([7 * 7 * 2, 16, 1, 1]),
        ...     "arg:rfcn_bbox_offset_t_bias": np.zeros([7 * 7 * 2])}
        >>> layer = tf_deformable.convert.psroi_layer_from_mxnet(
        ...     weights, "rfcn_bbox", spatial_scale=1 / 16)
        >>> layer.score_filters, layer.class_agnostic, layer.aligned
        (8, True, False)

    Args:
        weights: a `.params` file, or arrays by name; see `read_weights`. Names may begin with
            `arg:`.
        name: of the convolution that makes the score maps.
        group_size: int, k.
        ignore: regular expression for names that begin with `name` and `_`, all of what follows
            it, that may be left: `".*_test"` for the copies that the authors' training saves.
        **layer_arguments: arguments of `DeformablePSRoIPool`. By default `output_size` is k and
            `aligned` is False, the authors' geometry.

    Returns:
        A built `DeformablePSRoIPool`.

    Raises:
        FileNotFoundError: see `read_weights`.
        TypeError: an argument is none of `DeformablePSRoIPool`.
        ValueError: weights are missing, have another shape, or are left; the message lists them.
    """
    op = "psroi_layer_from_mxnet"
    arrays = _arguments_of(weights)
    matching = Matching(op, arrays, [f"{name}_"], ignore)
    target = f"deformable position-sensitive RoI pooling {name!r}, group_size={group_size}"
    fields = f"{name}_offset_t"
    scores_shape = matching.shape(f"{name}_weight", "[k*k*D,C,1,1]")
    fields_shape = matching.shape(f"{fields}_weight", "[2*classes*k*k,C,1,1]")
    if scores_shape is None or fields_shape is None:
        matching.check(target)
        raise AssertionError("it has raised")
    maps = group_size**2
    depth, classes = scores_shape[0] // maps, fields_shape[0] // maps // 2
    if scores_shape[0] % maps or fields_shape[0] % (2 * maps) or classes not in (1, depth):
        matching.refuse(
            f"{name}_weight and {fields}_weight have {scores_shape[0]} and {fields_shape[0]} "
            f"outputs, which must be {maps}*D and {2 * maps}*D (or {2 * maps})"
        )
        matching.check(target)
    layer: Any = DeformablePSRoIPool(
        group_size=group_size,
        score_filters=depth,
        class_agnostic=classes == 1 < depth,
        use_bias=f"{name}_bias" in matching,
        **{"output_size": group_size, "aligned": False, **layer_arguments},
    )
    channels = scores_shape[1]
    shape: tuple[int | None, ...] = (None, None, None, channels)
    if layer.data_format == "channels_first":
        shape = (None, channels, None, None)
    layer.build([shape, (None, None, 4)])

    def score_maps(tensor: Array) -> Array:
        """Orders outputs, which come last, (row, column, D)."""
        return layouts.psroi_channels_from_depth_major(tensor, group_size).numpy()

    def offset_fields(tensor: Array) -> Array:
        """Orders outputs (row, column, class, (dy, dx)): MXNet has planes of dx and dy."""
        pairs = score_maps(tensor).reshape(*tensor.shape[:-1], -1, 2)
        return pairs[..., ::-1].reshape(tensor.shape)

    for part, outputs, ordered, kernel, bias in (
        (name, maps * depth, score_maps, layer.kernel, layer.bias),
        (fields, 2 * maps * classes, offset_fields, layer.offset_kernel, layer.offset_bias),
    ):
        oihw = matching.take(f"{part}_weight", (outputs, channels, 1, 1))
        matching.plan(kernel, ordered(oihw.transpose(2, 3, 1, 0)))
        if bias is not None:
            matching.plan(bias, ordered(matching.take(f"{part}_bias", (outputs,))))
    matching.load(target)
    return layer


def _arguments_of(weights: WeightsSource) -> dict[str, Array]:
    """The arrays by name, without MXNet's mark of an argument; states (`aux:`) keep theirs."""
    return {name.removeprefix("arg:"): array for name, array in read_weights(weights).items()}
