"""Self-test of a service process on kernels without IPv6, addresses or routes."""

import errno
import socket

import pytest

from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import Device
from nftpolicy.policy.load import load
from nftpolicy.runtime.services import self_test
from tests.unit.test_policy_errors import GOOD

POLICY, _ = load(GOOD.encode())
WAN, VPN, DNS = POLICY.uplink["wan"], POLICY.service["vpn"], POLICY.service["dns"]


def set_socket_marks(monkeypatch, four, six):
    found = {socket.AF_INET: four, socket.AF_INET6: six}

    def own(family):
        if isinstance(found[family], OSError):
            raise found[family]
        return found[family]

    monkeypatch.setattr(self_test, "own_socket_marks", own)


@pytest.mark.parametrize(
    ("four", "six", "good", "words"),
    [
        ({"a": 0x101}, {"a": 0x101}, [True, True], "a new socket has the mark 0x101"),
        ({"a": 0x1}, {}, [True, None], "this kernel has no such sockets"),
        ({}, {}, [None, None, False], "neither IPv4 nor IPv6"),
        ({"a": 0x1, "b": 0}, {"a": 1}, [False, True], "has the mark 0x0 and 0x1, and not 0x1/0xff"),
        ({"a": 0x1}, {"a": 0x2}, [True, False], "has the mark 0x2, and not 0x1/0xff"),
        ({"a": 0x1}, OSError(errno.EPERM, "no"), [True, False], "no socket can be opened: no"),
    ],
)
def test_check_marks_has_expected_findings(monkeypatch, four, six, good, words):
    set_socket_marks(monkeypatch, four, six)
    found = list(self_test.check_marks(WAN))
    assert [one.passed for one in found] == good
    assert words in "\n".join(one.text for one in found)


class Lookups:
    """Kernel that routes by the mark of the request."""

    asked = []  # noqa: RUF012

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def get_route(self, family, destination, mark):
        self.asked.append((family, destination, mark))
        return (
            Route(family, 7, "default", "unicast", None, "eth0", prefsrc="here")
            if mark & 0xFF == 1
            else errno.ENETUNREACH
        )


@pytest.mark.parametrize(
    ("addresses", "own", "service", "good", "asked"),
    [
        (("192.0.2.9/24", "2001:db8::9/64"), True, DNS, [True, True], [(4, "198.51.100.53", 0x101), (6, "2001:db8:5:3::53", 0x101)]),
        (("192.0.2.9/24", "fe80::1/64"), False, DNS, [True, None], [(4, "198.51.100.53", 0x1)]),
        (("fe80::1/64",), False, DNS, [False, None, None], []),
        (("192.0.2.9/24", "2001:db8::9/64"), True, VPN, [True, None], [(4, "198.51.100.0", 0x101)]),
    ],
    ids=["both", "link-local only", "none", "the policy narrows"],
)  # fmt: skip
def test_check_routes_has_expected_findings(monkeypatch, addresses, own, service, good, asked):
    set_socket_marks(monkeypatch, {"a": 0x101}, {"a": 0x101})
    devices = [Device("eth0", addresses, True), Device("bat0", ("203.0.113.1/24",), True)]
    monkeypatch.setattr(self_test.Rtnetlink, "devices", lambda self: devices)
    monkeypatch.setattr(self_test, "RouteLookups", Lookups)
    monkeypatch.setattr(Lookups, "asked", [])
    assert [one.passed for one in self_test.check_routes(WAN, service, own)] == good
    assert Lookups.asked == asked


def test_route_by_another_device_is_a_fault():
    elsewhere = Route(4, 7, "default", "unicast", None, "bat0")
    nowhere = Route(4, 7, "default", "unreachable", None, "eth0")
    for found in (elsewhere, nowhere, errno.ENETUNREACH):
        assert self_test._route_finding(4, "198.51.100.53", found, WAN).passed is False
    assert (
        self_test._route_finding(4, "198.51.100.53", Route(4, 7, "default", "unicast", None, "eth0"), WAN).passed
        is True
    )
