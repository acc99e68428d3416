"""Packets that leave by a wrong device during a change of our policy, or of other tools, under one flood.

The other tools delete and add an ip rule, flush and fill a table, or delete and load a ruleset. Each runs where it
decides alone: rules and routes without our guard, the ruleset as the guard.
"""

import subprocess
import sys
from collections.abc import Callable
from itertools import count

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.formats import nft_text
from tests.lab import addresses as at
from tests.policy_transitions import (
    FOREIGN,
    MARK,
    MARKED,
    MESH,
    PLAIN,
    STOLEN,
    TABLES,
    WANS,
    Change,
    Field,
    Ours,
    scenes,
    take_guard_away,
    take_ladder_away,
)

from .figures import Report, Series, say

CHANGES = 50
_OURS = "nftpolicy apply"
_SEED = 1
_HOME = {4: at.HOME[4], 6: at.HOME_LINK_LOCAL}
_RULE = f"fwmark {MARK:#x} lookup {TABLES[0]} priority 510"
_WRONG = [(role, wire) for role in (PLAIN, FOREIGN, STOLEN) for wire in WANS]


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    number = rounds or CHANGES
    say(f"window: {number} changes each")
    drawn, turn, ours = scenes(number + 1, _SEED, passing=True), count(), Ours()
    guard = "".join(map(nft_text.table_text, compile_policy(drawn[0].policy).tables))
    changes: dict[str, Callable[..., None]] = {
        "policy": ours.apply,
        "bare": lambda: (take_guard_away(), take_ladder_away(), _each(f"rule add {_RULE}")),
        "guarded": lambda: _nft(guard),
        "rule": lambda: (_each(f"rule del {_RULE}"), _each(f"rule add {_RULE}")),
        "routes": lambda: (_each(f"route flush table {TABLES[0]}"), _routes()),
        "reload": lambda: (
            _nft("delete table inet nftpolicy\ndelete table netdev nftpolicy\n"),
            _nft(guard),
        ),
    }
    with Field(changes) as field:
        field.around("policy", drawn[0].policy)
        astray = [(MARKED, MESH), *_WRONG]
        mine = _measured(field, lambda: field.around("policy", drawn[1 + next(turn) % number].policy), number, astray)
        field.around("bare")
        rule = _measured(field, lambda: field.around("rule"), number, [(MARKED, MESH)])
        routes = _measured(field, lambda: field.around("routes"), number, [(MARKED, MESH)])
        field.around("guarded")
        reload = _measured(field, lambda: field.around("reload"), number, _WRONG)
        if field.lost_frames():
            print("window: the sniffers lost frames, so the counts are too low", file=sys.stderr)
    peers = {
        "ip rule del, ip rule add": rule,
        "ip route flush, ip route add": routes,
        "nft delete, nft -f": reload,
    }
    for name, (lost, times) in peers.items():
        theirs = Series("window", name, "astray a change", lost)
        took = Series("window", name, "ms a change", times)
        report.series += [theirs, took]
        if all(lost):  # a ratio to nothing says nothing
            report.series.append(Series("window", _OURS, "astray a change", mine[0], theirs))
            report.limit(f"packets astray in {number} changes against {name}", report.series[-1], theirs, 0)
        report.series.append(Series("window", _OURS, "ms a change", mine[1], took))


def _measured(
    field: Field, change: Callable[[], Change], number: int, wrong: list[tuple[str, str]]
) -> tuple[list[float], list[float]]:
    """Return the packets that strayed in each change, and its milliseconds; prints the number of packets sent."""
    lost, times, sent = [], [], 0
    for _ in range(number):
        found = change()
        places = {role: field.where(role) for role in {role for role, _ in wrong}}
        lost.append(float(sum(found.seen[wire][index] for role, wire in wrong for index in places[role])))
        times.append(found.seconds * 1000)
        sent += sum(found.during.taken) + sum(found.during.refused)
    print(f"  {sent:,} packets sent meanwhile, {sum(lost):,.0f} astray", file=sys.stderr)
    return lost, times


def _each(words: str) -> None:
    for family in at.FAMILIES:
        subprocess.run(["ip", f"-{family}", *words.split()], check=True)


def _routes() -> None:
    for family in at.FAMILIES:
        default = f"default via {_HOME[family]} dev {at.WAN} table {TABLES[0]} metric 10"
        subprocess.run(["ip", f"-{family}", "route", "add", *default.split()], check=True)


def _nft(ruleset: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=ruleset, text=True, check=True)
