# SPDX-License-Identifier: BSD-2-Clause
"""Types of verdicts, and verdicts of P2 to P4 where a foreign object makes a part unknown."""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import DROP, Chain, Hook, Limit, Match, Meta, Rule, Table
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.assumptions import sample_device
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, REFUTED, UNKNOWN, Finding, Proof, Refuted, Unknown
from tests.finding_invariants import assert_findings_are_sound

ROOT = Path(__file__).parents[2]
POLICY = load((ROOT / "rulesets" / "vpn-killswitch.toml").read_bytes())[0]
STATE = compile_policy(POLICY)
VALUE, MASK = 0x1110, 0x3F10
FOREIGN_TABLE = 100
FOREIGN_ROUTES = tuple(Route(family, FOREIGN_TABLE, "default", device="virbr0") for family in (4, 6))


def proof_of(state: NetState) -> Proof:
    spec = build_spec(POLICY)
    proof = prove(state, spec)
    assert_findings_are_sound(proof, spec)
    return proof


def with_chain(family: str, hook: str, *rules: Rule) -> NetState:
    chain = Chain("c", rules, Hook("filter", hook, 0))
    return evolve(STATE, tables=(*STATE.tables, Table(family, "foreign", (chain,))))


def with_foreign_rules(state: NetState, **selectors: object) -> NetState:
    rules = [IpRule(family, 100, table=FOREIGN_TABLE, protocol=4, **selectors) for family in (4, 6)]  # type: ignore[arg-type]
    ordered = sorted((*state.rules, *rules), key=lambda rule: (rule.family, rule.priority))
    return evolve(state, rules=tuple(ordered), routes=(*state.routes, *FOREIGN_ROUTES))


def of_property(proof: Proof, name: str) -> list[Finding]:
    return [finding for finding in proof.findings if finding.property == name]


def test_refuted_without_a_counterexample_is_an_error() -> None:
    with pytest.raises(TypeError):
        Refuted()  # type: ignore[call-arg]


def test_unknown_without_a_reason_is_an_error() -> None:
    with pytest.raises(ValueError, match="reason"):
        Unknown("")


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_parity_of_an_unknown_family_is_unknown(family: str) -> None:
    proof = proof_of(with_chain(family, "output", Rule((Limit(10, "second", over=True), DROP))))
    assert (proof.property_verdict("P4"), proof.verdict) == (UNKNOWN, UNKNOWN)
    for finding in of_property(proof, "P4"):
        assert finding.verdict != UNKNOWN or finding.unsupported, finding


@pytest.mark.parametrize(("family", "version"), [("ip", 4), ("ip6", 6)])
def test_parity_is_refuted_by_a_packet_of_the_worse_family(family: str, version: int) -> None:
    proof = proof_of(with_chain(family, "output", Rule((Match(Meta("oifname"), "eth0"), DROP))))
    refuted = [finding for finding in of_property(proof, "P4") if finding.verdict == REFUTED]
    assert refuted
    for finding in refuted:
        (example,) = finding.examples
        assert (example.packet.family, example.trace.outcome) == (version, "dropped")
        assert f"IPv{version} cannot" in finding.detail


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(("family", "better", "worse"), [("ip", 6, 4), ("ip6", 4, 6)])
def test_parity_is_refuted_where_a_family_can_use_nothing(family: str, better: int, worse: int, protocol: str) -> None:
    """Compare an entry that one family can use in part."""
    out = Match(Meta("oifname"), "eth0")
    in_part = with_chain("inet", "output", Rule((out, Match(Meta("l4proto"), protocol), DROP)))
    chain = Chain("c", (Rule((out, DROP)),), Hook("filter", "output", 1))
    proof = proof_of(evolve(in_part, tables=(*in_part.tables, Table(family, "worse", (chain,)))))
    (found,) = (finding for finding in of_property(proof, "P4") if finding.subject == "queries of the resolver")
    assert found.verdict == REFUTED
    assert found.examples[0].packet.family == worse
    assert f"IPv{better} can be used" in found.detail or f"IPv{better} can:" in found.detail
    assert f"IPv{worse} cannot" in found.detail


@pytest.mark.parametrize("selectors", [{}, {"destination": "198.51.100.0/24"}, {"mark": VALUE, "mask": MASK}])
def test_foreign_ip_rule_is_judged_by_the_guard(selectors: dict[str, object]) -> None:
    """The guard drops what a foreign rule leads elsewhere, so P2 holds; a service that loses its packets refutes P3."""
    if "destination" in selectors:
        rules = [*STATE.rules, IpRule(4, 100, table=FOREIGN_TABLE, protocol=4, destination="198.51.100.0/24")]
        state = evolve(STATE, rules=tuple(sorted(rules, key=lambda rule: (rule.family, rule.priority))))
    else:
        state = with_foreign_rules(STATE, **selectors)
    proof = proof_of(state)
    assert (proof.property_verdict("P1"), proof.property_verdict("P2")) == (PROVED, PROVED)
    if "destination" not in selectors:
        starved = [finding for finding in of_property(proof, "P3") if finding.verdict == REFUTED]
        assert starved
        assert any("since ip rule 100 decides" in finding.detail for finding in starved)


def test_misrouted_packet_that_leaves_refutes_p2() -> None:
    accepting = tuple(
        evolve(table, chains=tuple(evolve(c, rules=(), hook=evolve(c.hook, policy="accept")) if c.hook else c
                                   for c in table.chains))
        for table in STATE.tables
    )  # fmt: skip
    proof = proof_of(with_foreign_rules(evolve(STATE, tables=accepting), mark=VALUE, mask=MASK))
    refuted = [finding for finding in of_property(proof, "P2") if finding.verdict == REFUTED]
    devices = {example.trace.device for finding in refuted for example in finding.examples
               if example.trace.outcome == "leaves"}  # fmt: skip
    assert devices
    assert not devices & {device for uplink in POLICY.uplink.values() for device in uplink.devices}


SWITCHED_OFF = tuple(
    Sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    for name in ("lo", "eth0", "wlan0", *map(sample_device, POLICY.inside))
)


def test_switched_off_ipv6_is_not_tried() -> None:
    proof = proof_of(evolve(STATE, sysctls=(*STATE.sysctls, *SWITCHED_OFF)))
    assert proof.verdict == PROVED
    assert not of_property(proof, "P4")
    assert any("switched off" in text for text in proof.assumptions)


def test_switched_off_ipv6_does_not_refute_no_leak() -> None:
    """Report no IPv6 packet as a leak where the kernel drops all IPv6; find the same packet where it does not."""
    open_state = evolve(STATE, tables=())
    switched_off = evolve(open_state, sysctls=(*open_state.sysctls, *SWITCHED_OFF))
    families = {}
    for name, state in (("on", open_state), ("off", switched_off)):
        examples = [
            e for f in of_property(proof_of(state), "P1") if f.uplink for e in f.examples if e.packet.origin != "frame"
        ]
        families[name] = {example.packet.family for example in examples}
    assert families == {"on": {4, 6}, "off": {4}}
