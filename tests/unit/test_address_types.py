"""Address types of `fib`: which address is local, broadcast, anycast, multicast or unicast, and by which device."""

from types import SimpleNamespace

import pytest

from nftpolicy.model.fib.address_type import AddressTypes
from nftpolicy.model.packet import parse_address
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import NetState

TYPES = AddressTypes(
    NetState(
        routes=(
            Route(4, 255, "127.0.0.0/8", "local", device="lo"),
            Route(4, 255, "10.1.0.1/32", "local", device="a0"),
            Route(4, 255, "10.1.255.255/32", "broadcast", device="a0"),
            Route(4, 254, "10.1.0.2/32", "local", device="a0"),  # in another table
            Route(4, 255, "10.1.0.3/32", "unreachable"),
            Route(6, 255, "2001:db8::1/128", "local", device="a0"),
            Route(6, 255, "2001:db8::/128", "anycast", device="a0"),
            Route(6, 255, "2001:db8:5::/48", "local", device="lo"),
        )
    )
)
CASES = [
    ("10.1.0.1", None, "local"),
    ("10.1.0.1", "a0", "local"),
    ("10.1.0.1", "b0", "unicast"),
    ("10.1.0.2", None, "unicast"),
    ("10.1.0.3", None, "unicast"),
    ("10.1.255.255", "a0", "broadcast"),
    ("127.7.7.7", None, "local"),
    ("127.7.7.7", "lo", "local"),
    ("127.7.7.7", "a0", "unicast"),
    ("128.0.0.0", None, "unicast"),
    ("255.255.255.255", "b0", "broadcast"),
    ("255.255.255.254", None, "unicast"),
    ("0.0.0.0", None, "broadcast"),  # inet_dev_addr_type: ipv4_is_zeronet
    ("0.0.0.1", None, "broadcast"),
    ("1.0.0.0", None, "unicast"),
    ("224.0.0.1", None, "multicast"),
    ("239.255.255.255", "a0", "multicast"),
    ("2001:db8::1", None, "local"),
    ("2001:db8::1", "b0", "unicast"),
    ("2001:db8::", "a0", "anycast"),
    ("2001:db8:5:1::", "lo", "local"),
    ("2001:db8:6::", None, "unicast"),
    ("::1", None, "unicast"),
    ("ff02::1", None, "multicast"),
]


def family_of(address: str) -> int:
    return 6 if ":" in address else 4


@pytest.mark.parametrize(("address", "device", "kind"), CASES)
def test_address_type_is_that_of_the_local_table(address: str, device: str | None, kind: str) -> None:
    assert TYPES.address_type(family_of(address), parse_address(address), device) == kind


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (("daddr",), "local"),
        (("saddr",), "broadcast"),
        (("daddr", "iif"), "local"),
        (("daddr", "oif"), "unicast"),
        (("saddr", "iif"), "broadcast"),
        (("saddr", "daddr"), None),
        (("iif",), None),
        (("daddr", "iif", "oif"), None),
        (("daddr", "mark"), None),
    ],
)
def test_fib_type_reads_its_keys(keys: tuple[str, ...], kind: str | None) -> None:
    view = SimpleNamespace(
        family=4, source=parse_address("10.1.255.255"), destination=parse_address("10.1.0.1"), iif="a0", oif="b0"
    )
    assert TYPES.evaluate("type", keys, view) == kind  # type: ignore[arg-type]
    assert TYPES.evaluate("oif", keys, view) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [("daddr", "iif"), ("daddr", "oif")])
def test_fib_type_without_the_device_is_not_modelled(keys: tuple[str, ...]) -> None:
    view = SimpleNamespace(family=4, source=1, destination=parse_address("10.1.0.1"), iif=None, oif=None)
    assert TYPES.evaluate("type", keys, view) is None  # type: ignore[arg-type]
