"""Cost of the guard for a packet, for policies of several sizes, against no guard and one rule for each service.

`flood` and `exchange` count CPU time with little around the kernel's own work, so they are the worst case.
`tunnel` is the main job: packets of 1,200 bytes through fastd, by the clock and by fastd's CPU time.
"""

import contextlib
from dataclasses import dataclass

from tests.lab import addresses as at

from . import bench_namespaces, sized_policies
from .figures import Report, Series, in_turns, say

ROUNDS, ROUNDS_TUNNEL = 60, 24
_SLICE, _SLICE_TUNNEL = 0.02, 0.25  # seconds
_WITHIN = 0.95
_NOTHING, _ONE, _MOST = "no ruleset", "1 service", f"{sized_policies.SIZES[-1]:,} services"
_NAIVE = f"naive, {sized_policies.SIZES[-1]:,} rules"


@dataclass(frozen=True)
class _Case:
    guard: bench_namespaces.Guard
    group: int


def _cases() -> dict[str, _Case]:
    sizes = {1: _ONE} | {size: f"{size:,} services" for size in sized_policies.SIZES[1:]}
    ours = {
        name: _Case(bench_namespaces.services(size), sized_policies.last_group(size)) for size, name in sizes.items()
    }
    most = sized_policies.SIZES[-1]
    last = sized_policies.last_group(most)
    return {_NOTHING: _Case(bench_namespaces.nothing, last), **ours, _NAIVE: _Case(bench_namespaces.naive(most), last)}


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    cases = _cases()
    with contextlib.ExitStack() as stack:
        say("path: setting up")
        pairs = {
            name: stack.enter_context(bench_namespaces.Pair(case.guard, case.group)) for name, case in cases.items()
        }
        for load, address in (("flood", sized_policies.NOBODY), ("exchange", at.SERVER[4])):
            say(f"path: {load}")
            turns = {
                name: lambda pair=pair, load=load, address=address: pair.run(load, address, _SLICE)
                for name, pair in pairs.items()
            }
            unit = {"flood": "packets/CPU s", "exchange": "round trips/CPU s"}[load]
            _add(report, f"path {load}", unit, in_turns(turns, rounds or ROUNDS))
    _tunnel(report, cases, rounds)


def _tunnel(report: Report, cases: dict[str, _Case], rounds: int | None) -> None:
    chosen = {name: case for name, case in cases.items() if name in (_NOTHING, _ONE, _MOST, _NAIVE)}
    with contextlib.ExitStack() as stack:
        say("path: setting up tunnels")
        tunnels = {
            name: stack.enter_context(bench_namespaces.Tunnel(case.guard, case.group)) for name, case in chosen.items()
        }
        say("path: tunnel")
        by_cpu: dict[str, list[float]] = {name: [] for name in tunnels}

        def turn(name: str) -> float:
            by_clock, cpu = tunnels[name].stream(_SLICE_TUNNEL)
            by_cpu[name].append(cpu)
            return by_clock

        by_clock = in_turns({name: lambda name=name: turn(name) for name in tunnels}, rounds or ROUNDS_TUNNEL)
    _add(report, "path tunnel", "packets/s", by_clock)
    _add(report, "path tunnel", "packets/CPU s of fastd", by_cpu)


def _add(report: Report, bench: str, unit: str, values: dict[str, list[float]]) -> None:
    peer = Series(bench, _NOTHING, unit, values[_NOTHING])
    series = {name: Series(bench, name, unit, found, peer) for name, found in values.items() if name != _NOTHING}
    report.series += [peer, *series.values()]
    for other in (series[_ONE], peer):
        report.limit(f"{bench}, {unit}: {_MOST} against {other.case}", series[_MOST], other, _WITHIN, at_least=True)
