# SPDX-License-Identifier: BSD-2-Clause
"""Block of single devices: a chain that drops all frames at the egress of each, whatever its name.

nft text cannot carry each name that the kernel allows. So these chains are made by netlink messages
(include/uapi/linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection

from . import constants as nl
from .attributes import attribute, encode_text, netfilter_header
from .socket import NetlinkSocket

_U32 = struct.Struct("!I")
_BATCH_BODY = struct.pack("!BBH", 0, 0, nl.NFNL_SUBSYS_NFTABLES >> 8)
_DROP = 0  # NF_DROP


class PortBlock:
    """Table of one socket, which owns it: no other process can change it, and it is removed with the socket.

    `devices` are those that are blocked now.
    """

    def __init__(self, table: str, priority: int) -> None:
        self._table, self._priority = table, priority
        self._netlink: NetlinkSocket | None = None
        self.devices: frozenset[str] = frozenset()

    def set_devices(self, devices: Collection[str]) -> dict[str, int]:
        """Block these devices and no others; return the errno of each one that the kernel refused."""
        wanted = frozenset(devices)
        if not wanted:
            self.close()
            return {}
        if self._netlink is None:
            self._netlink = NetlinkSocket(nl.NETLINK_NETFILTER)
            self._netlink.bind()
        for device in self.devices - wanted:
            self._transact(self._netlink, (nl.NFT_MSG_DELCHAIN, 0, self._chain(device)))
        refused = {}
        for device in sorted(wanted):
            code = self._transact(
                self._netlink,
                (nl.NFT_MSG_NEWTABLE, nl.NLM_F_CREATE, self._table_body()),
                (nl.NFT_MSG_NEWCHAIN, nl.NLM_F_CREATE, self._chain(device) + self._hook(device)),
            )
            if code not in (0, errno.EEXIST):
                refused[device] = code
        self.devices = wanted - refused.keys()
        return refused

    def close(self) -> None:
        """Remove the table. Can be called twice."""
        if self._netlink is not None:
            self._netlink.close()
        self._netlink, self.devices = None, frozenset()

    @staticmethod
    def _transact(netlink: NetlinkSocket, *messages: tuple[int, int, bytes]) -> int:
        header = netfilter_header(nl.NFPROTO["netdev"])
        batch = [(kind, flags, header + body) for kind, flags, body in messages]
        return netlink.transact((nl.NFNL_MSG_BATCH_BEGIN, _BATCH_BODY), batch, (nl.NFNL_MSG_BATCH_END, _BATCH_BODY))

    def _table_body(self) -> bytes:
        flags = attribute(nl.NFTA_TABLE_FLAGS, _U32.pack(nl.NFT_TABLE_F_OWNER))
        return attribute(nl.NFTA_TABLE, encode_text(self._table)) + flags

    def _chain(self, device: str) -> bytes:
        name = "device-" + device.encode("utf-8", "surrogateescape").hex()
        return attribute(nl.NFTA_TABLE, encode_text(self._table)) + attribute(nl.NFTA_CHAIN_NAME, encode_text(name))

    def _hook(self, device: str) -> bytes:
        hook = attribute(nl.NFTA_HOOK_HOOKNUM, _U32.pack(nl.NF_NETDEV_EGRESS))
        hook += attribute(nl.NFTA_HOOK_PRIORITY, _U32.pack(self._priority))
        hook += attribute(nl.NFTA_HOOK_DEV, encode_text(device))
        return (
            attribute(nl.NFTA_CHAIN_TYPE, encode_text("filter"))
            + attribute(nl.NFTA_CHAIN_HOOK | nl.NLA_F_NESTED, hook)
            + attribute(nl.NFTA_CHAIN_POLICY, _U32.pack(_DROP))
        )
