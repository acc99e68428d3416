# SPDX-License-Identifier: BSD-2-Clause
"""State of network devices that a service waits for: up, carrier, usable addresses (rtnetlink(7))."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import evolve, frozen

from . import constants as nl
from . import rtnl_decode as messages
from .attributes import attributes, decode_text, native_integer
from .rtnetlink import dump_objects, open_rtnetlink

_NOT_USABLE = nl.IFA_F_TENTATIVE | nl.IFA_F_DADFAILED  # the kernel does not send from such an address


@frozen
class LinkState:
    """A device: set up or not, carrier or not, and the addresses that it can send from.

    Link-local addresses are left out.
    """

    name: str
    is_up: bool
    has_carrier: bool
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()


def link_states(names: Collection[str]) -> dict[str, LinkState]:
    """Return the devices of these names that exist in the network namespace of this thread.

    Raises OSError with the kernel's errno.
    """
    by_index: dict[int, LinkState] = {}
    with open_rtnetlink() as netlink:
        for raw, start, end in dump_objects(netlink, nl.RTM_GETLINK):
            _, _, index, flags, _ = nl.IFINFOMSG.unpack_from(raw, start)
            name = decode_text(dict(attributes(raw, start + nl.IFINFOMSG.size, end)).get(nl.IFLA_IFNAME))
            if name in names:
                is_up = bool(flags & nl.IFF_UP)
                by_index[index] = LinkState(name, is_up, is_up and bool(flags & nl.IFF_RUNNING))
        for raw, start, end in dump_objects(netlink, nl.RTM_GETADDR):
            index, address_text = messages.decode_address(raw, start, end)
            values = dict(attributes(raw, start + nl.IFADDRMSG.size, end))
            flags = raw[start + nl.IFADDRMSG_FLAGS_OFFSET]
            if nl.IFA_FLAGS in values:
                flags = native_integer(values[nl.IFA_FLAGS])
            address = ip_address(address_text.partition("/")[0])
            if index in by_index and not flags & _NOT_USABLE and not address.is_link_local:
                link = by_index[index]
                by_index[index] = evolve(link, addresses=(*link.addresses, address))
    return {link.name: link for link in by_index.values()}
