"""Tunnels of the kernel: the proof of their policy, and of states with a fault."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.packet import KERNEL, Packet, parse_address
from nftpolicy.model.trace import Model
from nftpolicy.netstate.nft import ACCEPT, Bitwise, Hook, Mangle, Match, Meta, Rule
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.usability import starving_rule
from tests.unit.uplink_policy import WAN

POLICY = load(
    WAN
    + b"""[uplink.wan.resolver]
[uplink.lte]
devices = ["wwan0"]
mark = "0x2/0x3"
table = 8
[service.tunnels]
uplink = "wan"
kernel = true
ports = ["gre", "6in4", "ipip", "esp", "l2tp"]
to = ["198.51.100.7", "2001:db8::7"]
[service.other]
uplink = "lte"
kernel = true
ports = ["gre"]
to = ["198.51.101.0/24"]
"""
)[0]
STATE, SPEC = compile_policy(POLICY), build_spec(POLICY)
GRE = Match(Meta("l4proto"), "gre")
SET_MARK = Mangle(Meta("mark"), Bitwise(Meta("mark"), and_mask=0xFFFFFFFD, or_bits=1))


def edited(name, edit):
    """Return the state with one chain of table inet replaced by edit(chain)."""
    inet, *others = STATE.tables
    chains = tuple(edit(chain) if chain.name == name else chain for chain in inet.chains)
    assert chains != inet.chains
    return evolve(STATE, tables=(evolve(inet, chains=chains), *others))


def with_first(name, *statements, state=STATE):
    inet, *others = state.tables
    chains = (
        evolve(chain, rules=(Rule(statements), *chain.rules)) if chain.name == name else chain for chain in inet.chains
    )
    return evolve(state, tables=(evolve(inet, chains=tuple(chains)), *others))


def verdicts(state):
    """Return the worst verdict of each property."""
    order = ("proved", "unknown", "refuted")
    worst = {}
    for finding in prove(state, SPEC).findings:
        if finding.deciding:
            worst[finding.property] = max(worst.get(finding.property, "proved"), finding.verdict, key=order.index)
    return worst


def test_tunnel_policy_is_proved():
    assert set(verdicts(STATE).values()) == {"proved"}


def test_tunnel_rules_are_of_packets_sent_here():
    rules = [rule for rule in STATE.rules if rule.l4proto in (4, 41, 47, 115)]
    assert {(rule.priority, rule.action, rule.iif) for rule in rules} == {
        (860, "lookup", "lo"),
        (865, "unreachable", "lo"),
    }
    assert {(rule.family, rule.table, rule.destination) for rule in rules if rule.table} == {
        (4, 7, "198.51.100.7/32"), (6, 7, "2001:db8::7/128"), (4, 8, "198.51.101.0/24"),
    }  # fmt: skip


@pytest.mark.parametrize("hook", ["prerouting", "forward", "postrouting"])
def test_tunnel_mark_in_another_hook_is_not_proved(hook):
    behind_arrival = -148  # which takes marks of earlier chains
    state = edited("tunnels", lambda chain: evolve(chain, hook=Hook("filter", hook, behind_arrival)))
    found = verdicts(evolve(state, sysctls=(*state.sysctls, Sysctl("net/ipv4/ip_forward", "1"))))
    assert found["P1"] != "proved"


def test_mark_for_any_destination_is_refuted():
    unmarked = with_first("tunnels", GRE, SET_MARK)
    assert verdicts(unmarked)["P1"] == "unknown"  # the guard holds its packets
    assert verdicts(with_first("wan.mark-owner", GRE, ACCEPT, state=unmarked))["P1"] == "refuted"


def test_mark_for_other_protocols_is_not_proved():
    assert verdicts(with_first("tunnels", Match(Meta("l4proto"), "udp"), SET_MARK))["P1"] != "proved"


def test_guard_that_accepts_any_tunnel_is_refuted():
    assert verdicts(with_first("wan.guard", GRE, ACCEPT))["P1"] == "refuted"


L2TP = Packet(4, parse_address("198.51.100.7"), protocol=115, uid=1000)
ROUTED = Model(evolve(STATE, routes=(*STATE.routes, Route(4, 7, device="eth0"))))


@pytest.mark.parametrize("ids", [(0, 1), (1, 0), (0xFFFF, 0xFFFF)])
def test_l2tp_data_gets_the_mark(ids):
    found = ROUTED.trace(evolve(L2TP, sport=ids[0], dport=ids[1]))
    assert (found.outcome, found.device, found.mark) == ("leaves", "eth0", 1)


def test_l2tp_of_a_process_is_dropped():
    """A socket of a process has the session ID 0, and no other packet of it has the mark."""
    control, elsewhere = evolve(L2TP, sport=0, dport=0), parse_address("198.51.100.8")
    for packet in (control, evolve(control, mark=1), evolve(L2TP, destination=elsewhere, bound="eth0")):
        assert ROUTED.trace(packet).outcome == "dropped", packet


def without_session_id(chain):
    """Return a chain in which control packets of L2TP count as data."""
    rules = tuple(
        evolve(rule, statements=tuple(each for each in rule.statements if "sport" not in str(each)))
        for rule in chain.rules
    )
    return evolve(chain, rules=rules)


def test_l2tp_without_session_id_is_refuted():
    unmarked = edited("tunnels", without_session_id)
    assert verdicts(unmarked)["P1"] == "unknown"  # the guard holds its packets
    inet, *others = unmarked.tables
    chains = tuple(without_session_id(each) if each.name == "wan.mark-owner" else each for each in inet.chains)
    assert verdicts(evolve(unmarked, tables=(evolve(inet, chains=chains), *others)))["P1"] == "refuted"


@pytest.mark.parametrize("chain", ["tunnels", "wan.mark-owner"])
def test_l2tp_without_its_rules_is_refuted(chain):
    def without(item):
        return evolve(item, rules=tuple(rule for rule in item.rules if "l2tp" not in str(rule)))

    assert verdicts(edited(chain, without))["P3"] == "refuted"


@pytest.mark.parametrize("chain", ["tunnels", "wan.mark-owner"])
def test_tunnel_without_its_rules_is_refuted(chain):
    def without(item):
        rules = tuple(rule for rule in item.rules if "tunnels" not in str(rule))
        return evolve(item, rules=rules)

    assert verdicts(edited(chain, without))["P3"] == "refuted"


def test_rule_that_keeps_a_tunnel_from_its_table_is_named():
    """Without it, a tunnel that is unroutable for good would look like one whose network is not there yet."""
    foreign = IpRule(4, 400, "unreachable", destination="198.51.100.0/24", protocol=4)
    model, wan = Model(evolve(STATE, rules=(foreign, *STATE.rules))), SPEC.uplinks[0]
    tunnel = Packet(4, parse_address("198.51.100.7"), protocol=47, origin=KERNEL)
    assert starving_rule(model.trace(tunnel), wan) == foreign
    for other in (evolve(tunnel, protocol=17), evolve(tunnel, destination=parse_address("198.51.100.8"))):
        assert starving_rule(model.trace(other), wan) is None
    assert starving_rule(Model(STATE).trace(tunnel), wan) is None


def test_tunnel_without_its_ip_rules_is_refuted():
    rules = tuple(rule for rule in STATE.rules if rule.l4proto not in (4, 41, 47, 115))
    found = verdicts(evolve(STATE, rules=rules))
    assert (found["P1"], found["P3"]) == ("proved", "refuted")
