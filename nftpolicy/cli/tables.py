# SPDX-License-Identifier: BSD-2-Clause
"""Tables for a person. Imports rich, so only commands that print one import this."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..policy.objects import Policy
from ..runtime.status import LAYERS, Status


def _table(*columns: str, numbers: int = 0) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index >= len(columns) - numbers else "left", overflow="fold")
    return table


def show_status(found: Status) -> None:
    """The whole of `nftpolicy status`."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(_uplinks(found.policy))
    console.print()
    parts = _table("part", "state")
    for part, good in found.parts.items():
        parts.add_row(part, "[green]as expected[/]" if good else "[red]NOT as expected[/]")
    console.print(parts)
    console.print()
    console.print(_counters(found))
    if found.missing:
        console.print("\nwhat 'nftpolicy apply' would do:")
        for line in found.missing[:40]:
            console.print(f"  {line}", markup=False)


def _uplinks(policy: Policy) -> Table:
    table = _table("uplink", "devices", "mark", "table", "services", "exempt", "answers")
    for name, uplink in policy.uplink.items():
        services = [service for service, value in policy.service.items() if value.uplink == name]
        shown = services if len(services) < 6 else [*services[:5], f"and {len(services) - 5} more"]
        table.add_row(
            name,
            " ".join(uplink.devices),
            str(uplink.mark),
            str(uplink.table),
            " ".join(shown),
            " ".join(uplink.exempt),
            " ".join(answer.name for answer in uplink.answer),
        )
    return table


def _counters(found: Status) -> Table:
    table = _table("counter", "layer", "packets", "bytes", numbers=2)
    for (family, _, name), counts in sorted(found.counters.items(), key=lambda item: (item[0][0], item[0][2])):
        table.add_row(name, LAYERS[family], str(counts.packets), str(counts.bytes))
    return table
