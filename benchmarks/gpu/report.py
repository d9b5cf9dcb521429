"""Puts the results of the GPU's benchmark into docs/benchmarks.md.

python benchmarks/gpu/report.py [build/gpu/results/gpu.json]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "gpu" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- gpu: begin -->\n", "<!-- gpu: end -->"

# Their titles, and how many products of the size of the forward pass they have.
MODES = {
    "forward": ("Forward", 1),
    "inputs gradient": ("Gradient of inputs, offsets and mask", 1),
    "filters gradient": ("Gradient of the filters", 1),
    "step": ("A training step", 3),
}

HEADER = (
    "case, dtype",
    "ms",
    "TFLOP/s",
    "torchvision ms (attention: grid_sample)",
    "times as fast",
    "conv2d ms",
    "times conv2d",
    "scratch memory MB (torchvision)",
)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _about(machine: dict[str, Any]) -> str:
    return (
        f"Measured on {machine['date']}, commit {machine['commit']}: {machine['gpu']}, "
        f"{machine['multiprocessors']} multiprocessors, {machine['memory'] / 2**30:.0f} GiB. "
        f"CUDA {machine['cuda']}, PyTorch {machine['torch']}, torchvision "
        f"{machine['torchvision']}, cuDNN {machine['cudnn']}.\n"
    )


def tables(results: dict[str, Any]) -> str:
    """Returns everything between the markers."""
    records = {
        (r["case"], r["dtype"], r["mode"], r["framework"]): r
        for r in results["records"]
        if "seconds" in r
    }
    operations = {case["name"]: case["operations"] for case in results["cases"]}
    parts = [_about(results["machine"])]
    for mode, (title, operations_of) in MODES.items():
        rows = []
        for case, dtype, of_mode, framework in records:
            if of_mode != mode or framework != "tf_deformable":
                continue

            def record(name: str, case: str = case, dtype: str = dtype) -> Any:
                return records.get((case, dtype, mode, name))  # noqa: B023

            def seconds(name: str, record: Any = record) -> float | None:
                found = record(name)
                return statistics.median(found["seconds"]) if found else None

            other = "grid_sample" if record("grid_sample") else "torchvision"
            mine, theirs, floor = map(seconds, ("tf_deformable", other, "conv2d"))
            assert mine is not None
            work = operations.get(case, 0) * operations_of
            memory = [record(name) for name in ("tf_deformable", other)]
            megabytes = [f"{r['scratch_bytes'] / 2**20:.0f}" if r else "" for r in memory]
            rows.append(
                [
                    f"{case}, {dtype}",
                    f"{mine * 1e3:.3f}",
                    f"{work / mine / 1e12:.0f}" if work else "",
                    f"{theirs * 1e3:.3f}" if theirs else "",
                    f"{theirs / mine:.1f}" if theirs else "",
                    f"{floor * 1e3:.3f}" if floor else "",
                    f"{mine / floor:.2f}" if floor else "",
                    f"{megabytes[0]} ({megabytes[1]})",
                ]
            )
        parts += [f"\n{title}:\n\n", _table(HEADER, rows)]
    failed = [r for r in results["records"] if "error" in r]
    for r in failed:
        name = ", ".join(r[key] for key in ("case", "dtype", "framework", "mode"))
        parts.append(f"\nNot measured: {name}: {r['error']}\n")
    return "".join(parts)


def main() -> None:
    """Replaces what is between the markers."""
    path = (
        Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "gpu" / "results" / "gpu.json"
    )
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has no markers {BEGIN.strip()} and {END}")
    PAGE.write_text(before + BEGIN + tables(json.loads(path.read_text())) + END + after)


if __name__ == "__main__":
    main()
