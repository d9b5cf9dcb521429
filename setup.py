"""Builds the operator libraries by CMake (cc/CMakeLists.txt); all else is in pyproject.toml.

There are two: the kernels, and an adapter for the TensorFlow of the running Python. The environment
steers it:

    TF_DEFORMABLE_PURE_PYTHON=1  install without the libraries: the reference implementation only
    TF_DEFORMABLE_TENSORFLOW     adapters for these TensorFlows instead, as
                                 "2.20.0=/folder/tensorflow;2.21.0=/another/tensorflow"
    TF_DEFORMABLE_JOBS=N         compilers at a time (default: the processors this process may use)
    CXX                          the compiler (default: g++)
    CXXFLAGS, LDFLAGS            flags, added after those set here
    TF_DEFORMABLE_CUDA=1 or 0    with the CUDA kernels, or without (default: with, if there are nvcc
                                 and a GPU; they take minutes to compile)
    TF_DEFORMABLE_CUDA_ARCHITECTURES
                                 compute capabilities to compile for, the last one as PTX too, for
                                 what comes after it (default: "80,90,100,120"; code for 80 runs on
                                 86 and 89)
    CUDA_HOME                    where bin/nvcc is, if it is not on the PATH
    NVCC_APPEND_FLAGS            flags for nvcc, which reads them itself
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

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
LIBRARIES = "libtf_deformable_*.so"  # the kernels, and an adapter for each TensorFlow
# Tells the package at run time that it was installed without the libraries, and on purpose.
PURE_PYTHON_MARKER = "PURE_PYTHON"
OLDEST_TENSORFLOW = (2, 16)

PURE_PYTHON = os.environ.get("TF_DEFORMABLE_PURE_PYTHON", "") not in ("", "0")
OR_PURE_PYTHON = (
    "or set TF_DEFORMABLE_PURE_PYTHON=1 to install the pure-Python package "
    "(the reference implementation alone, which is slower)"
)
DEFAULT_CUDA_ARCHITECTURES = "80,90,100,120"  # those of them that nvcc knows


def fail(message: str) -> NoReturn:
    """Ends the build with `message` alone: any other exception adds a traceback of setuptools."""
    raise SystemExit(f"\ntf_deformable: {message}\n")


def version() -> str:
    """Returns the version of the package, which is part of the kernels' file name."""
    found = re.search(r'__version__ = "(.*)"', Path(PACKAGE, "_version.py").read_text())
    assert found is not None
    return found[1]


def chosen_tensorflows() -> str:
    """Returns the environment's choice of TensorFlows to build adapters for, "" if it has none."""
    return os.environ.get("TF_DEFORMABLE_TENSORFLOW", "")


def installed_tensorflow() -> tuple[str, str] | None:
    """Returns the name and version of the TensorFlow distribution of this Python, if there is one.

    It is not imported: that takes seconds.
    """
    for distribution in ("tensorflow", "tensorflow-cpu"):
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def tensorflow_requirement() -> str:
    """Returns the run-time dependency: an adapter needs the minor version it was built against."""
    if PURE_PYTHON:
        return "tensorflow>=2.16"
    if chosen_tensorflows():
        minors = sorted(int(minor) for minor in re.findall(r"2\.(\d+)\.\d+=", chosen_tensorflows()))
        return f"tensorflow>=2.{minors[0]},<2.{minors[-1] + 1}"
    installed = installed_tensorflow()
    if installed is None:
        return "tensorflow"  # an sdist, made without TensorFlow: its install computes this anew
    distribution, full = installed
    major, minor = full.split(".")[:2]
    return f"{distribution}~={major}.{minor}.0"


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


def find_tool(name: str) -> str:
    """Returns the program cmake or ninja: that of this Python's package, or one on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        fail(
            f"{name} builds the operator libraries, and is not there: {sys.executable} -m pip "
            f"install cmake ninja, {OR_PURE_PYTHON}."
        )
    return found


def find_tensorflow() -> str:
    """Returns version and folder of the TensorFlow to build against, as CMake takes them."""
    installed = installed_tensorflow()
    spec = importlib.util.find_spec("tensorflow")
    if installed is None or spec is None or not spec.submodule_search_locations:
        fail(
            "the operator libraries are built against an installed TensorFlow, and "
            f"{sys.executable} has none: install tensorflow, {OR_PURE_PYTHON}."
        )
    numbers = re.match(r"\d+\.\d+\.\d+", installed[1])
    if numbers is None or tuple(map(int, numbers[0].split(".")))[:2] < OLDEST_TENSORFLOW:
        oldest = ".".join(map(str, OLDEST_TENSORFLOW))
        fail(f"TensorFlow {oldest} or later is needed, got {installed[1]}: upgrade tensorflow.")
    return f"{numbers[0]}={spec.submodule_search_locations[0]}"


def find_nvcc() -> str | None:
    """Returns the CUDA compiler, or None if there is none, or it is not wanted."""
    wanted = os.environ.get("TF_DEFORMABLE_CUDA", "")
    if wanted not in ("", "0", "1"):
        fail(f"TF_DEFORMABLE_CUDA must be 0 or 1, got {wanted!r}.")
    if wanted == "0":
        return None
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = [shutil.which("nvcc", path=os.path.join(home, "bin")) for home in homes]
    nvcc = next(filter(None, [*found, shutil.which("nvcc")]), None)
    if wanted == "1" and nvcc is None:
        fail("TF_DEFORMABLE_CUDA=1 needs nvcc on the PATH, or in the folder bin of CUDA_HOME.")
    if wanted == "" and nvcc is not None and not Path("/dev/nvidiactl").exists():
        print(
            "tf_deformable: without CUDA kernels, since there is no GPU here "
            "(TF_DEFORMABLE_CUDA=1 builds them)",
            flush=True,
        )
        return None
    return nvcc


def cuda_architectures(nvcc: str) -> str:
    """Returns the compute capabilities to compile for, as CMake takes them."""
    wanted = os.environ.get("TF_DEFORMABLE_CUDA_ARCHITECTURES", "")
    architectures = (wanted or DEFAULT_CUDA_ARCHITECTURES).replace(",", " ").split()
    if not wanted:
        command = [nvcc, "--list-gpu-arch"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        known = re.findall(r"compute_(\d+)", listed)
        architectures = [name for name in architectures if name in known] or architectures
    if not all(re.fullmatch(r"\d+[af]?", name) for name in architectures):
        fail(
            "TF_DEFORMABLE_CUDA_ARCHITECTURES must list compute capabilities as in "
            f'"{DEFAULT_CUDA_ARCHITECTURES}", got {wanted!r}.'
        )
    return ";".join(architectures)


def build_libraries(jobs: int | None) -> list[Path]:
    """Brings the libraries in build/native up to date and returns their paths."""
    if sys.platform != "linux":
        fail(f"the operator libraries build on Linux, got {sys.platform}: {OR_PURE_PYTHON}.")
    folder = Path("build/native")
    compiler, nvcc = find_compiler(), find_nvcc()
    launcher, program = compiler[:-1], compiler[-1]  # as in CXX="ccache g++"
    options = {
        "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
        "CMAKE_CXX_COMPILER": shutil.which(program) or program,
        "CMAKE_CXX_COMPILER_LAUNCHER": ";".join(launcher),
        "TF_DEFORMABLE_TENSORFLOW": chosen_tensorflows() or find_tensorflow(),
        "TF_DEFORMABLE_CXX_FLAGS": os.environ.get("CXXFLAGS", ""),
        "TF_DEFORMABLE_LINKER_FLAGS": os.environ.get("LDFLAGS", ""),
        "TF_DEFORMABLE_CUDA": "ON" if nvcc else "OFF",
    }
    if nvcc:
        options["CMAKE_CUDA_COMPILER"] = nvcc
        options["CMAKE_CUDA_HOST_COMPILER"] = options["CMAKE_CXX_COMPILER"]
        options["TF_DEFORMABLE_CUDA_ARCHITECTURES"] = cuda_architectures(nvcc)
    cmake = find_tool("cmake")
    configure = [cmake, "-S", "cc", "-B", str(folder), "-G", "Ninja", "--log-level=NOTICE"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    jobs = int(os.environ.get("TF_DEFORMABLE_JOBS") or jobs or len(os.sched_getaffinity(0)))
    if (folder / "CMakeCache.txt").exists() and not (folder / "build.ninja").exists():
        shutil.rmtree(folder)  # what is left of a configuration that failed
    minors = re.findall(r"(\d+\.\d+)\.\d+=", options["TF_DEFORMABLE_TENSORFLOW"])
    adapters = [f"tf_deformable_tensorflow_{minor}" for minor in minors]
    build = [cmake, "--build", str(folder), "--parallel", str(jobs), "--target"]
    for command in (configure, [*build, "tf_deformable_kernels", *adapters]):
        if subprocess.run(command, check=False).returncode != 0:
            fail(f"this command failed, with the messages above:\n{shlex.join(command)}")
    kernels = folder / "kernels" / f"libtf_deformable_kernels-{version()}.so"
    # Of those TensorFlows that have the headers for it.
    lowerings = [folder / f"libtf_deformable_xla_tensorflow_{minor}.so" for minor in minors]
    lowerings = [lowering for lowering in lowerings if lowering.exists()]
    handlers = [folder / f"libtf_deformable_xla-{version()}.so"] if lowerings else []
    return [kernels, *(folder / f"lib{adapter}.so" for adapter in adapters), *handlers, *lowerings]


class BuildLibrary(build_ext):
    """Puts the operator libraries, which are no Python extensions, into the package."""

    def run(self) -> None:
        """Builds them; for an editable install the package is the source tree's."""
        libraries = build_libraries(self.parallel)
        in_source = self.inplace or self.editable_mode
        package = Path(PACKAGE) if in_source else Path(self.build_lib, PACKAGE)
        package.mkdir(parents=True, exist_ok=True)
        for old in package.glob(LIBRARIES):  # a process that has the old one loaded keeps it
            old.unlink()
        for library in libraries:
            shutil.copy2(library, package / library.name)
        (package / PURE_PYTHON_MARKER).unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        """Returns the files in the folder that becomes the wheel."""
        return [str(path) for path in Path(self.build_lib, PACKAGE).glob(LIBRARIES)]

    def get_output_mapping(self) -> dict[str, str]:
        """Returns nothing: an editable install has the files in their place."""
        return {}


class BuildPackage(build_py):
    """Marks a package without the libraries as such."""

    def run(self) -> None:
        """Copies the package (not when editable: that is the source tree itself) and marks it."""
        package = Path(PACKAGE)
        if not self.editable_mode:
            package = Path(self.build_lib, PACKAGE)
            shutil.rmtree(package, ignore_errors=True)  # modules since removed, from an older build
        super().run()
        if PURE_PYTHON:
            for library in package.glob(LIBRARIES):
                library.unlink()
            (package / PURE_PYTHON_MARKER).write_text(
                "installed with TF_DEFORMABLE_PURE_PYTHON=1\n"
            )


class BuildWheel(bdist_wheel):
    """Tags a wheel with the platform only: the libraries do not know Python."""

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
    """An editable install, whose libraries lie in the source tree."""

    def run(self) -> None:
        """Installs, unless it is known from the start that this would fail."""
        if not PURE_PYTHON:
            find_compiler()
        super().run()


setup(
    license="Apache-2.0",
    install_requires=[tensorflow_requirement()],
    # Tells setuptools that there is something to build; CMake knows what.
    ext_modules=[] if PURE_PYTHON else [Extension(f"{PACKAGE}.libraries", sources=[])],
    cmdclass={
        "bdist_wheel": BuildWheel,
        "build_ext": BuildLibrary,
        "build_py": BuildPackage,
        "editable_wheel": BuildEditable,
    },
)
