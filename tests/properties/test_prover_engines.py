"""Prover against z3 and against every single packet, on generated rulesets and hosts.

`python -m tests.engines` runs any number of examples, and counts the answers.
"""

import pytest
from attrs import evolve
from hypothesis import given, settings

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.symbolic import chain_paths, chain_state, chain_walk, rule_execution
from nftpolicy.model.symbolic.box_index import BoxIndex
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Bitwise, Mangle, Match, Meta
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof import lemmas, no_leak
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.spec import IP_FAMILIES, MarkTest, Region
from tests import leaking_states
from tests.bench.sized_policies import GLUON
from tests.engines import ruleset_strategies, toy_states, z3_chains, z3_lemmas
from tests.engines.compare_engines import disagreement, wrong_integrity, wrong_verdict

MORE = settings(max_examples=settings().max_examples * 2)


@given(ruleset_strategies.questions())
@MORE
def test_boxes_z3_and_packets_agree(question):
    assert disagreement(question) is None


@given(ruleset_strategies.questions(unknown=True, writes=True))
@MORE
def test_no_packet_is_missed_with_writes_or_unsupported_parts(question):
    assert disagreement(question) is None


@given(toy_states.toys())
def test_integrity_violations_are_complete(toy):
    assert wrong_integrity(toy) is None


@given(toy_states.toys())
@MORE
def test_findings_equal_the_traces_of_all_packets(toy):
    assert wrong_verdict(toy) is None


@given(toy_states.toys(unknown=True))
def test_findings_hold_with_unsupported_parts(toy):
    assert wrong_verdict(toy) is None


def z3_answers(state, spec, family):
    context = ProofContext(state, spec.devices, spec.masks)
    return list(z3_lemmas.answers(context, spec.uplinks[0], family, lambda: 60))


@pytest.mark.parametrize("family", IP_FAMILIES)
def test_z3_proves_the_lemmas_of_gluon_fastd(family):
    policy = load(GLUON.read_bytes())[0]
    state, spec = compile_policy(policy), build_spec(policy)
    assert z3_answers(state, spec, family) == [True] * 4
    # Later packets of a flow are marked too, and so a flow of a host inside.
    without_status = evolve(state, tables=tuple(map(without_ct_status, state.tables)))
    assert z3_answers(without_status, spec, family) == [False, True, True, True]


def without_ct_status(table):
    def is_status(statement):
        return isinstance(statement, Match) and statement.left == nft.Ct("status")

    chains = [
        evolve(
            chain,
            rules=tuple(
                evolve(rule, statements=tuple(each for each in rule.statements if not is_status(each)))
                for rule in chain.rules
            ),
        )
        for chain in table.chains
    ]
    return evolve(table, chains=tuple(chains))


# --- that these tests would see an engine that is wrong ---------------------------------


RETURN = nft.Verdict("return")
LOW = Match(Bitwise(Meta("mark"), and_mask=1), 1)


def question(*rules, called=(), region=None):
    """Return the question for all packets that leave by wan, with a postrouting chain that calls "part"."""
    chains = (
        nft.Chain("all", tuple(map(nft.Rule, rules)), nft.Hook("filter", "postrouting", 0)),
        nft.Chain("part", tuple(map(nft.Rule, called))),
    )
    tables = (nft.Table("inet", "own", chains),)
    leaving = region or Region(marks=(MarkTest(0, nft.FULL_MASK ^ 7),), oifname=("wan",))
    return ruleset_strategies.Question(ruleset_strategies.Universe(4, ()), tables, leaving, (), "postrouting", None)


CALL = (nft.Verdict("jump", "part"),)
RETURNS = question(CALL, called=((LOW, RETURN), (nft.DROP,)))
MAPS = question(
    (nft.VerdictMap(Meta("mark"), frozenset({(0, nft.DROP), (1, nft.DROP)})),), (LOW, nft.DROP), (nft.DROP,)
)
EVEN = Region(marks=(MarkTest(0, nft.FULL_MASK ^ 6),), oifname=("wan",))
WRITES = question((Mangle(Meta("mark"), 1),), (LOW, nft.ACCEPT), (nft.DROP,), region=EVEN)
UNKNOWN = question((nft.Limit(1, "second"), nft.ACCEPT), (nft.DROP,))
QUESTIONS = {"returns": RETURNS, "maps": MAPS, "writes": WRITES, "unknown": UNKNOWN}


@pytest.mark.parametrize("name", QUESTIONS)
def test_engines_agree_on_fixed_questions(name):
    assert disagreement(QUESTIONS[name]) is None


def test_engines_detect_a_return_that_accepts(monkeypatch):
    right = chain_walk.effect_of
    monkeypatch.setattr(chain_walk, "effect_of", lambda one: "accept" if right(one) == "return" else right(one))
    assert disagreement(question(CALL, (LOW, nft.DROP), called=((LOW, RETURN), (nft.DROP,)))) is not None


def test_engines_detect_returned_packets_counted_as_decided(monkeypatch):
    for module in (chain_state, chain_walk):
        monkeypatch.setattr(module, "still_in_chain", lambda state, narrow, _: [{**state.frame.call.added, **narrow}])
    assert disagreement(RETURNS) is not None


def test_engines_detect_a_missing_cover(monkeypatch):
    right = BoxIndex.overlapping
    monkeypatch.setattr(BoxIndex, "overlapping", lambda self, *asked: right(self, *asked)[1:])
    assert disagreement(question((LOW, nft.DROP), (nft.ACCEPT,))) is not None


def test_engines_detect_a_missing_map_entry(monkeypatch):
    right = rule_execution._verdict_entries
    monkeypatch.setattr(rule_execution, "_verdict_entries", lambda *asked: list(right(*asked))[1:])
    assert disagreement(question((nft.VerdictMap(Meta("mark"), frozenset({(0, nft.DROP)})),))) is not None


def test_engines_detect_an_ignored_mark_write(monkeypatch):
    monkeypatch.setattr(chain_paths, "marks_after", lambda space, statement, marks: dict(marks))
    assert disagreement(WRITES) is not None


def test_engines_detect_a_narrow_formula(monkeypatch):
    monkeypatch.setattr(z3_chains.Reader, "doubt", lambda self: z3_chains.FALSE)
    assert disagreement(UNKNOWN) is not None


GUARD = nft.Chain(
    "guard",
    (nft.Rule((Match(Meta("oifname"), "wan"), evolve(LOW, op="!="), nft.DROP)),),
    nft.Hook("filter", "postrouting", 10000),
)
MARKING = nft.Chain("mark", (nft.Rule((Mangle(Meta("mark"), 1),)),), nft.Hook("route", "output", -150))
ROUTES = (
    *leaking_states.loopback(4),
    *leaking_states.device(4, "wan", "192.0.2.2", "192.0.2.0/24"),
    leaking_states.default(4, "wan", "192.0.2.1"),
)


def machine(*chains):
    """Return a host that routes everything to the uplink through only these chains."""
    tables = (nft.Table("inet", "own", chains),)
    return toy_states.Toy(NetState(tables, leaking_states.standard_rules(4), ROUTES), ("oif",))


@pytest.mark.parametrize("chains", [(GUARD,), (GUARD, MARKING), ()], ids=["guarded", "marking", "open"])
def test_findings_about_fixed_machines_are_correct(chains):
    assert wrong_verdict(machine(*chains)) is None


@pytest.mark.parametrize(("lemma", "chains"), [("integrity_violations", (GUARD, MARKING)), ("guard_violation", ())])
def test_machines_detect_a_missing_lemma(monkeypatch, lemma, chains):
    nothing = {"integrity_violations": [], "guard_violation": None}[lemma]
    for module in (lemmas, no_leak):
        monkeypatch.setattr(module, lemma, lambda *_, **__: nothing)
    assert wrong_verdict(machine(*chains)) is not None
