"""Every compiled operator has all that operators have: a list that lacks one shows here."""

from __future__ import annotations

import pytest
from tensorflow.python.framework import kernels, ops
from tensorflow.python.ops.parallel_for import pfor

from tests.hostile import raw_calls
from tf_deformable import _native, _registration, config

pytestmark = pytest.mark.skipif(
    config.get_backend() != "native", reason="is about the compiled operators"
)

FORWARD = [name for name in _native._OPERATORS if not name.endswith("Grad")]


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    _native.load()


def devices(operator: str) -> set[str]:
    return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(operator).kernel}


@pytest.mark.parametrize("operator", _native._OPERATORS)
def test_it_has_kernels_derivatives_and_a_reference(operator: str) -> None:
    assert "CPU" in devices(operator)
    assert operator in ops.gradient_registry.list()
    assert operator in pfor._pfor_converter_registry
    assert operator in _registration.references()


@pytest.mark.parametrize("operator", _native._OPERATORS)
def test_xla_compiles_it_where_the_library_knows_xla(operator: str) -> None:
    if not config.build_info()["xla"]:
        pytest.skip("the library is built for a TensorFlow without what it takes")
    assert "XLA_CPU_JIT" in devices(operator)


@pytest.mark.parametrize("operator", FORWARD)
def test_the_profiler_counts_it(operator: str) -> None:
    assert f"{operator},flops" in ops._stats_registry.list()


def test_each_is_called_with_what_is_wrong() -> None:
    called = {f"{name}{gradient}" for name in raw_calls.OPERATORS for gradient in ("", "_grad")}
    assert {name.replace("_", "") for name in called} == {
        name.replace(">", "").lower() for name in _native._OPERATORS
    }
