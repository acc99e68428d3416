"""464XLAT: faults of its keys, and states with a fault that no proof passes."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import ACCEPT, Match, Meta, Rule
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove

TEXT = """
name = "p"
inside = ["bat0"]
[uplink.wan]
devices = ["eth0", "clat"]
mark = "0x1/0x3"
table = 7
exempt = ["arp", "dhcpv4", "ndp"]
answer = ["ping"]
[uplink.wan.clat]
device = "clat"
[service.vpn]
uplink = "wan"
group = 851
"""
POLICY = load(TEXT.encode())[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)


def with_first(family, name, *statements):
    """Return the state with a rule before all others of a chain."""
    tables = []
    for table in STATE.tables:
        chains = tuple(
            evolve(chain, rules=(Rule(statements), *chain.rules))
            if (table.family, chain.name) == (family, name)
            else chain
            for chain in table.chains
        )
        tables.append(evolve(table, chains=chains))
    assert tuple(tables) != STATE.tables
    return evolve(STATE, tables=tuple(tables))


def false_properties(state):
    return {finding.property for finding in prove(state, SPEC).findings if str(finding.verdict) != "proved"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('device = "clat"', 'device = "tun0"', "'tun0' is not in 'devices' behind a device"),
        ('["eth0", "clat"]', '["clat", "eth0"]', "'clat' is not in 'devices' behind a device"),
        ('device = "clat"', 'device = "clat"\nprefix = "64:ff9b::/95"', "64:ff9b::/95 is not a NAT64 prefix"),
        ('device = "clat"', 'device = "clat"\nprefix = "10.0.0.0/8"', "10.0.0.0/8 is not a NAT64 prefix"),
        ('device = "clat"', 'device = "clat"\nprefix = "fe80::/64"', "packets to fe80::/64 are never forwarded"),
        ('device = "clat"', "", "'device' is missing"),
    ],
)
def test_clat_keys_with_faults_are_refused(old, new, words):
    with pytest.raises(PolicyError, match=words):
        load(TEXT.replace(old, new).encode())


def test_proof_of_a_clat_passes():
    assert false_properties(STATE) == set()


@pytest.mark.parametrize(
    ("place", "statements", "properties"),
    [
        (("inet", "wan.clat"), (ACCEPT,), {"P1", "P2"}),
        (("netdev", "device-clat"), (ACCEPT,), {"P1"}),
        (("inet", "wan.clat"), (Match(Meta("nfproto"), "ipv6"), Match(Meta("mark"), 1), ACCEPT), {"P1"}),
        (("inet", "wan.guard"), (Match(Meta("iifname"), "clat"), Match(Meta("mark"), 1), ACCEPT), {"P1"}),
    ],
)
def test_proof_of_an_open_clat_device_fails(place, statements, properties):
    assert false_properties(with_first(*place, *statements)) & properties


def test_address_of_a_clat_is_answered_for():
    values = {sysctl.path: sysctl.value for sysctl in STATE.sysctls}
    assert values["net/ipv6/conf/eth0/proxy_ndp"] == "1"
    assert values["net/ipv6/conf/clat/proxy_ndp"] == values["net/ipv6/conf/all/proxy_ndp"] == "0"
