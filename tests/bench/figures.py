"""Figures: series that were measured turn by turn, their ratios, the limits on them, and their output."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

Turn = Callable[[], float]  # takes one measurement


@dataclass(frozen=True)
class Series:
    """Measurements of one case; `peer` is the series to compare with, with values of the same turns."""

    bench: str
    case: str
    unit: str
    values: list[float]
    peer: "Series | None" = None

    @property
    def ratio(self) -> float | None:
        """Median of the ratios of the turns, so that a slow period of the machine affects both sides."""
        if self.peer is None:
            return None
        return median(mine / other for mine, other in zip(self.values, self.peer.values, strict=True))


@dataclass(frozen=True)
class Limit:
    """Limit of a ratio: at most (of times) or at least (of rates) `bound`."""

    words: str
    ratio: float
    bound: float
    at_least: bool = False

    @property
    def held(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound

    def __str__(self) -> str:
        verdict = "held" if self.held else "NOT held"
        return f"limit {self.bound:g}: {verdict}: {self.words}: {self.ratio:.3f}"


@dataclass
class Report:
    """Results of one run."""

    series: list[Series] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)

    def limit(self, words: str, mine: Series, other: Series, bound: float, at_least: bool = False) -> None:
        """Compare one series with another."""
        ratio = Series("", "", "", mine.values, other).ratio
        assert ratio is not None
        self.limits.append(Limit(words, ratio, bound, at_least))

    def text(self) -> str:
        """Return one table, then one line for each limit."""
        heads = ("bench", "case", "min", "median", "max", "unit", "against", "ratio")
        rows = [heads, *map(_row, self.series)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        return "\n".join([*lines, "", *map(str, self.limits)])

    def json(self) -> str:
        """Return the same with every single value."""
        series = [
            {"bench": one.bench, "case": one.case, "unit": one.unit, "values": one.values}
            | {"min": min(one.values), "median": median(one.values)}
            | ({"against": one.peer.case, "ratio": one.ratio} if one.peer else {})
            for one in self.series
        ]
        limits = [
            {"limit": one.words, "ratio": one.ratio, "bound": one.bound} | {"at_least": one.at_least, "held": one.held}
            for one in self.limits
        ]
        return json.dumps({"series": series, "limits": limits}, indent=1)


def _row(one: Series) -> tuple[str, ...]:
    against = one.peer.case if one.peer else ""
    ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
    numbers = (_number(which(one.values)) for which in (min, median, max))
    return one.bench, one.case, *numbers, one.unit, against, ratio


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    right = (2, 3, 4, 7)
    cells = (
        cell.rjust(width) if at in right else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()


def in_turns(cases: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Measure every case once a round; each round starts with another case."""
    values: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in _rotated(list(cases), number):
            values[name].append(cases[name]())
    return values


def _rotated(names: list[str], by: int) -> Iterator[str]:
    start = by % len(names)
    yield from names[start:]
    yield from names[:start]


def say(words: str) -> None:
    """Print the subject of the present measurement."""
    print(f"{words} ...", file=sys.stderr, flush=True)
