# SPDX-License-Identifier: BSD-2-Clause
"""Values that a packet or a lookup begins with: no mark, no flow mark, no input device, no route."""

import pytest
from attrs import evolve

from nftpolicy.model.packet import FORWARD, SOCKET
from nftpolicy.model.symbolic.mark_bits import field_name
from nftpolicy.netstate.formats import nft_json_decode
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Chain,
    Ct,
    Fib,
    Hook,
    Last,
    Mangle,
    Match,
    Meta,
    Payload,
    Rule,
    Table,
    Tproxy,
    Verdict,
)
from nftpolicy.proof.concretize import concretize
from nftpolicy.proof.context import ProofContext
from tests.unit.test_proof import (
    GUARD,
    LINK,
    MARK,
    MARKED,
    OUT,
    POST,
    UNMARKED,
    UPLINK,
    no_leak_finding,
    prove_state,
    state,
)

HOP_LIMIT = Payload("ip6", "hoplimit")
LATER = Table("inet", "other", (Chain("after", (Rule((Mangle(HOP_LIMIT, 1), ACCEPT)),), evolve(POST, priority=400)),))
FORWARDING = Hook("filter", "forward", 0)
DEVICE = Fib("oif", ("saddr", "iif"))


def verdict(sample, subject) -> str:
    return no_leak_finding(prove_state(sample), subject).verdict


def test_mark_of_another_host_refutes_nothing():
    by_mark = state(Rule((OUT, Match(MARK, 2, "!="), DROP)), link=None)
    assert verdict(by_mark, "sockets") == "refuted"
    assert verdict(by_mark, "forwarded") == "unknown"
    writing = state(Rule((OUT, UNMARKED, DROP)), link=None, others=(LATER,))
    assert verdict(writing, "forwarded") != "refuted"
    assert verdict(state(Rule((OUT, MARKED, DROP)), link=None, others=(LATER,)), "forwarded") == "refuted"


@pytest.mark.parametrize(("flow_state", "flow_mark"), [(0, 0), (1, 1), (2, 1), (3, 0), (4, 0)])
@pytest.mark.parametrize(("origin", "mark"), [(FORWARD, 0), (SOCKET, 1)])
def test_packet_of_a_box_begins_without_marks_that_rules_set(flow_state, flow_mark, origin, mark):
    space = ProofContext(state(*GUARD), UPLINK.devices, (UPLINK.mask,)).space(4)
    marked = {field_name(kind, 1): ((1, 1),) for kind in ("mark", "ctmark")}
    assert marked.keys() <= space.max_values.keys()
    packet = concretize(space, {**marked, "ct.state": ((flow_state, flow_state),)}, origin)
    assert (packet.mark, packet.flow.mark) == (mark, flow_mark)


def forwarding(*matches_of_rules):
    """Return a state that drops or accepts packets by tests of the route to their source, before all others."""
    rules = tuple(Rule((Match(DEVICE, right, op), end)) for right, op, end in matches_of_rules)
    return state(others=(Table("inet", "other", (Chain("c", (*rules, Rule((DROP,))), FORWARDING),)),), link=None)


@pytest.mark.parametrize(
    "rules",
    [
        (("wan", "!=", DROP), ("exists", "==", ACCEPT)),
        (("missing", "==", DROP), ("wan", "==", ACCEPT)),
        ((AnonymousSet(frozenset({"lan", "vpn"})), "==", DROP), ("exists", "==", ACCEPT)),
        (("wan", "==", DROP), ("w*", "==", ACCEPT)),
        (("wan", "!=", DROP), ("missing", "!=", ACCEPT)),
    ],
)
def test_lookup_that_finds_a_named_device_finds_one(rules):
    assert verdict(forwarding(*rules), "forwarded") != "proved"


@pytest.mark.parametrize(
    "rules",
    [
        (("missing", "!=", DROP), ("wan", "==", ACCEPT)),
        (("exists", "==", DROP), ("wan", "==", ACCEPT)),
        (("missing", "==", DROP), ("exists", "==", DROP), ("wan", "!=", ACCEPT)),
        ((0, "==", DROP), ("missing", "==", ACCEPT)),
    ],
)
def test_lookup_cannot_find_a_device_and_none(rules):
    assert verdict(forwarding(*rules), "forwarded") == "proved"


def link(right, key="iif"):
    chain, *_ = LINK.chains
    listed = {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}}
    drop = Rule((nft_json_decode.decode_statement(listed), DROP))
    return evolve(LINK, chains=(evolve(chain, rules=(drop,), hook=evolve(chain.hook, policy="accept")),))


def test_frame_to_be_sent_has_no_input_device():
    assert verdict(state(*GUARD, link=link(0)), "AF_PACKET") == "proved"
    assert verdict(state(*GUARD, link=link("lan")), "AF_PACKET") == "refuted"
    assert verdict(state(*GUARD, link=link(7)), "AF_PACKET") == "unknown"


def test_packet_of_this_host_has_no_input_device():
    def dropping(index):
        return state(Rule((OUT, UNMARKED, Match(Meta("iif"), index), DROP)), link=None)

    assert verdict(dropping("lan"), "sockets") == "refuted"
    assert verdict(dropping(0), "sockets") == "unknown"
    assert verdict(dropping(7), "sockets") == "unknown"


@pytest.mark.parametrize(
    ("read", "result"), [(Match(Meta("skuid"), 0), "unknown"), (Match(Meta("iifname"), "lan"), "proved")]
)
def test_socket_that_tproxy_gives_may_be_read_on_arrival(read, result):
    called = Chain("called", (Rule((read, Mangle(Ct("mark"), 2))),))
    chain = Chain("c", (Rule((Tproxy(None, None, 1), Verdict("jump", "called"))),), Hook("filter", "prerouting", 0))
    proof = prove_state(state(*GUARD, others=(Table("inet", "other", (chain, called)),)))
    assert no_leak_finding(proof, "sockets").verdict == result


def test_statements_that_only_record_change_nothing():
    assert verdict(state(Rule((OUT, Last(), UNMARKED, DROP)), link=None), "sockets") == "proved"


def test_synproxy_by_map_may_drop_as_a_named_one():
    proxied = {"map": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": "@names"}}
    for content in (proxied, {"mss": 1460}):
        statement = nft_json_decode.decode_statement({"synproxy": content})
        assert statement.results == {"continue", "break", "drop"}
        assert statement.needs_conntrack


def test_mark_for_a_claimed_ethertype_lets_ip_frames_out():
    first = Hook("filter", "egress", -10, "accept", "wan")

    def marking(ethertype):
        rule = Rule((Match(Meta("protocol"), ethertype), Mangle(MARK, 1)))
        return state(*GUARD, others=(Table("netdev", "other", (Chain("c", (rule,), first),)),))

    assert verdict(marking("arp"), "AF_PACKET") == "refuted"
    assert verdict(state(*GUARD), "AF_PACKET") == "proved"


@pytest.mark.parametrize(("second", "expected"), [((), "proved"), (("local",), "unknown")])
def test_fib_at_a_device_matches_no_other_ethertype(second, expected):
    """nft_fib_netdev_eval ends the rule for a frame whose socket says another protocol."""
    egress = LINK.chains[0]
    halves = [(Match(Fib("type", ("saddr",)), value, op), DROP) for value in second for op in ("==", "!=")] or [(DROP,)]
    rules = tuple(Rule((UNMARKED, *half)) for half in halves)
    link = evolve(LINK, chains=(evolve(egress, rules=rules, hook=evolve(egress.hook, policy="accept")),))
    assert verdict(state(*GUARD, link=link), "AF_PACKET") == expected
    assert verdict(state(*GUARD, link=link), "frames of other ethertypes") == expected
