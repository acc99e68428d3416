"""Router advertisements with a lifetime of 0, byte by byte."""

import ipaddress

import pytest

from nftpolicy.kernel.netlink.router_withdrawals import withdrawn_router

ROUTER = "fe80::1"


def packet(source: str = ROUTER, next_header: int = 58, hops: int = 255, kind: int = 134, lifetime: int = 0) -> bytes:
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("ff02::1").packed
    message = bytes((kind, 0, 0, 0, 64, 0)) + lifetime.to_bytes(2, "big") + bytes(8)
    return bytes((0x60, 0, 0, 0, 0, len(message), next_header, hops)) + ends + message


def test_router_with_lifetime_of_zero_is_named() -> None:
    assert withdrawn_router(packet()) == ROUTER


@pytest.mark.parametrize(
    "other",
    [
        packet(lifetime=1),
        packet(lifetime=256),
        packet(kind=133),
        packet(hops=254),
        packet(next_header=17),
        packet(source="2001:db8::1"),
        packet()[:47],
        b"",
    ],
)
def test_other_packet_withdraws_no_router(other: bytes) -> None:
    assert withdrawn_router(other) is None
