"""The kernels on 64-bit Arm: cross-compiled, and run by an emulator of the processor."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "qemu-aarch64")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a build by the toolchain file of the preset `aarch64`."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    cmake = pathlib.Path(sys.executable).with_name("cmake")
    if missing or not cmake.exists():
        pytest.skip(f"needs {', '.join(missing) or 'cmake'}")
    folder = tmp_path_factory.mktemp("aarch64")
    configure = [cmake, "-S", ROOT / "cc", "-B", folder, "-G", "Ninja", "-DTF_DEFORMABLE_TESTS=ON"]
    configure += [f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cc' / 'cmake' / 'aarch64.cmake'}"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={cmake.with_name('ninja')}"]
    subprocess.run([*configure, "-DTF_DEFORMABLE_CXX_FLAGS=-Werror"], check=True)
    subprocess.run([cmake, "--build", folder, "--target", "native_programs"], check=True)
    return folder


def run(
    build: pathlib.Path, *arguments: str, program: str = "fuzz_kernels"
) -> subprocess.CompletedProcess[str]:
    """Runs a native program."""
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", build / "native_tests" / program]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def test_vectors_follow_the_scalar_rules(build: pathlib.Path) -> None:
    done = run(build, program="sampling_rules_baseline")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" values are the same\n")


def test_random_shapes_and_hostile_values(build: pathlib.Path) -> None:
    done = run(build, "0", "500")
    assert done.returncode == 0, done.stdout + done.stderr[-200:]
    assert done.stdout == "all cases ran\n"


def test_it_computes_what_x86_64_computes(
    build: pathlib.Path, native_programs: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    results = str(tmp_path / "results")
    environment = {**os.environ, "TF_DEFORMABLE_CPU_ISA": "baseline"}
    command = [native_programs / "fuzz_kernels", "0", "500", "keep", results]
    subprocess.run(command, env=environment, check=True, timeout=300)
    compared = run(build, "0", "500", "compare", results)
    assert compared.returncode == 0, compared.stdout
    assert " 0 differ" in compared.stdout


@pytest.mark.parametrize(("element", "shape"), [("f", "4s"), ("d", "2d")], ids=["float", "double"])
def test_the_product_is_neon(build: pathlib.Path, element: str, shape: str) -> None:
    """Its inner loop adds 6 x 2 vectors: 12 instructions, with little beside them."""
    (library,) = (build / "kernels").glob("libtf_deformable_kernels-*.so")
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", library]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loops = []
    for function in listing.split("\n\n"):
        if not re.match(rf"[0-9a-f]+ <\w*Multiply(Panel)?I{element}", function):
            continue
        lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", function, re.MULTILINE)
        places = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        for end, (_, text) in enumerate(lines):
            branch = re.match(r"(?:b\.\w+|cbn?z\s+\w+,)\s*([0-9a-f]+)", text)
            start = places.get(int(branch.group(1), 16), end) if branch else end
            body = [text for _, text in lines[start : end + 1]]
            loops.append((sum(f".{shape}" in t and "fmla" in t for t in body), len(body)))
    assert any(fused == 12 and length <= 24 for fused, length in loops)
