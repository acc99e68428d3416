# SPDX-License-Identifier: BSD-2-Clause
"""Trace of a packet as text: the packet, each step with its effect and policy line, the outcome.

Plain text if standard output is not a terminal, else coloured by rich.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from attrs import fields, frozen

from ...model.nft.hooks import DROPPED
from ...model.packet import FORWARD, FRAME, KERNEL, Packet, format_address
from ...model.trace import DELIVERED, LEAVES, UNKNOWN, UNROUTABLE, Trace
from ...model.trace_step import TraceStep
from ...netstate.nft import PROTOCOL_NAMES, Chain, CounterRef, OriginPath, Rule
from ..plain_output import plain_line
from .terminal import make_console, use_colour

if TYPE_CHECKING:
    from rich.text import Text

# A policy key -> "FILE:LINE key", or "" if it has none.
SourceLocator = Callable[[OriginPath], str]

_PROTOCOLS_WITH_PORTS = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite
_IP_ETHERTYPES = (None, 0x0800, 0x86DD)
_CHAIN = re.compile(r"^table (\S+ \S+), chain ")
_PREFIXES = {"ip-rule": "rule ", "route": "route "}
_STOPPING = ("drop", "unreachable", "prohibit", "blackhole")
_CONTINUES = str(fields(TraceStep).effect.default)  # the effect of a step that decides nothing
STAGE_ORIGIN, STAGE_REROUTED = "beginning", "routed again"
_WIDEST = 76  # columns of a step's text; a longer one moves its result to the right


@frozen
class ShownStep:
    """Line of a trace: a step below its stage, its effect, and its policy key and location."""

    stage: str
    depth: int
    kind: str
    text: str
    effect: str
    location: str
    key: OriginPath

    @property
    def decides(self) -> bool:
        """Return True if the step has an effect on the packet, or on its route."""
        return self.effect != _CONTINUES


def no_source(_: OriginPath) -> str:
    """Return "": the locator of a state without a policy."""
    return ""


# --- phrases --------------------------------------------------------------------------------


def _endpoint(family: int, address: int | None, port: int, ports: bool) -> str:
    if address is None:
        return f"(any):{port}" if ports and port else "(any)"
    text = format_address(family, address)
    if not ports:
        return text
    return f"[{text}]:{port}" if family == 6 else f"{text}:{port}"


def packet_title(packet: Packet) -> str:
    """Return protocol, addresses, ports and header fields of the packet."""
    if packet.origin == FRAME and packet.ethertype not in _IP_ETHERTYPES:
        return f"frame of ethertype {packet.ethertype:#06x}"
    ports = packet.protocol in _PROTOCOLS_WITH_PORTS
    protocol = PROTOCOL_NAMES.get(packet.protocol, f"protocol {packet.protocol}")
    source = _endpoint(packet.family, packet.source, packet.sport, ports)
    header_fields = "".join(f", {header} {name} {value}" for (header, name), value in packet.fields.items())
    destination = _endpoint(packet.family, packet.destination, packet.dport, ports)
    return f"{protocol} {source} -> {destination}{header_fields}"


def packet_sender(packet: Packet) -> str:
    """Return the socket of the packet, or the other origin, and its connection."""
    flow = packet.flow
    if packet.origin == FORWARD:
        text = f"from another host, arrives by {packet.iif}"
    elif packet.origin == KERNEL:
        text = f"sent by the kernel, without a socket; mark {packet.mark:#x}"
    else:
        socket = "AF_PACKET socket" if packet.origin == FRAME else "socket"
        text = f"{socket} of user {packet.uid}, group {packet.gid}; mark {packet.mark:#x}"
        if packet.bound:
            text += f"; bound to {packet.bound}"
        if packet.origin == FRAME:
            text += "; not routed, passes only the egress hook"
        if packet.cgroup:
            text += f"; cgroup {plain_line(packet.cgroup)}"
    if (flow.state, flow.direction, flow.mark) != ("new", "original", 0):
        text += f"; connection {flow.state}, {flow.direction} direction, mark {flow.mark:#x}"
    return text


def outcome_text(trace: Trace) -> str:
    """Return the outcome of a trace in one line."""
    packet, mark = trace.packet, f"mark {trace.mark:#x}"
    to = ""
    if trace.destination != packet.destination or trace.dport != packet.dport:
        ports = packet.protocol in _PROTOCOLS_WITH_PORTS
        to = f", to {_endpoint(packet.family, trace.destination, trace.dport, ports)}"
    if trace.outcome == LEAVES:
        return f"leaves by {trace.device} with {mark}{to}"
    if trace.outcome == DELIVERED:
        return f"delivered locally with {mark}{to}"
    if trace.outcome == DROPPED:
        return f"dropped by {_dropping_step(trace)}"
    if trace.outcome == UNROUTABLE:
        return f"unroutable: {_missing_route(trace)}"
    reason = "; ".join(map(plain_line, trace.unsupported)) or "too many branches to follow all"
    device = f" by {trace.device}" if trace.device else ""
    return f"may leave{device}: unsupported: {reason}"


def _irrelevant_unsupported(trace: Trace) -> list[str]:
    """Return the unsupported constructs on a trace that has one outcome all the same."""
    return [plain_line(construct) for construct in trace.unsupported] if trace.outcome != UNKNOWN else []


def _dropping_step(trace: Trace) -> str:
    """Return the chain or step that ended the trace, with the counter that counts it."""
    where, decision = "", ""
    for step in trace.steps:
        if _is_chain_policy(step):
            decision = f"policy {step.effect}"
        elif isinstance(step.subject, Chain):
            where = _shorten_chain(step.text)
        elif isinstance(step.subject, Rule):
            counters = [part.name for part in step.subject.statements if isinstance(part, CounterRef)]
            decision = f"counter {counters[0]}" if counters else step.text
        elif step.kind != "end":
            where, decision = step.text, ""
    return f"{where}: {decision}" if decision else where


def _is_chain_policy(step: TraceStep) -> bool:
    """Return True if a base chain ended, and its policy decides."""
    return isinstance(step.subject, Chain) and step.text.startswith("policy ")


def _shorten_chain(text: str) -> str:
    return _CHAIN.sub(r"\1 ", text)


def _missing_route(trace: Trace) -> str:
    """Return the last ip rule or route that rejects the packet, or "no route"."""
    lookups = [step for step in trace.steps if step.kind in ("ip-rule", "route")]
    rejecting = [step for step in lookups if step.subject is not None and step.effect.startswith(_STOPPING)]
    if not rejecting:
        return "no route"
    last = rejecting[-1]
    return f"{_PREFIXES[last.kind]}{last.text}: {last.effect}"


def shown_steps(trace: Trace, locate: SourceLocator = no_source) -> list[ShownStep]:
    """Return the steps of a trace in order, each with its stage, without the packet's origin."""
    stage, hook = STAGE_ORIGIN, ""
    lines: list[ShownStep] = []
    for step in trace.steps:
        stage, hook = _next_stage(step, stage, hook)
        if step.kind in ("hook", "end") or stage == STAGE_ORIGIN:
            continue
        if step.kind == "route" and step.subject is None and lines and lines[-1].effect == step.effect:
            continue  # the step before has the same result already
        depth, text = 0, step.text
        if _is_chain_policy(step):
            depth, text = 1, f"policy {step.effect}"
        elif step.kind == "chain":
            text = _shorten_chain(step.text)
        elif step.kind == "rule":
            depth = 1
        location = locate(step.origin)
        lines.append(ShownStep(stage, depth, step.kind, plain_line(text), step.effect, location, step.origin))
    return lines


def _next_stage(step: TraceStep, stage: str, hook: str) -> tuple[str, str]:
    """Return the stage of a step, and the hook that the packet is in."""
    if step.kind == "hook":
        return step.text, step.text
    if step.kind in ("chain", "rule"):
        return hook or stage, hook
    if step.kind == "reroute":
        return STAGE_REROUTED, hook
    if stage == STAGE_REROUTED or (stage == STAGE_ORIGIN and step.kind in ("source", "reflect")):
        return stage, hook
    return "routing", hook


def trace_json(trace: Trace, locate: SourceLocator = no_source) -> dict[str, Any]:
    """Return a trace as JSON; nftpolicy(1) documents the keys."""
    packet = trace.packet
    return {
        "packet": {
            "family": packet.family,
            "from": format_address(packet.family, packet.source) if packet.source is not None else None,
            "to": format_address(packet.family, packet.destination),
            "protocol": packet.protocol,
            "sport": packet.sport,
            "dport": packet.dport,
            "origin": packet.origin,
            "mark": packet.mark,
            "uid": packet.uid if packet.has_socket else None,
            "gid": packet.gid if packet.has_socket else None,
            "cgroup": packet.cgroup,
            "bound": packet.bound,
            "iif": packet.iif,
            "ethertype": packet.ethertype,
            "connection": {
                "state": packet.flow.state,
                "direction": packet.flow.direction,
                "mark": packet.flow.mark,
            },
            "fields": {f"{header}.{name}": value for (header, name), value in packet.fields.items()},
        },
        "steps": [
            {
                "stage": step.stage,
                "kind": step.kind,
                "text": step.text,
                "effect": step.effect,
                "key": list(step.key),
                "policy": step.location or None,
            }
            for step in shown_steps(trace, locate)
        ],
        "outcome": trace.outcome,
        "device": trace.device,
        "mark": trace.mark,
        "source": format_address(packet.family, trace.source) if trace.source is not None else None,
        "destination": format_address(packet.family, trace.destination),
        "dport": trace.dport,
        "doubts": list(trace.unsupported),
        "words": outcome_text(trace),
    }


# --- printing -------------------------------------------------------------------------------


def print_trace(
    trace: Trace,
    locate: SourceLocator = no_source,
    head: str | None = None,
    notes: Iterable[str] = (),
) -> None:
    """Print a trace, with the line `head` before it and the lines `notes` before the outcome."""
    heads, steps = [head] if head else [], shown_steps(trace, locate)
    unsupported = [
        f"unsupported, but does not change the outcome: {construct}" for construct in _irrelevant_unsupported(trace)
    ]
    all_notes = [*unsupported, *notes]
    if use_colour():
        _print_in_colours(trace, steps, heads, all_notes)
    else:
        print("\n".join(trace_lines(trace, steps, heads, all_notes)))


def trace_lines(
    trace: Trace, steps: Iterable[ShownStep], heads: Iterable[str] = (), notes: Iterable[str] = ()
) -> list[str]:
    """Return a trace as plain text, in columns."""
    text = [*heads, packet_title(trace.packet), packet_sender(trace.packet)]
    all_steps = list(steps)
    lefts = [f"{'    ' if step.depth else '  '}{_left_column(step)}" for step in all_steps]
    width = min(max(map(len, lefts), default=0), _WIDEST)
    effects = [step.effect if step.decides else "" for step in all_steps]
    effect_width = max(map(len, effects), default=0)
    stage = ""
    for step, left, effect in zip(all_steps, lefts, effects, strict=True):
        if step.stage != stage:
            stage = step.stage
            text.append(stage)
        text.append(f"{left:<{width}}  {effect:<{effect_width}}  {step.location}".rstrip())
    return [*text, *notes, f"=> {outcome_text(trace)}"]


def _left_column(step: ShownStep) -> str:
    return f"{_PREFIXES.get(step.kind, '')}{step.text}"


def _print_in_colours(trace: Trace, steps: list[ShownStep], heads: list[str], notes: list[str]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console = make_console()
    for line in heads:
        console.print(Text(line, "dim"))
    console.print(Text(packet_title(trace.packet), "bold"))
    console.print(Text(packet_sender(trace.packet)))
    stage = ""
    for step in steps:
        if step.stage != stage:
            stage = step.stage
            console.print(Text(stage, "bold cyan"))
        console.print(Padding(_coloured_step(step), (0, 0, 0, 4 if step.depth else 2)))
    for line in notes:
        console.print(Text(line, "dim"))
    console.print(Text(f"=> {outcome_text(trace)}", _OUTCOME_STYLES.get(trace.outcome, "bold yellow")))


def _coloured_step(step: ShownStep) -> Text:
    """Return a step in one line: text, effect unless the text ends with it, policy line."""
    from rich.text import Text

    left = _left_column(step)
    style = _effect_style(step.effect) if step.decides else ""
    parts = [(left, style or "dim")]
    if step.decides and not left.endswith(step.effect):
        parts = [(left, ""), (f" -> {step.effect}", style)]
    if step.location:
        parts.append((f"  {step.location}", "magenta"))
    return Text.assemble(*((plain_line(text), style) for text, style in parts))


_OUTCOME_STYLES = {
    LEAVES: "bold green",
    DELIVERED: "bold green",
    DROPPED: "bold red",
    UNROUTABLE: "bold red",
}


def _effect_style(effect: str) -> str:
    if effect.endswith(_CONTINUES):
        return "dim"
    if effect.startswith(_STOPPING):
        return "red"
    return "green" if effect.endswith("accept") else "yellow"
