"""The native programs, built by CMake as the libraries are."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def native_programs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of the native programs, linked with the kernels that the package has."""
    build = ROOT / "build" / "native"
    cmake = pathlib.Path(sys.executable).with_name("cmake")
    if not (build / "CMakeCache.txt").exists() or not cmake.exists():
        pytest.skip("needs a build in this source tree (make build)")
    subprocess.run([cmake, build, "-DTF_DEFORMABLE_TESTS=ON"], check=True)
    subprocess.run([cmake, "--build", build, "--target", "native_programs"], check=True)
    return build / "native_tests"
