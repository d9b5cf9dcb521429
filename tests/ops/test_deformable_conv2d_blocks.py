"""Shapes large enough that the kernels cut them into blocks, against the reference.

The cases of the other files are small, so that the oracle's loops end; they fit into one block of
everything. Here some case exceeds every limit of cc/kernels/deformable_conv2d/cpu_tiles.h, in
every instruction set that the processor has.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from tests.ops.deformable_conv2d_cases import Case, assert_close, evaluate
from tf_deformable import config

ROOT = pathlib.Path(__file__).parents[2]

SQUARE = {"kernel": (3, 3), "strides": (1, 1), "dilations": (1, 1), "padding": "SAME"}
CASES = {
    "panels and channel blocks": Case(
        batch=1, size=(11, 9), channels=300, filters=40, groups=1, offset_groups=1, **SQUARE
    ),
    "slabs of packed filters": Case(
        batch=1, size=(12, 10), channels=1030, filters=700, groups=1, offset_groups=1, **SQUARE
    ),
    "few pixels": Case(
        batch=1, size=(7, 7), channels=512, filters=500, groups=1, offset_groups=2, **SQUARE
    ),
    "few pixels, groups, a block of filters that is not full": Case(
        batch=2, size=(4, 5), channels=120, filters=84, groups=2, offset_groups=3, **SQUARE
    ),
    "few pixels, more filters than a unit packs": Case(
        batch=1, size=(1, 3), channels=40, filters=4200, groups=1, offset_groups=1, **SQUARE
    ),
    "blocks of filters": Case(
        batch=1, size=(5, 4), channels=20, filters=1100, groups=1, offset_groups=2, **SQUARE
    ),
    "tiles and segments": Case(
        batch=3, size=(40, 33), channels=24, filters=20, groups=2, offset_groups=3, **SQUARE
    ),
    "steps of pixels": Case(
        batch=2, size=(120, 110), channels=64, filters=4, groups=1, offset_groups=16, **SQUARE
    ),
    "steps of images, the last one with fewer": Case(
        batch=3, size=(70, 70), channels=4, filters=2, groups=1, offset_groups=4, **SQUARE
    ),
    "segments of an image": Case(
        batch=1, size=(48, 47), channels=12, filters=10, groups=1, offset_groups=1, **SQUARE
    ),
    "segments that fill no vectors": Case(
        batch=1, size=(48, 47), channels=5, filters=3, groups=1, offset_groups=1, **SQUARE
    ),
    "sums of splits, one more than four units add up": Case(  # 2**18 + 1 elements
        batch=1, size=(37, 109), channels=65, filters=2, groups=1, offset_groups=1, **SQUARE
    ),
    "segments of steps": Case(
        batch=1,
        size=(70, 70),
        channels=3,
        filters=2,
        groups=1,
        offset_groups=1,
        kernel=(9, 9),
        strides=(1, 1),
        dilations=(1, 1),
        padding="SAME",
    ),
    "many samples a pixel": Case(
        batch=1,
        size=(9, 9),
        channels=32,
        filters=8,
        groups=1,
        offset_groups=32,
        kernel=(7, 7),
        strides=(1, 1),
        dilations=(1, 1),
        padding="SAME",
    ),
    "depthwise": Case(
        batch=2, size=(14, 13), channels=300, filters=300, groups=300, offset_groups=2, **SQUARE
    ),
    "depthwise, many tiles": Case(
        batch=1, size=(62, 61), channels=6, filters=6, groups=6, offset_groups=2, **SQUARE
    ),
    "slabs of groups, the last one with fewer": Case(
        batch=1, size=(8, 10), channels=1536, filters=768, groups=3, offset_groups=1, **SQUARE
    ),
    "depthwise, taps in parts": Case(
        batch=2,
        size=(9, 10),
        channels=50,
        filters=50,
        groups=50,
        offset_groups=2,
        kernel=(7, 7),
        strides=(1, 1),
        dilations=(1, 1),
        padding="SAME",
    ),
    "depthwise, empty batch": Case(
        batch=0, size=(6, 7), channels=40, filters=40, groups=40, offset_groups=2, **SQUARE
    ),
    "depthwise, offsets of its own each": Case(
        batch=2, size=(6, 7), channels=5, filters=5, groups=5, offset_groups=5, **SQUARE
    ),
    "depthwise, more filters than are packed": Case(
        batch=1,
        size=(1, 2),
        channels=2800,
        filters=2800,
        groups=2800,
        offset_groups=1,
        kernel=(31, 31),
        strides=(1, 1),
        dilations=(1, 1),
        padding="SAME",
    ),
    "filters packed piece by piece": Case(
        batch=1,
        size=(1, 2),
        channels=2 * 4100,
        filters=2 * 9,
        groups=2,
        offset_groups=2,
        kernel=(9, 9),
        strides=(1, 1),
        dilations=(1, 1),
        padding="SAME",
    ),
    "slabs of taps": Case(
        batch=1,
        size=(2, 2),
        channels=64,
        filters=1100,
        groups=1,
        offset_groups=1,
        kernel=(7, 7),
        strides=(1, 1),
        dilations=(1, 1),
        padding="SAME",
    ),
    "more samples than are kept": Case(
        batch=1, size=(7, 8), channels=2200, filters=4, groups=2, offset_groups=1100, **SQUARE
    ),
    # Sums of 16-bit gradients are held for a part of the images or of the channels at a time.
    "parts of images": Case(
        batch=5, size=(40, 41), channels=192, filters=4, groups=1, offset_groups=1, **SQUARE
    ),
    "parts of channels, several slabs": Case(
        batch=1,
        size=(120, 128),
        channels=320,
        filters=1000,
        groups=1,
        offset_groups=2,
        kernel=(3, 3),
        strides=(8, 8),
        dilations=(1, 1),
        padding="SAME",
    ),
    "parts of channels of a depthwise convolution": Case(
        batch=2, size=(90, 91), channels=260, filters=260, groups=260, offset_groups=1, **SQUARE
    ),
    "depthwise with a multiplier": Case(
        batch=1, size=(6, 7), channels=12, filters=24, groups=12, offset_groups=3, **SQUARE
    ),
    # Groups that are sampled together.
    "groups that fill vectors, some together": Case(
        batch=2, size=(17, 13), channels=512, filters=512, groups=32, offset_groups=2, **SQUARE
    ),
    "groups that fill no vectors, some together": Case(
        batch=1, size=(19, 13), channels=120, filters=72, groups=24, offset_groups=2, **SQUARE
    ),
    "blocks of several groups, the last one with fewer": Case(
        batch=1, size=(12, 11), channels=216, filters=45, groups=9, offset_groups=3, **SQUARE
    ),
    "groups of one tile": Case(
        batch=1, size=(4, 5), channels=40, filters=80, groups=10, offset_groups=5, **SQUARE
    ),
    "groups together, several blocks of rows": Case(
        batch=1, size=(9, 8), channels=256, filters=256, groups=2, offset_groups=1, **SQUARE
    ),
    "groups together, more filters than are packed": Case(
        batch=1, size=(1, 2), channels=9216, filters=9216, groups=288, offset_groups=1, **SQUARE
    ),
}

# From the narrowest to the widest, each with a flag that /proc/cpuinfo has for it.
INSTRUCTION_SETS = {"baseline": "sse2", "avx2": "avx2", "avx512": "avx512vl"}


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", CASES)
def test_blocks_add_up(name: str, dtype: tf.DType) -> None:
    case = CASES[name]
    arrays = case.arrays(dtype)
    # The reference in float64, from the same (rounded) values.
    exact = {argument: array.astype("float64") for argument, array in arrays.items()}
    with config.use_backend("reference"):
        expected = evaluate(exact, **case.attributes())
    with config.use_backend("native"):
        got = evaluate(arrays, **case.attributes())
    assert_close(got, {n: t.numpy() for n, t in expected.items()}, dtype)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_narrower_instruction_sets_pass_the_operators_tests(isa: str) -> None:
    """The widest one is what all other tests run on; the same tests again on the others."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    supported = [name for name, flag in INSTRUCTION_SETS.items() if flag in flags]
    if isa not in supported[:-1]:
        pytest.skip(f"this processor has {supported}; the last is what the other tests run on")
    files = ["test_deformable_conv2d.py", "test_deformable_conv2d_blocks.py", "test_roi_pool.py"]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-k", "(native or blocks) and not narrower"),
            *(str(ROOT / "tests/ops" / file) for file in files),
        ],
        cwd=ROOT,
        env={**os.environ, "TF_DEFORMABLE_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert "TF_DEFORMABLE_CPU_ISA must be" not in run.stderr  # the variable was not refused
