# SPDX-License-Identifier: BSD-2-Clause
"""Whether network devices can be used now: state, carrier, addresses (rtnetlink(7))."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import evolve, frozen

from . import rtmessages as messages
from .rtnetlink import Questions

_GETLINK, _GETADDR = 18, 22  # RTM_*
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_UP, _RUNNING = 0x1, 0x40  # IFF_UP, IFF_RUNNING
_IFNAME, _IFA_FLAGS = 3, 8
_NOT_YET = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED: nothing is sent from them


@frozen
class Link:
    """A device: whether it is set up, whether it has a carrier, and its addresses that can be sent from, without those
    of the link alone."""

    name: str
    up: bool
    carrier: bool
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()


def links(names: Collection[str]) -> dict[str, Link]:
    """Those of these devices that are there, in the network namespace of this thread. OSError with its errno."""
    found: dict[int, Link] = {}
    with Questions() as questions:
        for raw, start, end in questions.dump(_GETLINK, socket.AF_UNSPEC):
            _, _, index, flags, _ = _LINK.unpack_from(raw, start)
            known = dict(messages.attributes(raw, start + _LINK.size, end))
            name = known.get(_IFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
            if name in names:
                found[index] = Link(name, bool(flags & _UP), bool(flags & _UP and flags & _RUNNING))
        for raw, start, end in questions.dump(_GETADDR, socket.AF_UNSPEC):
            index, text = messages.address(raw, start, end)
            known = dict(messages.attributes(raw, start + 8, end))
            flags = int.from_bytes(known[_IFA_FLAGS], sys.byteorder) if _IFA_FLAGS in known else raw[start + 2]
            address = ip_address(text.partition("/")[0])
            if index in found and not flags & _NOT_YET and not address.is_link_local:
                found[index] = evolve(found[index], addresses=(*found[index].addresses, address))
    return {link.name: link for link in found.values()}
