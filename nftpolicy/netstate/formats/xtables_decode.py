# SPDX-License-Identifier: BSD-2-Clause
"""Decode the rules of legacy iptables, ip6tables, arptables and ebtables, and what their targets can do.

The bytes are those of IPT_SO_GET_ENTRIES and EBT_SO_GET_ENTRIES, in the byte order of this machine.
Sources: include/uapi/linux/netfilter/x_tables.h, netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h,
netfilter_arp/arp_tables.h, netfilter_bridge/ebtables.h, and netfilter/xt_*.h for the data of targets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping

from attrs import frozen

from ..bypass import ANY_EFFECT, Actor, Effect, HeaderWrite, MarkWrite, Stop
from ..nft.expressions import FULL_MASK

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # by NF_INET_* number
PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}  # NF_IP_PRI_*
_NAT_SOURCE = 100  # NF_IP_PRI_NAT_SRC: priority of table nat at input and postrouting
_SET, _SAVE, _RESTORE = 0, 1, 2  # XT_CONNMARK_*
_DROP, _QUEUE = -1, -4  # standard targets: -NF_DROP - 1, -NF_QUEUE - 1
_TARGET_SIZE = 32  # bytes of struct xt_entry_target and xt_entry_match
_TARGET = struct.Struct("=H29sB")  # size, name, revision


@frozen
class Layout:
    """Layout of an entry: size of the header, and the offset of its 16 bit target_offset, next_offset."""

    program: str
    family: int  # 4, 6, or 0 for ARP
    header_size: int
    offsets: int


# struct ipt_entry, ip6t_entry and arpt_entry; the header ends with two counters of 64 bits.
IPV4 = Layout("iptables", 4, struct.calcsize("@84sIHHIQQ"), 88)
IPV6 = Layout("ip6tables", 6, struct.calcsize("@136sIHHIQQ"), 140)
ARP = Layout("arptables", 0, struct.calcsize("@164sHHIQQ"), 164)


@frozen
class LegacyTable:
    """A table of legacy iptables: name, entries, and the offsets of its base chains by hook name."""

    name: str
    entries: bytes
    hooks: Mapping[str, int]


@frozen
class Extension:
    """A match or target of a rule: name, revision, data."""

    name: str
    revision: int
    data: bytes


def _no_effect(_: Extension) -> tuple[Effect, ...]:
    return ()


def _any_effect(_: Extension) -> tuple[Effect, ...]:
    return ANY_EFFECT


def _mark(target: Extension) -> tuple[Effect, ...]:
    """Decode struct xt_mark_tginfo2: mark = (mark & ~mask) ^ value. Revisions 0 and 1 are of old kernels."""
    if target.revision != 2 or len(target.data) < 8:
        return (MarkWrite(),)
    value, mask = struct.unpack_from("=II", target.data)
    return (MarkWrite(mask, value & mask, value & ~mask),)


def _connmark(target: Extension) -> tuple[Effect, ...]:
    """Decode struct xt_connmark_tginfo1 and 2: ctmark, ctmask, nfmask, (2: shift_dir, shift_bits,) mode."""
    size = {1: 13, 2: 15}.get(target.revision)
    if size is None or len(target.data) < size:
        return (MarkWrite(), MarkWrite(field="ctmark"))
    value, flow_mask, packet_mask = struct.unpack_from("=III", target.data)
    mode, is_shifted = target.data[size - 1], target.revision == 2 and target.data[13] != 0
    if is_shifted or mode not in (_SET, _SAVE, _RESTORE):
        return (MarkWrite(), MarkWrite(field="ctmark"))
    if mode == _SET:
        return (MarkWrite(flow_mask, value & flow_mask, value & ~flow_mask, "ctmark"),)
    return (MarkWrite(varied=flow_mask | packet_mask, field="ctmark" if mode == _SAVE else "mark"),)


def _tproxy(target: Extension) -> tuple[Effect, ...]:
    """Decode struct xt_tproxy_target_info: mark_mask, mark_value first in both revisions."""
    if len(target.data) < 8:
        return (MarkWrite(),)
    mask, value = struct.unpack_from("=II", target.data)
    return (MarkWrite(mask, value & mask, value & ~mask),)


def _set(target: Extension) -> tuple[Effect, ...]:
    """Decode struct xt_set_info_target_v3: a map of revision 3 can write the mark of the packet from a set."""
    if target.revision < 3:
        return ()
    # add_set, del_set, map_set: index (65535: none), dimension, flags
    map_index = struct.unpack_from("=H", target.data, 8)[0] if len(target.data) >= 12 else 0
    return () if map_index == 0xFFFF else (MarkWrite(),)


def _bridge_mark(target: Extension) -> tuple[Effect, ...]:
    """Decode struct ebt_mark_t_info: mark (unsigned long), and an action in the upper bits of the verdict."""
    if len(target.data) < struct.calcsize("@Li"):
        return (MarkWrite(),)
    mark, verdict = struct.unpack_from("@Li", target.data)
    mark &= FULL_MASK
    match verdict & ~0xF & 0xFFFFFFFF:
        case 0xFFFFFFF0:  # MARK_SET_VALUE
            return (MarkWrite(FULL_MASK, mark, 0),)
        case 0xFFFFFFE0:  # MARK_OR_VALUE
            return (MarkWrite(mark, mark, 0),)
        case 0xFFFFFFD0:  # MARK_AND_VALUE
            return (MarkWrite(~mark & FULL_MASK, 0, 0),)
    return (MarkWrite(varied=mark),)  # MARK_XOR_VALUE


_HEADER = (HeaderWrite(),)
# Hooks at which the kernel permits the targets of table nat (xt_nat.c, xt_MASQUERADE.c, ...).
_NAT_HOOKS = {"DNAT": ("prerouting", "output"), "REDIRECT": ("prerouting", "output"), "SNAT": ("input", "postrouting"),
              "MASQUERADE": ("postrouting",), "NETMAP": HOOKS}  # fmt: skip


def _rewrites(_: Extension) -> tuple[Effect, ...]:
    return _HEADER


def _translates(target: Extension) -> tuple[Effect, ...]:
    return tuple(HeaderWrite(hook=hook, is_nat=True) for hook in _NAT_HOOKS[target.name])


def _stops(_: Extension) -> tuple[Effect, ...]:
    return (Stop(),)


def _verdict(target: Extension) -> tuple[Effect, ...]:
    """Decode struct xt_standard_target: -verdict - 1, or the offset of the chain to jump to."""
    verdict = struct.unpack_from("=i", target.data)[0] if len(target.data) >= 4 else _DROP
    return (Stop(),) if verdict in (_DROP, _QUEUE) else ()


XtablesDecoder = Callable[[Extension], tuple[Effect, ...]]

# Targets by what they can do to the packet that meets them (net/netfilter/xt_*.c). A target that is not
# listed can do anything: so can NFQUEUE and QUEUE (a process gives the packet back with another mark),
# TEE (a copy to another device) and HMARK.
_NO_EFFECT = (
    "ERROR", "AUDIT", "CLASSIFY", "CONNSECMARK", "CT", "IDLETIMER", "LED", "LOG", "NFLOG", "NOTRACK",
    "RATEEST", "SECMARK", "TRACE", "ULOG",
)  # fmt: skip
_TARGETS: Mapping[str, XtablesDecoder] = {
    **dict.fromkeys(_NO_EFFECT, _no_effect),
    **dict.fromkeys(("REJECT", "SYNPROXY"), _stops),
    "": _verdict,
    **dict.fromkeys(("CHECKSUM", "DSCP", "ECN", "HL", "TCPMSS", "TCPOPTSTRIP", "TOS", "TTL", "mangle"), _rewrites),
    **dict.fromkeys(_NAT_HOOKS, _translates),
    "MARK": _mark,
    "CONNMARK": _connmark,
    "TPROXY": _tproxy,
    "SET": _set,
}
# Targets and watchers of ebtables (net/bridge/netfilter/ebt_*.c). snat, dnat and redirect write MAC addresses.
_BRIDGE_TARGETS: Mapping[str, XtablesDecoder] = {
    **dict.fromkeys(("standard", "arpreply", "log", "nflog", "snat", "dnat", "redirect"), _no_effect),
    "mark": _bridge_mark,
}
_RESTORES_SOCKET_MARK = 4  # XT_SOCKET_RESTORESKMARK


def target_effects(target: Extension) -> tuple[Effect, ...]:
    """Return what a target of legacy iptables can do to the packet."""
    return _TARGETS.get(target.name, _any_effect)(target)


def match_effects(match: Extension) -> tuple[Effect, ...]:
    """Return what a match can do to the packet: nothing, but for `socket --restore-skmark`."""
    if match.name != "socket" or match.revision < 3:
        return ()
    return (MarkWrite(),) if not match.data or match.data[0] & _RESTORES_SOCKET_MARK else ()


def table_actors(layout: Layout, table: LegacyTable) -> tuple[list[Actor], int]:
    """Return the rules of a table that can have an effect, and the number of its rules.

    The rules of chains that a base chain jumps to count for every hook of the table. A base chain with
    a policy has its policy as the last rule.

    Raises ValueError for entries that do not have the expected form.
    """
    actors: list[Actor] = []
    chain, position, count = "", 0, 0
    starts = {offset: hook.upper() for hook, offset in table.hooks.items()}
    for offset, matches, target in _entries(layout, table.entries):
        if target.name == "ERROR":
            chain, position = target.data.split(b"\0", 1)[0].decode("utf-8", "replace"), 0
            continue
        if offset in starts:
            chain, position = starts[offset], 0
        position += 1
        count += 1
        extensions = [*((match, match_effects(match)) for match in matches), (target, target_effects(target))]
        for extension, effects in extensions:
            if effects:
                location = f"{layout.program} -t {table.name}: rule {position} of {chain} ({extension.name})"
                placed = tuple(_placed(layout, table, chain, effects))
                actors += [Actor(location, placed)] if placed else []
    return actors, count


def _placed(layout: Layout, table: LegacyTable, chain: str, effects: tuple[Effect, ...]) -> Iterator[Effect]:
    """Yield the effects; a write of headers, and a stop, once for each hook that permits it."""
    own_hooks = [hook for hook in table.hooks if hook.upper() == chain] or table.hooks
    for effect in effects:
        if isinstance(effect, Stop):
            yield from (Stop(layout.family, hook) for hook in own_hooks if layout.family)
            continue
        if not isinstance(effect, HeaderWrite):
            yield effect
            continue
        hooks = [hook for hook in table.hooks if effect.hook in ("", hook)]
        for hook in hooks if layout.family else ():
            is_source = table.name == "nat" and hook in ("input", "postrouting")
            priority = _NAT_SOURCE if is_source else PRIORITIES.get(table.name, 0)
            yield HeaderWrite(layout.family, hook, priority, effect.is_nat)


def _entries(layout: Layout, raw: bytes) -> Iterator[tuple[int, list[Extension], Extension]]:
    """Yield offset, matches and target of each entry."""
    offset = 0
    while offset < len(raw):
        if offset + layout.header_size > len(raw):
            raise ValueError("a rule that ends too early")
        target_offset, next_offset = struct.unpack_from("=HH", raw, offset + layout.offsets)
        end = offset + next_offset
        if not layout.header_size <= target_offset < next_offset or end > len(raw):
            raise ValueError("a rule with offsets outside its table")
        matches = list(_extensions(raw, offset + layout.header_size, offset + target_offset))
        yield offset, matches, _extension(raw, offset + target_offset, end)
        offset = end


def _extensions(raw: bytes, start: int, end: int) -> Iterator[Extension]:
    while start < end:
        size = _TARGET.unpack_from(raw, start)[0]
        if size < _TARGET_SIZE or start + size > end:
            raise ValueError("a match that ends too early")
        yield _extension(raw, start, start + size)
        start += size


def _extension(raw: bytes, start: int, end: int) -> Extension:
    if start + _TARGET_SIZE > end:
        raise ValueError("a target that ends too early")
    size, name, revision = _TARGET.unpack_from(raw, start)
    if size < _TARGET_SIZE or start + size > end:
        raise ValueError("a target that ends too early")
    return Extension(
        name.split(b"\0", 1)[0].decode("ascii", "replace"), revision, raw[start + _TARGET_SIZE : start + size]
    )


# --- ebtables ----------------------------------------------------------------------------

_EBT_ENTRY_OR_ENTRIES = 1  # EBT_ENTRY_OR_ENTRIES: bit of the first word of a rule, not set in that of a chain
# struct ebt_entries: distinguisher, name, counter_offset, policy, nentries
_EBT_CHAIN_SIZE = struct.calcsize("@I32sIiI0P")
# struct ebt_entry: bitmask, invflags, ethproto, four names of devices, two MAC addresses with masks,
# then watchers_offset, target_offset, next_offset
_EBT_OFFSETS = struct.calcsize("@IIH16s16s16s16s6s6s6s6s0I")
_EBT_ENTRY_SIZE = struct.calcsize("@IIH16s16s16s16s6s6s6s6sIII0P")
_EBT_EXTENSION = struct.calcsize("@31sBI0P")  # struct ebt_entry_target: name, revision, size, then data


def bridge_table_actors(name: str, raw: bytes) -> tuple[list[Actor], int]:
    """Return the rules of a table of ebtables that can have an effect, and the number of its rules.

    Raises ValueError for entries that do not have the expected form.
    """
    actors: list[Actor] = []
    chain, position, count, offset = "", 0, 0, 0
    try:
        while offset < len(raw):
            if not struct.unpack_from("=I", raw, offset)[0] & _EBT_ENTRY_OR_ENTRIES:
                chain = struct.unpack_from("32s", raw, offset + 4)[0].split(b"\0", 1)[0].decode("ascii", "replace")
                position, offset = 0, offset + _EBT_CHAIN_SIZE
                continue
            watchers, target, end = struct.unpack_from("=III", raw, offset + _EBT_OFFSETS)
            if not _EBT_ENTRY_SIZE <= watchers <= target < end or offset + end > len(raw):
                raise ValueError("a rule with offsets outside its table")
            position, count = position + 1, count + 1
            for extension in _bridge_extensions(raw, offset + watchers, offset + end):
                effects = _BRIDGE_TARGETS.get(extension.name, _any_effect)(extension)
                if effects:
                    location = f"ebtables -t {name}: rule {position} of {chain} ({extension.name})"
                    actors.append(Actor(location, effects))
            offset += end
    except struct.error:
        raise ValueError("a rule that ends too early") from None
    return actors, count


def _bridge_extensions(raw: bytes, start: int, end: int) -> Iterator[Extension]:
    """Yield watchers and target of a rule. The matches before them write nothing."""
    while start < end:
        name, revision, size = struct.unpack_from("=31sBI", raw, start)
        data = start + _EBT_EXTENSION
        if data + size > end:
            raise ValueError("a target that ends too early")
        yield Extension(name.split(b"\0", 1)[0].decode("ascii", "replace"), revision, raw[data : data + size])
        start = data + size
