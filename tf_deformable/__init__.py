"""Deformable convolution for TensorFlow and Keras, with compiled operators.

`DeformableConv2D`, `DeformableRoIPool`, `DeformablePSRoIPool`, `MultiScaleDeformableAttention`,
`DCNv3` and `DCNv4` are the Keras layers, `RoIPool` and `PSRoIPool` the plain ones;
`deformable_conv2d`, `deformable_roi_pool`, `deformable_psroi_pool`,
`multi_scale_deformable_attention`, `dcnv3` and `dcnv4` are the functions they call. `config`
chooses between the compiled operators and the reference implementation, `models` puts the layers
into networks, `export` takes models to other runtimes, and `get_library_path` names the library for
programs that load it by themselves.

Importing the package imports TensorFlow and makes the operators and layers known to it and to
Keras, so that models that hold them can be loaded. `tf_deformable.jax` has the functions for JAX;
where TensorFlow is not installed it is all that works.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from tf_deformable._version import __version__

if TYPE_CHECKING:
    from tf_deformable import analysis, config, convert, export, layers, models, ops, reference
    from tf_deformable._native import NativeLibraryError, get_library_path
    from tf_deformable.layers.dcnv3 import DCNv3
    from tf_deformable.layers.dcnv4 import DCNv4
    from tf_deformable.layers.deformable_attention import MultiScaleDeformableAttention
    from tf_deformable.layers.deformable_conv2d import DeformableConv2D
    from tf_deformable.layers.psroi_pool import DeformablePSRoIPool, PSRoIPool
    from tf_deformable.layers.roi_pool import DeformableRoIPool, RoIPool
    from tf_deformable.ops.dcnv3 import dcnv3, dcnv4
    from tf_deformable.ops.deformable_attention import multi_scale_deformable_attention
    from tf_deformable.ops.deformable_conv2d import deformable_conv2d
    from tf_deformable.ops.roi_pool import deformable_psroi_pool, deformable_roi_pool

__all__ = [
    "DCNv3",
    "DCNv4",
    "DeformableConv2D",
    "DeformablePSRoIPool",
    "DeformableRoIPool",
    "MultiScaleDeformableAttention",
    "NativeLibraryError",
    "PSRoIPool",
    "RoIPool",
    "__version__",
    "analysis",
    "config",
    "convert",
    "dcnv3",
    "dcnv4",
    "deformable_conv2d",
    "deformable_psroi_pool",
    "deformable_roi_pool",
    "export",
    "get_library_path",
    "layers",
    "models",
    "multi_scale_deformable_attention",
    "ops",
    "reference",
]

_MODULES = ("analysis", "config", "convert", "export", "layers", "models", "ops", "reference")
_MODULE_OF = {
    "DCNv3": "layers",
    "DCNv4": "layers",
    "DeformableConv2D": "layers",
    "DeformablePSRoIPool": "layers",
    "DeformableRoIPool": "layers",
    "MultiScaleDeformableAttention": "layers",
    "NativeLibraryError": "_native",
    "PSRoIPool": "layers",
    "RoIPool": "layers",
    "dcnv3": "ops",
    "dcnv4": "ops",
    "deformable_conv2d": "ops",
    "deformable_psroi_pool": "ops",
    "deformable_roi_pool": "ops",
    "get_library_path": "_native",
    "multi_scale_deformable_attention": "ops",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return __all__


if importlib.util.find_spec("tensorflow") is not None:
    from tf_deformable import _registration

    _registration.register_all()
