"""Builds one wheel for all TensorFlows in `tensorflows.py`: the kernels once, an adapter for each.

The wheel, in build/wheels, is for any Linux that its symbols allow, as auditwheel says. It has no
CUDA kernels unless TF_DEFORMABLE_CUDA=1 (or `make wheel CUDA=1`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tensorflows import FOLDER, MINORS, ROOT, headers, installed


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", help=f"minor versions, default: {' '.join(MINORS)}")
    parser.add_argument(
        "--installed", action="store_true", help="for the TensorFlow of this Python"
    )
    parser.add_argument(
        "--tensorflow", action="append", default=[], metavar="VERSION=FOLDER",
        help="an unpacked TensorFlow to use, as 2.21.0=/.../tensorflow, instead of fetching it",
    )  # fmt: skip
    arguments = parser.parse_args()
    given = arguments.tensorflow + [installed()] * arguments.installed
    minors = arguments.versions or (() if given else MINORS)
    environment = {
        **os.environ,
        "TF_DEFORMABLE_TENSORFLOW": ";".join([*map(headers, minors), *given]),
        "TF_DEFORMABLE_CUDA": os.environ.get("TF_DEFORMABLE_CUDA", "0"),
    }
    for old in FOLDER.glob("*.whl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        # From nothing but the kernels' and adapters' objects: no module since removed gets in.
        shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
        command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", folder]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        repair = ["auditwheel", "repair", "--exclude", "libtensorflow_framework.so.2"]
        repair += ["--exclude", "libtensorflow_cc.so.2"]
        repair += ["--only-plat", "--wheel-dir", str(FOLDER), str(wheel)]
        beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        subprocess.run(
            [sys.executable, "-m", *repair], env={**os.environ, "PATH": beside}, check=True
        )
    (wheel,) = FOLDER.glob("*.whl")
    print(f"{wheel.relative_to(ROOT)}, {wheel.stat().st_size / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
