"""Finding, checking and loading the operator library."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf

import tf_deformable
from tf_deformable import NativeLibraryError, _native, config

INPUTS = tf.ones([1, 4, 4, 2])
FILTERS = tf.ones([3, 3, 2, 3])
OFFSETS = tf.zeros([1, 4, 4, 18])


@pytest.fixture
def nothing_loaded(monkeypatch):
    """As in a process that has not imported the package, and knows none of its operators."""
    monkeypatch.setattr(_native, "_loaded", None)
    monkeypatch.setattr(_native, "_registered_operators", lambda: None)


@pytest.fixture
def another_library(monkeypatch, tmp_path, nothing_loaded):
    """Returns a function that puts a changed copy of the library in its place."""

    def put(change):
        ours = Path(tf_deformable.get_library_path())
        library = tmp_path / "tf_deformable" / ours.name
        library.parent.mkdir()
        library.write_bytes(change(ours.read_bytes()))
        shutil.copy(ours.with_name(_native.KERNELS), library.parent)
        monkeypatch.setattr(_native, "_FOLDER", library.parent)
        return library

    return put


@pytest.fixture
def no_library(monkeypatch, tmp_path, nothing_loaded):
    monkeypatch.setattr(_native, "_FOLDER", tmp_path / "tf_deformable")


def built_for_tensorflow(version):
    """Returns a change of a library's bytes, of the version of TensorFlow that it names."""
    ours, other = tf.version.VERSION.encode(), version.encode()

    def change(content):
        changed = content.replace(b'"tensorflow": "' + ours, b'"tensorflow": "' + other)
        assert changed != content
        return changed

    return change


def assert_names_the_ways_out(message):
    assert f"{sys.executable} -m pip install --no-build-isolation --no-deps" in message
    assert 'tf_deformable.config.set_backend("reference")' in message


def assert_reference_works():
    with config.use_backend("reference"):
        output = tf_deformable.deformable_conv2d(INPUTS, FILTERS, OFFSETS)
    tf.debugging.assert_near(output, tf.nn.conv2d(INPUTS, FILTERS, 1, "SAME"))


# --- The library of this package -----------------------------------------------------------------


def test_library_is_available_and_was_built_for_this_tensorflow():
    minor = ".".join(tf.version.VERSION.split(".")[:2])
    library = Path(tf_deformable.get_library_path())
    assert library.name == f"libtf_deformable_tensorflow_{minor}.so"
    assert library.with_name(f"libtf_deformable_kernels-{tf_deformable.__version__}.so").exists()
    assert _native.built_for().split(".")[:2] == tf.version.VERSION.split(".")[:2]
    assert _native.is_available()
    assert not _native.is_pure_python()


def test_load_returns_the_operators():
    assert callable(_native.load().tf_deformable_roi_pool)


def test_load_loads_once_for_all_threads(monkeypatch, nothing_loaded):
    calls = []
    load_op_library = tf.load_op_library
    monkeypatch.setattr(tf, "load_op_library", lambda p: calls.append(p) or load_op_library(p))
    with ThreadPoolExecutor(8) as pool:
        modules = list(pool.map(lambda _: _native.load(), range(8)))
    assert all(module is modules[0] for module in modules)
    assert calls == [tf_deformable.get_library_path()]


# --- Operators that TensorFlow knows already -----------------------------------------------------

# A process as those that serve models: it loads a file, a copy of the library or a link to it.
_SHIPPED = """
import os, shutil, sys, tempfile
import numpy as np
import tensorflow as tf

kind, order, library, exported = sys.argv[1:]
folder = tempfile.mkdtemp()
shipped = os.path.join(folder, "shipped.so")
kernels = [n for n in os.listdir(os.path.dirname(library)) if "kernels-" in n]
for source, target in [(library, "shipped.so")] + [
    (os.path.join(os.path.dirname(library), name), name) for name in kernels
]:
    (shutil.copy if kind == "copy" else os.symlink)(source, os.path.join(folder, target))
if order == "shipped first":
    tf.load_op_library(shipped)
import tf_deformable
if order == "package first":
    tf.load_op_library(shipped)

inputs = tf.ones([1, 5, 5, 1])
boxes = tf.constant([[0.0, 0, 4, 4]])
with tf.GradientTape() as tape:
    tape.watch(inputs)
    layer = tf_deformable.DeformableConv2D(2, 3)
    pooled = tf_deformable.deformable_roi_pool(layer(inputs), boxes, [0], output_size=2)
assert tape.gradient(pooled, inputs).shape == inputs.shape

request = np.load(exported + "/request.npz")
model = tf.saved_model.load(exported + "/model")
scores = model.serve(request["images"], request["boxes"])["scores"]
np.testing.assert_allclose(scores, request["scores"], rtol=1e-5, atol=1e-5)
print("served")
"""


@pytest.mark.parametrize("order", ["shipped first", "package first"])
@pytest.mark.parametrize("kind", ["copy", "link"])
def test_a_shipped_library_beside_the_package(kind, order):
    exported = Path(__file__).parent / "serving" / "exported_by_0_1"
    arguments = [kind, order, tf_deformable.get_library_path(), str(exported)]
    run = subprocess.run(
        [sys.executable, "-c", _SHIPPED, *arguments], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "served\n"


# --- A library for another TensorFlow ------------------------------------------------------------


def test_library_for_another_minor_version_names_both_and_the_ways_out(another_library):
    other = re.sub(r"\d+\.\d+", "1.23", tf.version.VERSION, count=1)
    library = another_library(built_for_tensorflow(other))
    assert _native.built_for() == other
    assert not _native.is_available()
    with pytest.raises(NativeLibraryError) as error:
        _native.load()
    message = str(error.value)
    assert f"{library} was built for TensorFlow {other}" in message
    assert f"TensorFlow {tf.version.VERSION} is running" in message
    assert_names_the_ways_out(message)


def test_operator_refuses_a_library_for_another_tensorflow_and_the_reference_works(
    another_library,
):
    another_library(built_for_tensorflow("1.23.0"))
    with pytest.raises(NativeLibraryError, match=r"TensorFlow 1\.23\.0"):
        tf_deformable.deformable_conv2d(INPUTS, FILTERS, OFFSETS)
    assert_reference_works()


def test_library_for_another_patch_version_is_available(another_library):
    major, minor = tf.version.VERSION.split(".")[:2]
    another_library(built_for_tensorflow(f"{major}.{minor}.99"))
    assert _native.is_available()


def test_library_with_another_cxx_abi(another_library):
    abi = int(tf.sysconfig.CXX11_ABI_FLAG)
    ours, other = (f'"cxx11_abi": {value}'.encode() for value in (abi, 1 - abi))
    another_library(lambda content: content.replace(ours, other))
    assert not _native.is_available()
    with pytest.raises(NativeLibraryError, match=f"_GLIBCXX_USE_CXX11_ABI={1 - abi}") as error:
        _native.load()
    assert_names_the_ways_out(str(error.value))


def test_library_that_does_not_say_what_it_was_built_for(another_library):
    another_library(lambda content: content.replace(b"@TFD_BUILD_INFO@", b"@" * 16))
    assert not _native.is_available()
    with pytest.raises(NativeLibraryError, match="does not say which TensorFlow it was built for"):
        _native.built_for()


def test_library_that_does_not_load(another_library):
    tag = b"@TFD_BUILD_INFO@"
    another_library(lambda content: b"not a library" + content[content.index(tag) :])
    with pytest.raises(NativeLibraryError, match="does not load into TensorFlow") as error:
        _native.load()
    assert isinstance(error.value.__cause__, (tf.errors.OpError, OSError))
    assert_names_the_ways_out(str(error.value))


def test_lowering_that_does_not_load(monkeypatch, tmp_path, nothing_loaded):
    """What is there and does not load is an error, not something to do without."""
    minor = ".".join(tf.version.VERSION.split(".")[:2])
    library = tmp_path / f"libtf_deformable_xla_tensorflow_{minor}.so"
    library.write_text("not a library")
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    monkeypatch.setattr(_native, "_registered_operators", lambda: object())
    with pytest.raises(NativeLibraryError, match=f"{library} does not load into") as error:
        _native.load()
    assert_names_the_ways_out(str(error.value))
    assert _native._loaded is None


# --- No library ----------------------------------------------------------------------------------


def test_missing_library_names_the_path_the_version_and_the_ways_out(no_library):
    assert not _native.is_available()
    with pytest.raises(NativeLibraryError) as error:
        _native.load()
    message = str(error.value)
    assert f"no operator library for TensorFlow {tf.version.VERSION} at " in message
    assert str(_native._FOLDER) in message
    assert_names_the_ways_out(message)


def test_library_for_other_versions_alone_names_them(monkeypatch, tmp_path, nothing_loaded):
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    for version in ("2.9", "2.10", "1.23"):
        (tmp_path / f"libtf_deformable_tensorflow_{version}.so").touch()
    with pytest.raises(
        NativeLibraryError, match=r"; there is one for 1\.23, 2\.9, 2\.10\."
    ) as error:
        _native.load()
    assert_names_the_ways_out(str(error.value))


def test_missing_kernels_are_named(monkeypatch, tmp_path, nothing_loaded):
    monkeypatch.setattr(_native, "_FOLDER", Path(shutil.copy(
        tf_deformable.get_library_path(), tmp_path
    )).parent)  # fmt: skip
    with pytest.raises(NativeLibraryError, match=r"kernels-.*\.so, is missing beside libtf_"):
        _native.load()


def test_missing_library_has_no_path(no_library):
    with pytest.raises(NativeLibraryError, match="there is no operator library for TensorFlow"):
        tf_deformable.get_library_path()


def test_missing_library_is_an_error_and_not_a_silent_fallback(no_library):
    with pytest.raises(NativeLibraryError):
        tf_deformable.deformable_conv2d(INPUTS, FILTERS, OFFSETS)
    assert_reference_works()


def test_missing_library_of_a_pure_python_install_says_so(no_library, monkeypatch, tmp_path):
    (tmp_path / "PURE_PYTHON").touch()
    monkeypatch.setattr(_native, "_PURE_PYTHON_MARKER", tmp_path / "PURE_PYTHON")
    with pytest.raises(NativeLibraryError, match="installed with TF_DEFORMABLE_PURE_PYTHON=1"):
        _native.load()
    tf_deformable.deformable_conv2d(INPUTS, FILTERS, OFFSETS)  # by the reference, its default


def test_rebuild_command_names_the_source_tree_if_there_is_one(no_library, tmp_path):
    with pytest.raises(NativeLibraryError, match=r"--force-reinstall \. \(in the source tree"):
        _native.load()
    (tmp_path / "setup.py").touch()
    with pytest.raises(NativeLibraryError, match=re.escape(f"--no-deps -e {tmp_path}\n")):
        _native.load()


def test_the_library_says_what_it_has_of_cuda_and_of_xla():
    """And has it: kernels are registered on a machine without a GPU too."""
    from tensorflow.python.framework import kernels

    info = config.build_info()
    assert info["tensorflow"] == _native.built_for()
    _native.load()
    for op in ("Conv2D", "Conv2DGrad", "RoiPool", "RoiPoolGrad", "DeformableConv2D"):
        registered = kernels.get_registered_kernels_for_op(f"TFDeformable>{op}").kernel
        devices = {kernel.device_type for kernel in registered}
        expected = {"CPU", "GPU"} if info["cuda"] else {"CPU"}
        if info["xla"]:
            expected |= {f"XLA_{device}_JIT" for device in expected}
        assert devices == expected, op
    for op in ("Conv2DBranch", "Conv2DBranchGrad"):  # on a GPU it is TensorFlow's convolution
        registered = kernels.get_registered_kernels_for_op(f"TFDeformable>{op}").kernel
        expected = {"CPU", "XLA_CPU_JIT"} if info["xla"] else {"CPU"}
        assert {kernel.device_type for kernel in registered} == expected, op
    assert info["xla"] is _native.supports_xla()
    assert bool(info["cuda_architectures"]) == bool(info["cuda"])
