"""Rules whose program nft would not write, added by netlink."""

import socket
import struct

from nftpolicy.netstate.formats.nft_debug.messages import attribute, number, text

_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END, _NEWRULE = 0x10, 0x11, 10 << 8 | 6
_REQUEST, _ACK, _CREATE, _APPEND = 1, 4, 0x400, 0x800
_NESTED = 0x8000
_SUBSYSTEM, _INET = 10, 1
Expression = tuple[str, bytes]


def add_rule(table: str, chain: str, *expressions: Expression) -> None:
    """Append a rule to a chain of a table of family inet, in this network namespace. Raises OSError."""
    encoded = b"".join(
        attribute(1 | _NESTED, text(1, name) + attribute(2 | _NESTED, body)) for name, body in expressions
    )
    rule = text(1, table) + text(2, chain) + attribute(4 | _NESTED, encoded)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(20)
        netlink.send(
            _message(_BATCH_BEGIN, _REQUEST, 0, _SUBSYSTEM, b"")
            + _message(_NEWRULE, _REQUEST | _ACK | _CREATE | _APPEND, _INET, 0, rule)
            + _message(_BATCH_END, _REQUEST, 0, _SUBSYSTEM, b"")
        )
        (error,) = struct.unpack_from("=i", netlink.recv(1 << 16), 16)
    if error:
        raise OSError(-error, "the kernel refused the rule")


def _message(kind: int, flags: int, family: int, resource: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 20 + len(body), kind, flags, 1, 0) + struct.pack(">BBH", family, 0, resource) + body


def meta(key: int, register: int = 1) -> Expression:
    """Return a load of a property of the packet."""
    return "meta", number(1, register) + number(2, key)


def payload(base: int, offset: int, length: int) -> Expression:
    """Return a load of bytes of a header into register 1."""
    return "payload", number(1, 1) + number(2, base) + number(3, offset) + number(4, length)


def compare(value: bytes) -> Expression:
    """Return the test whether register 1 begins with `value`."""
    return "cmp", number(1, 1) + number(2, 0) + attribute(3 | _NESTED, attribute(1, value))


ACCEPT: Expression = (
    "immediate",
    number(1, 0) + attribute(2 | _NESTED, attribute(2 | _NESTED, number(1, 1))),
)
