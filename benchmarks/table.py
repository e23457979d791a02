"""Statistics and printing: from the samples of a run to one table and to plain data for JSON.

Guarantees: nothing is left out. A peer without a number has a row that says why, and a figure
that failed in some rounds says in how many.
Does not belong here: measuring, and what the figures mean (figures.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from figures import Figure

# Beyond this ratio one of the two figures is within the noise, and so would the digits be.
CAP = 100.0
SCALE = {"ms": 1e3, "us": 1e6, "/s": 1.0}


class Sample:
    """What all rounds said about one figure of one peer: numbers, words, or both."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.words: list[str] = []

    def add(self, value: float | str) -> None:
        if isinstance(value, str):
            self.words.append(value)
        else:
            self.values.append(value)

    def summary(self) -> dict[str, Any]:
        """Plain data: seconds or items per second."""
        data: dict[str, Any] = {"values": self.values}
        if self.words:
            data["words"] = self.words
        if self.values:
            data["median"] = statistics.median(self.values)
            data["min"], data["max"] = min(self.values), max(self.values)
            if len(self.values) > 1:
                low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
                data["quartiles"] = [low, high]
        return data


def times_better(figure: Figure, ours: Sample | None, other: Sample) -> float | None:
    """How many times better our median is, at most `CAP`; None without two numbers to compare."""
    if ours is None or not ours.values or not other.values:
        return None
    if other is ours:
        return 1.0
    mine, theirs = statistics.median(ours.values), statistics.median(other.values)
    if figure.is_rate:
        mine, theirs = theirs, mine
    # A difference of two times, as the import is, can be nothing or, by noise, less than that.
    return min(CAP, theirs / mine) if mine > 0 else CAP


def number(value: float) -> str:
    """Three significant digits at least, thousands separated."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < CAP else f">{CAP:.0f}"


def _cells(figure: Figure, ours: Sample | None, sample: Sample) -> list[str]:
    scale = SCALE[figure.unit]
    remark = ""
    if sample.words:
        counts = {word: sample.words.count(word) for word in sample.words}
        total = len(sample.words) + len(sample.values)
        remark = "; ".join(
            word if count == total else f"{word} ({count} of {total})"
            for word, count in counts.items()
        )
    if not sample.values:
        return ["-", "", "", remark or "not measured"]
    ratio = times_better(figure, ours, sample)
    return [
        number(statistics.median(sample.values) * scale),
        f"{number(min(sample.values) * scale)} .. {number(max(sample.values) * scale)}",
        _ratio(ratio),
        remark,
    ]


def render(
    figures: Iterable[Figure],
    titles: Mapping[str, str],
    samples: Mapping[tuple[str, str], Sample],
    ours: str,
) -> str:
    """The whole table; `samples` is keyed by (figure name, peer key)."""
    head = ["figure / peer", "median", "min .. max", "ours is x better", "remark"]
    blocks: list[tuple[str, list[list[str]]]] = []
    for figure in figures:
        title = f"{figure.name}: {figure.title} [{figure.unit}]"
        mine = samples.get((figure.name, ours))
        rows = [
            ["  " + titles[key], *_cells(figure, mine, samples[figure.name, key])]
            for key in titles
            if (figure.name, key) in samples
        ]
        blocks.append((title, rows))
    return grid(head, blocks)


def grid(head: Sequence[str], blocks: Iterable[tuple[str, list[list[str]]]]) -> str:
    """Rows under sub-headings, all columns aligned over the whole table."""
    blocks = list(blocks)
    rows = [list(head), *(row for _, part in blocks for row in part)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        first, *middle, last = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        return "  ".join([*cells, last]).rstrip()

    lines = [line(head), "-" * len(line(head))]
    for title, part in blocks:
        if title:
            lines += ["", title]
        lines += [line(row) for row in part]
    return "\n".join(lines)
