"""Interpreter of the program that the kernel runs: expressions and registers of nf_tables, for one packet.

It shares nothing with the product but the bytes of the dump (nft_dump.py). Each function names the kernel's.
"""

import struct
import sys
from collections import Counter
from dataclasses import dataclass, field

from . import nft_dump
from .kernel_sets import find_element, size_of, value_of
from .nft_dump import Attributes, Expression, RawTable, attributes, number, text

DROP, ACCEPT, STOLEN, QUEUE = 0, 1, 2, 3  # NF_*
CONTINUE, BREAK, JUMP, GOTO, RETURN = -1, -2, -3, -4, -5  # NFT_*
STACK_SIZE = 16  # NFT_JUMP_STACK_SIZE
NATIVE = sys.byteorder


class Undecided(Exception):
    """An expression whose result the packet does not determine, or that is not interpreted."""


@dataclass
class Flow:
    """A conntrack entry and the packet's place in it; `state` is the bit of NF_CT_STATE_BIT()."""

    state: int = 8
    mark: int = 0
    status: int = 0
    is_reply: bool = False


@dataclass
class ProgramPacket:
    """A packet at one hook (struct nft_pktinfo).

    `network` is the packet from the network header on, `link` the header before it, None if there is none.
    `transport` is the offset of the transport header, None where its protocol is not known. Devices are (index, name),
    None without one.
    """

    network: bytearray
    ethertype: int
    family: int  # NFPROTO_*: of the hook
    transport: int | None
    protocol: int = 0
    fragment_offset: int = 0
    link: bytearray | None = None
    mark: int = 0
    priority: int = 0
    pkttype: int = 0
    iif: tuple[int, str] | None = None
    oif: tuple[int, str] | None = None
    uid: int | None = None
    gid: int | None = None
    flow: Flow | None = None
    is_untracked: bool = False


@dataclass
class _Registers:
    """Sixteen words, and the verdict."""

    data: bytearray = field(default_factory=lambda: bytearray(64))
    verdict: int = CONTINUE
    chain: str | None = None


def _offset(raw: bytes) -> int:
    """Return the place of a register (nft_parse_register); the verdict has none."""
    register = number(raw)
    if 1 <= register <= 4:
        return (register - 1) * 16
    if 8 <= register < 24:
        return (register - 8) * 4
    raise Undecided(f"register {register}")


def _u32(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, NATIVE)


class Program:
    """The chains and sets of one table. `counts`: executed counters, by chain and number of the rule."""

    def __init__(self, table: RawTable) -> None:
        self.table = table
        self.counts: Counter[tuple[str, int]] = Counter()
        self._place = ("", 0)

    def run(self, name: str, packet: ProgramPacket) -> int:
        """Return the verdict of a base chain (nft_do_chain). Raises Undecided."""
        base, chain, index = name, name, 0
        stack: list[tuple[str, int]] = []
        while True:
            rules = self.table.chains[chain].rules
            registers = _Registers()
            while index < len(rules):
                self._place = (chain, index)
                registers = _Registers(registers.data)
                index += 1
                for each in rules[index - 1]:
                    self._execute(each, registers, packet)
                    if registers.verdict != CONTINUE:
                        break
                if registers.verdict not in (CONTINUE, BREAK):
                    break
            if registers.verdict in (DROP, ACCEPT, STOLEN, QUEUE):
                return registers.verdict
            if registers.verdict in (JUMP, GOTO):
                if registers.verdict == JUMP:
                    if len(stack) >= STACK_SIZE:
                        return DROP
                    stack.append((chain, index))
                chain, index = registers.chain or "", 0
            elif stack:
                chain, index = stack.pop()
            else:
                return self.table.chains[base].policy

    def _execute(self, each: Expression, registers: _Registers, packet: ProgramPacket) -> None:
        name, found = each
        try:
            function = _EXPRESSIONS[name]
        except KeyError:
            raise Undecided(name) from None
        function(self, found, registers, packet)

    # --- loads ------------------------------------------------------------------------

    def _meta(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Load or write a property (nft_meta_get_eval, nft_meta_set_eval)."""
        key = number(found[2])
        if 3 in found:
            start = _offset(found[3])
            value = int.from_bytes(registers.data[start : start + 4], NATIVE)
            if key == 3:
                packet.mark = value
            elif key == 2:
                packet.priority = value
            elif key != 12:  # nftrace
                raise Undecided(f"a write of meta {key}")
            return
        value = self._meta_value(key, packet)
        if value is None:
            registers.verdict = BREAK
        else:
            self._store(registers, found[1], value)

    @staticmethod
    def _meta_value(key: int, packet: ProgramPacket) -> bytes | None:
        devices = {4: packet.iif, 5: packet.oif}
        names = {6: packet.iif, 7: packet.oif}
        if key in devices:
            device = devices[key]
            return _u32(device[0] if device else 0)
        if key in names:
            device = names[key]
            return (device[1].encode() if device else b"").ljust(16, b"\0")
        match key:
            case 1:
                return packet.ethertype.to_bytes(2, "big").ljust(4, b"\0")
            case 2:
                return _u32(packet.priority)
            case 3:
                return _u32(packet.mark)
            case 10:
                return None if packet.uid is None else _u32(packet.uid)
            case 11:
                return None if packet.gid is None else _u32(packet.gid)
            case 15:
                return bytes([packet.family, 0, 0, 0])
            case 16:
                return None if packet.transport is None else bytes([packet.protocol, 0, 0, 0])
            case 19:
                return bytes([packet.pkttype, 0, 0, 0])
        raise Undecided(f"meta {key}")

    @staticmethod
    def _store(registers: _Registers, target: bytes, value: bytes) -> None:
        start = _offset(target)
        padded = value.ljust(-(-len(value) // 4) * 4, b"\0")
        registers.data[start : start + len(padded)] = padded

    def _ct(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Load or write a property of the connection (nft_ct_get_eval, nft_ct_set_eval)."""
        key, flow = number(found[2]), packet.flow
        if 4 in found:
            if key != 3:
                raise Undecided(f"a write of ct {key}")
            start = _offset(found[4])
            if flow is not None:
                flow.mark = int.from_bytes(registers.data[start : start + 4], NATIVE)
            return
        if key == 0:
            state = 64 if packet.is_untracked else 1
            self._store(registers, found[1], _u32(state if flow is None else flow.state))
            return
        if flow is None:
            registers.verdict = BREAK
            return
        values = {1: bytes([flow.is_reply, 0, 0, 0]), 2: _u32(flow.status), 3: _u32(flow.mark)}
        if key not in values or key == 2:
            raise Undecided(f"ct {key}")
        self._store(registers, found[1], values[key])

    def _payload(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Load or write bytes of the packet (nft_payload_eval, nft_payload_set_eval)."""
        base, offset, length = (number(found[kind]) for kind in (2, 3, 4))
        data: bytearray | None = packet.network
        if base == 0:
            data = packet.link
        elif base == 2:
            if packet.transport is None or packet.fragment_offset:
                data = None
            else:
                offset += packet.transport
        elif base != 1:
            raise Undecided(f"payload base {base}")
        if data is not None and base == 0 and offset + length > len(data):
            raise Undecided("a load behind the link header")
        if data is None or offset + length > len(data):
            registers.verdict = BREAK
        elif 5 in found:
            start = _offset(found[5])
            data[offset : offset + length] = registers.data[start : start + length]
        else:
            self._store(registers, found[1], bytes(data[offset : offset + length]))

    # --- registers --------------------------------------------------------------------

    def _immediate(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Load a constant or set the verdict (nft_immediate_eval)."""
        if number(found[1]) == 0:
            self._set_verdict(registers, found[2])
        else:
            self._store(registers, found[1], value_of(found[2]))

    @staticmethod
    def _set_verdict(registers: _Registers, data: bytes) -> None:
        verdict = attributes(attributes(data)[2])
        registers.verdict = struct.unpack(">i", verdict[1])[0]
        registers.chain = text(verdict[2]) if 2 in verdict else None

    def _cmp(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Compare with a constant, as memcmp does (nft_cmp_eval)."""
        wanted, start = value_of(found[3]), _offset(found[1])
        have = bytes(registers.data[start : start + len(wanted)])
        results = (have == wanted, have != wanted, have < wanted, have <= wanted, have > wanted, have >= wanted)
        if not results[number(found[2])]:
            registers.verdict = BREAK

    def _range(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Compare with a range (nft_range_eval)."""
        low, high, start = value_of(found[3]), value_of(found[4]), _offset(found[1])
        is_inside = low <= bytes(registers.data[start : start + len(low)]) <= high
        if is_inside is bool(number(found[2])):
            registers.verdict = BREAK

    def _bitwise(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Combine a register with constants, a shift or a second register (nft_bitwise_eval)."""
        length, operation = number(found[3]), number(found.get(6, b"\0"))
        start = _offset(found[1])
        have = bytes(registers.data[start : start + length])
        if operation == 0:
            pairs = zip(have, value_of(found[4]), value_of(found[5]), strict=True)
            result = bytes(byte & mask ^ flip for byte, mask, flip in pairs)
        elif operation in (1, 2):
            result = self._shift(have, int.from_bytes(value_of(found[7])[:4], NATIVE), operation == 1)
        else:
            other = _offset(found[8])
            second = bytes(registers.data[other : other + length])
            combine = {3: int.__and__, 4: int.__or__, 5: int.__xor__}[operation]
            result = bytes(combine(left, right) for left, right in zip(have, second, strict=True))
        self._store(registers, found[2], result)

    @staticmethod
    def _shift(have: bytes, bits: int, is_left: bool) -> bytes:
        """Shift words of 32 bits, the first of which has the highest bits (nft_bitwise_eval_lshift)."""
        size = -(-len(have) // 4)
        words = [int.from_bytes(have[4 * index : 4 * index + 4], NATIVE) for index in range(size)]
        whole = sum(word << 32 * (size - 1 - index) for index, word in enumerate(words))
        whole = whole << bits if is_left else whole >> bits
        return b"".join(_u32(whole >> 32 * (size - 1 - index)) for index in range(size))

    def _byteorder(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Swap the bytes of each number (nft_byteorder_eval)."""
        length, size, start = number(found[4]), number(found[5]), _offset(found[1])
        have = bytes(registers.data[start : start + length])
        if NATIVE == "little":
            have = b"".join(have[index : index + size][::-1] for index in range(0, length, size))
        self._store(registers, found[2], have)

    # --- sets -------------------------------------------------------------------------

    def _lookup(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Look a key up in a set or map (nft_lookup_eval)."""
        chosen = self.table.sets[text(found[1])]
        start, is_inverted = _offset(found[2]), bool(number(found.get(5, b"\0")) & 1)
        key = bytes(registers.data[start : start + number(chosen.header[5])])
        element = find_element(chosen, key)
        if (element is not None) is is_inverted:
            registers.verdict = BREAK
        elif element is not None:
            if 7 in element or 11 in element:
                raise Undecided("a statement of an element")
            if 3 in found and number(found[3]) == 0:
                self._set_verdict(registers, element[2])
            elif 3 in found:
                self._store(registers, found[3], value_of(element[2]))

    def _dynset(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Add, update or delete an element without data or statements (nft_dynset_eval)."""
        chosen = self.table.sets[text(found[1])]
        if {5, 7, 10} & set(found) or number(found.get(9, b"\0")) & 1:
            raise Undecided("dynset")
        start = _offset(found[4])
        key = bytes(registers.data[start : start + number(chosen.header[5])])
        present = find_element(chosen, key)
        if number(found[3]) == 2:
            if present is not None:
                chosen.elements.remove(present)
        elif present is None:
            if len(chosen.elements) >= size_of(chosen):
                registers.verdict = BREAK
                return
            chosen.elements.append({1: struct.pack("=HH", 4 + len(key), 1) + key})

    # --- effects ----------------------------------------------------------------------

    def _counter(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        self.counts[self._place] += 1

    def _nothing(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Do what no other expression can see (log, last)."""

    def _notrack(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Exempt a packet without a connection (nft_notrack_eval)."""
        if packet.flow is None:
            packet.is_untracked = True

    def _reject(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        """Answer and drop (nft_reject_*_eval)."""
        registers.verdict = DROP

    def _objref(self, found: Attributes, registers: _Registers, packet: ProgramPacket) -> None:
        if number(found.get(1, b"\xff")) != 1:  # NFT_OBJECT_COUNTER
            raise Undecided("objref")


_EXPRESSIONS = {
    "meta": Program._meta, "ct": Program._ct, "payload": Program._payload, "immediate": Program._immediate,
    "cmp": Program._cmp, "range": Program._range, "bitwise": Program._bitwise, "byteorder": Program._byteorder,
    "lookup": Program._lookup, "dynset": Program._dynset, "counter": Program._counter, "log": Program._nothing,
    "last": Program._nothing, "notrack": Program._notrack, "reject": Program._reject, "objref": Program._objref,
}  # fmt: skip


def read_program(family: str, table: str) -> Program:
    """Return the program of a table of this network namespace."""
    return Program(nft_dump.read_tables()[family, table])
