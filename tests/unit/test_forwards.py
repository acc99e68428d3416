"""Forwards and published ports: their faults, and proofs of states with a fault."""

from functools import cache
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.compiler.shadow_guard import shadow_guard_tables
from nftpolicy.model.packet import FORWARD, Packet, address_range
from nftpolicy.model.trace import Model
from nftpolicy.netstate.nft import ACCEPT, Rule
from nftpolicy.netstate.routing import Sysctl
from nftpolicy.netstate.state import Device
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.lint import find_warnings
from nftpolicy.policy.load import load
from nftpolicy.proof.assumptions import add_assumed_environment
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.forward_cases import forward_notes
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED

GOLDEN = Path(__file__).parents[1] / "golden/12-forward/policy.toml"
BASE = """
name = "p"
inside = ["docker0", "br-*", "guests"]
[uplink.wan]
devices = ["eth0"]
mark = "0x1/0x3"
table = 51
answer = ["https"]
[uplink.lte]
devices = ["wwan0"]
mark = "0x2/0x3"
table = 52
"""
FORWARD_BASE = '[forward.a]\nuplink = "wan"\n'
PUBLISH_BASE = '[publish.web]\nuplink = "wan"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FORWARD_BASE, "'from' is missing"),
        (f"{FORWARD_BASE}from = []", "at least one device"),
        (f'{FORWARD_BASE}from = ["eth0"]', "'eth0' is not a device of 'inside'"),
        (f'{FORWARD_BASE}from = ["b*"]', "'b\\*' is not a device of 'inside'"),
        (f'{FORWARD_BASE}from = ["guests", "guests"]', "listed twice"),
        (f'{FORWARD_BASE}from = ["br-*", "br-1"]', "'br-1' matches 'br-\\*', which is listed too"),
        (f'{FORWARD_BASE}from = ["guests"]\nsource = ["127.0.0.0/8"]', "are never forwarded"),
        (f'{FORWARD_BASE}from = ["guests"]\nto = ["ff02::/16"]', "are never forwarded"),
        (f'{FORWARD_BASE}from = ["guests"]\nto = ["fe80::/9"]', "are never forwarded"),
        (
            f'{FORWARD_BASE}from = ["guests"]\nsource = ["2001:db8::/64"]\nto = ["192.0.2.0/24"]',
            "no address of the fam",
        ),
        (f'{FORWARD_BASE}from = ["guests"]\nsource = ["10.0.0.0/8"]\nto = ["10.1.0.0/16"]', "stay inside"),
        ('[forward.a]\nuplink = "lan"\nfrom = ["guests"]', "unknown uplink 'lan'"),
        ('[publish.a]\nuplink = "lan"\nport = "tcp/80"\nto = "guests"', "unknown uplink 'lan'"),
        (f'{PUBLISH_BASE}port = "tcp/80"\nto = "eth9"', "'eth9' is not a device of 'inside'"),
        (f'{PUBLISH_BASE}port = "tcp/80"\nto = "br-*"', "is a pattern"),
        (f'{PUBLISH_BASE}port = "tcp/400-500"\nto = "guests"', "answers 'https' on this machine"),
        (
            f'{PUBLISH_BASE}port = "tcp/80-90"\nto = "guests"\n[publish.b]\nuplink = "wan"\nport = "tcp/85"\nto = "guests"',
            "is published by 'web' already",
        ),
        (
            f'{FORWARD_BASE}from = ["br-*"]\n[forward.b]\nuplink = "lte"\nfrom = ["br-7"]\nports = ["tcp/80"]',
            "has no packet: forward 'a'",
        ),
        (
            f'{FORWARD_BASE}from = ["br-*"]\nto = ["192.0.2.0/24"]\nports = ["udp/1-9"]\n'
            '[forward.b]\nuplink = "lte"\nfrom = ["br-7"]\nto = ["192.0.2.9"]\nports = ["udp/3-4"]',
            "has no packet: forward 'a'",
        ),
    ],
)
def test_fault_of_forward_or_published_port(text, message):
    with pytest.raises(PolicyError, match=message):
        load(f"{BASE}{text}\n".encode())


def test_forwards_that_overlap_in_part_are_valid():
    text = f'{FORWARD_BASE}from = ["guests"]\nports = ["tcp/80"]\n[forward.b]\nuplink = "lte"\nfrom = ["guests"]\n'
    policy, _ = load(f"{BASE}{text}".encode())
    assert proof_of(policy, compile_policy(policy)).verdict == PROVED


@cache
def golden():
    policy, _ = load(GOLDEN.read_bytes())
    return policy, compile_policy(policy)


def proof_of(policy, state):
    return prove(state, build_spec(policy))


def with_rules(state, chain_name, change):
    """Return the state with another list of rules in a chain of table inet."""
    table = state.tables[0]
    chains = tuple(
        evolve(chain, rules=tuple(change(chain.rules))) if chain.name == chain_name else chain for chain in table.chains
    )
    assert chains != table.chains
    return evolve(state, tables=(evolve(table, chains=chains), *state.tables[1:]))


def without(word, number):
    """Return a change that removes the match with this number from the first rule whose text has the word."""

    def change(rules):
        changed = False
        for rule in rules:
            if word in repr(rule.statements) and not changed:
                changed = True
                rule = evolve(rule, statements=rule.statements[:number] + rule.statements[number + 1 :])
            yield rule

    return change


def failures(state):
    proof = proof_of(golden()[0], state)
    return {finding.property for finding in proof.findings if finding.deciding and finding.verdict != PROVED}


def test_golden_policy_is_proved():
    assert failures(golden()[1]) == set()


@pytest.mark.parametrize(
    ("chain", "change", "property_"),
    [
        # The rule that marks takes every device, or every source.
        ("forward", without("vpn-client.from", 0), "P1"),
        ("forward", without("vpn-client.source4", 2), "P1"),
        # The guard takes every device, destination, direction, port, or device of a published port.
        ("wan.mark-owner", without("vpn-client.from", 0), "P1"),
        ("wan.mark-owner", without("vpn-client.to4", 2), "P1"),
        ("wan.mark-owner", without("vpn-client.ports", 3), "P1"),
        ("wan.mark-owner", without("publish.web", 0), "P1"),
        ("wan.mark-owner", without("publish.web", 2), "P1"),
        ("wan.mark-owner", without("publish.web", 3), "P1"),
        # Requests leave by any device inside.
        ("inside", lambda rules: rules[1:], "P2"),
        ("inside", lambda rules: (Rule((ACCEPT,)), *rules), "P2"),
        # An entry of the policy that no packet can use.
        ("forward", lambda rules: rules[:-1], "P3"),
        ("wan.mark-owner", lambda rules: [rule for rule in rules if "publish.web" not in repr(rule)], "P3"),
        ("restore", lambda rules: rules[:2], "P3"),
        ("wan.arrival", lambda rules: [rule for rule in rules if "8080" not in repr(rule)], "P3"),
    ],
)
def test_fault_of_state_is_not_proved(chain, change, property_):
    assert property_ in failures(with_rules(golden()[1], chain, change))


def test_networks_inside_without_their_set_are_refuted():
    state = with_rules(
        golden()[1], "forward", lambda rules: [one for one in rules if "forward-sources" not in repr(one)]
    )
    assert "P2" in failures(state)


def trace(iif, destination, source, **fields):
    policy, state = golden()
    model = Model(add_assumed_environment(state, build_spec(policy))[0])
    return model.trace(Packet(4, destination, source, origin=FORWARD, iif=iif, **fields))


VPN, CLIENT = 0xCB007107, 0xAC120009  # 203.0.113.7, 172.18.0.9


@pytest.mark.parametrize(
    ("iif", "port", "device"),
    [("br-5", 1194, "eth0"), ("br-5", 1195, "eth1"), ("docker0", 1194, "eth1"), ("wg0", 1194, "eth1")],
)
def test_forwarded_packet_is_known_by_its_device(iif, port, device):
    found = trace(iif, VPN, CLIENT, dport=port)
    assert (found.outcome, found.device) == ("leaves", device)
    assert (found.mark == 0x30) == (device == "eth0")


def test_masqueraded_packet_has_the_address_of_the_uplink():
    policy, state = golden()
    found = trace("br-5", VPN, CLIENT, dport=1194)
    routes = add_assumed_environment(state, build_spec(policy))[0].routes
    assert found.source in {
        address_range(route.destination, 4)[0]
        for route in routes
        if route.table == 255 and route.device == "eth0" and route.family == 4
    }


def test_machine_that_does_not_forward_yields_a_note():
    policy, state = golden()
    spec = build_spec(policy)
    names = ("eth0", "wwan0", "eth1", "docker0", "guests")
    live = evolve(
        state,
        devices=tuple(Device(name, up=True, addresses=("192.0.2.9/32",)) for name in names),
        sysctls=(Sysctl("net/ipv4/ip_forward", "0"), Sysctl("net/ipv6/conf/all/forwarding", "0")),
    )
    notes = list(forward_notes(ProofContext(live, spec.devices, spec.masks), spec))
    assert "no packet was tried by br-*: no such device is up" in notes
    assert "no IPv4 packet was tried from guests to uplink lte: forwarding is off for guests" in notes


def test_trace_names_the_forward_of_each_decision():
    found = trace("br-5", VPN, CLIENT, dport=1194)
    assert [step.text.split()[-1] for step in found.steps if step.origin == ("forward", "vpn-client")] == [
        "accept",  # it gets the mark
        "masquerade",
        "accept",  # the guard
    ]


def test_shadow_guard_translates_nothing():
    tables = shadow_guard_tables(golden()[1])
    assert {chain.hook.type for table in tables for chain in table.chains if chain.hook} == {"filter"}


@pytest.mark.parametrize(
    ("keys", "warnings"),
    [
        ("", ["answers arrive only if", "packets to other networks inside"]),
        ("masquerade = true", ["packets to other networks inside"]),
        ('to = ["192.0.2.0/24"]', ["answers arrive only if"]),
        ('source = ["10.0.0.0/8"]', []),
    ],
)
def test_warnings_of_a_forward(keys, warnings):
    policy, _ = load(f'{BASE}{FORWARD_BASE}from = ["guests"]\n{keys}\n'.encode())
    texts = [text for path, text in find_warnings(policy) if path == ("forward", "a")]
    assert [text[: len(start)] for text, start in zip(texts, warnings, strict=True)] == warnings


def test_reverse_path_filter_is_loose_at_devices_without_pattern():
    settings = {item.path.split("/")[3]: item.value for item in golden()[1].sysctls if item.path.endswith("rp_filter")}
    settings.pop("all", None)
    assert settings == {"eth0": "0", "wwan0": "0", "guests": "2", "eth1": "2", "docker0": "2"}
