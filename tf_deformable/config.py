"""Which implementation computes the operators.

`"native"` is the compiled library, `"reference"` the same operators in plain TensorFlow: slower and
hungrier for memory, but it needs no library. The choice is made when an operator is called or
traced: a `tf.function` keeps what was chosen when it was traced. In order of precedence:

1. `use_backend`, in its `with` block;
2. `set_backend`, in the whole process;
3. the environment variable `TF_DEFORMABLE_BACKEND`;
4. `"native"`, or `"reference"` where the package was installed with `TF_DEFORMABLE_PURE_PYTHON=1`.

There is no silent fallback: `"native"` without a library that fits raises `NativeLibraryError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, cast, get_args

from tf_deformable import _native

__all__ = ["Backend", "build_info", "get_backend", "set_backend", "use_backend"]

Backend: TypeAlias = Literal["native", "reference"]
"""The name of an implementation."""

_ENVIRONMENT_VARIABLE = "TF_DEFORMABLE_BACKEND"

_process_backend: Backend | None = None
_context_backend: ContextVar[Backend | None] = ContextVar("tf_deformable_backend", default=None)


def get_backend() -> Backend:
    """Returns the implementation that an operator called here and now would use.

    Raises:
        ValueError: The environment variable `TF_DEFORMABLE_BACKEND` decides and names no backend.
    """
    chosen = _context_backend.get() or _process_backend
    if chosen is not None:
        return chosen
    environment = os.environ.get(_ENVIRONMENT_VARIABLE)
    if environment:
        return _checked(environment, f"the environment variable {_ENVIRONMENT_VARIABLE}")
    return "reference" if _native.is_pure_python() else "native"


def set_backend(name: Backend) -> None:
    """Chooses the implementation for all threads of this process.

    Functions already traced keep the one they were traced with.

    Args:
        name: `"native"` or `"reference"`.

    Raises:
        ValueError: `name` is neither.
    """
    global _process_backend
    _process_backend = _checked(name, "set_backend: name")


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Chooses the implementation inside a `with` block.

    It holds for the thread (or asyncio task) that runs the block, not for threads started in it.
    Blocks nest; leaving one, by an exception too, restores what was chosen around it.

    Example:
        >>> inputs, filters = tf.random.normal([1, 9, 9, 4]), tf.random.normal([3, 3, 4, 6])
        >>> offsets = tf.random.normal([1, 9, 9, 2 * 3 * 3])
        >>> with tf_deformable.config.use_backend("reference"):
        ...     expected = tf_deformable.deformable_conv2d(inputs, filters, offsets)
        >>> outputs = tf_deformable.deformable_conv2d(inputs, filters, offsets)
        >>> np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)

    Args:
        name: `"native"` or `"reference"`.

    Raises:
        ValueError: `name` is neither.
    """
    token = _context_backend.set(_checked(name, "use_backend: name"))
    try:
        yield
    finally:
        _context_backend.reset(token)


def build_info() -> dict[str, Any]:
    """Tells how the compiled library was built; TensorFlow is not imported.

    Returns:
        `"tensorflow"`: the version it was built for; `"cxx11_abi"`: 0 or 1; `"compiler"`: its
        version; `"xla"`: whether XLA compiles the native operators (`jit_compile=True`); `"cuda"`:
        the version of nvcc, None if the library has no CUDA kernels: then the native operators run
        on the CPU only; `"cuda_architectures"`: the compute capabilities that these were compiled
        for, without the dot.

    Raises:
        NativeLibraryError: There is no library, or it does not say how it was built.
    """
    return _native.read_build_info()


def _checked(name: str, argument: str) -> Backend:
    if name not in get_args(Backend):
        raise ValueError(f'{argument} must be "native" or "reference", got {name!r}')
    return cast(Backend, name)
