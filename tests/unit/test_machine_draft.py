"""First policies of machines: each loads, is proved, and has what the machine needs."""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.importers.machine.devices import NoUplink
from nftpolicy.importers.machine.draft import draft_machine_policy
from nftpolicy.importers.machine.facts import (
    ForwardedPort,
    ListeningSocket,
    MachineFacts,
    SshSession,
    VpnProgram,
    WireguardTunnel,
)
from nftpolicy.importers.machine.steps import next_steps
from nftpolicy.importers.machine.tunnel_files import parse_fastd, parse_openvpn, parse_wg_quick, parse_wg_show
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import Device
from nftpolicy.policy.load import load
from nftpolicy.policy.mark import Mark
from nftpolicy.policy.objects import Port
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove

ROOT = Path(__file__).parents[2]
LO = Device("lo", ("127.0.0.1/8", "::1/128"), link_type=772)


def ethernet(name, *addresses, **settings):
    return Device(name, addresses, link_type=1, **settings)


def default(device, gateway="192.0.2.1", protocol=16, table=254):
    return Route(4, table, gateway=gateway, device=device, protocol=protocol)


def tcp(port, address=None):
    return ListeningSocket(Port("tcp", port, port), address, None, "server")


WIFI = ethernet("wlp2s0", "192.0.2.5/24")
ETH0 = ethernet("eth0", "192.0.2.10/24")
WG_FILE = WireguardTunnel("wg0", "/etc/wireguard/wg0.conf", has_default_route=True)
LAPTOP = MachineFacts("laptop", (LO, WIFI, ethernet("enp0s31f6", up=False)), (default("wlp2s0"),))


SERVER = MachineFacts(
    "web",
    (LO, ETH0),
    (default("eth0"),),
    listening=(tcp(443), tcp(22), tcp(5432, "127.0.0.1"), ListeningSocket(Port("udp", 68, 68))),
    sessions=(SshSession("198.51.100.7", 22, "eth0"),),
)
MANAGEMENT = MachineFacts(
    "mgmt",
    (LO, ETH0, ethernet("eth1", "198.51.100.2/24")),
    (default("eth0", protocol=3),),
    listening=(tcp(22),),
    sessions=(SshSession("198.51.100.7", 22, "eth1"),),
    uses_dhcp=False,
)
DOCKER = MachineFacts(
    "dock",
    (
        LO,
        ETH0,
        Device("docker0", ("172.17.0.1/16",), kind="bridge"),
        Device("br-0123456789ab", ("172.18.0.1/16",), kind="bridge"),
        Device("veth12ab", kind="veth", master="docker0"),
    ),
    (default("eth0"),),
    marks=0x10,
    listening=(tcp(8080), tcp(22)),
    forwarded_ports=(ForwardedPort(Port("tcp", 8080, 8080), "docker0"), ForwardedPort(Port("udp", 53, 53), None)),
    forwards=True,
)
ROUTER = MachineFacts(
    "router",
    (LO, ethernet("wan0", "192.0.2.10/24"), Device("br-lan", ("192.168.7.1/24", "fd00::1/64"), kind="bridge")),
    (default("wan0"),),
    forwards=True,
)
MACHINES = {
    "wg-quick": evolve(LAPTOP, wireguard=(WG_FILE,)),
    "wg-quick-name": evolve(
        LAPTOP, wireguard=(WireguardTunnel("vpn", "/etc/wireguard/vpn.conf", 0, 0, True, ("vpn.example",)),)
    ),
    "wireguard-go": evolve(
        LAPTOP,
        wireguard=(WireguardTunnel("wg0", "/f", 51820, 7, True, ("vpn.example",), user_space=True),),
    ),
    "two-tunnels": evolve(LAPTOP, wireguard=(WG_FILE, WireguardTunnel("wg1", None, 51820, 9))),
    "openvpn": evolve(LAPTOP, vpns=(VpnProgram("openvpn", "office", "/etc/openvpn/client/office.conf"),)),
    "fastd": evolve(LAPTOP, vpns=(VpnProgram("fastd", "mesh", "/etc/fastd/mesh/fastd.conf", 1),)),
    "tunneldigger": evolve(LAPTOP, vpns=(VpnProgram("tunneldigger", "tunneldigger"),)),
    "all-at-once": evolve(
        DOCKER,
        wireguard=(WG_FILE,),
        vpns=(VpnProgram("openvpn", "wg0", "/x"), VpnProgram("fastd", "an odd name", "/y")),
        listening=(tcp(22), tcp(5351)),
    ),
    "server": SERVER,
    "management": MANAGEMENT,
    "docker": DOCKER,
    "router": ROUTER,
    "two-uplinks": evolve(
        SERVER,
        devices=(LO, ETH0, ethernet("wwan0", "10.0.0.2/30")),
        routes=(default("eth0"), default("wwan0", "10.0.0.1")),
    ),
    "no-default-route": evolve(MANAGEMENT, routes=()),
    "only-an-address": evolve(SERVER, routes=(), sessions=()),
    "vlan": evolve(SERVER, devices=(LO, ethernet("eth0"), Device("eth0.42", ("192.0.2.10/24",), kind="vlan", link="eth0")),
                       routes=(default("eth0.42"),)),
}  # fmt: skip


def drafted(facts, program=None, requested=()):
    """The policy of a machine, its draft, and its steps."""
    draft = draft_machine_policy(facts, program, requested)
    policy, _ = load(draft.text.encode(), "draft")
    return policy, draft, list(next_steps(facts, draft, "nftpolicy.toml"))


@pytest.mark.parametrize("name", MACHINES)
def test_draft_of_each_machine_is_proved(name):
    policy, _, steps = drafted(MACHINES[name])
    assert prove(compile_policy(policy), build_spec(policy)).verdict == "proved"
    assert any("apply nftpolicy.toml --confirm" in step for step in steps)


def test_wg_quick_laptop_gets_the_port_as_first_step():
    policy, draft, steps = drafted(MACHINES["wg-quick"])
    uplink = policy.uplink["network"]
    assert uplink.devices == ("wlp2s0", "enp0s31f6")
    assert uplink.mark == Mark(51820, 0xFFFFFFFF)
    assert policy.service["wireguard"].sport == (Port("udp", 51820, 51820),)
    assert uplink.resolver is None  # the endpoint is an address
    assert steps[0] == "write into [Interface] of /etc/wireguard/wg0.conf: ListenPort = 51820, and FwMark = 0xca6c"
    assert "enp0s31f6 has no network now, and is an uplink as well" in draft.warnings


def test_endpoint_by_name_gets_group_and_resolver():
    policy, _, steps = drafted(MACHINES["wg-quick-name"])
    assert policy.service["names"].group.number == 851
    assert policy.uplink["network"].resolver.sources == ("auto",)
    assert any("--unit names=wg-quick@vpn.service" in step for step in steps)
    assert any(step.startswith("groupadd --gid 851 nftpolicy-names    #") for step in steps)
    assert any(step.startswith("setpriv --regid 851 --clear-groups wg-quick up vpn    #") for step in steps)
    assert "systemctl daemon-reload && systemctl restart wg-quick@vpn.service" in steps


def test_wireguard_go_is_a_service_of_a_group():
    policy, _, steps = drafted(MACHINES["wireguard-go"])
    assert policy.service["wg0"].group.number == 851
    assert policy.uplink["network"].mark.value == 7
    assert not any(step.startswith("write into") for step in steps)
    facts = evolve(LAPTOP, wireguard=(evolve(WG_FILE, user_space=True),))
    assert drafted(facts)[0].uplink["network"].mark.value == 51821


def test_tunnels_with_one_port_and_two_marks_get_steps():
    policy, _, steps = drafted(MACHINES["two-tunnels"])
    assert policy.service["wireguard"].sport == (Port("udp", 51821, 51821), Port("udp", 51820, 51820))
    assert steps[0] == "write into [Interface] of /etc/wireguard/wg0.conf: ListenPort = 51821, and FwMark = 0x9"


def test_vpn_programs_get_mark_and_unit():
    policy, _, steps = drafted(MACHINES["openvpn"])
    assert steps[0] == "write into /etc/openvpn/client/office.conf: mark 16"
    assert any("--unit office=openvpn-client@office.service" in step for step in steps)
    assert policy.service["office"].marks == "itself"
    assert drafted(MACHINES["fastd"])[0].uplink["network"].mark.value == 1


def test_server_answers_ssh_first_and_not_its_loopback():
    policy, draft, _ = drafted(SERVER)
    assert [answer.name for answer in policy.uplink["wan"].answer] == ["ssh", "https", "ping"]
    assert any("comes by eth0, an uplink: 'answer' keeps it" in text for text in draft.warnings)


def test_client_answers_the_ssh_session_alone():
    facts = evolve(SERVER, wireguard=(WG_FILE,))
    policy, draft, _ = drafted(facts)
    assert [answer.name for answer in policy.uplink["network"].answer] == ["ssh"]
    assert "# listens, and is not answered: https (server)" in draft.text


def test_ssh_by_a_device_inside_stays_and_is_named():
    policy, draft, _ = drafted(MANAGEMENT)
    assert policy.uplink["wan"].devices == ("eth0",)
    assert "eth1" in policy.inside
    assert [str(address) for address in policy.uplink["wan"].gateways] == ["192.0.2.1"]
    assert "dhcpv4" not in policy.uplink["wan"].exempt
    assert any(text.endswith("eth1, which is inside: the policy does not concern it") for text in draft.warnings)


@pytest.mark.parametrize(("facts", "requested"), [(MANAGEMENT, ["eth1"]), (MACHINES["no-default-route"], [])])
def test_port_without_gateway_answers_its_ssh_session(facts, requested):
    policy, _, _ = drafted(facts, requested=requested)
    assert policy.uplink["wan"].devices == ("eth1",)
    assert [answer.name for answer in policy.uplink["wan"].answer] == ["ssh", "ping"]
    assert policy.uplink["wan"].gateways == ()
    (shipped,) = load((ROOT / "rulesets/server-port.toml").read_bytes())[0].uplink.values()
    assert (policy.uplink["wan"].exempt, policy.uplink["wan"].answer) == (shipped.exempt, shipped.answer)


def test_published_ports_lead_to_their_bridge():
    policy, draft, _ = drafted(DOCKER)
    assert policy.publish["tcp-8080"].to == "docker0"
    assert [answer.name for answer in policy.uplink["wan"].answer] == ["ssh", "ping"]
    assert set(policy.inside) == {"docker*", "br-*", "veth*"}
    assert policy.uplink["wan"].mark == Mark(0x1000, 0xF000)  # another program uses 0x10
    assert "#[publish.udp-53]" in draft.text
    assert policy.forward == {}
    assert '#from = ["docker*", "br-*"]' in draft.text
    assert drafted(DOCKER, "router")[0].forward["lan"].devices == ("docker*", "br-*")


def test_router_forwards_its_networks():
    forward = drafted(ROUTER)[0].forward["lan"]
    assert (forward.devices, forward.masquerade) == (("br-lan",), True)
    assert [str(network) for network in forward.source] == ["192.168.7.0/24", "fd00::/64"]
    assert drafted(ROUTER, "server")[0].forward == {}


def test_each_uplink_of_a_server_has_its_mark_and_table():
    policy, _, _ = drafted(MACHINES["two-uplinks"])
    assert [str(each.mark) for each in policy.uplink.values()] == ["0x10/0xf0", "0x20/0xf0"]
    assert [each.table for each in policy.uplink.values()] == [51, 52]


@pytest.mark.parametrize(
    ("facts", "program", "requested", "message"),
    [
        (LAPTOP, "wg-quick", [], "--for wg-quick: there is no WireGuard device and no file in /etc/wireguard"),
        (LAPTOP, "openvpn", [], "--for openvpn: there is no configuration of a client"),
        (MachineFacts(devices=(LO,)), None, [], "only lo has neither a default route nor an address"),
        (LAPTOP, None, ["wlan0"], "--uplink 'wlan0' is not a network device of this machine; it has"),
        (LAPTOP, None, ["lo"], "--uplink 'lo' is not a network device"),
        (evolve(SERVER, marks=0xFFFFFFFF), None, [], "other programs use the bits"),
        (evolve(SERVER, devices=(LO, ethernet("a\u2028b")), routes=(default("a\u2028b"),)), None, [], "is not a valid device name"),
    ],
)  # fmt: skip
def test_machine_without_a_policy_is_refused(facts, program, requested, message):
    with pytest.raises(NoUplink) as refusal:
        draft_machine_policy(facts, program, requested)
    assert message in str(refusal.value)


def test_hostile_names_stay_in_comments_and_strings():
    hostile = 'x"\n[service.evil]'
    facts = evolve(
        SERVER,
        name=hostile,
        devices=(LO, ETH0, Device(hostile, ("10.0.0.1/8",), kind="bridge")),
        vpns=(VpnProgram("openvpn", hostile, f"/etc/openvpn/{hostile}.conf"),),
        listening=(ListeningSocket(Port("tcp", 99, 99), None, None, hostile),),
    )
    policy, draft, _ = drafted(facts)
    assert set(policy.service) == {"vpn1"}
    assert policy.name == "machine"
    assert any("cannot be named in a policy" in text for text in draft.warnings)


def test_files_of_a_provider_share_a_port_and_a_step():
    tunnels = [WireguardTunnel(f"se{n}", f"/etc/wireguard/se{n}.conf", 0, 0, True, ()) for n in (1, 2)]
    policy, _, steps = drafted(evolve(LAPTOP, wireguard=tuple(tunnels)))
    assert policy.service["wireguard"].sport == (Port("udp", 51820, 51820),)
    files = "/etc/wireguard/se1.conf and /etc/wireguard/se2.conf"
    assert steps[0] == f"write into [Interface] of {files}: ListenPort = 51820, and FwMark = 0xca6c"


def test_published_port_never_takes_the_port_of_the_session():
    facts = evolve(SERVER, devices=DOCKER.devices, forwarded_ports=(ForwardedPort(Port("tcp", 20, 30), "docker0"),))
    policy, _, _ = drafted(facts)
    assert policy.publish == {}
    assert "ssh" in [answer.name for answer in policy.uplink["wan"].answer]


def test_routes_are_copied_where_no_network_manager_is_known():
    steps = drafted(SERVER)[2]
    assert any(step.startswith("ip -4 route add default via ") and " table 51    #" in step for step in steps)
    assert not any(step.startswith("ip ") for step in drafted(MANAGEMENT, requested=["eth1"])[2])  # 'apply' copies it
    steps = drafted(evolve(MANAGEMENT, manager="networkd"))[2]
    assert any("netconfig nftpolicy.toml --for networkd --to /" in step for step in steps)
    assert not any(step.startswith("ip ") for step in steps)


WG_TEXT = """
[Interface]
PrivateKey = QUJD=   # not read
listenport=51821
FwMark = 0xCA6C
[Peer]
Endpoint = vpn.example:51820
AllowedIPs = 10.0.0.0/8, ::/0
[Peer]
Endpoint = [2001:db8::1]:51820
"""


def test_wg_quick_file_has_port_mark_and_names():
    assert parse_wg_quick(WG_TEXT, "wg0", "/f") == WireguardTunnel("wg0", "/f", 51821, 51820, True, ("vpn.example",))
    assert not parse_wg_quick(f"{WG_TEXT}[Interface]\nTable = off\n", "wg0", "/f").has_default_route
    assert parse_wg_quick("FwMark = off\nListenPort = x", "wg0", "/f") == WireguardTunnel("wg0", "/f")


def test_openvpn_and_fastd_files_have_mark_and_names():
    client = parse_openvpn("client\n;mark 1\nremote 192.0.2.1 1194\nmark 16\n", "office", "/f")
    assert client == VpnProgram("openvpn", "office", "/f", 16, looks_up_names=False)
    assert parse_openvpn("server 10.0.0.0 255.0.0.0\nremote x\n", "s", "/f") is None
    assert parse_openvpn("dev tun\n", "s", "/f") is None
    assert parse_fastd("log level warn;\npacket mark 0x1;\n", "mesh", "/f").mark == 1


def test_wg_show_gives_port_and_mark_of_each_device():
    assert parse_wg_show(["wg0\t51820", "wg1\t1"], ["wg0\t0xca6c", "wg1\toff"]) == {
        "wg0": (51820, 51820),
        "wg1": (1, 0),
    }
