"""docs/tested.md: a page of sections; each script replaces its own one, and keeps the rows that it did not run."""

import fcntl
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tested.md"
_SECTIONS = ("vm", "matrix")
_EMPTY = """# Tested platforms

What ran on which release of Debian, written by the scripts that ran it.

""" + "\n".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in _SECTIONS)


@dataclass(frozen=True)
class Row:
    """Line of a table: one test on one platform, with the versions that it ran with."""

    debian: str
    kernel: str
    nft: str
    python: str
    systemd: str
    test: str
    result: str  # "passed", or what failed
    count: str  # what was counted, such as "0 of 1200 packets"
    date: str

    @property
    def key(self) -> tuple[str, ...]:
        """What a newer row replaces: the same test on the same release."""
        return self.debian.partition(".")[0], self.test


def lines(rows: Iterable[Row]) -> list[str]:
    """Return the rows in Markdown, without the head of the table."""
    return [_line(astuple(row)) for row in rows]


def head() -> list[str]:
    """Return the head of the table."""
    names = [field.name for field in fields(Row)]
    return [
        _line([{"debian": "Debian", "python": "Python"}.get(name, name) for name in names]),
        _line(["---"] * len(names)),
    ]


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with the text of a section replaced; an empty page gets all sections."""
    page = page or _EMPTY
    pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page has not exactly one section {name}")
    return pattern.sub(lambda _: f"{text.strip()}\n", page)


def merged(page: str, name: str, rows: Sequence[Row], order: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a section with newer ones in their places, by release and then by `order` of the tests."""
    section = re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", page, re.DOTALL)
    found = {row.key: row for row in _rows(section[1] if section else "")} | {row.key: row for row in rows}
    place = {test: number for number, test in enumerate(order)}
    return sorted(found.values(), key=lambda row: (row.debian, place.get(row.test, len(place))))


def write(name: str, introduction: str, rows: Sequence[Row], order: Sequence[str] = (), page: Path = PAGE) -> None:
    """Replace a section of the page: the introduction, and the table of these rows and of those that it had before."""
    with page.open("a+") as file:  # scripts may run side by side
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        table = [*head(), *lines(merged(text, name, rows, order))]
        text = with_section(text, name, "\n".join([introduction.strip(), "", *table]))
        file.truncate(0)
        file.write(text)


def _rows(section: str) -> Iterable[Row]:
    for line in section.splitlines():
        cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
        if len(cells) == len(fields(Row)) and line not in head():
            yield Row(*cells)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') or '-' for cell in cells)} |"
