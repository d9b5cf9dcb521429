"""Builds the libraries with all mutants of C++ in them, in a copy of the source tree."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from tests.mutants import (
    cc_adapters,
    cc_deformable_attention,
    cc_deformable_conv2d,
    cc_kernels,
    cc_roi_pool,
)
from tests.mutants.mutant import File, Mutant, switched

ROOT = pathlib.Path(__file__).parents[2]
TREE = ROOT / "build" / "mutants"
SWITCH = "TF_DEFORMABLE_MUTANT"  # switch.cc reads it

_FOLDERS = ("cc", "tests", "tf_deformable", "benchmarks")
_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
_SWITCH_FOLDER = pathlib.Path("cc/kernels/base")

CC_FILES: tuple[File, ...] = (
    *cc_kernels.FILES,
    *cc_kernels.BASELINE,
    *cc_deformable_conv2d.FILES,
    *cc_roi_pool.FILES,
    *cc_deformable_attention.FILES,
    *cc_adapters.FILES,
)

# By the switch's number.
CC_MUTANTS: dict[int, tuple[File, Mutant]] = dict(
    enumerate(((file, mutant) for file in CC_FILES for mutant in file.mutants), start=1)
)


def switch_flags() -> str:
    """The flags of the compiler with which a source sees the switch."""
    return f"-include {TREE / _SWITCH_FOLDER / 'switch.h'}"


def build_programs() -> pathlib.Path:
    """The folder of the native programs of the tree."""
    return TREE / "build" / "native" / "native_tests"


def build() -> None:
    """Copies the source tree, puts the mutants in and builds what has changed.

    Raises:
        ValueError: a mutant's context is not in its file, or several times.
        subprocess.CalledProcessError: it does not compile.
    """
    sources = {ROOT / name for name in _FILES}
    for folder in _FOLDERS:
        sources |= {p for p in (ROOT / folder).rglob("*") if p.is_file()}
    wanted = {
        path.relative_to(ROOT): path.read_bytes()
        for path in sources
        if path.suffix not in (".so", ".pyc")
    }
    _put_mutants_in(wanted)
    for name in ("switch.h", "switch.cc"):
        wanted[_SWITCH_FOLDER / name] = pathlib.Path(__file__).with_name(name).read_bytes()

    for folder in _FOLDERS:
        for old in (TREE / folder).rglob("*"):
            gone = old.is_file() and old.suffix != ".so" and old.relative_to(TREE) not in wanted
            if gone and "__pycache__" not in old.parts:
                old.unlink()
    for path, text in wanted.items():
        to = TREE / path
        if not to.exists() or to.read_bytes() != text:  # what has not changed is not built again
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(text)

    # Both expressions of a choice are compiled: what one of them leaves unused is no fault.
    flags = f"-w {switch_flags()} {os.environ.get('CXXFLAGS', '')}"
    environment = {**os.environ, "CXXFLAGS": flags, "TF_DEFORMABLE_CUDA": "0"}
    setup = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(setup, cwd=TREE, env=environment, check=True)
    cmake, folder = pathlib.Path(sys.executable).with_name("cmake"), TREE / "build" / "native"
    subprocess.run([cmake, folder, "-DTF_DEFORMABLE_TESTS=ON"], check=True, capture_output=True)
    subprocess.run([cmake, "--build", folder, "--target", "native_tests"], check=True)


def _put_mutants_in(sources: dict[pathlib.Path, bytes]) -> None:
    by_path: dict[pathlib.Path, list[tuple[int, File, Mutant]]] = {}
    for number, (file, mutant) in CC_MUTANTS.items():
        by_path.setdefault(pathlib.Path(file.path), []).append((number, file, mutant))
    for path, numbered in by_path.items():
        numbers = {id(mutant): number for number, _, mutant in numbered}
        # A constant expression is that of the original: it cannot read the switch.
        constant = "!__builtin_is_constant_evaluated() && "
        prefix = constant if any(file.in_constants for _, file, _ in numbered) else ""
        try:
            text = switched(
                sources[path].decode(),
                [mutant for _, _, mutant in numbered],
                lambda m, numbers=numbers, prefix=prefix: (
                    f"{prefix}::tf_deformable::mutant == {numbers[id(m)]}"
                ),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        sources[path] = text.encode()
