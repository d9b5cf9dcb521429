"""Deformable ConvNets: existing networks made deformable, and the networks of the paper.

`deformify` replaces convolutions of a network, `compare` says what that costs. `deeplab` and
`detector` put the paper's networks on a backbone; `boxes` holds what detectors share.
`accelerate_d_fine` gives KerasHub's D-FINE this package's attention.
"""

from __future__ import annotations

from tf_deformable.models import boxes
from tf_deformable.models.costs import Comparison, compare
from tf_deformable.models.d_fine import accelerate_d_fine
from tf_deformable.models.detection.build import detector
from tf_deformable.models.detection.detector import Detector
from tf_deformable.models.detection.heads import (
    faster_rcnn_head,
    region_proposal_network,
    rfcn_head,
)
from tf_deformable.models.detection.pyramid import feature_pyramid_network
from tf_deformable.models.segmentation import ResizeLike, deeplab
from tf_deformable.models.surgery.deformify import deformify
from tf_deformable.models.surgery.replace import deformable_layer

__all__ = [
    "Comparison",
    "Detector",
    "ResizeLike",
    "accelerate_d_fine",
    "boxes",
    "compare",
    "deeplab",
    "deformable_layer",
    "deformify",
    "detector",
    "faster_rcnn_head",
    "feature_pyramid_network",
    "region_proposal_network",
    "rfcn_head",
]
