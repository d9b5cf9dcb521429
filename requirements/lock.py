"""Writes the lock files beside this one: versions and hashes of tools, by uv (`make lock`).

    build.txt            what compiles the package, but for TensorFlow
    dev.txt, docs.txt    what checks it, and documents it
    wheel.txt            what makes a wheel portable
    tensorflow-2.N.txt   the TensorFlow whose headers the wheel's adapter for 2.N is compiled with

What may be chosen is said in pyproject.toml; a tool that is in several files has one version. They
hold for every platform and every Python that the package is for (but docs.txt: from 3.11 on), and
name no index: pip's own serves.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
# The oldest Python for which each group of tools exists.
GROUPS = {"dev": "3.10", "wheel": "3.10", "docs": "3.11"}

sys.path.insert(0, str(ROOT / "wheels"))

from tensorflows import MINORS, PYTHON  # noqa: E402


def build_requirements() -> list[str]:
    """Returns pip and what [build-system] requires, without TensorFlow."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^requires = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    required = re.findall(r'"(.*?)"', found[1])
    return ["pip>=25.1", *(name for name in required if not name.startswith("tensorflow"))]


def pips_index() -> str | None:
    """Returns the index that pip is configured to use, which uv does not read."""
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    return configured.stdout.strip() or None


def compile_lock(output: Path, *arguments: str, requirements: list[str] | None = None) -> None:
    """Resolves `requirements`, or what `arguments` ask for, into the lock file `output`."""
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-annotate"]
    command += ["--custom-compile-command", "make lock", "--output-file", str(output), *arguments]
    environment = dict(os.environ)
    index = pips_index()
    if index is not None:
        environment.setdefault("UV_DEFAULT_INDEX", index)
    given = None
    if requirements is not None:
        command.append("-")
        given = "\n".join(requirements)
    subprocess.run(command, cwd=ROOT, env=environment, input=given, text=True, check=True)


def main() -> None:
    """Writes all of them."""
    oldest = min(GROUPS.values())
    everywhere = ["--upgrade", "--universal", "--python-version"]
    with tempfile.TemporaryDirectory() as folder:
        together, build = Path(folder, "together.txt"), Path(folder, "build.in")
        build.write_text("\n".join(build_requirements()))
        groups = [group for group, python in GROUPS.items() if python == oldest]
        chosen = [argument for group in groups for argument in ("--group", group)]
        compile_lock(together, *everywhere, oldest, *chosen, str(build))
        agreed = ["--constraint", str(together)]
        requirements = build_requirements()
        compile_lock(FOLDER / "build.txt", *everywhere, oldest, *agreed, requirements=requirements)
        for group, python in GROUPS.items():
            compile_lock(FOLDER / f"{group}.txt", *everywhere, python, *agreed, "--group", group)
    for minor in MINORS:
        compile_lock(
            FOLDER / f"tensorflow-{minor}.txt",
            *("--upgrade", "--no-deps", "--python-version", PYTHON),
            requirements=[f"tensorflow~={minor}.0"],
        )


if __name__ == "__main__":
    main()
