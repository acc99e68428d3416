# SPDX-License-Identifier: BSD-2-Clause
"""Flush filter: the link guard once more, as classic BPF at tc's clsact egress, which no flush of nft removes.

tc runs after the egress hook of nft (__dev_queue_xmit), so with the guard in force the filter drops nothing more.
Classic BPF reads no sockets: the owner of a mark or of an exempt packet is not checked.

One program matches exempt packets, and the next drops what has no mark. Two, since a program that loads more than
a packet has returns 0 (net/core/filter.c): no match for the first, and "pass" for one that drops. Other filters
see all marked packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from itertools import groupby

from ...compiler import lans
from ...compiler.exemptions import EXEMPTION_MATCHES, bpdu_rules
from ...generated_text import CheckedText, fill, join, word
from ...netstate.nft import AnonymousSet, Match, Meta, Payload, RawPayload
from ...netstate.nft.symbols import ICMPV6_TYPES, IGMP_TYPES
from ...policy.mark import Mark
from ...policy.objects import Policy

# Operations (include/uapi/linux/bpf_common.h): loads by size in bytes from a fixed place and from X on.
_LOAD, _LOAD_X = {4: 0x20, 2: 0x28, 1: 0x30}, {4: 0x40, 2: 0x48, 1: 0x50}
_LOAD_LENGTH, _X_CONSTANT, _X_HEADER, _AND, _RETURN = 0x80, 0x01, 0xB1, 0x54, 0x06
_EQUAL, _GREATER, _AT_LEAST, _ANY_BIT = 0x15, 0x25, 0x35, 0x45
# Places (include/uapi/linux/filter.h): properties of the packet, and its network header.
_PROPERTY, _NETWORK = 0xFFFFF000, 0xFFF00000
_PROPERTIES = {"protocol": 0, "pkttype": 4, "mark": 20, "oiftype": 28, "vlan": 48}
_MATCHED = 0xFFFFFFFF
_CONTINUE, _DROP = 0xFFFFFFFF, 2  # TC_ACT_UNSPEC, TC_ACT_SHOT (include/uapi/linux/pkt_cls.h)
_NETWORK_FIELDS = {
    ("ip", "ttl"): (8, 1), ("ip", "daddr"): (16, 4),
    ("ip6", "hoplimit"): (7, 1), ("ip6", "saddr"): (8, 16), ("ip6", "daddr"): (24, 16),
}  # fmt: skip
_TRANSPORT_FIELDS = {
    ("udp", "sport"): (0, 2), ("udp", "dport"): (2, 2), ("igmp", "type"): (0, 1),
    ("icmpv6", "type"): (0, 1), ("icmpv6", "code"): (1, 1),
}  # fmt: skip
_PROTOCOLS = {"igmp": 2, "udp": 17, "icmpv6": 58}
_ETHERTYPES = {"ip": 0x0800, "ip6": 0x86DD}
_NAMES = {**ICMPV6_TYPES, **IGMP_TYPES, "arp": 0x0806}
_NEXT = ""
# Parts that recur: the device has little space. No part has a letter, so the order is of no account.
_SHORT_FORMS = {
    "p": f"{_RETURN}_0_0_{_MATCHED}",
    "z": f"{_RETURN}_0_0_0", "w": "32_0_0_42939187", "h": "40_0_0_42939187", "b": "48_0_0_42939187",
    "x": "72_0_0_42939187", "y": "80_0_0_42939187", "m": "32_0_0_42949632", "e": "21_0_", "j": "21_", "l": "53_0_",
    "k": "40_0_0_12,", "f": "4278321152",
}  # fmt: skip
# Commands of sed(1) that write the long form.
EXPANSION = join(
    ";",
    (fill("s/{letter}/{start}/g", letter=word(letter), start=word(start)) for letter, start in _SHORT_FORMS.items()),
)

_Load = tuple[int | None, int, int]  # operation, None for a value that is loaded already; place; size in bytes
_Alternatives = dict[str, list[tuple[Match, ...]]]  # protocol of the transport header -> tests of packets


class _Program:
    """Instructions with the names of the places that they jump to. Jumps lead forward only."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, str, str]] = []
        self.places: dict[str, int] = {}
        self._count = 0

    def add(self, operation: int, value: int, true: str = _NEXT, false: str = _NEXT) -> None:
        self.code.append((operation, value, true, false))

    def place(self, name: str) -> None:
        self.places[name] = len(self.code)

    def new_name(self) -> str:
        self._count += 1
        return str(self._count)

    def load(self, name: str) -> None:
        """Load a property of the packet."""
        self.add(_LOAD[4], _PROPERTY + _PROPERTIES[name])

    def text(self) -> CheckedText:
        """Return the program in the short form, with _ in place of spaces.

        Raises:
            ValueError: a jump is longer than an instruction can express.
        """
        lines = [str(len(self.code))]
        for number, (operation, value, *targets) in enumerate(self.code):
            true, false = (self.places[target] - number - 1 if target else 0 for target in targets)
            if max(true, false) > 255:
                raise ValueError("the exemptions are too many for a flush filter")
            lines.append(f"{operation}_{true}_{false}_{value}")
        text = ",".join(lines)
        for letter, part in _SHORT_FORMS.items():
            text = text.replace(part, letter)
        return word(text)


def pass_filter(policy: Policy, name: str) -> CheckedText | None:
    """Return the program that matches the exempt packets of an uplink; None if it cannot express them.

    The tables lan of a policy require owners of sockets, and the device of a CLAT has a guard of its own.
    """
    uplink = policy.uplink[name]
    if uplink.clat or lans.uplink_lans(policy, name):
        return None
    program = _Program()
    exemptions = [EXEMPTION_MATCHES[key] for key in uplink.exempt]
    for each in exemptions:
        own_type = (Match(Payload("ether", "type"), AnonymousSet(frozenset(each.frames))),) if each.frames else ()
        if each.frames or each.frame_form:
            _pass_if(program, (*own_type, *each.frame_form))
    packets = [matches for each in exemptions for matches in (*each.packets, *each.kernel_packets)]
    for family in _ETHERTYPES:
        _packets(program, family, _by_transport(family, packets))
    program.add(_RETURN, 0)
    return program.text()


def bpdu_filter(name: str) -> CheckedText:
    """Return the program that matches frames of the spanning tree protocol, which a bridge sends by its ports."""
    program = _Program()
    _pass_if(program, tuple(part for part in bpdu_rules(name)[1].statements if isinstance(part, Match)))
    program.add(_RETURN, 0)
    return program.text()


def drop_filter(mark: Mark, is_port: bool = False) -> CheckedText:
    """Return the program that drops packets without the mark; it leaves others to the next filter of the device.

    At the port of a bridge it leaves forwarded frames, too.
    """
    program = _Program()
    if is_port:
        program.load("pkttype")
        program.add(_EQUAL, 0, _NEXT, "next")
    program.load("mark")
    program.add(_AND, mark.mask)
    program.add(_EQUAL, mark.value, "next")
    program.add(_RETURN, _DROP)
    program.place("next")
    program.add(_RETURN, _CONTINUE)
    return program.text()


def vlan_filter(numbers: Iterable[int]) -> CheckedText:
    """Return the program that drops frames of these VLANs which a socket sends by the device below them.

    Their tag is in the frame. A VLAN device leaves the tag to the device below (__vlan_hwaccel_put_tag); its frames
    have passed its own guard. Another host takes a tag with number 0 for none, and reads the one behind it.
    """
    program = _Program()
    program.load("vlan")
    program.add(_EQUAL, 0, _NEXT, "next")
    program.add(_LOAD[2], 12)
    program.add(_EQUAL, 0x8100, "tag")
    program.add(_EQUAL, 0x88A8, "tag", "next")
    program.place("tag")
    program.add(_LOAD[2], 14)
    program.add(_AND, 0xFFF)
    for number in (0, *sorted(numbers)):
        program.add(_EQUAL, number, "drop")
    program.place("next")
    program.add(_RETURN, _CONTINUE)
    program.place("drop")
    program.add(_RETURN, _DROP)
    return program.text()


def _by_transport(family: str, packets: Iterable[tuple[Match, ...]]) -> _Alternatives:
    alternatives: _Alternatives = {}
    for matches in packets:
        headers = {match.left.protocol for match in matches if isinstance(match.left, Payload)}
        if family in headers:
            (transport,) = headers - {family}
            alternatives.setdefault(transport, []).append(matches)
    return alternatives


def _packets(program: _Program, family: str, alternatives: _Alternatives) -> None:
    """Add the tests of IP packets: the ethertype that the sender says, and on Ethernet that of the frame."""
    if not alternatives:
        return
    end, to_transport = program.new_name(), program.new_name()
    program.load("protocol")
    program.add(_EQUAL, _ETHERTYPES[family], _NEXT, end)
    program.load("oiftype")
    program.add(_EQUAL, 1, _NEXT, to_transport)
    _frame_type(program, end)
    program.add(_EQUAL, _ETHERTYPES[family], _NEXT, end)
    program.place(to_transport)
    _find_transport(program, family, end)
    for transport in alternatives:
        program.add(_EQUAL, _PROTOCOLS[transport], f"{end}{transport}")
    program.place(f"{end}none")
    program.add(_RETURN, 0)
    for transport, packets in alternatives.items():
        program.place(f"{end}{transport}")
        for shared, group in groupby(packets, lambda matches: matches[:2]):
            endings = [matches[2:] for matches in group]
            following = program.new_name()
            if all(endings):
                for match in shared:
                    _test(program, match, following)
            for ending in endings:
                _pass_if(program, ending if all(endings) else (*shared, *ending))
            program.place(following)
        program.add(_RETURN, 0)
    program.place(end)


def _find_transport(program: _Program, family: str, end: str) -> None:
    """Load the protocol into A and the offset of its header into X. Fragments are no exemptions.

    MLD reports of the kernel have a hop-by-hop header of 8 bytes (RFC 3810 5.2).
    """
    if family == "ip":
        program.add(_LOAD[2], _NETWORK + 6)
        program.add(_ANY_BIT, 0x1FFF, f"{end}none")
        program.add(_X_HEADER, _NETWORK)
        program.add(_LOAD[1], _NETWORK + 9)
    else:
        has_transport = program.new_name()
        program.add(_X_CONSTANT, 40)
        program.add(_LOAD[1], _NETWORK + 6)
        program.add(_EQUAL, 0, _NEXT, has_transport)
        program.add(_LOAD[1], _NETWORK + 41)
        program.add(_EQUAL, 0, _NEXT, f"{end}none")
        program.add(_X_CONSTANT, 48)
        program.add(_LOAD[1], _NETWORK + 40)
        program.place(has_transport)


def _frame_type(program: _Program, otherwise: str) -> None:
    """Load the ethertype. A VLAN tag that the device will insert stands before it, and is no exemption."""
    program.load("vlan")
    program.add(_EQUAL, 0, _NEXT, otherwise)
    program.add(_LOAD[2], 12)


def _pass_if(program: _Program, matches: tuple[Match, ...]) -> None:
    """Return _MATCHED if all matches hold."""
    further = program.new_name()
    for match in matches:
        _test(program, match, further)
    program.add(_RETURN, _MATCHED)
    program.place(further)


def _test(program: _Program, match: Match, otherwise: str) -> None:
    """Go on if the match holds, else jump to `otherwise`."""
    left = match.left
    loads: list[_Load]
    if isinstance(left, Meta) and left.key == "length":
        loads = [(_LOAD_LENGTH, 0, 4)]
    elif isinstance(left, Payload) and left.protocol == "ether":
        _frame_type(program, otherwise)
        loads = [(None, 12, 2)]
    elif isinstance(left, RawPayload) and left.base == "nh":
        loads = list(_words(_LOAD, left.offset // 8, left.length // 8))
    elif isinstance(left, Payload) and (left.protocol, left.name) in _NETWORK_FIELDS:
        loads = list(_words(_LOAD, *_NETWORK_FIELDS[left.protocol, left.name]))
    elif isinstance(left, Payload) and (left.protocol, left.name) in _TRANSPORT_FIELDS:
        loads = list(_words(_LOAD_X, *_TRANSPORT_FIELDS[left.protocol, left.name]))
    else:
        raise ValueError(f"a flush filter cannot test {left}")
    holds = program.new_name()
    hit, miss = (otherwise, holds) if match.op == "!=" else (holds, otherwise)
    *first_ranges, last = sorted(_ranges(match))
    for low, high in first_ranges:
        following = program.new_name()
        _compare(program, loads, low, high, hit, following)
        program.place(following)
        if len(loads) == 1:
            loads = [(None, *loads[0][1:])]  # is loaded
    _compare(program, loads, *last, hit, miss)
    program.place(holds)


def _words(operations: dict[int, int], offset: int, size: int) -> Iterator[_Load]:
    while size:
        step = next(width for width in operations if width <= size)
        yield operations[step], _NETWORK + offset, step
        offset, size = offset + step, size - step


def _compare(program: _Program, loads: list[_Load], low: int, high: int, hit: str, miss: str) -> None:
    """Jump to `hit` if the field is from `low` to `high`, else to `miss`.

    Raises:
        ValueError: the range is not that of one word, with any value in the words behind.
    """
    bits = 8 * sum(size for _, _, size in loads)
    for operation, offset, size in loads:
        while len(loads) > 1 and size > 1 and _is_prefix(low, high, bits - 4 * size):
            size //= 2  # shorter constants
            operation = _LOAD[size]
        bits -= 8 * size
        first, last = (limit >> bits & (1 << 8 * size) - 1 for limit in (low, high))
        if operation is not None:
            program.add(operation, offset)
        is_last = _is_prefix(low, high, bits)
        if first == last:
            program.add(_EQUAL, first, hit if is_last else _NEXT, miss)
        elif not is_last:
            raise ValueError("a flush filter cannot test this range")
        else:
            program.add(_AT_LEAST, first, _NEXT, miss)
            program.add(_GREATER, last, miss, hit)
        if is_last:
            return


def _is_prefix(low: int, high: int, bits: int) -> bool:
    """Return True if the lower bits of a range are all of their values."""
    return not (low | ~high) & (1 << bits) - 1


def _ranges(match: Match) -> Iterator[tuple[int, int]]:
    right = match.right
    for value in right.elements if isinstance(right, AnonymousSet) else (right,):
        if isinstance(value, int):
            yield (0, value - 1) if match.op == "<" else (value, value)
        elif not isinstance(value, str):
            raise ValueError(f"a flush filter cannot test {match}")
        elif value in _NAMES:
            yield _NAMES[value], _NAMES[value]
        elif "/" in value:
            network = ip_network(value)
            yield int(network.network_address), int(network.broadcast_address)
        else:
            low, _, high = value.partition("-")
            yield int(ip_address(low)), int(ip_address(high or low))
