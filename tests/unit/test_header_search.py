"""Search for header fields: a rule before the guard that tests one is refuted with a packet."""

import pytest
from attrs import evolve

from nftpolicy.model.packet import EXTENSION_HEADERS
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import ACCEPT, AnonymousSet, Match, Meta, Payload, Rule
from tests.header_tests import ACCEPT_RULES, HEADER_TESTS, IMPOSSIBLE_TESTS

from .test_proof import GUARD, no_leak_finding, prove_state, state


@pytest.mark.parametrize("name", HEADER_TESTS)
def test_accept_of_a_header_field_is_refuted_by_packet(name: str) -> None:
    found = no_leak_finding(prove_state(state(ACCEPT_RULES[name], *GUARD, link=None)), "sockets")
    assert found.verdict == "refuted"
    assert {example.trace.outcome for example in found.examples} == {"leaves"}
    assert HEADER_TESTS[name][0] in {example.packet.family for example in found.examples}


@pytest.mark.parametrize("name", IMPOSSIBLE_TESTS)
def test_accept_of_an_impossible_packet_is_unknown(name: str) -> None:
    rule = Rule((*IMPOSSIBLE_TESTS[name], ACCEPT))
    found = no_leak_finding(prove_state(state(rule, *GUARD, link=None)), "sockets")
    assert (found.verdict, bool(found.unsupported)) == ("unknown", True)


HIGHEST = {
    ("ip", "dscp"): 63, ("ip", "ecn"): 3, ("ip", "ttl"): 255,
    ("ip6", "dscp"): 63, ("ip6", "ecn"): 3, ("ip6", "flowlabel"): 0xFFFFF, ("ip6", "hoplimit"): 255,
    ("tcp", "sequence"): 0xFFFFFFFF, ("tcp", "ackseq"): 0xFFFFFFFF, ("tcp", "window"): 0xFFFF,
    ("tcp", "urgptr"): 0xFFFF, ("tcp", "flags"): 0xFF,
    ("icmp", "type"): 255, ("icmp", "code"): 255, ("icmp", "id"): 0xFFFF, ("icmp", "sequence"): 0xFFFF,
    ("icmp", "mtu"): 0xFFFF, ("icmp", "gateway"): 0xFFFFFFFF,
    ("icmpv6", "type"): 255, ("icmpv6", "code"): 255, ("icmpv6", "id"): 0xFFFF, ("icmpv6", "sequence"): 0xFFFF,
    ("icmpv6", "mtu"): 0xFFFFFFFF,
    ("igmp", "type"): 255,
}  # fmt: skip


TYPES = {("icmp", "mtu"): 3, ("icmp", "gateway"): 5, ("icmpv6", "mtu"): 2}  # of messages with the field


@pytest.mark.parametrize("field", HIGHEST, ids=" ".join)
def test_highest_value_of_a_field_is_the_choice_of_a_sender(field: tuple[str, str]) -> None:
    beside = Payload("ip6", "flowlabel") if "6" in field[0] else Payload("ip", "id")
    if beside == Payload(*field):
        beside = Payload("ip6", "hoplimit")
    both = Match(nft.Concat((Payload(*field), beside)), AnonymousSet(frozenset({(HIGHEST[field], 7)})))
    found = no_leak_finding(prove_state(state(Rule((both, ACCEPT)), *GUARD, link=None)), "sockets")
    assert found.verdict == "refuted"
    for example in found.examples:
        assert example.packet.fields[field] == HIGHEST[field]
        assert field not in TYPES or example.packet.fields[field[0], "type"] == TYPES[field]


@pytest.mark.parametrize(
    ("family", "header", "lengths"),
    [
        (4, 20, {("udp", "length"): 100, ("ip", "length"): 120}),
        (6, 40, {("udp", "length"): 100, ("ip6", "length"): 100}),
    ],
)
def test_lengths_of_a_packet_agree(family: int, header: int, lengths: dict[tuple[str, str], int]) -> None:
    of_family = Match(Meta("nfproto"), f"ipv{family}")
    for field, length in {**lengths, ("meta", "length"): 100 + header}.items():
        left = Meta("length") if field[0] == "meta" else Payload(*field)
        rule = Rule((of_family, Match(Meta("l4proto"), "udp"), Match(left, length), ACCEPT))
        found = no_leak_finding(prove_state(state(rule, *GUARD, link=None)), "sockets")
        assert found.verdict == "refuted"
        for example in found.examples:
            assert lengths.items() <= example.packet.fields.items()


def test_field_between_two_tests_is_found() -> None:
    """Satisfy a test that must hold together with one that must not."""
    between = (
        Rule((Match(Payload("ip", "id"), 50, "<"), nft.DROP)),
        Rule((Match(Payload("ip", "id"), 52, "<"), ACCEPT)),
    )
    found = no_leak_finding(prove_state(state(*between, *GUARD, link=None)), "sockets")
    assert found.verdict == "refuted"
    assert {example.packet.fields[("ip", "id")] for example in found.examples} <= {50, 51}


def test_whole_frag_off_is_the_choice_of_a_sender() -> None:
    """Do not take a bit for granted that a usual socket sets."""
    for value in (0, 0x4000):
        rule = Rule((Match(Payload("ip", "frag-off"), value), ACCEPT))
        found = no_leak_finding(prove_state(state(rule, *GUARD, link=None)), "sockets")
        assert {example.packet.fields[("ip", "frag-off")] for example in found.examples} == {value}


@pytest.mark.parametrize(("header", "source"), [("ip6", "ff00::/8"), ("ip6", "::"), ("ip", "0.0.0.0")])
def test_no_socket_sends_from_a_group_or_no_address(header: str, source: str) -> None:
    rule = Rule((Match(Payload(header, "saddr"), source), ACCEPT))
    found = no_leak_finding(prove_state(state(rule, *GUARD, link=None)), "sockets")
    assert found.verdict == "unknown"
    assert "sockets that send from no address, or from that of a group" in found.unsupported


def test_packet_of_IPv6_has_no_extension_header_as_protocol() -> None:
    """Find a packet that passes a guard for the usual protocols, and that IPv6 can have."""
    usual = Rule((Match(Meta("l4proto"), AnonymousSet(frozenset({1, 6, 17, 58}))), nft.DROP))
    found = no_leak_finding(prove_state(state(usual, link=None)), "sockets")
    protocols = {example.packet.protocol for example in found.examples if example.packet.family == 6}
    assert protocols
    assert not protocols & set(EXTENSION_HEADERS)


def test_length_at_a_device_includes_the_link_header() -> None:
    """Do not refute by a length that the egress hook sees otherwise than the IP hooks."""
    rule = Rule((Match(Meta("length"), 1000, ">"), ACCEPT))
    link = evolve(nft.Table("netdev", "t"), chains=(nft.Chain("e", (rule, Rule((nft.DROP,))), nft.Hook(
        "filter", "egress", 0, "drop", "wan")),))  # fmt: skip
    found = no_leak_finding(prove_state(state(link=link)), "sockets")
    assert found.verdict == "unknown"
