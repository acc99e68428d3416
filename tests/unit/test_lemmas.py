"""Lemmas of the proof: which rules may give a mark, and which chains together guard an uplink."""

import pytest
from attrs import evolve

from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    FULL_MASK,
    AnonymousSet,
    Bitwise,
    Chain,
    Ct,
    Dup,
    FlowOffload,
    Hook,
    Limit,
    Mangle,
    Map,
    Masquerade,
    Match,
    Meta,
    Payload,
    Rule,
    Snat,
    Table,
    UnknownStatement,
    Verdict,
    VerdictMap,
    VerdictMapRef,
)
from nftpolicy.proof.prover import prove_guard
from tests.unit.proved_policy import (
    IPV4,
    IPV6,
    MARKED,
    SPEC,
    STATE,
    WAN,
    beside,
    guard_verdict,
    sockets_of_wan,
)

# --- integrity -------------------------------------------------------------------------------------


PUT_ON = Mangle(Meta("mark"), 1)
WRITES = {
    "a constant": (PUT_ON,),
    "one bit": (Mangle(Meta("mark"), Bitwise(Meta("mark"), and_mask=FULL_MASK, or_bits=1)),),
    "for one user": (Match(Meta("skuid"), 4711), PUT_ON),
    "the other uplink's": (Mangle(Meta("mark"), 2),),
    "the flow's after it was set": (Mangle(Ct("mark"), 1), Mangle(Meta("mark"), Ct("mark"))),
}


@pytest.mark.parametrize("hook", ["output", "postrouting", "prerouting"])
@pytest.mark.parametrize("name", WRITES)
def test_rule_that_gives_the_mark_is_refuted(name, hook):
    kind = "route" if hook == "output" else "filter"
    priority = -148 if hook == "prerouting" else -150  # behind the policy's chain, which takes marks again
    state = beside(Rule(WRITES[name]), hook=hook, kind=kind, priority=priority)
    assert guard_verdict(state, name="P1") != "proved"


@pytest.mark.parametrize("test", [Match(Meta("mark"), 0x200), Match(Meta("mark"), 2), Match(Meta("skgid"), 800)])
@pytest.mark.parametrize("hook", ["output", "postrouting"])
def test_rule_that_gives_the_mark_to_some_is_refuted(test, hook):
    """Find a packet that passes the test of the rule, and then the guard."""
    kind = "route" if hook == "output" else "filter"
    assert sockets_of_wan(beside(Rule((test, PUT_ON)), hook=hook, kind=kind)).verdict == "refuted"


@pytest.mark.parametrize(
    ("mark", "detail"),
    [
        (Meta("mark"), "inet foreign c: 'meta mark set 0x1'"),
        (Ct("mark"), "inet foreign c: 'ct mark set 0x1' (the flow may have begun elsewhere)"),
    ],
)
def test_detail_names_the_rule_that_gives_the_mark(mark, detail):
    findings = prove_guard(beside(Rule((Mangle(mark, 1),))), SPEC).findings
    (found,) = (one for one in findings if one.subject.startswith("forwarded") and one.verdict != "proved")
    assert found.detail.split("; ")[0] == detail


def test_write_in_a_called_chain_is_refuted():
    called = Chain("marks", (Rule((PUT_ON,)),))
    assert guard_verdict(beside(Rule((Verdict("jump", "marks"),)), more=(called,)), name="P1") == "refuted"
    assert guard_verdict(beside(Rule((Verdict("goto", "marks"),)), more=(called,)), name="P1") == "refuted"
    map_ = Map("m", ("uid",), ("verdict",), frozenset({(4711, Verdict("jump", "marks"))}))
    by_map = Rule((VerdictMapRef(Meta("skuid"), "m"),))
    assert guard_verdict(beside(by_map, more=(called,), maps=(map_,)), name="P1") != "proved"
    maps = (evolve(map_, elements=frozenset({(4711, ACCEPT)})),)
    assert guard_verdict(beside(by_map, more=(called,), maps=maps), name="P1") == "proved"
    assert guard_verdict(beside(Rule((Match(Meta("skuid"), 1), ACCEPT)), more=(called,)), name="P1") == "proved"


def test_write_to_frames_at_egress_is_refuted():
    chain = Chain("c", (Rule((PUT_ON,)),), Hook("filter", "egress", -500, device="wan"))
    state = evolve(STATE, tables=(*STATE.tables, Table("netdev", "foreign", (chain,))))
    subjects = {one.subject.split(":")[0] for one in prove_guard(state, SPEC).findings if one.verdict != "proved"}
    assert {"AF_PACKET sockets", "frames of other ethertypes"} <= subjects


def test_write_that_the_mark_itself_precedes_is_proved():
    assert guard_verdict(beside(Rule((MARKED, PUT_ON)))) == "proved"
    assert (
        guard_verdict(beside(Rule((Match(Meta("iifname"), "wan"), PUT_ON)), hook="prerouting", kind="filter"))
        == "proved"
    )
    other_bit = Mangle(Meta("mark"), Bitwise(Meta("mark"), and_mask=FULL_MASK, or_bits=0x100))
    assert guard_verdict(beside(Rule((other_bit,)))) == "proved"


BYPASSES = {
    "a copy": Dup("192.0.2.9", "wan"),
    "a fast path": FlowOffload("fast"),
    "an unknown statement": UnknownStatement('{"new": 1}'),
}


@pytest.mark.parametrize("name", BYPASSES)
def test_statement_that_bypasses_the_guard_is_unknown(name):
    proof = prove_guard(beside(Rule((BYPASSES[name],)), hook="prerouting", kind="filter"), SPEC)
    unknown = [one for one in proof.findings if one.verdict == "unknown"]
    assert {(one.property, one.uplink) for one in unknown} >= {(p, u) for p in ("P1", "P2") for u in ("wan", "lte")}
    assert all(one.unsupported for one in unknown)
    assert proof.verdict == "unknown"


EXEMPT_DHCP = (
    WAN,
    Match(Payload("ip", "daddr"), "255.255.255.255"),
    Match(Payload("udp", "sport"), 68),
    Match(Payload("udp", "dport"), 67),
)

# --- two chains that guard a half each ---------------------------------------------------------------

LOW, HIGH = Match(Payload("ip", "saddr"), "0.0.0.0/1"), Match(Payload("ip", "saddr"), "128.0.0.0/1")
UNMARKED_WAN = (WAN, Match(Bitwise(Meta("mark"), and_mask=0xFF), 1, "!="))


def halves(between=None, hook=None, low=LOW, high=HIGH):
    """Return a state of which two chains guard a half each; `between` is a statement of a chain between them."""
    chains = [
        Chain("low", (Rule((*UNMARKED_WAN, low, DROP)),), Hook("filter", "postrouting", 0)),
        Chain("high", (Rule((*UNMARKED_WAN, high, DROP)),), Hook("filter", "postrouting", 300)),
    ]
    six = Chain("six", (Rule((*UNMARKED_WAN, IPV6, DROP)),), Hook("filter", "postrouting", 0))
    if between is not None:
        chains.append(Chain("between", (Rule((between,)),), hook or Hook("filter", "postrouting", 100)))
    links = tuple(table for table in STATE.tables if table.family == "netdev")
    return evolve(STATE, tables=(Table("ip", "t", tuple(chains)), Table("inet", "s", (six,)), *links))


def sockets_without_link_guard(state):
    """Return the verdict for sockets by the IP layer alone."""
    bare = evolve(state, tables=tuple(table for table in state.tables if table.family != "netdev"))
    return sockets_of_wan(bare).verdict


def test_two_chains_guard_a_half_each():
    assert sockets_without_link_guard(halves()) == "proved"
    assert sockets_without_link_guard(halves(high=LOW)) != "proved"


def test_address_that_changes_between_two_halves_is_not_proved():
    assert sockets_without_link_guard(halves(Mangle(Payload("ip", "saddr"), "192.0.2.1"))) != "proved"
    nat = Hook("nat", "postrouting", 100)
    assert sockets_without_link_guard(halves(Snat("ip", "192.0.2.1"), nat)) != "proved"
    assert sockets_without_link_guard(halves(Masquerade(), nat)) != "proved"


def test_header_that_a_later_chain_writes_is_not_final():
    # The first chain drops all but an exemption, the second makes the accepted packets something else.
    exempt = EXEMPT_DHCP[1:]
    first = Chain("c", (Rule((IPV4, *exempt, ACCEPT)), Rule((*UNMARKED_WAN, DROP))), Hook("filter", "postrouting", 0))
    write = Rule((WAN, Mangle(Payload("udp", "dport"), 9)))
    for rules, verdict in (((), "proved"), ((write,), None)):
        later = Chain("later", rules, Hook("filter", "postrouting", 100))
        found = sockets_of_wan(evolve(STATE, tables=(Table("inet", "t", (first, later)),))).verdict
        assert found == verdict or (verdict is None and found != "proved")


def test_chain_of_type_nat_guards_nothing():
    rule = Rule((*UNMARKED_WAN, DROP))
    for kind, proved in (("filter", True), ("nat", False)):
        chain = Chain("c", (rule,), Hook(kind, "postrouting", 0))
        state = evolve(STATE, tables=(Table("inet", "t", (chain,)),))
        assert (sockets_of_wan(state).verdict == "proved") is proved


def test_connection_differs_for_chains_before_conntrack():
    new, not_new = (Match(Ct("state"), AnonymousSet(frozenset({"new"})), op) for op in ("in", "!="))
    early = Hook("filter", "output", -300)
    late = halves(low=new, high=not_new)
    assert sockets_without_link_guard(late) == "proved"
    chains = tuple(evolve(one, hook=early) if one.name == "low" else one for one in late.tables[0].chains)
    moved = evolve(late, tables=(evolve(late.tables[0], chains=chains), *late.tables[1:]))
    assert sockets_without_link_guard(moved) != "proved"


# --- calls -------------------------------------------------------------------------------------------


def test_jump_to_no_chain_is_unknown():
    for kind in ("jump", "goto"):
        rule = Rule((WAN, Verdict(kind, "absent")))
        guard = evolve(STATE, tables=tuple(_first_in_guard(table, rule) for table in STATE.tables))
        found = [one for one in prove_guard(guard, SPEC).findings if one.verdict != "proved"]
        assert found
        assert all(one.verdict == "unknown" and any("absent" in part for part in one.unsupported) for one in found)


def _first_in_guard(table, rule):
    chains = tuple(
        evolve(chain, rules=(rule, *chain.rules)) if chain.hook and chain.hook.hook == "postrouting" else chain
        for chain in table.chains
    )
    return evolve(table, chains=chains)


OTHER_BIT = Mangle(Meta("mark"), Bitwise(Meta("mark"), and_mask=FULL_MASK, or_bits=0x100))


def only_guard(*rules, more=()):
    """Return the finding for sockets if one chain that writes another bit of the mark is the only guard."""
    guard = (Rule((OTHER_BIT,)), *rules, Rule((*UNMARKED_WAN, DROP)))
    chain = Chain("c", guard, Hook("filter", "postrouting", 0))
    return sockets_of_wan(evolve(STATE, tables=(Table("inet", "t", (chain, *more)),)))


UDP = Match(Meta("l4proto"), "udp")


def test_guard_behind_a_write_is_proved():
    assert only_guard().verdict == "proved"
    called = Chain("d", (Rule((*UNMARKED_WAN, DROP)),))
    assert only_guard(Rule((UDP, Verdict("goto", "d"))), more=(called,)).verdict == "proved"
    assert only_guard(Rule((UDP, Verdict("jump", "d"))), more=(Chain("d"),)).verdict == "proved"


def test_accept_behind_a_write_is_refuted():
    assert only_guard(Rule((UDP, ACCEPT))).verdict == "refuted"
    called = Chain("d", (Rule((ACCEPT,)),))
    for kind in ("jump", "goto"):
        assert only_guard(Rule((UDP, Verdict(kind, "d"))), more=(called,)).verdict == "refuted"


def test_return_behind_a_write_is_refuted():
    assert only_guard(Rule((UDP, Verdict("return")))).verdict == "refuted"
    returns = Chain("d", (Rule((Verdict("return"),)), Rule((*UNMARKED_WAN, DROP))))
    assert only_guard(Rule((UDP, Verdict("goto", "d"))), more=(returns,)).verdict == "refuted"
    assert only_guard(Rule((UDP, Verdict("jump", "d"))), more=(returns,)).verdict == "proved"


def test_jump_to_no_chain_beside_a_write_is_unknown():
    for kind in ("jump", "goto"):
        found = only_guard(Rule((UDP, Verdict(kind, "absent"))))
        assert found.verdict == "unknown"
        assert any("absent" in part for part in found.unsupported)


def test_unsupported_statement_beside_a_write_is_unknown():
    found = only_guard(Rule((UDP, UnknownStatement('{"new": 1}'))))
    assert (found.verdict, bool(found.unsupported)) == ("unknown", True)
    assert only_guard(Rule((UDP, Limit(10, "second"), ACCEPT))).verdict != "proved"


def test_map_beside_a_write_decides_as_its_entries():
    def by_map(*entries):
        return only_guard(Rule((VerdictMap(Meta("skuid"), frozenset(entries)),)))

    assert by_map((5, DROP), (6, Verdict("continue"))).verdict == "proved"
    assert by_map((5, DROP), (6, ACCEPT)).verdict == "refuted"
    assert by_map((5, Verdict("jump", "absent"))).verdict == "unknown"


def test_chain_with_too_many_paths_is_unknown():
    # Each rule writes for its packets only, so that the paths double.
    def rules(count):
        return tuple(
            Rule((Match(Bitwise(Payload("ip", "id"), and_mask=1 << bit), 0), Mangle(Meta("mark"), Bitwise(Meta("mark"), and_mask=FULL_MASK, or_bits=0x100))))
            for bit in range(count)
        )  # fmt: skip

    def guarded(count):
        """Return a state whose only guard follows such rules, in the same chain."""
        guard = Rule((WAN, Match(Bitwise(Meta("mark"), and_mask=0xFF), 1, "!="), Verdict("drop")))
        chain = Chain("c", (*rules(count), guard), Hook("filter", "postrouting", 0))
        return evolve(STATE, tables=(Table("inet", "t", (chain,)),))

    few, many = (sockets_of_wan(guarded(count)) for count in (2, 12))
    assert (few.verdict, few.unsupported) == ("proved", ())
    assert many.verdict == "unknown"
    assert any("too many paths" in part for part in many.unsupported)
