# SPDX-License-Identifier: BSD-2-Clause
"""Encoder of the expressions of one rule: follows the lengths of registers, which libnftnl's text does not show.

The text has values as whole words of four bytes. A comparison may use fewer bytes of the last one: then it is a
prefix of an address, or the beginning of a name. nft lists those as ADDRESS/LENGTH and "NAME*".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from attrs import Factory, field, frozen, mutable

from ..nft_bytecode.attributes import UnsupportedBytecode
from ..nft_bytecode.expressions import decode_expression
from ..nft_bytecode.registers import Content, word_of
from ..nft_bytecode.rule_state import RuleContext, RuleState
from ..nft_bytecode.sets import SetTable
from ..nft_bytecode.values import Kind
from ..xt_decode import decode_xt
from .expressions import CT_SIZES, META_SIZES, Groups, encode_dynset, encode_effect, encode_load
from .listing import element_statements
from .messages import data, expression, not_shown, number, text, verdict

WORD = 4  # bytes
_VALUE = r"(?P<{}>(?:0x[0-9a-f]{{8}} )+)"
_CMP = re.compile(rf"(?P<op>\w+) reg (?P<sreg>\d+) {_VALUE.format('value')}")
_RANGE = re.compile(rf"(?P<op>eq|neq) reg (?P<sreg>\d+) {_VALUE.format('value')}")
_MASK = re.compile(rf"reg (?P<dreg>\d+) = \( reg (?P<sreg>\d+) & {_VALUE.format('mask')}\) \^ {_VALUE.format('flip')}")
_SHIFT = re.compile(r"reg (?P<dreg>\d+) = \( reg (?P<sreg>\d+) (?P<op><<|>>) (?P<value>0x[0-9a-f]{8} )\) ")
_COMBINE = re.compile(r"reg (?P<dreg>\d+) = \( reg (?P<sreg>\d+) (?P<op>[&|^]) reg (?P<other>\d+) \) ")
_BYTEORDER = re.compile(r"reg (?P<dreg>\d+) = (?P<op>ntoh|hton)\(reg (?P<sreg>\d+), (?P<size>\d+), (?P<len>\d+)\) ")
_CONSTANT = re.compile(rf"reg (?P<dreg>\d+) {_VALUE.format('value')}")
_VERDICT = re.compile(r"reg 0 (?P<word>\w+) (?:-> (?P<chain>\S+) )?")
_LOOKUP = re.compile(r"reg (?P<sreg>\d+) set (?P<set>\S+) (?:dreg (?P<dreg>\d+) )?(?:0x(?P<flags>[0-9a-f]+) )?")
_COMPARISONS = {"eq": 0, "neq": 1, "lt": 2, "lte": 3, "gt": 4, "gte": 5}
_SHIFTS, _COMBINATIONS = {"<<": 1, ">>": 2}, {"&": 3, "|": 4, "^": 5}
_STRING, _BRACES, _PREFIX = re.compile(r'"([^"]*)"'), re.compile(r"\{[^{}]*\}"), re.compile(r"/(\d+)\b")
_ADDRESS_SIZES, _PORT = {"ip": 4, "ip6": 16}, 2
_VERDICT_REGISTER = 0


@frozen
class Listing:
    """Parts of nft's listing of a rule that its program does not show.

    `strings`: its strings. `prefixes`: the lengths of its prefixes in bits. `statements`: the kinds of statements of
    the elements of its anonymous sets.
    """

    strings: frozenset[str]
    prefixes: frozenset[int]
    statements: frozenset[str]


def read_listing(line: str) -> Listing:
    """Return what the line of a rule shows."""
    remaining = _STRING.sub('""', line)
    contents: list[str] = []
    while _BRACES.search(remaining):  # prefixes of set elements are no comparisons
        contents += _BRACES.findall(remaining)
        remaining = _BRACES.sub("", remaining)
    statements = element_statements(" ".join(contents))
    return Listing(
        frozenset(_STRING.findall(line)), frozenset(map(int, _PREFIX.findall(remaining))), frozenset(statements)
    )


@frozen
class Slot:
    """A value in a register: its length in bytes, its kind, its byte order; or the data of a map."""

    length: int
    kind: Kind = Kind.NUMBER
    map_name: str | None = None


@mutable
class SetUses:
    """The lengths in bytes that the rules of a table use, by the name of the set.

    `keys`: of the values from the register of each lookup on, which may be more than the key has. `data`: of each use
    of the data of a map. `statements`: kinds of statements that elements may have, if the set is anonymous.
    """

    keys: dict[str, set[tuple[int, ...]]] = Factory(dict)
    data: dict[str, set[int]] = Factory(dict)
    statements: dict[str, set[str]] = Factory(dict)


def words(value: str, byte_order: str) -> bytes:
    """Return the bytes of words that are printed as numbers of the machine."""
    return b"".join(
        int(word, 16).to_bytes(WORD, byte_order)  # type: ignore[arg-type]
        for word in value.split()
    )


def rounded(length: int) -> int:
    """Return the length of whole words."""
    return -(-length // WORD) * WORD


def compared_length(raw: bytes, slot: Slot, listing: Listing | None) -> int | None:
    """Return the number of bytes that a comparison with whole words compares; None if it is not certain.

    `listing`: of the rule; None if it is not known.
    """
    name = raw.rstrip(b"\0")
    lowest = max(len(raw) - WORD + 1, len(name), 1)
    if slot.kind is Kind.EXISTENCE:
        return 1 if len(raw) == WORD else None
    if len(raw) > rounded(slot.length) or lowest > slot.length:
        return None
    is_whole = len(raw) == rounded(slot.length)
    highest = slot.length if is_whole else len(raw)
    if lowest == highest:
        return highest
    if listing is None:
        return None
    if slot.kind is Kind.DEVICE:
        if len(name) < lowest:
            return highest  # with the end of the name
        word = name.decode("utf-8", "surrogateescape")
        is_prefix, is_name = f"{word}*" in listing.strings, word in listing.strings
        return None if is_prefix == is_name else len(name) if is_prefix else highest
    shorter = [length for length in range(lowest, highest + (not is_whole)) if 8 * length in listing.prefixes]
    if is_whole:
        return None if shorter else highest
    return shorter[0] if len(shorter) == 1 else None


def unsupported(name: str, arguments: str) -> bytes:
    """Return an expression that may do anything, with its text as its name."""
    return text(1, f"{name} {arguments}".strip())


@mutable
class RuleEncoder:
    """The expressions of one rule, encoded one after the other."""

    family: str
    byte_order: str
    devices: Mapping[int, str]
    uses: SetUses
    listing: Listing | None
    encoded: list[bytes] = field(factory=list)
    _slots: dict[int, Slot] = field(factory=dict)  # by the first word of the register

    def add(self, name: str, arguments: str) -> None:
        """Encode one expression; an unknown one may do anything."""
        encoder = _ENCODERS.get(name)
        try:
            raw = encoder(self, arguments) if encoder is not None else self._other(name, arguments)
        except UnsupportedBytecode:  # a register that does not exist
            raw = None
        if raw is None:
            self._slots.clear()
            raw = unsupported(name, arguments)
        self.encoded.append(raw)

    def _store(self, register: int, slot: Slot | None) -> None:
        """Store a value in a register; None: one of unknown length, so that no register is known."""
        if slot is None:
            self._slots.clear()
            return
        first, count = word_of(register), rounded(slot.length) // WORD
        for word, known in list(self._slots.items()):
            if word < first + count and first < word + rounded(known.length) // WORD:
                del self._slots[word]
        self._slots[first] = slot

    def _slot(self, register: int) -> Slot | None:
        return self._slots.get(word_of(register))

    def _key(self, register: int) -> tuple[int, ...]:
        """Return the lengths of the values that follow each other from a register on."""
        word, lengths = word_of(register), []
        while word in self._slots:
            slot = self._slots[word]
            lengths.append(slot.length)
            word += rounded(slot.length) // WORD
        return tuple(lengths)

    # --- expressions ---------------------------------------------------------------------

    def _other(self, name: str, arguments: str) -> bytes | None:
        match = encode_load(name, arguments)
        if match is not None:
            raw, groups = match
            self._store(int(groups["dreg"]), self._loaded(name, raw))
            return raw
        match = encode_effect(name, arguments)
        if match is not None:
            self._record_data(name, match[1])
            return match[0]
        return None

    def _loaded(self, name: str, raw: bytes) -> Slot | None:
        """Return what a load stores, by executing it alone."""
        if name == "hash":  # its source is in a register
            return Slot(WORD)
        context = RuleContext(self.family, SetTable(self.byte_order), self.devices, self.byte_order, decode_xt)
        state = RuleState(context)
        decode_expression(raw)(state)
        if state.last_store is None or not isinstance(state.last_store[1], Content):
            return None
        content = state.last_store[1]
        return Slot(content.length, content.kind)

    def _record_data(self, name: str, groups: Groups) -> None:
        """Record the length of the data of a map that an expression writes."""
        address = _ADDRESS_SIZES.get(groups.get("family") or "")
        sizes: list[tuple[str | None, int | None]] = [(groups.get("pmin"), _PORT), (groups.get("port"), _PORT)]
        if name == "nat":
            sizes.append((groups.get("amin"), address))
        elif name in ("payload", "exthdr"):
            sizes.append((groups["sreg"], int(groups["len"])))
        elif name in ("meta", "ct"):
            sizes.append((groups["sreg"], {"meta": META_SIZES, "ct": CT_SIZES}[name].get(groups["key"])))
        elif name == "queue":
            sizes.append((groups.get("sreg"), _PORT))
        for register, size in sizes:
            slot = self._slot(int(register)) if register else None
            if slot is not None and slot.map_name is not None and size is not None:
                is_concatenation = name == "nat" and groups["pmin"] and self._slot(int(groups["pmin"])) is None
                if not is_concatenation:
                    self.uses.data.setdefault(slot.map_name, set()).add(size)

    def _cmp(self, arguments: str) -> bytes | None:
        match = _CMP.fullmatch(arguments)
        slot = self._slot(int(match["sreg"])) if match else None
        if match is None or slot is None or match["op"] not in _COMPARISONS:
            return None
        raw = words(match["value"], self.byte_order)
        length = compared_length(raw, slot, self.listing)
        hidden = [] if length is not None else [not_shown("how many bytes it compares")]
        parts = (number(1, int(match["sreg"])), number(2, _COMPARISONS[match["op"]]), data(3, raw[:length]))
        return expression("cmp", *parts, *hidden)

    def _range(self, arguments: str) -> bytes | None:
        match = _RANGE.fullmatch(arguments)
        slot = self._slot(int(match["sreg"])) if match else None
        if match is None or slot is None:
            return None
        raw = words(match["value"], self.byte_order)
        half, length = len(raw) // 2, slot.length
        low, high = raw[:half], raw[half:]
        if half != rounded(length) or any(low[length:] + high[length:]):
            return None
        op = number(2, {"eq": 0, "neq": 1}[match["op"]])
        return expression("range", number(1, int(match["sreg"])), op, data(3, low[:length]), data(4, high[:length]))

    def _bitwise(self, arguments: str) -> bytes | None:
        match = _MASK.fullmatch(arguments) or _SHIFT.fullmatch(arguments) or _COMBINE.fullmatch(arguments)
        slot = self._slot(int(match["sreg"])) if match else None
        if match is None or slot is None:
            return None
        length, groups = slot.length, match.groupdict()
        parts = [number(1, int(match["sreg"])), number(2, int(match["dreg"])), number(3, length)]
        if "mask" in groups:
            mask, flip = (words(groups[name], self.byte_order) for name in ("mask", "flip"))
            if len(mask) != rounded(length) or len(flip) != len(mask) or any(mask[length:] + flip[length:]):
                return None
            parts += [data(4, mask[:length]), data(5, flip[:length]), number(6, 0)]
        elif "other" in groups:
            parts += [number(6, _COMBINATIONS[groups["op"]]), number(8, int(groups["other"]))]
        else:
            parts += [number(6, _SHIFTS[groups["op"]]), data(7, words(groups["value"], self.byte_order))]
        self._store(int(match["dreg"]), Slot(length, slot.kind))
        return expression("bitwise", *parts)

    def _byteorder(self, arguments: str) -> bytes | None:
        match = _BYTEORDER.fullmatch(arguments)
        slot = self._slot(int(match["sreg"])) if match else None
        if match is None or slot is None:
            return None
        self._store(int(match["dreg"]), slot)
        op = number(3, {"ntoh": 0, "hton": 1}[match["op"]])
        parts = (number(1, int(match["sreg"])), number(2, int(match["dreg"])), op)
        return expression("byteorder", *parts, number(4, int(match["len"])), number(5, int(match["size"])))

    def _immediate(self, arguments: str) -> bytes | None:
        match = _CONSTANT.fullmatch(arguments)
        if match is not None:
            raw = words(match["value"], self.byte_order)
            self._store(int(match["dreg"]), Slot(len(raw)))
            return expression("immediate", number(1, int(match["dreg"])), data(2, raw))
        match = _VERDICT.fullmatch(arguments)
        if match is None:
            return None
        try:
            return expression("immediate", number(1, _VERDICT_REGISTER), verdict(2, match["word"], match["chain"]))
        except KeyError:
            return None

    def _lookup(self, arguments: str) -> bytes | None:
        match = _LOOKUP.fullmatch(arguments)
        if match is None:
            return None
        self.uses.keys.setdefault(match["set"], set()).add(self._key(int(match["sreg"])))
        statements = {"not shown"} if self.listing is None else self.listing.statements
        self.uses.statements.setdefault(match["set"], set()).update(statements)
        parts = [text(1, match["set"]), number(2, int(match["sreg"]))]
        if match["dreg"]:
            register = int(match["dreg"])
            parts.append(number(3, register))
            if register != _VERDICT_REGISTER:
                first = word_of(register)  # how many registers the data fill is not known here
                self._slots = {word: slot for word, slot in self._slots.items() if word < first}
                self._slots[first] = Slot(WORD, map_name=match["set"])
        return expression("lookup", *parts, number(5, int(match["flags"] or "0", 16)))

    def _dynset(self, arguments: str) -> bytes | None:
        match = encode_dynset(arguments)
        if match is None:
            return None
        raw, name, register = match
        self.uses.keys.setdefault(name, set()).add(self._key(register))
        return raw


_ENCODERS: Mapping[str, Callable[[RuleEncoder, str], bytes | None]] = {
    "cmp": RuleEncoder._cmp,  # a table of its own methods
    "range": RuleEncoder._range,
    "bitwise": RuleEncoder._bitwise,
    "byteorder": RuleEncoder._byteorder,
    "immediate": RuleEncoder._immediate,
    "lookup": RuleEncoder._lookup,
    "dynset": RuleEncoder._dynset,
}
