"""What deformable networks have learned: where they sample, how far apart, whether it diverges.

For any Keras model (Keras 3 and tf-keras; functional, Sequential, subclassed, nested) that calls
the layers of this package:

- `sampling_locations`: the positions in the image that one unit depends on, through stacked layers;
- `layer_samples`, `roi_bins`: the samples and bins of every layer;
- `effective_dilation`, `effective_dilation_by_size`: how far apart a filter's samples are;
- `offset_report`, `OffsetHealth`: whether offsets diverge, now, and while `fit` runs;
- `draw_sampling_locations`, `draw_fixed_and_adaptive`, `draw_bins`: pictures, with Matplotlib.
"""

from __future__ import annotations

from tf_deformable.analysis._calls import LayerSamples, layer_samples
from tf_deformable.analysis.bins import LayerBins, roi_bins
from tf_deformable.analysis.dilation import (
    DilationBySize,
    effective_dilation,
    effective_dilation_by_size,
)
from tf_deformable.analysis.drawing import (
    draw_bins,
    draw_box,
    draw_fixed_and_adaptive,
    draw_image,
    draw_sampling_locations,
)
from tf_deformable.analysis.health import (
    LayerOffsets,
    OffsetHealth,
    OffsetReport,
    OffsetWarning,
    offset_report,
)
from tf_deformable.analysis.locations import SamplingLocations, sampling_locations, unit_centers

__all__ = [
    "DilationBySize",
    "LayerBins",
    "LayerOffsets",
    "LayerSamples",
    "OffsetHealth",
    "OffsetReport",
    "OffsetWarning",
    "SamplingLocations",
    "draw_bins",
    "draw_box",
    "draw_fixed_and_adaptive",
    "draw_image",
    "draw_sampling_locations",
    "effective_dilation",
    "effective_dilation_by_size",
    "layer_samples",
    "offset_report",
    "roi_bins",
    "sampling_locations",
    "unit_centers",
]
