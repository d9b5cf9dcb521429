"""Functional operators: eager and in graphs, native or reference as `tf_deformable.config` says."""

from tf_deformable.ops._statistics import register_statistics
from tf_deformable.ops.dcnv3 import dcnv3, dcnv4
from tf_deformable.ops.deformable_attention import multi_scale_deformable_attention
from tf_deformable.ops.deformable_conv2d import deformable_conv2d
from tf_deformable.ops.roi_pool import deformable_psroi_pool, deformable_roi_pool
from tf_deformable.ops.sampling import bin_boxes, sampling_positions

__all__ = [
    "bin_boxes",
    "dcnv3",
    "dcnv4",
    "deformable_conv2d",
    "deformable_psroi_pool",
    "deformable_roi_pool",
    "multi_scale_deformable_attention",
    "sampling_positions",
]

register_statistics()
