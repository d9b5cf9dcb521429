"""What tests ask of TensorFlow's XLA compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import config

needs_lowering = pytest.mark.skipif(
    not config.build_info()["xla"], reason="the headers of this TensorFlow lack XLA's FFI"
)


def compiled(function: Callable[..., Any]) -> Any:
    """Returns the function as XLA compiles it."""
    return tf.function(function, jit_compile=True, autograph=False)


def custom_calls(function: Callable[..., Any], arguments: dict[str, Any]) -> set[str]:
    """Returns the handlers that what XLA makes of a function calls."""
    program = compiled(function).experimental_get_compiler_ir(arguments)(stage="hlo")
    return {line.split('"')[0] for line in program.split('custom_call_target="')[1:]}


def assert_same_bits(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        have, want = np.asarray(got[name]), np.asarray(want)
        assert have.dtype == want.dtype and have.shape == want.shape, name
        assert have.tobytes() == want.tobytes(), name
