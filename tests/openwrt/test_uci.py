"""UCI of the policy on a router, and the proof that netifd's rules satisfy the spec."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from nftpolicy.integration.openwrt import tree, uci
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from tests.guarded_lab import ENVIRONMENT, GLUON, PROGRAM
from tests.kernel.test_nft_facts import IS_NFT_1_0
from tests.lab.netns import Namespace

from .fake_tools import Config, Uci, read_config, shown, write_config
from .fw4_stand_in import FIXTURES, RENDERED, Fw4
from .netifd_stand_in import commands
from .router import CONFIG, ROOT, Router

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]

DHCP = """
config dnsmasq

config dhcp 'lan'
	option interface 'client'
	option ra 'server'

config dhcp 'wan'
	option interface 'wan'
"""
OPTIONS = {"ip4table": "1", "ip6table": "1", "peerdns": "0", "sourcefilter": "0"}
ADDRESSES = {"wan": {4: "192.0.2.2/24"}, "wan6": {6: "2001:db8:1::2/64"}}


@pytest.fixture(scope="module")
def shipped() -> Policy:
    return load(GLUON.read_bytes())[0]


@pytest.fixture
def router(shipped: Policy) -> Iterator[Router]:
    with Namespace("router") as space:
        made = Router(space, shipped)
        configure(made, (FIXTURES / "gluon-node/network.uci").read_text())
        yield made


def configure(router: Router, network: str, dhcp: str = DHCP) -> None:
    router.space.outside(f"{CONFIG}/network.uci").write_text(network)
    router.space.outside(f"{CONFIG}/dhcp.uci").write_text(dhcp)


def configured(router: Router, name: str = "network") -> Config:
    return Uci(router.space.outside(CONFIG)).config(name)


def install(router: Router) -> None:
    router.ash(f"{ROOT}/{tree.DEFAULTS_PATH}")


def test_fake_uci_reads_its_own_output() -> None:
    text = (FIXTURES / "gluon-node/network.uci").read_text()
    assert read_config(write_config(read_config(text))) == read_config(text)
    assert "network.wan6.ip6table='1'\n" in shown("network", read_config(text))


def test_uci_install_twice_gives_policy_sections_once(router: Router, shipped: Policy) -> None:
    before = configured(router)
    install(router)
    after = configured(router)
    wanted = {one.name: (one.type, dict(one.options)) for one in uci.network_sections(shipped)}
    assert {name: one for name, one in after.items() if name.startswith(uci.PREFIX)} == wanted
    assert read_config(router.file(tree.SECTIONS_PATH).read_text()) == wanted
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"wan", "wan6"}
    for name in changed:
        assert OPTIONS.items() <= after[name][1].items()
    install(router)
    assert configured(router) == after


def test_uci_install_disables_dhcp_server_on_uplink(router: Router) -> None:
    install(router)
    served = {
        str(options["interface"]): options for kind, options in configured(router, "dhcp").values() if kind == "dhcp"
    }
    silent = {"ignore": "1", "ra": "disabled", "dhcpv6": "disabled", "ndp": "disabled"}
    assert {name for name, options in served.items() if silent.items() <= options.items()} == {"wan", "wan6"}
    assert served["client"] == {"interface": "client", "ra": "server"}


def test_uci_install_of_other_policy_removes_sections(router: Router, shipped: Policy) -> None:
    install(router)
    other = load(GLUON.read_text().replace("table   = 1", "table   = 7").encode())[0]
    router.write(other)
    install(router)
    ours = {name for name in configured(router) if name.startswith(uci.PREFIX)}
    assert ours == {one.name for one in uci.network_sections(other)}
    assert ours != {one.name for one in uci.network_sections(shipped)}
    assert configured(router)["wan"][1]["ip4table"] == "7"


def test_uci_install_covers_aliases_and_ppp_devices(router: Router) -> None:
    network = """
config interface 'dsl'
	option device 'eth1'
	option proto 'pppoe'

config interface 'up'
	option device 'br-wan'
	option proto 'dhcp'

config interface 'up6'
	option device '@up'
	option proto 'dhcpv6'

config interface 'lan'
	option device 'br-lan'
	option proto 'static'
"""
    configure(router, network, "")
    router.write(load(GLUON.read_text().replace('["br-wan"]', '["br-wan", "pppoe-dsl"]').encode())[0])
    install(router)
    assert [name for name, (_, options) in configured(router).items() if "ip4table" in options] == ["dsl", "up", "up6"]
    for name in ("dsl", "up", "up6"):
        options = configured(router)[name][1]
        assert {key: options.get(key) for key in OPTIONS} == OPTIONS


def test_uci_install_reads_the_forms_of_gluon(router: Router) -> None:
    network = """
config interface 'wan'
	option proto 'dhcp'
	option type 'bridge'
	list ifname 'eth0'
	list ifname 'eth3'

config interface 'wan6'
	option proto 'dhcpv6'
	option ifname 'br-wan'

config interface 'cellular'
	option proto 'qmi'
	option device '/dev/cdc-wdm0'

config interface 'circle'
	option device '@circle2'

config interface 'circle2'
	option device '@circle'

config interface 'client'
	option type 'bridge'
	list ifname 'br-wan'
	list ifname 'bat0'

config interface 'bat0'
	option ifname 'bat0'
"""
    configure(router, network, "")
    router.write(load(GLUON.read_text().replace('["br-wan"]', '["br-wan", "wwan0"]').encode())[0])
    install(router)
    attached = [name for name, (_, options) in configured(router).items() if options.get("ip4table") == "1"]
    assert attached == ["wan", "wan6", "cellular"]


# The state that netifd makes of it


def network(router: Router, *more: str) -> None:
    """Create the devices of the fixture, their addresses, and the state that netifd makes of the configuration."""
    space = router.space
    for device in ("br-wan", "br-client", "lan0", "mesh0"):
        space.ip(f"link add {device} type veth peer name p-{device}", f"link set {device} up")
    space.ip("addr add 192.0.2.2/24 dev br-wan noprefixroute", "-6 addr add 2001:db8:1::2/64 dev br-wan noprefixroute")
    space.ip("addr add 10.0.0.1/24 dev br-client")
    listed = json.loads(space.run(["ip", "-j", "link"]).stdout)
    indexes = {one["ifname"]: one["ifindex"] for one in listed}
    space.ip(*commands(configured(router), ADDRESSES, indexes))
    tabled = {family: "table 1" if f"ip{family}table" in configured(router)[name][1] else ""
              for name, family in (("wan", 4), ("wan6", 6))}  # fmt: skip
    space.ip(f"route add 192.0.2.0/24 dev br-wan {tabled[4]}", f"route add default via 192.0.2.1 dev br-wan onlink {tabled[4]}",
             f"-6 route add default via 2001:db8:1::1 dev br-wan onlink {tabled[6]}", *more)  # fmt: skip


def verify(router: Router, *words: str) -> dict[str, Any]:
    router.space.outside("/run/policy.toml").write_bytes(GLUON.read_bytes())
    done = router.space.run(
        [PROGRAM, "verify", "--json", "/run/policy.toml", *words], check=False, env=ENVIRONMENT, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def documents(router: Router) -> list[str]:
    """Return the output of nft and ip on the router, as files for another machine."""
    said = {"ruleset": ["nft", "-j", "list", "ruleset"]}
    for family in ("4", "6"):
        said[f"rules{family}"] = ["ip", "-j", "-N", f"-{family}", "rule"]
        said[f"routes{family}"] = ["ip", "-j", "-N", f"-{family}", "route", "show", "table", "all"]
    for name, command in said.items():
        router.space.outside(f"/run/{name}").write_text(router.space.run(command).stdout)
    return ["--ruleset", "/run/ruleset", *(word for family in ("4", "6") for word in (
        "--rules", f"{family}:/run/rules{family}", "--routes", f"{family}:/run/routes{family}"))]  # fmt: skip


MESH = ("route add default via 10.0.0.254 dev br-client onlink", "-6 addr add fd00:db8::a/64 dev br-client",
        "-6 route add default via fd00:db8::1 dev br-client onlink")  # fmt: skip


def properties(said: dict[str, Any]) -> dict[str, str]:
    return {name: one["verdict"] for name, one in said["properties"].items()}


def failures(said: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(one["property"], one["verdict"], one["subject"]) for one in said["findings"] if one["verdict"] != "proved"}


def test_verify_live_with_fw4_and_netifd_is_proved(router: Router) -> None:
    """Includes a stale `90000+N iif lo` rule of an interface that has no ip4table any more."""
    install(router)
    network(router, "rule add priority 90077 iif lo lookup 1", *MESH)
    Fw4(router, RENDERED[1]).reload()
    router.nftpolicy("apply")
    said = verify(router, "--live")
    assert failures(said) == set()
    assert said["verdict"] == "proved"


def test_verify_state_files_leave_at_most_link_layer_unknown(router: Router) -> None:
    """JSON output of nft 1.0 lacks the device of an egress chain; that of nft 1.1 has it."""
    install(router)
    network(router, *MESH)
    Fw4(router, RENDERED[1]).reload()
    router.nftpolicy("apply")
    said = verify(router, *documents(router))
    assert not {one for one in failures(said) if one[1] == "refuted"}
    unknown = {subject for name, verdict, subject in failures(said) if (name, verdict) == ("P1", "unknown")}
    link_layer = {"AF_PACKET sockets", "frames of other ethertypes"} if IS_NFT_1_0 else set()
    assert {subject.partition(":")[0] for subject in unknown} == link_layer
    assert properties(said)["P2"] == "proved"


def test_control_verify_without_policy_is_refuted(router: Router) -> None:
    """The control: the same node as Gluon configures it, where unmarked IPv4 goes by the WAN."""
    network(router, *MESH[1:])
    Fw4(router, RENDERED[1]).reload()
    assert properties(verify(router, "--live"))["P1"] == "refuted"


def test_netifd_rules_leave_runner_nothing_to_add(router: Router) -> None:
    """UCI has the rules of marks and users: the runner adds its own end of the table, and rules that UCI cannot have."""
    install(router)
    network(router)
    router.nftpolicy("apply")
    for family in ("-4", "-6"):
        rules = router.space.run(["ip", family, "rule"]).stdout.splitlines()
        assert {line.partition(":")[0] for line in rules if "proto 78" in line} <= {"870", "33000", "33100"}
        ends = router.space.run(["ip", family, "route", "show", "table", "1", "type", "unreachable"]).stdout
        assert "metric 2147483647" in ends
        assert "proto 78 metric 4294967294" in ends


def test_marked_packet_after_ifdown_loopback_is_unreachable(router: Router) -> None:
    """Two barriers stop a marked packet: the end of its table, and a rule. Gluon has one."""

    def way(mark: str) -> str:
        done = router.space.run(["ip", "route", "get", "9.9.9.9", "mark", mark], check=False)
        return done.stdout + done.stderr

    install(router)
    network(router, "route add default via 10.0.0.254 dev br-client onlink metric 5")
    router.nftpolicy("apply")
    router.space.ip("route flush table 1", "-6 route flush table 1")
    assert "br-client" in way("0")
    assert "unreachable" in way("1")
    router.space.ip("rule del priority 515")
    assert "br-client" in way("1"), "the control: without that rule it goes by the mesh"


def test_rendered_uci_config_is_read_back(shipped: Policy) -> None:
    found = read_config(uci.render_config(uci.network_sections(shipped)))
    assert found == {one.name: (one.type, dict(one.options)) for one in uci.network_sections(shipped)}


@pytest.mark.parametrize("bad", ["it's", "a\nb", "$(x)", 'a"b', "`x`"])
def test_rendered_uci_refuses_unsafe_value(bad: str) -> None:
    one = uci.UciSection("network", "rule", "nftpolicy_x", (("lookup", bad),))
    for render in (uci.render_config, uci.render_batch):
        with pytest.raises(ValueError, match="cannot be written"):
            render([one])
