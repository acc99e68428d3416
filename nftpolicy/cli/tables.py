# SPDX-License-Identifier: BSD-2-Clause
"""Tables for a person. Imports rich, so only commands that print one import this."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..policy.objects import Policy
from ..runtime.status import LAYERS, Status

_SOCKETS = 20  # rows


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
    _show_sockets(console, found)
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


def _show_sockets(console: Console, found: Status) -> None:
    """Sockets that have to do with an uplink, the wrong ones first, and what is wrong with them."""
    console.print()
    if found.sockets is None:
        console.print(f"sockets: not known: {found.trouble}", markup=False)
        return
    if not found.sockets:
        console.print("sockets: no service has one, and none wears an uplink's mark")
        return
    table = _table("socket of", "program", "socket", "mark", "verdict")
    for one in found.sockets[:_SOCKETS]:
        mark = "" if one.socket.mark is None else f"{one.socket.mark:#x}"
        verdict = f"[red]{one.verdict}[/]" if one.wrong else f"[green]{one.verdict}[/]"
        table.add_row(one.who or "nobody", escape(one.program), escape(str(one.socket)), mark, verdict)
    console.print(table)
    if len(found.sockets) > _SOCKETS:
        wrong = sum(one.wrong for one in found.sockets[_SOCKETS:])
        console.print(f"and {len(found.sockets) - _SOCKETS} more, {wrong} of them not right")
    meanings = dict.fromkeys((one.verdict, one.meaning) for one in found.sockets if one.wrong)
    for verdict, meaning in list(meanings)[:_SOCKETS]:
        console.print(f"{verdict}: {meaning}", markup=False)


def show_demo(report: Any) -> None:
    """What the demo found: one table for packets, one for names, the facts, and the verdict in one line."""
    console = Console(highlight=False)
    packets = _table("state", "probes", "kinds", "unmarked by WAN", "marked by WAN", "marked by mesh", numbers=5)
    for state in report.states:
        packets.add_row(
            state.name,
            str(state.probes),
            str(state.kinds),
            str(state.unmarked_on_wan),
            str(state.marked_on_wan),
            str(state.marked_in_mesh),
        )
    console.print(packets)
    console.print()
    names = _table("state", "who asks for names", "questions", "WAN answers", "mesh answers", "no answer", numbers=4)
    for asked in report.names:
        numbers = (asked.questions, asked.by_wan, asked.by_mesh, asked.unanswered)
        names.add_row(asked.state, asked.who, *map(str, numbers))
    console.print(names)
    console.print()
    for fact, true in report.facts.items():
        console.print(f"{'yes' if true else 'NO '}  {fact}", markup=False)
    for fault in report.faults():
        console.print(f"FAULT: {fault}", markup=False, style="red")
    guarded = report.states[1:]  # the first one is without a policy
    probes = sum(state.probes for state in guarded)
    kinds = max((state.kinds for state in guarded), default=0)
    leaked = sum(state.unmarked_on_wan for state in guarded)
    word = "held" if not report.faults() else "NOT held"
    console.print(
        f"\n{word}: {leaked} unmarked frames left by the WAN in {probes} probes of {kinds} kinds ({report.seconds} s)"
    )
