"""Deformable ConvNets: existing networks made deformable, and what it costs."""

from __future__ import annotations

from tf_deformable.models.costs import Comparison, compare
from tf_deformable.models.segmentation import ResizeLike, deeplab
from tf_deformable.models.surgery import deformable_layer, deformify

__all__ = ["Comparison", "ResizeLike", "compare", "deeplab", "deformable_layer", "deformify"]
