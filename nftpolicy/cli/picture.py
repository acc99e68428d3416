# SPDX-License-Identifier: BSD-2-Clause
"""A walk as a picture: the packet, each decision with its reason and the policy line behind it, the outcome.

Plain text where a program reads it; colours, by rich, on a terminal that wants them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ..model.decision import Decision
from ..model.packet import FORWARD, FRAME, KERNEL, Packet, shown
from ..model.walk import DELIVERED, DROPPED, LEAVES, UNKNOWN, UNROUTABLE, Walk
from ..netstate.nft import PROTOCOLS, Chain, CounterRef, Origin, Rule

if TYPE_CHECKING:
    from rich.text import Text

# A policy key -> "FILE:LINE key", or "" if it is none.
Place = Callable[[Origin], str]

_PORTS = frozenset({6, 17, 33, 132, 136})
_CHAIN = re.compile(r"^table (\S+ \S+), chain ")
_WORDS = {"ip-rule": "rule ", "route": "route "}
_STOPS = ("drop", "unreachable", "prohibit", "blackhole")
BEGINNING, AGAIN = "beginning", "routed again"
_WIDEST = 76  # columns of a step's text, before what follows is pushed to the right


@frozen
class Step:
    """One decision as it is shown: below which stage, how deep, and the policy line behind it."""

    stage: str
    depth: int
    kind: str
    text: str
    effect: str
    place: str
    key: Origin


def nowhere(_: Origin) -> str:
    """The Place of a state without a policy."""
    return ""


def of_source(name: str, line: Callable[[Origin], int | None]) -> Place:
    """The Place of a policy that was read from `name`."""
    from ..policy.errors import shown as shown_key

    def place(key: Origin) -> str:
        if not key:
            return ""
        number = line(key)
        return f"{name}{f':{number}' if number else ''} {shown_key(key)}"

    return place


# --- words ----------------------------------------------------------------------------------


def protocol(number: int) -> str:
    """An IP protocol by name."""
    return PROTOCOLS.get(number, f"protocol {number}")


def printable(text: str) -> str:
    """A name that others chose, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _end(family: int, address: int | None, port: int, ports: bool) -> str:
    if address is None:
        return f"(any):{port}" if ports and port else "(any)"
    text = shown(family, address)
    return (f"[{text}]:{port}" if family == 6 else f"{text}:{port}") if ports else text


def title(packet: Packet) -> str:
    """The packet's header."""
    if packet.origin == FRAME and packet.ethertype not in (None, 0x0800, 0x86DD):
        return f"frame of ethertype {packet.ethertype:#06x}"
    ports = packet.protocol in _PORTS
    source = _end(packet.family, packet.source, packet.sport, ports)
    fields = "".join(f", {of} {name} {value}" for (of, name), value in packet.fields.items())
    destination = _end(packet.family, packet.destination, packet.dport, ports)
    return f"{protocol(packet.protocol)} {source} -> {destination}{fields}"


def sender(packet: Packet) -> str:
    """Its socket, or where it came from."""
    flow = packet.flow
    words = {
        FORWARD: f"from another host, arrives by {packet.iif}",
        KERNEL: f"made by the kernel, without a socket; mark {packet.mark:#x}",
    }.get(packet.origin)
    if words is None:
        what = "AF_PACKET socket" if packet.origin == FRAME else "socket"
        words = f"{what} of user {packet.uid}, group {packet.gid}; mark {packet.mark:#x}"
        words += f"; on {packet.bound}" if packet.bound else ""
        words += "; no route, and no hook but egress" if packet.origin == FRAME else ""
        words += f"; cgroup {printable(packet.cgroup)}" if packet.cgroup else ""
    if (flow.state, flow.direction, flow.mark) != ("new", "original", 0):
        words += f"; connection {flow.state}, {flow.direction} direction, mark {flow.mark:#x}"
    return words


def outcome(walk: Walk) -> str:
    """What became of the packet, in one line."""
    packet, mark = walk.packet, f"mark {walk.mark:#x}"
    changed = walk.destination != packet.destination or walk.dport != packet.dport
    to = f", to {_end(packet.family, walk.destination, walk.dport, packet.protocol in _PORTS)}" if changed else ""
    if walk.outcome == LEAVES:
        return f"leaves by {walk.device} with {mark}{to}"
    if walk.outcome == DELIVERED:
        return f"stays on this machine with {mark}{to}"
    if walk.outcome == DROPPED:
        return f"dropped by {_last(walk)}"
    if walk.outcome == UNROUTABLE:
        return f"goes nowhere: {_no_route(walk)}"
    why = "; ".join(map(printable, walk.doubts)) or "more ways than were looked at"
    return f"may leave{f' by {walk.device}' if walk.device else ''}: not understood: {why}"


def indifferent(walk: Walk) -> list[str]:
    """What was not understood and yet leaves one outcome."""
    return [printable(one) for one in walk.doubts] if walk.outcome != UNKNOWN else []


def _last(walk: Walk) -> str:
    """Where it ended, and the counter that counted it."""
    where, what = "", ""
    for one in walk.decisions:
        if _is_policy(one):
            what = f"policy {one.effect}"
        elif isinstance(one.thing, Chain):
            where = _chain(one.text)
        elif isinstance(one.thing, Rule):
            counters = [part.name for part in one.thing.statements if isinstance(part, CounterRef)]
            what = f"counter {counters[0]}" if counters else one.text
        elif one.kind != "end":
            where, what = one.text, ""
    return f"{where}: {what}" if what else where


def _is_policy(one: Decision) -> bool:
    """Whether a base chain came to its end."""
    return isinstance(one.thing, Chain) and one.text.startswith("policy ")


def _chain(text: str) -> str:
    return _CHAIN.sub(r"\1 ", text)


def _no_route(walk: Walk) -> str:
    """The last decision that refused, which is more than that there is no route."""
    found = [one for one in walk.decisions if one.kind in ("ip-rule", "route")]
    said = [one for one in found if one.thing is not None and one.effect.startswith(_STOPS)]
    return f"{_left_of(said[-1])}: {said[-1].effect}" if said else "no route"


def _left_of(one: Decision) -> str:
    return f"{_WORDS.get(one.kind, '')}{one.text}"


def steps(walk: Walk, place: Place = nowhere) -> list[Step]:
    """The decisions in order, each below its stage. How the packet begins is in the header."""
    stage, hook, found = BEGINNING, "", []
    for one in walk.decisions:
        stage, hook = _stage(one, stage, hook)
        if one.kind in ("hook", "end") or stage == BEGINNING:
            continue
        if one.kind == "route" and one.thing is None and found and found[-1].effect == one.effect:
            continue  # the step before said how it goes without a route
        depth = 1 if one.kind == "rule" or _is_policy(one) else 0
        text = f"policy {one.effect}" if _is_policy(one) else _chain(one.text) if one.kind == "chain" else one.text
        found.append(Step(stage, depth, one.kind, printable(text), one.effect, place(one.origin), one.origin))
    return found


def _stage(one: Decision, stage: str, hook: str) -> tuple[str, str]:
    """The stage that a decision belongs to, and the hook that the packet is in."""
    if one.kind == "hook":
        return one.text, one.text
    if one.kind in ("chain", "rule"):
        return hook or stage, hook
    if one.kind == "reroute":
        return AGAIN, hook
    if stage == AGAIN or (stage == BEGINNING and one.kind in ("source", "reflect")):
        return stage, hook
    return "routing", hook


def as_json(walk: Walk, place: Place = nowhere) -> dict[str, Any]:
    """The same facts for a program."""
    packet = walk.packet
    return {
        "packet": {
            "family": packet.family,
            "from": shown(packet.family, packet.source) if packet.source is not None else None,
            "to": shown(packet.family, packet.destination),
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
            "fields": {f"{of}.{name}": value for (of, name), value in packet.fields.items()},
        },
        "steps": [
            {
                "stage": one.stage,
                "kind": one.kind,
                "text": one.text,
                "effect": one.effect,
                "key": list(one.key),
                "policy": one.place or None,
            }
            for one in steps(walk, place)
        ],
        "outcome": walk.outcome,
        "device": walk.device,
        "mark": walk.mark,
        "source": shown(packet.family, walk.source) if walk.source is not None else None,
        "destination": shown(packet.family, walk.destination),
        "dport": walk.dport,
        "doubts": list(walk.doubts),
        "words": outcome(walk),
    }


# --- pictures -----------------------------------------------------------------------------------


def draw(walk: Walk, place: Place = nowhere, above: str | None = None, notes: Iterable[str] = ()) -> None:
    """Print a walk. `above` is a line of its own before it, `notes` are lines before the outcome."""
    head, shown_steps = [above] if above else [], steps(walk, place)
    notes = [*(f"not understood, and of no consequence: {one}" for one in indifferent(walk)), *notes]
    if coloured():
        _draw_in_colours(walk, shown_steps, head, notes)
    else:
        print("\n".join(lines(walk, shown_steps, head, notes)))


def coloured() -> bool:
    """Whether standard output is a terminal that wants colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def lines(walk: Walk, shown_steps: Iterable[Step], head: Iterable[str] = (), notes: Iterable[str] = ()) -> list[str]:
    """The picture as plain text."""
    text = [*head, title(walk.packet), sender(walk.packet)]
    listed = list(shown_steps)
    lefts = [f"{'    ' if one.depth else '  '}{_left(one)}" for one in listed]
    width = min(max(map(len, lefts), default=0), _WIDEST)
    effects = [one.effect if one.effect != "goes on" else "" for one in listed]
    wide = max(map(len, effects), default=0)
    stage = ""
    for one, left, effect in zip(listed, lefts, effects, strict=True):
        if one.stage != stage:
            stage = one.stage
            text.append(stage)
        text.append(f"{left:<{width}}  {effect:<{wide}}  {one.place}".rstrip())
    return [*text, *notes, f"=> {outcome(walk)}"]


def _left(one: Step) -> str:
    return f"{_WORDS.get(one.kind, '')}{one.text}"


def _draw_in_colours(walk: Walk, shown_steps: list[Step], head: list[str], notes: list[str]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for line in head:
        console.print(Text(line, "dim"))
    console.print(Text(title(walk.packet), "bold"))
    console.print(Text(sender(walk.packet)))
    stage = ""
    for one in shown_steps:
        if one.stage != stage:
            stage = one.stage
            console.print(Text(stage, "bold cyan"))
        console.print(Padding(_in_colours(one), (0, 0, 0, 4 if one.depth else 2)))
    for line in notes:
        console.print(Text(line, "dim"))
    console.print(Text(f"=> {outcome(walk)}", _OUTCOMES.get(walk.outcome, "bold yellow")))


def _in_colours(one: Step) -> Text:
    """A step on one line: what decided, what came of it unless the text says so itself, the policy line."""
    from rich.text import Text

    style = "" if one.effect == "goes on" else _style(one.effect)
    said = one.effect == "goes on" or _left(one).endswith(one.effect)
    parts = [(_left(one), (style or "dim") if said else "")]
    parts += [] if said else [(f" -> {one.effect}", style)]
    parts += [(f"  {one.place}", "magenta")] if one.place else []
    return Text.assemble(*parts)


_OUTCOMES = {LEAVES: "bold green", DELIVERED: "bold green", DROPPED: "bold red", UNROUTABLE: "bold red"}


def _style(effect: str) -> str:
    if effect.endswith("goes on"):
        return "dim"
    if effect.startswith(_STOPS):
        return "red"
    return "green" if effect.endswith("accept") else "yellow"
