"""Keras layers over the operators, for Keras 3 and for tf-keras (`TF_USE_LEGACY_KERAS=1`)."""

from __future__ import annotations

from tf_deformable.layers.dcnv3 import DCNv3
from tf_deformable.layers.dcnv4 import DCNv4
from tf_deformable.layers.deformable_attention import MultiScaleDeformableAttention
from tf_deformable.layers.deformable_conv2d import DeformableConv2D
from tf_deformable.layers.psroi_pool import DeformablePSRoIPool, PSRoIPool
from tf_deformable.layers.roi_pool import DeformableRoIPool, RoIPool

__all__ = [
    "DCNv3",
    "DCNv4",
    "DeformableConv2D",
    "DeformablePSRoIPool",
    "DeformableRoIPool",
    "MultiScaleDeformableAttention",
    "PSRoIPool",
    "RoIPool",
]
