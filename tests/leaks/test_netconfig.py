"""D10, F1, F2: real programs with the settings of `nftpolicy netconfig`, in a hostile home network.

Each program runs in a namespace of its own; its /etc is an overlay, in which `nftpolicy netconfig --to` has written.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.guarded_lab import PROGRAM
from tests.lab import addresses as at
from tests.lab import daemons
from tests.lab.netns import Namespace, veth, wait_until

pytestmark = pytest.mark.slow

POLICY = f"""
name   = "settings"
inside = ["bat0"]
[uplink.wan]
devices = ["{at.WAN}"]
mark    = "0x1/0x1"
table   = 77
exempt  = ["arp", "dhcpv4", "dhcpv6", "ndp", "mld", "igmp"]
[uplink.wan.resolver]
[service.vpn]
uplink = "wan"
group  = 800
"""
TABLE = "77"
ROOT = "/run/root"  # in the node: what is laid over its /etc
LEASE = "/run/nftpolicy/wan.dns"
HALVES = ("0.0.0.0/1", "128.0.0.0/1")
OPTION_121 = f"--dhcp-option=121,0.0.0.0/1,{at.HOME[4]},128.0.0.0/1,{at.HOME[4]},0.0.0.0/0,{at.HOME[4]}"
PATIENCE = 20


@pytest.fixture
def home() -> Iterator[Namespace]:
    with Namespace("home") as made:
        yield made


@pytest.fixture
def node(home: Namespace) -> Iterator[Namespace]:
    """Machine whose WAN device is still down, at a home with DHCP (option 121 too), RA and DNS."""
    with Namespace("node") as made:
        veth(home, "br-lan", made, at.WAN, at.HOME_MAC, at.NODE_WAN_MAC)
        made.ip(f"link set {at.WAN} down")
        home.ip(*(f"addr add {at.with_length(at.HOME, 'home', family)} dev br-lan" for family in at.FAMILIES))
        home.ip(f"addr add {at.HOME_LINK_LOCAL}/64 dev br-lan nodad")
        home.popen(daemons.dnsmasq_home([OPTION_121]))
        for name in (ROOT, f"{ROOT}/etc", "/run/work"):
            made.outside(name).mkdir()
        made.outside("/run/policy.toml").write_text(POLICY)
        yield made


def prepared(node: Namespace, program: str, settings: bool = True, **files: str) -> None:
    """Write the settings, and more files of /etc; then lay them over /etc."""
    if settings:
        words = ["netconfig", "/run/policy.toml", "--for", program, "--to", ROOT]
        assert f"{ROOT}/etc" in node.run([PROGRAM, *words]).stdout
        assert node.run([PROGRAM, *words]).stdout == "all files are up to date already\n"
    for name, text in files.items():
        path = node.outside(f"{ROOT}/etc/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    options = f"lowerdir=/etc,upperdir={ROOT}/etc,workdir=/run/work"
    node.run(["mount", "-t", "overlay", "overlay", "-o", options, "/etc"])


def routes(node: Namespace, family: int) -> dict[str, set[str]]:
    """Return table -> destinations of the routes by the WAN, without the kernel's own and link-local routes."""
    text = node.run(["ip", f"-{family}", "-j", "-N", "route", "show", "table", "all", "dev", at.WAN]).stdout
    found: dict[str, set[str]] = {}
    for one in json.loads(text):
        if str(one.get("table")) != "255" and not one["dst"].startswith(("fe80:", "ff00:", "multicast")):
            found.setdefault(str(one.get("table", 254)), set()).add(one["dst"])
    return found


def settle(node: Namespace, table: str, family: int, *destinations: str) -> None:
    """Wait until these routes are in the table and no other table has any."""

    def there() -> bool:
        found = routes(node, family)
        return set(found) == {table} and found[table] >= set(destinations)

    try:
        wait_until(there, PATIENCE, "the routes")
    except TimeoutError as error:
        raise AssertionError(f"{destinations} not in table {table} alone: {routes(node, family)}") from error


def servers(node: Namespace) -> str:
    place = node.outside(LEASE)
    return place.read_text() if place.exists() else ""


def resolv(node: Namespace) -> str:
    return node.run(["cat", "/etc/resolv.conf"], check=False).stdout


# One starter for each program: what it needs in /etc, and how it is run.


def dhclient(node: Namespace) -> None:
    """Start dhclient with the script of Debian."""
    _only_our_hooks(node)
    node.popen(["dhclient", "-d", "-lf", "/run/leases", "-pf", "/run/dhclient.pid", at.WAN])


def dhcpcd(node: Namespace) -> None:
    node.run(["mount", "-t", "tmpfs", "tmpfs", "/var/lib/dhcpcd"])
    node.outside("/run/dhcpcd.conf").write_text("option classless_static_routes, domain_name_servers\nnoarp\n")
    node.popen(["dhcpcd", "-B", "-f", "/run/dhcpcd.conf", at.WAN])


def networkd(node: Namespace) -> None:
    """Start networkd without udev, for which it does not wait if /sys is read-only."""
    node.run(["mount", "-o", "remount,bind,ro", "/sys"])
    for name in ("", "/netif", "/netif/links", "/netif/leases", "/netif/lldp"):
        place = node.outside(f"/run/systemd{name}")
        place.mkdir(exist_ok=True)
        shutil.chown(place, "systemd-network", "systemd-network")
    node.popen(["/lib/systemd/systemd-networkd"])


def ifupdown(node: Namespace) -> None:
    """Run ifup with dhclient as its DHCP client, and without the scripts of other packages."""
    for when in ("if-pre-up.d", "if-up.d", "if-down.d", "if-post-down.d"):
        node.outside(f"{ROOT}/etc/network/{when}").mkdir(parents=True, exist_ok=True)
    node.run(["mount", "--bind", f"{ROOT}/etc/network", "/etc/network"])
    node.outside("/run/network").mkdir()
    _only_our_hooks(node)
    node.run(["mount", "-t", "tmpfs", "tmpfs", "/var/lib/dhcp"])
    node.popen(["ifup", at.WAN])


def _only_our_hooks(node: Namespace) -> None:
    node.outside("/run/dhcp").mkdir()
    node.run(["cp", "-a", "/etc/dhcp/.", "/run/dhcp"])
    for one in node.outside("/run/dhcp/dhclient-exit-hooks.d").iterdir():
        if one.name not in ("rfc3442-classless-routes", "zz-nftpolicy"):
            one.unlink()
    node.run(["mount", "--bind", "/run/dhcp", "/etc/dhcp"])


def plain(kind: str) -> dict[str, str]:
    """Return further files of /etc: for a control, and always for ifupdown."""
    return {
        "networkd": {"systemd/network/01-plain.network": f"[Match]\nName={at.WAN}\n[Network]\nDHCP=yes\n"},
        "ifupdown": {"network/interfaces": f"iface {at.WAN} inet dhcp\n"},
    }.get(kind, {})


@frozen
class Case:
    """Program: its start, its handling of router advertisements, and if it writes resolv.conf."""

    program: str
    start: Callable[[Namespace], None]
    needs: str
    six: bool = False
    writes: bool = True


CASES = [
    Case("dhclient", dhclient, "dhclient"),
    Case("dhcpcd", dhcpcd, "dhcpcd", six=True),
    Case("networkd", networkd, "/lib/systemd/systemd-networkd", six=True, writes=False),
    Case("ifupdown", ifupdown, "ifup"),
]
IDS = [case.program for case in CASES]
RULE = "priority 510 fwmark 0x1/0x1 lookup 77 protocol 78"


def check_that_it_is_here(case: Case) -> None:
    if daemons.tool(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed; script/setup brings it")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_netconfig_settings_put_routes_in_uplink_table(node: Namespace, case: Case) -> None:
    check_that_it_is_here(case)
    before = resolv(node)
    prepared(node, case.program, **(plain(case.program) if case.program == "ifupdown" else {}))
    node.ip(f"rule add {RULE}", "route add unreachable default table 77 metric 4294967294 proto 78")
    case.start(node)
    settle(node, TABLE, 4, *HALVES, "default", at.HOME_NET[4])
    if case.six:
        settle(node, TABLE, 6, "default", at.HOME_NET[6])
    if case.writes:
        wait_until(lambda: f"nameserver {at.HOME[4]}\n" in servers(node), PATIENCE, "the servers for the resolver")
    assert resolv(node) == before
    assert "fwmark 0x1/0x1 lookup 77" in node.run(["ip", "rule"]).stdout
    assert "unreachable default" in node.run(["ip", "route", "show", "table", "77"]).stdout
    assert at.HOME[4] in node.run(["ip", "route", "get", "198.51.100.1", "mark", "1"]).stdout


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_control_without_settings_routes_are_in_main(node: Namespace, case: Case) -> None:
    """The control of the test above: the same programs and the same home."""
    check_that_it_is_here(case)
    before = resolv(node)
    prepared(node, case.program, settings=False, **plain(case.program))
    case.start(node)
    settle(node, "254", 4, *HALVES, "default", at.HOME_NET[4])
    if case.six:
        settle(node, "254", 6, "default", at.HOME_NET[6])
    if case.writes:
        wait_until(lambda: resolv(node) != before, PATIENCE, "servers in resolv.conf")


def test_netconfig_ifupdown_static_route_is_in_uplink_table(node: Namespace) -> None:
    check_that_it_is_here(CASES[-1])
    text = f"iface {at.WAN} inet static\n\taddress 192.0.2.9/24\n\tgateway {at.HOME[4]}\n"
    prepared(node, "ifupdown", **{"network/interfaces": text})
    ifupdown(node)
    settle(node, TABLE, 4, "default", at.HOME_NET[4])


def test_netconfig_networkd_file_of_admin_gets_table(node: Namespace) -> None:
    """The administrator's addresses stay, and the static routes are in the uplink's table, too."""
    check_that_it_is_here(CASES[2])
    theirs = node.outside(f"{ROOT}/etc/systemd/network/20-wan.network")
    theirs.parent.mkdir(parents=True)
    theirs.write_text(f"[Match]\nName={at.WAN}\n[Network]\nAddress=192.0.2.9/24\nGateway={at.HOME[4]}\nDHCP=ipv6\n")
    prepared(node, "networkd")
    networkd(node)
    wait_until(lambda: routes(node, 4).get(TABLE, set()) >= {"default", at.HOME_NET[4]}, PATIENCE, "the static routes")
    wait_until(lambda: "default" in routes(node, 6).get(TABLE, set()), PATIENCE, "the route of the advertisement")
    assert "192.0.2.9/24" in node.run(["ip", "address", "show", "dev", at.WAN]).stdout
    assert routes(node, 6).keys() == {TABLE}


def test_netconfig_script_for_netifd_sets_options() -> None:
    """The uci here prints its arguments."""
    with Namespace("node") as node:
        node.outside("/run/policy.toml").write_text(POLICY)
        node.outside("/run/bin").mkdir()
        uci = node.outside("/run/bin/uci")
        uci.write_text(
            "#!/bin/sh\n"
            '[ "$*" != "-q show network" ] || printf "%s\\n" network.wan.device="\'br-wan\'" '
            "network.lan.device=\"'br-lan'\" network.wan6.ifname=\"'br-wan'\" network.not.device=\"'br-wan9'\"\n"
            '[ "$*" != "-q batch" ] || cat\n'
        )
        uci.chmod(0o755)
        node.run([PROGRAM, "netconfig", "/run/policy.toml", "--for", "netifd", "--to", ROOT])
        done = node.run(["env", "PATH=/run/bin:/usr/bin:/bin", "sh", f"{ROOT}/etc/uci-defaults/90-nftpolicy-settings"])
    options = (("ip4table", 77), ("ip6table", 77), ("peerdns", 0), ("sourcefilter", 0))
    assert done.stdout.splitlines() == [
        f"set network.{name}.{key}='{value}'" for name in ("wan", "wan6") for key, value in options
    ]


@pytest.mark.parametrize("program", IDS)
def test_netconfig_scripts_have_valid_shell_syntax(program: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    subprocess.run([PROGRAM, "netconfig", policy, "--for", program, "--to", tmp_path / "root"], check=True)
    for path in (one for one in (tmp_path / "root/etc").rglob("*") if one.is_file()):
        if path.suffix not in (".conf", ".network"):
            subprocess.run(["sh", "-n", path], check=True)
