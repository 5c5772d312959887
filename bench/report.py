"""From the data of a run to tables and a plot."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.contenders import CONTENDERS
from bench.scenarios import METRICS

BASE = "ours"
QUEUES = ("quorum", "classic")
ARROWS = {"more": "↑", "less": "↓", "": ""}
BAR = 24  # characters
CLIPPED = 1.3  # a bar that is longer than all Python ones by more than this is cut


@dataclass(frozen=True)
class Cell:
    """The rounds of one metric of one contender on one type of queue."""

    values: tuple[float, ...]
    failures: int

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, digits: int) -> str:
        lost = f" ({self.failures} failed)" if self.failures else ""
        if not self.values:
            return "failed" if self.failures else "-"
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f}){lost}"


class Results:
    """A run's data, by contender, queue and metric."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.run = data["run"]
        self.failures = [one for one in data["measurements"] if "failed" in one]
        self.contenders = [
            one.name for one in CONTENDERS if any(one.name == found["contender"] for found in data["measurements"])
        ]
        by_round: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        scenarios = {}
        for one in data["measurements"]:
            if "metric" in one:
                by_round[one["contender"], one["queue"], one["metric"]][one["round"]] = one["value"]
                scenarios[one["metric"]] = one["scenario"]
        self.cells: dict[tuple[str, str, str], Cell] = {}
        for name, queue, metric in product(self.contenders, QUEUES, scenarios):
            found = by_round[name, queue, metric]  # what a scenario had measured before it failed counts
            place = (name, queue, scenarios[metric])
            failed = {
                one["round"] for one in self.failures if (one["contender"], one["queue"], one["scenario"]) == place
            }
            self.cells[name, queue, metric] = Cell(tuple(found.values()), len(failed - found.keys()))

    def metrics(self, queue: str, *, apart: bool = False) -> list[str]:
        """Those of METRICS that were measured on that type of queue; those apart have tables of their own."""
        return [
            metric
            for metric, about in METRICS.items()
            if about.apart == apart and any(self.cell(name, queue, metric) for name in self.contenders)
        ]

    def entrants(self, metrics: Iterable[str]) -> list[str]:
        """Who has been measured, or has failed, in one of these."""
        return [
            name
            for name in self.contenders
            if any(
                cell.values or cell.failures
                for metric in metrics
                for queue in QUEUES
                if (cell := self.cells.get((name, queue, metric))) is not None
            )
        ]

    def cell(self, name: str, queue: str, metric: str) -> Cell | None:
        cell = self.cells.get((name, queue, metric))
        return cell if cell and cell.values else None

    def ratio(self, name: str, queue: str, metric: str) -> str:
        base, cell = self.cell(BASE, queue, metric), self.cells.get((name, queue, metric))
        if cell is None or not cell.values:
            return "failed" if cell and cell.failures else "-"
        return f"{cell.median / base.median:.2f}" if base and base.median else "-"


def write(data: dict[str, Any], folder: Path) -> None:
    """results.md and results.png in that folder, and tables with bars on the terminal."""
    results = Results(data)
    (folder / "results.md").write_text("\n".join(markdown(results)) + "\n")
    plot(results, folder / "results.png")
    show(results)


def markdown(results: Results) -> Iterable[str]:
    run = results.run
    machine = "{cpu}, {cores} cores, {memory_gib} GiB, Linux {kernel}".format(**run["machine"])
    yield "# Results\n"
    yield "Made by `python -m bench`; [what is measured, and what favours whom](../README.md); "
    yield "[all single measurements](results.json).\n"
    yield f"{run['date']}, {run['rounds']} rounds, seed {run['seed']}. {machine}. "
    yield ", ".join(f"{name} {version}" for name, version in run["versions"].items()) + ".\n"
    yield "![bars of what the tables say](results.png)"
    for queue in QUEUES:
        if not (metrics := results.metrics(queue)):
            continue
        titles = [f"{METRICS[metric].title} {ARROWS[METRICS[metric].better]}" for metric in metrics]
        compared = [(metric, title) for metric, title in zip(metrics, titles, strict=True) if METRICS[metric].compared]
        yield f"\n## {queue.capitalize()} queues, relative to ours\n"
        yield "Medians divided by ours; ↑ more is better, ↓ less is better.\n"
        yield from rows(
            ["", *(title for _, title in compared)],
            (
                [name, *(results.ratio(name, queue, metric) for metric, _ in compared)]
                for name in results.entrants(metrics)
            ),
        )
        yield f"\n## {queue.capitalize()} queues, as measured\n"
        yield "Median (smallest-largest) over the rounds.\n"
        units = [METRICS[metric].unit for metric in metrics]
        yield from rows(
            ["", *(f"{title} {unit}".strip() for title, unit in zip(titles, units, strict=True))],
            (
                [name, *(results.cells[name, queue, metric].text(METRICS[metric].digits) for metric in metrics)]
                for name in results.entrants(metrics)
            ),
        )
    yield from apart(results)
    scaled = sorted(int(metric.split("_")[1]) for _, _, metric in results.cells if metric.endswith("_producer_mib"))
    if scaled:
        yield "\n## Ours with a large backlog, quorum queue, one round\n"
        kinds = {"publish": "publish tasks/s", "producer_mib": "producer's peak MiB", "consume": "consume tasks/s"}
        kinds["worker_mib"] = "worker MiB"

        def value(count: int, kind: str) -> str:
            cell = results.cell(BASE, "quorum", f"scale_{count}_{kind}")
            return f"{cell.median:,.0f}" if cell else "failed"

        yield from rows(
            ["tasks in the queue", *kinds.values()],
            ([f"{count:,}", *(value(count, kind) for kind in kinds)] for count in sorted(set(scaled))),
        )
    yield "\n## Who took part\n"
    yield from (f"- **{one.name}**: {one.note}" for one in CONTENDERS if one.name in results.contenders)
    yield from (f"- **{name}** was left out: {why}" for name, why in run["left_out"].items())
    if results.failures:
        yield "\n## What failed\n"
        yield from (
            f"- {one['contender']}, {one['scenario']}, {one['queue']}, round {one['round']}: `{one['failed']}`"
            for one in results.failures
        )


def apart(results: Results) -> Iterable[str]:
    """What one worker does at once, and what becomes of that with the ledger further and further away."""
    measured = results.metrics("quorum", apart=True)
    if at_once := [metric for metric in measured if metric.startswith("concurrency")]:
        yield "\n## Tasks of 20 ms, one worker, quorum queue\n"
        yield "Median (smallest-largest) over the rounds, by the worker's concurrency.\n"
        for kind, title in (("rate", "tasks/s"), ("rss_mib", "RSS, MiB"), ("connections", "TCP connections")):
            of_kind = [metric for metric in at_once if metric.endswith(kind)]
            yield from rows(
                [title, *(metric.split("_")[1] for metric in of_kind)],
                (
                    [name, *(results.cells[name, "quorum", metric].text(0) for metric in of_kind)]
                    for name in results.entrants(at_once)
                ),
            )
            yield ""
    if by_distance := [metric for metric in measured if metric.startswith("distance")]:
        yield "\n## Ours by the ledger's distance, tasks of 20 ms, quorum queue\n"
        yield "Tasks/s by the worker's concurrency: median (smallest-largest) over the rounds, divided by SQLite's.\n"
        yield from rows(
            ["", *(metric.split("_")[1] for metric in by_distance)],
            (
                [
                    name,
                    *(
                        f"{results.cells[name, 'quorum', metric].text(0)}, {results.ratio(name, 'quorum', metric)}"
                        for metric in by_distance
                    ),
                ]
                for name in results.entrants(by_distance)
            ),
        )


def rows(head: list[str], body: Iterable[list[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" + "|--:" * (len(head) - 1) + "|"
    yield from (f"| {' | '.join(row)} |" for row in body)


def show(results: Results) -> None:
    console = Console()
    for queue in QUEUES:
        for metric in [*results.metrics(queue), *results.metrics(queue, apart=True)]:
            about = METRICS[metric]
            wish = f", {about.better} is better" if about.better else ""
            title = f"{queue}: {about.title}{f' ({about.unit})' if about.unit else ''}{wish}"
            table = Table(title=title, title_justify="left", show_header=False, min_width=80)
            for name in results.entrants([metric]):
                cell, ratio = results.cells[name, queue, metric], results.ratio(name, queue, metric)
                longest = longest_bar(results, queue, metric)
                share = min(1.0, cell.median / longest) if cell.values and longest else 0
                table.add_row(name, "█" * round(BAR * share), cell.text(about.digits), ratio)
            console.print(table)


def longest_bar(results: Results, queue: str, metric: str) -> float:
    """Where the scale ends: the C program's bar may be cut, for the others to be told apart."""
    cells = {name: results.cell(name, queue, metric) for name in results.contenders}
    medians = [cell.median for name, cell in cells.items() if cell and name != "limit (C)"]
    every = [cell.median for cell in cells.values() if cell]
    return min(max(every, default=0), CLIPPED * max(medians, default=float("inf")))


def plot(results: Results, path: Path) -> None:
    """Small plots, one for each kind of measurement, with whiskers from the smallest to the largest of the rounds."""
    # Not before: numpy starts threads, which would get the Ctrl-C that is held back while processes are being ended.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[str, dict[str, tuple[str, str]]]] = [
        *(
            (
                f"{METRICS[metric].title}, tasks/s (more is better)",
                {queue: (queue, metric) for queue in QUEUES},
            )
            for metric in ("publish", "consume_1", "consume_3")
        ),
        (
            "makespan / ideal, tasks of 10 ms, quorum (less is better)",
            {f"workers: {size}": ("quorum", f"makespan_{size}") for size in (1, 2, 3, 8)},
        ),
        (
            "latency on an idle system, ms, quorum (less is better)",
            {"p50": ("quorum", "latency_p50_ms"), "p99": ("quorum", "latency_p99_ms")},
        ),
        ("memory of a worker, MiB (less is better)", {"": ("quorum", "memory_mib")}),
    ]
    figure = Figure(figsize=(18, 10), layout="constrained")
    FigureCanvasAgg(figure)  # draws into files, without a display
    axes = figure.subplots(2, 3)
    for ax, (title, series) in zip(axes.flat, panels, strict=True):
        height = 0.8 / len(series)
        if not any(results.cell(name, *place) for place in series.values() for name in results.contenders):
            ax.set_axis_off()  # not measured in this run
            continue
        end = reach = max(longest_bar(results, queue, metric) for queue, metric in series.values())
        small = 6 if len(series) > 2 else 9
        for number, (label, (queue, metric)) in enumerate(series.items()):
            cells = [results.cell(name, queue, metric) for name in results.contenders]
            places = [place + number * height for place, cell in enumerate(cells) if cell]
            medians = [cell.median for cell in cells if cell]
            low = [cell.median - min(cell.values) for cell in cells if cell]
            high = [max(cell.values) - cell.median for cell in cells if cell]
            bars = ax.barh(places, medians, height, xerr=(low, high), label=label, error_kw={"lw": 0.8, "alpha": 0.6})
            texts = [f"{median:,.{METRICS[metric].digits}f}" for median in medians]
            shown = [text if median <= end else "" for median, text in zip(medians, texts, strict=True)]
            ax.bar_label(bars, shown, padding=3, fontsize=small)
            reach = max([reach, *(median + more for median, more in zip(medians, high, strict=True) if median <= end)])
            for place, median, text in zip(places, medians, texts, strict=True):
                if median > end:
                    ax.text(end, place, f"{text} →", ha="right", va="center", color="white")
        ax.set_xlim(0, reach * 1.12 or None)
        ax.set_yticks([place + 0.4 - height / 2 for place in range(len(results.contenders))], results.contenders)
        ax.invert_yaxis()
        ax.set_title(title, fontsize=10)
        if len(series) > 1:
            ax.legend(fontsize=8, ncols=len(series), loc="upper center", bbox_to_anchor=(0.5, -0.05), frameon=False)
    figure.savefig(path, dpi=110)
