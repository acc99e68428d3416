# SPDX-License-Identifier: BSD-2-Clause
"""The ruleset that the kernel executes, by dumps of nf_tables; nft is not needed.

The dumps are of one generation. netstate.formats.nft_bytecode decodes them.
"""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attrs import evolve

from ...netstate import nft
from ...netstate.formats.nft_bytecode.elements import repeats_element
from ...netstate.formats.nft_bytecode.ruleset import (
    NftMessage,
    RulesetMessages,
    SetKey,
    UnreadableRuleset,
    decode_ruleset,
    set_key,
)
from ..errors import RulesetUnreadable
from . import constants as nl
from .attributes import attribute, attributes, decode_text, encode_text, netfilter_header
from .nft_generation import read_consistent
from .socket import Message, NetlinkSocket, repeat_until_consistent

_HEADER_SIZE = nl.NFGENMSG.size
# A family that the kernel was built without, or a kernel before the message type.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})


def read_messages(table: str | None = None) -> RulesetMessages:
    """Return the messages of all dumps, of the tables of all families with a name; None: of all tables.

    Raises:
        RulesetChanging: the ruleset changes faster than it can be read.
        DumpInterrupted: a set changed during each of several dumps.
        OSError: the kernel refused; with its errno.
    """

    def read() -> RulesetMessages:
        with _dumps(table) as messages:
            return evolve(messages, rules=tuple(messages.rules))

    return read_consistent(read)


@contextmanager
def _dumps(table: str | None) -> Iterator[RulesetMessages]:
    """Dump the ruleset, and the rules while they are decoded: no list of all their messages is made."""
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        tables, sets = (_dump(netlink, kind, table) for kind in (nl.NFT_MSG_GETTABLE, nl.NFT_MSG_GETSET))
        yield RulesetMessages(
            tables=tables,
            chains=_dump(netlink, nl.NFT_MSG_GETCHAIN, table),
            sets=sets,
            elements={key: read_elements(netlink, key) for key in map(set_key, sets)},
            objects=_dump(netlink, nl.NFT_MSG_GETOBJ, table),
            flowtables=_dump(netlink, nl.NFT_MSG_GETFLOWTABLE, table),
            devices=dict(socket.if_nameindex()),
            rules=_dump_rules(netlink, tables, table),
        )


def _dump_rules(netlink: NetlinkSocket, tables: Iterable[NftMessage], table: str | None) -> Iterator[NftMessage]:
    """Dump the rules of the tables with a name while they are decoded; `tables` are the messages about them.

    The kernel leaves out other rules, and ends the dump behind the first table of the name and family
    (nf_tables_dump_rules).
    """
    for family in (socket.AF_UNSPEC,) if table is None else (family for family, _ in tables):
        yield from _of_table(netlink.stream(nl.NFT_MSG_GETRULE, rule_request(family, table)), table)


def rule_request(family: int, table: str | None) -> bytes:
    """Return a request for the rules of a table, or for all rules (None)."""
    return netfilter_header(family) + (b"" if table is None else attribute(nl.NFTA_TABLE, encode_text(table)))


def _dump(netlink: NetlinkSocket, message_type: int, table: str | None) -> tuple[NftMessage, ...]:
    try:
        messages = netlink.dump(message_type, netfilter_header())
    except OSError as error:
        if error.errno not in _UNSUPPORTED or message_type != nl.NFT_MSG_GETFLOWTABLE:
            raise
        return ()
    return tuple(_of_table(messages, table))


def _of_table(messages: Iterable[Message], table: str | None) -> Iterator[NftMessage]:
    """Yield the messages about the tables with a name; None: all messages."""
    for raw, start, end in messages:
        message = raw[start], raw[start + _HEADER_SIZE : end]
        if table is None or _table_name(message) == table:
            yield message


def _table_name(message: NftMessage) -> str:
    """Return the name of the table that a message is about."""
    raw = message[1]
    return decode_text(dict(attributes(raw, 0, len(raw))).get(nl.NFTA_TABLE))


def read_elements(netlink: NetlinkSocket, key: SetKey) -> tuple[bytes, ...]:
    """Return the messages of the dump of a set's elements.

    Raises:
        DumpInterrupted: the set changed during each of several dumps.
        OSError: the kernel refused, for instance ENOENT; with its errno.
    """
    family, table, name = key
    body = netfilter_header(family)
    body += attribute(nl.NFTA_SET_ELEM_LIST_TABLE, encode_text(table))
    body += attribute(nl.NFTA_SET_ELEM_LIST_SET, encode_text(name))

    def dump() -> tuple[bytes, ...] | None:
        messages = netlink.dump_once(nl.NFT_MSG_GETSETELEM, body)
        if messages is None:
            return None
        bodies = tuple(raw[start + _HEADER_SIZE : end] for raw, start, end in messages)
        return None if repeats_element(bodies) else bodies

    return repeat_until_consistent(dump, f"elements of set {table} {name}")


def read_tables(name: str | None = None) -> tuple[nft.Table, ...]:
    """Return the tables that the kernel executes, of all families with a name; None: all tables.

    Raises:
        RulesetUnreadable: a part of a dump that belongs to no table.
        RulesetChanging, DumpInterrupted, OSError: as of `read_messages`.
    """

    def read() -> tuple[nft.Table, ...]:
        try:
            with _dumps(name) as messages:
                return decode_ruleset(messages)
        except UnreadableRuleset as error:
            raise RulesetUnreadable(f"cannot decode the kernel's ruleset: {error}") from error

    with _paused_collection():
        return read_consistent(read, accept_equal=name is not None)


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Pause the collection of cyclic garbage: it takes as long as the decoding, and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
