"""Puts the results of the benchmarks into docs/benchmarks.md, as tables and plots.

    python benchmarks/report.py [RESULTS.json]...

Without arguments: what `make bench` left in build/benchmarks. The text between the markers of a
benchmark in docs/benchmarks.md is replaced, all other text stays. Where the page has markers for
processors without AVX-512 beside those of a benchmark, what such a processor gave goes there.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import deformable_attention
import deformable_conv2d
import deformable_conv2d_layer
import harness
import numpy as np
import resnet
import roi_pool
import roi_pool_layers
import serving
from harness import OURS, Record
from machine import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = PAGE.with_suffix("")
CONV2D = "TensorFlow conv2d"
COLORS = {name: f"C{i}" for i, name in enumerate(deformable_conv2d.FRAMEWORKS)}
MARKERS = dict(zip(deformable_conv2d.FRAMEWORKS, "o*sD^v<>PX", strict=True))


class Results:
    """What a benchmark wrote, by section, case, framework, mode and threads."""

    def __init__(self, path: Path) -> None:
        self.all: dict[str, Any] = json.loads(path.read_text())
        self._times: dict[tuple[Any, ...], Record] = {}
        self._memory: dict[tuple[Any, ...], Record] = {}
        for r in self.all["records"]:
            key = r["section"], r["case"], r["framework"]
            if "bytes" in r:
                self._memory[key] = r
            elif "seconds" in r and "error" not in r:
                self._times[(*key, r["mode"], r["threads"])] = r

    @property
    def place(self) -> str:
        """The name of the markers and of the pictures."""
        name: str = self.all["benchmark"]
        narrower = f"{name}_avx2"
        has_avx512 = "avx512f" in self.all["machine"]["instruction_sets"]
        return name if has_avx512 or _markers(narrower)[0] not in PAGE.read_text() else narrower

    def time(self, section: str, case: str, framework: str, mode: str, threads: int) -> Any:
        """Returns a record, or None."""
        return self._times.get((section, case, framework, mode, threads))

    def memory(self, section: str, case: str, framework: str) -> Any:
        """Returns a record, or None."""
        return self._memory.get((section, case, framework))

    def values(self, key: str, section: str) -> list[Any]:
        """Returns the different values of a key in a section, in the order they were measured."""
        records = self.all["records"]
        return list(dict.fromkeys(r[key] for r in records if r["section"] == section))


def _markers(place: str) -> tuple[str, str]:
    return f"<!-- {place}: begin -->\n", f"<!-- {place}: end -->\n"


def milliseconds(record: Record) -> float:
    """Returns the median over the passes."""
    return 1e3 * statistics.median(record["seconds"])


def ratio(record: Record, to: Record) -> tuple[float, float]:
    """Returns the median and half the range of the ratios that each pass gives."""
    pairs = zip(record["seconds"], to["seconds"], strict=True)
    ratios = [mine / theirs for mine, theirs in pairs]
    return statistics.median(ratios), (max(ratios) - min(ratios)) / 2


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown; the numbers, from the second column on, are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def threads_in_words(threads: int) -> str:
    """Returns "1 thread"."""
    return f"{threads} thread{'s' * (threads > 1)}"


def about_the_run(results: Results) -> str:
    """Returns machine, versions, date, and what is missing."""
    a, m = results.all, results.all["machine"]
    if "passes" in a:
        amount = f"{a['passes']} passes of at least {a['seconds']} s each"
    else:
        amount = f"{a['rounds']} rounds of {a['calls']} calls by each thread"
    lines = [
        f"Measured on {a['date']}, commit {a['commit']}: {m['cpu']} ({m['family']}), "
        f"{m['cores']} cores, {', '.join(m['instruction_sets'])}; {', '.join(m['caches'])}; "
        f"{m['memory_bytes'] / 2**30:.0f} GiB; {m['system']}. "
        f"{amount}; {a['minutes']} minutes in all.",
        "",
        "Versions: " + ", ".join(f"{name} {v}" for name, v in a["versions"].items()) + ".",
    ]
    for name, reason in a["missing"].items():
        lines += ["", f"Left out: {name} ({reason})."]
    if a["load"] > 0.5:
        lines += [
            "",
            f"**Other programs were running (load {a['load']:.1f}): these figures are off.**",
        ]
    return "\n".join(lines) + "\n"


def failures(results: Results) -> str:
    """Returns what could not be measured, and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for r in results.all["records"]:
        if "error" in r and r["framework"] not in results.all["missing"]:
            where = f"{r['case']} {r['mode']}"
            reasons.setdefault((r["framework"], r["error"]), []).append(where)
    lines = [
        f"- {framework}, {', '.join(dict.fromkeys(cases))}: {reason}"
        for (framework, reason), cases in reasons.items()
    ]
    return "\nNot measured:\n\n" + "\n".join(lines) + "\n" if lines else ""


def agreement(results: Results) -> str:
    """Returns the largest differences to ours in float32."""
    worst: dict[str, list[float]] = {}
    for r in results.all["records"]:
        if "difference" in r and r["dtype"] == "float32" and r["framework"] != OURS:
            seen = worst.setdefault(r["framework"], [0, 0])
            seen[:] = map(max, seen, (r["difference"], r["outliers"]))
    listed = []
    for name, (difference, outliers) in worst.items():
        words = f"{name} {difference:.0e}"
        if outliers:
            words += f" (by more than rounding explains: {outliers:.0e} of the numbers)"
        listed.append(words)
    text = "Largest difference to tf_deformable, of the largest number of a tensor"
    return f"\n{text}: {', '.join(listed)}.\n" if listed else ""


def memory_table(results: Results, section: str = "shapes") -> str:
    """Returns the peaks of a section's memory, in MB."""
    cases, names = results.values("case", section), results.values("framework", section)
    records = {(c, n): results.memory(section, c, n) for c in cases for n in names}
    present = [n for n in names if any(records[c, n] for c in cases)]
    if not present:
        return ""

    def cell(record: Any) -> str:
        if record is None:
            return "–"
        return f"{record['bytes'] / 1e6:.0f}" + ("" if record["mode"] == "step" else " (forward)")

    rows = [[case, *(cell(records[case, name]) for name in present)] for case in cases]
    return "\n### Peak memory of a step, MB\n\n" + table(["", *present], rows)


def conv_table(results: Results, mode: str) -> str:
    """Returns times over those of the plain convolution."""
    names = [n for n in results.values("framework", "shapes") if n != CONV2D]
    present = [
        n for n in names if any(k[0] == "shapes" and k[2:4] == (n, mode) for k in results._times)
    ]
    rows = []
    for case in deformable_conv2d.SHAPES:
        for threads in results.values("threads", "shapes"):
            yardstick = results.time("shapes", case.name, CONV2D, mode, threads)
            if yardstick is None:
                continue
            found = {n: results.time("shapes", case.name, n, mode, threads) for n in present}
            ratios = {n: ratio(r, yardstick) for n, r in found.items() if r is not None}
            deformable = [name for name in ratios if name != deformable_conv2d.EIGEN]
            best = min(deformable, key=ratios.__getitem__, default=None)
            ms = milliseconds(yardstick)
            row = [f"{case.name}, {threads_in_words(threads)}", f"{ms:.1f}"]
            if mode == "forward":
                row.append(f"{yardstick['operations'] / ms / 1e6:.0f}")
            for name in present:
                median, spread = ratios.get(name, (0, 0))
                text = f"{median:.2f} ± {spread:.2f}" if name in ratios else "–"
                row.append(f"**{text}**" if name == best else text)
                if name == OURS:
                    row.append(f"{deformable_conv2d.AIMS[case.name][mode == 'step']:.2f}")
            rows.append(row)
    columns = ["conv2d, ms", "GFLOP/s"] if mode == "forward" else ["conv2d, ms"]
    for name in present:
        columns += [name, "aim"] if name == OURS else [name]
    title = {"forward": "Forward", "step": "Training step"}[mode]
    return f"\n### {title}, times `tf.nn.conv2d`\n\n" + table(["", *columns], rows)


def scaling_table(results: Results) -> str:
    """Returns how much faster more threads are."""
    counts = results.values("threads", "shapes")
    if len(counts) < 2:
        return ""
    shown = [name for name in (CONV2D, OURS) if name in results.values("framework", "shapes")]
    rows = []
    for case in results.values("case", "shapes"):
        row = [case]
        for name in shown:
            for mode in ("forward", "step"):
                one, all_ = (
                    results.time("shapes", case, name, mode, n) for n in (counts[0], counts[-1])
                )
                row.append(f"{milliseconds(one) / milliseconds(all_):.2f}" if one and all_ else "–")
        rows.append(row)
    names = ["conv2d" if name == CONV2D else name for name in shown]
    header = ["", *(f"{name}, {mode}" for name in names for mode in ("forward", "step"))]
    title = f"\n### Speed-up from {threads_in_words(counts[0])} to {counts[-1]}\n\n"
    return title + table(header, rows)


def small_table(results: Results) -> str:
    """Returns the times of small cases in microseconds."""
    cases, modes = results.values("case", "small"), results.values("mode", "small")
    names = [
        name
        for name in results.values("framework", "small")
        if any(results.time("small", case, name, mode, 1) for case in cases for mode in modes)
    ]
    if not names:
        return ""
    rows = []
    for case in cases:
        for mode in modes:
            found = [results.time("small", case, n, mode, 1) for n in names]
            if any(found):
                cells = [f"{1e3 * milliseconds(r):.0f}" if r else "–" for r in found]
                rows.append([f"{case}, {mode}", *cells])
    return "\n### Small maps, 1 thread, µs a call\n\n" + table(["", *names], rows)


def dtypes_table(results: Results) -> str:
    """Returns the times of other types over those of float32 and of the plain convolution."""
    has_conv = CONV2D in results.values("framework", "dtypes")
    rows = []
    for case in results.values("case", "dtypes"):
        row = [case]
        single = " ".join([*case.split()[:-1], "float32"])
        for mode in ("forward", "step"):
            ours = results.time("dtypes", case, OURS, mode, 1)
            conv = results.time("dtypes", case, CONV2D, mode, 1)
            base = results.time("dtypes", single, OURS, mode, 1)
            row.append(f"{milliseconds(ours):.1f}" if ours else "–")
            row.append(f"{milliseconds(ours) / milliseconds(base):.2f}" if ours and base else "–")
            if has_conv:
                row.append(
                    f"{milliseconds(ours) / milliseconds(conv):.2f}" if ours and conv else "–"
                )
        rows.append(row)
    if not rows:
        return ""
    columns = ("{}, ms", "over float32", *(["over conv2d"] if has_conv else []))
    header = ["", *(column.format(mode) for mode in ("forward", "step") for column in columns)]
    return "\n### Other types, 1 thread\n\n" + table(header, rows)


def times_table(
    results: Results, mode: str, section: str = "shapes", yardstick: str = OURS, digits: int = 1
) -> str:
    """Returns times in milliseconds, and over those of `yardstick`, with so many digits."""
    names = results.values("framework", section)
    rows = []
    for case in results.values("case", section):
        for threads in results.values("threads", section):
            found = {n: results.time(section, case, n, mode, threads) for n in names}
            unit = found[yardstick]
            if unit is None:
                continue
            row = [f"{case}, {threads_in_words(threads)}"]
            for name, record in found.items():
                if record is None:
                    row.append("–")
                elif name == yardstick:
                    spread = 500 * (max(record["seconds"]) - min(record["seconds"]))
                    row.append(f"{milliseconds(record):.2f} ± {spread:.2f}")
                else:
                    median, spread = (f"{number:.{digits}f}" for number in ratio(record, unit))
                    row.append(f"{milliseconds(record):.1f} ({median} ± {spread} times)")
            rows.append(row)
    title = {"forward": "Forward", "step": "Training step"}[mode]
    return f"\n### {title}, ms (times {yardstick})\n\n" + table(["", *names], rows)


def conv_plot(results: Results, path: Path) -> None:
    """Draws the ratios to the plain convolution."""
    pyplot = import_pyplot()
    threads = results.values("threads", "shapes")[-1]
    names = [n for n in results.values("framework", "shapes") if n != CONV2D]
    cases = results.values("case", "shapes")
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for axis, mode in zip(axes, ("forward", "step"), strict=True):
        for i, name in enumerate(names):
            points = []
            for j, case in enumerate(cases):
                record = results.time("shapes", case, name, mode, threads)
                yardstick = results.time("shapes", case, CONV2D, mode, threads)
                if record and yardstick:
                    points.append((j + (i + 0.5) / len(names) * 0.7, *ratio(record, yardstick)))
            if points:
                x, y, spread = zip(*points, strict=True)
                axis.errorbar(x, y, spread, fmt=MARKERS[name], color=COLORS[name], label=name)
        axis.axhline(1, color="black", linewidth=1)
        axis.set_yscale("log")
        axis.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axis.grid(axis="y", alpha=0.3)
        axis.set_xticks([j + 0.35 for j in range(len(cases))], cases)
        axis.set_title(f"{mode}, {threads_in_words(threads)}")
    axes[0].set_ylabel("time / time of tf.nn.conv2d")
    add_legend(figure, axes[0])
    save(figure, path)


def growth_plot(results: Results, path: Path) -> None:
    """Draws time and memory against the sizes."""
    pyplot = import_pyplot()
    cases = results.values("case", "growth")
    grown = list(dict.fromkeys(case.split("=")[0] for case in cases))
    names = results.values("framework", "growth")
    threads = results.values("threads", "growth")[0]

    def milliseconds_of(mode: str) -> Callable[[str, str], float | None]:
        def get(case: str, name: str) -> float | None:
            record = results.time("growth", case, name, mode, threads)
            return milliseconds(record) if record else None

        return get

    def megabytes(case: str, name: str) -> float | None:
        record = results.memory("growth", case, name)
        return max(record["bytes"], 1e5) / 1e6 if record else None  # 0 has no place on the axis

    rows = (
        (f"forward, ms, {threads_in_words(threads)}", milliseconds_of("forward")),
        (f"step, ms, {threads_in_words(threads)}", milliseconds_of("step")),
        ("peak memory of a step, MB", megabytes),
    )
    figure, axes = pyplot.subplots(
        len(rows), len(grown), figsize=(12, 10), sharex="col", sharey="row", layout="constrained"
    )
    for (label, get), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(label)
        for size, axis in zip(grown, line, strict=True):
            of_size = [case for case in cases if case.startswith(f"{size}=")]
            for name in names:
                points = [(int(case.split("=")[1]), get(case, name)) for case in of_size]
                points = [point for point in points if point[1] is not None]
                if points:
                    axis.plot(*zip(*points, strict=True), "o-", color=COLORS[name], label=name)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
    for size, axis in zip(grown, axes[-1], strict=True):
        axis.set_xlabel(size)
    add_legend(figure, axes[0][0])
    save(figure, path)


def add_legend(figure: Any, axis: Any) -> None:
    """Names below the plots what an axis shows, in rows that a page's width holds."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def import_pyplot() -> Any:
    """Returns matplotlib's pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Writes a picture that the page shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def conv_report(results: Results) -> str:
    """Returns the text on the deformable convolution, and draws its plots."""
    text = about_the_run(results)
    sections = {record["section"] for record in results.all["records"]}
    if "shapes" in sections:
        shapes = [[c.name, c.description] for c in deformable_conv2d.SHAPES]
        text += "\n" + table(["", "N,H,W,C→F"], shapes)
        text += conv_table(results, "forward") + conv_table(results, "step")
        picture = PICTURES / f"{results.place}.png"
        conv_plot(results, picture)
        text += f"\n![Ratios to tf.nn.conv2d]({PICTURES.name}/{picture.name})\n"
        text += scaling_table(results) + memory_table(results)
    text += small_table(results) + dtypes_table(results)
    if "growth" in sections:
        picture = PICTURES / f"{results.place}_growth.png"
        growth_plot(results, picture)
        text += f"\n### Growth\n\n![Growth]({PICTURES.name}/{picture.name})\n"
    return text + agreement(results) + failures(results)


def roi_report(results: Results) -> str:
    """Returns the text on RoI pooling."""
    shapes = [[case.name, case.description] for case in roi_pool.SHAPES]
    text = about_the_run(results) + "\n" + table(["", "300 boxes, 7x7 bins, 4x4 samples"], shapes)
    text += times_table(results, "forward") + times_table(results, "step") + memory_table(results)
    return text + agreement(results) + failures(results)


def attention_report(results: Results) -> str:
    """Returns the text on multi-scale deformable attention."""
    measured = results.values("case", deformable_attention.SECTIONS[0].name)
    shapes = [[c.name, c.description] for c in deformable_attention.SHAPES if c.name in measured]
    text = about_the_run(results) + "\n" + table(["", ""], shapes)
    text += times_table(results, "forward") + times_table(results, "step")
    text += scaling_table(results) + memory_table(results) + dtypes_table(results)
    return text + agreement(results) + failures(results)


def layer_table(results: Results, mode: str) -> str:
    """Returns times over those of Conv2D, with oneDNN and without."""
    this = deformable_conv2d_layer
    others = (OURS, this.LAYER_EIGEN, this.OPERATOR)
    rows = []
    for case in this.SHAPES:
        for threads in results.values("threads", "shapes"):
            found = {
                name: results.time("shapes", case.name, name, mode, threads)
                for name in this.FRAMEWORKS
            }
            plain = [found[name] for name in (this.CONV2D, this.EIGEN) if found[name]]
            if not plain:
                continue
            quicker = min(plain, key=milliseconds)
            row = [f"{case.name}, {threads_in_words(threads)}"]
            row += [
                f"{milliseconds(found[name]):.1f}" if found[name] else "–"
                for name in (this.CONV2D, this.EIGEN)
            ]
            for name in others:
                if found[name] is None:
                    row.append("–")
                else:
                    row.append("{:.2f} ± {:.2f}".format(*ratio(found[name], quicker)))
            share = this.branch_filters(case) / case.filters
            row.append(f"{share:.2f}")
            operator = found[this.OPERATOR]
            row.append(f"{ratio(operator, quicker)[0] + share + 0.05:.2f}" if operator else "–")
            rows.append(row)
    title = {"forward": "Forward", "step": "Training step"}[mode]
    header = ["", "Conv2D, ms", "Eigen, ms", *others, "D/F", "aim"]
    text = f"\n### Layer, {title.lower()}, times the quicker `Conv2D`\n\n"
    return text + table(header, rows)


def conv_layer_report(results: Results) -> str:
    """Returns the text on the layer DeformableConv2D."""
    text = about_the_run(results)
    if results.values("case", "shapes"):
        shapes = [[c.name, c.description] for c in deformable_conv2d_layer.SHAPES]
        text += "\n" + table(["", "N,H,W,C→F"], shapes)
        text += layer_table(results, "forward") + layer_table(results, "step")
        text += memory_table(results)
    return text + small_table(results) + agreement(results) + failures(results)


def roi_layers_report(results: Results) -> str:
    """Returns the text on the layers of RoI pooling."""
    text = about_the_run(results)
    for mode in ("forward", "step"):
        text += times_table(results, mode, yardstick=roi_pool_layers.OPERATOR, digits=2)
    return text + memory_table(results) + agreement(results) + failures(results)


def networks_report(results: Results) -> str:
    """Returns the text on whole networks."""
    section = resnet.SECTIONS[0].name
    text = about_the_run(results)
    for mode in ("forward", "step"):
        text += times_table(results, mode, section, yardstick="plain", digits=2)
    return text + memory_table(results, section) + agreement(results) + failures(results)


def serving_report(results: Results) -> str:
    """Returns the text on the latencies of served networks."""
    size = results.all["size"]

    def times(network: str, callers: int, percentile: int) -> str:
        own, plain = (
            1e3 * np.percentile(record["seconds"], percentile)
            for record in (
                results.time("latencies", serving.CASE, name, "forward", callers)
                for name in (network, serving.PLAIN)
            )
        )
        return f"{own:.1f}" + ("" if network == serving.PLAIN else f" ({own / plain:.2f} times)")

    rows = [
        [f"{network}, called by {threads_in_words(callers)}"]
        + [times(network, callers, percentile) for percentile in (50, 99)]
        for callers in serving.CALLERS
        for network in serving.NETWORKS
    ]
    header = [f"{serving.CASE}, {size}x{size}", "median, ms", "99th percentile, ms"]
    return about_the_run(results) + "\n" + table(header, rows)


REPORTS = {
    "deformable_conv2d": conv_report,
    "deformable_conv2d_layer": conv_layer_report,
    "roi_pool": roi_report,
    "roi_pool_layers": roi_layers_report,
    "deformable_attention": attention_report,
    "resnet": networks_report,
    "serving": serving_report,
}


def main() -> None:
    """Rewrites the page."""
    files = [Path(name) for name in sys.argv[1:]]
    page = PAGE.read_text()
    for path in files or [harness.RESULTS / f"{name}.json" for name in REPORTS]:
        results = Results(path)
        begin, end = _markers(results.place)
        if begin not in page or end not in page:
            sys.exit(f"{PAGE} lacks the markers of {results.place}")
        text = REPORTS[results.all["benchmark"]](results)
        before, rest = page.split(begin)
        page = before + begin + "\n" + text + "\n" + end + rest.split(end)[1]
    PAGE.write_text(page)
    print(f"Wrote {PAGE.relative_to(ROOT)} and {PICTURES.relative_to(ROOT)}/*.png")


if __name__ == "__main__":
    main()
