# SPDX-License-Identifier: BSD-2-Clause
"""Tables of `status` and `demo`. Imports rich, so only commands that print a table import this."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ...policy.objects import Policy
from ...runtime.status import LAYERS, Status
from .phrases import and_more
from .terminal import make_console, make_table, styled

_MOST_SOCKETS = 20  # rows
_MOST_SERVICES = 5  # names in a cell
_MOST_DIFFERENCES = 40  # lines


def print_status(state: Status) -> None:
    """Print uplinks, parts, counters, sockets and differences."""
    console = make_console()
    console.print(_uplink_table(state.policy))
    console.print()
    parts = make_table("part", "state")
    for part, good in state.parts.items():
        parts.add_row(part, styled("as expected", "green") if good else styled("NOT as expected", "red"))
    if state.is_blocked:
        stopped = "the uplinks are stopped: table nftpolicy-block, loaded by watch or apply"
        parts.add_row("block", styled(stopped, "red"))
    if state.is_starved:
        parts.add_row("services", styled("starved by foreign ip rules, named below", "red"))
    console.print(parts)
    console.print()
    console.print(_counter_table(state))
    console.print()
    _print_sockets(console, state)
    if state.differences:
        console.print("\nchanges that 'nftpolicy apply' would make:")
        for line in state.differences[:_MOST_DIFFERENCES]:
            console.print(f"  {line}")
        if len(state.differences) > _MOST_DIFFERENCES:
            console.print(f"  {and_more(len(state.differences) - _MOST_DIFFERENCES)}: nftpolicy apply --dry-run")


def _uplink_table(policy: Policy) -> Table:
    table = make_table("uplink", "devices", "mark", "table", "services", "exempt", "answers")
    for name, uplink in policy.uplink.items():
        services = [service for service, value in policy.service.items() if value.uplink == name]
        if len(services) > _MOST_SERVICES:
            services = [*services[:_MOST_SERVICES], and_more(len(services) - _MOST_SERVICES)]
        table.add_row(
            name,
            " ".join(uplink.devices),
            str(uplink.mark),
            str(uplink.table),
            " ".join(services),
            " ".join((*uplink.exempt, *(f"lan.{key}" for key, lan in policy.lan.items() if lan.uplink == name))),
            " ".join(map(str, uplink.answer)),
        )
    return table


def _counter_table(state: Status) -> Table:
    table = make_table("counter", "layer", "packets", "bytes", right=("packets", "bytes"))
    for (family, _, name), counts in sorted(state.counters.items(), key=lambda item: (item[0][0], item[0][2])):
        table.add_row(name, LAYERS[family], str(counts.packets), str(counts.bytes))
    return table


def _print_sockets(console: Console, state: Status) -> None:
    """Print the sockets that concern an uplink, and the meanings of their verdicts."""
    if state.sockets is None:
        console.print(f"sockets: not known: {state.socket_error}")
        return
    if not state.sockets:
        console.print("sockets: no service has one, and none has an uplink's mark")
        return
    table = make_table("socket of", "program", "socket", "mark", "verdict")
    for judged_socket in state.sockets[:_MOST_SOCKETS]:
        mark = "" if judged_socket.socket.mark is None else f"{judged_socket.socket.mark:#x}"
        colour = "red" if judged_socket.is_wrong else "green"
        table.add_row(
            judged_socket.owner or "no service",
            judged_socket.process_label,
            str(judged_socket.socket),
            mark,
            styled(judged_socket.verdict, colour),
        )
    console.print(table)
    omitted = state.sockets[_MOST_SOCKETS:]
    if omitted:
        wrong = sum(judged_socket.is_wrong for judged_socket in omitted)
        console.print(f"{and_more(len(omitted))}, {wrong} of them not right: --json")
    meanings = dict.fromkeys(
        (judged_socket.verdict, judged_socket.description) for judged_socket in state.sockets if judged_socket.is_wrong
    )
    for verdict, meaning in list(meanings)[:_MOST_SOCKETS]:
        console.print(f"{verdict}: {meaning}")


def print_demo(report: Any) -> None:
    """Print the result of the demo: packets, DNS queries, facts, and the verdict."""
    console = make_console()
    frames = ("probes", "kinds", "unmarked by WAN", "marked by WAN", "marked by mesh")
    packets = make_table("state", *frames, right=frames)
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
    answers = ("queries", "WAN answers", "mesh answers", "no answer")
    queries = make_table("state", "DNS client", *answers, right=answers)
    for client in report.names:
        counts = (client.questions, client.by_wan, client.by_mesh, client.unanswered)
        queries.add_row(client.state, client.who, *map(str, counts))
    console.print(queries)
    console.print()
    for fact, true in report.facts.items():
        console.print(f"{'yes' if true else 'NO '}  {fact}")
    for fault in report.faults():
        console.print(f"FAULT: {fault}", style="red")
    guarded = report.states[1:]  # the first state has no policy
    probes = sum(state.probes for state in guarded)
    kinds = max((state.kinds for state in guarded), default=0)
    leaked = sum(state.unmarked_on_wan for state in guarded)
    word = "held" if not report.faults() else "NOT held"
    console.print(
        f"\n{word}: {leaked} unmarked frames left by the WAN in {probes} probes of {kinds} kinds ({report.seconds} s)"
    )
