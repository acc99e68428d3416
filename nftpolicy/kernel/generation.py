# SPDX-License-Identifier: BSD-2-Clause
"""Reading a ruleset in several questions, as it was at one moment: the kernel numbers its rulesets.

Every transaction makes a new generation (include/uapi/linux/netfilter/nf_tables.h, NFT_MSG_GETGEN).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import TypeVar

from .interface import Unavailable

_NETLINK_NETFILTER = 12
_GET = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_REQUEST = 0x1
_HEADER = struct.Struct("=IHHII")
_NFGENMSG = 4  # bytes
_TRIES = 20

Read = TypeVar("Read")


class Unsteady(Unavailable):
    """The ruleset changed each time while it was read."""


def generation() -> int:
    """The number of the ruleset in the network namespace of this thread. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as channel:
        channel.send(_HEADER.pack(_HEADER.size + _NFGENMSG, _GET, _REQUEST, 1, 0) + bytes(_NFGENMSG))
        answer = channel.recv(4096)
    # NFTA_GEN_ID is the first attribute.
    return int(struct.unpack_from("!I", answer, _HEADER.size + _NFGENMSG + 4)[0])


def steady(read: Callable[[], Read]) -> Read:
    """What `read` returns, of one generation of the ruleset.

    Raises:
        Unsteady: in all of some tries it changed meanwhile.
    """
    for _ in range(_TRIES):
        before = generation()
        try:
            found = read()
        except FileNotFoundError:  # a set that was listed is gone
            if generation() == before:
                raise
            continue
        if generation() == before:
            return found
    raise Unsteady("the ruleset changes faster than it can be read; try again")
