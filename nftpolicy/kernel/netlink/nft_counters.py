# SPDX-License-Identifier: BSD-2-Clause
"""Names of the nft tables, and values of named counters, by dumps of nf_tables. Names can be any bytes."""

from __future__ import annotations

import struct

from ...netstate.state import CounterValue, CounterValues
from . import constants as nl
from .attributes import (
    attribute,
    attributes,
    decode_text,
    encode_text,
    nested_attributes,
    netfilter_header,
    network_integer,
)
from .socket import NetlinkSocket

_FAMILIES = {number: name for name, number in nl.NFPROTO.items()}


def read_table_names() -> set[tuple[str, str]]:
    """Return family and name of each table. Raises DumpInterrupted, or OSError with the kernel's errno."""
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        return dump_table_names(netlink)


def dump_table_names(netlink: NetlinkSocket) -> set[tuple[str, str]]:
    """Return family and name of each table. Raises as `read_table_names`.

    To close a socket of nfnetlink holds the mutex of nftables until earlier transactions are freed
    (nft_rcv_nl_event), and other transactions wait: who looks often keeps one socket.
    """
    names = set()
    for raw, start, end in netlink.dump(nl.NFT_MSG_GETTABLE, netfilter_header()):
        values = dict(attributes(raw, start + nl.NFGENMSG.size, end))
        names.add((_family(raw, start), decode_text(values.get(nl.NFTA_TABLE))))
    return names


def read_counters(table: str) -> CounterValues:
    """Return the values of the named counters of the tables with a name, of all families.

    Raises DumpInterrupted, or OSError with the kernel's errno.
    """
    body = netfilter_header() + attribute(nl.NFTA_OBJ_TABLE, encode_text(table))
    body += attribute(nl.NFTA_OBJ_TYPE, struct.pack("!I", nl.NFT_OBJECT_COUNTER))
    counters = {}
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        for raw, start, end in netlink.dump(nl.NFT_MSG_GETOBJ, body):
            values = dict(attributes(raw, start + nl.NFGENMSG.size, end))
            data = nested_attributes(values.get(nl.NFTA_OBJ_DATA))
            counts = (
                network_integer(data.get(nl.NFTA_COUNTER_PACKETS)),
                network_integer(data.get(nl.NFTA_COUNTER_BYTES)),
            )
            counters[_family(raw, start), table, decode_text(values.get(nl.NFTA_OBJ_NAME))] = CounterValue(*counts)
    return counters


def _family(raw: bytes, start: int) -> str:
    return _FAMILIES.get(raw[start], str(raw[start]))
