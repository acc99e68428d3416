"""Services of root, which their mark alone tells from other programs: proof, faults, sockets."""

import pytest

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.compiler.describe import describe_policy
from nftpolicy.kernel.netlink.sock_diag import TCP, InetSocket
from nftpolicy.kernel.socket_owners import SocketOwner
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.runtime.services.socket_classifier import (
    FORGED,
    OUTSIDE_CGROUP,
    RIGHT,
    UNANSWERED_REPLY,
    UNMARKED,
    WRONG_DESTINATION,
    classify_sockets,
)
from tests.unit.proved_policy import with_edited_rules, without

POLICY = load(b"""
name = "p"
inside = ["bat0"]
[uplink.wan]
devices = ["eth0"]
mark = "0x1/0x3"
table = 7
answer = ["ssh"]
[uplink.wan.resolver]
[uplink.lte]
devices = ["wwan0"]
mark = "0x2/0x3"
table = 8
[uplink.lte.resolver]
listen = ["127.0.0.2:54", "[fd00::1]:54"]
[service.snapd]
uplink = "wan"
user = 0
marks = "cgroup"
cgroup = "system.slice/snapd.service"
ports = ["tcp/443", "ping"]
[service.connectivity]
uplink = "wan"
user = 0
marks = "cgroup"
to = ["192.0.2.7", "2001:db8::7"]
[service.modem]
uplink = "lte"
user = 0
marks = "cgroup"
[service.tor]
uplink = "lte"
group = 901
[service.mail]
uplink = "lte"
user = 902
""")[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)


def failures(edit):
    """Return the properties that are not proved if each rule is replaced by edit(chain name, statements)."""
    state = with_edited_rules(STATE, edit)
    return {(one.property, one.verdict) for one in prove(state, SPEC).findings if one.verdict != "proved"}


def is_of_root(statements):
    return "skuid" in str(statements) and "'mark'" in str(statements)


def test_root_services_are_proved_with_an_assumption():
    proof = prove(STATE, SPEC)
    assert {one.verdict for one in proof.findings} == {"proved"}
    text = "no other program of root begins a flow with the mark of uplink wan: it counts as snapd, connectivity"
    assert text in proof.assumptions
    # snapd sends over TCP only
    assert any(each.startswith("peers of connectivity begin no flow") for each in proof.assumptions)
    assert "root's sockets of the cgroup system.slice/snapd.service with the mark" in describe_policy(POLICY, STATE)


FAULTS = {
    "replies of root's servers": (
        lambda name, each: without(each, "direction") if ".root-" in str(each) else each, {("P1", "refuted")}),
    "resolver for all of root": (
        lambda name, each: without(each, "'mark'") if name == "wan.resolver" and is_of_root(each) else each,
        {("P5", "refuted")}),
    "redirection of all of root": (
        lambda name, each: without(each, "'mark'") if name == "dns-redirect" and is_of_root(each) else each,
        {("P3", "refuted")}),
    "no redirection": (
        lambda name, each: () if name == "dns-redirect" and is_of_root(each) else each, {("P3", "refuted")}),
    "queries to other servers": (
        lambda name, each: () if name == "dns" and is_of_root(each) else each,
        {("P5", "refuted"), ("P5", "unknown")}),
    "no entry": (lambda name, each: () if ".root-" in str(each) else each, {("P3", "refuted")}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_root_services_is_not_proved(name):
    edit, expected = FAULTS[name]
    assert failures(edit) >= expected


SNAPD, CONNECTIVITY = 5, 6  # numbers of cgroups
SOCKETS = {
    "of the cgroup": ({}, (RIGHT, "snapd")),
    "of the other cgroup": ({"cgroup": CONNECTIVITY, "remote": "192.0.2.7"}, (RIGHT, "connectivity")),
    "of the other cgroup, elsewhere": ({"cgroup": CONNECTIVITY}, (WRONG_DESTINATION, "connectivity")),
    "of no cgroup": ({"cgroup": 7}, (OUTSIDE_CGROUP, "snapd")),
    "of no known cgroup": ({"cgroup": None}, (RIGHT, "snapd")),
    "older than the program": ({"mark": 0}, (UNMARKED, "snapd")),
    "of another program of root": ({"mark": 0, "cgroup": 7}, None),
    "of another user of the cgroup": ({"uid": 1000}, (FORGED, "")),
    "accepted by a server that answers": ({"cgroup": 7, "sport": 22}, (RIGHT, "answer")),
    "accepted by a server that does not": ({"cgroup": 7, "sport": 8080}, (UNANSWERED_REPLY, "")),
}


@pytest.mark.parametrize("name", SOCKETS)
def test_socket_of_root_belongs_to_the_service_of_its_cgroup(name):
    changes, expected = SOCKETS[name]
    fields = {
        "family": 4, "protocol": TCP, "state": "established", "local": "192.0.2.2", "sport": 40000,
        "remote": "198.51.100.10", "dport": 443, "mark": 1, "uid": 0, "inode": 7, "cookie": 9, "cgroup": SNAPD,
    }  # fmt: skip
    listener = InetSocket(**(fields | {"state": "listen", "sport": 8080, "remote": None, "inode": 0}))
    found = classify_sockets(
        [InetSocket(**(fields | changes)), listener], POLICY, {"eth0": ("192.0.2.2",)}, {7: SocketOwner(1, "d", 0)},
        {"snapd": {SNAPD}, "connectivity": {CONNECTIVITY}},
    )  # fmt: skip
    assert (found[0].verdict, found[0].owner) == expected if expected else found == []


@pytest.mark.parametrize(
    ("first", "second", "sets"),
    [
        ('to = ["10.0.0.0/8"]', 'to = ["10.1.0.0/16"]', {"root-to4-ranges": 1, "root-to4-ranges-2": 1}),
        ('to = ["10.0.0.0/8"]', 'to = ["10.0.0.0/8"]', {"root-to4-ranges": 1}),
        ('to = ["10.0.0.0/8"]', 'to = ["11.0.0.0/8"]', {"root-to4-ranges": 2}),
        ('ports = ["tcp/80-90"]', 'ports = ["tcp/85-95"]', {"root-ports-ranges": 1, "root-ports-ranges-2": 1}),
        ('ports = ["tcp/80-90"]', 'ports = ["udp/85-95"]', {"root-ports-ranges": 2}),
        ('to = ["fe80::/57"]', 'to = ["fe80::/64", "fe81::/64"]', {"root-to6-ranges": 2, "root-to6-ranges-2": 1}),
    ],
)
def test_services_of_one_user_have_no_overlap_in_a_set(first, second, sets):
    """nft accepts no set with intervals that overlap; the rows of root's services are in one set otherwise."""
    service = '[service.{}]\nuplink = "wan"\nuser = 0\nmarks = "cgroup"\n{}\n'.format
    text = 'name = "p"\ninside = ["lan"]\n[uplink.wan]\ndevices = ["wan"]\nmark = "1/1"\ntable = 7\n'
    policy, _ = load((text + service("a", first) + service("b", second)).encode())
    state = compile_policy(policy)
    found = {each.name.removeprefix("wan."): len(each.elements) for table in state.tables for each in table.sets
             if "root-" in each.name and table.family == "inet"}  # fmt: skip
    assert found == sets
    assert prove(state, build_spec(policy)).verdict == "proved"
