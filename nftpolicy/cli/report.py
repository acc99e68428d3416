# SPDX-License-Identifier: BSD-2-Clause
"""A proof for a person, and for a program."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import frozen

from ..model.packet import ETHERTYPES, FORWARD, FRAME, KERNEL, Flow, Packet, shown
from ..model.walk import Walk
from ..proof.verdict import PROPERTIES, PROVED, REFUTED, UNKNOWN, Counterexample, Finding, described
from ..runtime.verify import Judged
from . import picture
from .picture import Place

_SIGNS = {PROVED: "yes", REFUTED: "NO ", UNKNOWN: "?  "}
_COLOURS = {PROVED: "32", REFUTED: "31", UNKNOWN: "33"}
_HEADLINES = {
    PROVED: "proved: {what}: {properties} for all packets, IPv4 and IPv6",
    REFUTED: "REFUTED: {what}: {refuted} of {all} statements are not true",
    UNKNOWN: "unknown: {what}: nothing refutes it, and it can't be proved",
}
_MOST = 12  # findings of one kind that are printed whole
_DECIDING = ("source", "reroute", "reflect", "route")  # steps that are always part of a short walk


@frozen
class Names:
    """How the commands that a report advises name what was judged.

    `policy` is the file, `state` the options that choose the state for verify and explain alike.
    """

    policy: str | None
    state: tuple[str, ...]
    verify: tuple[str, ...]

    def explain(self, packet: Packet) -> str | None:
        """The command that shows the whole way of a packet, if `explain` has words for such a one."""
        known = packet.ethertype in (None, ETHERTYPES[packet.family])
        if not known or (packet.origin == FORWARD and packet.mark):
            return None
        return shlex.join(["nftpolicy", "explain", *self.state, *words(packet)])

    @property
    def script(self) -> str:
        """The command that writes the reproduction."""
        return shlex.join(["nftpolicy", "verify", *self.verify, "--script", "leak.sh"])


def words(packet: Packet) -> list[str]:
    """The options of `explain` that describe the packet."""
    found = ["--to", shown(packet.family, packet.destination)]
    if packet.source is not None:
        found += ["--from", shown(packet.family, packet.source)]
    elif packet.origin in (FORWARD, FRAME):
        found += ["--from", "0.0.0.0" if packet.family == 4 else "::"]
    found += ["--proto", str(packet.protocol), "--dport", str(packet.dport), "--sport", str(packet.sport)]
    if packet.has_socket:
        found += ["--uid", str(packet.uid), "--gid", str(packet.gid)]
    if packet.mark:
        found += ["--mark", f"{packet.mark:#x}"]
    found += ["--cgroup", packet.cgroup] if packet.cgroup else []
    found += ["--dev", packet.bound] if packet.bound else []
    found += ["--forward", str(packet.iif)] if packet.origin == FORWARD else []
    found += ["--frame"] if packet.origin == FRAME else []
    found += ["--kernel"] if packet.origin == KERNEL else []
    plain = Flow()
    found += ["--state", packet.flow.state] if packet.flow.state != plain.state else []
    found += ["--reply"] if packet.flow.direction != plain.direction else []
    found += ["--ct-mark", f"{packet.flow.mark:#x}"] if packet.flow.mark else []
    for (header, name), value in packet.fields.items():
        found += ["--field", f"{header}.{name}={value}"]
    return found


# --- text -------------------------------------------------------------------------------------


def draw(judged: Judged, place: Place, names: Names) -> None:
    """Print the report."""
    print("\n".join(lines(judged, place, names, picture.coloured())))


def lines(judged: Judged, place: Place, names: Names, coloured: bool = False) -> Iterator[str]:
    """The report, line by line."""
    proof = judged.proof
    yield _painted(headline(judged), proof.verdict, coloured)
    for name, title in PROPERTIES.items():
        if any(one.property == name for one in proof.findings):
            verdict = proof.of(name)
            said = verdict if name in judged.decides else f"{verdict} (reported; does not decide)"
            yield _painted(f"  {_SIGNS[verdict]}  {name}  {title:<12}  {said}", verdict, coloured)
    refuted = sorted(
        (one for one in proof.findings if one.verdict == REFUTED), key=lambda one: (not one.deciding, one.property)
    )
    for index, one in enumerate(refuted[:_MOST]):
        yield ""
        yield from _refuted(judged, one, place, names, first=not index)
    yield from _more(refuted)
    unclear = [one for one in proof.findings if one.verdict == UNKNOWN]
    for one in unclear[:_MOST]:
        yield ""
        yield from _unknown(one, place)
    yield from _more(unclear)
    yield from listed("what may leave without a mark (exemptions)", proof.exemptions)
    yield from listed("not judged", judged.unjudged)
    yield from listed("what this rests on", proof.assumptions)


def headline(judged: Judged) -> str:
    """The verdict in words."""
    what = f"{judged.policy.name}: {judged.name}" if judged.policy else judged.name
    held = judged.decides
    deciding = [one for one in judged.proof.findings if one.deciding]
    refuted = sum(one.verdict == REFUTED for one in deciding)
    properties = f"{held[0]} to {held[-1]} hold" if len(held) > 1 else f"{held[0]} holds" if held else "nothing claimed"
    return _HEADLINES[judged.proof.verdict].format(what=what, properties=properties, refuted=refuted, all=len(deciding))


def _painted(text: str, verdict: str, coloured: bool) -> str:
    return f"\x1b[{_COLOURS[verdict]}m{text}\x1b[0m" if coloured else text


def title(one: Finding) -> str:
    """A finding in a line."""
    uplink = f" uplink {one.uplink}:" if one.uplink else ""
    aside = "" if one.deciding else " (reported; does not decide)"
    return f"{one.property} {one.verdict}:{uplink} {one.subject}{aside}"


def _refuted(judged: Judged, one: Finding, place: Place, names: Names, first: bool) -> Iterator[str]:
    yield title(one)
    if one.examples:
        example = one.examples[0]
        yield f"  packet  {described(example.packet)}"
        yield f"  why     {example.why}"
        for index, step in enumerate(short(example.walk, place)):
            yield f"  {'walk' if not index else '':<6}  {step}"
        others = len(one.examples) - 1
        if others:
            yield f"          and {others} more packet{'s' if others > 1 else ''} by other ways: --json"
    elif one.detail:
        yield f"  why     {one.detail}"
    where = place(one.origin)
    if where:
        yield f"  policy  {where}"
    advice = [_apply(judged, names)] if first and not judged.applied else []
    if one.examples:
        advice += [f"{names.script} && sh leak.sh"] if first else []
        advice += [said] if (said := names.explain(one.examples[0].packet)) else []
    for index, said in enumerate(advice):
        yield f"  {'next' if not index else '':<6}  {said}"


def _apply(judged: Judged, names: Names) -> str:
    if judged.policy is None or names.policy is None:
        return "no policy is in force here: write one (nftpolicy.toml(5)), then nftpolicy apply FILE"
    return f"the policy is not in force here: {shlex.join(['nftpolicy', 'apply', names.policy])}"


def _unknown(one: Finding, place: Place) -> Iterator[str]:
    yield title(one)
    yield f"  why     {one.detail}"
    doubts = list(dict.fromkeys(one.doubts))
    for index, doubt in enumerate(doubts[:_MOST]):
        yield f"  {'not understood' if not index else '':<14}  {doubt}"
    if len(doubts) > _MOST:
        yield f"  {'':<14}  and {len(doubts) - _MOST} more: --json"
    where = place(one.origin)
    if where:
        yield f"  policy  {where}"


def short(walk: Walk, place: Place) -> list[str]:
    """The decisions of a walk that mattered, each in a line, and its end."""
    kept = [
        one
        for one in picture.steps(walk, place)
        if one.kind in _DECIDING or one.effect.startswith(("mark", "ct mark", "drop", "reject", "dnat", "snat"))
    ]
    told = [f"{one.text}{'' if one.effect == 'goes on' else f': {one.effect}'}" for one in kept]
    return [*dict.fromkeys(told), f"=> {picture.outcome(walk)}"]


def _more(findings: Iterable[Finding]) -> Iterator[str]:
    rest = len(list(findings)) - _MOST
    if rest > 0:
        yield ""
        yield f"and {rest} more: --json"


def listed(head: str, items: Iterable[str]) -> Iterator[str]:
    """A part of a report: nothing, if there are no items."""
    found = list(items)
    if found:
        yield ""
        yield f"{head}:"
        yield from (f"  {picture.printable(one)}" for one in found)


# --- JSON -------------------------------------------------------------------------------------


def as_json(judged: Judged, place: Place) -> dict[str, Any]:
    """The whole for a program; nftpolicy(1) names the keys."""
    proof = judged.proof
    return {
        "judged": judged.name,
        "policy": judged.policy.name if judged.policy else None,
        "applied": judged.applied,
        "verdict": proof.verdict,
        "properties": {
            name: {"title": title, "verdict": proof.of(name), "decides": name in judged.decides}
            for name, title in PROPERTIES.items()
            if any(one.property == name for one in proof.findings)
        },
        "findings": [
            {
                "property": one.property,
                "uplink": one.uplink or None,
                "subject": one.subject,
                "verdict": one.verdict,
                "decides": one.deciding,
                "detail": one.detail,
                "doubts": list(dict.fromkeys(one.doubts)),
                "key": list(one.origin),
                "policy": place(one.origin) or None,
                "counterexamples": [_example(judged, one, example, place) for example in one.examples],
            }
            for one in proof.findings
        ],
        "exemptions": list(proof.exemptions),
        "assumptions": list(proof.assumptions),
        "unjudged": list(judged.unjudged),
    }


def _example(judged: Judged, finding: Finding, example: Counterexample, place: Place) -> dict[str, Any]:
    try:
        script, why_not = judged.script(finding, example), None
    except ValueError as error:
        script, why_not = None, str(error)
    return {
        "text": described(example.packet),
        "why": example.why,
        "leaves_by": example.device or None,
        **picture.as_json(example.walk, place),
        "script": script,
        "no_script": why_not,
    }
