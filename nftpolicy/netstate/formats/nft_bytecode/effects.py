# SPDX-License-Identifier: BSD-2-Clause
"""Expressions that count, limit, log, reject, or pass the packet on."""

from __future__ import annotations

from ... import nft
from ..nft_text_statements import OBJECT_STATEMENTS, SYNPROXY_RESULTS, object_map_text
from .attributes import Attributes, UnsupportedBytecode, decode, decode_text, split_list
from .datatypes import Column, element_value
from .loads import Operation
from .rule_state import RuleState
from .values import Kind, device_name, single_value

OBJECTS = {
    1: "counter", 2: "quota", 3: "ct helper", 4: "limit", 5: "ct count", 6: "tunnel", 7: "ct timeout", 8: "secmark",
    9: "ct expectation", 10: "synproxy",
}  # fmt: skip
_TIME_UNITS = {1: "second", 60: "minute", 3600: "hour", 86400: "day", 604800: "week"}
_BYTE_UNITS = ("bytes", "kbytes", "mbytes")
_UNIT_FACTOR = 1024
_INVERTED = {1: "inverted"}
_LOG_LEVELS = {
    0: "emerg", 1: "alert", 2: "crit", 3: "err", 4: "warn", 5: "notice", 6: "info", 7: "debug", 8: "audit",
}  # fmt: skip
# include/uapi/linux/netfilter/nf_log.h
_LOG_FLAGS = {1: "tcp sequence", 2: "tcp options", 4: "ip options", 8: "skuid", 32: "ether"}
_REJECT_CODES = {
    "icmp": {
        0: "net-unreachable", 1: "host-unreachable", 2: "prot-unreachable", 3: "port-unreachable",
        9: "net-prohibited", 10: "host-prohibited", 13: "admin-prohibited",
    },
    "icmpv6": {
        0: "no-route", 1: "admin-prohibited", 3: "addr-unreachable", 4: "port-unreachable", 5: "policy-fail",
        6: "reject-route",
    },
    "icmpx": {0: "no-route", 1: "port-unreachable", 2: "host-unreachable", 3: "admin-prohibited"},
}  # fmt: skip
_REJECT_PROTOCOLS = {"ip": "icmp", "ip6": "icmpv6"}
_FAMILIES = {2: "ip", 10: "ip6"}
# include/uapi/linux/netfilter/nf_synproxy.h
_SYNPROXY_FLAGS = {1: "mss", 2: "wscale", 4: "sack-perm", 8: "timestamp", 16: "ecn"}
_DEVICE_INDEX = 4  # bytes


def counter(attributes: Attributes) -> nft.Statement:
    """Return an anonymous counter."""
    attributes.ignore(1, 2, 3)  # its values
    return nft.Counter()


def last(attributes: Attributes) -> nft.Statement:
    """Return a record of the time of the last packet."""
    attributes.ignore(1, 2, 3)  # its values
    return nft.Last()


def limit(attributes: Attributes) -> nft.Limit:
    """Return a limit of a rate."""
    rate, per = attributes.number(1), attributes.choice(2, _TIME_UNITS)
    burst, is_bytes = attributes.number(3, 0), attributes.choice(4, {0: False, 1: True}, 0)
    over = "inverted" in attributes.flags(5, _INVERTED)
    attributes.ignore(6)  # padding
    if not is_bytes:
        return nft.Limit(rate, per, burst, over)
    amount, unit = byte_amount(rate)
    burst_amount, burst_unit = byte_amount(burst)
    return nft.Limit(amount, per, burst_amount, over, unit, burst_unit)


def byte_amount(number: int) -> tuple[int, str]:
    """Return a number of bytes in the largest unit that nft lists without a fraction."""
    for unit in _BYTE_UNITS[:-1]:
        if not number or number % _UNIT_FACTOR:
            return number, unit
        number //= _UNIT_FACTOR
    return number, _BYTE_UNITS[-1]


def quota(attributes: Attributes) -> nft.Quota:
    """Return a quota."""
    flags = attributes.flags(2, {1: "inverted", 2: "depleted"})
    attributes.ignore(3, 4)  # padding; the part that is used up
    return nft.Quota(*byte_amount(attributes.number(1)), "inverted" in flags)


def connlimit(attributes: Attributes) -> nft.Statement:
    """Return a limit of the number of connections."""
    return nft.CtCount(attributes.number(1), "inverted" in attributes.flags(2, _INVERTED))


def log(attributes: Attributes) -> nft.Statement:
    """Return a log statement."""
    options: dict[str, nft.Value] = {}
    for kind, name in ((1, "group"), (3, "snaplen"), (4, "queue-threshold")):
        number = attributes.optional_number(kind)
        if number is not None:
            options[name] = number
    prefix = attributes.take(2)
    if prefix is not None:
        options["prefix"] = decode_text(prefix)
    if attributes.has(5):
        options["level"] = attributes.choice(5, _LOG_LEVELS)
    flags = attributes.flags(6, _LOG_FLAGS)
    if flags:
        options["flags"] = "all" if len(flags) == len(_LOG_FLAGS) else ",".join(sorted(flags))
    return nft.Log(tuple(sorted(options.items())))


def notrack(attributes: Attributes) -> nft.Statement:
    """Return the exemption from connection tracking."""
    return nft.Notrack()


def flow_offload(attributes: Attributes) -> nft.Statement:
    """Return the offload of the connection to a flowtable."""
    return nft.FlowOffload(attributes.text(1))


def reject(attributes: Attributes) -> Operation:
    """Return a drop with an error packet."""
    kind, code = attributes.choice(1, {0: "icmp", 1: "tcp reset", 2: "icmpx"}), attributes.number(2, 0)

    def refuse(state: RuleState) -> None:
        if kind == "tcp reset":
            state.add(nft.Reject(kind, None))
            return
        # Without a test of the family it drops the packets of both (nft_reject_inet_eval).
        protocol = "icmpx" if kind == "icmpx" else _REJECT_PROTOCOLS.get(state.network or "", "unreach")
        state.add(nft.Reject(protocol, _REJECT_CODES.get(protocol, {}).get(code, code)))

    return refuse


def queue(attributes: Attributes) -> Operation:
    """Return the hand-over of the packet to a program."""
    number, total, register = attributes.number(1, 0), attributes.number(2, 1), attributes.optional_number(4)
    flags = attributes.flags(3, {1: "bypass", 2: "fanout"})

    def pass_on(state: RuleState) -> None:
        target: nft.Value | nft.Expression = number if total < 2 else f"{number}-{number + total - 1}"
        if register is not None:
            target = state.value(register, Column(Kind.NUMBER, 2, state.context.native))
        state.add(nft.Queue(target, flags))

    return pass_on


def objref(attributes: Attributes) -> Operation:
    """Return the use of a named object."""
    register, name = attributes.optional_number(3), attributes.take(4)
    attributes.ignore(5)  # the number of the map in its transaction
    if register is not None and name is not None:
        return _object_by_map(register, decode_text(name))
    kind, target = attributes.choice(1, OBJECTS), attributes.text(2)
    if kind == "counter":
        return lambda state: state.add(nft.CounterRef(target))
    if kind == "tunnel":
        return lambda state: state.add_unknown(f"tunnel {target}")
    return lambda state: state.add(nft.ObjectRef(kind, target))


def _object_by_map(register: int, name: str) -> Operation:
    """Return the use of the object that a map names; without an entry the rule ends (nft_objref_map_eval)."""

    def refer(state: RuleState) -> None:
        sets = state.context.sets
        number = sets.object_type(name)
        kind = OBJECTS.get(number, "")
        if kind not in OBJECT_STATEMENTS:
            state.add_unknown(f"object of type {number} by map {name}")
            return
        key, contents = state.key(register, sets.key_length(name))
        columns = state.columns(contents)
        try:
            text = f"{OBJECT_STATEMENTS[kind]} {object_map_text(key, sets.object_names(name, columns))}"
        except ValueError as error:
            raise UnsupportedBytecode(str(error)) from error
        results = SYNPROXY_RESULTS if kind == "synproxy" else frozenset({"continue", "break"})
        is_tracking = kind == "synproxy" or kind.startswith("ct ")
        state.add(nft.Undecided(text, results, is_tracking, is_syntax=True, key=key))

    return refer


ELEMENT_STATEMENTS = {"counter": counter, "last": last, "limit": limit, "quota": quota, "connlimit": connlimit}


def _element_statement(raw: bytes) -> nft.Statement:
    def named(attributes: Attributes) -> nft.Statement:
        name, data = attributes.text(1), attributes.take(2)
        if name not in ELEMENT_STATEMENTS:
            raise UnsupportedBytecode(f"a statement {name} of elements")
        return decode(data, ELEMENT_STATEMENTS[name])

    return decode(raw, named)


def dynset(attributes: Attributes) -> Operation:
    """Return the addition, update or deletion of a set element."""
    name, op = attributes.text(1), attributes.choice(3, {0: "add", 1: "update", 2: "delete"})
    attributes.ignore(2, 8)  # the number of the set in its transaction; padding
    key_register, data_register = attributes.number(4), attributes.optional_number(5)
    timeout = attributes.optional_number(6)
    flags = attributes.flags(9, {1: "inverted", 2: "statements"})
    single = attributes.take(7)
    statements = [*([] if single is None else [single]), *split_list(attributes.take(10))]
    lifted = tuple(map(_element_statement, statements))

    def update(state: RuleState) -> None:
        sets = state.context.sets
        key, contents = state.key(key_register, sets.key_length(name))
        sets.mark_updated(name, state.columns(contents))
        if "inverted" in flags:
            raise UnsupportedBytecode(f"an inverted update of {name}")
        lifetime = single_value(Kind.MILLISECONDS, timeout, 64) if timeout else None
        data = None if data_register is None else _map_data(state, data_register, name)
        state.add(nft.SetUpdate(op, name, key, lifetime, lifted, sets.is_anonymous(name), data))

    return update


def _map_data(state: RuleState, register: int, name: str) -> nft.Expression | nft.Element:
    """Return the data that a rule gives to an element of a map. Raises UnsupportedBytecode."""
    sets = state.context.sets
    length = sets.data_length(name)
    raw = state.constant(register, length)
    return state.key(register, length)[0] if raw is None else element_value(raw, sets.data_columns(name))


def _device(state: RuleState, register: int) -> nft.Value | nft.Expression:
    """Return the device whose index a register holds: its name, or an expression. Raises UnsupportedBytecode."""
    device = state.value(register, Column(Kind.DEVICE_INDEX, _DEVICE_INDEX, state.context.native))
    return device_name(device, state.context.devices) if isinstance(device, int) else device


def _address(state: RuleState, register: int, family: str | None) -> nft.Value | nft.Expression:
    kind, length = (Kind.IPV6, 16) if family == "ip6" else (Kind.IPV4, 4)
    return state.value(register, Column(kind, length, "big"))


def dup(attributes: Attributes) -> Operation:
    """Return a copy of the packet to another address or device."""
    address, device = attributes.optional_number(1), attributes.optional_number(2)

    def copy(state: RuleState) -> None:
        name = None if device is None else _device(state, device)
        if address is None:
            state.add(nft.Dup(name))
        else:
            state.add(nft.Dup(_address(state, address, state.context.family), name))

    return copy


def fwd(attributes: Attributes) -> Operation:
    """Return the forwarding of the packet to another device."""
    device, address = attributes.number(1), attributes.optional_number(2)
    family = attributes.choice(3, _FAMILIES) if attributes.has(3) else None

    def forward(state: RuleState) -> None:
        target = None if address is None else _address(state, address, family)
        state.add(nft.Fwd(_device(state, device), family, target))

    return forward


def tproxy(attributes: Attributes) -> Operation:
    """Return the redirection to a local socket."""
    family = attributes.choice(1, {0: None, **_FAMILIES}, 0)
    address, port = attributes.optional_number(2), attributes.optional_number(3)

    def redirect(state: RuleState) -> None:
        target = None if address is None else _address(state, address, family or state.network)
        target_port = None if port is None else state.value(port, Column(Kind.PORT, 2, "big"))
        is_given = state.context.family not in ("ip", "ip6")
        state.add(nft.Tproxy(family if is_given else None, target, target_port))

    return redirect


def synproxy(attributes: Attributes) -> Operation:
    """Return the answer of SYN packets on behalf of the destination."""
    mss, scale = attributes.number(1, 0), attributes.number(2, 0)
    flags = attributes.flags(3, _SYNPROXY_FLAGS)
    words = ["synproxy"]
    words += [f"mss {mss}"] if "mss" in flags else []
    words += [f"wscale {scale}"] if "wscale" in flags else []
    words += [name for name in ("timestamp", "sack-perm") if name in flags]
    is_given = bool(mss) <= ("mss" in flags) and bool(scale) <= ("wscale" in flags)
    if not is_given:
        raise UnsupportedBytecode("a value that no flag selects")
    statement = nft.Undecided(" ".join(words), SYNPROXY_RESULTS, True, is_syntax=True)
    return lambda state: state.add(statement)
