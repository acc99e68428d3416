# SPDX-License-Identifier: BSD-2-Clause
"""The header space of one family, and the packets that an nft match selects, as boxes.

Exact for supported expressions. An unsupported match becomes an artificial field that is 1 where
the match holds: so it never covers packets for a drop, and never hides packets from an accept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ...netstate import nft
from ...netstate.formats import nft_text
from ...netstate.nft import FULL_MASK
from ..packet import ADDRESS_BITS, ETHERTYPES, TRANSFORMED
from . import ct_status, field_values, mark_bits, mark_tests, tcp_flags
from .box import Box, Ranges, complement, intersect_boxes, intersect_ranges, merge_ranges, points, subtract_boxes
from .header_field import FieldTest, HeaderField
from .identity_cache import IdentityCache
from .rule_shape import match_cache_key
from .ruleset_scan import RulesetScan, mark_kind

_MAX_BOXES = 4096  # alternatives of one match; a match with more is unsupported
_MAX_ELEMENTS = 256  # of a negated concatenation: each multiplies the boxes
_MAX_CACHED = 4096  # matches with cached boxes: enough for a policy, limited for huge rulesets

# Meta keys with another meaning at a device's own hook; a field that is always 0; NFPROTO_NETDEV.
_LINK_KEYS = frozenset({"nfproto", "iifname", "iif", "oifname", "oif"})
_NOTHING, _NETDEV = "nothing", 5
_NO_DEVICE = 0  # the index of no device: of a packet without one, and of a lookup that fails

_FALLIBLE_WRITES = (nft.Payload, nft.RawPayload, nft.Option)  # nft_payload_set_eval

_TRACKED = points(*(field_values.CT_STATES[state] for state in ("new", "established", "related")))


class HeaderSpace:
    """Fields of the packets of `family` (4, 6, or 0 for frames that are neither).

    `max_values` has the highest value of each field, `unsupported` the description of each
    artificial field; `tests` has those of them that are the result of a match.
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
        self.unsupported: dict[str, str] = dict.fromkeys(
            (field_values.READABLE, field_values.LINK_READABLE), "headers that are incomplete or wrong"
        )
        self.tests: dict[str, FieldTest] = {}
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
        self._changing_sets = scan.changing_sets
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
        name = f"?{len(self.unsupported) - 2}"
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
            name = self.unsupported_field(f"{table.family} {table.name}: {nft_text.display_text(match)}")
            self.tests[name] = FieldTest(table, match)
            boxes = [{name: points(1)}]
        elif len(self.unsupported) > unsupported_before:
            pass  # not with an artificial field: each evaluation must have its own
        elif key is not None:
            self._by_key[key] = boxes
        elif len(by_match) < _MAX_CACHED:
            by_match.set(match, boxes)
        return boxes

    def _match(self, table: nft.Table, match: nft.Match) -> list[Box] | None:
        right = match.right
        if isinstance(match.left, nft.Payload) and match.left.protocol == TRANSFORMED:
            return []  # no packet that leaves as it is
        op = "==" if match.op == "in" else match.op  # a set has whole values, not flags
        if isinstance(right, nft.SetRef):
            name = (*table.key, right.name)
            named_set = self._sets.get(name)
            return (
                None if named_set is None or name in self._changing_sets else self._in_set(table, match, op, named_set)
            )
        if isinstance(right, nft.AnonymousSet):
            return self._elements(table, match.left, right.elements, op)
        if isinstance(right, int | str):
            return self._elements(table, match.left, frozenset({right}), match.op)
        return None

    def _in_set(self, table: nft.Table, match: nft.Match, op: str, named_set: nft.Set) -> list[Box] | None:
        """Return the boxes of a lookup in a named set.

        Where it finds an element, the element's statements may end the rule; with "!=" it ends anyway.
        """
        conditional = named_set.conditional_elements
        if not conditional or op not in field_values.EQUAL:
            return self._elements(table, match.left, named_set.elements, op)
        certain = self._elements(table, match.left, named_set.elements - conditional, op)
        uncertain = self._elements(table, match.left, conditional, op)
        if certain is None or uncertain is None:
            return None
        condition = self.element_condition(table, nft_text.display_text(match))
        return [*certain, *({**box, **condition} for box in uncertain)]

    def element_condition(self, table: nft.Table, lookup: str) -> Box:
        """Return the condition that the statements of an element do not end the rule."""
        description = f"{table.family} {table.name}: statements of the element that {lookup} finds"
        return {self.unsupported_field(description): points(1)}

    def _elements(
        self, table: nft.Table, left: nft.Expression, elements: frozenset[nft.Element], op: str
    ) -> list[Box] | None:
        """Return the boxes of a comparison with elements."""
        if isinstance(left, nft.Concat):
            return self._concat(table, left, elements, op)
        operand = left.operand if isinstance(left, nft.Bitwise) else left
        boxes: list[Box] | None = None
        if isinstance(operand, nft.Meta | nft.Ct):
            boxes = self._mark(left, elements, op)
            if boxes is None and isinstance(operand, nft.Ct):
                boxes = ct_status.confirmed_boxes(left, elements, op, {"ct.state": _TRACKED})
        elif isinstance(operand, nft.Payload):
            readable = field_values.LINK_READABLE if table.key in self._links else field_values.READABLE
            boxes = tcp_flags.flag_boxes(left, elements, op, {readable: field_values.WHOLE}, self._subtract)
        if boxes is not None:
            return boxes
        field = self.field_of(left, table)
        if field is None:
            return None
        parse = field_values.parse_any_state if (field.name, op) in field_values.ANY_STATE else field.parse
        wanted = field_values.matching_values(parse, elements, op, self.max_values[field.name])
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
        if needs is not None and isinstance(statement.key, nft.Option) and statement.key.kind == "tcp option":
            # nft_exthdr_tcp_set_eval
            needs = intersect_boxes(needs, tcp_flags.HAS_TCP_HEADER) or {"fragment": ()}
        if needs is not None and isinstance(statement.key, _FALLIBLE_WRITES):
            # The end of the packet, an option or a checksum can be missing.
            description = f"{table.family} {table.name}: success of {nft_text.display_text(statement)}"
            needs = {**needs, self.unsupported_field(description): points(1)}
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
        return self._subtract(needs, boxes)

    def _subtract(self, box: Box, removed: Sequence[Box]) -> list[Box] | None:
        """Return `box` without all of `removed`; None: too many pieces."""
        return subtract_boxes(box, removed, self.max_values, _MAX_BOXES)

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
            test = nft_text.display_text(nft.Match(left, nft.AnonymousSet(elements), op))
            return [{self.unsupported_field(f"a test of the {mark}: {test}"): points(1)}]
        needs: Box = {"ct.state": _TRACKED} if mark == "ctmark" else {}
        return [{**box, **needs} for box in boxes]

    # --- fields ------------------------------------------------------------------------

    def field_of(self, expression: nft.Expression, table: nft.Table | None = None) -> HeaderField | None:
        """Return the field of an expression of a rule in `table`, or None if it is unsupported."""
        hook = self._links.get(table.key) if table is not None else None
        if hook is not None and isinstance(expression, nft.Meta) and expression.key in _LINK_KEYS:
            return self._link_field(expression.key, hook)
        if hook == "egress" and expression in field_values.EGRESS_FIELDS:
            return HeaderField(*field_values.EGRESS_FIELDS[expression])
        key = (expression, hook is not None)
        if key not in self._fields:
            field = self._field(expression)
            if field is not None:
                more = field_values.readability(field.name, field.needs, self.family, hook is not None)
                field = HeaderField(field.name, field.parse, {**field.needs, **more}) if more else field
            self._fields[key] = field
        return self._fields[key]

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
                return HeaderField("ct.state", field_values.parse_state, {})
            case nft.Ct("direction", None):
                return HeaderField("ct.direction", field_values.parse_directions, {"ct.state": _TRACKED})
            case nft.Payload("ip" | "ip6" as protocol, "saddr" | "daddr" as name):
                family = 4 if protocol == "ip" else 6
                return HeaderField(name, field_values.address_parser(family), {"nfproto": points(family)})
            case nft.Payload(protocol, name) if (protocol, name) in field_values.PAYLOAD_FIELDS:
                field, parse, needs = field_values.PAYLOAD_FIELDS[protocol, name]
                return HeaderField(field, parse, dict(needs))
            case nft.Fib(result, keys):
                return self._fib_field(result, f"fib {result} of {' '.join(keys)}")
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
        if value == _NO_DEVICE:
            return points(0)
        return self.device_ranges(value) if isinstance(value, str) else None

    def _fib_field(self, result: str, name: str) -> HeaderField:
        """Return a field with opaque values, which are only compared for equality; 0: the lookup finds no device."""
        numbers = self.opaque_values.setdefault(name, {})
        self.max_values[name] = top = 0xFFFF

        def parse(value: nft.Value) -> Ranges | None:
            if result != "type" and value in ("missing", _NO_DEVICE):
                return points(0)
            if result != "type" and value == "exists":
                return ((1, top),)
            if not isinstance(value, str) or value in ("exists", "missing") or value.endswith("*"):
                return None
            return points(numbers.setdefault(value, len(numbers) + 1))

        return HeaderField(name, parse, {})
