# SPDX-License-Identifier: BSD-2-Clause
"""The space of all packets of one family, and what a match of nft selects in it, as boxes.

Exact where an expression is known. What is not known becomes a field of its own, that is 1 where the
match holds: so it never covers anything for a drop, and never hides anything for an accept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from attrs import frozen

from ..netstate import nft, text
from ..netstate.nft import FULL
from . import bits, tcp_flags, values
from .box import Box, Ranges, common, complement, meet, only, ranges, without
from .packet import ETHERTYPES, WIDTH
from .survey import Survey, which_mark

NO_DEVICE = 0  # the index of "" among the devices
MOST_BOXES = 4096  # alternatives of one match; beyond that it counts as not understood
_ELEMENTS = 256  # of a concatenation that is negated: each multiplies the boxes
_REMEMBERED = 4096  # matches whose boxes are kept: those of a policy, not of whoever has ten thousand rules

# What a device's own hooks read in their own way; a field that is always 0; NFPROTO_NETDEV.
_OTHERWISE = frozenset({"nfproto", "iifname", "iif", "oifname", "oif"})
_NOTHING, _NETDEV = "nothing", 5

TRACKED = only(*(values.STATES[state] for state in ("new", "established", "related")))


@frozen
class Field:
    """What an expression reads: a field, what must hold for it to be readable at all, and how values are written."""

    name: str
    parse: Callable[[nft.Value], Ranges | None]
    needs: Box


class Space:
    """Fields of the packets of `family` (4, 6, or 0 for frames that are neither).

    `tops` has the highest value of every field, `doubts` says of each made-up field what it stands for.
    """

    def __init__(self, family: int, survey: Survey, devices: Iterable[str] = (), masks: Iterable[int] = ()) -> None:
        self.family = family
        self.partition = bits.groups({*survey.masks, *masks})
        self.devices = values.device_classes({*survey.devices, *devices})
        self.doubts: dict[str, str] = {}
        self.opaque: dict[str, dict[nft.Value, int]] = {}
        width = WIDTH.get(family, 128)
        self.tops: dict[str, int] = {
            **values.TOPS,
            _NOTHING: 0,
            "saddr": (1 << width) - 1,
            "daddr": (1 << width) - 1,
            "iif": len(self.devices) - 1,
            "oif": len(self.devices) - 1,
        }
        for of in ("mark", "ctmark"):
            for group in self.partition:
                self.tops[bits.name(of, group)] = bits.top(group)
        self._sets: dict[tuple[str, str, str], nft.Set] = {}
        self._fields: dict[object, Field | None] = {}
        self._known: dict[tuple[object, ...], list[Box]] = {}
        self._of_match: dict[tuple[int, str | None], tuple[nft.Match, list[Box]]] = {}  # by what the match is itself
        self._devices: dict[str, Ranges] = {}
        self._links: dict[tuple[str, str], str] = {}  # of tables of the family netdev: ingress, egress or both

    def base(self) -> Box:
        """What holds of every packet of the family."""
        if not self.family:
            return {"ethertype": complement(only(*ETHERTYPES.values()), 0xFFFF), "nfproto": only(0)}
        return {"ethertype": only(ETHERTYPES[self.family]), "nfproto": only(self.family)}

    def device(self, name: str) -> Ranges:
        """The classes of devices that a name, or a pattern ending in *, stands for."""
        found = self._devices.get(name)
        if found is None:
            found = self._devices[name] = values.device_ranges(self.devices, name)
        return found

    def some_devices(self, names: Iterable[str]) -> Ranges:
        """All classes that any of the names stands for."""
        return ranges(pair for name in names for pair in self.device(name))

    def all_but(self, names: Iterable[str]) -> Ranges:
        """All classes of devices, none at all included, that no name stands for."""
        return complement(self.some_devices(names), len(self.devices) - 1)

    def use(self, tables: Sequence[nft.Table]) -> None:
        """Know the named sets of these tables."""
        for table in tables:
            for one in table.sets:
                self._sets[(*table.key, one.name)] = one
            if table.family == "netdev":
                hooks = {chain.hook.hook for chain in table.chains if chain.hook is not None}
                self._links[table.key] = hooks.pop() if len(hooks) == 1 else "both"

    def doubt(self, what: str) -> str:
        """A new field that is 1 where something that is not understood holds."""
        name = f"?{len(self.doubts)}"
        self.doubts[name] = what
        self.tops[name] = 1
        return name

    # --- what a match selects ----------------------------------------------------------

    def match(self, table: nft.Table, match: nft.Match) -> list[Box]:
        """The boxes of packets that pass a match of a rule in `table`; they may overlap."""
        link = self._links.get(table.key)
        here = (id(match), link)
        seen = self._of_match.get(here)
        if seen is not None and seen[0] is match:
            return seen[1]
        short = short_key(match)
        key = None if short is None else (link, *short)
        if isinstance(match.right, nft.SetRef):  # which many rules may ask, and which may be long
            key = (table.key, match.left, match.op, match.right)
        if key is not None and key in self._known:
            return self._known[key]
        doubts = len(self.doubts)
        found = self._match(table, match)
        if found is None or (len(found) > MOST_BOXES and not isinstance(match.right, nft.SetRef)):
            found = [{self.doubt(f"{table.family} {table.name}: {text.shown(match)}"): only(1)}]
        elif key is not None:
            self._known[key] = found
        elif len(self.doubts) == doubts and len(self._of_match) < _REMEMBERED:  # a doubt is a new one each time
            self._of_match[here] = (match, found)
        return found

    def _match(self, table: nft.Table, match: nft.Match) -> list[Box] | None:
        left, right, op = match.left, match.right, match.op
        if isinstance(right, nft.SetRef):
            listed = self._sets.get((*table.key, right.name))
            if listed is None or listed.flags & {"dynamic", "timeout"}:
                return None
            elements: frozenset[nft.Element] = listed.elements
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
        flags = tcp_flags.selected(left, elements, op, self._outside)
        if flags is not None:
            return flags
        field = self.field(left, table)
        if field is None:
            return None
        wanted = self._wanted(field, elements, op)
        if wanted is None:
            return None
        if not wanted:
            return []
        box = meet(field.needs, {field.name: wanted})
        return [] if box is None else [box]

    def writable(self, table: nft.Table, statement: nft.Mangle) -> list[Box]:
        """The packets for which a write is carried out: all that it reads is there. For others the rule ends."""
        needs: Box | None = self._readable(statement.value)
        if isinstance(statement.key, nft.Payload):
            key = self._readable(statement.key)
            needs = None if needs is None or key is None else meet(needs, key) or {"fragment": ()}
        if needs is None:
            return [{self.doubt(f"{table.family} {table.name}: {text.shown(statement)}"): only(1)}]
        return [needs] if all(needs.values()) else []

    def _readable(self, value: nft.Expression | nft.Value) -> Box | None:
        """What must hold for an expression to have a value; None if that is not understood."""
        if isinstance(value, int | str):
            return {}
        mark = which_mark(value)
        if mark is not None:
            return {"ct.state": TRACKED} if mark == "ctmark" else {}
        if isinstance(value, nft.Bitwise):
            return self._readable(value.of)
        if isinstance(value, nft.Binary):
            left, right = self._readable(value.left), self._readable(value.right)
            return None if left is None or right is None else meet(left, right)
        field = self.field(value) if isinstance(value, nft.Meta | nft.Ct | nft.Payload) else None
        return None if field is None else field.needs

    def key(self, table: nft.Table, expression: nft.Expression, element: nft.Element) -> list[Box]:
        """The packets for which a look-up of `expression` finds `element`."""
        right = nft.AnonymousSet(frozenset({element}))
        return self.match(table, nft.Match(expression, right))

    def _wanted(self, field: Field, elements: Iterable[nft.Element], op: str) -> Ranges | None:
        pairs: list[tuple[int, int]] = []
        for element in elements:
            parsed = None if isinstance(element, tuple) else field.parse(element)
            if parsed is None:
                return None
            pairs += parsed
        wanted, top = ranges(pairs), self.tops[field.name]
        if op in ("==", "in"):
            return common(wanted, ((0, top),))
        if op in ("!=", "!"):
            return complement(wanted, top)
        if len(wanted) != 1:
            return None
        low, high = wanted[0]
        spans = {"<": (0, low - 1), "<=": (0, high), ">": (high + 1, top), ">=": (low, top)}
        if op not in spans:
            return None
        first, last = spans[op]
        return ((first, last),) if first <= last else ()

    def _concat(
        self, table: nft.Table, left: nft.Concat, elements: frozenset[nft.Element], op: str
    ) -> list[Box] | None:
        fields = [self.field(part, table) for part in left.parts]
        if op not in ("==", "in", "!=") or any(one is None for one in fields):
            return None
        known = [one for one in fields if one is not None]
        needs: Box | None = {}
        for one in known:
            needs = None if needs is None else meet(needs, one.needs)
        if needs is None:
            return []
        found: list[Box] = []
        for element in elements:
            if not isinstance(element, tuple) or len(element) != len(known):
                return None
            box: Box | None = dict(needs)
            for one, value in zip(known, element, strict=True):
                parsed = one.parse(value)
                if parsed is None:
                    return None
                parsed = common(parsed, ((0, self.tops[one.name]),))
                box = None if box is None or not parsed else meet(box, {one.name: parsed})
            if box is not None:
                found.append(box)
        if op != "!=":
            return found
        if len(found) > _ELEMENTS:
            return None
        return self._outside(needs, found, [one.name for one in known])

    def _outside(self, needs: Box, found: Sequence[Box], names: Sequence[str]) -> list[Box] | None:
        """`needs` without all of `found`."""
        rest = [needs]
        for box in found:
            pieces: list[Box] = []
            for one in rest:
                inner = dict(one)
                for name in names:
                    present = inner.get(name) or ((0, self.tops[name]),)
                    outside = without(present, box[name])
                    if outside:
                        pieces.append({**inner, name: outside})
                    inner[name] = box[name]
            rest = pieces
            if len(rest) > MOST_BOXES:
                return None
        return rest

    def _mark(self, left: nft.Expression, elements: frozenset[nft.Element], op: str) -> list[Box] | None:
        """A test of a packet's or a flow's mark under a mask; None if it is none that is understood."""
        of, mask = which_mark(left), FULL
        if isinstance(left, nft.Bitwise) and not left.put and isinstance(left.keep, int) and which_mark(left.of):
            of, mask = which_mark(left.of), left.keep
        if of is None:
            return None
        pairs: list[tuple[int, int]] = []
        for element in elements:
            parsed = None if isinstance(element, tuple) else values.number(element)
            if parsed is None:
                return None
            pairs += parsed
        found: list[Box] | None
        if op in ("==", "in", "!=") and all(low == high for low, high in pairs):
            found = self._masked(of, mask, [low for low, _ in pairs], op)
        elif op in ("==", "in", "!=", "<", "<=", ">", ">=") and mask in self.partition:
            field = Field(bits.name(of, mask), values.number, {})
            spans = [(bits.packed(low, mask), bits.packed(high, mask)) for low, high in pairs]
            texts = frozenset(f"{low}-{high}" for low, high in spans) if mask == FULL else None
            wanted = self._wanted(field, texts, op) if texts else None
            found = None if wanted is None else [{field.name: wanted}] if wanted else []
        else:
            found = None
        if found is None:
            return [{self.doubt(f"a test of the {of}: {text.shown(left)} {op} {sorted(map(str, elements))}"): only(1)}]
        needs: Box = {"ct.state": TRACKED} if of == "ctmark" else {}
        return [{**box, **needs} for box in found]

    def _masked(self, of: str, mask: int, wanted: Sequence[int], op: str) -> list[Box] | None:
        if op != "!=":
            return [box for value in wanted for box in bits.equal(of, self.partition, mask, value)]
        wanted = [value for value in wanted if not value & ~mask]
        if len(wanted) < 2:
            return bits.differs(of, self.partition, mask, wanted[0]) if wanted else [{}]
        inside = [group for group in self.partition if group & mask]
        if len(inside) != 1:
            return None
        others = complement(only(*(bits.packed(value, inside[0]) for value in wanted)), bits.top(inside[0]))
        return [{bits.name(of, inside[0]): others}] if others else []

    # --- what an expression reads ------------------------------------------------------

    def field(self, expression: nft.Expression, table: nft.Table | None = None) -> Field | None:
        """The field behind an expression of a rule in `table`, or None if it is not understood."""
        hook = self._links.get(table.key) if table is not None else None
        if hook is not None and isinstance(expression, nft.Meta) and expression.key in _OTHERWISE:
            return self._of_link(expression.key, hook)
        if expression not in self._fields:
            self._fields[expression] = self._field(expression)
        return self._fields[expression]

    def _field(self, expression: nft.Expression) -> Field | None:
        match expression:
            case nft.Meta("iifname" | "iif"):
                return Field("iif", self._device_value, {})
            case nft.Meta("oifname" | "oif"):
                return Field("oif", self._device_value, {})
            case nft.Meta(key) if key in values.META:
                name, parse, needs = values.META[key]
                return Field(name, parse, dict(needs))
            case nft.Ct("state", None):
                return Field("ct.state", values.states, {})
            case nft.Ct("direction", None):
                return Field("ct.direction", values.directions, {"ct.state": TRACKED})
            case nft.Payload("ip" | "ip6" as protocol, "saddr" | "daddr" as name):
                of = 4 if protocol == "ip" else 6
                return Field(name, values.addresses(of), {"nfproto": only(of)})
            case nft.Payload(protocol, name) if (protocol, name) in values.PAYLOAD:
                field, parse, needs = values.PAYLOAD[protocol, name]
                return Field(field, parse, dict(needs))
            case nft.Fib(result, keys):
                return self._opaque(f"fib {result} of {' '.join(keys)}", {})
        return None

    def _of_link(self, key: str, hook: str) -> Field | None:
        """A device's own hooks know no other device, and name a family of their own."""
        if key == "nfproto":
            return Field(_NOTHING, lambda value: only(int(value != _NETDEV)), {})
        side, own = key[:3], {"ingress": "iif", "egress": "oif"}.get(hook)
        return None if own is None else Field(own if side == own else _NOTHING, self._device_value, {})

    def _device_value(self, value: nft.Value) -> Ranges | None:
        return self.device(value) if isinstance(value, str) else None

    def _opaque(self, name: str, needs: Box) -> Field:
        """A field whose values mean nothing to us but are the same wherever they are read."""
        known = self.opaque.setdefault(name, {})
        self.tops[name] = 0xFFFF

        def parse(value: nft.Value) -> Ranges | None:
            return only(known.setdefault(value, len(known) + 1))

        return Field(name, parse, needs)


def short_key(match: nft.Match) -> tuple[object, ...] | None:
    """A key for matches that rules repeat: a device, a mark, an owner."""
    left, right = match.left, match.right
    if type(right) is not str and type(right) is not int:
        return None
    if type(left) is nft.Meta:
        return left.key, match.op, right
    if type(left) is nft.Bitwise and type(left.of) is nft.Meta:
        return left.of.key, left.keep, left.put, match.op, right
    return None
