"""First policies of arbitrary machines: each draft loads and is proved, and answers the SSH session of an uplink."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.importers.machine.devices import NoUplink
from nftpolicy.importers.machine.draft import PROGRAMS, draft_machine_policy
from nftpolicy.importers.machine.facts import (
    ForwardedPort,
    ListeningSocket,
    MachineFacts,
    SshSession,
    VpnProgram,
    WireguardTunnel,
)
from nftpolicy.importers.machine.steps import next_steps
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import Device
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Port
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove

NAMES = st.sampled_from(("eth0", "eth1", "eth0.42", "br-lan", "br-0123456789ab", "docker0", "wg0", "wg-home", "tun0",
                         "veth1", "wlan0", "bad name", "all", "*", "eth9*", 'a"\n[b]'))  # fmt: skip
ADDRESSES = st.sampled_from(("192.0.2.10/24", "10.0.0.1/8", "fd00::1/64", "fe80::1/64", "2001:db8::5/128",
                             "169.254.1.1/16", "198.51.100.3/31", "100.64.0.1/32"))  # fmt: skip
KINDS = st.sampled_from(("", "bridge", "veth", "vlan", "wireguard", "tun", "bond", "vrf"))
NUMBERS = st.sampled_from((22, 53, 80, 443, 8080, 8090, 51820, 5351, 40000, 68))
MARKS = st.sampled_from((0, 0, 1, 16, 51820, 0xFFFFFFFF))
TEXTS = st.sampled_from(("", "names", "wg0", "office", "ö", 'x"\n[y]', "a" * 40))
few = {"max_size": 3}


def ports(longest: int = 0) -> st.SearchStrategy[Port]:
    low = st.tuples(st.sampled_from(("tcp", "udp")), NUMBERS, st.integers(0, longest))
    return low.map(lambda parts: Port(parts[0], parts[1], parts[1] + parts[2]))


devices = st.builds(Device, NAMES, st.lists(ADDRESSES, unique=True, **few).map(tuple), kind=KINDS,
                    master=st.none() | NAMES, link=st.none() | NAMES, link_type=st.sampled_from((1, None)))  # fmt: skip
routes = st.builds(Route, st.sampled_from((4, 6)), st.sampled_from((51, 254)), device=NAMES,
                   gateway=st.sampled_from((None, "192.0.2.1", "fe80::1")), protocol=st.sampled_from((2, 3, 4, 9, 16)))  # fmt: skip
tunnels = st.builds(WireguardTunnel, NAMES, st.none() | TEXTS, st.sampled_from((0, 51820)), MARKS, st.booleans(),
                    st.sampled_from(((), ("vpn.example",))), st.booleans())  # fmt: skip
vpns = st.builds(VpnProgram, st.sampled_from(("openvpn", "fastd", "tunneldigger")), TEXTS, TEXTS, MARKS, st.booleans())
listening = st.builds(ListeningSocket, ports(), st.sampled_from((None, "192.0.2.10", "127.0.0.1", "fe80::1")),
                      st.none() | NAMES, TEXTS)  # fmt: skip
machines = st.builds(
    MachineFacts,
    TEXTS,
    st.lists(devices, unique_by=lambda device: device.name, max_size=8).map(tuple),
    st.lists(routes.filter(lambda route: route.gateway is None or (":" in route.gateway) == (route.family == 6)), **few).map(tuple),
    marks=st.sampled_from((0, 0x10, 0x1000, 0xFFF)),
    tables=st.frozensets(st.sampled_from((51, 52))),
    groups=st.frozensets(st.sampled_from((851, 852))),
    wireguard=st.lists(tunnels, unique_by=lambda tunnel: tunnel.name, **few).map(tuple),
    vpns=st.lists(vpns, **few).map(tuple),
    listening=st.lists(listening, max_size=6).map(tuple),
    sessions=st.lists(st.builds(SshSession, st.just("198.51.100.7"), NUMBERS, NAMES), **few).map(tuple),
    forwarded_ports=st.lists(st.builds(ForwardedPort, ports(20), st.none() | NAMES), **few).map(tuple),
    uses_dhcp=st.booleans(),
    manager=st.sampled_from((None, "networkd")),
    forwards=st.booleans(),
)  # fmt: skip


@given(machines, st.none() | st.sampled_from(PROGRAMS))
@settings(max_examples=60)
def test_draft_of_any_machine_is_proved_and_answers_ssh(facts: MachineFacts, program: str | None) -> None:
    try:
        draft = draft_machine_policy(facts, program)
    except NoUplink:
        return
    policy, _ = load(draft.text.encode(), "draft")
    assert prove(compile_policy(policy), build_spec(policy)).verdict == "proved"
    assert list(next_steps(facts, draft, "FILE"))
    for session in facts.sessions:
        for uplink in policy.uplink.values():
            if session.device in uplink.devices:
                assert any(answer.port == Port("tcp", session.port, session.port) for answer in uplink.answer)
