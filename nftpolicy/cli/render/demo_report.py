# SPDX-License-Identifier: BSD-2-Clause
"""Report of `demo`: tables and facts. Imports rich, so only that command imports this."""

from __future__ import annotations

from typing import Any

from .terminal import make_console, make_table


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
