"""The operators in plain TensorFlow: the oracle of the kernels, and the portable fallback.

Nothing here needs the compiled library. The functions are differentiable any number of times, run
under `jit_compile=True`, convert to the builtin operators of LiteRT (TensorFlow Lite), and cost
several times the memory of the compiled operators. Both compilers drop the checks of sizes and box
indices that are known only when the graph runs.
"""

from tf_deformable.reference.deformable_attention import multi_scale_deformable_attention
from tf_deformable.reference.deformable_conv2d import deformable_conv2d
from tf_deformable.reference.roi_pool import deformable_psroi_pool, deformable_roi_pool

__all__ = [
    "deformable_conv2d",
    "deformable_psroi_pool",
    "deformable_roi_pool",
    "multi_scale_deformable_attention",
]
