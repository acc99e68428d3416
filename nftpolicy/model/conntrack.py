# SPDX-License-Identifier: BSD-2-Clause
"""Packets that connection tracking takes for the first one of a flow; it calls others invalid."""

from __future__ import annotations

from collections.abc import Mapping

from .packet import ICMP, ICMPV6, TCP

# TCP flags of a new flow, without PSH, ECE and CWR (tcp_valid_flags, and the column sNO of tcp_conntracks, in
# nf_conntrack_proto_tcp.c): SYN, and ACK of a flow that is picked up (nf_conntrack_tcp_loose), each with URG or not.
_SYN, _ACK, _URG = 0x02, 0x10, 0x20
_IGNORED_FLAGS = 0x08 | 0x40 | 0x80
_NEW_FLAGS = frozenset((_SYN, _SYN | _URG, _ACK, _ACK | _URG))
# Requests (nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c: valid_new).
_NEW_TYPES = {ICMP: frozenset((8, 13, 15, 17)), ICMPV6: frozenset((128, 139))}
_TYPE_FIELDS = {ICMP: ("icmp", "type"), ICMPV6: ("icmpv6", "type")}
# The protocol of the other family: nf_conntrack_icmp_packet and nf_conntrack_icmpv6_packet refuse it.
_FOREIGN = frozenset(((6, ICMP), (4, ICMPV6)))
# Types of MLD and neighbour discovery, which are not tracked (nf_conntrack_proto_icmpv6.c).
UNTRACKED_TYPES = frozenset((130, 131, 132, 133, 134, 135, 136, 143))


def can_begin_flow(family: int, protocol: int, fields: Mapping[tuple[str, str], int]) -> bool:
    """Return True if a packet without a flow begins one, or is not tracked; False if it is invalid.

    `fields` are those of a packet: header fields with another value than the usual one.
    """
    if (family, protocol) in _FOREIGN:
        return False
    if protocol == TCP:
        return fields.get(("tcp", "flags"), _SYN) & ~_IGNORED_FLAGS in _NEW_FLAGS
    if protocol in _NEW_TYPES:
        types = _NEW_TYPES[protocol] | (UNTRACKED_TYPES if protocol == ICMPV6 else frozenset())
        return fields.get(_TYPE_FIELDS[protocol], min(_NEW_TYPES[protocol])) in types
    return True
