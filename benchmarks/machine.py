"""What figures depend on beside the code that is measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # of the source tree


def describe() -> dict[str, Any]:
    """Returns processor, caches, memory and system."""
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    return {
        "cpu": _cpuinfo("model name") or platform.processor(),
        "family": " ".join(_cpuinfo(key) for key in ("vendor_id", "cpu family", "model")),
        "instruction_sets": instruction_sets(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": sorted(
            f"L{(cache / 'level').read_text().strip()} {(cache / 'size').read_text().strip()}"
            for cache in caches
            if (cache / "type").read_text().strip() != "Instruction"
        ),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def instruction_sets() -> list[str]:
    """Returns those of the processor that matter here."""
    interesting = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
    flags = set(_cpuinfo("flags").split())
    return [name for name in interesting if name in flags]


def load() -> float:
    """Returns how many cores are busy, on the average over two seconds."""
    seconds = 2
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / (seconds * os.sysconf("SC_CLK_TCK"))


def _busy_ticks() -> int:
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return user + nice + system + interrupts + soft_interrupts + stolen


def commit() -> str:
    """Returns the commit of the source tree, with "-dirty" if it was changed since."""
    command = ["git", "describe", "--always", "--dirty"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def _cpuinfo(key: str) -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""
