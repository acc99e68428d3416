# SPDX-License-Identifier: BSD-2-Clause
"""The assumption about tests of protocols that a listing leaves out."""

import pytest

from nftpolicy.cli.common import Failure
from nftpolicy.cli.state_files import state_from_files
from nftpolicy.netstate.formats.nft_json_hidden import hidden_tests
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Chain,
    Concat,
    Hook,
    Match,
    Meta,
    Payload,
    Rule,
    Table,
    VerdictMap,
)
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.mark import Mark
from nftpolicy.runtime import verify
from nftpolicy.runtime.verify import GivenUplink

PORT = Payload("udp", "dport")


def listed(family, *statements) -> tuple[str, ...]:
    return hidden_tests((Table(family, "t", (Chain("c", (Rule((*statements, ACCEPT)),)),)),))


@pytest.mark.parametrize(
    ("family", "left"),
    [
        ("inet", Payload("icmpv6", "type")),
        ("ip", Payload("icmpv6", "type")),
        ("netdev", Payload("igmp", "type")),
        ("netdev", Payload("ip", "daddr")),
        ("bridge", Payload("ip6", "saddr")),
        ("ip6", PORT),
        ("ip6", Concat((Meta("mark"), PORT))),
    ],
)
def test_field_with_hidden_tests_is_named(family, left):
    (text,) = listed(family, Match(left, AnonymousSet(frozenset({1}))))
    assert f"({family} t c)" in text
    assert listed(family, VerdictMap(left, frozenset({(1, ACCEPT)}))) == (text,)


@pytest.mark.parametrize(
    ("family", "left"),
    [
        ("ip6", Payload("icmpv6", "type")),
        ("ip", Payload("icmp", "type")),
        ("inet", Payload("ip", "daddr")),
        ("inet", PORT),
        ("inet", Meta("mark")),
    ],
)
def test_listing_that_hides_nothing_needs_no_assumption(family, left):
    assert listed(family, Match(left, 1)) == ()


def test_many_fields_are_cut_short():
    kinds = (Match(Payload("icmpv6", name), 1) for name in ("type", "code", "mtu", "id"))
    assert "icmpv6 mtu (inet t c), ...:" in listed("inet", *kinds)[0]


def test_verdict_of_files_assumes_listed_tests():
    uplink = GivenUplink("wan", ("wan",), Mark(1, 1))
    rules = (Rule((Match(Payload("icmpv6", "type"), 1), ACCEPT)), Rule((DROP,)))
    table = Table("inet", "t", (Chain("c", rules, Hook("filter", "postrouting", 0)),))
    proof = verify.verify_files(NetState((table,)), (uplink,), (), lambda _: None).proof
    assert any("icmpv6 type (inet t c)" in text for text in proof.assumptions)
    plain = Table("inet", "t", (Chain("c", rules[1:], Hook("filter", "postrouting", 0)),))
    proof = verify.verify_files(NetState((plain,)), (uplink,), (), lambda _: None).proof
    assert not any("leaves out other tests" in text for text in proof.assumptions)


def test_key_that_a_file_has_twice_is_refused(tmp_path):
    file = tmp_path / "ruleset.json"
    file.write_text('{"nftables": [{"table": {"family": "ip", "name": "t", "name": "u"}}]}')
    with pytest.raises(Failure, match="the key 'name' is there twice"):
        state_from_files(file, (), ())
    file.write_text('{"nftables": [{"table": {"family": "ip", "name": "t"}}]}')
    assert state_from_files(file, (), ()).tables[0].name == "t"
