# SPDX-License-Identifier: BSD-2-Clause
"""P2, answers by UDP: what a server sends to a client at the uplink does not leave inside.

To connection tracking it is no reply if the server sends from another port or address than the one that was asked, or
after the entry has ended. What may tell is in sets, to which the rules of the request's arrival add elements: so the
answer is traced in the state after its request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import evolve

from ..model.nft.hooks import DROPPED
from ..model.packet import FORWARD, SOCKET, UDP, Packet, evolve_packet, format_address
from ..model.symbolic.box import points
from ..model.trace import LEAVES, Model
from ..netstate.nft import Concat, Element, Expression, Payload, Rule, SetUpdate, Table
from .assumptions import device_matches, restrict_to_present
from .context import ProofContext
from .spec import Spec, UplinkSpec
from .usability_case import device_address, free_source_port, needs_device, sample_packet
from .verdict import Counterexample, Finding, Proved, Refuted, Unknown, describe_packet

_SUBJECT = "answers to UDP requests by the uplink that leave by devices inside"


def check_asked_replies(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the finding for one uplink; none if it answers no UDP port."""
    present = [each for each in restrict_to_present(context.state, spec)[0].uplinks if each.name == uplink.name]
    exchanges = [
        (request, replies)
        for each in present
        for request, replies in _exchanges(context, spec, each)
        if context.model.trace(request, record=False).outcome != DROPPED
    ]
    if not exchanges:
        return
    model = _model_after(context, [request for request, _ in exchanges])
    examples, undecided = [], []
    for packet in (packet for _, replies in exchanges for packet in replies):
        trace = model.trace(packet)
        possible = trace.possible_traces
        if possible is not None and not any(
            each.outcome == LEAVES and _is_inside(spec, each.device) for each in possible
        ):
            continue
        if trace.outcome == LEAVES and trace.unanimous and _is_inside(spec, trace.device):
            reason = f"it answers a request by {uplink.name}"
            examples.append(Counterexample(packet, trace, str(trace.device), reason))
        else:
            undecided.append((packet, trace))
    if examples:
        yield Finding("P2", uplink.name, _SUBJECT, Refuted(examples[0], tuple(examples[1:])), origin=uplink.origin)
    elif undecided:
        packet, trace = undecided[0]
        constructs = tuple(dict.fromkeys(text for _, each in undecided for text in each.unsupported))
        result = Unknown(f"{describe_packet(packet)}: {trace.outcome}", constructs)
        yield Finding("P2", uplink.name, _SUBJECT, result, origin=uplink.origin)
    else:
        yield Finding("P2", uplink.name, _SUBJECT, Proved())


def _is_inside(spec: Spec, device: str | None) -> bool:
    outside = [name for uplink in spec.uplinks for name in uplink.devices]
    return device is not None and device != "lo" and not any(device_matches(each, device) for each in outside)


def _exchanges(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[tuple[Packet, tuple[Packet, ...]]]:
    """Yield a request to each UDP port and family, with the answers that a server may send to it.

    From the address that was asked, the answered port and another one; and from the address that the route selects.
    """
    device, other_port = uplink.devices[0], free_source_port(spec)
    for reply in uplink.replies:
        for family, regions in reply.headers.items():
            address = device_address(context.state, family, device)
            if address is None or regions[0].fields.get("protocol") != points(UDP):
                continue
            answer = evolve_packet(sample_packet(context, family, regions[0], SOCKET), source=address, dport=40000)
            if needs_device(answer.destination):
                continue
            request = Packet(
                family, address, answer.destination, UDP, answer.dport, answer.sport, origin=FORWARD, iif=device
            )
            by_other_port = (evolve_packet(answer, sport=other_port),) if other_port is not None else ()
            yield request, (answer, evolve_packet(answer, source=None), *by_other_port)


def _model_after(context: ProofContext, requests: Iterable[Packet]) -> Model:
    """Return the model of the state after these requests: the sets to which they added elements have them."""
    added: dict[tuple[tuple[str, str], str], set[Element]] = {}
    updates = [
        (rule, table.key, statement)
        for table in context.state.tables
        for chain in table.chains
        for rule in chain.rules
        for statement in rule.statements
        if isinstance(statement, SetUpdate) and statement.op != "delete"
    ]
    for request in requests:
        trace = context.model.trace(request)
        executed = {id(step.subject) for each in (trace, *trace.branches) for step in each.steps}
        for rule, table_key, statement in updates:
            element = _element(statement.key, request)
            if id(rule) in executed and element is not None:
                added.setdefault((table_key, statement.name), set()).add(element)
    return Model(evolve(context.state, tables=tuple(_with_elements(table, added) for table in context.state.tables)))


def _element(key: Expression, packet: Packet) -> Element | None:
    """Return the element that a packet adds; None if the key has other parts than addresses and ports."""
    header = {4: "ip", 6: "ip6"}[packet.family]
    values: dict[Expression, str | int] = {
        Payload(header, "saddr"): format_address(packet.family, packet.source or 0),
        Payload(header, "daddr"): format_address(packet.family, packet.destination),
        **{Payload(each, "sport"): packet.sport for each in ("udp", "th")},
        **{Payload(each, "dport"): packet.dport for each in ("udp", "th")},
    }
    if not isinstance(key, Concat):
        return values.get(key)
    parts = tuple(values[part] for part in key.parts if part in values)
    return parts if len(parts) == len(key.parts) else None


def _with_elements(table: Table, added: Mapping[tuple[tuple[str, str], str], set[Element]]) -> Table:
    """Return the table in which these sets have the elements, and change no more."""
    names = {name for key, name in added if key == table.key}
    if not names:
        return table

    def constant(rule: Rule) -> Rule:
        statements = [each for each in rule.statements if not (isinstance(each, SetUpdate) and each.name in names)]
        return rule if len(statements) == len(rule.statements) else evolve(rule, statements=tuple(statements))

    sets = tuple(
        evolve(each, elements=each.elements | added[table.key, each.name], flags=frozenset(), timeout=None)
        if each.name in names
        else each
        for each in table.sets
    )
    chains = tuple(evolve(chain, rules=tuple(map(constant, chain.rules))) for chain in table.chains)
    return evolve(table, sets=sets, chains=chains)
