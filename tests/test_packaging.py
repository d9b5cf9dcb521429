"""What a user gets: a quiet import, and a source distribution that is complete."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import tf_deformable

ROOT = Path(__file__).parents[1]


def run_python(code, *flags):
    return subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=True
    )


def test_import_is_silent_and_makes_no_device():
    """What TensorFlow's devices are to be may be said after the import."""
    run = run_python(
        # TensorFlow writes on standard error, so that only the package's import is watched.
        "import os, tensorflow as tf; error = os.dup(2);"
        "os.dup2(1, 2); import tf_deformable; os.dup2(error, 2);"
        "cpu = tf.config.list_physical_devices('CPU')[0];"
        "logical = [tf.config.LogicalDeviceConfiguration()] * 3;"
        "tf.config.set_logical_device_configuration(cpu, logical);"
        "print(len(tf.config.list_logical_devices('CPU')))",
        "-W",
        "error",
    )
    assert run.stdout == "3\n"


def test_public_names_resolve():
    assert dir(tf_deformable) == sorted(tf_deformable.__all__)
    for name in tf_deformable.__all__:
        assert getattr(tf_deformable, name) is not None, name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tf_deformable' has no attribute 'deform'"):
        tf_deformable.deform  # noqa: B018


def test_source_distribution_holds_what_builds_tests_and_explains_the_package(tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path]
    subprocess.run(
        [*command, "sdist", "--dist-dir", tmp_path],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (archive,) = tmp_path.glob("tf_deformable-*.tar.gz")
    with tarfile.open(archive) as tar:
        top = archive.name.removesuffix(".tar.gz")
        packed = {name.removeprefix(f"{top}/") for name in tar.getnames()}
    wanted = {
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "MANIFEST.in", "README.md"),
        *("pyproject.toml", "setup.py", ".ci/run", "tf_deformable/py.typed"),
    }
    for folder, pattern in [
        ("cc", "*.cc"),
        ("cc", "*.h"),
        ("cc", "*.inc"),
        ("examples", "*.py"),
        ("tests", "*.py"),
        ("tests", "*.npz"),
        ("tf_deformable", "*.py"),
    ]:
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern)}
    assert wanted <= packed, sorted(wanted - packed)
    built = {name for name in packed if name.endswith((".so", ".o", ".pyc", "PURE_PYTHON"))}
    assert not built
