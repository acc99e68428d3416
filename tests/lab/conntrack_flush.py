"""Deletion of all conntrack entries of a namespace."""

import socket
import struct

from .netns import Namespace

_FLUSH = struct.pack("=IHHII", 20, 0x0102, 5, 1, 0) + bytes(4)  # IPCTNL_MSG_CT_DELETE of all families, acknowledged
_NETLINK_NETFILTER = 12


def flush_flows(space: Namespace) -> None:
    """Delete all conntrack entries of the namespace."""
    with space.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as channel:
        channel.send(_FLUSH)
        assert struct.unpack_from("=i", channel.recv(100), 16) == (0,)
