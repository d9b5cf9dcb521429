"""What a user gets: a quiet import, and a source distribution that is complete."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "LICENSES.md", "Makefile", "MANIFEST.in"),
        *("README.md", "requirements/build.txt"),
        *("pyproject.toml", "setup.py", ".ci/run", "tf_deformable/py.typed"),
    }
    for folder, pattern in [
        ("cc", "*.cc"),
        ("cc", "*.h"),
        ("cc", "*.inc"),
        ("examples", "*.py"),
        ("tests", "*.py"),
        ("tests", "*.npz"),
        ("tests/native/corpus", "*"),
        ("tf_deformable", "*.py"),
    ]:
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern)}
    assert wanted <= packed, sorted(wanted - packed)
    built = {name for name in packed if name.endswith((".so", ".o", ".pyc", "PURE_PYTHON"))}
    assert not built


LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def locked(path):
    """The requirements of a lock file, with the hashes of each."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        requirement, *hashes = line.split(" --hash=")
        yield Requirement(requirement.strip()), [value.strip() for value in hashes]


def wanted(group):
    """What pyproject.toml says of a group of tools; a text, as Python 3.10 reads no TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    name = "requires" if group == "build" else group
    section = text.partition("[build-system]" if group == "build" else "[dependency-groups]")[2]
    found = re.search(rf"^{name} = \[(.*?)\]$", section, re.DOTALL | re.MULTILINE)
    requirements = [Requirement(value) for value in re.findall(r'"(.*?)"', found[1])]
    return [r for r in requirements if r.name != "tensorflow"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_file_pins_versions_and_hashes_and_names_no_index(path):
    pins = list(locked(path))
    assert pins
    for requirement, hashes in pins:
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes)
    assert not re.search(r"://|--(extra-)?index|--find-links", path.read_text())


@pytest.mark.parametrize("group", ["build", "dev", "docs", "wheel"])
def test_the_locked_tools_are_those_that_are_asked_for(group):
    pins = {r.name: r for r, _ in locked(ROOT / "requirements" / f"{group}.txt")}
    for requirement in wanted(group):
        (pin,) = pins[requirement.name].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement}: make lock"


def test_a_tool_has_one_version_in_all_lock_files():
    versions = {}
    for path in LOCKS:
        if path.stem.startswith("tensorflow"):
            continue
        for requirement, _ in locked(path):
            versions.setdefault((requirement.name, str(requirement.marker)), set()).add(
                str(requirement.specifier)
            )
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_licences_of_what_the_libraries_contain_come_with_the_wheel(tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path]
    subprocess.run([*command, "dist_info", "--output-dir", tmp_path], cwd=ROOT, check=True)
    packed = {path.name for path in tmp_path.rglob("LICENSE*")}
    assert packed == {"LICENSE", "LICENSES.md"}
