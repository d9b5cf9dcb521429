"""Builds the operator library; whatever is not about that library is in pyproject.toml.

The library is C++ linked against the TensorFlow of the running Python. The compiler is called once
per source file, in parallel, and only for what has changed. The environment steers it:

    TF_DEFORMABLE_PURE_PYTHON=1  install without the library: the reference implementation only
    TF_DEFORMABLE_JOBS=N         compilers at a time (default: the processors this process may use)
    CXX                          the compiler (default: g++)
    CXXFLAGS, LDFLAGS            flags, added after those set here
    TF_DEFORMABLE_CUDA=1 or 0    with the CUDA kernels, or without (default: with, if there is nvcc)
    TF_DEFORMABLE_CUDA_ARCHITECTURES
                                 compute capabilities to compile for, the last one as PTX too, for
                                 what comes after it (default: "80,90"; code for 80 runs on 86, 89)
    CUDA_HOME                    where bin/nvcc is, if it is not on the PATH
    NVCC_APPEND_FLAGS            flags for nvcc, which reads them itself
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
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

# cc/kernels is the arithmetic; it is compiled without TensorFlow's headers, which keeps it free of
# them. cc/adapters registers it.
ADAPTERS = Path("cc/adapters")
SOURCES = sorted([*Path("cc/kernels").rglob("*.cc"), *ADAPTERS.rglob("*.cc")])
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

# What goes into the library only with CUDA: *.cu.cc, compiled by nvcc, and adapters that call it.
CUDA_SUFFIX = ".cu.cc"
CUDA_ADAPTERS = ("_cuda_kernel.cc", "cuda_context.cc")
DEFAULT_CUDA_ARCHITECTURES = "80,90"

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


class Cuda:
    """The CUDA compiler."""

    def __init__(self, nvcc: str, host_compiler: str) -> None:
        """Asks nvcc for its version and libraries."""
        version = run([nvcc, "--version"]).stdout
        self.version = version[version.rfind(" V") + 2 :].partition("\n")[0]
        wanted = os.environ.get("TF_DEFORMABLE_CUDA_ARCHITECTURES") or DEFAULT_CUDA_ARCHITECTURES
        self.architectures = wanted.replace(",", " ").split()
        if not all(re.fullmatch(r"\d+[af]?", name) for name in self.architectures):
            fail(
                "TF_DEFORMABLE_CUDA_ARCHITECTURES must list compute capabilities as in "
                f'"{DEFAULT_CUDA_ARCHITECTURES}", got {wanted!r}.'
            )
        self.command = [nvcc, "-x", "cu", "-ccbin", host_compiler]
        for name in self.architectures:
            self.command += ["-gencode", f"arch=compute_{name},code=sm_{name}"]
        newest = self.architectures[-1]
        self.command += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]
        # What a dry run would link with is where the libraries are.
        dry = run([nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]).stderr
        found = re.search(r"^#\$ LIBRARIES=(.*)$", dry, re.MULTILINE)
        self.link_flags = [
            *(shlex.split(found[1]) if found else []),
            *("-lcudart_static", "-ldl", "-lrt", "-lpthread"),
            # TensorFlow may bring a CUDA runtime too; neither must get the other's calls.
            "-Wl,--exclude-libs,libcudart_static.a",
        ]

    @staticmethod
    def find(host_compiler: str) -> Cuda | None:
        """Returns the compiler, or None if there is none, or it is not wanted."""
        wanted = os.environ.get("TF_DEFORMABLE_CUDA", "")
        if wanted not in ("", "0", "1"):
            fail(f"TF_DEFORMABLE_CUDA must be 0 or 1, got {wanted!r}.")
        if wanted == "0":
            return None
        homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
        found = [shutil.which("nvcc", path=os.path.join(home, "bin")) for home in homes]
        nvcc = next(filter(None, [*found, shutil.which("nvcc")]), None)
        if nvcc is not None:
            return Cuda(nvcc, host_compiler)
        if wanted == "1":
            fail("TF_DEFORMABLE_CUDA=1 needs nvcc on the PATH, or in the folder bin of CUDA_HOME.")
        return None


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
        self.cuda = Cuda.find(self.compiler[0])

    def build(self) -> Path:
        """Brings the library up to date and returns its path."""
        is_x86 = platform.machine() == "x86_64"
        sources = [s for s in SOURCES if is_x86 or not s.name.endswith(tuple(INSTRUCTION_SETS))]
        if self.cuda is None:
            sources = [s for s in sources if not s.name.endswith((CUDA_SUFFIX, *CUDA_ADAPTERS))]
        # What takes longest is started first.
        sources.sort(key=lambda source: not source.name.endswith(CUDA_SUFFIX))
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
        if source.name.endswith(CUDA_SUFFIX):
            return self.cuda_command(source, target)
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

    def cuda_command(self, source: Path, target: Path) -> list[str]:
        """Returns the command by which nvcc compiles `source`."""
        assert self.cuda is not None
        command = [*self.cuda.command, "-c", str(source), "-o", str(target), "-MMD", "-MF"]
        command += [str(target.with_suffix(".d")), "-std=c++17", "-O3", "-DNDEBUG", "-Icc"]
        command += [flag for flag in self.tensorflow["compile_flags"] if flag.startswith("-D")]
        command += ["-Xcompiler=-fPIC,-Wall,-Wextra"]
        # A library as small as can be: these compress well, and load once.
        command += ["-Xfatbin=-compress-all"]
        if "-Werror" in self.cxx_flags:
            command += ["-Werror=all-warnings"]
        return command

    def link_command(self, objects: list[Path], target: Path) -> list[str]:
        """Returns the command that links `objects` into the library."""
        command = [*self.compiler, "-shared", *map(str, objects), "-o", str(target)]
        # A symbol that neither we nor TensorFlow define is found now, not when a user loads it.
        command += [*self.tensorflow["link_flags"], "-Wl,-z,defs"]
        if self.cuda is not None:
            command += self.cuda.link_flags
        return command + self.cxx_flags + self.ld_flags

    def build_info(self) -> str:
        """Returns what tf_deformable._native reads in the library before it loads it."""
        return json.dumps(
            {
                "tensorflow": self.tensorflow["version"],
                "cxx11_abi": self.tensorflow["cxx11_abi"],
                "compiler": self.compiler_version,
                "cuda": self.cuda and self.cuda.version,
                "cuda_architectures": self.cuda.architectures if self.cuda else [],
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
        if self.cuda is not None and command[0] == self.cuda.command[0]:
            toolchain += [self.cuda.version, os.environ.get("NVCC_APPEND_FLAGS", "")]
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
