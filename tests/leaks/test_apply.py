"""Apply and release: they change their own objects, once, and leave no trace."""

import contextlib
import errno
import fcntl
import json
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import GLUON, POLICY, STATE, Guarded, gluon, needs_readers, replaced, run_probes
from tests.lab import addresses as at
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab

FOREIGN = """
table inet foreign {
    set friends {
        type ipv4_addr
        elements = { 192.0.2.7 }
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ip saddr @friends accept
    }
    chain post {
        type nat hook postrouting priority 100; policy accept;
        oifname "bat0" meta mark 0x77 masquerade
    }
}
table ip nftpolicy-of-somebody {
    chain out {
        type filter hook output priority 0; policy accept;
    }
}
"""
FOREIGN_ROUTING = (
    "rule add priority 77 fwmark 0x700/0x700 lookup 77",
    "rule add priority 32000 from 203.0.113.0/25 lookup main",
    "-6 rule add priority 77 fwmark 0x700/0x700 lookup 77",
    f"route add 198.18.0.0/15 via {at.GATEWAY[4]} dev {at.MESH} table 77",
    f"route add 198.18.0.0/15 via {at.HOME[4]} dev {at.WAN} table 1",
    f"-6 route add 2001:db8:77::/48 via {at.GATEWAY[6]} dev {at.MESH} table 77",
)


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """A node with foreign rules of all kinds, and no policy yet."""
    with Lab(bridge=True) as lab:
        lab.node.nft(FOREIGN)
        lab.node.ip(*FOREIGN_ROUTING)
        lab.node.sysctl("net.ipv4.fwmark_reflect", 0)
        lab.node.sysctl("net/ipv4/conf/br-wan/accept_redirects", 1)
        yield Guarded(lab, gluon(lab))


@pytest.fixture
def fresh(made: Guarded) -> Iterator[Guarded]:
    """The same, nothing applied before and after each test."""
    yield made
    made.file.write_text(gluon(made.lab))
    made.release()


def sysctls() -> dict[str, str]:
    found = {}
    for family in ("ipv4", "ipv6"):
        for path in Path("/proc/sys/net", family).rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file():
                    found[str(path)] = path.read_text()
    return {path: text for path, text in found.items() if "/neigh/" not in path and "stable_secret" not in path}


def everything(made: Guarded) -> dict[str, object]:
    """Return all state of the node that a packet can meet, as text."""

    def said(*argv: str) -> list[str]:
        return made.lab.node.run(argv).stdout.splitlines()

    return {
        "nft": said("nft", "-s", "list", "ruleset"),
        "rules": said("ip", "rule") + said("ip", "-6", "rule"),
        "routes": sorted(said("ip", "route", "show", "table", "all")),
        "routes6": sorted(said("ip", "-6", "route", "show", "table", "all")),
        "links": re.findall(r"^\d+: (\S+)", "\n".join(said("ip", "link")), re.MULTILINE),
        "sysctls": made.lab.node.call(sysctls),
    }


class ChangeListener:
    """Receives every change of rules, routes and nft in a namespace."""

    def __init__(self, made: Guarded) -> None:
        route, netfilter = 0, 12
        self._sockets = [made.lab.node.socket(socket.AF_NETLINK, socket.SOCK_RAW, kind) for kind in (route, netfilter)]
        groups = (0x40 | 0x80 | 0x400 | 1 << 18, 1 << 6)  # routes and rules of both families; nf_tables
        for one, mask in zip(self._sockets, groups, strict=True):
            one.bind((0, mask))
            one.setblocking(False)

    def __enter__(self) -> "ChangeListener":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close()

    def messages(self) -> int:
        """Return the messages since the last call; a change has sent its message when it returns."""
        count = 0
        for one in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while one.recv(1 << 20):
                    count += 1
        return count


def line_of(made: Guarded, key: str) -> int:
    """Return the line of a key in the policy."""
    return 1 + next(n for n, line in enumerate(made.file.read_text().splitlines()) if re.match(rf"{key}\s*=", line))


def generation(made: Guarded) -> int:
    """Return the number that the kernel increments with every nft transaction."""
    with made.lab.node.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as channel:
        channel.send(struct.pack("=IHHIIBBH", 20, 10 << 8 | 16, 1, 1, 0, 0, 0, 0))  # NFT_MSG_GETGEN
        answer = channel.recv(4096)
    return int(struct.unpack("!I", answer[24:28])[0])


def test_second_apply_changes_nothing(fresh: Guarded) -> None:
    with ChangeListener(fresh) as ear:
        first = generation(fresh)
        assert "applied in" in fresh.apply()
        assert ear.messages() > 5, "inconclusive"
        assert generation(fresh) == first + 1, "the guard comes in one transaction"
        run_probes(fresh.lab)
        ear.messages()
        before, now, counted = everything(fresh), generation(fresh), fresh.counters()
        assert sum(counted.values()) > 0, "inconclusive"
        assert "nothing to change" in fresh.apply()
        assert (ear.messages(), generation(fresh)) == (0, now)
        assert everything(fresh) == before
        after = fresh.counters()
        assert [name for name in counted if after[name] < counted[name]] == []


def test_release_restores_previous_state(fresh: Guarded) -> None:
    before = everything(fresh)
    fresh.apply()
    applied = everything(fresh)
    for part in ("nft", "rules", "routes", "routes6", "sysctls"):
        assert applied[part] != before[part], f"inconclusive: {part}"
    assert "released in" in fresh.release()
    assert everything(fresh) == before
    assert "nothing to release" in fresh.release()
    assert everything(fresh) == before


def test_apply_and_release_leave_foreign_objects(fresh: Guarded) -> None:
    def foreign() -> list[object]:
        found = everything(fresh)
        tables = fresh.lab.node.run(["nft", "-a", "list", "table", "inet", "foreign"]).stdout  # with handles
        return [
            tables,
            fresh.lab.node.run(["nft", "-a", "list", "table", "ip", "nftpolicy-of-somebody"]).stdout,
            [line for line in found["rules"] if "proto" not in line],  # type: ignore[attr-defined]
            [line for line in found["routes"] + found["routes6"] if "proto 78" not in line],  # type: ignore[operator]
        ]

    before = foreign()
    fresh.apply()
    assert foreign() == before
    fresh.file.write_text(gluon(fresh.lab).replace("table   = 1", "table   = 7"))
    fresh.apply()
    *others, routes = foreign()
    # Connected routes are copied into the uplink's table; the copies keep the protocol of their program.
    copies = [line for line in routes if " table 7 " in line]
    assert [line for line in routes if line not in copies] == before[3]
    assert {line.replace(" table 7 ", " table 1 ") for line in copies} <= set(before[3])
    assert others == before[:3]
    fresh.release()
    assert foreign() == before


def test_release_after_two_policies_restores_first_values(fresh: Guarded) -> None:
    before = everything(fresh)
    fresh.apply()
    other = gluon(fresh.lab).replace('"br-wan"', '"usb0"').replace("table   = 1", "table   = 7")
    fresh.lab.node.ip("link add usb0 type veth peer name usb1", "link set usb0 up")
    try:
        fresh.file.write_text(other)
        fresh.apply()
        fresh.release()
    finally:
        fresh.lab.node.ip("link del usb0")
    assert everything(fresh) == before


def test_apply_dry_run_changes_nothing(fresh: Guarded) -> None:
    before = everything(fresh)
    with ChangeListener(fresh) as ear:
        shown = fresh.nftpolicy("apply", "--dry-run", POLICY).stdout
        assert (ear.messages(), everything(fresh)) == (0, before)
        assert "nft transaction:" in shown
        assert re.search(r"ip -6 rule add .*fwmark 0x1/0x1", shown)
        fresh.apply()
        applied = everything(fresh)
        ear.messages()
        assert "nothing to change" in fresh.nftpolicy("apply", "--dry-run", POLICY).stdout
        assert "rule delete" in fresh.nftpolicy("release", "--dry-run", POLICY).stdout
        assert (ear.messages(), everything(fresh)) == (0, applied)


@pytest.mark.parametrize("family", [4, 6])
def test_apply_step_refused_by_kernel_is_undone(fresh: Guarded, family: int) -> None:
    foreign = f"-{family} route add unreachable default table 1 metric 4294967294"
    fresh.lab.node.ip(foreign)
    try:
        before = everything(fresh)
        done = fresh.nftpolicy("apply", POLICY, check=False)
        assert (done.returncode, "applied" in done.stdout) == (5, False)
        said = rf"{POLICY}:{line_of(fresh, 'table')}: uplink\.wan\.table: .*-{family} route.*File exists"
        assert re.search(said, done.stderr), done.stderr
        assert "the kernel's state is as it was before" in done.stderr
        assert everything(fresh) == before
    finally:
        fresh.lab.node.ip(foreign.replace(" add ", " del "))


def test_apply_beside_equal_foreign_rule_succeeds(fresh: Guarded) -> None:
    for family in (4, 6):
        fresh.lab.node.ip(f"-{family} rule add priority 510 fwmark 1/1 lookup 1")
    try:
        before = everything(fresh)
        fresh.apply()
        assert fresh.nftpolicy("status", check=False).returncode == 0
        fresh.release()
        assert everything(fresh) == before
    finally:
        for family in (4, 6):
            fresh.lab.node.ip(f"-{family} rule del priority 510")


def test_apply_gateway_on_down_device_names_line(fresh: Guarded) -> None:
    text = gluon(fresh.lab).replace("table   = 1", 'table   = 1\ngateways = ["192.0.2.1", "fe80::1"]')
    fresh.file.write_text(text)
    fresh.lab.wan_down()
    try:
        before = everything(fresh)
        done = fresh.nftpolicy("apply", POLICY, check=False)
        assert done.returncode == 5
        said = rf"{POLICY}:{line_of(fresh, 'gateways')}: uplink\.wan\.gateways: .*192\.0\.2\.1.*down"
        assert re.search(said, done.stderr), done.stderr
        assert everything(fresh) == before
    finally:
        fresh.lab.wan_up()


def test_apply_missing_device_is_refused_or_guarded(fresh: Guarded) -> None:
    """Refused with its line by kernels that want the device first; others hold the guard ready for it."""
    fresh.file.write_text(gluon(fresh.lab).replace('"br-wan"', '"br-wan", "usb0"'))
    before = everything(fresh)
    done = fresh.nftpolicy("apply", POLICY, check=False)
    if done.returncode:
        assert re.search(rf"{POLICY}:{line_of(fresh, 'devices')}: uplink\.wan\.devices: ", done.stderr), done.stderr
        assert everything(fresh) == before
        return
    fresh.lab.node.ip("link add usb0 type veth peer name usb1")
    try:
        fresh.lab.node.ip("link set usb0 up", "link set usb1 up", "addr add 192.0.2.9/32 dev usb0")
        with Sniffer(fresh.lab.node, "usb1") as far:
            assert fresh.lab.node.call(frame, "usb0", b"not for everybody") == "ENOBUFS"
            assert far.wait_for(lambda one: b"not for" in one.payload, 0.2) is None
            fresh.release()
            assert fresh.lab.node.call(frame, "usb0", b"not for everybody") is None
            assert far.wait_for(lambda one: b"not for" in one.payload, 2), "inconclusive"
    finally:
        fresh.lab.node.ip("link del usb0")


def frame(device: str, text: bytes) -> str | None:
    """Send a frame of no known protocol; the name of the errno, if any."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        try:
            made.sendto(bytes(12) + b"\x88\xb5" + text.ljust(46), (device, 0x88B5))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return None


def test_apply_changed_inside_devices_succeeds(fresh: Guarded) -> None:
    fresh.apply()
    for inside in ('["bat0", "br-client", "local-node", "mesh*", "primary*", "vx0"]', '["bat0", "br-c*"]', '["bat*"]'):
        fresh.file.write_text(replaced(GLUON, {"inside": inside, "lease": '"/run/lab/other"'}))
        fresh.apply()
        assert fresh.nftpolicy("status", check=False).returncode == 0


def test_apply_invalid_policy_changes_nothing(fresh: Guarded) -> None:
    fresh.apply()
    before = everything(fresh)
    fresh.file.write_text(gluon(fresh.lab).replace('"arp", ', '"arpp", '))
    done = fresh.nftpolicy("apply", POLICY, check=False)
    assert done.returncode == 2
    assert re.search(rf"{POLICY}:\d+:\d+: uplink\.wan\.exempt.*did you mean 'arp'", done.stderr), done.stderr
    assert everything(fresh) == before


def test_apply_without_root_is_refused(fresh: Guarded) -> None:
    needs_readers()
    before = everything(fresh)
    done = fresh.nftpolicy("apply", POLICY, check=False, uid=65534)
    assert (done.returncode, "root" in done.stderr) == (4, True), done.stderr
    assert everything(fresh) == before


def test_release_while_lock_is_held_is_refused(fresh: Guarded) -> None:
    fresh.apply()
    before = everything(fresh)
    (lock,) = fresh.lab.node.outside(STATE).glob("netns-*/lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = fresh.nftpolicy("release", POLICY, check=False)
    assert (done.returncode, "holds the lock" in done.stderr) == (5, True), done.stderr
    assert everything(fresh) == before


def test_release_needs_no_valid_policy(fresh: Guarded) -> None:
    fresh.nftpolicy("release")
    released = everything(fresh)
    for names in ((), (POLICY,), ("/run/no-such.toml",)):
        fresh.file.write_text(gluon(fresh.lab))
        fresh.apply()
        assert everything(fresh) != released
        fresh.file.write_text("no policy")
        assert fresh.nftpolicy("release", *names).stdout.startswith("gluon-fastd: released in ")
        assert everything(fresh) == released
    fresh.file.write_text(gluon(fresh.lab))
    fresh.apply()
    (saved,) = fresh.lab.node.outside(STATE).glob("netns-*/policy.toml")
    saved.write_text("no policy")
    assert fresh.nftpolicy("release").stdout.startswith("nftpolicy: released in ")
    assert everything(fresh) == released


def test_apply_restores_removed_object(fresh: Guarded) -> None:
    fresh.apply()
    good = everything(fresh)
    damage = (
        lambda: fresh.lab.node.nft("delete table netdev nftpolicy"),
        lambda: fresh.lab.node.nft("insert rule inet nftpolicy guard accept"),
        lambda: fresh.lab.node.nft("add element inet nftpolicy wan.group-anywhere { 4711 }"),
        lambda: fresh.lab.node.nft("delete element inet nftpolicy inside { bat0 }"),
        lambda: fresh.lab.node.ip("-6 rule del priority 515"),
        lambda: fresh.lab.node.ip("route del unreachable default table 1 metric 4294967294"),
        lambda: fresh.lab.node.sysctl("net/ipv4/conf/br-wan/accept_redirects", 1),
    )
    for number, break_it in enumerate(damage):
        break_it()
        seen = fresh.nftpolicy("status", "--json", check=False)
        assert (seen.returncode, json.loads(seen.stdout)["in_force"]) == (1, False), number
        fresh.apply()
        assert everything(fresh) == good, number
    assert fresh.nftpolicy("status", check=False).returncode == 0


def test_lab_policy_equals_shipped_file(made: Guarded) -> None:
    changed = set(gluon(made.lab).splitlines()) ^ set(GLUON.read_text().splitlines())
    assert {line.split()[0] for line in changed} == {"lease"}


def test_apply_missing_file_fails(made: Guarded) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        made.nftpolicy("apply", "/nowhere.toml")
