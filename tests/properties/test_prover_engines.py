"""The prover against z3 and against every single packet, on rulesets and machines by chance.

`python -m tests.engines` does the same for as long as one likes, and counts.
"""

import pytest
from attrs import evolve
from hypothesis import given, settings

from nftpolicy.model.symbolic import chain_paths, chain_transfer
from nftpolicy.model.symbolic.box_index import BoxIndex
from nftpolicy.model.symbolic.chain_transfer import ChainTransfer
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Bitwise, Mangle, Match, Meta
from nftpolicy.netstate.state import NetState
from nftpolicy.proof import lemmas, no_leak
from nftpolicy.proof.spec import MarkTest, Region
from tests import leaking_states
from tests.engines import ruleset_strategies, toy_states, z3_chains
from tests.engines.compare_engines import disagreement, wrong_integrity, wrong_verdict

MORE = settings(max_examples=settings().max_examples * 2)


@given(ruleset_strategies.questions())
@MORE
def test_boxes_z3_and_single_packets_agree_on_what_passes(question):
    assert disagreement(question) is None


@given(ruleset_strategies.questions(unknown=True, writes=True))
@MORE
def test_no_packet_is_missed_where_marks_are_written_or_something_is_not_understood(question):
    assert disagreement(question) is None


@given(toy_states.toys())
def test_no_chain_gives_a_mark_unless_the_prover_says_so(toy):
    assert wrong_integrity(toy) is None


@given(toy_states.toys())
@MORE
def test_findings_about_a_machine_are_those_of_all_its_packets(toy):
    assert wrong_verdict(toy) is None


@given(toy_states.toys(unknown=True))
def test_findings_hold_where_something_is_not_understood(toy):
    assert wrong_verdict(toy) is None


# --- that these tests would see an engine that is wrong ---------------------------------


RETURN = nft.Verdict("return")
LOW = Match(Bitwise(Meta("mark"), and_mask=1), 1)


def question(*rules, called=(), region=None):
    """All packets that leave by wan, and a chain at postrouting that calls "part"."""
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
def test_all_engines_agree_on_the_questions_that_follow(name):
    assert disagreement(QUESTIONS[name]) is None


def test_a_return_that_accepts_is_seen(monkeypatch):
    right = chain_transfer.effect_of
    monkeypatch.setattr(chain_transfer, "effect_of", lambda one: "accept" if right(one) == "return" else right(one))
    assert disagreement(question(CALL, (LOW, nft.DROP), called=((LOW, RETURN), (nft.DROP,)))) is not None


def test_packets_that_have_left_a_chain_and_are_counted_as_decided_there_are_seen(monkeypatch):
    monkeypatch.setattr(ChainTransfer, "_minus_returned", lambda self, gone, told, box: [box])
    assert disagreement(RETURNS) is not None


def test_a_cover_that_is_forgotten_is_seen(monkeypatch):
    right = BoxIndex.overlapping
    monkeypatch.setattr(BoxIndex, "overlapping", lambda self, *asked: right(self, *asked)[1:])
    assert disagreement(question((LOW, nft.DROP), (nft.ACCEPT,))) is not None


def test_an_entry_of_a_map_that_is_not_seen_is_seen(monkeypatch):
    right = ChainTransfer.verdict_entries
    monkeypatch.setattr(ChainTransfer, "verdict_entries", lambda self, *asked: list(right(self, *asked))[1:])
    monkeypatch.setattr(ChainTransfer, "_lazy_drops", lambda self, *_: iter(()))
    assert disagreement(question((nft.VerdictMap(Meta("mark"), frozenset({(0, nft.DROP)})),))) is not None


def test_a_write_that_is_not_seen_is_seen(monkeypatch):
    monkeypatch.setattr(chain_paths, "marks_after", lambda space, statement, marks: dict(marks))
    assert disagreement(WRITES) is not None


def test_a_formula_that_is_too_narrow_is_seen(monkeypatch):
    monkeypatch.setattr(z3_chains.Reader, "doubt", lambda self: z3_chains.FALSE)
    assert disagreement(UNKNOWN) is not None


GUARD = nft.Chain(
    "guard",
    (nft.Rule((Match(Meta("oifname"), "wan"), evolve(LOW, op="!="), nft.DROP)),),
    nft.Hook("filter", "postrouting", 10000),
)
DRESSED = nft.Chain("mark", (nft.Rule((Mangle(Meta("mark"), 1),)),), nft.Hook("route", "output", -150))
ROUTES = (
    *leaking_states.loopback(4),
    *leaking_states.device(4, "wan", "192.0.2.2", "192.0.2.0/24"),
    leaking_states.default(4, "wan", "192.0.2.1"),
)


def machine(*chains):
    """Everything is routed to the uplink, and only these chains are in the way."""
    tables = (nft.Table("inet", "own", chains),)
    return toy_states.Toy(NetState(tables, leaking_states.standard_rules(4), ROUTES), ("oif",))


@pytest.mark.parametrize("chains", [(GUARD,), (GUARD, DRESSED), ()], ids=["guarded", "dressed", "open"])
def test_the_findings_about_the_machines_that_follow_are_right(chains):
    assert wrong_verdict(machine(*chains)) is None


@pytest.mark.parametrize(("lemma", "chains"), [("integrity_violations", (GUARD, DRESSED)), ("guard_violation", ())])
def test_a_prover_without_one_of_its_lemmas_is_seen(monkeypatch, lemma, chains):
    nothing = {"integrity_violations": [], "guard_violation": None}[lemma]
    for module in (lemmas, no_leak):
        monkeypatch.setattr(module, lemma, lambda *_, **__: nothing)
    assert wrong_verdict(machine(*chains)) is not None
