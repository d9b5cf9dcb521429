"""Functional operators: eager and in graphs, native or reference as `tf_deformable.config` says."""

from tf_deformable.ops.deformable_conv2d import deformable_conv2d
from tf_deformable.ops.roi_pool import deformable_psroi_pool, deformable_roi_pool

__all__ = ["deformable_conv2d", "deformable_psroi_pool", "deformable_roi_pool"]
