"""What a user gets: a quick and quiet import, and a source distribution that is complete."""

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


def test_import_is_silent_and_leaves_tensorflow_alone():
    run = run_python(
        "import sys, tf_deformable; from tf_deformable import config; config.get_backend();"
        "print(sorted({'tensorflow', 'keras', 'tf_keras', 'numpy'} & set(sys.modules)))",
        "-W",
        "error",
    )
    assert run.stdout == "[]\n"
    assert run.stderr == ""


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
