"""P3 of exclusive answers: a server that is bound to no address answers hosts beyond the gateway."""

from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.routing import TABLE_MAIN, Route
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, REFUTED

POLICY = load(b"""
name = "p"
inside = ["tun*"]
[uplink.wan]
devices = ["eth0"]
mark = "1/3"
table = 7
answer = [
    "udp/54", { name = "udp/53", exclusive = true },
    { name = "udp/60-61", exclusive = true, source = ["203.0.113.0/24"] },
]
[uplink.lte]
devices = ["eth1"]
mark = "2/3"
table = 8
answer = ["udp/54"]
""")[0]
STATE = compile_policy(POLICY)


def exclusive(state):
    """Return the findings about exclusive answers: subject, verdict, packets of the counterexample."""
    return [
        each
        for each in prove(state, build_spec(POLICY)).findings
        if each.property == "P3" and each.subject.endswith("bound to no address")
    ]


def test_exclusive_answers_are_proved():
    subjects = {each.subject: each.verdict for each in exclusive(STATE)}
    assert subjects == {
        f"answer udp/{port} of a server that is bound to no address": PROVED for port in ("53", "60-61")
    }


def test_exclusive_answer_without_its_rule_is_refuted():
    found = exclusive(evolve(STATE, rules=tuple(rule for rule in STATE.rules if rule.priority != 895)))
    assert [each.verdict for each in found] == [REFUTED, REFUTED]
    packets = [each.result.counterexample.packet for each in found]
    assert [(packet.sport, packet.source, packet.flow.state) for packet in packets] == [
        (53, None, "new"),
        (60, None, "new"),
    ]


def test_exclusive_answer_behind_a_foreign_rule_is_refuted():
    foreign = evolve(next(rule for rule in STATE.rules if rule.priority == 895), priority=100, table=TABLE_MAIN)
    found = exclusive(evolve(STATE, rules=(foreign, *STATE.rules)))
    assert [each.verdict for each in found] == [REFUTED, PROVED], "in the family of the foreign rule"


def test_network_inside_is_not_beyond_the_gateway():
    route = Route(4, TABLE_MAIN, "198.51.100.0/24", device="tun0")
    assert {each.verdict for each in exclusive(evolve(STATE, routes=(*STATE.routes, route)))} == {PROVED}
