"""Builds the operator library; whatever is not about that library is in pyproject.toml.

The library is C++ linked against the TensorFlow of the running Python. The compiler is called once
per source file, in parallel, and only for what has changed. The environment steers it:

    TF_DEFORMABLE_PURE_PYTHON=1  install without the library: the reference implementation only
    TF_DEFORMABLE_JOBS=N         compilers at a time (default: the processors this process may use)
    CXX                          the compiler (default: g++)
    CXXFLAGS, LDFLAGS            flags, added after those set here
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

os.chdir(Path(__file__).resolve().parent)  # every path below is relative to the source tree

PACKAGE = "tf_deformable"
LIBRARY = "libtf_deformable.so"
# Tells the package at run time that it was installed without the library, and on purpose.
PURE_PYTHON_MARKER = "PURE_PYTHON"

PURE_PYTHON = os.environ.get("TF_DEFORMABLE_PURE_PYTHON", "") not in ("", "0")
OR_PURE_PYTHON = (
    "or set TF_DEFORMABLE_PURE_PYTHON=1 to install the pure-Python package "
    "(the reference implementation alone, which is slower)"
)

# cc/deformable is the arithmetic; it is compiled without TensorFlow's headers, which keeps it free
# of them. cc/tensorflow registers it. A CUDA unit (*.cu.cc, arithmetic too, called by an adapter)
# would get its own command line, nvcc's, in NativeBuild.compile_command.
ADAPTERS = Path("cc/tensorflow")
SOURCES = sorted([*Path("cc/deformable").rglob("*.cc"), *ADAPTERS.rglob("*.cc")])
HEADERS = sorted([*Path("cc").rglob("*.h"), *Path("cc").rglob("*.inc")])

# A kernel for an instruction set is a file of its own, and its name says which. Nothing else may be
# compiled with these flags: the library has to load on a processor without them.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
INSTRUCTION_SETS = {
    "_avx2.cc": AVX2,
    # g++ 12 warns about its own intrinsics: _mm512_undefined_ps is undefined on purpose.
    "_avx512.cc": [*AVX512, "-Wno-uninitialized"],
}

# Asked in a process of its own: TensorFlow takes seconds to import, and logs while it does.
ASK_TENSORFLOW = """
import json
import tensorflow as tf
print(json.dumps({
    "version": tf.version.VERSION,
    "cxx11_abi": int(tf.sysconfig.CXX11_ABI_FLAG),
    "compile_flags": tf.sysconfig.get_compile_flags(),
    "link_flags": tf.sysconfig.get_link_flags(),
}))
"""


def fail(message: str) -> NoReturn:
    """Ends the build with `message` alone: any other exception adds a traceback of setuptools."""
    raise SystemExit(f"\ntf_deformable: {message}\n")


def tensorflow_requirement() -> str:
    """Returns the run-time dependency: the library needs the minor version it was built against."""
    if PURE_PYTHON:
        return "tensorflow>=2.16"
    for distribution in ("tensorflow", "tensorflow-cpu"):
        try:
            major, minor = metadata.version(distribution).split(".")[:2]
        except metadata.PackageNotFoundError:
            continue
        return f"{distribution}~={major}.{minor}.0"
    return "tensorflow"  # an sdist, made without TensorFlow: its install computes this anew


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `command` and returns its status and what it printed."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def find_compiler() -> list[str]:
    """Returns the command of the C++ compiler."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(compiler[0]) is None:
        fail(
            f"no C++ compiler found ({compiler[0]!r} is not a program on the PATH): install g++ "
            "(Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++), "
            f"name another compiler in CXX, {OR_PURE_PYTHON}."
        )
    return compiler


def ask_tensorflow() -> dict[str, Any]:
    """Returns the version and the compiler flags of the TensorFlow to build against."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    answer = run([sys.executable, "-c", ASK_TENSORFLOW], env=quiet)
    if answer.returncode != 0:
        reason = answer.stderr.strip().rpartition("\n")[2]
        fail(
            "the operator library is built against an installed TensorFlow, and importing it in "
            f"{sys.executable} failed ({reason}): install tensorflow, {OR_PURE_PYTHON}."
        )
    return json.loads(answer.stdout.splitlines()[-1])


class NativeBuild:
    """Compiles and links the library; what it makes on the way is kept in build/native.

    A file is made again when its digest changes: of the command that makes it, of the versions of
    the compiler and of TensorFlow, and of the contents of all project files that go into it.
    """

    directory = Path("build/native")

    def __init__(self, jobs: int | None) -> None:
        """Finds the compiler and asks TensorFlow for its flags; ends the build without them."""
        if sys.platform != "linux":
            fail(f"the operator library builds on Linux, got {sys.platform}: {OR_PURE_PYTHON}.")
        available = len(os.sched_getaffinity(0))
        self.jobs = int(os.environ.get("TF_DEFORMABLE_JOBS") or jobs or available)
        self.compiler = find_compiler()
        self.compiler_version = run([*self.compiler, "--version"]).stdout.partition("\n")[0]
        self.tensorflow = ask_tensorflow()
        self.cxx_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
        self.ld_flags = shlex.split(os.environ.get("LDFLAGS", ""))

    def build(self) -> Path:
        """Brings the library up to date and returns its path."""
        is_x86 = platform.machine() == "x86_64"
        sources = [s for s in SOURCES if is_x86 or not s.name.endswith(tuple(INSTRUCTION_SETS))]
        objects = {self.directory / f"{source}.o": source for source in sources}
        with ThreadPoolExecutor(self.jobs) as pool:  # its map drops what is queued when one fails
            list(pool.map(self.compile, objects, objects.values()))
        library = self.directory / LIBRARY
        self.make(library, self.link_command(list(objects), library), lambda: list(objects))
        return library

    def compile(self, target: Path, source: Path) -> None:
        """Compiles one source file."""
        self.make(target, self.compile_command(source, target), lambda: read_dependencies(target))

    def compile_command(self, source: Path, target: Path) -> list[str]:
        """Returns the command that compiles `source`; what its flags depend on is its name."""
        is_adapter = ADAPTERS in source.parents
        command = [*self.compiler, "-c", str(source), "-o", str(target), "-MMD"]
        # NDEBUG as TensorFlow's own build: some of its inline functions differ without.
        command += ["-O3", "-DNDEBUG", "-fPIC", "-Wall", "-Wextra", "-Icc"]
        for flag in self.tensorflow["compile_flags"]:
            if not flag.startswith("-I"):
                command.append(flag)
            elif is_adapter:
                command += ["-isystem", flag.removeprefix("-I")]
        if is_adapter:
            command.append(f"-DTFD_BUILD_INFO_JSON={json.dumps(self.build_info())}")
        for suffix, flags in INSTRUCTION_SETS.items():
            if source.name.endswith(suffix):
                command += flags
        return command + self.cxx_flags

    def link_command(self, objects: list[Path], target: Path) -> list[str]:
        """Returns the command that links `objects` into the library."""
        command = [*self.compiler, "-shared", *map(str, objects), "-o", str(target)]
        # A symbol that neither we nor TensorFlow define is found now, not when a user loads it.
        command += [*self.tensorflow["link_flags"], "-Wl,-z,defs"]
        return command + self.cxx_flags + self.ld_flags

    def build_info(self) -> str:
        """Returns what tf_deformable._native reads in the library before it loads it."""
        return json.dumps(
            {
                "tensorflow": self.tensorflow["version"],
                "cxx11_abi": self.tensorflow["cxx11_abi"],
                "compiler": self.compiler_version,
                "cuda": False,
            }
        )

    def make(self, target: Path, command: list[str], inputs: Callable[[], list[Path]]) -> None:
        """Runs `command` to make `target`, unless it is up to date."""
        digest_file = target.with_name(f"{target.name}.digest")
        if target.exists() and digest_file.exists():
            if digest_file.read_text() == self.digest(command, inputs()):
                return
        digest_file.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        logging.info(f"building {target.relative_to(self.directory)}")
        result = run(command)
        if result.returncode != 0:
            fail(f"this command failed:\n{shlex.join(command)}\n\n{result.stderr}")
        sys.stderr.write(result.stderr)  # warnings
        digest_file.write_text(self.digest(command, inputs()))

    def digest(self, command: list[str], inputs: list[Path]) -> str:
        """Returns what identifies the result of `command` on `inputs`."""
        toolchain = [self.compiler_version, self.tensorflow["version"]]
        digest = hashlib.sha256(json.dumps([command, toolchain]).encode())
        for path in inputs:
            digest.update(path.read_bytes() if path.exists() else b"missing")
        return digest.hexdigest()


def read_dependencies(target: Path) -> list[Path]:
    """Returns the project files that `target` was compiled from, as the compiler noted them."""
    rule = target.with_suffix(".d").read_text().replace("\\\n", " ")
    return [Path(name) for name in rule.partition(":")[2].split()]


class BuildLibrary(build_ext):
    """Puts the operator library, which is no Python extension, where setuptools expects one."""

    def get_ext_filename(self, ext_name: str) -> str:
        """Returns the file name without the suffix of the Python version."""
        return os.path.join(*ext_name.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Builds the library; setuptools copies it into the source tree for an editable install."""
        library = NativeBuild(self.parallel).build()
        destination = Path(self.get_ext_fullpath(ext.name))
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, destination)

    def copy_extensions_to_source(self) -> None:
        """Makes the source tree a native one."""
        for ext in self.extensions:  # a process that has the old one loaded keeps it
            Path(self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()
        Path(PACKAGE, PURE_PYTHON_MARKER).unlink(missing_ok=True)


class BuildPackage(build_py):
    """Marks a package without the library as such."""

    def run(self) -> None:
        """Copies the package (not when editable: that is the source tree itself) and marks it."""
        package = Path(PACKAGE)
        if not self.editable_mode:
            package = Path(self.build_lib, PACKAGE)
            shutil.rmtree(package, ignore_errors=True)  # modules since removed, from an older build
        super().run()
        if PURE_PYTHON:
            (package / LIBRARY).unlink(missing_ok=True)
            (package / PURE_PYTHON_MARKER).write_text(
                "installed with TF_DEFORMABLE_PURE_PYTHON=1\n"
            )


class BuildWheel(bdist_wheel):
    """Tags a wheel with the platform only: the library does not know Python."""

    def run(self) -> None:
        """Builds the wheel, unless it is known from the start that this would fail."""
        if not PURE_PYTHON:
            find_compiler()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tags for Python, its ABI and the platform."""
        python, abi, platform_tag = super().get_tag()
        return (python, abi, platform_tag) if self.root_is_pure else ("py3", "none", platform_tag)


class BuildEditable(editable_wheel):
    """An editable install, whose library lies in the source tree."""

    def run(self) -> None:
        """Installs, unless it is known from the start that this would fail."""
        if not PURE_PYTHON:
            find_compiler()
        super().run()


setup(
    license="Apache-2.0",
    install_requires=[tensorflow_requirement()],
    ext_modules=[]
    if PURE_PYTHON
    else [
        Extension(
            f"{PACKAGE}.{Path(LIBRARY).stem}",
            sources=[str(source) for source in SOURCES],
            depends=[str(header) for header in HEADERS],
        )
    ],
    cmdclass={
        "bdist_wheel": BuildWheel,
        "build_ext": BuildLibrary,
        "build_py": BuildPackage,
        "editable_wheel": BuildEditable,
    },
)
