"""Files of weights: what is read from them, and what is said of files that are broken."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_deformable import convert

GOLDEN = Path(__file__).parents[1] / "golden"
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA


# --- MXNet ---


def _mxnet_array(
    array: np.ndarray | None, version: int | None, dtype: int, **changes: Any
) -> bytes:
    """An array as each version of MXNet writes it; None is an empty one."""
    shape = () if array is None else array.shape
    rank = changes.get("rank", -1 if array is None and version == V3 else len(shape))
    head = b"" if version is None else struct.pack("<I", version)
    if version in (V2, V3):
        head += struct.pack("<i", changes.get("storage", 0))
    head += struct.pack("<i", rank)
    head += b"".join(struct.pack("<I" if version is None else "<q", size) for size in shape)
    if array is None:
        return head
    device = struct.pack("<ii", 2, 5)  # a GPU: where it was does not matter
    return head + device + struct.pack("<i", dtype) + array.tobytes()


def _mxnet_file(arrays: list[bytes], names: list[str]) -> bytes:
    content = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays)
    content += struct.pack("<Q", len(names))
    for name in names:
        content += struct.pack("<Q", len(name.encode())) + name.encode()
    return content


DTYPES = {
    **{0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint8, 4: np.int32, 5: np.int8},
    **{6: np.int64, 7: np.bool_, 8: np.int16, 12: tf.bfloat16.as_numpy_dtype},
}


@pytest.mark.parametrize("version", [None, V1, V2, V3], ids=["oldest", "V1", "V2", "V3"])
def test_mxnet_files_of_every_version(version: int | None, tmp_path: Path) -> None:
    given = {
        f"arg:{np.dtype(dtype).name}": (np.arange(6).reshape(2, 3).astype(dtype), number)
        for number, dtype in DTYPES.items()
    }
    arrays = [_mxnet_array(array, version, number) for array, number in given.values()]
    arrays += [_mxnet_array(None, version, 0), _mxnet_array(np.ones([1, 2, 3, 4]), version, 1)]
    path = tmp_path / "model-0000.params"
    path.write_bytes(_mxnet_file(arrays, [*given, "aux:nothing", "aux:größe"]))

    weights = convert.read_weights(path)

    assert list(weights) == [*given, "aux:nothing", "aux:größe"]
    for name, (array, _) in given.items():
        np.testing.assert_array_equal(weights[name], array)
        assert weights[name].dtype == array.dtype
    assert weights["aux:nothing"].size == 0
    np.testing.assert_array_equal(weights["aux:größe"], np.ones([1, 2, 3, 4]))


def test_mxnet_scalar_of_v3(tmp_path: Path) -> None:
    path = tmp_path / "a.params"
    path.write_bytes(_mxnet_file([_mxnet_array(np.float32(3.5).reshape(()), V3, 0)], ["arg:s"]))
    assert convert.read_weights(path)["arg:s"] == np.float32(3.5)


def test_mxnet_file_of_mxnet_itself() -> None:
    weights = convert.read_weights(GOLDEN / "mxnet_layers.params")
    assert weights["arg:res5a_branch2b_offset_weight"].shape == (72, 8, 3, 3)
    np.testing.assert_array_equal(
        weights["arg:half"], np.arange(6, dtype=np.float16).reshape(2, 3), strict=True
    )
    np.testing.assert_array_equal(
        weights["arg:rfcn_bbox_weight_test"], weights["arg:rfcn_bbox_weight"] * 2
    )


def test_mxnet_file_that_ends_anywhere(tmp_path: Path) -> None:
    whole = _mxnet_file(
        [_mxnet_array(np.ones([2, 2], np.float32), V2, 0), _mxnet_array(np.ones([3]), V1, 1)],
        ["arg:a", "arg:b"],
    )
    path = tmp_path / "a.params"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="a.params is no MXNet parameter file: it "):
            convert.read_weights(path)
    path.write_bytes(whole)
    assert set(convert.read_weights(path)) == {"arg:a", "arg:b"}


ONE = np.ones([2], np.float32)
BAD_MXNET = {
    "another file": (b"PK\x03\x04" + bytes(100), "does not begin with 0x112"),
    "sparse": (
        _mxnet_file([_mxnet_array(ONE, V2, 0, storage=1)], ["a"]),
        "holds a sparse array (storage 1)",
    ),
    "rank": (_mxnet_file([_mxnet_array(ONE, V2, 0, rank=-3)], ["a"]), "an array has rank -3"),
    "dtype": (_mxnet_file([_mxnet_array(ONE, V2, 99)], ["a"]), "unknown dtype 99"),
    "names": (_mxnet_file([_mxnet_array(ONE, V2, 0)], []), "it has 1 arrays and 0 names"),
    "rest": (_mxnet_file([], []) + b"abc", "3 bytes follow after its end"),
    "one name of two arrays": (
        _mxnet_file([_mxnet_array(np.zeros(2, np.float32), V2, 0)] * 3, ["arg:a", "b", "arg:a"]),
        "it has more than one array of the name 'arg:a'",
    ),
    "count": (struct.pack("<QQQ", 0x112, 0, 2**62), "it is truncated: 0 bytes follow for"),
    "size": (
        _mxnet_file(
            [_mxnet_array(ONE, V2, 0).replace(struct.pack("<q", 2), b"\xff" * 7 + b"\x7f")], []
        ),
        "it is truncated: ",
    ),
    "negative size": (
        _mxnet_file([_mxnet_array(ONE, V2, 0).replace(struct.pack("<q", 2), b"\xff" * 8)], ["a"]),
        "an array has shape [-1]",
    ),
    "name": (_mxnet_file([_mxnet_array(ONE, V2, 0)], ["ab"])[:-2] + b"\xff\xfe", "is not UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), BAD_MXNET.values(), ids=BAD_MXNET)
def test_bad_mxnet_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.params"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="read_weights: .*a.params is no MXNet") as raised:
        convert.read_weights(path)
    assert message in str(raised.value)


# --- safetensors ---


def test_safetensors_of_pytorch() -> None:
    pytest.importorskip("safetensors")
    weights = convert.read_weights(GOLDEN / "torch_layer.safetensors")
    recorded = np.load(GOLDEN / "torch_layers.npz")
    for name in ("weight", "bias", "conv_offset.weight", "conv_offset.bias"):
        np.testing.assert_array_equal(
            weights[f"head.dcn.{name}"], recorded[f"mmcv_v2/state/head.dcn.{name}"], strict=True
        )
    # NumPy has no bfloat16 of its own, and PyTorch writes it.
    assert weights["head.fc.weight"].dtype == tf.bfloat16.as_numpy_dtype
    np.testing.assert_array_equal(weights["head.fc.weight"].astype(np.float32), np.ones([2, 3]))

    layer = convert.layer_from_torch(
        GOLDEN / "torch_layer.safetensors",
        "head.dcn",
        strides=(2, 1),
        padding=(1, 2),
        dilation_rate=(2, 1),
    )
    inputs, outputs = (
        convert.nhwc_from_nchw(recorded[f"mmcv_v2/{part}"]) for part in ("inputs", "outputs")
    )
    np.testing.assert_allclose(layer(inputs), outputs, atol=2e-5, rtol=1e-5)


def test_bad_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    whole = (GOLDEN / "torch_layer.safetensors").read_bytes()
    path = tmp_path / "a.safetensors"
    for content in (b"", whole[:5], whole[:200], whole[:-1], whole + b"1", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.safetensors is no safetensors file, or not all"):
            convert.read_weights(path)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("F64", np.float64), ("F32", np.float32), ("F16", np.float16)),
        *(("I64", np.int64), ("I32", np.int32), ("I16", np.int16), ("I8", np.int8)),
        *(("U64", np.uint64), ("U32", np.uint32), ("U16", np.uint16), ("U8", np.uint8)),
        *(("BF16", tf.bfloat16.as_numpy_dtype), ("BOOL", np.bool_)),
    ],
)
def test_every_dtype_of_safetensors(
    name: str, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.array([[0, 1, 2], [3, 4, 200]]).astype(dtype)

    class Safetensors:
        """What the package gives of a file: bytes, and how to read them."""

        @staticmethod
        def deserialize(content: bytes) -> list[tuple[str, dict[str, Any]]]:
            return [("a", {"dtype": name, "shape": [2, 3], "data": content})]

    monkeypatch.setitem(sys.modules, "safetensors", Safetensors)
    path = tmp_path / "a.safetensors"
    path.write_bytes(array.tobytes())
    np.testing.assert_array_equal(convert.read_weights(path)["a"], array, strict=True)


# --- PyTorch ---


def test_checkpoints_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.half": torch.ones(2).bfloat16()}
    checkpoints = {
        "plain.pth": state,
        "mmdet.pt": {"meta": {"epoch": 12}, "state_dict": state, "optimizer": {"lr": 0.1}},
        "detectron2.pth": {"model": state, "iteration": 5},
    }
    for name, checkpoint in checkpoints.items():
        torch.save(checkpoint, tmp_path / name)
        weights = convert.read_weights(tmp_path / name)
        np.testing.assert_array_equal(weights["conv.weight"], np.arange(6.0).reshape(2, 3))
        np.testing.assert_array_equal(weights["conv.half"], np.ones(2, np.float32), strict=True)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    ran = tmp_path / "ran"

    class Malicious:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    torch.save({"weight": torch.ones(2), "more": Malicious()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="is no checkpoint of PyTorch that holds tensors alone"):
        convert.read_weights(tmp_path / "a.pth")
    assert not ran.exists()


def test_truncated_checkpoints(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.ones(500)}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.pth").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="b.pth is no checkpoint of PyTorch .* or not all"):
            convert.read_weights(tmp_path / "b.pth")


# --- All of them ---


@pytest.mark.parametrize(("suffix", "extra"), [("pth", "torch"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named_with_its_extra(
    suffix: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"something")
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'tf_deformable[{extra}]'")):
        convert.read_weights(path)


def test_an_old_pytorch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldTorch:
        __version__ = "2.5.1+cpu"

    (tmp_path / "a.pt").write_bytes(b"something")
    monkeypatch.setitem(sys.modules, "torch", OldTorch)
    with pytest.raises(ImportError, match=r"needs PyTorch 2.6 or later, .*, got 2.5.1\+cpu"):
        convert.read_weights(tmp_path / "a.pt")


def test_the_oldest_pytorch_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        __version__ = "2.6.0+cpu"

        @staticmethod
        def load(path: Path, map_location: str, weights_only: bool) -> dict[str, np.ndarray]:
            assert weights_only
            return {"weight": np.ones([2])}

    (tmp_path / "a.PT").write_bytes(b"something")  # The case of a suffix does not matter.
    monkeypatch.setitem(sys.modules, "torch", Torch)
    assert set(convert.read_weights(tmp_path / "a.PT")) == {"weight"}


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        convert.read_weights(tmp_path / "absent.params")
    with pytest.raises(
        ValueError, match="must end in .pth, .pt, .safetensors, .params, got 'a.h5'"
    ):
        convert.read_weights(tmp_path / "a.h5")
    with pytest.raises(
        TypeError, match="must be a path or a mapping from names to arrays, got int"
    ):
        convert.read_weights(3)


def test_mappings() -> None:
    state = {"a": np.ones([2]), "b": tf.ones([3])}
    assert set(convert.read_weights(state)) == {"a", "b"}
    assert set(convert.read_weights({"epoch": 3, "state_dict": state})) == {"a", "b"}
    for key in ("model", "model_state_dict"):
        assert set(convert.read_weights({"epoch": 3, key: state})) == {"a", "b"}
    # An array of such a name is one of the weights.
    assert set(convert.read_weights({**state, "model": np.ones([2])})) == {"a", "b", "model"}
    assert set(convert.read_weights({"ema": state, "state_dict": {}}, key="ema")) == {"a", "b"}
    with pytest.raises(ValueError, match=r"no weights under the key 'x'; its keys are 'ema'"):
        convert.read_weights({"ema": state}, key="x")
    with pytest.raises(ValueError, match="got dict for 'ema'; if that .*, say key='ema'"):
        convert.read_weights({"ema": state})
    with pytest.raises(ValueError, match="arrays of numbers by name, got str for 'a'"):
        convert.read_weights({"a": "text"})
    with pytest.raises(ValueError, match="arrays of numbers by name, got list for 'a'"):
        convert.read_weights({"a": [[1.0], [2.0, 3.0]]})
    with pytest.raises(ValueError, match="arrays of numbers by name, got ndarray for 1"):
        convert.read_weights({1: np.ones([2])})
