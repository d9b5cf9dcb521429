"""How far apart filters sample, by the size of the object they look at (the paper's Table 2).

    python experiments/effective_dilation.py [--quick] [--seeds 3]

It takes the segmentation networks with three deformable layers, and trains them if the segmentation
experiment has not. For the filters of each deformable layer it measures the effective dilation,
sorted by what they are centred on in the test scenes: the box of a small, medium or large digit, or
the background. Measurements are kept in build/experiments.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import segmentation
from data import Scenes, scenes_of
from matplotlib.figure import Figure
from runs import kept, mean_and_spread, options, table, write_section

from tf_deformable import analysis

NETWORKS = {
    "deformable3": "dilation 1 at rest",
    "atrous2-deformable3": "dilation 2 at rest",
}
# Small, medium and large: boxes of the size of squares with these sides, in pixels, at the limits.
SIZE_LIMITS = (14, 21)
DEPTH = 3  # deformable layers
VIEW = 30  # pixels of the image that the picture shows to each side of a unit


def main() -> None:
    """Measures what has not been measured, and writes the tables and the picture."""
    chosen = options("effective_dilation", "Effective dilation by object size.", seeds=3)
    budget = segmentation.QUICK if chosen.quick else segmentation.FULL
    trained = chosen.output.with_name("segmentation-quick" if chosen.quick else "segmentation")
    results = {
        name: [
            kept(
                chosen.output / f"{name}-{seed}.json",
                lambda name=name, seed=seed: measure(name, seed, budget, trained),
            )
            for seed in chosen.seeds
        ]
        for name in NETWORKS
    }
    name = "deformable3"
    model = load(name, chosen.seeds[0], budget, trained)
    _, test = scenes_of(chosen.seeds[0], budget)
    draw(model, test, chosen.docs / "levels.png")
    write_section(chosen.docs / "effective_dilation.md", "effective dilation", report(results))


def load(name: str, seed: int, budget: segmentation.Budget, trained: Path) -> Any:
    """Returns a network of the segmentation experiment, trained if it has not been."""
    segmentation.run(name, seed, budget, trained)
    model = segmentation.build(name)
    model.load_weights(segmentation.weights_of(trained / f"{name}-{seed}"))
    return model


def measure(name: str, seed: int, budget: segmentation.Budget, trained: Path) -> dict[str, Any]:
    """Returns effective dilation, by layer and size, of a network."""
    model = load(name, seed, budget, trained)
    _, test = scenes_of(seed, budget)
    found = analysis.effective_dilation_by_size(
        model, test.images, boxes=test.boxes, areas=tuple(limit**2 for limit in SIZE_LIMITS)
    )
    print(f"{name} seed {seed}, effective dilation\n{found}", flush=True)
    return {
        "layers": list(found.layers),
        "mean": found.mean.tolist(),
        "std": found.std.tolist(),
        "count": found.count.tolist(),
    }


def report(results: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the tables and what they say."""
    small, large = SIZE_LIMITS
    counts = np.mean([r["count"][0] for runs in results.values() for r in runs], axis=0)
    parts = [
        "Mean distance between adjacent samples of a filter, in cells of the map it reads (4 "
        "pixels of the image), mean ± standard deviation over the filters, both averaged over "
        f"{len(next(iter(results.values())))} seeds; in parentheses the standard deviation of the "
        "mean between seeds. A filter belongs to the digit in whose box its centre lies: small "
        f"ones are below {small}x{small} pixels in area, large ones from {large}x{large} "
        f"({counts[0]:,.0f}, {counts[1]:,.0f} and {counts[2]:,.0f} filters of a layer, and "
        f"{counts[3]:,.0f} on the background)."
    ]
    for name, runs in results.items():
        means = np.array([run["mean"] for run in runs])  # [seeds, layers, 4]
        spreads = np.array([run["std"] for run in runs])
        rows = []
        for index, layer in enumerate(runs[0]["layers"]):
            cells = []
            for size in range(4):
                cell = f"{means[:, index, size].mean():.2f} ± {spreads[:, index, size].mean():.2f}"
                if len(runs) > 1:
                    cell += f" ({means[:, index, size].std(ddof=1):.2f})"
                cells.append(cell)
            gain = means[:, index, 2] - means[:, index, 0]
            grows = (np.diff(means[:, index, :3], axis=-1) > 0).all(axis=-1).sum()
            rows.append([layer, *cells, mean_and_spread(gain, 2), f"{grows} of {len(runs)}"])
        head = ["layer", "small", "medium", "large", "background"]
        head += ["large - small", "seeds in which it grows"]
        parts.append(f"{segmentation.VARIANTS[name].title} ({NETWORKS[name]}):")
        parts.append(table(head, rows))
    parts.append(verdict(results))
    parts.append(
        "Where units in the middle of a small, a medium and a large digit sample, through one, two "
        "and three of the layers (dilation 1 at rest):\n\n"
        "![Where units sample, through one, two and three deformable layers](levels.png)"
    )
    return "\n\n".join(parts)


def verdict(results: dict[str, list[dict[str, Any]]]) -> str:
    """Says whether effective dilation grows with the size of the object."""
    sentences = []
    for name, runs in results.items():
        means = np.array([run["mean"] for run in runs])
        grows = (np.diff(means[..., :3], axis=-1) > 0).all(axis=-1)  # [seeds, layers]
        always = [layer for layer, g in zip(runs[0]["layers"], grows.T, strict=True) if g.all()]
        never = [layer for layer, g in zip(runs[0]["layers"], grows.T, strict=True) if not g.any()]
        rest = [layer for layer in runs[0]["layers"] if layer not in always + never]
        said = [
            f"{verb} in {', '.join(f'`{layer}`' for layer in layers)}"
            for layers, verb in (
                (always, "grows from small to medium to large in all seeds"),
                (rest, "grows in some seeds only"),
                (never, "does not grow in any seed"),
            )
            if layers
        ]
        sentences.append(f"With {NETWORKS[name]} effective dilation {'; it '.join(said)}.")
    every = np.concatenate([[run["mean"] for run in runs] for runs in results.values()])
    lowest = np.sum(every.argmin(axis=-1) == 3)
    sentences.append(
        f"The background has the smallest in {lowest} of {every[..., 0].size} cases (layers of "
        "networks). In the paper (Table 2) res5c has 5.3 for small, 5.8 for medium and 8.4 for "
        "large objects, and 6.2 on the background, more than for medium ones."
    )
    return " ".join(sentences)


def draw(model: Any, test: Scenes, path: Path) -> None:
    """Draws units in the middle of a small, a medium and a large digit, through 1 to 3 layers."""
    scenes, digits = np.nonzero(test.present)
    boxes = test.boxes[scenes, digits]
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=-1))
    chosen = [int(np.abs(sides - side).argmin()) for side in np.quantile(sides, (0.1, 0.5, 0.9))]
    figure = Figure(figsize=(3.1 * (1 + DEPTH), 3.1 * len(chosen) + 0.6), dpi=110)
    axes = figure.subplots(len(chosen), 1 + DEPTH, squeeze=False)
    figure.subplots_adjust(0.01, 0.05, 0.99, 0.96, wspace=0.04, hspace=0.04)
    for row, digit in zip(axes, chosen, strict=True):
        image = test.images[scenes[digit]]
        middle = (boxes[digit, :2] + boxes[digit, 2:]) / 2 - 0.5
        for axis, depth in zip(row[1:], range(1, DEPTH + 1), strict=True):
            found = analysis.sampling_locations(model, image[np.newaxis], pixel=middle, depth=depth)
            analysis.draw_sampling_locations(image, found, ax=axis)
            view(axis, middle)
            if axis.get_subplotspec().is_first_row():
                axis.set_title(f"learned, {depth} layer{'s' * (depth > 1)}", size=11)
        analysis.draw_sampling_locations(image, found, regular=True, ax=row[0])
        view(row[0], middle)
    axes[0, 0].set_title(f"regular grid, {DEPTH} layers", size=11)
    figure.legend(
        *axes[0, -1].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def view(axis: Any, middle: np.ndarray) -> None:
    """Shows what is around a position `(y, x)` of the image that is drawn."""
    y, x = middle
    axis.set(xlim=(x - VIEW, x + VIEW), ylim=(y + VIEW, y - VIEW))


if __name__ == "__main__":
    main()
