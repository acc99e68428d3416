"""TCP of the kernel itself, as of NFS: the proof of its policy, and of states with a fault."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.compiler.describe import describe_policy
from nftpolicy.netstate.nft import Hook
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from tests.unit.proved_policy import with_edited_rules, without

TEXT = """
name = "p"
inside = ["bat0"]
[uplink.wan]
devices = ["eth0"]
mark = "0x1/0x3"
table = 7
[uplink.lte]
devices = ["wwan0"]
mark = "0x2/0x3"
table = 8
[service.nfs]
uplink = "wan"
kernel = true
ports = ["tcp/2049", "tcp/20048-20050"]
to = ["198.51.100.7", "2001:db8::/64"]
[service.iscsi]
uplink = "lte"
kernel = true
ports = ["tcp/3260"]
to = ["198.51.100.7"]
[service.tor]
uplink = "lte"
group = 901
"""
POLICY = load(TEXT.encode())[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)


def failures(edit):
    """Return the verdicts other than proved if each rule is replaced by edit(chain name, statements)."""
    return not_proved(with_edited_rules(STATE, edit))


def not_proved(state):
    return {(one.property, one.verdict) for one in prove(state, SPEC).findings if one.verdict != "proved"}


def test_kernel_tcp_is_proved_with_an_assumption():
    proof = prove(STATE, SPEC)
    assert {one.verdict for one in proof.findings} == {"proved"}
    assert any("AF_SMC" in text and "servers of nfs" in text for text in proof.assumptions)
    assert "service nfs: the kernel's TCP that no process owns may send" in describe_policy(POLICY, STATE)


FAULTS = {
    "packets of processes": (
        lambda name, each: () if name == "tunnels" and "return" in str(each) else each, {("P1", "refuted")}),
    "replies of servers, marked": (
        lambda name, each: without(each, "direction") if name == "tunnels" else each, {("P1", "unknown")}),
    "replies of servers, permitted": (
        lambda name, each: without(each, "direction") if ".kernel-tcp" in str(each) and name == "wan.mark-owner" else each,
        {("P1", "refuted")}),
    "any destination": (
        lambda name, each: without(each, ".kernel-tcp") if name == "tunnels" else each, {("P1", "unknown")}),
    "no mark": (lambda name, each: () if name == "tunnels" else each, {("P3", "refuted")}),
    "no entry": (lambda name, each: () if ".kernel-tcp" in str(each) and name == "wan.mark-owner" else each,
        {("P3", "refuted")}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_kernel_tcp_is_not_proved(name):
    edit, expected = FAULTS[name]
    assert failures(edit) >= expected


@pytest.mark.parametrize("hook", ["prerouting", "postrouting"])
def test_kernel_tcp_marked_in_another_hook_is_not_proved(hook):
    inet, *others = STATE.tables
    chains = (evolve(each, hook=Hook("filter", hook, -151)) if each.name == "tunnels" else each for each in inet.chains)
    assert not_proved(evolve(STATE, tables=(evolve(inet, chains=tuple(chains)), *others)))


def test_kernel_tcp_without_its_ip_rules_is_refuted():
    rules = tuple(rule for rule in STATE.rules if rule.priority not in (860, 865))
    assert len(rules) == len(STATE.rules) - 10
    assert ("P3", "refuted") in not_proved(evolve(STATE, rules=rules))


@pytest.mark.parametrize("uplink", ["wan", "lte"])
def test_destination_of_two_kernel_services_is_refused(uplink):
    other = f'[service.b]\nuplink = "{uplink}"\nkernel = true\nports = ["tcp/1-50", "tcp/2000-3000"]\nto = ["198.51.100.0/24"]\n'
    with pytest.raises(PolicyError, match=r"service 'nfs' sends tcp/2000-3000 to 198.51.100.0/24 by uplink 'wan'"):
        load((TEXT + other).encode())
