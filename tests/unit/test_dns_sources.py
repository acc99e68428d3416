"""Sources of the DNS servers of an uplink: file formats of each program, and damaged files."""

import os
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from nftpolicy.generated_text import Unwritable
from nftpolicy.kernel.inotify import FilePatternWatch
from nftpolicy.policy import vocabulary
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Listen
from nftpolicy.policy.scalars import parse_server
from nftpolicy.runtime.resolver.discovery import DiscoveryTarget, ServerDiscovery
from nftpolicy.runtime.resolver.dnsmasq import ResolverError, ResolverJob, _refresh, _start
from nftpolicy.runtime.resolver.servers_file import LEAVING_SECONDS, ServersFile
from nftpolicy.runtime.resolver.sources import (
    dhclient,
    dhcpcd,
    lease_file,
    netifd,
    networkd,
    networkmanager,
    ra,
    registry,
    resolved,
)
from nftpolicy.runtime.resolver.sources.filter import MAX_REJECTED, MAX_SERVERS, HostAddresses, usable_servers
from nftpolicy.runtime.resolver.unbound import unbound_text
from tests.test_manual import MINIMAL

FIXTURES = Path(__file__).parents[1] / "fixtures/dns"
NOW = 1795719600.0  # 2026-11-26 19:00:00 UTC
DEVICE = "br-wan"
FOUR, SIX = ["192.0.2.1", "192.0.2.53"], ["2001:db8:1::1", "fe80::5eff:fe00:5301"]


def fixture(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def dhcp4(servers: bytes = bytes((192, 0, 2, 1, 192, 0, 2, 53)), life: int = 3600) -> bytes:
    options = bytes((53, 1, 5, 0, 51, 4)) + life.to_bytes(4, "big") + bytes((6, len(servers))) + servers + b"\xff"
    return b"\x02\x01\x06\x00" + bytes(232) + b"\x63\x82\x53\x63" + options + bytes(20)


DHCP6 = (
    b"\x07\xcd\x75\x16"
    + struct.pack("!2H", 1, 3)
    + b"abc"
    + struct.pack("!2H", 23, 32)
    + b"".join(ip_address(one).packed for one in SIX)
)


def advertisement(life: int = 600, servers: tuple[str, ...] = ("2001:db8:1::1", "fe80::1")) -> bytes:
    option = struct.pack("!BBHI", 25, 1 + 2 * len(servers), 0, life) + b"".join(
        ip_address(one).packed for one in servers
    )
    return struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + b"\x01\x01\x02\x00\x5e\x00\x53\x01" + option


CASES = {
    "networkd-link": (networkd.parse, (), ["192.0.2.1", "192.0.2.53:5353", "2001:db8:1::1#dns.example", "fe80::1%7",
                                          "[fe80::2]:53%7", "192.0.2.1"]),
    "networkd-lease": (networkd.parse, (), FOUR),
    "resolved": (resolved.parse, (), ["192.0.2.1", "fe80::1%7#dns.example", "192.0.2.7:5353"]),
    "networkmanager": (networkmanager.parse, (), FOUR + SIX),
    "dhclient.leases": (dhclient.parse, (DEVICE, NOW), FOUR),
    "dhclient6.leases": (dhclient.parse, (DEVICE, NOW), SIX),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_parser_reads_a_file_of_its_program(name: str) -> None:
    parse, more, expected = CASES[name]
    assert list(parse(fixture(name), *more)) == expected


def test_parser_reads_json_of_busctl_and_ubus() -> None:
    found = list(networkmanager.parse_objects(fixture("networkmanager.json").decode(), DEVICE))
    assert found == [*FOUR, *SIX, *FOUR, *SIX, "fe80::1"]
    assert list(networkmanager.parse_objects(fixture("networkmanager.json").decode(), "eth9")) == []
    found = list(netifd.parse(fixture("netifd.json").decode(), DEVICE))
    assert found == [*FOUR, "fe80::1", "2001:db8:1::1", "2001:db8:1::53"]
    for parse in (networkmanager.parse_objects, netifd.parse):
        with pytest.raises(ValueError):
            list(parse("Call failed", DEVICE))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("expire 4 2026/11/26 19:26:08", "expire 4 2026/11/26 18:59:59", []),
        ("expire 4 2026/11/26 19:26:08", "expire never", FOUR),
        ("expire 4 2026/11/26 19:26:08", "expire epoch 1795719601; # Thu Nov 26", FOUR),
        ("expire 4 2026/11/26 19:26:08", "expire epoch 1795719600", []),
        ("expire 4 2026/11/26 19:26:08", "expire soon", []),
        ("  renew 4", "  released;\n  renew 4", []),
        ('interface "br-wan";\n  fixed-address 192.0.2.146', 'interface "br-wan2";\n  fixed-address 192.0.2.146', []),
    ],
)
def test_dhclient_last_lease_of_the_device_counts_until_expiry(old: str, new: str, expected: list[str]) -> None:
    text = fixture("dhclient.leases").decode()
    assert text.count(old) == 1
    assert list(dhclient.parse(text.replace(old, new).encode(), DEVICE, NOW)) == expected


def test_dhclient6_lease_expires_with_its_last_address() -> None:
    begun = 1795717569
    assert list(dhclient.parse(fixture("dhclient6.leases"), DEVICE, begun + 3599.0)) == SIX
    assert list(dhclient.parse(fixture("dhclient6.leases"), DEVICE, begun + 3600.0)) == []


def test_dhcpcd_message_gives_servers_until_expiry() -> None:
    assert list(dhcpcd.parse(dhcp4(), NOW, NOW + 3600)) == FOUR
    assert list(dhcpcd.parse(dhcp4(), NOW, NOW + 3601)) == []
    assert list(dhcpcd.parse(dhcp4(life=0xFFFFFFFF), 0.0, NOW)) == FOUR
    assert list(dhcpcd.parse(dhcp4(servers=b"\xc0\x00\x02"), NOW, NOW)) == []
    assert list(dhcpcd.parse(DHCP6, NOW, NOW)) == SIX
    assert list(dhcpcd.parse(DHCP6[:-1], NOW, NOW)) == SIX[:1]


# Router advertisements


def test_rdnss_servers_expire_with_their_lifetime() -> None:
    known = ra.RdnssCache()
    known.add(DEVICE, advertisement(600), 100.0)
    assert known.servers(DEVICE, 699.9) == ("2001:db8:1::1", "fe80::1")
    known.add(DEVICE, advertisement(1200, ("fe80::1",)), 200.0)
    assert known.next_expiry() == 700.0
    assert known.servers(DEVICE, 700.0) == ("fe80::1",)
    known.add(DEVICE, advertisement(0, ("fe80::1",)), 300.0)
    assert known.servers(DEVICE, 300.0) == ()
    known.add(DEVICE, advertisement(0xFFFFFFFF), 300.0)
    assert known.next_expiry() is None
    assert known.servers(DEVICE, 1e12) == ("2001:db8:1::1", "fe80::1")
    assert known.servers("eth9", 300.0) == ()
    known.clear(DEVICE)
    assert known.servers(DEVICE, 300.0) == ()


def test_rdnss_cache_is_bounded() -> None:
    known = ra.RdnssCache()
    for number in range(50):
        known.add(DEVICE, advertisement(600, (f"2001:db8::{number:x}",)), 100.0)
    assert len(known.servers(DEVICE, 100.0)) == ra.MAX_SERVERS


@pytest.mark.parametrize("cut", range(len(advertisement())))
def test_truncated_advertisement_has_no_servers(cut: int) -> None:
    assert list(ra.parse(advertisement()[:cut])) == []


# Choice


@pytest.mark.parametrize(
    ("word", "server"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:53", "192.0.2.1"),
        ("2001:db8::1#dns.example", "2001:db8::1"),
        ("2001:DB8::1%7", "2001:db8::1"),
        ("fe80::1", "fe80::1%br-wan"),
        ("febf::1", "febf::1%br-wan"),
        ("fe80::1%7", "fe80::1%br-wan"),
        ("fe80::1%wwan0", "fe80::1%wwan0"),
        ("[fe80::1]:53%7#name", "fe80::1%br-wan"),
        ("fe80::1%8", None),
        ("fe80::1%9", None),
        ("fe80::1%bat0", None),
        ("192.0.2.1:5353", None),
        ("[2001:db8::1]:853", None),
        ("127.0.0.53", None),
        ("::1", None),
        ("203.0.113.2", None),  # our own
        ("0.0.0.0", None),
        ("0.1.2.3", None),
        ("255.255.255.255", None),
        ("224.0.0.1", None),
        ("::", None),
        ("ff02::1", None),
        ("::ffff:192.0.2.1", None),
        ("dns.example", None),
        ("", None),
        ("192.0.2.1\n192.0.2.2", None),
    ],
)
def test_unusable_server_is_rejected_with_a_reason(word: str, server: str | None) -> None:
    machine = HostAddresses(frozenset({ip_address("203.0.113.2")}), {7: DEVICE, 8: "bat0"})
    choice = usable_servers([(DEVICE, word)], (DEVICE, "wwan0"), machine)
    assert [str(one) for one in choice.servers] == ([server] if server else [])
    assert [one for one, why in choice.rejected if why] == ([] if server else [word])


def test_usable_servers_are_unique_and_bounded() -> None:
    many = [(DEVICE, f"192.0.2.{number}") for number in range(1, 60)]
    choice = usable_servers([*many[:3], *many], (DEVICE,), HostAddresses())
    assert [str(one) for one in choice.servers] == [word for _, word in many[:MAX_SERVERS]]
    assert (len(choice.rejected), choice.rejects_more) == (MAX_REJECTED, True), "a megabyte of them is a few lines"
    two = usable_servers([("a", "fe80::1"), ("b", "fe80::1"), ("a", "fe80::1%a")], ("a", "b"), HostAddresses())
    assert [str(one) for one in two.servers] == ["fe80::1%a", "fe80::1%b"]


# Whatever comes

PARSERS = [
    networkd.parse,
    resolved.parse,
    networkmanager.parse,
    lease_file.parse,
    lambda data: dhclient.parse(data, DEVICE, NOW),
    lambda data: dhcpcd.parse(data, NOW, NOW),
    lambda data: (server for one in ra.parse(data) for server in one.servers),
]
SEEDS = [*map(fixture, CASES), dhcp4(), DHCP6, advertisement()]


@st.composite
def broken(draw) -> bytes:
    """Generate a valid file with pieces cut out, doubled and overwritten; or any bytes."""
    data = bytearray(draw(st.sampled_from(SEEDS) | st.binary(max_size=300)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.binary(max_size=6) | st.sampled_from([b"{", b"}", b";", b'"', b"\xff" * 4, b"%", b"#", b"["]))
        data[at : at + draw(st.integers(0, 8))] = piece
    return bytes(data)


@given(broken())
def test_parsers_accept_damaged_files(data: bytes) -> None:
    for parse in PARSERS:
        found = [(DEVICE, word) for word in parse(data)]
        for one in usable_servers(found, (DEVICE,), HostAddresses()).servers:
            assert not one.address.is_loopback
            assert one.zone in (None, DEVICE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.data())
def test_json_parsers_accept_damaged_documents(data: st.DataObject) -> None:
    """Replace some values of a valid document."""
    import json

    name, parse = data.draw(
        st.sampled_from([("networkmanager.json", networkmanager.parse_objects), ("netifd.json", netifd.parse)])
    )
    document = json.loads(fixture(name))
    for _ in range(data.draw(st.integers(0, 3))):
        document = with_replaced_values(document, data.draw)
    for word in parse(json.dumps(document), DEVICE):
        usable_servers([(DEVICE, word)], (DEVICE,), HostAddresses())


def with_replaced_values(item, draw):
    if isinstance(item, (dict, list)) and item and draw(st.integers(0, 6)):
        keys = list(item) if isinstance(item, dict) else list(range(len(item)))
        key = draw(st.sampled_from(keys))
        item[key] = with_replaced_values(item[key], draw)
        return item
    return draw(JSON)


# The table of sources


def test_every_source_of_the_vocabulary_is_registered() -> None:
    assert {*registry.SOURCES, registry.SOURCE_RA, "auto"} == set(vocabulary.DNS_SOURCES)
    for word in vocabulary.DNS_SOURCES:
        written = MINIMAL.replace("[uplink.wan.resolver]\n", f'[uplink.wan.resolver]\nsources = ["{word}"]\n')
        resolver = load(written.encode())[0].uplink["wan"].resolver
        assert resolver is not None
        assert resolver.sources == (word,)


def test_source_program_failure_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/netifd").touch()
    source = registry.SOURCES["netifd"]

    def read_netifd() -> registry.SourceReading:
        return registry.read_source(source, [(DEVICE, 7)], NOW, tmp_path)

    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_netifd() == registry.SourceReading((), "program ubus not found")
    ubus = tmp_path / "ubus"
    for text, trouble in (
        ("echo Not found >&2; exit 4", "ubus: Not found"),
        ("exit 5", "ubus: exit status 5"),
        ("echo hello", "cannot parse the output of ubus"),
        ("exec /bin/sleep 9", "ubus did not answer within 0 s"),
        (f"exec /bin/cat {FIXTURES}/netifd.json", ""),
    ):
        ubus.write_text(f"#!/bin/sh\n{text}\n")
        ubus.chmod(0o755)
        with monkeypatch.context() as patience:
            patience.setattr(registry, "_TIMEOUT", 0.3 if "sleep" in text else 10.0)
            found = read_netifd()
        assert (found.error, len(found.entries)) == (trouble, 0 if trouble else 5)


def test_source_files_are_found_by_device_and_index(tmp_path: Path) -> None:
    places = {
        "run/systemd/netif/links/7": "networkd-link",
        "run/systemd/netif/leases/8": "networkd-lease",
        "run/NetworkManager/devices/7": "networkmanager",
        "run/systemd/resolve/netif/7": "resolved",
        "var/lib/dhcp/dhclient6.br-wan.leases": "dhclient6.leases",
        "var/lib/dhcp/dhclient.leases": "dhclient.leases",
    }
    for place, name in places.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(fixture(name))
    (tmp_path / "run/nftpolicy/udhcpc").mkdir(parents=True)
    (tmp_path / "run/nftpolicy/udhcpc/br-wan").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "var/lib/dhcpcd").mkdir()
    (tmp_path / "var/lib/dhcpcd/br-wan.lease").write_bytes(dhcp4())
    (tmp_path / "var/lib/dhcpcd/br-wan2.lease").write_bytes(dhcp4(bytes(4)))
    counts = {word: len(read(word, tmp_path, 7)) for word in registry.SOURCES}
    assert counts == {
        "networkd": 6, "networkmanager": 4, "resolved": 3, "dhclient": 4, "dhcpcd": 2, "udhcpc": 1, "netifd": 0,
    }  # fmt: skip
    assert [word for word in registry.SOURCES if read(word, tmp_path, None)] == ["dhclient", "dhcpcd", "udhcpc"]
    assert registry.read_source_files(
        registry.SOURCES["networkd"], [(DEVICE, 7)], NOW, tmp_path / "run"
    ).error.endswith("does not exist")


def test_source_in_closed_directory_has_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the files of systemd-resolved for the unit of watch, which may not look into directories of other users."""
    closed = tmp_path / "run/systemd/resolve/netif"
    closed.mkdir(parents=True)

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    def stat(path: Path, **options: bool) -> os.stat_result | None:  # Python 3.13 gives options
        return refused(path) if path.parent == closed else os.stat(path, **options)  # noqa: PTH116

    monkeypatch.setattr(type(closed), "stat", stat)
    monkeypatch.setattr(registry, "_load", refused)
    reading = registry.read_source_files(registry.SOURCES["resolved"], [(DEVICE, 7)], NOW, tmp_path)
    assert reading == registry.SourceReading((), f"{closed}/7: Permission denied")


def read(word: str, root: Path, index: int | None) -> tuple[tuple[str, str], ...]:
    source = registry.SOURCES[word]
    return registry.read_source_files(source, [(DEVICE, index)], NOW, root).entries


# What dnsmasq is told


def test_removed_server_stays_last_for_a_while(tmp_path: Path) -> None:
    one, two = usable_servers([(DEVICE, "192.0.2.1"), (DEVICE, "192.0.2.2")], (DEVICE,), HostAddresses()).servers
    file = tmp_path / "servers"
    upstream = ServersFile(file)

    def written_servers() -> list[str]:
        return [line.removeprefix("server=") for line in file.read_text().splitlines()]

    assert upstream.update((one,), (), 100.0)
    assert not upstream.update((one,), (), 101.0)
    assert upstream.update((two,), (), 102.0)
    assert written_servers() == ["192.0.2.2", "192.0.2.1"]
    assert upstream.due() == 102.0 + LEAVING_SECONDS
    assert upstream.update((two,), (), 102.0 + LEAVING_SECONDS)
    assert written_servers() == ["192.0.2.2"]
    assert upstream.update((one,), (), 110.0)
    assert not upstream.update((one, two), (), 111.0)
    assert written_servers() == ["192.0.2.1", "192.0.2.2"]
    assert upstream.update((two,), {one.address}, 112.0)  # it has become our own address
    assert written_servers() == ["192.0.2.2"]
    assert upstream.update((), (), 113.0)  # without a server names are refused, at once
    assert written_servers() == []


def test_servers_of_the_policy_are_written_for_dnsmasq(tmp_path: Path) -> None:
    """One of this machine is left out, and its domain keeps a line, so that no other server gets the names."""
    settings = (
        'servers = ["192.0.2.1:5353", "[fe80::1%br-wan]:54"]\n'
        'domains = { "corp.example" = ["[2001:db8::53]:54", "192.0.2.53"], lan = ["127.0.0.1"] }\n'
    )
    text = MINIMAL.replace("[uplink.wan.resolver]\n", f"[uplink.wan.resolver]\n{settings}")
    uplink = load(text.encode())[0].uplink["wan"]
    assert uplink.resolver is not None
    warnings: list[str] = []
    with ServerDiscovery(DiscoveryTarget("wan", uplink, uplink.resolver), warnings.append, tmp_path) as learner:
        servers = learner.refresh().servers
        assert ServersFile(tmp_path / "servers").update(servers, learner.host.own, 0.0, learner.domains)
    assert (tmp_path / "servers").read_text().splitlines() == [
        "server=192.0.2.1#5353",
        "server=fe80::1%br-wan#54",
        "server=/corp.example/2001:db8::53#54",
        "server=/corp.example/192.0.2.53",
        "server=/lan/",
    ]
    assert warnings == ["'127.0.0.1' left out: address of this host: would create a forwarding loop"]


def test_unbound_forwards_each_zone_to_its_own_servers() -> None:
    tls, tls6, plain = map(
        parse_server, ("tls://192.0.2.1#a.example", "tls://[2001:db8::1]:8853#b.example", "192.0.2.2")
    )
    text = unbound_text((Listen(ip_address("::1"), 54),), "nobody", (tls, tls6), {"corp.test": (plain,), "lan": ()})
    assert "    interface: ::1@54\n" in text
    assert '    local-zone: "corp.test." transparent\n    local-zone: "lan." refuse\n' in text
    assert text.partition("forward-zone:\n")[2].split("forward-zone:\n") == [
        '    name: "."\n    forward-first: no\n    forward-tls-upstream: yes\n'
        '    forward-addr: "192.0.2.1@853#a.example"\n    forward-addr: "2001:db8::1@8853#b.example"\n',
        '    name: "corp.test."\n    forward-first: no\n    forward-addr: "192.0.2.2@53"\n',
    ]
    without = unbound_text((), "nobody", (), {})
    assert '    local-zone: "." refuse\n' in without
    assert "forward-zone" not in without
    with pytest.raises(Unwritable):
        unbound_text((), "nobody", (evolve(tls, tls_name='a.example"\n    forward-first: yes #'),), {})


def test_resolver_on_full_disk_stops_with_an_error(tmp_path: Path) -> None:
    policy = load(MINIMAL.encode())[0].uplink["wan"]
    assert policy.resolver is not None
    log_lines: list[str] = []
    job = ResolverJob("wan", policy, policy.resolver, tmp_path / "gone", log_lines.append)
    with ServerDiscovery(DiscoveryTarget("wan", policy, policy.resolver), log_lines.append, tmp_path) as learner:
        with pytest.raises(ResolverError, match=r"gone/servers.*: No such file or directory; stopped"):
            _refresh(job, learner, ServersFile(job.servers_file))
    assert log_lines == []


class RefusedMarking:
    """Marking of sockets that the kernel refuses in the child."""

    def before_exec(self) -> None:
        raise PermissionError("no cgroup")


@pytest.mark.parametrize("program", ["/bin/true", "/nonexistent/dnsmasq"])
def test_resolver_that_cannot_start_is_one_error(tmp_path: Path, program: str) -> None:
    policy = load(MINIMAL.encode())[0].uplink["wan"]
    assert policy.resolver is not None
    job = ResolverJob("wan", policy, policy.resolver, tmp_path, print)
    with pytest.raises(ResolverError, match=r"^dnsmasq cannot be started with the mark by a seccomp filter: "):
        _start(job, [program], RefusedMarking())  # type: ignore[arg-type]


def test_file_watch_reports_write_creation_and_removal(tmp_path: Path) -> None:
    folder = tmp_path / "var/lib"
    watched = FilePatternWatch([folder / "dhclient*.leases", tmp_path / "run/x"])
    try:
        assert not watched.read()
        folder.mkdir(parents=True)  # it was not there
        assert watched.read()
        (folder / "dhclient.leases.tmp").touch()
        (folder / "other").write_text("x")
        assert not watched.read()
        (folder / "dhclient.leases.tmp").replace(folder / "dhclient.leases")
        assert watched.read()
        with (folder / "dhclient.leases").open("a") as kept_open:
            assert not watched.read()
            kept_open.write("lease")
            kept_open.flush()
            assert watched.read()
        assert watched.read()
        (folder / "dhclient.leases").unlink()
        assert watched.read()
        folder.rename(tmp_path / "elsewhere")
        assert watched.read()
        folder.mkdir()
        assert watched.read()
        (folder / "dhclient.leases").touch()
        assert watched.read()
        assert not watched.read()
    finally:
        watched.close()
