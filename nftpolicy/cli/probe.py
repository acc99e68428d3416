# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy probe [FILE]"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from .common import BAD_INPUT, NOT_HERE, REFUSED, UNKNOWN, Failure, parse_policy, read_policy, this_kernel

if TYPE_CHECKING:
    from rich.table import Table

    from ..policy.objects import Policy
    from ..runtime.probe.report import OnDevice, Report, Result

_MOST = 6  # kinds that leak, of which one packet is printed
_NOTHING = "name one, or its uplinks and their mark: nftpolicy probe --uplink wan=eth0 --mark 0x1/0x1"
_UNSEEN = (
    "AF_PACKET sockets with PACKET_QDISC_BYPASS, and AF_XDP: no sniffer on this machine sees them",
    "packets that are forwarded, and those of the kernel itself: 'nftpolicy verify --live' judges them",
)
# What became of probes, in the words and colours of the table.
_WORDS = {
    "leaked": ("LEAKED", "red"),
    "blocked": ("blocked", "green"),
    "stopped": ("stopped", "green"),
    "elsewhere": ("left by", "green"),
    "not tested": ("not tested", "yellow"),
}
_FAMILIES = {4: "IPv4", 6: "IPv6", 0: "not IP"}


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy; without it, the one that was applied last."),  # noqa: UP045
    uplink: list[str] = typer.Option([], help="NAME=DEVICE[,DEVICE]: an uplink, without a policy; may be repeated."),
    mark: list[str] = typer.Option([], help="VALUE/MASK: the mark of the uplinks, or one for each in order."),
    json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Try to leak: send harmless packets of all kinds, and watch what of them leaves by an uplink (then exit 1)."""
    from .verify import _asked

    asked = _asked(uplink, mark, ())
    if asked and file is not None:
        raise Failure("--uplink: not with a policy, which names the uplinks itself", BAD_INPUT)
    policy = read_policy(file)[0] if file is not None else None
    kernel = this_kernel()
    if policy is None and not asked:
        policy = _last()
    from ..kernel.rtnetlink import RtNetlink
    from ..runtime.probe.report import HELD, LEAKS
    from ..runtime.probe.run import probe

    try:
        report = probe(kernel, RtNetlink().devices(), policy or asked)
    except PermissionError:
        raise Failure("this needs root (CAP_NET_RAW): try again with sudo", NOT_HERE) from None
    if json:
        import json as library

        print(library.dumps(as_json(report, policy, file), indent=1))
    else:
        show(report, policy, file)
    if report.verdict != HELD:
        raise typer.Exit(REFUSED if report.verdict == LEAKS else UNKNOWN)


def _last() -> Policy:
    from ..runtime.changes.memory import of_this_namespace

    last = of_this_namespace().policy()
    if last is None:
        raise Failure(f"no policy was applied here; {_NOTHING}", BAD_INPUT)
    return parse_policy(last[1], last[0])[0]


# --- words ------------------------------------------------------------------------------------


def headline(report: Report, policy: Policy | None) -> str:
    """The verdict in a sentence."""
    results = report.results
    kinds = len({one.probe.kind.name for one in results})
    what = f"{policy.name}: " if policy else ""
    where = ", ".join(f"{one.target.uplink} ({one.target.device})" for one in report.devices)
    size = f"{len(results)} probes of {kinds} kinds, {report.seconds} s"
    if report.leaks:
        return f"LEAKS: {what}{len(report.leaks)} of {size}"
    if report.verdict == "inconclusive":
        return f"inconclusive: {what}nothing was seen to leave that may not, but that is not certain ({size})"
    return f"held: {what}nothing left by {where} that may not ({size})"


def explain(one: Result, file: Path | None) -> str | None:
    """The command that shows the way of a probe, or None if `explain` has no words for it."""
    from ..runtime.probe.kinds import packet
    from .report import words

    found = packet(one.probe, one.packet)
    if found is None:
        return None
    given = [str(file)] if file and str(file) != "-" else []
    return shlex.join(["nftpolicy", "explain", *given, *words(found)])


def sender(one: Result) -> str:
    """Who sent a probe."""
    shot = one.probe.shot
    return f"user {shot.uid}, group {shot.gid}" + (f", mark {shot.mark:#x}" if shot.mark else "")


# --- text -------------------------------------------------------------------------------------


def show(report: Report, policy: Policy | None, file: Path | None) -> None:
    """Print the report: the verdict, a table of kinds for each device, controls, leaks."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    colour = {"held": "green", "leaks": "red"}.get(report.verdict, "yellow")
    console.print(Text(headline(report, policy), style=colour))
    for fault in report.faults:
        console.print(Text(f"  uncertain  {fault}", style="yellow"))
    for title, results in _groups(report):
        console.print()
        console.print(_kinds(title, results))
    if any(one.controls for one in report.devices):
        console.print()
        console.print(_controls(report.devices))
    lines = [*_leaks(report, file), "", "not tried:", *(f"  {one}" for one in _UNSEEN)]
    console.print("\n".join(lines), markup=False)


def _groups(report: Report) -> Iterator[tuple[str, Sequence[Result]]]:
    yield "where the routes lead", report.routed
    for one in report.devices:
        for device in one.target.watched:
            yield f"by {device}", [result for result in one.results if result.probe.device == device]


def _kinds(title: str, results: Sequence[Result]) -> Table:
    from .tables import _table

    table = _table(title, *_FAMILIES.values()) if _has_frames(results) else _table(title, "IPv4", "IPv6")
    columns = list(_FAMILIES) if _has_frames(results) else [4, 6]
    for kind in dict.fromkeys(one.probe.kind for one in results):
        cells = [[one for one in results if one.probe.kind == kind and one.probe.shot.family == at] for at in columns]
        table.add_row(kind.title, *map(_cell, cells))
    return table


def _has_frames(results: Iterable[Result]) -> bool:
    return any(not one.probe.shot.family for one in results)


def _cell(results: Sequence[Result]) -> str:
    """What became of a kind in a family; who sent it is only said where that makes a difference."""
    words = {f"{one.probe.shot.uid}": _word(one) for one in results}
    if len(set(words.values())) < 2:
        return next(iter(words.values()), "-")
    return "; ".join(f"user {uid}: {word}" for uid, word in words.items())


def _word(one: Result) -> str:
    word, colour = _WORDS[one.verdict]
    more = ", ".join(one.seen) if one.verdict == "leaked" else one.detail
    return f"[{colour}]{word}[/]{f' {more}' if more else ''}"


def _controls(devices: Iterable[OnDevice]) -> Table:
    from ..runtime.probe.kinds import BOTH
    from .tables import _table

    table = _table("what may leave, as a control", "IPv4", "IPv6")
    for one in devices:
        for device in one.target.watched:
            cells = []
            for family in BOTH:
                seen = one.control(family, device)
                sent = any(control.key == (device, family) for control in one.controls)
                how = f"{seen.probe.kind.title} with the mark, {seen.by}" if seen else ""
                cells.append(f"[green]seen[/]: {how}" if seen else "[yellow]not seen[/]" if sent else "-")
            table.add_row(f"by {device}", *cells)
    return table


def _leaks(report: Report, file: Path | None) -> Iterator[str]:
    kinds: dict[tuple[str, str | None], list[Result]] = {}
    for one in report.leaks:
        kinds.setdefault((one.probe.kind.name, one.probe.device), []).append(one)
    for same in list(kinds.values())[:_MOST]:
        one = same[0]
        count = f", and {len(same) - 1} more" if len(same) > 1 else ""
        yield ""
        yield f"LEAKED by {', '.join(one.seen)}{f' ({one.detail})' if one.detail else ''}: {one.probe.kind.title}"
        yield f"  packet  {one.packet}, from {sender(one)}{count}"
        yield f"  next    {explain(one, file) or 'nft list ruleset'}"
    if len(kinds) > _MOST:
        yield f"\nand {len(kinds) - _MOST} more kinds: --json"


# --- JSON -------------------------------------------------------------------------------------


def as_json(report: Report, policy: Policy | None, file: Path | None) -> dict[str, Any]:
    """The whole for a program; nftpolicy(1) names the keys."""
    return {
        "policy": policy.name if policy else None,
        "verdict": report.verdict,
        "seconds": report.seconds,
        "uncertain": report.faults,
        "devices": [_device(one, file) for one in report.devices],
        "routed": [_result(one, file) for one in report.routed],
        "not_tried": list(_UNSEEN),
    }


def _device(one: OnDevice, file: Path | None) -> dict[str, Any]:
    return {
        "uplink": one.target.uplink,
        "device": one.target.device,
        "mark": one.target.mark,
        "watched": list(one.target.watched),
        "verdict": one.verdict,
        "uncertain": list(one.faults),
        "controls": [
            {
                "device": control.key[0],
                "family": control.key[1],
                "kind": control.probe.kind.title,
                "by": control.by,
                "destination": control.probe.shot.destination,
                "seen": control.seen,
            }
            for control in one.controls
        ],
        "probes": [_result(result, file) for result in one.results],
    }


def _result(one: Result, file: Path | None) -> dict[str, Any]:
    shot = one.probe.shot
    return {
        "kind": one.probe.kind.name,
        "title": one.probe.kind.title,
        "family": shot.family or None,
        "device": shot.device,
        "uid": shot.uid,
        "gid": shot.gid,
        "mark": shot.mark,
        "destination": shot.destination if shot.family else None,
        "result": one.verdict,
        "detail": one.detail,
        "seen": list(one.seen),
        "packet": str(one.packet) if one.packet else None,
        "explain": explain(one, file) if one.verdict == "leaked" else None,
    }
