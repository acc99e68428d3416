# SPDX-License-Identifier: BSD-2-Clause
"""Colours and tables on standard output. rich is imported only by commands that print them."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, cast

from ..plain_output import ColourFile, plain_line, plain_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text


def use_colour() -> bool:
    """Return True if standard output is a terminal, TERM is not "dumb" and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def make_console(soft_wrap: bool = False) -> Console:
    """Return a rich console for standard output; `soft_wrap` leaves long lines to the terminal.

    It takes no markup, and escapes control characters in what it prints.
    """
    from rich.console import Console
    from rich.segment import Segment
    from rich.text import Text

    class PlainConsole(Console):
        def render(self, *arguments: Any) -> Iterator[Segment]:
            for segment in super().render(*arguments):
                yield Segment(plain_text(segment.text), segment.style)

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(
                *(Text(plain_text(item)) if isinstance(item, str) else _plain(item) for item in objects), **options
            )

    file = cast("IO[str]", ColourFile(sys.stdout))
    return PlainConsole(file=file, highlight=False, markup=False, soft_wrap=soft_wrap, no_color=not use_colour())


def make_table(*columns: str, right: Collection[str] = (), no_wrap: Collection[str] = ()) -> Table:
    """Return an empty table; `right` are right-aligned columns, `no_wrap` keep one line.

    It takes no markup, and escapes control characters in its cells.
    """
    from rich.table import Table
    from rich.text import Text

    class PlainTable(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(
                *(Text(plain_line(item)) if isinstance(item, str) else _plain(item) for item in cells), **options
            )

    table = PlainTable(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(
            plain_line(column),
            justify="right" if column in right else "left",
            no_wrap=column in no_wrap,
            overflow="fold",
        )
    return table


def styled(text: str, style: str, suffix: str = "") -> Text:
    """Return text in a rich style, and a suffix without."""
    from rich.text import Text

    return Text.assemble((plain_line(text), style), plain_line(suffix))


def _plain(item: Any) -> Any:
    """Escape control characters in a text; other renderables have theirs escaped."""
    from rich.text import Text

    if isinstance(item, Text) and (escaped := plain_text(item.plain)) != item.plain:
        return Text(escaped, item.style)
    return item


def print_styled(lines: Iterable[tuple[str, str]]) -> None:
    """Print lines of (text, rich style); without colours the text alone. No text begins a line of its own."""
    lines = [(plain_line(text), style) for text, style in lines]
    if not use_colour():
        print("\n".join(text for text, _ in lines))
        return
    from rich.text import Text

    console = make_console(soft_wrap=True)
    for text, style in lines:
        console.print(Text(text, style))
