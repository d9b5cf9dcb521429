"""The TensorFlows that a wheel is for, and where to get them."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "wheels"
MINORS = ("2.16", "2.17", "2.18", "2.19", "2.20", "2.21")

# A Python that all of them have wheels for.
PYTHON = "3.11"
_PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_27_x86_64")
_NEEDED = ("tensorflow/include/", "tensorflow/libtensorflow_framework.so.2")
# What the library for XLA is linked to, 1 GB, where there are the headers for that library.
_XLA_HEADER = "tensorflow/include/xla/ffi/api/ffi.h"
_NEEDED_FOR_XLA = "tensorflow/libtensorflow_cc.so.2"


def installed() -> str:
    """Returns version and folder of the TensorFlow of this Python, as setup.py takes them."""
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None and spec.submodule_search_locations
    return f"{metadata.version('tensorflow')}={spec.submodule_search_locations[0]}"


def headers(minor: str) -> str:
    """Returns version and folder of a TensorFlow's headers, as setup.py takes them.

    Its wheel, the one that `make lock` has chosen, is fetched once, and what an adapter needs of it
    is kept.
    """
    folder = FOLDER / "tensorflow" / minor
    done = folder / "VERSION"
    lacks_xla = (folder / _XLA_HEADER).exists() and not (folder / _NEEDED_FOR_XLA).exists()
    if lacks_xla or not done.exists():
        print(f"Fetching TensorFlow {minor}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory() as downloads:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary=:all:", "--python-version", PYTHON, "--dest", downloads]
            for platform in _PLATFORMS:
                command += ["--platform", platform]
            locked = ROOT / "requirements" / f"tensorflow-{minor}.txt"
            command += ["--require-hashes", "--requirement", str(locked)]
            subprocess.run(command, check=True)
            (wheel,) = pathlib.Path(downloads).glob("tensorflow-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = archive.namelist()
                needed = _NEEDED + (_NEEDED_FOR_XLA,) * (_XLA_HEADER in names)
                archive.extractall(folder, [name for name in names if name.startswith(needed)])
            done.write_text(wheel.name.split("-")[1])
    return f"{done.read_text()}={folder / 'tensorflow'}"
