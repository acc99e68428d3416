"""What nft lists, read back: real listings, and whatever else calls itself one."""

import json
from collections import Counter
from pathlib import Path

import pytest

from nftpolicy.netstate import json_in
from nftpolicy.netstate.nft import (
    Ct,
    Dnat,
    Hook,
    Match,
    Meta,
    UnknownExpression,
    UnknownStatement,
    Verdict,
)
from nftpolicy.netstate.state import Counts

DUMPS = {path.parent.name: path for path in sorted((Path(__file__).parents[1] / "fixtures").glob("*/kernel.json"))}


@pytest.mark.parametrize("name", DUMPS)
def test_a_real_listing_loses_nothing(name):
    document = json.loads(DUMPS[name].read_text())
    (table,) = json_in.ruleset(document)
    listed = Counter(kind for one in document["nftables"] for kind in one)
    assert len(table.chains) == listed["chain"]
    assert sum(len(chain.rules) for chain in table.chains) == listed["rule"]
    assert len(table.sets) + len(table.counters) + len(table.unknown) == sum(
        count for kind, count in listed.items() if kind not in ("metainfo", "table", "chain", "rule")
    )
    # Every statement of the listing is a statement here, known or not.
    assert sum(len(rule.statements) for chain in table.chains for rule in chain.rules) == sum(
        len(one["rule"]["expr"]) for one in document["nftables"] if "rule" in one
    )


def test_a_real_listing_is_understood():
    (table,) = json_in.ruleset(json.loads(DUMPS["gluon-node"].read_text()))
    assert table.key == ("inet", "fw4")
    chains = {chain.name: chain for chain in table.chains}
    assert chains["input"].hook == Hook("filter", "input", 0, "drop")
    assert chains["input"].rules[0].statements[0] == Match(Meta("iif"), "lo")
    assert chains["accept_to_wan"].hook is None
    jumps = {
        one.target
        for chain in table.chains
        for rule in chain.rules
        for one in rule.statements
        if isinstance(one, Verdict)
    }
    assert jumps - {None} <= chains.keys()
    unknown = [
        one
        for chain in table.chains
        for rule in chain.rules
        for one in rule.statements
        if isinstance(one, UnknownStatement)
    ]
    assert {next(iter(json.loads(one.raw))) for one in unknown} <= {"reject", "limit", "masquerade", "ct helper"}


@pytest.mark.parametrize(
    "strange",
    [
        {"log": {"prefix": "x"}},
        {"mangle": 5},
        {"dnat": {"family": "ip", "addr": {"set": []}}},
        {"accept": None, "drop": None},
        {"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@map"}},
        {"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[{"weird": 1}, {"accept": None}]]}}},
        "accept",
        5,
        None,
        [],
        {},
    ],
)
def test_an_unknown_statement_is_kept_whole(strange):
    found = json_in.statement(strange)
    assert isinstance(found, UnknownStatement)
    assert json.loads(found.raw) == strange


@pytest.mark.parametrize(
    "strange",
    [
        {"osf": {"key": "name", "ttl": "loose"}},
        {"numgen": {}},
        {"&": [{"meta": {"key": "x"}}, "rst"]},
        5,
        None,
        [],
    ],
)
def test_an_unknown_expression_is_kept_whole(strange):
    found = json_in.expression(strange)
    assert isinstance(found, UnknownExpression)
    assert json.loads(found.raw) == strange


def test_an_unknown_right_side_is_kept_whole():
    listed = {"match": {"op": "==", "left": {"ct": {"key": "mark"}}, "right": {"fib": 1}}}
    assert json_in.statement(listed) == Match(Ct("mark"), UnknownExpression('{"fib":1}'))


@pytest.mark.parametrize(
    "document",
    [
        None,
        5,
        [],
        {},
        {"nftables": {}},
        {"nftables": [{"chain": {}}]},
        {"nftables": [{"chain": {"family": "inet", "table": "t"}}]},
        {"nftables": [{"chain": {"family": [], "table": "t", "name": "c"}}]},
        {"nftables": [{"rule": {"family": "inet", "table": "t", "chain": "c", "expr": 5}}]},
        {"nftables": [{"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [{"goto": {}}]}}]},
        {"nftables": [{"set": {"family": "inet", "table": "t", "name": "s"}}]},
        {"nftables": [{"set": {"family": "inet", "table": "t", "name": "s", "type": "mark", "elem": 5}}]},
        {"nftables": [{"set": {"family": "inet", "table": "t", "name": "s", "type": "mark", "flags": [[]]}}]},
        {"nftables": [{"set": {"family": "inet", "table": "t", "name": "s", "type": "mark", "elem": [{"elem": 5}]}}]},
    ],
)
def test_what_is_no_listing_is_a_value_error(document):
    with pytest.raises(ValueError):
        json_in.ruleset(document)


@pytest.mark.parametrize("entry", [5, None, "x", [], {}, {"metainfo": {}}, {"chain": 5}])
def test_what_is_no_object_is_passed_over(entry):
    assert json_in.ruleset({"nftables": [entry]}) == ()


def test_objects_of_other_kinds_are_kept_as_they_are():
    listed = {"nftables": [{"map": {"family": "ip", "table": "t", "name": "m", "map": "verdict"}}]}
    (table,) = json_in.ruleset(listed)
    assert json.loads(table.unknown[0]) == listed["nftables"][0]


def test_a_set_with_elements_that_are_not_known_is_kept_as_it_is():
    listed = {"set": {"family": "ip", "table": "t", "name": "s", "type": "mark", "elem": [{"&": [1, 2]}]}}
    (table,) = json_in.ruleset({"nftables": [listed]})
    assert table.sets == ()
    assert json.loads(table.unknown[0]) == listed


def test_counters():
    listed = {
        "nftables": [{"counter": {"family": "ip", "table": "t", "name": "c", "packets": 2, "bytes": 9, "handle": 1}}]
    }
    assert json_in.counters(listed) == {("ip", "t", "c"): Counts(2, 9)}


def test_a_dnat_is_read():
    listed = {"dnat": {"family": "ip6", "addr": "::1", "port": 54}}
    assert json_in.statement(listed) == Dnat("ip6", "::1", 54)
