"""Makes convolutions of an existing Keras model deformable, and keeps what it has learned."""

from __future__ import annotations

from typing import Any

from tf_deformable._geometry import rules
from tf_deformable._keras import sublayers
from tf_deformable.graphs.opening import open_layers
from tf_deformable.models.surgery.copy import Copier, compile_like, is_copied
from tf_deformable.models.surgery.dilate import dilation
from tf_deformable.models.surgery.replace import (
    channels_read,
    check_arguments,
    holds_convolutions,
)
from tf_deformable.models.surgery.select import Layers, Network, check_model


def deformify(
    model: Any,
    layers: Layers | None = "conv5",
    *,
    dilate_last_stage: bool = False,
    modulated: bool = False,
    offset_groups: int = 1,
    **layer_arguments: Any,
) -> Any:
    """Returns a copy of a model in which the chosen convolutions are deformable.

    The copy has the weights, names, dtype policies and `trainable` flags of the model, which stays
    as it is. The new offset branches start at zero, so the copy computes what the model computes
    until it is trained (with `dilate_last_stage`, on maps of twice the resolution). If the model
    was compiled, so is the copy, with a fresh optimizer, as far as Keras can rebuild the loss and
    the metrics from their configuration.

    Example:
        >>> model = tf.keras.applications.ResNet50(weights=None, include_top=False)
        >>> deformable = tf_deformable.models.deformify(model)
        >>> print(tf_deformable.models.compare(model, deformable, input_size=(224, 224)))
        layer ...
        conv5_block1_2_conv 2,359,808 -> 2,442,770 ... Conv2D -> DeformableConv2D
        ...
        network 23,587,712 -> 23,836,598 3,855,925,248 -> 3,870,827,520

        As the paper does for DeepLab and R-FCN, the last stage at stride 16 instead of 32:

        >>> dilated = tf_deformable.models.deformify(model, dilate_last_stage=True)

    Args:
        model: functional or built Sequential model of Keras 3 or tf-keras, of any class: one with
            a constructor of its own, as the backbones and tasks of KerasHub, too. Models nested
            in it are searched, and, with Keras 3, custom layers that use nothing but layers and
            `keras.ops`. Others are copied by their `get_config`, whole.
        layers: which convolutions become deformable:
            `"conv5"`: the paper's choice, put in general terms: every convolution with a kernel
                larger than 1x1 that reads feature maps of the coarsest resolution (of those that
                such convolutions read). In a ResNet, the 3x3 convolutions of conv5.
            any other string, or compiled pattern: a regular expression for the whole name.
            a list of strings: names.
            a function: is called with each convolution, and says whether it is chosen.
            None: none of them, which leaves `dilate_last_stage`.
            A layer in a nested model goes by its name or its path, "backbone/conv5_block1_2_conv".
        dilate_last_stage: bool, whether the network's last stage keeps the resolution of the one
            before: where the coarsest maps that "conv5" speaks of are made, strides become 1, and
            the convolutions that read these maps are dilated by as much, the zero padding layers
            before them included. What is downsampled after that still is. Where the padding is
            explicit or "valid", the features of the original are among those of the copy, at
            every second pixel; with "same" they are shifted by a pixel if the size was even
            (TensorFlow pads by the stride). Pools of stride 1 stay: Keras cannot dilate them.
        modulated: bool, whether the layers also predict a mask (Deformable ConvNets v2). The mask
            starts at 1 (`mask_initial_value=1.0`), so that the output does not change.
        offset_groups: int, groups of input channels that move independently.
        **layer_arguments: further arguments of `DeformableConv2D`, for all layers, for example
            `offset_learning_rate_multiplier=0.1`; not those that say what a convolution computes
            (its kernel's size, say), which stay as they are.

    Returns:
        A model of the same class, if that has the constructor of Keras, and else a functional one
        without what the class adds (it is not compiled), but with its outputs by their names, and
        its `pyramid_outputs`, if it has them. A custom layer in which a convolution was replaced
        is a nested functional model of its name. `Conv2D` (with groups, too) and `DepthwiseConv2D`
        become a `DeformableConv2D`; `SeparableConv2D` becomes a Sequential of a `DeformableConv2D`
        and a 1x1 `Conv2D`. A layer that is called in several places stays one layer.

    Raises:
        TypeError: `model` is not a Keras model, `layers` of another type, or an argument is none
            of the layers'.
        ValueError: the model is subclassed (its class has a `call`) or not built; nothing was
            chosen, a name is not there, a chosen layer cannot be replaced, or another one cannot
            be copied; `offset_groups` does not divide its channels; `dilate_last_stage` does not
            fit the network. The message names the layer and what to do.

    Sources:
        Dai et al., Deformable Convolutional Networks, ICCV 2017, section 2.3 (conv5, stride 32 to
        16 with dilation 2) and section 2.1 (zero initialisation).
    """
    check_model(model)
    check_arguments("deformify", layer_arguments)
    network = Network(open_layers(model, holds_convolutions))
    if layers is None and not dilate_last_stage:
        raise ValueError("deformify: layers is None, and dilate_last_stage False: nothing to do")
    chosen = [] if layers is None else network.choose(layers)
    for site in chosen:
        depth = channels_read(site.layer)
        if isinstance(offset_groups, int) and offset_groups > 0 and depth % offset_groups:
            raise ValueError(
                f"deformify: layer {site.path!r}: "
                f"{rules.offset_groups_do_not_divide(depth, offset_groups)}"
            )
    arguments = {
        "modulated": modulated,
        "offset_groups": offset_groups,
        "mask_initial_value": 1.0,
        **layer_arguments,
    }
    changes = dilation(network) if dilate_last_stage else {}
    keys = {site.key for site in chosen}
    copier = Copier(keys, changes, arguments)
    concerned = keys | set(changes)
    opened = open_layers(
        model,
        lambda layer: not concerned.isdisjoint(map(id, sublayers(layer))) or not is_copied(layer),
    )
    try:
        copy = copier.copy_model(opened)
    except ValueError as error:
        if not dilate_last_stage:
            raise
        raise ValueError(
            "deformify: dilate_last_stage: the network cannot be built with its last stage at a "
            f"higher resolution, where its layers meet: {error}"
        ) from error
    copier.copy_weights()
    compile_like(model, copy)
    return copy
