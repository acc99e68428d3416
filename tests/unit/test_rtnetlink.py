"""Requests to rtnetlink as Linux expects them, what becomes of the answers, and what pyroute2 is asked to write."""

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from nftpolicy.kernel.netlink import rtnetlink, rtnl_decode
from nftpolicy.kernel.netlink.attributes import attribute
from nftpolicy.netstate.routing import IpRule, Nexthop, Route
from nftpolicy.netstate.state import Device
from tests.unit.test_rtnl_decode import ROUTES, RULES, number, route_header

GET_LINK, GET_ADDRESS, GET_ROUTE, GET_NEIGHBOUR, GET_RULE = 18, 22, 26, 30, 34


class FakeNetlink:
    """Socket that answers each request type with prepared bodies, and keeps the requests."""

    def __init__(self, **answers: list[bytes]) -> None:
        self.answers = answers
        self.requests: list[tuple[int, bytes]] = []
        self.is_open = True
        self.error: OSError | None = None

    def __enter__(self) -> "FakeNetlink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.is_open = False

    def dump(self, kind: int, body: bytes) -> list[tuple[bytes, int, int]]:
        names = {GET_LINK: "links", GET_ADDRESS: "addresses", GET_ROUTE: "routes", GET_RULE: "rules"}
        self.requests.append((kind, body))
        return [(raw, 0, len(raw)) for raw in self.answers.get(names.get(kind, ""), [])]

    def stream(self, kind: int, body: bytes) -> Iterator[tuple[bytes, int, int]]:
        yield from self.dump(kind, body)

    def enable_strict_checks(self) -> None:
        pass

    def query(self, kind: int, body: bytes) -> tuple[bytes, int, int]:
        self.requests.append((kind, body))
        if self.error is not None:
            raise self.error
        (raw,) = self.answers["routes"]
        return raw, 0, len(raw)


def link(index: int, name: str, flags: int = 1, *parts: bytes) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + attribute(3, name.encode() + b"\0") + b"".join(parts)


def kind_of_link(kind: str) -> bytes:
    return attribute(18, attribute(1, kind.encode() + b"\0"))


def address(index: int, length: int, *parts: bytes) -> bytes:
    return struct.pack("=BBBBI", 2, length, 0, 0, index) + b"".join(parts)


LINKS = [
    link(1, "lo"),
    link(2, "wan", 0x1003, attribute(10, number(6)), attribute(27, number(7))),
    link(3, "veth0", 0x1002, kind_of_link("veth"), attribute(5, number(2)), attribute(37, number(0))),
    link(4, "wan.5", 0x1043, kind_of_link("vlan"), attribute(5, number(2))),
    link(6, "br0", 0x1003, kind_of_link("bridge")),
]
ADDRESSES = [
    address(1, 8, attribute(1, socket.inet_aton("127.0.0.1")), attribute(2, socket.inet_aton("127.0.0.1"))),
    # The address of the other end, and our own.
    address(2, 32, attribute(1, socket.inet_aton("10.3.0.2")), attribute(2, socket.inet_aton("10.3.0.1"))),
    address(2, 64, attribute(1, socket.inet_pton(socket.AF_INET6, "2001:db8::1"))),
]


@pytest.fixture
def netlink(monkeypatch: pytest.MonkeyPatch) -> FakeNetlink:
    fake = FakeNetlink(links=LINKS, addresses=ADDRESSES)
    monkeypatch.setattr(rtnetlink, "open_rtnetlink", lambda: fake)
    return fake


def test_devices_have_addresses_masters_and_links(netlink: FakeNetlink) -> None:
    assert rtnetlink.Rtnetlink().devices() == [
        Device("lo", ("127.0.0.1/8",), link_type=1),
        Device("wan", ("10.3.0.1/32", "2001:db8::1/64"), group=7, master="br0", link_type=1),
        Device("veth0", up=False, kind="veth", link_elsewhere=True, link_type=1),
        Device("wan.5", kind="vlan", link="wan", link_type=1),
        Device("br0", kind="bridge", link_type=1),
    ]
    assert not netlink.is_open


def test_names_and_addresses_are_of_all_devices(netlink: FakeNetlink) -> None:
    names, addresses = rtnetlink.Rtnetlink.indexes_and_addresses()
    assert names == {1: "lo", 2: "wan", 3: "veth0", 4: "wan.5", 6: "br0"}
    assert addresses == {"127.0.0.1", "10.3.0.1", "2001:db8::1"}
    assert rtnetlink.Rtnetlink().device_names() == set(names.values())


def test_ports_are_of_the_named_bridges(netlink: FakeNetlink) -> None:
    assert rtnetlink.Rtnetlink().bridge_ports(["br0", "wan"]) == {"br0": ("wan",)}
    assert rtnetlink.Rtnetlink().bridge_ports(["wan"]) == {}


@pytest.mark.parametrize(("attached", "has_xdp"), [(b"\0", False), (b"\1", True), (b"\2", True)])
def test_xdp_program_of_a_link_is_seen(attached: bytes, has_xdp: bool) -> None:
    raw = link(2, "wan", 1, attribute(43, attribute(2, attached)))
    assert rtnl_decode.decode_relations(raw, 0, len(raw)) == (None, False, has_xdp)


def test_other_names_of_a_link_are_in_its_property_list() -> None:
    names = (attribute(53, b"enp1s0\0"), attribute(99, b"no name\0"), attribute(53, b"uplink\0"))
    raw = link(2, "wan", 1, attribute(52, b"".join(names)))
    assert rtnl_decode.decode_link(raw, 0, len(raw))[2].other_names == ("enp1s0", "uplink")


def test_link_without_name_has_its_index() -> None:
    raw = struct.pack("=BxHiII", 0, 1, 9, 0, 0)
    assert rtnl_decode.decode_link(raw, 0, len(raw)) == (9, None, Device("9", up=False, link_type=1))


@pytest.mark.parametrize("family", [4, 6])
def test_rules_are_dumped_by_family(netlink: FakeNetlink, family: int) -> None:
    netlink.answers["rules"] = [bytes.fromhex(raw) for _, raw, _ in RULES]
    assert rtnetlink.Rtnetlink().rules(family) == [rule for *_, rule in RULES]
    kernel_family = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    assert netlink.requests == [(GET_RULE, bytes((kernel_family,)) + bytes(11))]


# RTM_GETLINK: struct ifinfomsg; RTM_GETADDR: ifaddrmsg; RTM_GETROUTE: rtmsg; RTM_GETNEIGH: ndmsg; RTM_GETRULE: fib_rule_hdr.
@pytest.mark.parametrize(
    ("kind", "size"), [(GET_LINK, 16), (GET_ADDRESS, 8), (GET_ROUTE, 12), (GET_NEIGHBOUR, 12), (GET_RULE, 12)]
)
def test_dump_request_has_the_whole_header_of_its_type(netlink: FakeNetlink, kind: int, size: int) -> None:
    rtnetlink.dump_objects(netlink, kind)  # type: ignore[arg-type]
    rtnetlink.dump_objects(netlink, kind, socket.AF_INET6)  # type: ignore[arg-type]
    assert netlink.requests == [(kind, bytes(size)), (kind, b"\x0a" + bytes(size - 1))]


def test_routes_of_one_protocol_without_cloned_ones(netlink: FakeNetlink) -> None:
    def route(protocol: int, flags: int = 0) -> bytes:
        return struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, protocol, 0, 1, flags) + attribute(4, number(2))

    netlink.answers["routes"] = [route(78), route(3), route(78, flags=0x200)]
    own, foreign = Route(4, 100, device="wan"), Route(4, 100, device="wan", protocol=3)
    assert rtnetlink.Rtnetlink().routes(4) == [own, foreign]
    assert rtnetlink.Rtnetlink().routes(4, 78) == [own]
    assert netlink.requests[-1] == (GET_ROUTE, b"\x02\0\0\0\0\x4e" + bytes(6)), "the kernel leaves out other protocols"


def test_many_routes_are_counted_up_to_a_limit(netlink: FakeNetlink) -> None:
    netlink.answers["routes"] = [b"route"] * 5
    assert rtnetlink.Rtnetlink().has_more_routes(4, 4)
    assert not rtnetlink.Rtnetlink().has_more_routes(6, 5)


# Writing


class FakeWriter:
    """Stands for pyroute2.IPRoute; keeps the arguments of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, object]]] = []
        self.error: Exception | None = None

    def rule(self, verb: str, **keys: object) -> None:
        self._keep("rule", verb, keys)

    def route(self, verb: str, **keys: object) -> None:
        self._keep("route", verb, keys)

    def _keep(self, noun: str, verb: str, keys: dict[str, object]) -> None:
        self.calls.append((noun, verb, keys))
        if self.error is not None:
            raise self.error


@pytest.fixture
def writer(netlink: FakeNetlink, monkeypatch: pytest.MonkeyPatch) -> FakeWriter:
    fake = FakeWriter()
    monkeypatch.setattr(rtnetlink.Rtnetlink, "_writer", fake)
    return fake


LOOKUP = {"family": socket.AF_INET, "priority": 5, "action": 1, "protocol": 78, "table": 100}


@pytest.mark.parametrize(
    ("rule", "keys"),
    [
        (IpRule(4, 5, table=100), LOOKUP),
        (IpRule(6, 5, table=100), {**LOOKUP, "family": socket.AF_INET6}),
        (IpRule(4, 5, table=100, mark=1, mask=0xFF), {**LOOKUP, "fwmark": 1, "fwmask": 0xFF}),
        (IpRule(4, 5, table=100, destination="10.1.0.0/16"), {**LOOKUP, "dst": "10.1.0.0/16"}),
        (IpRule(4, 5, table=100, uids=(7, 9)), {**LOOKUP, "uid_range": "7:9"}),
        (IpRule(4, 5, table=100, protocol=3), {**LOOKUP, "protocol": 3}),
        (
            IpRule(4, 5, table=100, iif="lo", l4proto=17, dports=(53, 53)),
            {**LOOKUP, "iifname": "lo", "ip_proto": 17, "dport_range": "53:53"},
        ),
        (IpRule(4, 5, table=100, oif="wan"), {**LOOKUP, "oifname": "wan"}),
        (IpRule(4, 5, table=100, suppress_prefix=0), {**LOOKUP, "suppress_prefixlen": 0}),
        (IpRule(4, 5, table=100, l4proto=17, sports=(1, 2)), {**LOOKUP, "ip_proto": 17, "sport_range": "1:2"}),
        *(
            (IpRule(4, 5, action), {"family": socket.AF_INET, "priority": 5, "action": code, "protocol": 78})
            for action, code in (("nop", 3), ("blackhole", 6), ("unreachable", 7), ("prohibit", 8))
        ),
    ],
)
def test_rule_is_written_with_exactly_its_keys(writer: FakeWriter, rule: IpRule, keys: dict[str, object]) -> None:
    rtnetlink.Rtnetlink().change_rule("add", rule)
    rtnetlink.Rtnetlink().change_rule("delete", rule)
    assert writer.calls == [("rule", "add", keys), ("rule", "del", keys)]


@pytest.mark.parametrize(
    "selector",
    [
        {"source": "10.0.0.0/8"},
        {"goto": 0},
        {"suppress_group": 0},
        {"tos": 16},
        {"invert": True},
        {"l3mdev": True},
    ],
    ids=str,
)
def test_rule_with_another_selector_is_not_written(writer: FakeWriter, selector: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unsupported selector in a rule to write"):
        rtnetlink.Rtnetlink().change_rule("add", IpRule(4, 5, table=100, **selector))  # type: ignore[arg-type]
    assert writer.calls == []


DEFAULT = {
    "family": socket.AF_INET,
    "dst": "0.0.0.0/0",
    "table": 100,
    "type": "unicast",
    "proto": 78,
    "priority": 0,
}


@pytest.mark.parametrize(
    ("route", "keys"),
    [
        (Route(4, 100, device="wan"), {**DEFAULT, "oif": 2}),
        (Route(6, 100, device="wan"), {**DEFAULT, "family": socket.AF_INET6, "dst": "::/0", "oif": 2}),
        (
            Route(4, 100, "10.0.0.0/8", device="wan", metric=9),
            {**DEFAULT, "dst": "10.0.0.0/8", "oif": 2, "priority": 9},
        ),
        (
            Route(4, 100, gateway="192.0.2.1", device="wan.5", onlink=True, protocol=3),
            {**DEFAULT, "gateway": "192.0.2.1", "oif": 4, "flags": ["onlink"], "proto": 3},
        ),
        (Route(4, 100, device="wan", prefsrc="10.0.0.1"), {**DEFAULT, "oif": 2, "prefsrc": "10.0.0.1"}),
        (Route(4, 100, kind="unreachable"), {**DEFAULT, "type": "unreachable"}),
        # The kernel shows a device for it (lo, IPv6), and does not take one.
        (Route(4, 100, kind="unreachable", device="lo"), {**DEFAULT, "type": "unreachable"}),
    ],
)
def test_route_is_written_with_exactly_its_keys(writer: FakeWriter, route: Route, keys: dict[str, object]) -> None:
    for verb in ("add", "delete", "replace"):
        rtnetlink.Rtnetlink().change_route(verb, route)
    assert writer.calls == [("route", verb, keys) for verb in ("add", "del", "replace")]


@pytest.mark.parametrize(
    "part",
    [
        {"nexthops": (Nexthop("wan"),)},
        {"source": "2001:db8::/32"},
        {"tos": 16},
        {"preference": "low"},
    ],
    ids=str,
)
def test_route_with_another_attribute_is_not_written(writer: FakeWriter, part: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unsupported attribute in a route to write"):
        rtnetlink.Rtnetlink().change_route("add", Route(4, 100, **part))  # type: ignore[arg-type]
    assert writer.calls == []


def test_route_by_an_absent_device_is_not_written(writer: FakeWriter) -> None:
    with pytest.raises(OSError, match="there is no device wan9") as raised:
        rtnetlink.Rtnetlink().change_route("add", Route(4, 100, device="wan9"))
    assert (raised.value.errno, writer.calls) == (errno.ENODEV, [])


def test_route_without_device_needs_no_list_of_devices(writer: FakeWriter, netlink: FakeNetlink) -> None:
    rtnetlink.Rtnetlink().change_route("add", Route(4, 100, kind="unreachable", device="lo"))
    rtnetlink.Rtnetlink().change_route("add", Route(4, 100))
    assert netlink.requests == []


@pytest.mark.parametrize(("words", "text"), [((17, "in use"), "in use"), ((17,), "File exists")])
def test_refusal_of_a_write_has_the_errno_of_the_kernel(
    writer: FakeWriter, words: tuple[object, ...], text: str
) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    writer.error = NetlinkError(*words)
    with pytest.raises(FileExistsError) as raised:
        rtnetlink.Rtnetlink().change_rule("add", IpRule(4, 5, table=100))
    assert (raised.value.errno, raised.value.strerror) == (17, text)


# Route lookups

TO, FROM, IIF, OIF, MARK, UID, PROTOCOL, SPORT, DPORT = 1, 2, 3, 4, 16, 25, 27, 28, 29  # RTA_*
TARGET = attribute(TO, socket.inet_aton("192.0.2.9"))


def lookup_header(family: int, destination: int, source: int = 0, tos: int = 0, flags: int = 0x1000) -> bytes:
    return struct.pack("=BBBBBBBBI", family, destination, source, tos, 0, 0, 0, 0, flags)


@pytest.mark.parametrize(
    ("words", "request_body"),
    [
        ({}, lookup_header(2, 32) + TARGET),
        ({"source": "10.0.0.1"}, lookup_header(2, 32, 32) + TARGET + attribute(FROM, socket.inet_aton("10.0.0.1"))),
        ({"iif": "wan"}, lookup_header(2, 32) + TARGET + attribute(IIF, number(2))),
        ({"oif": "wan.5"}, lookup_header(2, 32) + TARGET + attribute(OIF, number(4))),
        ({"mark": 0x1F}, lookup_header(2, 32) + TARGET + attribute(MARK, number(0x1F))),
        ({"uid": 0}, lookup_header(2, 32) + TARGET + attribute(UID, number(0))),
        ({"protocol": 17}, lookup_header(2, 32) + TARGET + attribute(PROTOCOL, b"\x11")),
        ({"sport": 53}, lookup_header(2, 32) + TARGET + attribute(SPORT, b"\0\x35")),
        ({"dport": 0x1234}, lookup_header(2, 32) + TARGET + attribute(DPORT, b"\x12\x34")),
        ({"tos": 16}, lookup_header(2, 32, tos=16) + TARGET),
        ({"match": True}, lookup_header(2, 32, flags=0x3000) + TARGET),  # RTM_F_FIB_MATCH
    ],
    ids=str,
)
def test_route_lookup_request_has_exactly_its_packet(
    netlink: FakeNetlink, words: dict[str, object], request_body: bytes
) -> None:
    netlink.answers["routes"] = [route_header() + attribute(4, number(2))]
    with rtnetlink.RouteLookups() as lookups:
        found = lookups.get_route(4, "192.0.2.9", **words)  # type: ignore[arg-type]
        assert netlink.is_open
    assert found == Route(4, 100, device="wan", protocol=3)
    assert netlink.requests[-1] == (GET_ROUTE, request_body)
    assert not netlink.is_open


def test_route_lookup_of_ipv6_has_long_addresses(netlink: FakeNetlink) -> None:
    netlink.answers["routes"] = [bytes.fromhex(ROUTES[-1][1])]
    rtnetlink.RouteLookups().get_route(6, "2001:db8::9", "2001:db8::1")
    raw = [socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::9", "2001:db8::1")]
    body = lookup_header(10, 128, 128) + attribute(TO, raw[0]) + attribute(FROM, raw[1])
    assert netlink.requests[-1] == (GET_ROUTE, body)


@pytest.mark.parametrize(("error", "number"), [(OSError(101, "unreachable"), 101), (OSError("?"), errno.EIO)])
def test_refused_route_lookup_returns_the_errno(netlink: FakeNetlink, error: OSError, number: int) -> None:
    netlink.error = error
    assert rtnetlink.RouteLookups().get_route(4, "192.0.2.9") == number


# This machine's sockets, which need no privilege


def test_devices_of_this_machine_are_read_without_root() -> None:
    assert "lo" in rtnetlink.Rtnetlink().device_names()


def test_writer_of_this_machine_writes_rules_and_routes() -> None:
    with rtnetlink.Rtnetlink()._writer as writer:
        assert callable(writer.rule)
        assert callable(writer.route)
