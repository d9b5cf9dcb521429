"""The table of tiling constants in the README of the kernels names what is in the sources."""

from __future__ import annotations

import re
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "cc/kernels"
ROWS = [
    (names, file)
    for line in (KERNELS / "README.md").read_text().splitlines()
    for what, file in re.findall(r"^\| ([^|]*`k[A-Z][^|]*) \| `([^`|]+)` \|", line)
    if (names := re.findall(r"`(k[A-Z]\w*)`", what))
]


def test_every_constant_is_in_the_file_that_the_table_names():
    assert len(ROWS) > 20
    for names, file in ROWS:
        sources = [path for path in KERNELS.rglob(Path(file).name) if str(path).endswith(file)]
        assert sources, f"{file} is not there"
        text = "\n".join(source.read_text() for source in sources)
        for name in names:
            assert re.search(rf"\b{name}\b", text), f"{name} is not in {file}"


def test_every_bound_of_the_cpu_kernels_is_in_the_table():
    """Bounds of memory and of tiles; what a reader would change to see what happens."""
    table = {name for names, _ in ROWS for name in names}
    for path in KERNELS.rglob("cpu_tiles.h"):
        found = re.findall(r"^inline constexpr int64_t (k\w+) =", path.read_text(), re.M)
        assert len(found) > 5
        assert set(found) <= table, set(found) - table
