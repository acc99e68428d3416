# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of one expression: from its attributes to the operation on a rule's state.

What a decoder does not consume makes the expression unsupported. A test or a load that is
unsupported is a test with an unknown result; any other expression may do anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ... import nft
from ..xt_decode import must_end_rule
from . import effects, loads, tests, writes
from .attributes import Attributes, UnsupportedBytecode, decode, decode_text, split_attributes
from .loads import Operation
from .registers import Content
from .rule_state import RuleState
from .values import Kind

_NAME, _DATA = 1, 2  # NFTA_EXPR_*
_INFO_NAME, _INFO_REVISION, _INFO = 1, 2, 3  # NFTA_MATCH_*, NFTA_TARGET_*

Decoder = Callable[[Attributes], Operation]


def _statement(decoder: Callable[[Attributes], nft.Statement]) -> Decoder:
    def decode_statement(attributes: Attributes) -> Operation:
        statement = decoder(attributes)
        return lambda state: state.add(statement)

    return decode_statement


def _read_or_write(read: Decoder, write: Decoder, register: int) -> Decoder:
    """Return a decoder for an expression that writes if it has a source register."""
    return lambda attributes: write(attributes) if attributes.has(register) else read(attributes)


def _xt(kind: str) -> Decoder:
    def decode_extension(attributes: Attributes) -> Operation:
        name, revision, info = attributes.text(_INFO_NAME), attributes.number(_INFO_REVISION, 0), attributes.take(_INFO)

        def add(state: RuleState) -> None:
            context = state.context
            statements = context.decode_xt(kind, name, revision, info or b"", context.family, context.native)
            for statement in statements:
                _add_xt(state, statement)
            if kind == "target" or any(isinstance(each, nft.Mangle) for each in statements):
                state.forget_packet()
            if must_end_rule(kind, name):
                state.end_rule()

        return add

    return decode_extension


def _add_xt(state: RuleState, statement: nft.Statement) -> None:
    """Add a statement of an extension; a test of bits of a header gets nft's name of the field."""
    match statement:
        case nft.Match(nft.RawPayload() as raw, int(number), op):
            mask: nft.Value | None = None
        case nft.Match(nft.Bitwise(nft.RawPayload() as raw, int() as mask, 0), int(number), op):
            pass
        case _:
            state.add(statement)
            return
    assert not isinstance(mask, str)
    length = raw.length // 8
    state.compare(Content(raw, Kind.NUMBER, length, "big", mask), op, number, length)


_TESTS: Mapping[str, Decoder] = {
    "cmp": tests.cmp,
    "range": tests.range_,
    "bitwise": tests.bitwise,
    "byteorder": tests.byteorder,
    "rt": loads.rt,
    "socket": loads.socket,
    "fib": loads.fib,
    "numgen": loads.numgen,
    "hash": loads.hash_,
    "osf": loads.osf,
    "xfrm": loads.xfrm,
    "tunnel": loads.tunnel,
    "inner": loads.inner,
}
_EFFECTS: Mapping[str, Decoder] = {
    "immediate": tests.immediate,
    "lookup": tests.lookup,
    "meta": _read_or_write(loads.meta, writes.meta, 3),
    "ct": _read_or_write(loads.ct, writes.ct, 4),
    "payload": _read_or_write(loads.payload, writes.payload, 5),
    "exthdr": _read_or_write(_read_or_write(writes.reset_option, loads.exthdr, 1), writes.exthdr, 7),
    "counter": _statement(effects.counter),
    "last": _statement(effects.last),
    "limit": _statement(effects.limit),
    "quota": _statement(effects.quota),
    "connlimit": _statement(effects.connlimit),
    "log": _statement(effects.log),
    "notrack": _statement(effects.notrack),
    "flow_offload": _statement(effects.flow_offload),
    "reject": effects.reject,
    "queue": effects.queue,
    "objref": effects.objref,
    "dynset": effects.dynset,
    "dup": effects.dup,
    "fwd": effects.fwd,
    "tproxy": effects.tproxy,
    "synproxy": effects.synproxy,
    "nat": writes.nat,
    "masq": writes.masquerade,
    "redir": writes.redirect,
    "match": _xt("match"),
    "target": _xt("target"),
}
_DECODERS = {**_TESTS, **_EFFECTS}
# Attribute with the source register; without it the expression only loads.
_SOURCE_REGISTERS = {"meta": 3, "ct": 4, "payload": 5, "exthdr": 7}


def decode_expression(raw: bytes) -> Operation:
    """Return the operation of one NFTA_LIST_ELEM. An unsupported one adds what it may do."""
    try:
        operation = tests.usual_cmp(raw) or decode_operation(raw)
    except UnsupportedBytecode as reason:
        return _unsupported(raw, reason)

    def execute(state: RuleState) -> None:
        try:
            operation(state)
        except UnsupportedBytecode as reason:
            _unsupported(raw, reason)(state)

    return execute


def decode_operation(raw: bytes) -> Operation:
    """Return the operation of one NFTA_LIST_ELEM, which raises UnsupportedBytecode too.

    Raises:
        UnsupportedBytecode: an unknown expression, or an attribute that its decoder does not consume.
    """
    name, data = decode(raw, _name_and_data)
    decoder = _DECODERS.get(name)
    if decoder is None:
        raise UnsupportedBytecode("an unknown expression")
    return decode(data, decoder)


def _name_and_data(attributes: Attributes) -> tuple[str, bytes]:
    return attributes.text(_NAME), attributes.take(_DATA) or b""


def _unsupported(raw: bytes, reason: UnsupportedBytecode) -> Operation:
    try:
        name, data = decode(raw, _name_and_data)
    except UnsupportedBytecode:
        return lambda state: state.add_unknown(f"{raw.hex()} ({reason})")
    about = f"{_raw_text(name, data)} ({reason})"
    if _only_tests(name, data):
        return lambda state: state.add_uncertain_test(about)
    return lambda state: state.add_unknown(about)


def _only_tests(name: str, data: bytes) -> bool:
    """Return True if an expression can do nothing but end the rule and write to a register."""
    if name in _TESTS:
        return True
    if name == "lookup":
        return not _gives_verdict(data)
    register = _SOURCE_REGISTERS.get(name)
    if register is None:
        return False
    try:
        kinds = {kind for kind, _ in split_attributes(data)}
    except UnsupportedBytecode:
        return False
    return register not in kinds and 1 in kinds


def _gives_verdict(data: bytes) -> bool:
    """Return True if a lookup may give a verdict: its destination is register 0, or unreadable."""
    try:
        targets = [value for kind, value in split_attributes(data) if kind == 3]
    except UnsupportedBytecode:
        return True
    return any(not any(value) for value in targets)


def _raw_text(name: str, data: bytes) -> str:
    """Return an expression in the form [ NAME ATTRIBUTE=BYTES ... ]."""
    try:
        words = [f"{kind}={_word(value)}" for kind, value in split_attributes(data)]
    except UnsupportedBytecode:
        words = [data.hex()]
    return " ".join(["[", name, *words, "]"])


def _word(value: bytes) -> str:
    text = decode_text(value) if value.endswith(b"\0") else ""
    return text if text.isascii() and text.isprintable() and text and len(value) == len(text) + 1 else value.hex()
