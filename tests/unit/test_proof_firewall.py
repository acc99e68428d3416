"""Proof of a policy beside a foreign firewall that accepts nothing."""

from pathlib import Path

from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import ACCEPT, DROP, Chain, Hook, Match, Meta, Rule, Table
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED

POLICY = load((Path(__file__).parents[2] / "rulesets" / "gluon-fastd.toml").read_bytes())[0]


def state_with_firewall(hook: str, priority: int) -> NetState:
    rules = (Rule((Match(Meta("iifname"), "lo"), ACCEPT)), Rule((DROP,)))
    state = compile_policy(POLICY)
    others = Table("inet", "fw4", (Chain("in", rules, Hook("filter", hook, priority)),))
    return evolve(state, tables=(*state.tables, others))


def test_foreign_input_firewall_leaves_policy_proved() -> None:
    """Drop after the mark is set, which leaves every key of the policy effective."""
    assert prove(state_with_firewall("input", 0), build_spec(POLICY)).verdict == PROVED


def test_foreign_firewall_before_the_mark_is_found() -> None:
    proof = prove(state_with_firewall("prerouting", -300), build_spec(POLICY))
    found = {(one.property, one.subject) for one in proof.findings if one.verdict != PROVED}
    assert found == {("P3", "arriving packets are marked"), ("P3", "DHCP replies to the client on a bridge")}


def test_drop_in_own_chain_is_refuted() -> None:
    """Drop everything in `wan.arrival`, after which nothing can be answered."""
    state = compile_policy(POLICY)
    table = state.tables[0]
    chains = tuple(
        evolve(one, rules=tuple(evolve(rule, statements=rule.statements[-2:]) for rule in one.rules[:1]))
        if one.name == "wan.arrival"
        else one
        for one in table.chains
    )
    broken = evolve(state, tables=(evolve(table, chains=chains), *state.tables[1:]))
    assert prove(broken, build_spec(POLICY)).verdict != PROVED
