# SPDX-License-Identifier: BSD-2-Clause
"""Answers by UDP: what a server sends to a client at the uplink does not leave inside (P2), and can be used (P3).

To connection tracking it is no reply if the server sends from another port or address than the one that was asked, or
after the entry has ended. What may tell is in sets, to which the rules of the request's arrival add elements: so the
answer is traced in the state after its request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import evolve

from ..model.nft.hooks import DROPPED
from ..model.packet import (
    ADDRESS_BITS,
    FORWARD,
    SOCKET,
    UDP,
    CtInfo,
    Packet,
    address_range,
    evolve_packet,
    format_address,
    parse_address,
)
from ..model.symbolic.box import points
from ..model.trace import LEAVES, UNKNOWN, Model, Trace
from ..netstate.nft import Concat, Element, Expression, OriginPath, Payload, Rule, SetUpdate, Table
from ..netstate.routing import TABLE_MAIN, Route
from .assumptions import device_matches, restrict_to_present
from .context import ProofContext
from .spec import ReplySpec, Spec, UplinkSpec
from .usability_case import device_address, free_source_port, needs_device, sample_packet
from .verdict import Counterexample, Finding, Proved, Refuted, Unknown, describe_packet

_CLIENT_PORT = 40000
_LONGEST_DEFAULT = 7  # bits of a route that counts as a default one: nftpolicy.toml(5), ip rules


def check_udp_replies(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> Iterator[Finding]:
    """Yield the findings for one uplink; none if it answers no UDP port, or no request arrives."""
    present = [each for each in restrict_to_present(context.state, spec)[0].uplinks if each.name == uplink.name]
    exchanges = [each for listed in present for each in _exchanges(context, listed)]
    if not exchanges:
        return
    model = _model_after(context, [request for _, request, _ in exchanges])
    yield _inside_finding(model, spec, uplink, [answer for _, _, answer in exchanges])
    for reply in uplink.replies:
        answers = [answer for each, _, answer in exchanges if each == reply and reply.exclusive]
        packets = [packet for answer in answers for packet in _unbound_answers(context, uplink, answer)]
        if packets:
            yield _exclusive_finding(model, uplink, reply, packets)


def _inside_finding(model: Model, spec: Spec, uplink: UplinkSpec, answers: Iterable[Packet]) -> Finding:
    """Return the finding of P2: no answer leaves inside.

    From the address that was asked, the answered port and another one; and from the address that the route selects.
    """
    other_port = free_source_port(spec)
    examples, undecided = [], []
    for answer in answers:
        by_other_port = (evolve_packet(answer, sport=other_port),) if other_port is not None else ()
        for packet in (answer, evolve_packet(answer, source=None), *by_other_port):
            trace = model.trace(packet)
            possible = trace.possible_traces
            if possible is not None and not any(_leaves_inside(spec, each) for each in possible):
                continue
            if trace.unanimous and _leaves_inside(spec, trace):
                reason = f"it answers a request by {uplink.name}"
                examples.append(Counterexample(packet, trace, str(trace.device), reason))
            else:
                undecided.append((packet, trace))
    subject = "answers to UDP requests by the uplink that leave by devices inside"
    return _finding("P2", uplink, subject, uplink.origin, examples, undecided)


def _exclusive_finding(model: Model, uplink: UplinkSpec, reply: ReplySpec, packets: Iterable[Packet]) -> Finding:
    """Return the finding of P3: these answers leave by the uplink."""
    examples, undecided = [], []
    for packet in packets:
        trace = model.trace(packet)
        possible = trace.possible_traces
        if possible is not None and all(_leaves_by(uplink, each) for each in possible):
            continue
        if trace.unanimous and trace.outcome != UNKNOWN:
            reason = f"{trace.outcome}{f' by {trace.device}' if trace.device else ''}, mark {trace.mark:#x}"
            examples.append(Counterexample(packet, trace, uplink.devices[0], reason))
        else:
            undecided.append((packet, trace))
    subject = f"answer {reply.name} of a server that is bound to no address"
    return _finding("P3", uplink, subject, reply.origin, examples, undecided)


def _finding(
    name: str,
    uplink: UplinkSpec,
    subject: str,
    origin: OriginPath,
    examples: list[Counterexample],
    undecided: list[tuple[Packet, Trace]],
) -> Finding:
    result: Proved | Refuted | Unknown = Proved()
    if examples:
        result = Refuted(examples[0], tuple(examples[1:]))
    elif undecided:
        packet, trace = undecided[0]
        constructs = tuple(dict.fromkeys(text for _, each in undecided for text in each.unsupported))
        result = Unknown(f"{describe_packet(packet)}: {trace.outcome}", constructs)
    return Finding(name, uplink.name, subject, result, origin=origin)


def _leaves_inside(spec: Spec, trace: Trace) -> bool:
    outside = [name for uplink in spec.uplinks for name in uplink.devices]
    device = trace.device
    is_inside = device is not None and device != "lo" and not any(device_matches(each, device) for each in outside)
    return trace.outcome == LEAVES and is_inside


def _leaves_by(uplink: UplinkSpec, trace: Trace) -> bool:
    has_mark = trace.mark & uplink.mask == uplink.value
    return trace.outcome == LEAVES and trace.device in uplink.devices and has_mark


def _exchanges(context: ProofContext, uplink: UplinkSpec) -> Iterator[tuple[ReplySpec, Packet, Packet]]:
    """Yield a request to each UDP port and family that arrives, and an answer from the address that was asked."""
    device = uplink.devices[0]
    for reply in uplink.replies:
        for family, regions in reply.headers.items():
            address = device_address(context.state, family, device)
            if address is None or regions[0].fields.get("protocol") != points(UDP):
                continue
            packet = sample_packet(context, family, regions[0], SOCKET)
            answer = evolve_packet(packet, source=address, dport=_CLIENT_PORT)
            request = Packet(
                family, address, answer.destination, UDP, answer.dport, answer.sport, origin=FORWARD, iif=device
            )
            is_dropped = context.model.trace(request, record=False).outcome == DROPPED
            if not is_dropped and not needs_device(answer.destination):
                yield reply, request, answer


def _unbound_answers(context: ProofContext, uplink: UplinkSpec, answer: Packet) -> Iterator[Packet]:
    """Yield the answer of a server whose source the kernel selects, to a host that only default routes lead to.

    From another address than the one that was asked, it is no reply to connection tracking. None where the uplink has
    no route to the host, or the source is not known.
    """
    family, destination = answer.family, answer.destination
    by_uplink = context.model.router.lookup(family, destination, mark=uplink.value)
    if by_uplink.device not in uplink.devices or any(_leads_to(route, answer) for route in context.state.routes):
        return
    route = context.model.router.lookup(family, destination, protocol=UDP, sport=answer.sport, dport=answer.dport)
    if route.leaves and route.source is None:
        return
    # The client may have asked any address of the uplink.
    is_reply = route.device in uplink.devices and _is_address(context, family, route.source, route.device)
    flow = CtInfo("established", "reply", uplink.value) if is_reply else CtInfo()
    yield evolve_packet(answer, source=None, flow=flow)


def _is_address(context: ProofContext, family: int, source: str | None, device: str | None) -> bool:
    """Return True if the device has the address."""
    types = context.model.address_types
    return source is not None and types.address_type(family, parse_address(source), device) == "local"


def _leads_to(route: Route, packet: Packet) -> bool:
    """Return True if a route of table main leads to the packet's destination, and is no default route."""
    if (route.family, route.table) != (packet.family, TABLE_MAIN) or route.destination == "default":
        return False
    low, high = address_range(route.destination, route.family)
    bits = ADDRESS_BITS[route.family] - (high - low).bit_length()
    return low <= packet.destination <= high and bits > _LONGEST_DEFAULT


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
