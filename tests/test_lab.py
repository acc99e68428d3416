"""Lab of the tests: it shows every leak, it shows none under the reference guard, and it leaves nothing."""

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import addresses as at
from tests.lab import dns_message, frames, leak_probes, ra_client
from tests.lab.frames import classify
from tests.lab.limits import limit
from tests.lab.netns import Namespace, wait_until
from tests.lab.topology import Lab, missing

needs_lab = pytest.mark.skipif(bool(missing()), reason=f"a lab needs {', '.join(missing())}")

SERVICE_GID = 777
EXEMPT = """
        IPV4 udp sport 68 udp dport 67 accept
        IPV4 meta l4proto igmp accept
        icmpv6 type { 133, 135, 136 } ip6 hoplimit 255 accept
        icmpv6 type { 130, 131, 132, 143 } ip6 saddr fe80::/10 accept
        counter drop"""
GUARD = f"""
table inet reference {{
    chain guard {{
        type filter hook postrouting priority 10000; policy accept;
        oifname != "{at.WAN}" accept
        meta mark & 1 == 1 accept
        {EXEMPT.replace("IPV4", "meta nfproto ipv4")}
    }}
}}
table netdev reference {{
    chain guard {{
        type filter hook egress devices = {{ DEVICES }} priority 0; policy accept;
        meta mark & 1 == 1 accept
        ether type arp accept
        {EXEMPT.replace("IPV4", "ether type ip")}
    }}
}}
"""
NO_GUARD = "delete table inet reference\ndelete table netdev reference\n"
COUNT = f"""
table inet count {{
    counter service {{ }}
    chain count {{
        type filter hook output priority 0; policy accept;
        meta skgid {SERVICE_GID} meta mark 1 udp dport {at.FASTD_PORT} counter name service
    }}
}}
"""
POLICY_ROUTING = ("rule add fwmark 1/1 lookup 1 priority 100", "-6 rule add fwmark 1/1 lookup 1 priority 100")


def guard(lab: Lab) -> str:
    return GUARD.replace("DEVICES", ", ".join(sorted({at.WAN, lab.wan_port})))


def names(sents: set[leak_probes.Sent]) -> list[str]:
    return sorted(str(sent.probe) for sent in sents)


def supported(sents: list[leak_probes.Sent]) -> set[leak_probes.Sent]:
    return {sent for sent in sents if not sent.unsupported}


@pytest.fixture(scope="module", params=[False, True], ids=["port", "bridge"])
def open_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Yield a lab with the WAN's routes in the main table: only a guard keeps a packet from leaving."""
    with Lab(wan="main", bridge=request.param) as lab:
        yield lab


@pytest.fixture(scope="module")
def table_lab() -> Iterator[Lab]:
    """Yield a lab with the WAN's routes in table 1, and ip rules that lead marked packets there."""
    with Lab(groups={"service": SERVICE_GID}) as lab:
        lab.node.ip(*POLICY_ROUTING)
        yield lab


# Frames, without a lab

ETHER = bytes(6) + bytes.fromhex("02005e005302")
UDP4 = bytes.fromhex("0800 4500 0020 0000 0000 4011 0000 c0000202 c633640a 0044 0043 000c 0000 61626364")
MLD = bytes.fromhex("86dd 60000000 0024 00 01") + bytes(32) + bytes.fromhex("3a00050200000000 8f00") + bytes(26)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (UDP4, "dhcpv4"),
        (UDP4[:22] + b"\0\x45" + UDP4[24:], "udp"),
        (UDP4[:11] + b"\x06" + UDP4[12:], "other-ip"),  # TCP, but cut short
        (UDP4[:11] + b"\x02" + UDP4[12:], "igmp"),
        (UDP4[:11] + b"\xfd" + UDP4[12:], "other-ip"),
        (MLD, "mld"),
        (MLD[:50] + b"\x86" + MLD[51:], "router-advertisement"),
        (b"\x08\x06" + bytes(28), "arp"),
        (b"\x81\0\0\x05" + UDP4, "other-ethertype"),
        (b"\x88\xb5" + bytes(46), "other-ethertype"),
        (b"\x08\0", "other-ip"),
    ],
)
def test_frame_is_classified(body: bytes, word: str) -> None:
    assert classify(frames.parse(ETHER + body)) == word


def test_frame_fields_are_parsed() -> None:
    assert frames.parse(ETHER + UDP4 + bytes(14)) == frames.Frame(
        0x0800, "02:00:5e:00:53:02", "192.0.2.2", "198.51.100.10", 17, 68, 67, None, b"abcd", 60
    )


def test_later_fragment_has_no_ports() -> None:
    frame = frames.parse(ETHER + UDP4[:8] + b"\0\x10" + UDP4[10:])
    assert (frame.sport, classify(frame), frame.payload[-4:]) == (None, "udp", b"abcd")


def test_truncated_ethernet_header_is_refused() -> None:
    with pytest.raises(ValueError, match="14 bytes"):
        frames.parse(b"abc")


def test_router_advertisement_is_parsed() -> None:
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 1, 1, 0) + bytes.fromhex("20010db8000100000000000000000000")
    rdnss = struct.pack("!BBHI", 25, 3, 0, 9) + bytes.fromhex("20010db8000100000000000000000001")
    seen = ra_client.parse(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix + rdnss, "fe80::1")
    assert seen == ra_client.Advertisement("fe80::1", 1800, ("2001:db8:1::/64",), ("2001:db8:1::1",))
    assert ra_client.slaac(seen.prefixes[0], "02:00:5e:00:53:02") == "2001:db8:1::5eff:fe00:5302"


def test_dns_answer_is_parsed() -> None:
    question = dns_message.query("who.example", 4, 7)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + bytes([192, 0, 2, 200])
    answer = struct.pack("!6H", 7, 0x8180, 1, 1, 0, 0) + question[12:] + record
    assert dns_message.addresses(answer, 4, 7) == ["192.0.2.200"]
    assert dns_message.addresses(answer, 4, 8) == dns_message.addresses(answer[:-2], 4, 7) == "garbled"
    assert dns_message.addresses(answer[:2] + b"\x81\x83" + answer[4:], 4, 7) == "nxdomain"


# Every probe, with and without a guard


@needs_lab
def test_every_probe_leaves_without_a_guard(open_lab: Lab) -> None:
    sents = supported(leak_probes.send_all(open_lab, gid=SERVICE_GID))
    assert names(sents - leak_probes.sightings(open_lab.wan, list(sents), 3)) == []
    assert {sent.probe.kind for sent in sents} >= leak_probes.KINDS.keys() - {"udplite"}


@needs_lab
def test_only_marked_probes_pass_the_reference_guard(open_lab: Lab) -> None:
    open_lab.node.nft(guard(open_lab))
    open_lab.wan.drain()
    try:
        sents = supported(leak_probes.send_all(open_lab, gid=SERVICE_GID))
        seen = leak_probes.sightings(open_lab.wan, list(sents), 1)
    finally:
        open_lab.node.nft(NO_GUARD)
    assert names(seen) == names({sent for sent in sents if sent.probe.marked})
    assert open_lab.wan.dropped == 0


@needs_lab
def test_probe_leaves_with_exactly_its_needed_routes(table_lab: Lab) -> None:
    sents = list(supported(leak_probes.send_all(table_lab, gid=SERVICE_GID)))
    expected = {sent for sent in sents if sent.probe.marked or sent.probe.needs == leak_probes.NOTHING}
    seen = leak_probes.sightings(table_lab.wan, sents, 1)
    assert names(seen) == names(expected)


# The daemons


@needs_lab
@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
def test_wan_up_restores_lease_and_advertisement(table_lab: Lab, guarded: bool) -> None:
    if guarded:
        table_lab.node.nft(guard(table_lab))
    try:
        table_lab.wan_down()
        assert table_lab.wan_address(6) is None
        table_lab.wan.drain()
        table_lab.wan_up()
    finally:
        if guarded:
            table_lab.node.nft(NO_GUARD)
    assert table_lab.lease() == f"nameserver {at.HOME[4]}\nnameserver {at.HOME[6]}\n"
    routes = [table_lab.node.run(["ip", f"-{family}", "route", "show", "table", "1"]).stdout for family in (4, 6)]
    assert [
        bool(re.search(f"default via {gateway}", text))
        for gateway, text in zip((at.HOME[4], at.HOME_LINK_LOCAL), routes, strict=True)
    ] == [True, True]
    assert at.WAN not in table_lab.node.run(["ip", "route"]).stdout
    assert {classify(frame) for frame in table_lab.wan.drain()} <= {"arp", "dhcpv4", "ndp", "mld", "igmp"}


@needs_lab
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", [4, 6])
def test_dns_answers_depend_on_the_server(open_lab: Lab, family: int, transport: int, tcp: bool) -> None:
    def ask(server: str, name: str) -> list[str] | str:
        return open_lab.resolve(name, family, server, tcp, gid=SERVICE_GID, uid=65534)

    local = {4: "127.0.0.1", 6: "::1"}[transport]
    assert [ask(server, at.WHO) for server in (at.HOME[transport], at.GATEWAY[transport], local)] == [
        [at.WHO_AT_HOME[family]],
        [at.WHO_IN_MESH[family]],
        [at.WHO_IN_MESH[family]],
    ]
    assert [ask(at.HOME[transport], at.VPN), ask(local, at.VPN)] == [[at.SERVER[family]], "nxdomain"]


@needs_lab
@pytest.mark.parametrize("family", [4, 6])
def test_fastd_connects_by_its_mark(family: int) -> None:
    with Lab(groups={"service": SERVICE_GID}) as lab:
        lab.node.nft(guard(lab))
        lab.start_fastd_client(SERVICE_GID, mark=0, remote=at.SERVER[family])
        lab.node.ip(*POLICY_ROUTING)
        assert lab.mesh_sniffer.wait_for(lambda frame: frame.dport == at.FASTD_PORT, 5)
    with Lab(groups={"service": SERVICE_GID}) as lab:
        lab.node.nft(guard(lab) + COUNT)
        lab.node.ip(*POLICY_ROUTING)
        lab.start_fastd_client(SERVICE_GID, remote=at.SERVER[family])
        (peer,) = lab.wait_for_fastd().values()
        assert (lab.wan_address(family) or "?") in peer["address"]
        assert re.search(r"packets [1-9]", lab.node.run(["nft", "list", "counters"]).stdout)


# Nothing stays

HOLD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tests.lab.topology import Lab
with Lab() as lab:
    lab.start_fastd_client(777)
    spaces = (lab.home, lab.neighbour, lab.server, lab.mesh, lab.client, lab.node)
    print(*(os.stat(f"/proc/{space.pid}/ns/{kind}").st_ino for space in spaces for kind in ("net", "mnt")), flush=True)
    sys.stdin.read()
"""


def inhabitants(namespaces: set[int]) -> list[str]:
    """Return the processes (without zombies) in one of these network or mount namespaces."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if {(process / "ns" / kind).stat().st_ino for kind in ("net", "mnt")} & namespaces:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@needs_lab
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "int", "term"])
def test_killed_lab_leaves_nothing(how: signal.Signals) -> None:
    def machine() -> tuple[str, ...]:
        listing = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        return listing, Path("/proc/self/mounts").read_text(), *sorted(path.name for path in Path("/run").iterdir())

    before = machine()
    command = [sys.executable, "-c", HOLD, str(Path(__file__).parents[1])]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    # A shell that runs the tests in its background has SIGINT ignored, and that is inherited.
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True, **heeding) as holder:
        assert holder.stdout
        inside = {int(number) for number in holder.stdout.readline().split()}
        assert len(inside) == 12
        assert len(inhabitants(inside)) >= 12  # six holders, three dnsmasq, two fastd, the DHCP client
        os.kill(holder.pid, how)
        holder.wait(limit(10))
    wait_until(lambda: not inhabitants(inside), 20, "the end of every process of the lab")
    if lsns := shutil.which("lsns"):
        listing = subprocess.run([lsns, "-n", "-o", "NS"], capture_output=True, text=True, check=True).stdout
        assert inside.isdisjoint(map(int, listing.split()))
    assert machine() == before


@needs_lab
def test_namespace_call_returns_result_or_error() -> None:
    with Namespace("one") as space:
        assert space.call(lambda: (os.getuid(), os.getgid(), os.getgroups()), uid=65534, gid=7) == (65534, 7, [])
        with pytest.raises(ZeroDivisionError):
            space.call(lambda: 1 // 0)
        with pytest.raises(TimeoutError):
            space.call(time.sleep, 5, timeout=0.1)
        with pytest.raises(subprocess.CalledProcessError) as caught:
            space.ip("link set nowhere up")
        assert "nowhere" in caught.value.stderr
    space.close()
