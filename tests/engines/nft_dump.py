"""Dumps of nf_tables as attributes, read without the product (include/uapi/linux/netfilter/nf_tables.h)."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM = (10 << 8 | number for number in (1, 4, 7, 10, 13))
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_DONE, _ERROR, _DUMP_INTERRUPTED = 3, 2, 0x10
_REQUEST = 0x301  # NLM_F_REQUEST | NLM_F_DUMP

Attributes = dict[int, bytes]
Expression = tuple[str, Attributes]


def attribute_list(data: bytes) -> list[tuple[int, bytes]]:
    """Return (type, value) of attributes, in order."""
    found, start = [], 0
    while start + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, start)
        if length < 4 or start + length > len(data):
            raise ValueError(f"a malformed attribute in {data.hex()}")
        found.append((kind & 0x3FFF, data[start + 4 : start + length]))
        start += (length + 3) & ~3
    return found


def attributes(data: bytes) -> Attributes:
    return dict(attribute_list(data))


def text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode()


def number(data: bytes) -> int:
    """Return a number in network byte order."""
    return int.from_bytes(data, "big")


def expression(data: bytes) -> Expression:
    """Return name and attributes of an expression."""
    found = attributes(data)
    return text(found[1]), attributes(found.get(2, b""))


def expressions(data: bytes) -> list[Expression]:
    """Return the expressions of a list."""
    return [expression(value) for _, value in attribute_list(data)]


@dataclass
class RawChain:
    """A chain; `hook`: type, hook number, priority, or None. `policy`: 0 drop, 1 accept."""

    hook: tuple[str, int, int] | None
    policy: int
    rules: list[list[Expression]] = field(default_factory=list)


@dataclass
class RawSet:
    """A set or map: attributes of the header, and of each element."""

    header: Attributes
    elements: list[Attributes]


@dataclass
class RawTable:
    """A table of the dump."""

    chains: dict[str, RawChain] = field(default_factory=dict)
    sets: dict[str, RawSet] = field(default_factory=dict)


def dump(kind: int, family: int = 0, extra: bytes = b"") -> Iterator[tuple[int, bytes]]:
    """Yield (family, attributes) of the messages of a dump. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as channel:  # NETLINK_NETFILTER
        body = struct.pack("=BBH", family, 0, 0) + extra
        channel.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST, 1, 0) + body)
        while True:
            data, start = channel.recv(1 << 20), 0
            while start < len(data):
                length, message, flags, _, _ = struct.unpack_from("=IHHII", data, start)
                if flags & _DUMP_INTERRUPTED:
                    raise InterruptedError("the ruleset changed while it was read")
                if message == _DONE:
                    return
                if message == _ERROR:
                    raise OSError(-struct.unpack_from("=i", data, start + 16)[0], "the kernel refuses the dump")
                yield data[start + 16], data[start + 20 : start + length]
                start += (length + 3) & ~3


def read_tables() -> dict[tuple[str, str], RawTable]:
    """Return the tables of this network namespace by family and name."""
    tables = {(FAMILIES[family], text(attributes(data)[1])): RawTable() for family, data in dump(GETTABLE)}
    for family, data in dump(GETCHAIN):
        found = attributes(data)
        hook = attributes(found[4]) if 4 in found else None
        place = None
        if hook is not None:
            priority = struct.unpack(">i", hook[2])[0]
            place = (text(found[7]), number(hook[1]), priority)
        chain = RawChain(place, number(found[5]) if 5 in found else 1)
        tables[FAMILIES[family], text(found[1])].chains[text(found[3])] = chain
    for family, data in dump(GETRULE):
        found = attributes(data)
        chain = tables[FAMILIES[family], text(found[1])].chains[text(found[2])]
        chain.rules.append(expressions(found.get(4, b"")))
    for family, data in dump(GETSET):
        header = attributes(data)
        elements = _elements(family, header[1], header[2])
        tables[FAMILIES[family], text(header[1])].sets[text(header[2])] = RawSet(header, elements)
    return tables


def _elements(family: int, table: bytes, name: bytes) -> list[Attributes]:
    extra = b"".join(
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in ((1, table), (2, name))
    )
    return [
        attributes(element)
        for _, data in dump(GETSETELEM, family, extra)
        for kind, elements in attribute_list(data)
        if kind == 3
        for _, element in attribute_list(elements)
    ]
