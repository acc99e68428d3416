"""Things in other tables that a proof must not pass over, one by one: each was, or could have been, overlooked."""

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

FILE = Path(__file__).parents[2] / "rulesets" / "gluon-fastd.toml"
POLICY = load(FILE.read_bytes(), str(FILE))[0]
PORTS = {"br-wan": ("eth0", "eth1")}
STATE, CLAIM = compile_policy(POLICY, HostFacts(bridge_ports=PORTS)), build_spec(POLICY, PORTS)
FROM = Match(Payload("ip", "saddr"), "10.0.0.1")
MARK = Mangle(Meta("mark"), 1)


def chain(hook, priority, *rules, kind="filter", device=None):
    return Chain("c", tuple(Rule(rule) for rule in rules), Hook(kind, hook, priority, "accept", device))


def beside(family, *chains):
    return evolve(STATE, tables=(Table(family, "other", chains), *STATE.tables))


def own(change):
    return evolve(STATE, tables=tuple(change(table) for table in STATE.tables))


def growing(table):
    """Our own table with a rule that adds to the devices inside."""
    adds = chain("output", 0, (nft.SetUpdate("add", "inside", Meta("oifname")),))
    return evolve(table, chains=(*table.chains, adds)) if table.family == "inet" else table


def nowhere(table):
    """Chains of which the listing does not tell the device."""
    return evolve(
        table,
        chains=tuple(one and evolve(one, hook=one.hook and evolve(one.hook, device=None)) for one in table.chains),
    )


SEEN = {
    "a write of the mark": beside("inet", chain("output", 0, (MARK,), kind="route")),
    "a mark from a map": beside(
        "inet",
        chain("output", 0, (Mangle(Meta("mark"), nft.Lookup(Meta("skuid"), frozenset({(5, 1)}))),), kind="route"),
    ),
    "a mark for frames": beside("netdev", chain("egress", 300, (MARK,), device="br-wan")),
    "a mark for the flow, which a rule of ours gives back": beside("inet", chain("output", -300, (Mangle(Ct("mark"), 1),))),
    "a mark by a header that the rule before has written": beside(
        "ip",
        chain("output", 0, (FROM, nft.DROP), (Mangle(Payload("ip", "saddr"), "10.0.0.1"),), (FROM, MARK), kind="route"),
    ),
    "a type that makes frames those of the bridge": beside(
        "netdev", chain("egress", 0, (Mangle(Meta("pkttype"), "other"),), device="eth0")
    ),
    "a program that decides": beside("inet", chain("output", 0, (nft.Queue(0),))),
    "a statement of xtables": beside("inet", chain("output", 0, (nft.UnknownStatement('{"xt": null}'),))),
    "another device": beside("netdev", chain("ingress", 0, (nft.Fwd("br-wan"),), device="bat0")),
    "a fast path": beside("inet", chain("forward", 0, (nft.FlowOffload("ft"),))),
    "a set that packets add to": own(growing),
    "chains that may be on another device": own(nowhere),
    "tables that may be dormant": own(lambda table: evolve(table, flags=frozenset({"unnamed"}))),
    "tables that are": own(lambda table: evolve(table, flags=frozenset({"dormant"}))),
}  # fmt: skip

UNSEEN = {
    "nothing": STATE,
    "translation": beside("inet", chain("postrouting", 100, (nft.Masquerade(),), kind="nat")),
    "a foreign mark": beside("inet", chain("postrouting", 0, (Mangle(Meta("mark"), nft.Bitwise(Meta("mark"), and_mask=0xFFFF00FF)),))),
    "another's drops": beside("inet", chain("output", 0, (Match(Meta("skuid"), 7), nft.DROP), (nft.ACCEPT,))),
}  # fmt: skip


@pytest.mark.parametrize("what", SEEN)
def test_leaking_state_is_not_proved(what):
    assert prove(SEEN[what], CLAIM).property_verdict("P1") != PROVED


@pytest.mark.parametrize("what", UNSEEN)
def test_harmless_state_is_proved(what):
    assert prove(UNSEEN[what], CLAIM).property_verdict("P1") == PROVED
