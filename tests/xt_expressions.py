"""Expressions of nft_compat (match and target) in a network namespace, read by netlink."""

import socket
import sys

from nftpolicy.kernel.netlink.attributes import attributes

_NETFILTER, _GETRULE, _DUMP, _DONE, _ERROR = 12, 10 << 8 | 7, 0x301, 3, 2
_FAMILIES = {2: "ip", 10: "ip6", 1: "inet", 7: "bridge"}


def raw_rules():
    """Yield (family, table, chain, [(expression, {attribute: bytes})]) of each rule in this network namespace.

    Raises OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as channel:
        header = (20).to_bytes(4, sys.byteorder) + _GETRULE.to_bytes(2, sys.byteorder)
        channel.send(header + _DUMP.to_bytes(2, sys.byteorder) + bytes([1, 0, 0, 0]) + bytes(8))
        while True:
            data, start = channel.recv(1 << 20), 0
            while start < len(data):
                length, kind = (
                    int.from_bytes(data[start + at : start + end], sys.byteorder) for at, end in ((0, 4), (4, 6))
                )
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError(-int.from_bytes(data[start + 16 : start + 20], sys.byteorder, signed=True), "dump")
                yield _rule(data[start + 16], dict(attributes(data, start + 20, start + length)))
                start += (length + 3) & ~3


def _rule(family, found):
    table, chain = (found[kind].rstrip(b"\0").decode() for kind in (1, 2))
    listed = [
        dict(attributes(each, 0, len(each))) for _, each in attributes(found.get(4, b""), 0, len(found.get(4, b"")))
    ]
    expressions = [
        (each[1].rstrip(b"\0").decode(), dict(attributes(each.get(2, b""), 0, len(each.get(2, b"")))))
        for each in listed
    ]
    return _FAMILIES.get(family, str(family)), table, chain, expressions


def xt_expressions():
    """Return (kind, name, revision, info, family) of all extensions in this network namespace, in order."""
    return [
        (name, found[1].rstrip(b"\0").decode(), int.from_bytes(found[2], "big"), found[3], family)
        for family, _, _, expressions in raw_rules()
        for name, found in expressions
        if name in ("match", "target")
    ]
