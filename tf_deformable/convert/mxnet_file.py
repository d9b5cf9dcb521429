"""The parameter files of MXNet (`mx.nd.save`, `save_checkpoint`), read without it.

All integers are little-endian. A file is

    uint64 0x112, uint64 0, uint64 number of arrays, the arrays,
    uint64 number of names, and of each name uint64 length and its bytes,

and an array, by the version of MXNet that wrote it,

    V2, V3   uint32 magic, int32 storage (0: dense), int32 rank, int64 sizes
    V1       uint32 magic, int32 rank, int64 sizes
    oldest   uint32 rank, uint32 sizes

followed by int32 kind and int32 number of the device, int32 dtype, and the elements. An array of
V1, V2 or the oldest form with rank 0 (V3: rank -1) is empty, and ends after its rank.

Source: `NDArray::Save`, `NDArray::Load` and `NDArray::LegacyLoad` in `src/ndarray/ndarray.cc`, and
`mshadow/base.h` for the numbers of the dtypes, of Apache MXNet 1.9.1.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_FILE_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES: dict[int, Any] = {
    **{0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?"},
    **{8: "<i2", 9: "<u2", 10: "<u4", 11: "<u8", 12: tf.bfloat16.as_numpy_dtype},
}
_MAX_RANK = 32  # NumPy's; what is above is no rank, but a file that is broken


def parse_mxnet_params(content: bytes) -> dict[str, NDArray[Any]]:
    """Returns the arrays of a file by their names, as they stand there (`arg:...`, `aux:...`).

    Raises:
        ValueError: the content is something else, truncated, or an array is sparse, or has no name,
            or that of another.
    """
    reader = _Reader(content)
    if len(content) < 8 or reader.unpack("Q") != _FILE_MAGIC:
        raise ValueError(f"it does not begin with {_FILE_MAGIC:#x}")
    reader.unpack("Q")  # reserved
    arrays = [reader.array() for _ in range(reader.count())]
    names = [reader.bytes(reader.unpack("Q")) for _ in range(reader.count())]
    if reader.rest:
        raise ValueError(f"{reader.rest} bytes follow after its end")
    if len(names) != len(arrays):
        raise ValueError(f"it has {len(arrays)} arrays and {len(names)} names")
    try:
        decoded = [name.decode() for name in names]
    except UnicodeDecodeError as error:
        raise ValueError(f"a name is not UTF-8: {error}") from error
    if len(set(decoded)) != len(decoded):
        repeated = next(name for name in decoded if decoded.count(name) > 1)
        raise ValueError(f"it has more than one array of the name {repeated!r}")
    return dict(zip(decoded, arrays, strict=True))


class _Reader:
    """Reads a file from its start to its end."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self._position = 0

    @property
    def rest(self) -> int:
        return len(self._content) - self._position

    def bytes(self, size: int) -> bytes:
        if size > self.rest:
            raise ValueError(
                f"it is truncated: {size} bytes are missing or more at byte {self._position}, "
                f"where {self.rest} follow"
            )
        self._position += size
        return self._content[self._position - size : self._position].tobytes()

    def unpack(self, form: str) -> int:
        """Reads one integer."""
        (value,) = struct.unpack(f"<{form}", self.bytes(struct.calcsize(f"<{form}")))
        return int(value)

    def count(self) -> int:
        """Reads the number of things that follow, of which each takes some bytes."""
        count = self.unpack("Q")
        if count > self.rest:
            raise ValueError(f"it is truncated: {self.rest} bytes follow for {count} entries")
        return count

    def array(self) -> NDArray[Any]:
        magic = self.unpack("I")
        is_oldest = magic not in (_V1, _V2, _V3)
        if magic in (_V2, _V3):
            storage = self.unpack("i")
            if storage != 0:
                raise ValueError(f"it holds a sparse array (storage {storage})")
        rank = magic if is_oldest else self.unpack("i")
        is_empty = rank < 0 if magic == _V3 else rank == 0
        if is_empty:
            return np.zeros([0], np.float32)
        if not 0 <= rank <= _MAX_RANK:
            raise ValueError(f"an array has rank {rank}")
        shape = [self.unpack("I" if is_oldest else "q") for _ in range(rank)]
        self.unpack("q")  # the device
        number = self.unpack("i")
        if number not in _DTYPES:
            raise ValueError(f"an array has the unknown dtype {number}")
        dtype = np.dtype(_DTYPES[number])
        if min(shape, default=0) < 0:
            raise ValueError(f"an array has shape {shape}")
        return np.frombuffer(self.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
