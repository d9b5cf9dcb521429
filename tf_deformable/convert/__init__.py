"""Conversions from and to other packages: weights of layers and networks, and layouts of tensors.

Weights: `layer_from_torch`, `attention_layer_from_torch`, `dcnv3_layer_from_torch`,
`load_torch_layer`, `resnet_from_torch`, `layer_from_mxnet`, `psroi_layer_from_mxnet` read what
PyTorch and MXNet have saved, `torch_state_dict` goes the other way, `read_weights` reads a file.
Layouts: all the others, which only move and rename numbers.

Everywhere in this package y comes before x, maps are NHWC, kernels HWIO, and boxes (y1, x1, y2, x2)
with an index of their image. Others differ:

- torchvision, mmcv, ONNX, PaddlePaddle and MXNet have maps NCHW and kernels OIHW; the channels of
  their convolution offsets are ordered as here: (tap row, tap column, (dy, dx)).
- DCNv3 and DCNv4 have maps NHWC and convolution offsets (tap column, tap row, (dx, dy)); DCNv4
  has them and the mask in one tensor.
- Deformable DETR and its heirs have locations (x, y) in [0, 1], where here they are (y, x).
- All but ONNX have boxes as rois (index of the image, x1, y1, x2, y2).
- mmcv and MXNet have RoI offsets as planes, `[R, classes x (dx, dy), part_h, part_w]`, where here
  they are `[R, part_h, part_w, classes, (dy, dx)]`.
- mmcv, MXNet and OpenVINO order the channels of position-sensitive maps (D, row, column), this
  package (row, column, D).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tf_deformable.convert.layouts import (
    boxes_from_normalized,
    boxes_from_rois,
    dcnv3_from_mask,
    dcnv3_from_offsets,
    dcnv4_from_offsets_and_mask,
    depth_major_from_psroi_channels,
    hwio_from_oihw,
    mask_from_dcnv3,
    nchw_from_nhwc,
    nhwc_from_nchw,
    offsets_and_mask_from_dcnv4,
    offsets_from_dcnv3,
    oihw_from_hwio,
    planes_from_roi_offsets,
    psroi_channels_from_depth_major,
    roi_offsets_from_planes,
    rois_from_boxes,
    yx_from_xy,
)

if TYPE_CHECKING:
    from tf_deformable.convert.files import read_weights
    from tf_deformable.convert.mxnet_layers import layer_from_mxnet, psroi_layer_from_mxnet
    from tf_deformable.convert.resnet import resnet_from_torch
    from tf_deformable.convert.torch_attention import attention_layer_from_torch
    from tf_deformable.convert.torch_dcnv3 import dcnv3_layer_from_torch
    from tf_deformable.convert.torch_layers import (
        layer_from_torch,
        load_torch_layer,
        torch_state_dict,
    )

__all__ = [
    "attention_layer_from_torch",
    "boxes_from_normalized",
    "boxes_from_rois",
    "dcnv3_from_mask",
    "dcnv3_from_offsets",
    "dcnv3_layer_from_torch",
    "dcnv4_from_offsets_and_mask",
    "depth_major_from_psroi_channels",
    "hwio_from_oihw",
    "layer_from_mxnet",
    "layer_from_torch",
    "load_torch_layer",
    "mask_from_dcnv3",
    "nchw_from_nhwc",
    "nhwc_from_nchw",
    "offsets_and_mask_from_dcnv4",
    "offsets_from_dcnv3",
    "oihw_from_hwio",
    "planes_from_roi_offsets",
    "psroi_channels_from_depth_major",
    "psroi_layer_from_mxnet",
    "read_weights",
    "resnet_from_torch",
    "roi_offsets_from_planes",
    "rois_from_boxes",
    "torch_state_dict",
    "yx_from_xy",
]

# Layouts need no Keras: what makes layers is imported when it is asked for.
_MODULE_OF = {
    "attention_layer_from_torch": "torch_attention",
    "dcnv3_layer_from_torch": "torch_dcnv3",
    "layer_from_mxnet": "mxnet_layers",
    "layer_from_torch": "torch_layers",
    "load_torch_layer": "torch_layers",
    "psroi_layer_from_mxnet": "mxnet_layers",
    "read_weights": "files",
    "resnet_from_torch": "resnet",
    "torch_state_dict": "torch_layers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return __all__
