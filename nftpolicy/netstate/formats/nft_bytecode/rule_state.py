# SPDX-License-Identifier: BSD-2-Clause
"""The state of one rule while its expressions are lifted: registers, statements so far, what they establish."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import evolve, field, frozen, mutable

from ... import nft
from .attributes import UnsupportedBytecode
from .datatypes import Column, column_value
from .headers import HeaderPart, header_parts, header_protocol, payload_kind
from .masked_fields import MaskedField, masked_field
from .match_forms import ADDRESSES, address_match, bitwise, compare_whole, flags_match, join_ends
from .registers import Constant, Content, MapData, Registers, RegisterValue
from .sets import SetTable
from .values import FLAG_NAMES, WITHOUT_ORDER, Kind, device_name, ordered_value, range_value, single_value

_NETWORKS = {"ip": "ip", "ip6": "ip6", "arp": "arp"}  # established by the family of the table
_ETHERTYPES = {"ip": "ip", "ip6": "ip6", "arp": "arp"}
_FAMILIES = {"ipv4": "ip", "ipv6": "ip6"}
_PROTOCOL_NUMBERS = {name: number for number, name in nft.PROTOCOL_NAMES.items()}

# Expressions whose value establishes a protocol: see RuleState._append.
_ESTABLISHING = (nft.Meta("l4proto"), nft.Payload("ip", "protocol"), nft.Meta("protocol"), nft.Meta("nfproto"))

DecodeXt = Callable[[str, str, int, bytes, str, str], tuple[nft.Statement, ...]]


@frozen
class RuleContext:
    """Properties that all rules of a table share.

    `devices`: names of devices by index. `native`: the byte order of the machine, "little" or "big".
    `decode_xt` decodes xtables extensions: kind, name, revision, data, family of the table, byte order.
    """

    family: str
    sets: SetTable
    devices: Mapping[int, str]
    native: str
    decode_xt: DecodeXt


@mutable(eq=False)
class RuleState:
    """A rule that is lifted up to some expression.

    `network` and `transport` are what earlier tests establish of the packet: "ip", "ip6" or "arp",
    and the number of the transport protocol.
    """

    context: RuleContext
    registers: Registers = field(factory=Registers)
    statements: list[nft.Statement] = field(factory=list)
    network: str | None = None
    transport: int | None = None
    is_ended: bool = False  # by a translation that packets of the other family pass
    last_store: tuple[int, RegisterValue] | None = None  # a register and what was stored in it
    _loaded: list[Content | MapData] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.network = _NETWORKS.get(self.context.family)

    # --- loads -------------------------------------------------------------------------

    def store(self, register: int, stored: RegisterValue) -> None:
        """Store a value. Raises UnsupportedBytecode."""
        self.registers.store(register, stored)
        self.last_store = (register, stored)
        if isinstance(stored, MapData) or (isinstance(stored, Content) and stored.may_break):
            self._loaded.append(stored)

    def repeat(
        self,
        register: int,
        content: Content,
        statements: tuple[nft.Statement, ...],
        network: str | None,
        transport: int | None,
    ) -> None:
        """Store a content that was tested before, with what the test added and established."""
        self.registers.store(register, content)
        self.statements.extend(statements)
        self.network, self.transport = network, transport

    def store_constant(self, register: int, raw: bytes) -> None:
        """Store bytes that the rule contains. Raises UnsupportedBytecode."""
        self.registers.store(register, Constant(raw))

    def prefix(self, register: int, length: int) -> Content:
        """Return the only expression in a register, of at least this length. Raises UnsupportedBytecode."""
        ((stored, size), *further) = self.registers.load(register, length)
        if further or size != length or not isinstance(stored, Content):
            raise UnsupportedBytecode("a comparison with a value that is not one expression")
        return stored

    def content(self, register: int, length: int) -> Content:
        """Return the only expression in a register, of just this length. Raises UnsupportedBytecode."""
        ((stored, size), *further) = self.registers.load(register, length)
        if further or size != stored.length or not isinstance(stored, Content):
            raise UnsupportedBytecode("an operation on a value that is not one expression")
        return stored

    def constant(self, register: int, length: int) -> bytes | None:
        """Return the bytes in a register if they are constant, else None. Raises UnsupportedBytecode."""
        parts = self.registers.load(register, length)
        if not all(isinstance(stored, Constant) for stored, _ in parts):
            return None
        raw = b"".join(
            stored.raw[:size].ljust(-(-size // 4) * 4, b"\0") for stored, size in parts if isinstance(stored, Constant)
        )
        return raw[:length]

    def expression(self, content: Content) -> nft.Expression:
        """Return the expression for a use that is not a comparison. Raises UnsupportedBytecode."""
        content.uses.append(None)
        source, full = content.source, (1 << 8 * content.length) - 1
        part = self.masked_field(content)
        if part is not None and not part.shift:
            return part.field
        if isinstance(source, nft.RawPayload):
            source = self.named(source)
        mask = full if content.mask is None else content.mask
        if mask == full and not content.flip:
            return source
        if content.flip & mask:  # bits of the value are inverted
            masked = source if mask == full else nft.Bitwise(source, mask)
            return nft.Binary("^", masked, content.flip)
        return bitwise(source, self.kind_of(content), mask, content.flip, full)

    def masked_field(self, content: Content) -> MaskedField | None:
        """Return the field that a mask cuts out of a value, None if nft names no such field."""
        return masked_field(content, self.named)

    def single(self, register: int, length: int) -> RegisterValue | None:
        """Return the value that fills a register, None if there are several. Raises UnsupportedBytecode."""
        parts = self.registers.load(register, length)
        return parts[0][0] if len(parts) == 1 and parts[0][1] == parts[0][0].length else None

    def value(self, register: int, column: Column) -> nft.Expression | nft.Value:
        """Return the constant or the expression for a write of `column`. Raises UnsupportedBytecode."""
        raw = self.constant(register, column.length)
        if raw is not None:
            return column_value(raw, column)
        stored = self.single(register, column.length)
        if isinstance(stored, Content) and stored.fits(column.length, column.order):
            return self.expression(stored)
        if isinstance(stored, MapData):
            stored.uses.append(None)
            return nft.Lookup(stored.key, self.context.sets.entries(stored.map_name, stored.columns, (column,)))
        raise UnsupportedBytecode("a value of another form than what it is written to")

    def key(self, register: int, length: int) -> tuple[nft.Expression, tuple[Content, ...]]:
        """Return the expression that is looked up, and its parts. Raises UnsupportedBytecode."""
        contents: list[Content] = []
        for stored, size in self.registers.load(register, length):
            if not isinstance(stored, Content) or size != stored.length:
                raise UnsupportedBytecode("a key with a part that is not an expression")
            contents.append(stored)
        parts = tuple(self.expression(content) for content in contents)
        return (parts[0] if len(parts) == 1 else nft.Concat(parts)), tuple(contents)

    def columns(self, contents: tuple[Content, ...]) -> tuple[Column, ...]:
        """Return the columns of a key."""
        return tuple(Column(self.kind_of(content), content.length, content.order) for content in contents)

    def kind_of(self, content: Content) -> Kind:
        """Return the kind of the values of an expression."""
        return self.kind_of_payload(content.source) if isinstance(content.source, nft.RawPayload) else content.kind

    def kind_of_payload(self, raw: nft.RawPayload) -> Kind:
        """Return the kind of the values of some bits of a header."""
        field = self.named(raw)
        return payload_kind(field) if isinstance(field, nft.Payload) else Kind.NUMBER

    def named(self, raw: nft.RawPayload) -> nft.Payload | nft.RawPayload:
        """Return nft's name of some bits of a header if they are a whole field, else the bits."""
        parts = header_parts(self.protocol_of(raw), raw.offset, raw.length)
        return parts[0].field if parts and len(parts) == 1 and parts[0].is_whole else raw

    def protocol_of(self, raw: nft.RawPayload) -> str | None:
        """Return nft's name of the header, None if no test of the rule establishes it."""
        return header_protocol(raw.base, self.network, self.transport)

    # --- statements --------------------------------------------------------------------

    def add(self, statement: nft.Statement) -> None:
        """Add a statement that is not a test of a loaded value.

        The kernel ends a rule where a load fails, even if nothing uses the value. Only a test or a write
        shows that in a listing.
        """
        self.finish()
        self._check_end()
        self.statements.append(statement)

    def end_rule(self) -> None:
        """Record that for some packets the kernel goes on where the last statement ends the rule: nothing may follow.

        These are packets of another family than a translation's (nft_nat_inet_eval), and packets without a connection
        behind an xt CONNMARK.
        """
        self.is_ended = True

    def _check_end(self) -> None:
        if self.is_ended:
            self.statements.append(nft.UnknownStatement("a statement behind one that ends the rule for some packets"))
            self.is_ended = False

    def finish(self) -> None:
        """Add what the loads do that no test or write has used: where one fails, the rule ends."""
        if any(not content.uses for content in self._loaded):
            self.statements.append(nft.UnknownStatement("a load that no test uses"))
        self._loaded.clear()

    def add_unknown(self, text: str) -> None:
        """Add a statement that is unsupported, and forget all registers: it may have written to any."""
        self.add(nft.UnknownStatement(text))
        self.forget_packet()
        self.registers.clear()

    def add_uncertain_test(self, text: str) -> None:
        """Add a test that is unsupported, and forget all registers."""
        self._check_end()
        self.statements.append(nft.Match(nft.UnknownExpression(text), 1))
        self.registers.clear()
        self._loaded.clear()

    def forget_values(self) -> None:
        """Forget what was loaded before a write that leaves the protocols of the packet as they are."""
        self.registers.forget()

    def forget_packet(self) -> None:
        """Forget what is known of a packet that a statement has changed."""
        self.forget_values()
        self.network, self.transport = _NETWORKS.get(self.context.family), None

    def compare(self, content: Content, op: str, number: int, length: int) -> None:
        """Add the test `content` `op` `number`, which has `length` bytes. Raises UnsupportedBytecode."""
        content.uses.append(None)
        bits = 8 * length
        plain = self.plain_form(content, op, length)
        if plain is not None:
            self._append(nft.Match(plain[0], single_value(plain[1], number, bits), op))
            return
        if op not in ("==", "!=") and self.kind_of(content) in WITHOUT_ORDER:
            raise UnsupportedBytecode("an order of values that have none")
        if isinstance(content.source, nft.Fib) and content.kind is Kind.DEVICE and length < content.length:
            raise UnsupportedBytecode("a wildcard for the result of a FIB lookup")
        is_split = isinstance(content.source, nft.Option) or op not in ("==", "!=")  # other bits: field by field
        part = self.masked_field(content) if is_split else None
        if part is not None and length == content.length and not number & (1 << part.shift) - 1:
            self._compare_value(part.field, part.kind, None, 0, op, number >> part.shift, part.length)
            return
        if isinstance(content.source, nft.RawPayload) and not content.flip:
            if length < content.length:
                content = evolve(content, source=evolve(content.source, length=bits), length=length)
            self._compare_payload(content.source, content, op, number)  # type: ignore[arg-type]
            return
        if length < content.length:
            content, number, bits = compare_whole(content, number, bits)
        if content.flip:
            expression, kind = self.expression(content), self.kind_of(content)
            self._append(nft.Match(expression, self._constant_value(kind, op, number, bits), op))
            return
        self._compare_value(content.source, content.kind, content.mask, (1 << bits) - 1, op, number, bits)

    def plain_form(self, content: Content, op: str, length: int) -> tuple[nft.Expression, Kind] | None:
        """Return the left side, and the kind of the value, of the test `content` `op` N with N of `length` bytes.

        None if the form of the test, or what it establishes, depends on N.
        """
        if op not in ("==", "!=") or length != content.length or content.mask is not None or content.flip:
            return None
        source, kind = content.source, content.kind
        if isinstance(source, nft.RawPayload):
            field = self.named(source) if source.length == 8 * length else source
            if not isinstance(field, nft.Payload):
                return None
            source, kind = field, payload_kind(field)
        if kind is Kind.DEVICE_INDEX or (op == "==" and source in _ESTABLISHING):
            return None
        return source, kind

    def _compare_value(
        self, source: nft.Expression, kind: Kind, mask: int | None, full: int, op: str, number: int, bits: int
    ) -> None:
        if kind is Kind.DEVICE_INDEX and mask is None:
            self._append(nft.Match(source, device_name(number, self.context.devices), op))
        elif kind in FLAG_NAMES and mask is not None:
            self._append(flags_match(source, kind, mask, op, number))
        elif mask is None or mask == full:
            self._append(nft.Match(source, self._constant_value(kind, op, number, bits), op))
        elif kind in ADDRESSES:
            self._append(address_match(source, kind, mask, op, number, bits))
        elif kind is Kind.LINK_ADDRESS:
            masked = nft.Bitwise(source, single_value(kind, mask, bits))
            self._append(nft.Match(masked, single_value(kind, number, bits), op))
        else:
            self._append(nft.Match(nft.Bitwise(source, mask), number, op))

    @staticmethod
    def _constant_value(kind: Kind, op: str, number: int, bits: int) -> nft.Value:
        """Return what a value is compared with: a number where the order counts. Raises UnsupportedBytecode."""
        return single_value(kind, number, bits) if op in ("==", "!=") else ordered_value(kind, number, bits)

    def _compare_payload(self, raw: nft.RawPayload, content: Content, op: str, number: int) -> None:
        """Add the test of bits of a header: one match for each field, where all of them have to be equal."""
        full = (1 << raw.length) - 1
        field = self.named(raw) if content.mask is None else raw
        if isinstance(field, nft.Payload) and number <= full:  # the usual case
            self._compare_value(field, payload_kind(field), None, full, op, number, raw.length)
            return
        mask = full if content.mask is None else content.mask
        parts = self._parts(raw) if not number & ~mask else None
        shifted = [
            (part, mask >> shift & (1 << part.length) - 1, number >> shift & (1 << part.length) - 1)
            for part in parts or ()
            for shift in (raw.length - part.offset - part.length,)
        ]
        tested = [each for each in shifted if each[1]]
        if any(payload_kind(part.field) is Kind.LINK_ADDRESS and not part.is_whole for part, _, _ in tested):
            tested = []  # nft's grammar has no part of a link address
        if not tested or (op != "==" and len(tested) > 1) or (op not in ("==", "!=") and mask != full):
            left = raw if mask == full else nft.Bitwise(raw, mask)
            self._append(nft.Match(left, number, op))
            return
        for part, part_mask, value in tested:
            kind, whole = payload_kind(part.field), (1 << part.field_length) - 1
            after = part.field_length - part.length - part.skipped  # bits of the field behind the loaded ones
            if part.is_whole:
                is_tested_whole = part_mask == whole and not (kind in FLAG_NAMES and content.mask == whole)
                self._compare_value(
                    part.field, kind, None if is_tested_whole else part_mask, whole, op, value, part.length
                )
            elif op not in ("==", "!="):
                self._append(nft.Match(raw, number, op))
            elif kind in ADDRESSES:
                self._append(address_match(part.field, kind, part_mask << after, op, value << after, part.field_length))
            else:
                self._append(nft.Match(nft.Bitwise(part.field, part_mask << after), value << after, op))

    def _parts(self, raw: nft.RawPayload) -> tuple[HeaderPart, ...] | None:
        """Return the fields of some bits, None if nft has no names for them."""
        protocol = self.protocol_of(raw)
        parts = header_parts(protocol, raw.offset, raw.length)
        # Only ports as a whole have a name in all transport protocols.
        return None if parts and protocol == "th" and not all(part.is_whole for part in parts) else parts

    def match_set(self, key: nft.Expression, right: nft.MatchRight, op: str) -> None:
        """Add the test of a key for a set."""
        self._append(nft.Match(key, right, op))

    def match_interval(self, content: Content, op: str, low: int, high: int) -> None:
        """Add the test that a value is, or is not, in an interval. Raises UnsupportedBytecode."""
        part = self.masked_field(content)
        if part is not None and not (low | high) & (1 << part.shift) - 1:
            content.uses.append(None)
            source, kind, shift, bits = part.field, part.kind, part.shift, part.length
        else:
            source, kind, shift, bits = self.expression(content), self.kind_of(content), 0, 8 * content.length
        self._append(nft.Match(source, range_value(kind, low >> shift, high >> shift, bits), op))

    def _append(self, match: nft.Match) -> None:
        """Add a match, and learn what it establishes."""
        self._check_end()
        previous = self.statements[-1] if self.statements else None
        if match.op == "<=" and isinstance(previous, nft.Match) and previous.op == ">=" and previous.left == match.left:
            joined = join_ends(previous.right, match.right)
            if joined is not None:
                self.statements[-1] = nft.Match(match.left, joined)
                return
        self.statements.append(match)
        if match.op != "==":
            return
        match match.left:
            case nft.Meta("l4proto") | nft.Payload("ip", "protocol"):
                self.transport = _PROTOCOL_NUMBERS.get(match.right, match.right)  # type: ignore[arg-type]
                if not isinstance(self.transport, int):
                    self.transport = None
            case nft.Meta("protocol"):
                self.network = _ETHERTYPES.get(str(match.right), self.network)
            case nft.Meta("nfproto"):
                self.network = _FAMILIES.get(str(match.right), self.network)
