# SPDX-License-Identifier: BSD-2-Clause
"""Search for values of header fields that pass tests for which the header space has no field of its own.

A region then has an artificial field for the result of each test. A sender chooses most fields, so
a counterexample needs values with exactly these results. The tests themselves judge each choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, product

from attrs import frozen

from ..model.branching import Choices
from ..model.nft.datatypes import data_types, parse_value
from ..model.nft.match import EvalContext, NamedSets, compile_match
from ..model.nft.readers import HookPoint
from ..model.packet import ICMP, ICMPV6, IGMP, TCP, UDP
from ..model.packet_view import PacketView
from ..model.symbolic.box import Box, Ranges
from ..model.symbolic.header_field import FieldTest
from ..model.symbolic.header_space import HeaderSpace
from ..netstate import nft

Field = tuple[str, str]  # header and field, by nft's names

_MAX_VALUES, _MAX_CHOICES = 24, 4096  # of one field, of all fields together
_MIN_TOTAL, _MAX_TOTAL = 60, 1500  # bytes of a packet that is not fragmented
_LENGTH: Field = ("meta", "length")
_FRAGMENT: Field = ("ip", "frag-off")
_DONT_FRAGMENT = 0x4000
# Fields that a sender sets, with the highest value, by header. The kernel computes the others.
_CHOSEN: dict[str, dict[str, int]] = {
    "ip": {"dscp": 63, "ecn": 3, "id": 0xFFFF, "ttl": 255, "frag-off": _DONT_FRAGMENT},
    "ip6": {"dscp": 63, "ecn": 3, "flowlabel": 0xFFFFF, "hoplimit": 255},
    "tcp": {"sequence": 0xFFFFFFFF, "ackseq": 0xFFFFFFFF, "window": 0xFFFF, "urgptr": 0xFFFF, "flags": 0xFF},
    "icmp": {"type": 255, "code": 255, "id": 0xFFFF, "sequence": 0xFFFF, "mtu": 0xFFFF, "gateway": 0xFFFFFFFF},
    "icmpv6": {"type": 255, "code": 255, "id": 0xFFFF, "sequence": 0xFFFF, "mtu": 0xFFFFFFFF},
    "igmp": {"type": 255},
}
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "igmp": IGMP}
_OFFSETS: dict[Field, dict[int, int]] = {  # from the length of the packet to the field, by family
    _LENGTH: {4: 0, 6: 0},
    ("ip", "length"): {4: 0},
    ("ip6", "length"): {6: -40},
    ("udp", "length"): {4: -20, 6: -40},
}


# ICMP types that have a field; others have an echo's type. nft may test for them and not list it.
_ICMP_TYPES: dict[Field, int] = {("icmp", "mtu"): 3, ("icmp", "gateway"): 5, ("icmpv6", "mtu"): 2}


@frozen
class HeaderChoice:
    """Values of header fields, and the protocol that they need (None: any)."""

    fields: Mapping[Field, int]
    protocol: int | None = None


def choose_header(space: HeaderSpace, box: Box) -> HeaderChoice:
    """Return values for which the tests of the box have the results that it requires; none if no choice was found."""
    required = [(space.tests[name], ranges == ((1, 1),)) for name, ranges in box.items() if name in space.tests]
    required = [(test, result) for test, result in required if _variables(test.match.left, space.family)]
    if not required:
        return HeaderChoice({})
    variables = dict.fromkeys(field for test, _ in required for field in _variables(test.match.left, space.family))
    candidates = [list(islice(_values(field, required, space.family), _MAX_VALUES)) for field in variables]
    for protocol in _protocols(variables, box.get("protocol")):
        for values in islice(product(*candidates), _MAX_CHOICES):
            fields = dict(_assignments(dict(zip(variables, values, strict=True)), space.family, protocol))
            if variables and all(_result(test, space.family, protocol, fields) is result for test, result in required):
                return HeaderChoice(
                    fields, protocol if {header for header, _ in variables} & _PROTOCOLS.keys() else None
                )
    return HeaderChoice({})


def _variables(expression: nft.Expression, family: int) -> list[Field]:
    """Return the fields that an expression reads, with one for all lengths; none if a sender cannot choose one."""
    match expression:
        case nft.Meta("length"):
            return [_LENGTH]
        case nft.Payload(header, name) if (header, name) in _OFFSETS:
            return [_LENGTH] if family in _OFFSETS[header, name] else []
        case nft.Payload(header, name) if name in _CHOSEN.get(header, ()):
            return [(header, name)]
        case nft.Bitwise(operand) | nft.Binary(_, operand, int() | str()):
            return _variables(operand, family)
        case nft.Concat(parts):
            fields = [_variables(part, family) for part in parts]
            return [field for part in fields for field in part] if all(fields) else []
    return []


def _protocols(variables: Iterable[Field], ranges: Ranges | None) -> list[int]:
    """Return the protocols that have all fields and are in the ranges."""
    needed = {_PROTOCOLS[header] for header, _ in variables if header in _PROTOCOLS}
    allowed = ranges or ((0, 255),)
    possible = needed or {UDP, TCP, *(low for low, _ in allowed)}
    inside = [number for number in (UDP, TCP, *sorted(possible)) if any(low <= number <= high for low, high in allowed)]
    return [number for number in dict.fromkeys(inside) if number in possible] if len(needed) < 2 else []


def _values(field: Field, required: Iterable[tuple[FieldTest, bool]], family: int) -> Iterator[int]:
    """Yield values of a field at the edges of what the tests name, without duplicates."""
    if field == _FRAGMENT:
        yield from (_DONT_FRAGMENT, 0)  # of whole packets
        return
    low, high = (_MIN_TOTAL, _MAX_TOTAL) if field == _LENGTH else (0, _CHOSEN[field[0]][field[1]])
    common = 84 if field == _LENGTH else 0
    edges = [common]
    for test, _ in required:
        for column, expression in enumerate(_parts(test.match.left)):
            if field in _variables(expression, family):
                shift = _shift(expression, family)
                edges += [number - shift for bound in _bounds(test, column) for number in (bound, bound + 1, bound - 1)]
    edges += [low, high]
    yield from dict.fromkeys(number for number in edges if low <= number <= high)


def _parts(expression: nft.Expression) -> tuple[nft.Expression, ...]:
    return expression.parts if isinstance(expression, nft.Concat) else (expression,)


def _shift(expression: nft.Expression, family: int) -> int:
    """Return the difference between the value of an expression and the length of the packet; 0 for another field."""
    key = (expression.protocol, expression.name) if isinstance(expression, nft.Payload) else _LENGTH
    return _OFFSETS.get(key, {}).get(family, 0)


def _bounds(test: FieldTest, column: int) -> Iterator[int]:
    """Yield the ends of the values that a test compares one part of its left side with."""
    right = test.match.right
    elements: Iterable[object] = ()
    match right:
        case int() | str():
            elements = (right,)
        case nft.AnonymousSet():
            elements = right.elements
        case nft.SetRef(name):
            elements = next((named.elements for named in test.table.sets if named.name == name), ())
    kind = data_types(test.match.left)[column]
    for element in sorted(elements, key=str):
        value = element[column] if isinstance(element, tuple) and column < len(element) else element
        interval = parse_value(kind, value) if isinstance(value, int | str) else None
        yield from interval or ()


def _assignments(values: Mapping[Field, int], family: int, protocol: int) -> Iterator[tuple[Field, int]]:
    """Yield the fields of a packet: the chosen ones, and all lengths that follow from one."""
    for field, value in values.items():
        if field in _ICMP_TYPES and (field[0], "type") not in values:
            yield (field[0], "type"), _ICMP_TYPES[field]
        if field != _LENGTH:
            yield field, value
            continue
        for name, offsets in _OFFSETS.items():
            if family in offsets and (name[0] != "udp" or protocol == UDP):
                yield name, value + offsets[family]


def _result(test: FieldTest, family: int, protocol: int, fields: Mapping[Field, int]) -> bool | None:
    """Return the result of a test for a packet with these fields; None if it depends on anything else."""
    view = PacketView(family, 0, 0, protocol, 40000, 9, oif="out", fields=fields)
    choices = Choices()
    point = HookPoint(test.table.family, "output", 0)
    holds = compile_match(test.match, NamedSets.from_table(test.table), point)(EvalContext(view, choices, None))
    return None if choices.questions else holds
