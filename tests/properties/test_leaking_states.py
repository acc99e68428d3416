"""Foreign and changed tables that a proof must not overlook, one by one."""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Chain, Ct, Hook, Mangle, Match, Meta, Payload, Rule, Table
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED
from tests.finding_invariants import assert_findings_are_sound

FILE = Path(__file__).parents[2] / "rulesets" / "gluon-fastd.toml"
POLICY = load(FILE.read_bytes(), str(FILE))[0]
PORTS = {"br-wan": ("eth0", "eth1")}
STATE, SPEC = compile_policy(POLICY, HostFacts(bridge_ports=PORTS)), build_spec(POLICY, PORTS)
SOURCE_MATCH = Match(Payload("ip", "saddr"), "10.0.0.1")
MARK = Mangle(Meta("mark"), 1)


def chain(hook, priority, *rules, kind="filter", device=None):
    return Chain("c", tuple(Rule(rule) for rule in rules), Hook(kind, hook, priority, "accept", device))


def with_foreign_table(family, *chains):
    return evolve(STATE, tables=(Table(family, "other", chains), *STATE.tables))


def with_own_tables(change):
    return evolve(STATE, tables=tuple(change(table) for table in STATE.tables))


def with_growing_set(table):
    """Add a rule that adds devices to the set of inside devices."""
    adds = chain("output", 0, (nft.SetUpdate("add", "inside", Meta("oifname")),))
    return evolve(table, chains=(*table.chains, adds)) if table.family == "inet" else table


def without_chain_devices(table):
    """Remove the device from each chain, as in an incomplete listing."""
    return evolve(
        table,
        chains=tuple(one and evolve(one, hook=one.hook and evolve(one.hook, device=None)) for one in table.chains),
    )


LEAKING = {
    "a write of the mark": with_foreign_table("inet", chain("output", 0, (MARK,), kind="route")),
    "a mark from a map": with_foreign_table(
        "inet",
        chain("output", 0, (Mangle(Meta("mark"), nft.Lookup(Meta("skuid"), frozenset({(5, 1)}))),), kind="route"),
    ),
    "a mark for frames": with_foreign_table("netdev", chain("egress", 300, (MARK,), device="br-wan")),
    "a mark for the flow, which a rule of ours gives back": with_foreign_table("inet", chain("output", -300, (Mangle(Ct("mark"), 1),))),
    "a mark by a header that the rule before has written": with_foreign_table(
        "ip",
        chain("output", 0, (SOURCE_MATCH, nft.DROP), (Mangle(Payload("ip", "saddr"), "10.0.0.1"),), (SOURCE_MATCH, MARK), kind="route"),
    ),
    "a type that makes frames those of the bridge": with_foreign_table(
        "netdev", chain("egress", 0, (Mangle(Meta("pkttype"), "other"),), device="eth0")
    ),
    "a program that decides": with_foreign_table("inet", chain("output", 0, (nft.Queue(0),))),
    "a statement of xtables": with_foreign_table("inet", chain("output", 0, (nft.UnknownStatement('{"xt": null}'),))),
    "another device": with_foreign_table("netdev", chain("ingress", 0, (nft.Fwd("br-wan"),), device="bat0")),
    "a fast path": with_foreign_table("inet", chain("forward", 0, (nft.FlowOffload("ft"),))),
    "a set that packets add to": with_own_tables(with_growing_set),
    "chains that may be on another device": with_own_tables(without_chain_devices),
    "tables that may be dormant": with_own_tables(lambda table: evolve(table, flags=frozenset({"unnamed"}))),
    "tables that are": with_own_tables(lambda table: evolve(table, flags=frozenset({"dormant"}))),
}  # fmt: skip

HARMLESS = {
    "nothing": STATE,
    "translation": with_foreign_table("inet", chain("postrouting", 100, (nft.Masquerade(),), kind="nat")),
    "a foreign mark": with_foreign_table("inet", chain("postrouting", 0, (Mangle(Meta("mark"), nft.Bitwise(Meta("mark"), and_mask=0xFFFF00FF)),))),
    "another's drops": with_foreign_table("inet", chain("output", 0, (Match(Meta("skuid"), 7), nft.DROP), (nft.ACCEPT,))),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKING)
def test_leaking_state_is_not_proved(name):
    proof = prove(LEAKING[name], SPEC)
    assert_findings_are_sound(proof, SPEC)
    assert proof.property_verdict("P1") != PROVED


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_state_is_proved(name):
    assert prove(HARMLESS[name], SPEC).property_verdict("P1") == PROVED
