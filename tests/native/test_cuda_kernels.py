"""The CUDA kernels compute what the operators promise; run on the CPU, by an emulation.

tests/gpu/run.py does the same, and more of it, on a GPU.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.gpu import deformable_attention_checks as attention
from tests.gpu import deformable_conv2d_checks as conv2d
from tests.gpu import isolation
from tests.gpu import kernels as gpu
from tests.gpu import roi_pool_checks as roi_pool

ROOT = pathlib.Path(__file__).parents[2]

# Others differ from these in their types only.
OF_16_BITS = ("lopsided", "vectors", "groups", "depthwise")
SEVERAL_WAYS = ("lopsided", "square tiles", "groups", "depthwise", "ranges")
WITHOUT_WARPGROUPS = ("vectors", "wide", "resident", "square tiles", "groups", "runs across taps")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    compiler = os.environ.get("CXX", "g++").split()
    if platform.machine() != "x86_64" or shutil.which(compiler[0]) is None:
        pytest.skip("needs a C++ compiler for x86-64")
    # Half a minute; a change of what it is made from makes it anew.
    return gpu.build_emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def kernels(library: pathlib.Path) -> gpu.Kernels:
    return gpu.Kernels(library, gpu.GuardedMemory())


@pytest.mark.parametrize("name", conv2d.CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deformable_conv2d(kernels: gpu.Kernels, name: str, dtype: str) -> None:
    conv2d.check(kernels, conv2d.CASES[name], dtype)


@pytest.mark.parametrize("name", OF_16_BITS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_deformable_conv2d_of_16_bits(kernels: gpu.Kernels, name: str, dtype: str) -> None:
    conv2d.check(kernels, conv2d.CASES[name], dtype)


@pytest.mark.parametrize("name", OF_16_BITS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_deformable_conv2d_of_16_bits_with_sampling_in_float32(
    kernels: gpu.Kernels, name: str, dtype: str
) -> None:
    conv2d.check(kernels, conv2d.CASES[name], dtype, wide_sampling=True)


@pytest.mark.parametrize("name", ["lopsided", "vectors"])
def test_deformable_conv2d_without_tf32(kernels: gpu.Kernels, name: str) -> None:
    conv2d.check(kernels, conv2d.CASES[name], "float32", tensor_float_32=False)


@pytest.mark.parametrize("name", WITHOUT_WARPGROUPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deformable_conv2d_on_devices_before_hopper(
    kernels: gpu.Kernels, name: str, dtype: str
) -> None:
    conv2d.check(kernels, conv2d.CASES[name], dtype, warpgroup_products=False)


@pytest.mark.parametrize("tile", gpu.WARPGROUP_FORWARD_TILES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tiles_of_warpgroups(kernels: gpu.Kernels, tile: tuple[int, int], dtype: str) -> None:
    for name in ("vectors", "wide", "many taps"):
        conv2d.check(kernels, conv2d.CASES[name], dtype, forward_tile=tile)


@pytest.mark.parametrize("name", SEVERAL_WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_gradient_of_the_inputs_in_small_steps(
    kernels: gpu.Kernels, name: str, dtype: str
) -> None:
    conv2d.check(kernels, conv2d.CASES[name], dtype, columns_bytes=1)


@pytest.mark.parametrize("name", ["lopsided", "vectors", "depthwise", "square tiles"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_deformable_conv2d_at_hostile_positions(
    kernels: gpu.Kernels, name: str, dtype: str
) -> None:
    conv2d.check(kernels, conv2d.CASES[name], dtype, hostile=True)


@pytest.mark.parametrize("path", conv2d.GOLDEN, ids=lambda path: path.stem)
def test_deformable_conv2d_golden_vectors(kernels: gpu.Kernels, path: pathlib.Path) -> None:
    conv2d.check_golden(kernels, path)


@pytest.mark.parametrize("name", roi_pool.CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("in_order", [False, True], ids=["", "in_order"])
def test_roi_pool(kernels: gpu.Kernels, name: str, dtype: str, in_order: bool) -> None:
    roi_pool.check(kernels, roi_pool.CASES[name], dtype, deterministic=in_order)


@pytest.mark.parametrize("name", ["lopsided", "aligned", "vectors", "no offsets but a mask"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_roi_pool_of_16_bits_with_sampling_in_float32(
    kernels: gpu.Kernels, name: str, dtype: str
) -> None:
    roi_pool.check(kernels, roi_pool.CASES[name], dtype, wide_sampling=True)


@pytest.mark.parametrize("name", ["lopsided", "aligned", "adaptive", "vectors"])
@pytest.mark.parametrize("in_order", [False, True], ids=["", "in_order"])
def test_roi_pool_of_odd_boxes(kernels: gpu.Kernels, name: str, in_order: bool) -> None:
    roi_pool.check_odd_boxes(kernels, roi_pool.CASES[name], "float64", deterministic=in_order)


@pytest.mark.parametrize(("aligned", "samples"), [(False, 3), (True, 3), (True, 0)])
def test_roi_pool_of_boxes_beyond_float32(
    kernels: gpu.Kernels, aligned: bool, samples: int
) -> None:
    roi_pool.check_boxes_beyond_float32(kernels, aligned, samples)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_roi_pool_of_images_that_are_not_there(kernels: gpu.Kernels, dtype: str) -> None:
    roi_pool.check_indices(kernels, dtype)


@pytest.mark.parametrize("name", attention.CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("in_order", [False, True], ids=["", "in_order"])
def test_attention(kernels: gpu.Kernels, name: str, dtype: str, in_order: bool) -> None:
    attention.check(kernels, attention.CASES[name], dtype, deterministic=in_order)


@pytest.mark.parametrize("name", ["lopsided", "pixels", "vectors", "misaligned"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_of_16_bits_with_sampling_in_float32(
    kernels: gpu.Kernels, name: str, dtype: str
) -> None:
    attention.check(kernels, attention.CASES[name], dtype, wide_sampling=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("depth", [3, 16])
@pytest.mark.parametrize("in_order", [False, True], ids=["", "in_order"])
def test_attention_at_odd_positions(
    kernels: gpu.Kernels, dtype: str, depth: int, in_order: bool
) -> None:
    attention.check_odd_positions(kernels, dtype, depth, deterministic=in_order)


@pytest.mark.parametrize("path", attention.GOLDEN, ids=lambda path: path.stem)
def test_attention_golden_vectors(kernels: gpu.Kernels, path: pathlib.Path) -> None:
    attention.check_golden(kernels, path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_in_order_gives_the_same_bits(kernels: gpu.Kernels, dtype: str) -> None:
    """The emulation draws the order of blocks and threads anew in every launch."""
    case = attention.CASES["many queries"]
    runs = [
        attention.evaluate(kernels, case, case.arrays(), dtype, deterministic=True)
        for _ in range(2)
    ]
    for result, array in runs[0].items():
        np.testing.assert_array_equal(array, runs[1][result], err_msg=result)


@pytest.mark.parametrize("dtype", gpu.TYPES)
def test_the_workspace_of_attention_is_bounded(kernels: gpu.Kernels, dtype: str) -> None:
    for batch in (1, 64, 4096):
        case = attention.Case(batch=batch, levels=((50, 76),), heads=8, depth=32, queries=3800)
        size = attention.workspace_bytes(kernels, case, dtype)
        assert size <= (0 if dtype in ("float32", "float64") else 32 << 20), batch


def test_more_levels_than_a_launch_holds_are_an_error(kernels: gpu.Kernels) -> None:
    case = attention.Case(levels=((1, 1),) * 129)
    with pytest.raises(gpu.KernelError, match="at most 128 levels .* 129 levels") as error:
        attention.evaluate(kernels, case, case.arrays(), "float32")
    assert error.value.code == "too large"


@pytest.mark.parametrize("dtype", gpu.TYPES)
def test_the_workspace_does_not_grow_with_the_batch(kernels: gpu.Kernels, dtype: str) -> None:
    sizes = []
    for batch in (1, 64, 4096):
        case = conv2d.plain(batch=batch, size=(64, 64), channels=256, filters=256)
        sizes.append(conv2d.workspace_bytes(kernels, case, dtype))
    assert max(sizes) <= 64 << 20, sizes


def test_an_image_that_the_kernels_cannot_count_is_an_error(kernels: gpu.Kernels) -> None:
    case = conv2d.plain(batch=1, size=(1 << 25, 1), channels=1, filters=1)
    with pytest.raises(
        RuntimeError, match=r"2\^24 along an axis, got images of \[33554432,1\]"
    ) as e:
        conv2d.run_on_nothing(kernels, case, "float32")
    assert isinstance(e.value, gpu.KernelError)
    assert e.value.code == "too large"


# Run apart: the emulation ends the process.
_CHECK = """
import pathlib, sys
from tests.gpu import deformable_conv2d_checks as conv2d, kernels as gpu
kernels = gpu.Kernels(pathlib.Path(sys.argv[1]), gpu.HostMemory())
conv2d.check(kernels, conv2d.CASES["vectors"], "float32")
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_threads_does_not_matter(library: pathlib.Path, seed: int) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", _CHECK, str(library)],
        env={**os.environ, "TF_DEFORMABLE_EMULATION_SEED": str(seed), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


def run_as_on_a_gpu(
    library: pathlib.Path, output: pathlib.Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The command of the GPU's machine, with the emulation in place of the device."""
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "run.py"), "--steps", "probe", "check"]
    command += ["--emulate", "--library", str(library), "--output", str(output), "--commit", "none"]
    command += ["--cases", "one channel", "no boxes", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_what_runs_on_a_gpu_runs(library: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = run_as_on_a_gpu(library, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("checks, 0 failed\n")


def ended(output: pathlib.Path) -> dict[str, str | None]:
    """What went wrong with each item, by title."""
    return {event["title"]: event["error"] for event in isolation.ends(isolation.Events(output))}


@pytest.mark.parametrize(
    ("planted", "error"),
    [("crash", "the process ended with status -6"), ("hang", "it took more than 10 s")],
)
def test_a_case_that_ends_its_process_is_the_only_one_that_fails(
    library: pathlib.Path, tmp_path: pathlib.Path, planted: str, error: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_as_on_a_gpu(library, whole)
    title = "roi_pool, no boxes, float32, deterministic=True"
    run = run_as_on_a_gpu(
        library, broken, "--plant", f"{planted}:{title}", "--seconds-per-item", "10"
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stdout.endswith("checks, 1 failed\n")
    expected = {**ended(whole / "events.jsonl"), title: error}
    assert ended(broken / "events.jsonl") == expected
    assert f"{title}: {error}" in (broken / "summary.txt").read_text()


def test_a_process_that_ends_at_every_case_is_given_up(
    library: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = run_as_on_a_gpu(library, tmp_path, "--plant", "crash:float64")
    assert run.returncode == 1
    errors = ended(tmp_path / "events.jsonl")
    assert errors["what comes after it"] == "too many restarts"
    # Other dtypes go on.
    assert errors["roi_pool, indices, bfloat16"] is None


@pytest.mark.parametrize("part", ["inputs", "filters"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["vectors", "depthwise", "empty map"])
def test_parts_of_the_gradient(kernels: gpu.Kernels, name: str, dtype: str, part: str) -> None:
    """They write theirs, as the whole gradient does, and leave the other's alone."""
    case = conv2d.CASES[name]
    arrays = case.arrays()
    whole = conv2d.evaluate(kernels, case, arrays, dtype, deterministic=True)
    got = conv2d.evaluate(kernels, case, arrays, dtype, part=part, deterministic=True)
    for result, array in got.items():
        if result == "output" or (result == "filters") == (part == "filters"):
            np.testing.assert_array_equal(array, whole[result], err_msg=result)
        else:
            assert np.isnan(array).all(), result


def test_a_tile_that_does_not_exist_is_an_error(kernels: gpu.Kernels) -> None:
    case = conv2d.CASES["vectors"]
    with pytest.raises(gpu.KernelError, match=r"there is no tile .* \[64,32\]"):
        conv2d.evaluate(kernels, case, case.arrays(), "float32", forward_tile=(64, 32))


@pytest.mark.parametrize("name", SEVERAL_WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_whatever_the_order_of_threads(
    kernels: gpu.Kernels, name: str, dtype: str
) -> None:
    """The emulation draws the order of blocks and threads anew in every launch."""
    case = conv2d.CASES[name]
    arrays = case.arrays()
    first = conv2d.evaluate(kernels, case, arrays, dtype)
    again = conv2d.evaluate(kernels, case, arrays, dtype)
    for result, array in first.items():
        np.testing.assert_array_equal(array, again[result], err_msg=result)


def test_all_samples_in_one_cell(kernels: gpu.Kernels) -> None:
    """The longest list that there can be is gathered as any other."""
    case = conv2d.plain(batch=1, size=(9, 8), channels=16, filters=8)
    arrays = case.arrays()
    y, x = np.meshgrid(np.arange(9), np.arange(8), indexing="ij")
    offsets = arrays["offsets"].reshape(9, 8, 3, 3, 2)
    taps = np.arange(3) - 1
    offsets[..., 0] = 4.25 - y[:, :, None, None] - taps[:, None]
    offsets[..., 1] = 2.75 - x[:, :, None, None] - taps
    got = conv2d.evaluate(kernels, case, arrays, "float64")
    conv2d.assert_close(got, conv2d.expect(case, arrays), "float64")
