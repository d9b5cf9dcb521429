"""Builds the CUDA kernels and calls them, without TensorFlow.

On a machine with a GPU they are compiled by nvcc and get the device's memory, or tensors of
PyTorch; on any other one they are compiled for the emulation (tests/native/cuda_emulation.h) and
get NumPy's arrays.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
API = ROOT / "tests" / "gpu" / "kernels_c_api.cc"
MICROBENCHMARKS = ROOT / "tests" / "gpu" / "microbenchmarks.cu.cc"
HOST_SOURCES = (
    "base/shape",
    "base/validation",
    "deformable_attention/geometry",
    "deformable_conv2d/geometry",
    "roi_pool/geometry",
)

# Rows and columns of those that the forward pass has on the tensor cores.
FORWARD_TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256))
WARPGROUP_FORWARD_TILES = ((128, 64), (128, 128), (128, 256))  # on Hopper

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}


def _compile(commands: list[list[str]], link: list[str], jobs: int | None) -> None:
    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")

    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run, commands))
    run(link)


def _sources() -> list[pathlib.Path]:
    folder = ROOT / "cc" / "kernels"
    kernels = sorted(folder.rglob("*.cu.cc"))
    return [*kernels, API, *(folder / f"{name}.cc" for name in HOST_SOURCES)]


def _objects(sources: list[pathlib.Path], folder: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """The object file of each source; names are those of their paths, which differ."""
    return {
        folder / f"{str(source.relative_to(ROOT)).replace('/', '.')}.o": source
        for source in sources
    }


def kernel_names(library: pathlib.Path) -> set[str]:
    """The symbols of all kernels of a library.

    A kernel is a template of a namespace `cuda`. What calls it knows it by its symbol, be it to
    register the kernel with CUDA or, in the emulation, for the linker.
    """
    namespace = rb"_ZN13tf_deformable(?:17deformable_conv2d|8roi_pool|20deformable_attention)?4cuda"
    pattern = rb"(?<=\0)" + namespace + rb"\d+[A-Za-z]*KernelI\w+(?=\0)"
    names = {name.decode() for name in re.findall(pattern, library.read_bytes())}
    if not names:
        raise RuntimeError(f"found no kernel in {library}")
    return names


def demangle(names: set[str]) -> list[str]:
    """Symbols as a person writes them, where there is a program for that."""
    if shutil.which("c++filt") is None:
        return sorted(names)
    command = ["c++filt", *sorted(names)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return output.replace("tf_deformable::", "").splitlines()


def build_emulation(
    folder: pathlib.Path, flags: tuple[str, ...] = (), jobs: int | None = None
) -> pathlib.Path:
    """Compiles the kernels for this machine's processor; returns the library."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    options = ["-x", "c++", "-std=c++17", "-O1", "-march=native", "-fPIC", "-Wno-unknown-pragmas"]
    options += flags
    options += [f"-I{ROOT / 'cc'}", f"-I{ROOT / 'tests' / 'native'}"]
    options += ["-DTF_DEFORMABLE_CUDA_EMULATION", "-DTF_DEFORMABLE_OBSERVE_LAUNCHES"]
    objects = _objects(_sources(), folder)
    library = folder / "libkernels_emulated.so"
    _compile(
        [[*compiler, *options, "-c", str(s), "-o", str(o)] for o, s in objects.items()],
        [*compiler, "-shared", *flags, *map(str, objects), "-o", str(library)],
        jobs,
    )
    return library


def _code(architecture: str) -> list[str]:
    """Options of nvcc, which takes some architectures in its short form only, some in the long."""
    if not architecture.startswith("sm_"):
        return [f"-arch={architecture}"]
    number = architecture.removeprefix("sm_")
    return [f"-gencode=arch=compute_{number},code=sm_{number}"]


def build_cuda(folder: pathlib.Path, architecture: str, jobs: int | None = None) -> pathlib.Path:
    """Compiles the kernels with nvcc, e.g. for the architecture "sm_90a"; returns the library."""
    nvcc = os.environ.get("NVCC", "nvcc")
    options = ["-x", "cu", "-std=c++17", "-O3", *_code(architecture), "-lineinfo"]
    options += ["-Xcompiler=-fPIC", f"-I{ROOT / 'cc'}", "-DTF_DEFORMABLE_OBSERVE_LAUNCHES"]
    objects = _objects([*_sources(), MICROBENCHMARKS], folder)
    library = folder / "libkernels_cuda.so"
    _compile(
        [[nvcc, *options, "-c", str(s), "-o", str(o)] for o, s in objects.items()],
        [nvcc, "-shared", *_code(architecture), "-cudart=static", *map(str, objects)]
        + ["-o", str(library)],
        jobs,
    )
    return library


class HostMemory:
    """Tensors are arrays of NumPy; bfloat16 is ml_dtypes'."""

    stream = None

    def put(self, array: np.ndarray, dtype: str, misalign: bool = False) -> np.ndarray:
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
        array = np.ascontiguousarray(array, kind)
        # Its own memory, aligned as a GPU's, or by one element off.
        memory = np.empty(array.nbytes + 512, np.uint8)
        skip = -memory.ctypes.data % 256 + (kind.itemsize if misalign else 0)
        copy = memory[skip : skip + array.nbytes].view(kind).reshape(array.shape)
        copy[...] = array
        return copy

    def get(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.astype(np.float64)

    def address(self, tensor: np.ndarray) -> int:
        return tensor.ctypes.data

    def workspace(self, size: int) -> np.ndarray:
        return self.put(np.full(size, 0xFF, np.uint8), "uint8")


class GuardedMemory(HostMemory):
    """The same, each array between two pages without access: to touch these ends the process.

    Arrays end where the second one begins, but for what it takes to align them.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3]
        self._libc.mmap.argtypes += [ctypes.c_long]
        for function in (self._libc.mprotect, self._libc.munmap):
            function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._libc.mprotect.argtypes += [ctypes.c_int]

    def put(self, array: np.ndarray, dtype: str, misalign: bool = False) -> np.ndarray:
        array = super().put(array, dtype)
        page = mmap.PAGESIZE
        size = -(-array.nbytes // 16) * 16 + (16 if misalign else 0)
        inner = -(-max(size, 1) // page) * page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        access = mmap.PROT_READ | mmap.PROT_WRITE
        base = self._libc.mmap(None, inner + 2 * page, access, flags, -1, 0)
        for at in (base, base + page + inner):
            if self._libc.mprotect(at, page, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        skip = array.itemsize if misalign else 0
        memory = (ctypes.c_char * array.nbytes).from_address(base + page + inner - size + skip)
        weakref.finalize(memory, self._libc.munmap, base, inner + 2 * page)
        guarded = np.frombuffer(memory, np.uint8).view(array.dtype).reshape(array.shape)
        guarded[...] = array
        return guarded


class _DeviceArray:
    """Memory of the device that holds an array; freed with this object."""

    def __init__(self, library: ctypes.CDLL, array: np.ndarray, skip: int = 0) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._library, self._base = library, library.tf_deformable_allocate(array.nbytes + skip)
        self.address = self._base + skip
        library.tf_deformable_copy(self.address, array.ctypes.data, array.nbytes)

    def numpy(self) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        self._library.tf_deformable_copy(array.ctypes.data, self.address, array.nbytes)
        return array

    def __del__(self) -> None:
        self._library.tf_deformable_free(self._base)


class DeviceMemory(HostMemory):
    """Tensors are arrays in the memory of the GPU; nothing but the compiled library is needed."""

    def __init__(self, library: pathlib.Path) -> None:
        self._library = ctypes.CDLL(str(library))
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        for name, result, arguments in [
            ("allocate", pointer, [size]),
            ("copy", None, [pointer, pointer, size]),
            ("free", None, [pointer]),
        ]:
            function = getattr(self._library, f"tf_deformable_{name}")
            function.restype, function.argtypes = result, arguments

    def put(self, array: np.ndarray, dtype: str, misalign: bool = False) -> Any:
        on_host = super().put(array, dtype)
        return _DeviceArray(self._library, on_host, on_host.itemsize if misalign else 0)

    def get(self, tensor: Any) -> np.ndarray:
        return super().get(tensor.numpy())

    def address(self, tensor: Any) -> int:
        return tensor.address


class TorchMemory:
    """Tensors of PyTorch."""

    def __init__(self, device: str = "cuda") -> None:
        import torch

        self.torch, self.device = torch, device

    @property
    def stream(self) -> int | None:
        return self.torch.cuda.current_stream().cuda_stream if self.device == "cuda" else None

    def address(self, tensor: Any) -> int:
        return tensor.data_ptr()

    def workspace(self, size: int) -> Any:
        return self.torch.empty([size], dtype=self.torch.uint8, device=self.device)


# As Status::Code in cc/kernels/base/status.h.
CODES = ("ok", "invalid argument", "too large", "out of memory", "device failed")


class KernelError(RuntimeError):
    """What a plan returns that does not run; `code` is one of CODES."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


# What is computed, by the argument `gradient`.
GRADIENTS: dict[bool | str, int] = {False: 0, True: 1, "inputs": 2, "filters": 3}


def _options(
    tensor_float_32: bool = True,
    deterministic: bool = False,
    warpgroup_products: bool = True,
    multiprocessors: int = 0,
    columns_bytes: int = 0,
    forward_tile: tuple[int, int] = (0, 0),
) -> Any:
    """CudaOptions of cc/kernels/cuda/options.h, as the C functions take them."""
    numbers = (
        *(tensor_float_32, deterministic, warpgroup_products),
        *(multiprocessors, columns_bytes, *forward_tile),
    )
    return (ctypes.c_int * len(numbers))(*numbers)


class Kernels:
    """The compiled kernels, and the memory that they work on."""

    def __init__(self, library: pathlib.Path, memory: HostMemory | TorchMemory) -> None:
        self.memory = memory
        self._library = ctypes.CDLL(str(library))
        self._library.tf_deformable_conv2d.restype = ctypes.c_char_p
        self._library.tf_deformable_roi_pool.restype = ctypes.c_char_p
        self._library.tf_deformable_attention.restype = ctypes.c_char_p
        self._library.tf_deformable_convert_boxes.restype = ctypes.c_char_p
        self._library.tf_deformable_launched.restype = ctypes.c_char_p

    def convert_boxes(self, boxes: Any, converted: Any, size: int, source: str) -> None:
        """Converts as many numbers from the dtype `source`, float32 or float64, to the other."""
        address = self.memory.address
        error = self._library.tf_deformable_convert_boxes(
            TYPES[source],
            ctypes.c_void_p(address(boxes)),
            ctypes.c_int64(size),
            ctypes.c_void_p(address(converted)),
            ctypes.c_void_p(self.memory.stream),
        )
        self._raise(error)

    def _raise(self, error: bytes | None) -> None:
        if error is not None:
            code = CODES[self._library.tf_deformable_error_code()]
            raise KernelError(error.decode(), code)

    def launched(self) -> set[str]:
        """The symbols of the kernels that were launched since the library was loaded."""
        return set(self._library.tf_deformable_launched().decode().split())

    def _call(self, function: Any, *arguments: Any, tensors: list[Any] | None) -> int:
        address = self.memory.address
        pointers = [None if t is None else address(t) for t in tensors or []]
        array = (ctypes.c_void_p * len(pointers))(*pointers)
        size = ctypes.c_int64(-1)

        def call(workspace: Any) -> None:
            stream = ctypes.c_void_p(self.memory.stream)
            at = None if workspace is None else address(workspace)
            error = function(*arguments, array, ctypes.byref(size), ctypes.c_void_p(at), stream)
            self._raise(error)

        call(None)
        if tensors is not None:
            call(self.memory.workspace(max(size.value, 1)))
        return size.value

    def conv2d(
        self,
        tensors: list[Any] | None,
        dtype: str,
        *,
        wide_sampling: bool = False,
        gradient: bool | str,
        shapes: list[Any],
        strides: Any,
        dilations: Any,
        padding: Any,
        **options: Any,
    ) -> int:
        """Runs the operator, or its gradient, on tensors in the order of the C++ struct.

        A gradient of "inputs" is that of inputs, offsets and mask without that of the filters, and
        one of "filters" is the latter. With `wide_sampling`, offsets, mask and their gradients are
        float32 (float64 for float64). `options`: see `_options`. Without tensors nothing is run.
        Returns the size of the workspace in bytes.
        """
        sizes = [size for shape in shapes for size in shape]
        attributes = [*strides, *dilations, *(pad for pads in padding for pad in pads)]
        return self._call(
            self._library.tf_deformable_conv2d,
            TYPES[dtype],
            int(wide_sampling),
            GRADIENTS[gradient],
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_int64 * len(attributes))(*attributes),
            _options(**options),
            tensors=tensors,
        )

    def roi_pool(
        self,
        tensors: list[Any] | None,
        dtype: str,
        *,
        wide_sampling: bool = False,
        gradient: bool,
        shapes: list[Any],
        output_size: tuple[int, int],
        group_size: int,
        samples_per_bin: int,
        aligned: bool,
        spatial_scale: float,
        gamma: float,
        **options: Any,
    ) -> int:
        """Like `conv2d`; shapes are those of inputs, boxes and offsets."""
        inputs, boxes, offsets = shapes
        sizes = [*inputs, *boxes, *(offsets or [-1] * 5)]
        integers = [*output_size, group_size, samples_per_bin, int(aligned)]
        return self._call(
            self._library.tf_deformable_roi_pool,
            TYPES[dtype],
            int(wide_sampling),
            int(gradient),
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_int64 * len(integers))(*integers),
            (ctypes.c_float * 2)(spatial_scale, gamma),
            _options(**options),
            tensors=tensors,
        )

    def attention(
        self,
        tensors: list[Any] | None,
        dtype: str,
        *,
        wide_sampling: bool = False,
        gradient: bool,
        shapes: list[Any],
        levels: Any,
        num_points: Any,
        coordinates: str,
        **options: Any,
    ) -> int:
        """Like `conv2d`; shapes are those of value and attention_weights."""
        sizes = [size for shape in shapes for size in shape]
        level_sizes = [size for level in levels for size in level]
        points = None if num_points is None else (ctypes.c_int64 * len(num_points))(*num_points)
        return self._call(
            self._library.tf_deformable_attention,
            TYPES[dtype],
            int(wide_sampling),
            int(gradient),
            (ctypes.c_int64 * len(sizes))(*sizes),
            len(levels),
            (ctypes.c_int64 * len(level_sizes))(*level_sizes),
            points,
            int(coordinates == "normalized"),
            _options(**options),
            tensors=tensors,
        )
