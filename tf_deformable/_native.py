"""Finds, checks and loads the compiled operator library; nothing else.

The package has one library of kernels, and one that registers them for each minor version of
TensorFlow that it was built for: that is the one to load, and it takes the kernels from the folder
that it lies in. It says what it was built for in a string among its bytes, so that this can be
checked before the dynamic loader fails on it. Where that TensorFlow has what it takes, another
library makes the operators known to its XLA compiler; the handlers that compiled programs call are
in a library that needs no TensorFlow.

A process may have loaded a copy of the library already, as one does that serves exported models.
The operators that TensorFlow knows are then the ones to use: an operator never changes under its
name, so that what the copy registered is what the package wants, or lacks.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from tf_deformable._version import __version__

_FOLDER = Path(__file__).parent
KERNELS = f"libtf_deformable_kernels-{__version__}.so"
_HANDLERS = f"libtf_deformable_xla-{__version__}.so"
_PURE_PYTHON_MARKER = Path(__file__).with_name("PURE_PYTHON")  # written by setup.py
_BUILD_INFO_TAG = b"@TFD_BUILD_INFO@"  # cc/adapters/tensorflow/build_info.cc

# What `load` returns has a function for each.
_OPERATORS = tuple(
    f"TFDeformable>{name}{gradient}"
    for name in ("Conv2D", "Conv2DBranch", "RoiPool", "MultiScaleDeformableAttention")
    for gradient in ("", "Grad")
)

_load_lock = threading.Lock()
_loaded: ModuleType | None = None


class NativeLibraryError(ImportError):
    """The operator library is missing, or was built for another TensorFlow."""


def load() -> ModuleType:
    """Loads the operator library and returns the module of its operators.

    The library is checked and loaded once per process, unless a copy of it has been loaded; later
    calls return the same module.

    Returns:
        What `tf.load_op_library` returns: one Python function per registered operator.

    Raises:
        NativeLibraryError: No copy has been loaded, and the library is missing, was built for
            another minor version or C++ ABI of TensorFlow than the one running, or does not load.
    """
    global _loaded
    if _loaded is None:
        with _load_lock:
            if _loaded is None:
                module = _registered_operators() or _check_and_load()
                _load_lowering()
                _loaded = module
    return _loaded


def supports_xla() -> bool:
    """Tells whether TensorFlow's XLA compiler knows the operators; loads the library.

    Where TensorFlow sees a GPU it must know them for that, since models run there.
    """
    import tensorflow as tf
    from tensorflow.python.framework import kernels  # no public name leads to it

    try:
        load()
    except NativeLibraryError:
        return False
    device = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    registered = kernels.get_registered_kernels_for_op(_OPERATORS[0]).kernel
    return any(kernel.device_type == f"XLA_{device}_JIT" for kernel in registered)


def xla_handlers() -> Path:
    """Returns the library of the handlers for XLA; it needs no TensorFlow, and is not loaded.

    Raises:
        NativeLibraryError: there is none.
    """
    library = _FOLDER / _HANDLERS
    if not library.exists():
        raise _error(
            f"the library of the handlers for XLA, {library}, is missing: it is built with "
            "TensorFlow 2.20 or later"
        )
    return library


def get_library_path() -> str:
    """Returns the path of the operator library for the TensorFlow that is running.

    It is the file to hand to `tf.load_op_library`, to `TF_LoadLibrary` of TensorFlow's C API, or to
    a model server. It needs the library of the kernels, libtf_deformable_kernels-VERSION.so, in the
    same folder: ship both. The library is neither loaded nor checked.

    Raises:
        NativeLibraryError: There is no library for this TensorFlow.
    """
    return str(_library())


def _library_for_tensorflow(stem: str) -> Path:
    import tensorflow as tf

    minor = ".".join(tf.version.VERSION.split(".")[:2])
    return _FOLDER / f"{stem}_{minor}.so"


def _library() -> Path:
    import tensorflow as tf

    library = _library_for_tensorflow("libtf_deformable_tensorflow")
    if not library.exists():
        problem = f"there is no operator library for TensorFlow {tf.version.VERSION} at {library}"
        others = sorted(
            (
                path.stem.rpartition("_")[2]
                for path in _FOLDER.glob("libtf_deformable_tensorflow_*")
            ),
            key=lambda version: [int(number) for number in version.split(".")],
        )
        raise _error(problem + (f"; there is one for {', '.join(others)}" if others else ""))
    kernels = library.with_name(KERNELS)
    if not kernels.exists():
        raise _error(f"the library of the kernels, {kernels}, is missing beside {library.name}")
    return library


def is_available() -> bool:
    """Tells whether the library is there and fits the TensorFlow installed; does not load it."""
    try:
        _check()
    except NativeLibraryError:
        return False
    return True


def built_for() -> str:
    """Returns the version of TensorFlow that the library was built for, as "2.21.0".

    Raises:
        NativeLibraryError: There is no library, or it does not say what it was built for.
    """
    return str(read_build_info()["tensorflow"])


def is_pure_python() -> bool:
    """Tells whether the package was installed without the library (TF_DEFORMABLE_PURE_PYTHON=1)."""
    return _PURE_PYTHON_MARKER.exists()


def _registered_operators() -> ModuleType | None:
    """Returns the module of the operators if TensorFlow knows them already, else None.

    TensorFlow makes such a module as it loads a library, of the operators that are new to it: none,
    if a copy or a link was loaded before. What it does to make one is done here.
    """
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.framework import _pywrap_python_op_gen, op_def_registry

    definitions = [op_def_registry.get(name) for name in _OPERATORS]
    if None in definitions:
        return None
    source = _pywrap_python_op_gen.GetPythonWrappers(
        op_def_pb2.OpList(op=definitions).SerializeToString()
    )
    module = ModuleType("tf_deformable._registered_operators")
    exec(source, module.__dict__)
    # What TensorFlow does to the modules of libraries, so that AutoGraph leaves them alone.
    module.__dict__["_IS_TENSORFLOW_PLUGIN"] = True
    sys.modules[module.__name__] = module
    return module


def _check_and_load() -> ModuleType:
    _check()
    import tensorflow as tf

    library = _library()
    try:
        module: ModuleType = tf.load_op_library(str(library))
    except (tf.errors.OpError, OSError) as error:
        raise _error(
            f"{library}, built for TensorFlow {built_for()}, does not load into TensorFlow "
            f"{tf.version.VERSION} ({error})"
        ) from error
    return module


def _load_lowering() -> None:
    """Makes the operators known to TensorFlow's XLA compiler, if there is a library for that."""
    import tensorflow as tf

    library = _library_for_tensorflow("libtf_deformable_xla_tensorflow")
    if not library.exists():
        return
    try:
        tf.load_library(str(library))
    except (tf.errors.OpError, OSError) as error:
        raise _error(
            f"{library} does not load into TensorFlow {tf.version.VERSION} ({error})"
        ) from error


def _check() -> None:
    """Raises an error unless the library is there and fits the TensorFlow installed."""
    import tensorflow as tf

    running, running_abi = tf.version.VERSION, int(tf.sysconfig.CXX11_ABI_FLAG)
    library, info = _library(), read_build_info()
    built, built_abi = info["tensorflow"], info["cxx11_abi"]
    if built.split(".")[:2] != running.split(".")[:2]:
        raise _error(
            f"{library} was built for TensorFlow {built}, and TensorFlow {running} is running"
        )
    if built_abi != running_abi:
        raise _error(
            f"{library} was built for TensorFlow {built} with _GLIBCXX_USE_CXX11_ABI={built_abi}, "
            f"and TensorFlow {running} with _GLIBCXX_USE_CXX11_ABI={running_abi} is running"
        )


def read_build_info() -> dict[str, Any]:
    """Returns what the build wrote into the library (cc/adapters/tensorflow/build_info.h.in)."""
    library = _library()
    content = library.read_bytes()
    tag = content.find(_BUILD_INFO_TAG + b"{")
    end = content.find(b"\0", tag)
    if tag < 0 or end < 0:
        raise _error(f"{library} does not say which TensorFlow it was built for")
    info: dict[str, Any] = json.loads(content[tag + len(_BUILD_INFO_TAG) : end])
    return info


def _error(problem: str) -> NativeLibraryError:
    """Returns the error that says what is wrong and the two ways out."""
    if is_pure_python():
        problem += " (the package was installed with TF_DEFORMABLE_PURE_PYTHON=1)"
    pip_install = f"{sys.executable} -m pip install --no-build-isolation --no-deps"
    source_tree = _FOLDER.parent
    if (source_tree / "setup.py").exists():
        rebuild = f"{pip_install} -e {source_tree}"
    else:
        rebuild = f"{pip_install} --force-reinstall . (in the source tree of tf_deformable)"
    return NativeLibraryError(
        f"tf_deformable: {problem}.\n"
        f"To build the library for the TensorFlow installed: {rebuild}\n"
        "To do without it, choose the reference implementation: "
        'tf_deformable.config.set_backend("reference")'
    )
