"""What the experiments share: runs that are kept, schedules, tables of means and spreads."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
Network = TypeVar("Network")

BEGIN, END = "<!-- {}: written by the experiment -->", "<!-- {}: end -->"


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line of an experiment."""

    quick: bool  # a smoke test
    seeds: tuple[int, ...]
    report: bool  # run nothing, report what is there
    output: Path  # runs, weights
    docs: Path  # tables, plots


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much data and training a run takes."""

    scenes: int
    test_scenes: int
    epochs: int
    max_scans: int | None = None


def options(name: str, description: str, seeds: int) -> Options:
    """Reads the command line.

    Args:
        name: of the experiment; its runs are kept in a folder of this name.
        description: what the experiment does.
        seeds: number of seeds unless told otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny data, one epoch: a smoke test")
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="of the runs that are kept alone")
    parser.add_argument("--output", type=Path, help="where runs are kept (build/experiments/...)")
    parser.add_argument("--docs", type=Path, help="where tables and plots are written (docs)")
    arguments = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # It warns of as many functions traced as networks built.
    build = ROOT / "build" / "experiments"
    kept = build / f"{name}-quick" if arguments.quick else build / name
    docs = build / "docs-quick" if arguments.quick else ROOT / "docs"
    return Options(
        quick=arguments.quick,
        seeds=tuple(range(arguments.first_seed, arguments.first_seed + arguments.seeds)),
        report=arguments.report,
        output=arguments.output or kept,
        docs=arguments.docs or docs,
    )


def kept(path: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what a run returned: it is computed once, and read from its JSON file afterwards."""
    if path.exists():
        return json.loads(path.read_text())
    result = run()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(path)
    return result


def of_networks(
    chosen: Options,
    networks: Iterable[Network],
    path: Callable[[Network, int], Path],
    run: Callable[[Network, int], dict[str, Any]],
) -> dict[Network, dict[int, dict[str, Any]]]:
    """Returns what runs returned, by network and seed, with `--report` of those kept.

    Args:
        chosen: the command line.
        networks: what is compared; one without runs is not in the result.
        path: of a network and a seed, the file that its run keeps.
        run: of a network and a seed, runs it, or reads the file (`kept`).
    """
    results = {
        network: {
            seed: run(network, seed)
            for seed in chosen.seeds
            if not chosen.report or path(network, seed).exists()
        }
        for network in networks
    }
    return {network: runs for network, runs in results.items() if runs}


def optimizer(steps: int, rate: float) -> tf.keras.optimizers.Optimizer:
    """Adam, warmed up (at once, the full rate would throw offsets far away) and cooled down."""
    warmup = max(steps // 5, 1)
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - warmup, 1), warmup_target=rate, warmup_steps=warmup
    )
    return tf.keras.optimizers.Adam(schedule)


def mean_and_spread(values: Iterable[float], digits: int = 1) -> str:
    """Returns the mean and the standard deviation of the seeds, `12.3 ± 0.4`."""
    numbers = np.array(list(values))
    mean = f"{numbers.mean():.{digits}f}"
    return mean if len(numbers) < 2 else f"{mean} ± {numbers.std(ddof=1):.{digits}f}"


def paired(values: dict[int, float], baseline: dict[int, float], digits: int = 1) -> str:
    """Returns the mean difference of runs of the same seeds, with its standard error."""
    differences = np.array([values[seed] - baseline[seed] for seed in values if seed in baseline])
    if not len(differences):
        return ""
    mean = f"{differences.mean():+.{digits}f}"
    if len(differences) < 2:
        return mean
    return f"{mean} ± {differences.std(ddof=1) / np.sqrt(len(differences)):.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(rows: list[tuple[str, list[float], str]], label: str, path: Path) -> None:
    """Draws networks below each other: a point per seed, a bar for their mean.

    Args:
        rows: title, values of the seeds, and color of each network.
        label: what the values are.
        path: file to write.
    """
    figure = Figure(figsize=(7.5, 0.9 + 0.3 * len(rows)), dpi=110)
    axis = figure.subplots()
    for row, (_, values, color) in enumerate(rows):
        axis.plot(values, [row] * len(values), "o", color=color, alpha=0.5, ms=6, mew=0)
        axis.plot([np.mean(values)], [row], "|", color=color, ms=14, mew=2.5)
    axis.set_yticks(range(len(rows)), [title for title, *_ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(f"{label}; a point per seed, a bar for the mean")
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.1)


def write_section(page: Path, name: str, text: str) -> None:
    """Puts text between the marks of this name on a Markdown page; the rest of it is by hand."""
    begin, end = BEGIN.format(name), END.format(name)
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    page.parent.mkdir(parents=True, exist_ok=True)
    before = page.read_text() if page.exists() else ""
    if begin in before:
        head, rest = before.split(begin, 1)
        after = head + section + rest.split(end, 1)[1]
    else:
        after = before + ("\n" if before else "") + section + "\n"
    page.write_text(after)
    print(f"\n{text.strip()}\n\nWritten to {page}")
