# SPDX-License-Identifier: BSD-2-Clause
"""The header space of one family, and the packets that an nft match selects, as boxes.

Exact for supported expressions. An unsupported match becomes an artificial field that is 1 where
the match holds: so it never covers packets for a drop, and never hides packets from an accept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from attrs import frozen

from ...netstate import nft
from ...netstate.formats import nft_text
from ...netstate.nft import FULL_MASK
from ..packet import ADDRESS_BITS, ETHERTYPES
from . import field_values, mark_bits, mark_tests, tcp_flags
from .box import (
    Box,
    Ranges,
    complement,
    intersect_boxes,
    intersect_ranges,
    merge_ranges,
    points,
    subtract_ranges,
)
from .identity_cache import IdentityCache
from .rule_shape import match_cache_key
from .ruleset_scan import RulesetScan, mark_kind

_MAX_BOXES = 4096  # alternatives of one match; a match with more is unsupported
_MAX_ELEMENTS = 256  # of a negated concatenation: each multiplies the boxes
_MAX_CACHED = 4096  # matches with cached boxes: enough for a policy, limited for huge rulesets

# Meta keys with another meaning at a device's own hook; a field that is always 0; NFPROTO_NETDEV.
_LINK_KEYS = frozenset({"nfproto", "iifname", "iif", "oifname", "oif"})
_NOTHING, _NETDEV = "nothing", 5
_VOLATILE_FLAGS = frozenset({"dynamic", "timeout"})  # sets that packets or timeouts change

_TRACKED = points(*(field_values.CT_STATES[state] for state in ("new", "established", "related")))


@frozen
class HeaderField:
    """The field of an expression, its value parser, and the packets in which it is readable."""

    name: str
    parse: Callable[[nft.Value], Ranges | None]
    needs: Box


class HeaderSpace:
    """Fields of the packets of `family` (4, 6, or 0 for frames that are neither).

    `max_values` has the highest value of each field, `unsupported` the description of each
    artificial field.
    """

    def __init__(
        self,
        family: int,
        scan: RulesetScan,
        devices: Iterable[str] = (),
        masks: Iterable[int] = (),
    ) -> None:
        self.family = family
        self.partition = mark_bits.bit_groups({*scan.masks, *masks})
        self.devices = field_values.device_classes({*scan.devices, *devices})
        self.unsupported: dict[str, str] = {}
        self.opaque_values: dict[str, dict[nft.Value, int]] = {}
        width = ADDRESS_BITS.get(family, 128)
        self.max_values: dict[str, int] = {
            **field_values.MAX_VALUES,
            _NOTHING: 0,
            "saddr": (1 << width) - 1,
            "daddr": (1 << width) - 1,
            "iif": len(self.devices) - 1,
            "oif": len(self.devices) - 1,
        }
        for mark in ("mark", "ctmark"):
            for group in self.partition:
                self.max_values[mark_bits.field_name(mark, group)] = mark_bits.max_value(group)
        self._sets: dict[tuple[str, str, str], nft.Set] = {}
        self._fields: dict[object, HeaderField | None] = {}
        self._by_key: dict[tuple[object, ...], list[Box]] = {}
        self._by_match: dict[str | None, IdentityCache[nft.Match, list[Box]]] = defaultdict(IdentityCache)
        self._device_ranges: dict[str, Ranges] = {}
        self._links: dict[tuple[str, str], str] = {}  # of netdev tables: ingress, egress or both

    def family_box(self) -> Box:
        """Return the box of all packets of the family."""
        if not self.family:
            other_ethertypes = complement(points(*ETHERTYPES.values()), field_values.MAX_VALUES["ethertype"])
            return {"ethertype": other_ethertypes, "nfproto": points(0)}
        return {"ethertype": points(ETHERTYPES[self.family]), "nfproto": points(self.family)}

    def device_ranges(self, name: str) -> Ranges:
        """Return the device classes of a name, or of a pattern that ends in *."""
        classes = self._device_ranges.get(name)
        if classes is None:
            classes = self._device_ranges[name] = field_values.device_ranges(self.devices, name)
        return classes

    def union_of_devices(self, names: Iterable[str]) -> Ranges:
        """Return the device classes of any of the names."""
        return merge_ranges(pair for name in names for pair in self.device_ranges(name))

    def devices_except(self, names: Iterable[str]) -> Ranges:
        """Return the device classes of no name, which include "no device"."""
        return complement(self.union_of_devices(names), len(self.devices) - 1)

    def add_sets(self, tables: Sequence[nft.Table]) -> None:
        """Add the named sets of these tables."""
        for table in tables:
            for named_set in table.sets:
                self._sets[(*table.key, named_set.name)] = named_set
            if table.family == "netdev":
                hooks = {chain.hook.hook for chain in table.chains if chain.hook is not None}
                self._links[table.key] = hooks.pop() if len(hooks) == 1 else "both"

    def unsupported_field(self, description: str) -> str:
        """Add an artificial field, 1 where an unsupported construct holds, and return its name."""
        name = f"?{len(self.unsupported)}"
        self.unsupported[name] = description
        self.max_values[name] = 1
        return name

    # --- matches -----------------------------------------------------------------------

    def match_boxes(self, table: nft.Table, match: nft.Match) -> list[Box]:
        """Return the boxes of packets that pass a match of a rule in `table`; they may overlap."""
        link = self._links.get(table.key)
        by_match = self._by_match[link]
        cached = by_match.get(match)
        if cached is not None:
            return cached
        is_named_set = isinstance(match.right, nft.SetRef)
        match_key = match_cache_key(match)
        key = None if match_key is None else (link, *match_key)
        if is_named_set:  # many rules may refer to it, and it may be long
            key = (table.key, match.left, match.op, match.right)
        if key is not None and key in self._by_key:
            return self._by_key[key]
        unsupported_before = len(self.unsupported)
        boxes = self._match(table, match)
        if boxes is None or (len(boxes) > _MAX_BOXES and not is_named_set):
            boxes = [
                {self.unsupported_field(f"{table.family} {table.name}: {nft_text.display_text(match)}"): points(1)}
            ]
        elif key is not None:
            self._by_key[key] = boxes
        elif len(self.unsupported) == unsupported_before and len(by_match) < _MAX_CACHED:
            # Not with an artificial field: each evaluation must have its own.
            by_match.set(match, boxes)
        return boxes

    def _match(self, table: nft.Table, match: nft.Match) -> list[Box] | None:
        left, right, op = match.left, match.right, match.op
        if isinstance(right, nft.SetRef):
            named_set = self._sets.get((*table.key, right.name))
            if named_set is None or named_set.flags & _VOLATILE_FLAGS:
                return None
            elements: frozenset[nft.Element] = named_set.elements
        elif isinstance(right, nft.AnonymousSet):
            elements = right.elements
        elif isinstance(right, int | str):
            elements = frozenset({right})
        else:
            return None
        if isinstance(left, nft.Concat):
            return self._concat(table, left, elements, op)
        mark = self._mark(left, elements, op)
        if mark is not None:
            return mark
        flags = tcp_flags.flag_boxes(left, elements, op, self._subtract)
        if flags is not None:
            return flags
        field = self.field_of(left, table)
        if field is None:
            return None
        wanted = field_values.matching_values(field.parse, elements, op, self.max_values[field.name])
        if wanted is None:
            return None
        if not wanted:
            return []
        box = intersect_boxes(field.needs, {field.name: wanted})
        return [] if box is None else [box]

    def writable_boxes(self, table: nft.Table, statement: nft.Mangle) -> list[Box]:
        """Return the packets for which a write is executed: it can read its operands.

        For others the rule ends.
        """
        needs = self._readable(statement.value)
        if needs is not None and isinstance(statement.key, nft.Payload):
            key_needs = self._readable(statement.key)
            needs = None if key_needs is None else intersect_boxes(needs, key_needs) or {"fragment": ()}
        if needs is None:
            return [
                {self.unsupported_field(f"{table.family} {table.name}: {nft_text.display_text(statement)}"): points(1)}
            ]
        return [needs] if all(needs.values()) else []

    def _readable(self, value: nft.Expression | nft.Value) -> Box | None:
        """Return the packets for which an expression has a value; None if it is unsupported."""
        if isinstance(value, int | str):
            return {}
        mark = mark_kind(value)
        if mark is not None:
            return {"ct.state": _TRACKED} if mark == "ctmark" else {}
        if isinstance(value, nft.Bitwise):
            return self._readable(value.operand)
        if isinstance(value, nft.Binary):
            left, right = self._readable(value.left), self._readable(value.right)
            return None if left is None or right is None else intersect_boxes(left, right)
        field = self.field_of(value) if isinstance(value, nft.Meta | nft.Ct | nft.Payload) else None
        return None if field is None else field.needs

    def key_boxes(self, table: nft.Table, expression: nft.Expression, element: nft.Element) -> list[Box]:
        """Return the packets for which a lookup of `expression` finds `element`."""
        right = nft.AnonymousSet(frozenset({element}))
        return self.match_boxes(table, nft.Match(expression, right))

    def _concat(
        self, table: nft.Table, left: nft.Concat, elements: frozenset[nft.Element], op: str
    ) -> list[Box] | None:
        parts = [self.field_of(part, table) for part in left.parts]
        fields = [field for field in parts if field is not None]
        if op not in (*field_values.EQUAL, "!=") or len(fields) < len(parts):
            return None
        needs: Box | None = {}
        for field in fields:
            needs = None if needs is None else intersect_boxes(needs, field.needs)
        if needs is None:
            return []
        boxes: list[Box] = []
        for element in elements:
            if not isinstance(element, tuple) or len(element) != len(fields):
                return None
            box: Box | None = dict(needs)
            for field, value in zip(fields, element, strict=True):
                parsed = field.parse(value)
                if parsed is None:
                    return None
                parsed = intersect_ranges(parsed, ((0, self.max_values[field.name]),))
                box = None if box is None or not parsed else intersect_boxes(box, {field.name: parsed})
            if box is not None:
                boxes.append(box)
        if op != "!=":
            return boxes
        if len(boxes) > _MAX_ELEMENTS:
            return None
        return self._subtract(needs, boxes, [field.name for field in fields])

    def _subtract(self, box: Box, removed: Sequence[Box], names: Sequence[str]) -> list[Box] | None:
        """Return `box` without all of `removed`, which differ from it in the fields `names`.

        None: too many pieces.
        """
        pieces = [box]
        for other in removed:
            left: list[Box] = []
            for piece in pieces:
                inner = dict(piece)
                for name in names:
                    present = inner.get(name) or ((0, self.max_values[name]),)
                    remaining = subtract_ranges(present, other[name])
                    if remaining:
                        left.append({**inner, name: remaining})
                    inner[name] = other[name]
            pieces = left
            if len(pieces) > _MAX_BOXES:
                return None
        return pieces

    def _mark(self, left: nft.Expression, elements: frozenset[nft.Element], op: str) -> list[Box] | None:
        """Return the boxes of a test of the packet's or connection's mark; None: another test."""
        mark, mask = mark_kind(left), FULL_MASK
        if isinstance(left, nft.Bitwise) and not left.or_bits and isinstance(left.and_mask, int):
            mark, mask = mark_kind(left.operand), left.and_mask
        if mark is None:
            return None
        numbers = mark_tests.parse_marks(elements)
        if numbers is None:
            return None
        boxes = mark_tests.mark_boxes(mark, self.partition, mask, numbers, op)
        if boxes is None:
            test = f"{nft_text.display_text(left)} {op} {sorted(map(str, elements))}"
            return [{self.unsupported_field(f"a test of the {mark}: {test}"): points(1)}]
        needs: Box = {"ct.state": _TRACKED} if mark == "ctmark" else {}
        return [{**box, **needs} for box in boxes]

    # --- fields ------------------------------------------------------------------------

    def field_of(self, expression: nft.Expression, table: nft.Table | None = None) -> HeaderField | None:
        """Return the field of an expression of a rule in `table`, or None if it is unsupported."""
        hook = self._links.get(table.key) if table is not None else None
        if hook is not None and isinstance(expression, nft.Meta) and expression.key in _LINK_KEYS:
            return self._link_field(expression.key, hook)
        if expression not in self._fields:
            self._fields[expression] = self._field(expression)
        return self._fields[expression]

    def _field(self, expression: nft.Expression) -> HeaderField | None:
        match expression:
            case nft.Meta("iifname" | "iif"):
                return HeaderField("iif", self._device_value, {})
            case nft.Meta("oifname" | "oif"):
                return HeaderField("oif", self._device_value, {})
            case nft.Meta(key) if key in field_values.META_FIELDS:
                name, parse, needs = field_values.META_FIELDS[key]
                return HeaderField(name, parse, dict(needs))
            case nft.Ct("state", None):
                return HeaderField("ct.state", field_values.parse_states, {})
            case nft.Ct("direction", None):
                return HeaderField("ct.direction", field_values.parse_directions, {"ct.state": _TRACKED})
            case nft.Payload("ip" | "ip6" as protocol, "saddr" | "daddr" as name):
                family = 4 if protocol == "ip" else 6
                return HeaderField(name, field_values.address_parser(family), {"nfproto": points(family)})
            case nft.Payload(protocol, name) if (protocol, name) in field_values.PAYLOAD_FIELDS:
                field, parse, needs = field_values.PAYLOAD_FIELDS[protocol, name]
                return HeaderField(field, parse, dict(needs))
            case nft.Fib(result, keys):
                return self._opaque_field(f"fib {result} of {' '.join(keys)}", {})
        return None

    def _link_field(self, key: str, hook: str) -> HeaderField | None:
        """Return the field at a device's own hook: no other device, and a family of its own."""
        if key == "nfproto":
            return HeaderField(_NOTHING, lambda value: points(int(value != _NETDEV)), {})
        side, own = key[:3], {"ingress": "iif", "egress": "oif"}.get(hook)
        if own is None:
            return None
        return HeaderField(own if side == own else _NOTHING, self._device_value, {})

    def _device_value(self, value: nft.Value) -> Ranges | None:
        return self.device_ranges(value) if isinstance(value, str) else None

    def _opaque_field(self, name: str, needs: Box) -> HeaderField:
        """Return a field with opaque values, which are only compared for equality."""
        numbers = self.opaque_values.setdefault(name, {})
        self.max_values[name] = 0xFFFF

        def parse(value: nft.Value) -> Ranges | None:
            return points(numbers.setdefault(value, len(numbers) + 1))

        return HeaderField(name, parse, needs)
