# SPDX-License-Identifier: BSD-2-Clause
"""Apply the statements of rules to a packet. Compiled once per rule, executed per packet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...netstate import nft
from ..packet import TCP, UDP, format_address
from ..packet_view import PacketView
from .datatypes import DataType, data_type, parse_value
from .field_value import NFT_BREAK, NOT_MODELLED, Sentinel
from .match import LOOPBACK_ADDRESS, EvalContext, LazyText, NamedSets, compile_lookup, compile_match
from .readers import PORTED, HookPoint, is_untracked, reader

# Returns True if the rule continues (as a match does), False if it ends, or a verdict.
CompiledStatement = Callable[[EvalContext], bool | nft.Verdict]

# Writes that no modelled expression reads, and that do not redirect a packet.
_HARMLESS_META = frozenset({"nftrace", "priority", "secmark"})
_HARMLESS_CT = frozenset({"event", "label", "helper", "timeout", "secmark"})
_TRACED_OBJECTS = frozenset({"ct helper", "ct timeout", "ct expectation", "secmark"})
_STRUCTURE = frozenset(
    (*(("ip", name) for name in ("version", "hdrlength", "length", "frag-off", "protocol")),
     *(("ip6", name) for name in ("version", "length", "nexthdr")))
)  # fmt: skip
_HOPS = frozenset({"ttl", "hoplimit"})
_QUIET = (nft.Counter, nft.CounterRef, nft.Last, nft.Log, nft.NeutralTarget)


def compile_statement(statement: nft.Statement, tables: NamedSets, point: HookPoint) -> CompiledStatement | None:
    """Compile a statement; None if it has no effect."""
    if isinstance(statement, _QUIET):
        return None
    about = LazyText(statement, tables.table)
    match_ = statement
    match match_:
        case nft.Match():
            return compile_match(match_, tables, point)
        case nft.Unless(matches):
            tests = [compile_match(each, tables, point) for each in matches]
            return lambda run: not all(test(run) for test in tests)
        case nft.Verdict("continue"):
            return None
        case nft.Verdict():
            return lambda run: match_
        case nft.VerdictMap(key, entries):
            return _verdict_map(compile_lookup(key, entries, tables, point), about, _targets(entries))
        case nft.VerdictMapRef(key, name):
            content = next((named.elements for named in tables.table.maps if named.name == name), frozenset())
            return _verdict_map(compile_lookup(key, name, tables, point), about, _targets(content))
        case nft.Mangle(key, value):
            return _mangle(key, _value(value, key, tables, point), about, point)
        case nft.Dnat() | nft.Snat() | nft.Masquerade() | nft.Redirect():
            return _nat(match_, tables, point, about)
        case nft.Reject(type_):
            return _reject(type_)
        case nft.Notrack():
            return lambda run: _notrack(run, point)
        case nft.Limit() | nft.Quota() | nft.CtCount() | nft.UnmodelledMatch():
            return lambda run: run.choices.branch_on(str(about))
        case nft.SetUpdate(op, _, key, data=data):
            loaded = (key,) if data is None or isinstance(data, int | str | tuple) else (key, data)
            return _set_update([_readability(each, point) for each in loaded], op, about)
        case nft.ObjectRef(kind_) if kind_ in _TRACED_OBJECTS:
            return None
        case nft.ObjectRef("limit" | "quota"):
            return lambda run: run.choices.branch_on(str(about))
        case nft.ObjectRef("synproxy"):
            return _undecided(frozenset({"continue", "break", "drop"}), about)
        case nft.Undecided(_, results):
            return _undecided(results, about)
        case nft.Tproxy():
            return lambda run: _tproxy(run, about)
        case nft.Queue():
            return lambda run: _queue(run, about)
        case nft.FlowOffload() if point.hook != "forward":
            return None
    # A copy, another device, a connection taken over, an unknown statement: outcome not modelled.
    return lambda run: _noted(run, about)


# What a statement of each result returns; the first possible result is the model's first branch.
_RESULTS: dict[str, bool | nft.Verdict] = {
    "continue": True,
    "accept": nft.ACCEPT,
    "drop": nft.DROP,
    "return": nft.Verdict("return"),
    "break": False,
}


def _undecided(results: frozenset[str], about: LazyText) -> CompiledStatement | None:
    """Return a statement that branches on its possible results; None if it always continues."""
    possible = [result for result in _RESULTS if result in results]
    if possible == ["continue"]:
        return None

    def execute(run: EvalContext) -> bool | nft.Verdict:
        chosen = (result for result in possible[:-1] if run.choices.branch_on(f"{about}: {result}"))
        return _RESULTS[next(chosen, possible[-1])]

    return execute


def _tproxy(run: EvalContext, about: LazyText) -> bool:
    """Assign the packet to a local transparent socket, if there is one; else the rule ends (nft_tproxy_eval)."""
    if not run.choices.branch_on(f"a socket for {about}"):
        return False
    run.view.is_diverted = True
    run.effects.append("assigned to a local socket")
    return True


def _readability(key: nft.Expression, point: HookPoint) -> Callable[[PacketView], bool]:
    """Return a predicate: True if all parts of a key can be loaded."""
    parts = key.parts if isinstance(key, nft.Concat) else (key,)
    reads = [reader(part, point) for part in parts]
    return lambda view: all(read(view) is not NFT_BREAK for read in reads)


def _noted(run: EvalContext, about: LazyText) -> bool:
    run.choices.mark_unsupported(str(about))
    run.effects.append("unsupported")
    return True


def _targets(entries: Any) -> tuple[nft.Verdict, ...]:
    """Return the verdicts of a map, in a fixed order."""
    return tuple(sorted({verdict for _, verdict in entries}, key=repr))


def _verdict_map(
    find: Callable[[PacketView], Any], about: LazyText, possible: tuple[nft.Verdict, ...]
) -> CompiledStatement:
    def follow(run: EvalContext) -> bool | nft.Verdict:
        content = find(run.view)
        if content is NFT_BREAK:
            return False
        if content is NOT_MODELLED:
            # One of its verdicts, or none.
            if not possible:
                _noted(run, about)
            content = next((each for each in possible if run.choices.branch_on(f"{about}: {each.kind}")), None)
            if content is None:
                return False
        return True if content.kind == "continue" else content

    return follow


def _reject(type_: str) -> CompiledStatement:
    # nft adds a match on the family if the reply is of one family.
    family = {"icmp": 4, "icmpv6": 6}.get(type_)
    drop = nft.Verdict("drop")
    return lambda run: drop if family in (None, run.view.family) else False


def _notrack(run: EvalContext, point: HookPoint) -> bool:
    if is_untracked(run.view, point):  # also a packet that conntrack ignored
        run.view.notrack = True
        run.effects.append("not tracked")
    return True


def _queue(run: EvalContext, about: LazyText) -> nft.Verdict:
    """Pass the packet to a program, which may change it."""
    _noted(run, about)
    return nft.ACCEPT if run.choices.branch_on(f"{about}: accepted") else nft.DROP


def _set_update(readable: list[Callable[[PacketView], bool]], op: str, about: LazyText) -> CompiledStatement:
    def update(run: EvalContext) -> bool:
        return all(each(run.view) for each in readable) and (
            op == "delete" or run.choices.branch_on(f"room for {about}")
        )

    return update


# --- values that are written -----------------------------------------------------------

_ValueReader = Callable[[PacketView], Any]  # an int, NFT_BREAK or NOT_MODELLED


def _value(item: nft.Expression | nft.Value, key: nft.Expression, tables: NamedSets, point: HookPoint) -> _ValueReader:
    if isinstance(item, int | str):
        number = _single(data_type(key), item)
        return lambda view: NOT_MODELLED if number is None else number
    if isinstance(item, nft.Lookup):
        data = item.data if isinstance(item.data, frozenset) else item.data.name
        find, datatype = compile_lookup(item.key, data, tables, point), data_type(key)

        def read_map(view: PacketView) -> Any:
            content = find(view)
            if isinstance(content, Sentinel):
                return content
            number = None if isinstance(content, tuple) else _single(datatype, content)
            return NOT_MODELLED if number is None else number

        return read_map
    return reader(item, point)


def _single(datatype: DataType, item: nft.Value) -> int | None:
    content = parse_value(datatype, item)
    return content[0] if content is not None and content[0] == content[1] else None


def _mangle(key: nft.Expression, value: _ValueReader, about: LazyText, point: HookPoint) -> CompiledStatement | None:
    match key:
        case nft.Meta("mark") | nft.Ct("mark", None):
            pass
        case nft.Meta(name) if name in _HARMLESS_META:
            return None
        case nft.Ct(name) if name in _HARMLESS_CT:
            return None
        case nft.Option("tcp option"):
            # Ends the rule for other packets (nft_exthdr_tcp_set_eval); without the option nothing happens.
            has_header = reader(key, point)
            return lambda run: value(run.view) is not NFT_BREAK and has_header(run.view) is not NFT_BREAK
        case nft.Payload(protocol, name) if (protocol, name) in _STRUCTURE:
            return lambda run: _noted(run, about)  # the headers behind it are others then
        case nft.Payload(("ip" | "ip6"), ("saddr" | "daddr")) | nft.Payload(_, ("sport" | "dport")):
            pass
        case nft.Payload():
            return _header(key, value, reader(key, point))
        case _:
            return lambda run: _noted(run, about)
    readable = reader(key, point) if isinstance(key, nft.Payload) else None
    is_port = isinstance(key, nft.Payload) and key.name in ("sport", "dport")

    def write(run: EvalContext) -> bool:
        number = value(run.view)
        if number is NFT_BREAK or (readable is not None and readable(run.view) is NFT_BREAK):
            return False
        if isinstance(number, Sentinel) or (is_port and run.view.protocol not in PORTED):
            return _noted(run, about)
        _write(run, key, number & nft.FULL_MASK if isinstance(key, nft.Meta | nft.Ct) else number, point)
        return True

    return write


def _write(run: EvalContext, key: nft.Expression, number: int, point: HookPoint) -> None:
    view = run.view
    match key:
        case nft.Meta():
            view.mark = number
            run.effects.append(f"mark {number:#x}")
        case nft.Ct():
            # Without a connection there is nothing to mark.
            if reader(nft.Ct("mark"), point)(view) is not NFT_BREAK:
                view.ct_mark = number
                run.effects.append(f"flow mark {number:#x}")
        case nft.Payload(_, "saddr"):
            view.source = number
            run.effects.append(f"source {format_address(view.family, number)}")
        case nft.Payload(_, "daddr"):
            view.destination = number
            run.effects.append(f"destination {format_address(view.family, number)}")
        case nft.Payload(_, "sport"):
            view.sport = number
        case nft.Payload(_, "dport"):
            view.dport = number


def _header(key: nft.Payload, value: _ValueReader, read: Callable[[PacketView], Any]) -> CompiledStatement:
    """Return the write of another header field.

    If the value is not known, the field becomes unknown.
    """

    def write(run: EvalContext) -> bool:
        number = value(run.view)
        if number is NFT_BREAK or read(run.view) is NFT_BREAK:
            return False
        if key.name in _HOPS and run.view.iif and run.view.oif and not isinstance(number, Sentinel):
            number += 1  # which the view subtracts for a forwarded packet
        fields = {name: old for name, old in run.view.fields.items() if name != (key.protocol, key.name)}
        run.view.fields = fields if isinstance(number, Sentinel) else {**fields, (key.protocol, key.name): number}
        return True

    return write


# --- address translation ---------------------------------------------------------------


def _nat(statement: nft.Statement, tables: NamedSets, point: HookPoint, about: LazyText) -> CompiledStatement:
    """Return a NAT statement: it changes addresses and ports, and ends the chain with accept."""
    is_source = isinstance(statement, nft.Snat | nft.Masquerade)
    family = {"ip": 4, "ip6": 6, None: None}[getattr(statement, "family", None)]
    address: Any = getattr(statement, "address", None)
    plain = nft.Payload("th", "dport")
    # The family of an address is the packet's: the chain gets no other packets.
    find = {version: _part(address, nft.Payload(ip, "daddr"), tables, point) for version, ip in ((4, "ip"), (6, "ip6"))}
    port = _part(statement.port, plain, tables, point)  # type: ignore[union-attr]

    def translate(run: EvalContext) -> bool | nft.Verdict:
        view = run.view
        if family is not None and view.family != family:
            return False
        new_address, new_port = find[view.family](view), port(view)
        if NFT_BREAK in (new_address, new_port):
            return False
        if isinstance(new_address, tuple):  # a map may contain both
            new_address, new_port = new_address
        if new_port is NOT_MODELLED and is_source and _keeps_port(statement, view):
            new_port = None
        if NOT_MODELLED in (new_address, new_port) or "netmap" in statement.flags:  # type: ignore[union-attr]
            run.choices.mark_unsupported(str(about))
        new_address = None if new_address is NOT_MODELLED else new_address
        new_port = None if new_port is NOT_MODELLED else new_port
        _translate(run, is_source, statement, new_address, new_port, point)
        return nft.ACCEPT

    return translate


def _keeps_port(statement: nft.Statement, view: PacketView) -> bool:
    """Return True if source NAT to a range of ports keeps the port, which is in it (nf_nat_l4proto_unique_tuple)."""
    port: Any = getattr(statement, "port", None)
    if not isinstance(port, str) or statement.flags or view.protocol not in (TCP, UDP):  # type: ignore[union-attr]
        return False
    low, _, high = port.partition("-")
    return high.isdigit() and int(low) <= view.sport <= int(high)


def _part(item: Any, key: nft.Payload, tables: NamedSets, point: HookPoint) -> _ValueReader:
    if item is None:
        return lambda view: None
    if isinstance(item, nft.Lookup):
        data = item.data if isinstance(item.data, frozenset) else item.data.name
        find = compile_lookup(item.key, data, tables, point)

        def read_map(view: PacketView) -> Any:
            content = find(view)
            if isinstance(content, tuple):
                parts = [
                    _single(data_type(key), content[0]),
                    _single(data_type(nft.Payload("th", "dport")), content[1]),
                ]
                return NOT_MODELLED if len(content) != 2 or None in parts else tuple(parts)
            number = None if isinstance(content, Sentinel) else _single(data_type(key), content)
            return content if isinstance(content, Sentinel) else NOT_MODELLED if number is None else number

        return read_map
    return _value(item, key, tables, point)


def _translate(
    run: EvalContext, is_source: bool, statement: nft.Statement, address: int | None, port: int | None, point: HookPoint
) -> None:
    view = run.view
    if isinstance(statement, nft.Redirect):
        if point.hook == "output":
            address = LOOPBACK_ADDRESS[view.family]
        else:
            view.is_redirected = True
    if is_source:
        view.snat, view.new_source = True, view.source if isinstance(statement, nft.Snat) else None
        if address is not None:
            view.source = view.new_source = address
        view.sport = view.sport if port is None else port
    else:
        view.dnat = True
        view.destination = view.destination if address is None else address
        view.dport = view.dport if port is None else port
    view.status = view.status | {"snat" if is_source else "dnat"}
    side = "source" if is_source else "destination"
    to_address = "" if address is None else f" {format_address(view.family, address)}"
    to_port = "" if port is None else f" port {port}"
    run.effects.append(f"{side}{to_address}{to_port}")
