# SPDX-License-Identifier: BSD-2-Clause
"""Consistent reads of the ruleset over several requests, by the nft generation number.

Every transaction creates a new generation (include/uapi/linux/netfilter/nf_tables.h,
NFT_MSG_GETGEN).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import RulesetChanging, RulesetUnreadable
from . import constants as nl
from .attributes import attributes, netfilter_header, network_integer
from .socket import NetlinkSocket

_TRIES = 20

Result = TypeVar("Result")


def generation() -> int:
    """Return the number of the ruleset in the network namespace of this thread. Raises OSError."""
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        raw, start, end = netlink.query(nl.NFT_MSG_GETGEN, netfilter_header())
    return network_integer(dict(attributes(raw, start + nl.NFGENMSG.size, end))[nl.NFTA_GEN_ID])


def read_consistent(read: Callable[[], Result], accept_equal: bool = False) -> Result:
    """Return the result of `read`, repeated until no transaction came between.

    `accept_equal`: two equal results in a row suffice. This is for reads of our own tables, which the
    transactions of other programs seldom concern. It is not for a proof: two reads can mix parts of the
    same two rulesets, and such a ruleset never existed.

    Raises:
        RulesetChanging: a transaction came during each of several tries.
    """
    previous: Result | None = None
    for _ in range(_TRIES):
        before = generation()
        try:
            result = read()
        except (FileNotFoundError, InterruptedError, RulesetUnreadable):
            # A set that was listed has been deleted, a dump is incomplete, or a part belongs to a new table.
            if generation() == before:
                raise
            continue
        if generation() == before or (accept_equal and result == previous):
            return result
        previous = result
    raise RulesetChanging("the ruleset changes faster than nftpolicy can read it; try again")
