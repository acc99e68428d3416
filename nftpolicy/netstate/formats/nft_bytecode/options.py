# SPDX-License-Identifier: BSD-2-Clause
"""Options, extension headers and chunks: which field nft names at some bits of one.

Offsets and lengths are in bits. Sources: nftables, src/exthdr.c, src/tcpopt.c, src/ipopt.c, src/sctp_chunk.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ... import nft
from ...nft.symbols import TCP_OPTIONS, names_by_number
from .attributes import Attributes
from .values import Kind

_Field = tuple[int, int, str]  # offset, length, name

_KINDS = {0: "exthdr", 1: "tcp option", 2: "ip option", 3: "sctp chunk", 4: "dccp option"}  # enum nft_exthdr_op
_NAMES: Mapping[str, Mapping[int, str]] = {
    "tcp option": names_by_number(TCP_OPTIONS),
    "ip option": {7: "rr", 131: "lsrr", 137: "ssrr", 148: "ra"},
    "exthdr": {0: "hbh", 43: "rt", 44: "frag", 51: "auth", 60: "dst", 135: "mh"},
    "sctp chunk": {
        0: "data", 1: "init", 2: "init-ack", 3: "sack", 4: "heartbeat", 5: "heartbeat-ack", 6: "abort", 7: "shutdown",
        8: "shutdown-ack", 9: "error", 10: "cookie-echo", 11: "cookie-ack", 12: "ecne", 13: "cwr",
        14: "shutdown-complete", 128: "asconf-ack", 192: "forward-tsn", 193: "asconf",
    },
}  # fmt: skip
# Fields that all options of a kind have.
_COMMON: Mapping[str, tuple[_Field, ...]] = {
    "tcp option": ((0, 8, "kind"), (8, 8, "length")),
    "ip option": ((0, 8, "type"), (8, 8, "length")),
    "sctp chunk": ((0, 8, "type"), (8, 8, "flags"), (16, 16, "length")),
    "exthdr": ((0, 8, "nexthdr"),),
    "dccp option": (),
}
_LENGTH_OF_HEADER = (8, 8, "hdrlength")
_ROUTE: tuple[_Field, ...] = ((16, 8, "ptr"), (24, 32, "addr"))
_INIT: tuple[_Field, ...] = (
    (32, 32, "init-tag"), (64, 32, "a-rwnd"), (96, 16, "num-outbound-streams"), (112, 16, "num-inbound-streams"),
    (128, 32, "initial-tsn"),
)  # fmt: skip
_FIELDS: Mapping[tuple[str, str], tuple[_Field, ...]] = {
    ("tcp option", "maxseg"): ((16, 16, "size"),),
    ("tcp option", "window"): ((16, 8, "count"),),
    ("tcp option", "sack"): ((16, 32, "left"), (48, 32, "right")),
    ("tcp option", "timestamp"): ((16, 32, "tsval"), (48, 32, "tsecr")),
    ("tcp option", "mptcp"): ((16, 4, "subtype"),),
    **{("ip option", name): _ROUTE for name in ("rr", "lsrr", "ssrr")},
    ("ip option", "ra"): ((16, 16, "value"),),
    **{("exthdr", name): (_LENGTH_OF_HEADER,) for name in ("hbh", "dst")},
    ("exthdr", "rt"): (_LENGTH_OF_HEADER, (16, 8, "type"), (24, 8, "seg-left")),
    ("exthdr", "frag"): (
        (8, 8, "reserved"), (16, 13, "frag-off"), (29, 2, "reserved2"), (31, 1, "more-fragments"), (32, 32, "id"),
    ),
    ("exthdr", "mh"): (_LENGTH_OF_HEADER, (16, 8, "type"), (24, 8, "reserved"), (32, 16, "checksum")),
    ("sctp chunk", "data"): ((32, 32, "tsn"), (64, 16, "stream"), (80, 16, "ssn"), (96, 32, "ppid")),
    ("sctp chunk", "init"): _INIT,
    ("sctp chunk", "init-ack"): _INIT,
    ("sctp chunk", "sack"): (
        (32, 32, "cum-tsn-ack"), (64, 32, "a-rwnd"), (96, 16, "num-gap-ack-blocks"), (112, 16, "num-dup-tsns"),
    ),
    ("sctp chunk", "shutdown"): ((32, 32, "cum-tsn-ack"),),
    ("sctp chunk", "ecne"): ((32, 32, "lowest-tsn"),),
    ("sctp chunk", "cwr"): ((32, 32, "lowest-tsn"),),
    ("sctp chunk", "asconf"): ((32, 32, "seqno"),),
    ("sctp chunk", "asconf-ack"): ((32, 32, "seqno"),),
    ("sctp chunk", "forward-tsn"): ((32, 32, "new-cum-tsn"),),
}  # fmt: skip
# Fields that nft names as those of another option: the blocks of a SACK option, and segment routing.
_FIELDS_OF_OTHERS: Mapping[tuple[str, str], Mapping[tuple[int, int], tuple[str, str]]] = {
    ("tcp option", "sack"): {
        (side + 64 * block, 32): (f"sack{block}", name)
        for block in (1, 2, 3)
        for side, name in ((16, "left"), (48, "right"))
    },
    ("exthdr", "rt"): {
        (32, 8): ("srh", "last-entry"), (40, 8): ("srh", "flags"), (48, 16): ("srh", "tag"),
        (64, 128): ("srh", "sid[1]"), (192, 128): ("srh", "sid[2]"),
    },
}  # fmt: skip
_RAW_FIELD = re.compile(r"@([0-9]+),([0-9]+)\Z")


def option_of(attributes: Attributes) -> tuple[nft.Option, int]:
    """Return the option or extension header of an expression, and the length of its field in bytes."""
    kind = attributes.choice(6, _KINDS, 0)
    number, offset, length = attributes.number(2), attributes.number(3, 0), attributes.number(4)
    if "present" in attributes.flags(5, {1: "present"}):
        return nft.Option(kind, option_name(kind, number)), length
    return _named(kind, option_name(kind, number), 8 * offset, 8 * length), length


def option_name(kind: str, number: int) -> str:
    """Return nft's name of an option, or its number."""
    return _NAMES.get(kind, {}).get(number, str(number))


def _named(kind: str, name: str, offset: int, length: int) -> nft.Option:
    """Return the field at some bits of an option; one without a name is @OFFSET,LENGTH."""
    place = offset, length
    other = _FIELDS_OF_OTHERS.get((kind, name), {}).get(place)
    if other is not None:
        return nft.Option(kind, *other)
    is_named = name in _NAMES.get(kind, {}).values()
    for field in (*_COMMON[kind], *_FIELDS.get((kind, name), ())) if is_named else ():
        if field[:2] == place:
            return nft.Option(kind, name, field[2])
    return nft.Option(kind, name, f"@{offset},{length}")


def option_part(option: nft.Option, shift: int, length: int) -> nft.Option | None:
    """Return the field that is a part of a field without a name; None if nft has none.

    `shift` is the number of the lowest bit of the part, 0 for the last bit of the field.
    """
    raw = _RAW_FIELD.match(option.field or "")
    if raw is None or shift + length > int(raw[2]):
        return None
    part = _named(option.kind, option.name, int(raw[1]) + int(raw[2]) - shift - length, length)
    return None if _RAW_FIELD.match(part.field or "") else part


def option_kind(option: nft.Option) -> Kind:
    """Return the kind of the values of a field."""
    if option.field is None:
        return Kind.EXISTENCE
    if option.kind == "exthdr" and option.field == "nexthdr":
        return Kind.PROTOCOL
    return Kind.IPV6 if option.field.startswith("sid[") else Kind.NUMBER
