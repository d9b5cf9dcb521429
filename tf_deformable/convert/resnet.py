"""ResNets of mmdetection, torchvision and detectron2, with deformable convolutions, in Keras."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_deformable.convert.files import Array, WeightsSource, read_weights
from tf_deformable.convert.matching import Matching, joined
from tf_deformable.convert.torch_layers import (
    LayerNames,
    branch_arguments,
    branches_of,
    plan_layer,
)
from tf_deformable.layers._base import as_integer
from tf_deformable.layers.deformable_conv2d import DeformableConv2D
from tf_deformable.models.surgery.replace import check_arguments

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STYLES = ("pytorch", "caffe")
_EPSILON = 1e-5  # of batch normalization, in all three packages
_CHANNELS_LAST: dict[str, Any] = {"data_format": "channels_last"}


def resnet_from_torch(
    weights: WeightsSource,
    prefix: str = "",
    *,
    depth: int = 50,
    style: str | None = None,
    strides: Sequence[int] = (1, 2, 2, 2),
    dilations: Sequence[int] = (1, 1, 1, 1),
    key: str | None = None,
    ignore: str | None = None,
    input_shape: tuple[int | None, int | None, int] = (None, None, 3),
    name: str | None = None,
    **layer_arguments: Any,
) -> Any:
    """Returns a Keras ResNet with the weights and deformable convolutions of one of PyTorch's.

    It reads the names of mmdetection and torchvision (`layer4.0.conv2.conv_offset.weight`) and of
    detectron2 (`res5.0.conv2_offset.weight`). Which 3x3 convolutions are deformable, in how many
    groups, and with a mask or without, is what the file says.

    The network is that of `tf_deformable.models.deformify(tf.keras.applications.ResNet50(
    include_top=False))`, its layers have the same names, but it computes what PyTorch does: it
    pads both sides alike where Keras pads one, has the stride where `style` says, and an epsilon of
    1e-5. Batch normalization is frozen, as in these detectors: set `trainable` on its layers to
    train it. Images are preprocessed as they were for the weights. Networks with a stem of several
    convolutions, with average pooling in their shortcuts, or of ResNeXt are not read.

    Args:
        weights: a state dict (arrays or tensors by name) or a file, see `read_weights`.
        prefix: what the names of the backbone begin with: `"backbone"` in checkpoints of
            mmdetection's detectors, `"backbone.bottom_up"` in detectron2's.
        depth: 50, 101 or 152.
        style: which convolution of a block has its stride: the 3x3 in `"pytorch"`, the first 1x1 in
            `"caffe"`. The file does not say. The default is what the package does by default:
            `"pytorch"` for names of mmdetection and torchvision, `"caffe"` for detectron2's (its
            `STRIDE_IN_1X1`).
        strides: of the first block of each stage, as mmdetection's argument.
        dilations: of the 3x3 convolutions of each stage, as mmdetection's argument.
        key: under which key of the checkpoint the state dict is, see `read_weights`.
        ignore: regular expression for names under the prefix, all of what follows it, that may be
            left, as `"fc[.].*"` for torchvision's classifier.
        input_shape: height, width and channels of the images.
        name: of the model.
        **layer_arguments: further arguments of all `DeformableConv2D`, as
            `offset_learning_rate_multiplier`.

    Returns:
        A functional model from images `[N, H, W, C]` to the features `[N, h, w, 2048]` of the last
        stage; those of the others are the outputs of its layers `conv2_block3_out`,
        `conv3_block4_out` and so on.

    Raises:
        ImportError, FileNotFoundError: see `read_weights`.
        TypeError: an argument is none of `DeformableConv2D`.
        ValueError: an argument breaks its rule; or weights are missing, have another shape, or are
            left under the prefix. The message lists them all.

    Sources:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016; Dai et al., Deformable
        Convolutional Networks, ICCV 2017.
    """
    op = "resnet_from_torch"
    if depth not in _BLOCKS:
        raise ValueError(f"{op}: depth must be one of {list(_BLOCKS)}, got {depth!r}")
    if style is not None and style not in _STYLES:
        raise ValueError(f"{op}: style must be one of {list(_STYLES)} or None, got {style!r}")
    check_arguments(op, layer_arguments)
    arrays = read_weights(weights, key)
    naming = _naming(op, arrays, prefix)
    builder = _Builder(op, arrays, naming, ignore, style or naming.style, layer_arguments)
    model = builder.build(
        _BLOCKS[depth],
        _four(op, "strides", strides),
        _four(op, "dilations", dilations),
        input_shape,
        name or f"resnet{depth}",
    )
    builder.matching.load(f"a ResNet-{depth} {joined(prefix)!r}")
    return model


class _Naming:
    """The names of mmdetection and torchvision, `{}` the stage from 1 to 4, the block from 0."""

    style = "pytorch"
    stem = ("conv1", "bn1")

    def __init__(self, prefix: str) -> None:
        self.prefix = joined(prefix)

    def of_stem(self) -> tuple[str, str]:
        """The convolution and the normalization before the stages."""
        convolution, normalization = self.stem
        return joined(self.prefix, convolution), joined(self.prefix, normalization)

    def of_block(self, stage: int, block: int, part: int) -> tuple[str, str]:
        """A convolution of a block and its normalization; part 0 is that of the shortcut."""
        names = (f"conv{part}", f"bn{part}") if part else ("downsample.0", "downsample.1")
        convolution, normalization = (
            joined(self.prefix, f"layer{stage}.{block}", name) for name in names
        )
        return convolution, normalization


class _Detectron2Naming(_Naming):
    style = "caffe"
    stem = ("stem.conv1", "stem.conv1.norm")

    def of_block(self, stage: int, block: int, part: int) -> tuple[str, str]:
        name = f"conv{part}" if part else "shortcut"
        convolution = joined(self.prefix, f"res{stage + 1}.{block}", name)
        return convolution, f"{convolution}.norm"


def _naming(op: str, arrays: Mapping[str, Array], prefix: str) -> _Naming:
    """The names that are in the file."""
    namings = [_Naming(prefix), _Detectron2Naming(prefix)]
    found = [naming for naming in namings if f"{naming.of_stem()[0]}.weight" in arrays]
    if len(found) == 1:
        return found[0]
    first = " nor ".join(f"{naming.of_stem()[0]}.weight" for naming in namings)
    starts = sorted({re.sub(r"\d.*", "", ".".join(key.split(".")[:2])) for key in arrays})
    raise ValueError(
        f"{op}: the weights are not those of a ResNet {joined(prefix)!r}; nothing is loaded\n"
        f"  missing: there is neither {first}\n"
        f"  the names there are begin with: {', '.join(starts) or 'none'}"
    )


class _Builder:
    """Builds the network layer by layer, and takes the weights of each."""

    def __init__(
        self,
        op: str,
        arrays: Mapping[str, Array],
        naming: _Naming,
        ignore: str | None,
        style: str,
        layer_arguments: dict[str, Any],
    ) -> None:
        self.matching = Matching(op, arrays, [f"{naming.prefix}." if naming.prefix else ""], ignore)
        self._op = op
        self._arrays = arrays
        self._naming = naming
        self._style = style
        self._layer_arguments = layer_arguments
        # Networks of other widths have the same form.
        stem = self.matching.shape(f"{naming.of_stem()[0]}.weight", "[F,C,kh,kw]")
        self._width = stem[0] if stem else 64

    def build(
        self,
        blocks: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        input_shape: tuple[int | None, int | None, int],
        name: str,
    ) -> Any:
        """Returns the model, whose weights are to be loaded."""
        images = maps = tf.keras.Input(input_shape)
        names = self._naming.of_stem()
        maps = self._convolution(maps, "conv1", names, kernel=7, stride=2, filters=self._width)
        maps = tf.keras.layers.Activation("relu", name="conv1_relu")(maps)
        # Zeros stand for PyTorch's minus infinity: what is pooled is not negative.
        maps = tf.keras.layers.ZeroPadding2D(1, name="pool1_pad", **_CHANNELS_LAST)(maps)
        maps = tf.keras.layers.MaxPooling2D(3, 2, name="pool1_pool", **_CHANNELS_LAST)(maps)
        for stage, count in enumerate(blocks, start=1):
            self._check_deformable_blocks(stage, count)
            for block in range(count):
                stride = strides[stage - 1] if block == 0 else 1
                maps = self._block(maps, stage, block, stride, dilations[stage - 1])
        return tf.keras.Model(images, maps, name=name)

    def _block(self, maps: Any, stage: int, block: int, stride: int, dilation: int) -> Any:
        """A bottleneck of mmdetection's and torchvision's `layer{stage}.{block}`."""
        name = f"conv{stage + 1}_block{block + 1}"
        width = self._width * 2 ** (stage - 1)
        in_first, in_second = (1, stride) if self._style == "pytorch" else (stride, 1)
        names = [self._naming.of_block(stage, block, part) for part in range(4)]
        shortcut = maps
        if block == 0:
            shortcut = self._convolution(
                maps, f"{name}_0", names[0], stride=stride, filters=4 * width
            )
        maps = self._convolution(maps, f"{name}_1", names[1], stride=in_first, filters=width)
        maps = tf.keras.layers.Activation("relu", name=f"{name}_1_relu")(maps)
        maps = self._convolution(
            maps,
            f"{name}_2",
            names[2],
            kernel=3,
            stride=in_second,
            dilation=dilation,
            filters=width,
            may_be_deformable=True,
        )
        maps = tf.keras.layers.Activation("relu", name=f"{name}_2_relu")(maps)
        maps = self._convolution(maps, f"{name}_3", names[3], filters=4 * width)
        maps = tf.keras.layers.Add(name=f"{name}_add")([shortcut, maps])
        return tf.keras.layers.Activation("relu", name=f"{name}_out")(maps)

    def _convolution(
        self,
        maps: Any,
        name: str,
        names: tuple[str, str],
        *,
        filters: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        may_be_deformable: bool = False,
    ) -> Any:
        """A convolution without bias and its frozen normalization."""
        convolution, normalization = names
        padding = (kernel - 1) // 2 * dilation
        branches = branches_of(self._arrays, convolution) if may_be_deformable else []
        geometry = {"strides": stride, "dilation_rate": dilation}
        if branches:
            parts = LayerNames(convolution, branches[0])
            deformable: Any = DeformableConv2D
            layer = deformable(
                filters,
                kernel,
                padding=padding,
                use_bias=False,
                name=f"{name}_conv",
                **geometry,
                **_CHANNELS_LAST,
                **{
                    **self._layer_arguments,
                    **branch_arguments(
                        self._op,
                        parts,
                        self._arrays[parts.of(branches[0], "weight")],
                        kernel**2,
                        int(maps.shape[3]),
                        self._layer_arguments,
                    ),
                },
            )
            maps = layer(maps)
            plan_layer(self.matching, layer, parts)
        else:
            if padding and stride > 1:  # "same" would pad one side.
                pad = tf.keras.layers.ZeroPadding2D(padding, name=f"{name}_pad", **_CHANNELS_LAST)
                maps = pad(maps)
            layer = tf.keras.layers.Conv2D(
                filters,
                kernel,
                padding="same" if stride == 1 else "valid",
                use_bias=False,
                name=f"{name}_conv",
                **geometry,
                **_CHANNELS_LAST,
            )
            channels = int(maps.shape[3])
            maps = layer(maps)
            weight = self.matching.take(
                f"{convolution}.weight", (filters, channels, kernel, kernel)
            )
            self.matching.plan(layer.kernel, weight.transpose(2, 3, 1, 0))
        frozen = tf.keras.layers.BatchNormalization(
            epsilon=_EPSILON, name=f"{name}_bn", trainable=False
        )
        maps = frozen(maps)
        for kind, variable in (
            ("weight", frozen.gamma),
            ("bias", frozen.beta),
            ("running_mean", frozen.moving_mean),
            ("running_var", frozen.moving_variance),
        ):
            value = self.matching.take(f"{normalization}.{kind}", (filters,))
            self.matching.plan(variable, value)
        self.matching.pass_over(f"{normalization}.num_batches_tracked")
        return maps

    def _check_deformable_blocks(self, stage: int, count: int) -> None:
        """Refuses stages of which some blocks have lost their offset convolutions.

        All blocks of a stage are deformable, or all without a stride, or none.
        """
        names = [self._naming.of_block(stage, block, 2)[0] for block in range(count)]
        have = [bool(branches_of(self._arrays, name)) for name in names]
        if any(have) and not all(have[1:]):
            for name, has in zip(names[1:], have[1:], strict=True):
                if not has:
                    self.matching.refuse(
                        f"{name} has no offset convolution, and others of its stage have one"
                    )


def _four(op: str, argument: str, value: Sequence[int]) -> tuple[int, ...]:
    numbers = [as_integer(number) for number in value]
    if len(numbers) != 4 or any(number is None or number < 1 for number in numbers):
        raise ValueError(
            f"{op}: {argument} must be four positive integers, one for each stage, got {value!r}"
        )
    return tuple(int(number) for number in value)
