# SPDX-License-Identifier: BSD-2-Clause
"""Colours and tables on standard output. rich is imported only by commands that print them."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def use_colour() -> bool:
    """Return True if standard output is a terminal, TERM is not "dumb" and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def make_console(soft_wrap: bool = False) -> Console:
    """Return a rich console for standard output; `soft_wrap` leaves long lines to the terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=soft_wrap, no_color=not use_colour())


def make_table(*columns: str, right: Collection[str] = (), no_wrap: Collection[str] = ()) -> Table:
    """Return an empty table; `right` are right-aligned columns, `no_wrap` keep one line."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column in no_wrap,
            overflow="fold",
        )
    return table


def print_styled(lines: Iterable[tuple[str, str]]) -> None:
    """Print lines of (text, rich style); without colours the text alone."""
    if not use_colour():
        print("\n".join(text for text, _ in lines))
        return
    from rich.text import Text

    console = make_console(soft_wrap=True)
    for text, style in lines:
        console.print(Text(text, style))
