"""Real DHCP clients, router advertisements and their files: the resolver learns servers from each of them."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import (
    ENVIRONMENT,
    PROGRAM,
    ROOT,
    SERVICE_GID,
    Guarded,
    gluon,
    guarded_lab,
    needs_readers,
    watching,
)
from tests.lab import addresses as at
from tests.lab import ra_client
from tests.lab.daemons import tool
from tests.lab.limits import brief, limit
from tests.lab.netns import Namespace, veth, wait_until
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab

pytestmark = pytest.mark.slow

DEVICE = "wan0"
ANNOUNCER = 4712  # the group that the announcements of the tests are sent by
FOUR, SIX = ["192.0.2.1", "192.0.2.53"], ["2001:db8:1::1", "2001:db8:1::53"]
POLICY = """
name = "learner"
inside = []
[uplink.wan]
devices = ["wan0"]
mark = "0x1/0x1"
table = 1
exempt = ["ndp", "dhcpv4", "dhcpv6"]
[uplink.wan.resolver]
sources = ["{source}"]
[service.vpn]
uplink = "wan"
group = 800
"""


class Home:
    """Router with DHCP, DHCPv6 and router advertisements, all by dnsmasq, and a machine without a guard."""

    def __init__(self, router: Namespace, machine: Namespace) -> None:
        self.router, self.machine = router, machine

    def show(self, source: str) -> dict:
        """Return the output of `resolver --show` for the uplink."""
        self.machine.outside("/run/policy.toml").write_text(POLICY.format(source=source))
        done = self.machine.run([PROGRAM, "resolver", "--show", "--json", "/run/policy.toml"], env=ENVIRONMENT)
        found: dict = json.loads(done.stdout)["wan"]
        return found

    def servers(self, source: str) -> list[str]:
        found: list[str] = self.show(source)["servers"]
        return found

    def folder(self, path: str) -> None:
        """Put an empty directory of the machine in place of a shared directory."""
        own = f"/run/folders{path}"
        self.machine.outside(own).mkdir(parents=True)
        self.machine.run(["mount", "--bind", own, path])

    def script(self, name: str, text: str) -> str:
        path = self.machine.outside(f"/run/{name}")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return f"/run/{name}"


@pytest.fixture
def home() -> Iterator[Home]:
    with Namespace("router") as router, Namespace("machine") as machine:
        veth(router, "lan", machine, DEVICE)
        router.ip("addr add 192.0.2.1/24 dev lan", "addr add 2001:db8:1::1/64 dev lan", "addr add fe80::1/64 dev lan")
        six = ",".join(f"[{one}]" for one in SIX)
        router.popen(
            ["dnsmasq", "--conf-file=/dev/null", "-k", "--pid-file", "--user=root", "--group=root", "--interface=lan",
             "--bind-interfaces", "--no-resolv", "--no-hosts", "--no-ping", "--dhcp-authoritative",
             "--dhcp-leasefile=/run/leases", "--dhcp-range=192.0.2.100,192.0.2.150,1h", f"--dhcp-option=6,{','.join(FOUR)}",
             "--enable-ra", "--dhcp-range=2001:db8:1::100,2001:db8:1::200,64,1h", f"--dhcp-option=option6:dns-server,{six}"]
        )  # fmt: skip
        wait_until(lambda: "fe80" in machine.run(["ip", "-6", "addr", "show", "dev", DEVICE]).stdout, 5, "an address")
        yield Home(router, machine)


def needs(*programs: str) -> None:
    for one in programs:
        assert Path(one).exists() or tool(one), f"{one} is missing: run script/setup"


# Programs


def test_resolver_reads_lease_of_dhclient(home: Home) -> None:
    needs("dhclient")
    home.folder("/var/lib/dhcp")
    nothing = home.script("nothing", "exit 0")
    assert home.servers("dhclient") == []
    for family in ("-4", "-6"):
        files = ["-pf", f"/run/pid{family}", "-lf", f"/var/lib/dhcp/dhclient{family}.{DEVICE}.leases"]
        home.machine.run(["dhclient", family, "-1", "-sf", nothing, *files, DEVICE], timeout=40)
    assert sorted(home.servers("dhclient")) == sorted(FOUR + SIX)
    home.machine.run(["dhclient", "-4", "-r", "-sf", nothing, "-pf", "/run/pid-4",
                      "-lf", f"/var/lib/dhcp/dhclient-4.{DEVICE}.leases", DEVICE], timeout=40)  # fmt: skip
    assert home.servers("dhclient") == SIX


def test_resolver_reads_lease_of_dhcpcd(home: Home) -> None:
    needs("dhcpcd")
    home.folder("/var/lib/dhcpcd")
    options = "option domain_name_servers, dhcp6_name_servers"  # as the file that it comes with asks for
    home.machine.outside("/run/dhcpcd.conf").write_text(f"{options}\nnoarp\nscript /bin/true\n")
    home.machine.popen(["dhcpcd", "-B", "-f", "/run/dhcpcd.conf", DEVICE])
    wait_until(lambda: sorted(home.servers("dhcpcd")) == sorted(FOUR + SIX), 20, "both leases")


def test_resolver_reads_lease_of_udhcpc_hook(home: Home) -> None:
    client = home.machine.popen([*([own] if (own := tool("udhcpc")) else ["busybox", "udhcpc"]), "-f", "-i", DEVICE,
                                 "-s", str(ROOT / "hooks/udhcpc"), "-t", "20", "-T", "1"])  # fmt: skip
    wait_until(lambda: home.servers("udhcpc") == FOUR, 15, "a lease")
    client.send_signal(signal.SIGUSR2)  # release
    wait_until(lambda: home.servers("udhcpc") == [], 5, "the end of the lease")
    (folder,) = home.machine.outside("/run/nftpolicy").iterdir()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("device", ["", "../x", "a/b", ".."])
def test_udhcpc_hook_writes_lease_file_only(home: Home, device: str) -> None:
    hook = str(ROOT / "hooks/udhcpc")
    for event in ("bound", "renew", "deconfig", "nonsense"):
        home.machine.run([hook, event], env={"interface": device, "dns": "192.0.2.1"})
    assert not home.machine.outside("/run/nftpolicy").exists()


@pytest.mark.parametrize("use", ["yes", "no"])
def test_resolver_reads_lease_of_networkd(home: Home, use: str) -> None:
    """With UseDNS=no its file still has the servers of DHCPv4; those of IPv6 come from `ra`."""
    networkd = "/lib/systemd/systemd-networkd"
    needs(networkd)
    off = "".join(f"[{one}]\nUseDNS={use}\n" for one in ("DHCPv4", "DHCPv6", "IPv6AcceptRA"))
    user = home.machine.run(["id", "-u", "systemd-network"]).stdout.strip()
    for folder in ("/run/systemd/network", "/run/systemd/netif"):
        home.machine.outside(folder).mkdir(parents=True)
    home.machine.run(["chown", f"{user}:systemd-network", "/run/systemd/netif"])
    home.machine.outside("/run/systemd/network/10-wan.network").write_text(
        f"[Match]\nName={DEVICE}\n[Network]\nDHCP=yes\n{off}"
    )
    home.machine.run(["mount", "--bind", "/sys", "/sys"])  # read-only, so that no udevd is waited for
    home.machine.run(["mount", "-o", "remount,ro,bind", "/sys"])
    home.machine.popen([networkd])
    expected = sorted(FOUR + SIX) if use == "yes" else FOUR
    wait_until(lambda: sorted(home.servers("networkd")) == expected, 20, "the leases")
    checked = home.machine.run([PROGRAM, "check", "/run/policy.toml"], env=ENVIRONMENT).stderr
    assert (f"10-wan.network: systemd-resolved, if it runs, gets the DNS servers that {DEVICE}" in checked) == (
        use == "yes"
    )
    if use == "no":
        assert home.servers("ra") == SIX


# Router advertisements


def test_router_solicitation_works_as_root_only(home: Home) -> None:
    """The kernel takes no advertisements here (accept_ra 0), and nftpolicy receives them all the same."""
    assert home.machine.run(["cat", f"/proc/sys/net/ipv6/conf/{DEVICE}/accept_ra"]).stdout == "0\n"
    with Sniffer(home.router, "lan") as seen:
        assert home.servers("ra") == SIX
        assert seen.wait_for(lambda frame: frame.icmp_type == 133, 5)
    needs_readers()
    done = home.machine.run([PROGRAM, "resolver", "--show", "/run/policy.toml"], env=ENVIRONMENT, uid=65534)
    assert "only root can receive router advertisements" in done.stdout


def test_router_solicitation_without_exemption_is_not_sent(home: Home) -> None:
    policy = POLICY.format(source="ra").replace('exempt = ["ndp", "dhcpv4", "dhcpv6"]', "exempt = []")
    home.machine.outside("/run/policy.toml").write_text(policy)
    with Sniffer(home.router, "lan") as seen:
        home.machine.run([PROGRAM, "resolver", "--show", "/run/policy.toml"], env=ENVIRONMENT)
        assert [frame for frame in seen.frames() if frame.icmp_type == 133] == []
    assert (
        "no router solicitation can be sent"
        in home.machine.run([PROGRAM, "check", "/run/policy.toml"], env=ENVIRONMENT).stderr
    )


def by_ra(lab: Lab) -> str:
    text = gluon(lab)
    assert text.count("\nlease ") == 1
    return "\n".join('sources = ["ra"]' if line.startswith("lease ") else line for line in text.split("\n"))


@pytest.fixture(scope="module")
def hearing() -> Iterator[Guarded]:
    """The shipped policy with a resolver that learns from router advertisements."""
    with guarded_lab(by_ra, resolver=True) as made:
        yield made


def ask(made: Guarded) -> list[str] | str:
    return made.lab.resolve(at.WHO, 4, "127.0.0.1", gid=SERVICE_GID, seconds=0.5)


def announce(made: Guarded, seconds: int, *servers: str, hops: int = 255) -> None:
    made.lab.home.call(
        lambda: ra_client.advertise("br-lan", servers=servers, servers_for=seconds, hops=hops),
        gid=ANNOUNCER,
        keep_caps=True,
    )


@contextlib.contextmanager
def without_the_routers_own(made: Guarded) -> Iterator[None]:
    """Drop the advertisements that the home's router repeats, at times of its own; those of `announce` pass."""
    chain = "chain c { type filter hook output priority 0; icmpv6 type nd-router-advert meta skgid 0 drop; }"
    made.lab.home.nft(f"table ip6 own {{ {chain}; }}")
    try:
        yield
    finally:
        made.lab.home.nft("delete table ip6 own")


def test_resolver_follows_router_advertisements(hearing: Guarded) -> None:
    with watching(hearing.lab) as watch:
        wait_until(lambda: ask(hearing) == [at.WHO_AT_HOME[4]], 10, "the router's answer to a solicitation")
        with without_the_routers_own(hearing):
            announce(hearing, 0, at.HOME[6])
            wait_until(lambda: ask(hearing) == "refused", 10, "the end of the only server")
            announce(hearing, 600, at.HOME[6], hops=64)  # from afar, which no router's is
            life, announced = round(brief(3)), time.monotonic()
            announce(hearing, life, at.HOME_LINK_LOCAL, "ff02::1", "::1", at.NODE_MESH[6])
            wait_until(lambda: ask(hearing) == [at.WHO_AT_HOME[4]], 10, "a server with a short life")
            wait_until(lambda: ask(hearing) == "refused", 10, "its end")
            assert time.monotonic() - announced > life - 0.5
        log = hearing.resolver_log()
        assert [log.count(f"{word!r} left out") for word in ("ff02::1", "::1", at.NODE_MESH[6])] == [1, 1, 1]
        assert f"servers of uplink wan: {at.HOME_LINK_LOCAL}%{at.WAN}\n" in log
        assert (watch.unmarked, watch.stray) == (0, 0)


def test_resolver_forgets_servers_after_link_loss(hearing: Guarded) -> None:
    announce(hearing, 600, at.HOME[6])
    wait_until(lambda: ask(hearing) == [at.WHO_AT_HOME[4]], 10, "a server")
    before = hearing.resolver_log().count("none yet")
    hearing.lab.wan_down()
    wait_until(lambda: hearing.resolver_log().count("none yet") > before, 10, "what was heard to be forgotten")
    hearing.lab.wan_up()
    wait_until(lambda: ask(hearing) == [at.WHO_AT_HOME[4]], 15, "the router to be asked again")


# The machine's own resolver


def test_watch_reports_uplink_servers_in_resolv_conf(hearing: Guarded) -> None:
    resolv = hearing.lab.node.outside("/etc/resolv.conf")
    good = resolv.read_text()
    log = hearing.lab.node.outside("/run/lab/watch.log")
    lease = hearing.lab.node.outside("/run/nftpolicy/udhcpc")
    lease.mkdir(parents=True)
    (lease / at.WAN).write_text(f"nameserver {at.HOME[4]}\n")
    with log.open("w") as said:
        watch = hearing.lab.node.popen([PROGRAM, "watch", "--json"], env=ENVIRONMENT, stderr=said)
    try:
        wait_until(lambda: '"event": "enforcing"' in log.read_text(), 20, "the watch")
        assert "resolv.conf" not in hearing.nftpolicy("check", "/run/lab/policy.toml").stderr
        resolv.write_text(f"{good}nameserver {at.HOME[4]}\n")
        wait_until(lambda: leaks(log.read_text()) == ["appeared"], 20, "the leak")
        place = "/etc/resolv.conf:3"
        for command in ("check", "status"):
            done = hearing.nftpolicy(command, "/run/lab/policy.toml")
            assert f"{place}: {at.HOME[4]} is a DNS server of uplink 'wan'; name" in done.stderr
        shown = json.loads(hearing.nftpolicy("status", "--json", "/run/lab/policy.toml").stdout)
        assert [one.partition(": ")[0] for one in shown["resolver_leaks"]] == [place]
        resolv.write_text(good)
        wait_until(lambda: leaks(log.read_text()) == ["appeared", "gone"], 20, "its end")
        assert "resolv.conf" not in hearing.nftpolicy("status", "/run/lab/policy.toml").stderr
    finally:
        resolv.write_text(good)
        watch.send_signal(signal.SIGTERM)
        watch.wait(limit(10))


def leaks(log: str) -> list[str]:
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [one["state"] for one in events if one["event"] == "resolver-leak"]
