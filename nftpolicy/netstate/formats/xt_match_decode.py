# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of iptables matches, as nft_compat holds them (net/netfilter/xt_*.c, net/ipv4/netfilter/ipt_*.c)."""

from __future__ import annotations

from functools import partial

from .. import nft
from .xt_struct import (
    Fields,
    Statements,
    XtStruct,
    address_range,
    masked,
    number_range,
    operator_for,
    prefix,
    require,
    require_bits,
    text,
)

__all__ = ["BRIDGE_TESTS", "MATCHES", "TESTS", "TRACKING_TESTS"]

_MARK, _CT_MARK = nft.Meta("mark"), nft.Ct("mark")
_SPORT, _DPORT = nft.Payload("th", "sport"), nft.Payload("th", "dport")
_ANY_PORT = nft.Match(_SPORT, "0-65535")  # holds where the ports can be read: not in later fragments

# Matches that change neither the packet nor its marks, and whose result is not modelled, with their revisions.
# Those that keep a state of their own (recent, hashlimit, quota, connlimit, set, connlabel) are among them: their
# state is read by matches of the same kind only. A later revision may write, as xt_socket 3 does, so it is
# unsupported until it is listed.
TESTS: dict[str, tuple[int, ...]] = {
    "ah": (0,), "bpf": (0, 1), "cluster": (0,), "connbytes": (0,), "connlabel": (0,), "connlimit": (0, 1),
    "cpu": (0,), "dccp": (0,), "devgroup": (0,), "dscp": (0,), "dst": (0,), "ecn": (0,), "esp": (0,), "eui64": (0,),
    "frag": (0,), "hashlimit": (1, 2, 3), "hbh": (0,), "helper": (0,), "hl": (0,), "ipcomp": (0,), "ipv6header": (0,),
    "ipvs": (0,), "l2tp": (0,), "length": (0,), "limit": (0,), "mac": (0,), "mh": (0,), "nfacct": (0,), "osf": (0,),
    "physdev": (0,), "policy": (0,), "quota": (0,), "rateest": (0,), "realm": (0,), "recent": (0, 1),
    "rpfilter": (0,), "rt": (0,), "sctp": (0,), "set": (0, 1, 2, 3, 4), "srh": (0, 1), "statistic": (0,),
    "string": (0, 1), "tcpmss": (0,), "time": (0,), "tos": (1,), "ttl": (0,), "u32": (0,),
}  # fmt: skip

# Matches that load conntrack for the network namespace (nf_ct_netns_get in their check functions).
TRACKING_TESTS = frozenset({"cluster", "connbytes", "connlabel", "connlimit", "helper"})

# Matches of ebtables (net/bridge/netfilter/ebt_*.c).
BRIDGE_TESTS = frozenset({"802_3", "among", "arp", "ip", "ip6", "limit", "mark_m", "pkttype", "stp", "vlan"})


def _mark(key: nft.Expression, fields: Fields, family: str) -> Statements:
    mark, mask, invert = fields
    return (nft.Match(masked(key, mask), mark, operator_for(invert)),)


# --- owner ----------------------------------------------------------------------------

_UID, _GID, _SOCKET, _SUPPLEMENTARY = 1, 2, 4, 8


def _owner(fields: Fields, family: str) -> Statements:
    """Return the tests of owner_mt().

    A packet without a socket passes if all tests are inverted; nft's `!=` would not pass it.
    """
    uid_low, uid_high, gid_low, gid_high, wanted, invert = fields
    require_bits(wanted | invert, _UID | _GID | _SOCKET | _SUPPLEMENTARY)
    require_bits(invert, wanted)
    require(uid_low <= uid_high and gid_low <= gid_high)
    if (wanted | invert) & (_SOCKET | _SUPPLEMENTARY):
        return (nft.UnmodelledMatch("xt match owner"),)
    tests = []
    for flag, key, low, high in ((_UID, "skuid", uid_low, uid_high), (_GID, "skgid", gid_low, gid_high)):
        if wanted & flag:
            tests.append((nft.Match(nft.Meta(key), number_range(low, high)), bool(invert & flag)))
    if all(inverted for _, inverted in tests):
        return tuple(nft.Unless((match,)) for match, _ in tests)
    return tuple(nft.Match(match.left, match.right, "!=" if inverted else "==") for match, inverted in tests)


# --- conntrack ------------------------------------------------------------------------

_STATES = {1: "invalid", 2: "established", 4: "related", 8: "new"}
_UNTRACKED_STATE, _UNTRACKED_CONNTRACK = 1 << 6, 1 << 8  # of xt_state.h and xt_conntrack.h
_NAT_STATES = {1 << 6: "snat", 1 << 7: "dnat"}
_STATUS = {1: "expected", 2: "seen-reply", 4: "assured", 8: "confirmed", 16: "snat", 32: "dnat", 512: "dying"}
_CT_STATE, _CT_PROTO, _CT_STATUS, _CT_EXPIRES, _CT_DIRECTION, _CT_ALIAS = 1, 2, 64, 128, 1 << 12, 1 << 13
_CT_ADDRESSES = {4: ("saddr", "original"), 8: ("daddr", "original"), 16: ("saddr", "reply"), 32: ("daddr", "reply")}
_CT_PORTS = 0xF00
_CT_KNOWN = 0x3FFF


def _names(table: dict[int, str], bits: int) -> str:
    return ",".join(sorted(name for bit, name in table.items() if bits & bit))


def _states(table: dict[int, str], mask: int, is_inverted: bool) -> nft.Match:
    """Return the match of conntrack states; each packet has exactly one."""
    known = sum(table)
    require_bits(mask, known)
    wanted = known & ~mask if is_inverted else mask
    require(wanted)
    return nft.Match(nft.Ct("state"), _names(table, wanted), "in")


def _state(fields: Fields, family: str) -> Statements:
    return (_states({**_STATES, _UNTRACKED_STATE: "untracked"}, fields[0], False),)


def _conntrack_state(mask: int, is_inverted: bool) -> nft.Statement:
    """Return the test of --ctstate: states, and "SNAT" and "DNAT" of a connection."""
    nat = mask & sum(_NAT_STATES)
    if not nat:
        return _states({**_STATES, _UNTRACKED_CONNTRACK: "untracked"}, mask, is_inverted)
    matches = (nft.Match(nft.Ct("status"), _names(_NAT_STATES, nat), "in"),)
    if mask == nat:
        return nft.Unless(matches) if is_inverted else matches[0]
    return nft.UnmodelledMatch("xt match conntrack --ctstate", needs_conntrack=True)


def _conntrack(fields: Fields, family: str) -> Statements:
    *addresses, _, _, protocol, _, _, _, _, flags, invert, state_mask, status_mask = fields[:19]
    require_bits(flags | invert, _CT_KNOWN)
    require_bits(invert, flags)
    state = [_conntrack_state(state_mask, bool(invert & _CT_STATE))] if flags & _CT_STATE else []
    remaining = flags & ~(_CT_STATE | _CT_ALIAS)
    if not remaining:
        return tuple(state)
    unknown = nft.UnmodelledMatch("xt match conntrack", needs_conntrack=True)
    untracked = ("invalid", "untracked")
    if state and not (isinstance(state[0], nft.Match) and _excludes(state[0], untracked)):
        return (*state, unknown)  # conntrack_mt() does not look at the rest for a packet without a connection
    tests: list[nft.Statement] = list(state)
    if flags & _CT_PROTO:
        tests.append(nft.Match(nft.Ct("protocol"), protocol, _inverted(invert, _CT_PROTO)))
    for index, (flag, (name, direction)) in enumerate(_CT_ADDRESSES.items()):
        if flags & flag:
            value = prefix(addresses[2 * index], addresses[2 * index + 1], family)
            tests.append(nft.Match(nft.Ct(f"{family} {name}", direction), value, _inverted(invert, flag)))
    if flags & _CT_STATUS:
        require_bits(status_mask, sum(_STATUS))
        require(status_mask)
        tests.append(nft.Match(nft.Ct("status"), _names(_STATUS, status_mask), "!" if invert & _CT_STATUS else "in"))
    if flags & _CT_DIRECTION:
        wanted = "reply" if invert & _CT_DIRECTION else "original"
        tests.append(nft.Match(nft.Ct("direction"), wanted))
    if flags & (_CT_EXPIRES | _CT_PORTS):
        tests.append(unknown)
    return tuple(tests)


def _inverted(invert: int, flag: int) -> str:
    return "!=" if invert & flag else "=="


def _excludes(match: nft.Match, states: tuple[str, ...]) -> bool:
    if match.left == nft.Ct("status"):
        return True
    return not set(str(match.right).split(",")) & set(states)


# --- transport headers ----------------------------------------------------------------


def _ports(key: nft.Payload, low: int, high: int, invert: int, flag: int) -> Statements:
    require(low <= high)
    is_any = (low, high) == (0, 0xFFFF) and not invert & flag
    return () if is_any else (nft.Match(key, number_range(low, high), _inverted(invert, flag)),)


def _udp(fields: Fields, family: str) -> Statements:
    source_low, source_high, low, high, invert = fields
    require_bits(invert, 3)
    ports = (*_ports(_SPORT, source_low, source_high, invert, 1), *_ports(_DPORT, low, high, invert, 2))
    return ports or (_ANY_PORT,)


def _tcp(fields: Fields, family: str) -> Statements:
    source_low, source_high, low, high, option, mask, bits, invert = fields
    require_bits(invert, 15)
    require(mask or not (bits or invert & 4))
    require(option or not invert & 8)
    ports = (*_ports(_SPORT, source_low, source_high, invert, 1), *_ports(_DPORT, low, high, invert, 2))
    # tcp_mt() reads where TCP has its flags, whatever the protocol is.
    flags = (nft.Match(nft.Bitwise(nft.RawPayload("th", 104, 8), mask), bits, _inverted(invert, 4)),) if mask else ()
    options = (nft.UnmodelledMatch("xt match tcp --tcp-option"),) if option else ()
    return (*(ports or (_ANY_PORT,)), *flags, *options)


def _multiport(fields: Fields, family: str) -> Statements:
    side, count = fields[:2]
    ports, is_range, invert = fields[2:17], fields[17:32], fields[32]
    require(side in (0, 1, 2) and 0 < count <= 15)
    operator = operator_for(invert)
    wanted: set[nft.Element] = set()
    index = 0
    while index < count:
        low = high = ports[index]
        if is_range[index]:
            index += 1
            require(index < count)
            high = ports[index]
        require(low <= high)
        wanted.add(number_range(low, high))
        index += 1
    elements = nft.AnonymousSet(frozenset(wanted))
    if side < 2:
        return (nft.Match((_SPORT, _DPORT)[side], elements, operator),)
    neither = tuple(nft.Match(key, elements, "!=") for key in (_SPORT, _DPORT))
    return neither if invert else (_ANY_PORT, nft.Unless(neither))


def _icmp(any_type: int | None, fields: Fields, family: str) -> Statements:
    """Return the tests of icmp_type_code_match(), which reads the header whatever the protocol is."""
    type_, low, high, invert = fields
    require(invert in (0, 1) and low <= high)
    readable = nft.Match(nft.RawPayload("th", 0, 8), "0-255")
    if type_ == any_type:
        require(not invert)
        return (readable,)
    tests = [nft.Match(nft.RawPayload("th", 0, 8), type_)]
    if (low, high) != (0, 255):
        tests.append(nft.Match(nft.RawPayload("th", 8, 8), number_range(low, high)))
    return (readable, nft.Unless(tuple(tests))) if invert else tuple(tests)


# --- addresses and devices ------------------------------------------------------------

# Bits by number: the route types of rtnetlink.h.
_ADDRESS_TYPES = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable",
                  "prohibit")  # fmt: skip


def _addrtype(fields: Fields, family: str) -> Statements:
    source, destination, flags = fields
    require_bits(flags, 15)
    device = {0: (), 4: ("iif",), 8: ("oif",)}.get(flags & 12)
    require(device is not None)
    return _address_types(source, flags & 1, destination, flags >> 1 & 1, device or (), family)


def _addrtype_v0(fields: Fields, family: str) -> Statements:
    source, destination, source_invert, invert = fields
    require(source_invert in (0, 1) and invert in (0, 1))
    return _address_types(source, source_invert, destination, invert, (), family)


def _address_types(
    source: int, source_invert: int, destination: int, invert: int, device: tuple[str, ...], family: str
) -> Statements:
    require_bits(source | destination, (1 << len(_ADDRESS_TYPES)) - 1)
    if family != "ip":  # xt_addrtype.c asks other questions for IPv6 than fib does
        return (nft.UnmodelledMatch("xt match addrtype"),)
    tests = []
    for name, types, inverted in (("saddr", source, source_invert), ("daddr", destination, invert)):
        names = [each for bit, each in enumerate(_ADDRESS_TYPES) if types >> bit & 1]
        if names:
            right = names[0] if len(names) == 1 else nft.AnonymousSet(frozenset(names))
            tests.append(nft.Match(nft.Fib("type", (name, *device)), right, operator_for(inverted)))
    return tuple(tests)


def _iprange(fields: Fields, family: str) -> Statements:
    source_low, source_high, low, high, flags = fields
    require_bits(flags, 0x33)
    tests = []
    for flag, name, first, last in ((1, "saddr", source_low, source_high), (2, "daddr", low, high)):
        if flags & flag:
            require(first <= last)
            value = address_range(first, last, family)
            tests.append(nft.Match(nft.Payload(family, name), value, _inverted(flags, flag << 4)))
    return tuple(tests)


_PKTTYPES = {0: "host", 1: "broadcast", 2: "multicast", 3: "other"}


def _pkttype(fields: Fields, family: str) -> Statements:
    wanted, invert = fields
    require(wanted in _PKTTYPES)
    return (nft.Match(nft.Meta("pkttype"), _PKTTYPES[wanted], operator_for(invert)),)


# --- sockets --------------------------------------------------------------------------


def _cgroup(fields: Fields, family: str) -> Statements:
    """Return a test with an unknown result: the path is that of the cgroup namespace that the rule was loaded in."""
    has_path, has_class, _, _, path = fields
    require(all(each in (0, 1) for each in fields[:4]) and has_path + has_class == 1)
    return (nft.UnmodelledMatch(f"xt match cgroup --path {text(path)}" if has_path else "xt match cgroup"),)


def _socket(known: int, fields: Fields, family: str) -> Statements:
    (flags,) = fields
    require_bits(flags, known)
    test = nft.UnmodelledMatch("xt match socket")
    if not flags & 4:
        return (test,)
    # The mark of the socket; a socket in TIME_WAIT leaves the packet's.
    return (test, nft.Mangle(_MARK, nft.UnknownExpression("xt match socket --restore-skmark")))


def _always(fields: Fields, family: str) -> Statements:
    return ()


def _conntrack_struct(masks: str, tail: str = "") -> XtStruct:
    return XtStruct("16s" * 8 + "II" + "H2s2s2s2s" + "HH" + masks + tail, _conntrack)


MATCHES: dict[tuple[str, int], XtStruct] = {
    ("addrtype", 0): XtStruct("HHII", _addrtype_v0),
    ("addrtype", 1): XtStruct("HHI", _addrtype),
    ("cgroup", 1): XtStruct("BBBB4096s4x8x", _cgroup),
    ("cgroup", 2): XtStruct("BBBB512s4x8x", _cgroup),
    ("comment", 0): XtStruct("256s", _always),
    ("connmark", 1): XtStruct("IIB3x", partial(_mark, _CT_MARK)),
    ("conntrack", 1): _conntrack_struct("BB"),
    ("conntrack", 2): _conntrack_struct("HH", "2x"),
    ("conntrack", 3): _conntrack_struct("HH", "8x2x"),
    ("icmp", 0): XtStruct("BBBB", partial(_icmp, 0xFF)),
    ("icmp6", 0): XtStruct("BBBB", partial(_icmp, None)),
    ("iprange", 1): XtStruct("16s16s16s16sB3x", _iprange),
    ("mark", 1): XtStruct("IIB3x", partial(_mark, _MARK)),
    ("multiport", 1): XtStruct("BB15H15BB", _multiport),
    ("owner", 1): XtStruct("IIIIBB2x", _owner),
    ("pkttype", 0): XtStruct("ii", _pkttype),
    ("socket", 1): XtStruct("B", partial(_socket, 1)),
    ("socket", 2): XtStruct("B", partial(_socket, 3)),
    ("socket", 3): XtStruct("B", partial(_socket, 7)),
    ("state", 0): XtStruct("I", _state),
    ("tcp", 0): XtStruct("HHHHBBBB", _tcp),
    ("udp", 0): XtStruct("HHHHBx", _udp),
    ("udplite", 0): XtStruct("HHHHBx", _udp),
}  # fmt: skip
