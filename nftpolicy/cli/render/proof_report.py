# SPDX-License-Identifier: BSD-2-Clause
"""Report of a proof, as text and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import frozen

from ...model.packet import ETHERTYPES, FORWARD, FRAME, KERNEL, CtInfo, Packet, format_address
from ...model.trace import Trace
from ...phrases import and_more
from ...proof.verdict import PROPERTIES, PROVED, REFUTED, UNKNOWN, Counterexample, Finding, describe_packet
from ...runtime.verify import Verification
from ..plain_output import plain_line
from .terminal import print_styled
from .trace import SourceLocator, outcome_text, shown_steps, trace_json

_SIGNS = {PROVED: "yes", REFUTED: "NO ", UNKNOWN: "?  "}
_STYLES = {PROVED: "green", REFUTED: "red", UNKNOWN: "yellow"}
_HEADLINES = {
    PROVED: "proved: {subject}: {properties} for all packets, IPv4 and IPv6",
    REFUTED: "REFUTED: {subject}: {refuted} of {all} statements are false",
    UNKNOWN: ("unknown: {subject}: no counterexample found, but not provable; see 'unsupported' below"),
}
_MOST = 12  # findings of one verdict that are printed whole
_ROUTING_STEPS = (
    "source",
    "reroute",
    "reflect",
    "route",
)  # kinds that are always part of a short trace
_DECISIVE_EFFECTS = ("mark", "ct mark", "drop", "reject", "dnat", "snat")
_NOT_DECIDING = "(reported; does not decide)"
_TITLE_WIDTH = 16  # columns of the longest title, "IPv4/IPv6 parity"


@frozen
class SuggestedCommands:
    """Commands that a report suggests, with the options that choose the same state.

    `policy` is the policy file, `state` the options for explain, `verify` those for verify.
    """

    policy: str | None
    state: tuple[str, ...]
    verify: tuple[str, ...]

    def explain(self, packet: Packet) -> str | None:
        """Return the command that traces the packet; None if its options cannot describe it."""
        known = packet.ethertype in (None, ETHERTYPES[packet.family])
        if not known or (packet.origin == FORWARD and packet.mark):
            return None
        return shlex.join(["nftpolicy", "explain", *self.state, *explain_options(packet)])

    @property
    def script(self) -> str:
        """Return the command that writes the reproduction script."""
        return shlex.join(["nftpolicy", "verify", *self.verify, "--script", "leak.sh"])


def explain_options(packet: Packet) -> list[str]:
    """Return the options of `explain` that describe the packet."""
    options = ["--to", format_address(packet.family, packet.destination)]
    if packet.source is not None:
        options += ["--from", format_address(packet.family, packet.source)]
    elif packet.origin in (FORWARD, FRAME):
        options += ["--from", "0.0.0.0" if packet.family == 4 else "::"]
    options += [
        "--proto",
        str(packet.protocol),
        "--dport",
        str(packet.dport),
        "--sport",
        str(packet.sport),
    ]
    if packet.has_socket:
        options += ["--uid", str(packet.uid), "--gid", str(packet.gid)]
    if packet.mark:
        options += ["--mark", f"{packet.mark:#x}"]
    if packet.cgroup:
        options += ["--cgroup", packet.cgroup]
    if packet.bound:
        options += ["--dev", packet.bound]
    if packet.origin == FORWARD:
        options += ["--forward", str(packet.iif)]
    if packet.origin == FRAME:
        options.append("--frame")
    if packet.origin == KERNEL:
        options.append("--kernel")
    default, flow = CtInfo(), packet.flow
    if flow.state != default.state:
        options += ["--state", flow.state]
    if flow.direction != default.direction:
        options.append("--reply")
    if flow.mark:
        options += ["--ct-mark", f"{flow.mark:#x}"]
    for (header, name), value in packet.fields.items():
        options += ["--field", f"{header}.{name}={value}"]
    return options


# --- text -------------------------------------------------------------------------------------


def print_proof(judged_state: Verification, locate: SourceLocator, commands: SuggestedCommands) -> None:
    """Print the report, with colours on a terminal."""
    print_styled(report_lines(judged_state, locate, commands))


def report_lines(
    judged_state: Verification, locate: SourceLocator, commands: SuggestedCommands
) -> Iterator[tuple[str, str]]:
    """Yield the report as lines of (text, rich style)."""
    proof = judged_state.proof
    yield verdict_headline(judged_state), _STYLES[proof.verdict]
    for name, title in PROPERTIES.items():
        if any(finding.property == name for finding in proof.findings):
            verdict = proof.property_verdict(name)
            note = verdict if name in judged_state.deciding_properties else f"{verdict} {_NOT_DECIDING}"
            yield f"  {_SIGNS[verdict]}  {name}  {title:<{_TITLE_WIDTH}}  {note}", _STYLES[verdict]
    for text in _detail_lines(judged_state, locate, commands):
        yield text, ""


def _detail_lines(judged_state: Verification, locate: SourceLocator, commands: SuggestedCommands) -> Iterator[str]:
    proof = judged_state.proof
    refuted = sorted(
        (finding for finding in proof.findings if finding.verdict == REFUTED),
        key=lambda finding: (not finding.deciding, finding.property),
    )
    for index, finding in enumerate(refuted[:_MOST]):
        yield ""
        yield from _refuted_lines(judged_state, finding, locate, commands, first=not index)
    yield from _omitted_lines(refuted)
    unknown = [finding for finding in proof.findings if finding.verdict == UNKNOWN]
    for finding in unknown[:_MOST]:
        yield ""
        yield from _unknown_lines(finding, locate)
    yield from _omitted_lines(unknown)
    yield from section_lines("exemptions (packets that may leave without a mark)", proof.exemptions)
    yield from section_lines("not checked", judged_state.not_verified)
    yield from section_lines("assumptions", proof.assumptions)


def verdict_headline(judged_state: Verification) -> str:
    """Return the verdict in one sentence."""
    subject = f"{judged_state.policy.name}: {judged_state.name}" if judged_state.policy else judged_state.name
    names = judged_state.deciding_properties
    deciding = [finding for finding in judged_state.proof.findings if finding.deciding]
    refuted = sum(finding.verdict == REFUTED for finding in deciding)
    properties = "there is nothing to prove"
    if len(names) == 1:
        properties = f"{names[0]} holds"
    elif names:
        properties = f"{names[0]} to {names[-1]} hold"
    template = _HEADLINES[judged_state.proof.verdict]
    return template.format(subject=subject, properties=properties, refuted=refuted, all=len(deciding))


def _finding_title(finding: Finding) -> str:
    uplink = f" uplink {finding.uplink}:" if finding.uplink else ""
    note = "" if finding.deciding else f" {_NOT_DECIDING}"
    return f"{finding.property} {finding.verdict}:{uplink} {finding.subject}{note}"


def _refuted_lines(
    judged_state: Verification,
    finding: Finding,
    locate: SourceLocator,
    commands: SuggestedCommands,
    first: bool,
) -> Iterator[str]:
    yield _finding_title(finding)
    if finding.examples:
        example = finding.examples[0]
        yield f"  packet  {describe_packet(example.packet)}"
        yield f"  why     {example.reason}"
        for index, step in enumerate(_short_trace(example.trace, locate)):
            yield f"  {'' if index else 'trace':<6}  {step}"
        more = len(finding.examples) - 1
        if more:
            yield f"          {and_more(more, 'packet')} by other paths: --json"
    elif finding.detail:
        yield f"  why     {finding.detail}"
    location = locate(finding.origin)
    if location:
        yield f"  policy  {location}"
    for index, command in enumerate(_next_commands(judged_state, finding, commands, first)):
        yield f"  {'' if index else 'next':<6}  {command}"


def _next_commands(
    judged_state: Verification, finding: Finding, commands: SuggestedCommands, first: bool
) -> Iterator[str]:
    if first and not judged_state.has_own_table:
        yield _apply_advice(judged_state, commands)
    if finding.examples:
        if first and any(example.device or example.trace.device for example in finding.examples):
            yield f"{commands.script} && sh leak.sh"
        explain = commands.explain(finding.examples[0].packet)
        if explain is not None:
            yield explain


def _apply_advice(judged_state: Verification, commands: SuggestedCommands) -> str:
    if judged_state.policy is None or commands.policy is None:
        return "no policy is in force here: write one (nftpolicy.toml(5)), then nftpolicy apply FILE"
    return f"the policy is not in force here: {shlex.join(['nftpolicy', 'apply', commands.policy])}"


def _unknown_lines(finding: Finding, locate: SourceLocator) -> Iterator[str]:
    yield _finding_title(finding)
    yield f"  why          {finding.detail}"
    constructs = list(dict.fromkeys(finding.unsupported))
    for index, construct in enumerate(constructs[:_MOST]):
        yield f"  {'' if index else 'unsupported':<11}  {construct}"
    if len(constructs) > _MOST:
        yield f"  {'':<11}  {and_more(len(constructs) - _MOST)}: --json"
    location = locate(finding.origin)
    if location:
        yield f"  policy       {location}"


def _short_trace(trace: Trace, locate: SourceLocator) -> list[str]:
    """Return the decisive steps of a trace, a line each, and its outcome."""
    lines = []
    for step in shown_steps(trace, locate):
        if step.kind in _ROUTING_STEPS or step.effect.startswith(_DECISIVE_EFFECTS):
            lines.append(f"{step.text}: {step.effect}" if step.decides else step.text)
    return [*dict.fromkeys(lines), f"=> {outcome_text(trace)}"]


def _omitted_lines(findings: Iterable[Finding]) -> Iterator[str]:
    omitted = len(list(findings)) - _MOST
    if omitted > 0:
        yield ""
        yield f"{and_more(omitted)}: --json"


def section_lines(head: str, items: Iterable[str]) -> Iterator[str]:
    """Yield a section of a report; nothing if there are no items."""
    lines = list(items)
    if lines:
        yield ""
        yield f"{head}:"
        yield from (f"  {plain_line(item)}" for item in lines)


# --- JSON -------------------------------------------------------------------------------------


def proof_json(judged_state: Verification, locate: SourceLocator) -> dict[str, Any]:
    """Return the report as JSON; nftpolicy-verify(1) documents the keys."""
    proof = judged_state.proof
    return {
        "judged": judged_state.name,
        "policy": judged_state.policy.name if judged_state.policy else None,
        "applied": judged_state.has_own_table,
        "verdict": proof.verdict,
        "properties": {
            name: {
                "title": title,
                "verdict": proof.property_verdict(name),
                "decides": name in judged_state.deciding_properties,
            }
            for name, title in PROPERTIES.items()
            if any(finding.property == name for finding in proof.findings)
        },
        "findings": [
            {
                "property": finding.property,
                "uplink": finding.uplink or None,
                "subject": finding.subject,
                "verdict": finding.verdict,
                "decides": finding.deciding,
                "detail": finding.detail,
                "doubts": list(dict.fromkeys(finding.unsupported)),
                "key": list(finding.origin),
                "policy": locate(finding.origin) or None,
                "counterexamples": [
                    _example_json(judged_state, finding, example, locate) for example in finding.examples
                ],
            }
            for finding in proof.findings
        ],
        "exemptions": list(proof.exemptions),
        "assumptions": list(proof.assumptions),
        "unjudged": list(judged_state.not_verified),
    }


def _example_json(
    judged_state: Verification, finding: Finding, example: Counterexample, locate: SourceLocator
) -> dict[str, Any]:
    try:
        script, reason = judged_state.reproduction_script(finding, example), None
    except ValueError as error:
        script, reason = None, str(error)
    return {
        "text": describe_packet(example.packet),
        "why": example.reason,
        "leaves_by": example.device or None,
        **trace_json(example.trace, locate),
        "script": script,
        "no_script": reason,
    }
