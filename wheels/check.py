"""Tries the wheel of build.py in a clean environment for each TensorFlow, without a compiler.

Environments, of about 2 GB each, are made in build/wheels one after the other and removed again.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

from tensorflows import FOLDER, MINORS

SMOKE = pathlib.Path(__file__).resolve().with_name("smoke.py")


def run(python: pathlib.Path, folder: pathlib.Path) -> bool:
    """Runs the smoke test with both Kerases; PATH has no compiler."""
    succeeded = True
    for legacy in ("0", "1"):
        environment = {
            "PATH": str(folder / "no-programs"),
            "HOME": str(folder),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_USE_LEGACY_KERAS": legacy,
        }
        result = subprocess.run(
            [python, SMOKE],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        print(result.stdout, end="", flush=True)
        if result.returncode != 0:
            succeeded = False
            print(
                f"FAILED: {python}, TF_USE_LEGACY_KERAS={legacy}\n{result.stderr[-3000:]}",
                flush=True,
            )
    return succeeded


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", default=MINORS, help="minor versions of TensorFlow")
    parser.add_argument(
        "--python", nargs="+", default=[], type=pathlib.Path,
        help="of environments that have TensorFlow and tf-keras; the wheel alone is put into them",
    )  # fmt: skip
    arguments = parser.parse_args()
    (wheel,) = FOLDER.glob("*.whl")
    folder = FOLDER / "check"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "no-programs").mkdir(parents=True)
    failed = []
    if arguments.python:
        for python in arguments.python:
            install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
            subprocess.run([*install, wheel], check=True)
            if not run(python, folder):
                failed.append(str(python))
    for version in () if arguments.python else arguments.versions:
        environment = folder / version
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = environment / "bin" / "python"
        # As a user: TensorFlow first, of a version of one's own, then the wheel.
        install = [python, "-m", "pip", "install", "--quiet"]
        clean = {**os.environ, "PATH": str(folder / "no-programs")}
        wanted = [f"tensorflow~={version}.0", f"tf-keras~={version}.0"]
        subprocess.run([*install, *wanted], env=clean, check=True)
        subprocess.run([*install, wheel], env=clean, check=True)
        if not run(python, folder):
            failed.append(version)
        shutil.rmtree(environment)
    print("failed: " + ", ".join(failed) if failed else "all versions are well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
