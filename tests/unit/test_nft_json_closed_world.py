# SPDX-License-Identifier: BSD-2-Clause
"""Every key of a listing is decoded, or the object that has it is unsupported."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftpolicy.netstate.formats import nft_json_decode
from nftpolicy.netstate.nft import Limit, Table

FIXTURES = Path(__file__).parent.parent / "fixtures"
IN_T = {"family": "inet", "table": "t"}
LIMIT = {"limit": {"rate": 1, "burst": 3, "per": "second", "inv": True}}
# As nft 1.0.6 lists them.
EVERY_KIND = {
    "nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "t", "handle": 1}},
        {"set": {**IN_T, "name": "s", "type": "inet_service", "handle": 2, "flags": ["timeout"], "size": 9, "stmt": [LIMIT],
                 "elem": [{"elem": {"val": 9, **LIMIT}}, {"elem": {"val": 10, "timeout": 5, "expires": 4}}]}},
        {"set": {**IN_T, "name": "c", "type": ["inet_proto", "mark"], "handle": 3, "gc-interval": 9, "policy": "memory",
                 "elem": [{"elem": {"val": {"concat": [6, {"range": [1, 4]}]}, "comment": "x",
                                    "counter": {"packets": 1, "bytes": 2}}}]}},
        {"map": {**IN_T, "name": "m", "type": "ipv4_addr", "map": "verdict", "handle": 4, "flags": ["interval"],
                 "elem": [[{"prefix": {"addr": "192.0.2.0", "len": 24}}, {"jump": {"target": "d"}}],
                          [{"elem": {"val": "10.0.0.1", **LIMIT}}, {"drop": None}]]}},
        {"counter": {**IN_T, "name": "n", "handle": 5, "packets": 1, "bytes": 2}},
        {"limit": {**IN_T, "name": "l", "handle": 6, "rate": 10, "per": "minute", "inv": True, "burst": 3}},
        {"quota": {**IN_T, "name": "q", "handle": 7, "bytes": 500, "used": 10, "inv": True}},
        {"ct helper": {**IN_T, "name": "h", "handle": 8, "type": "ftp", "protocol": "tcp", "l3proto": "ip"}},
        {"flowtable": {**IN_T, "name": "f", "handle": 9, "hook": "ingress", "prio": 0, "dev": ["lo"]}},
        {"chain": {**IN_T, "name": "b", "handle": 10, "type": "filter", "hook": "output", "prio": 0, "policy": "drop"}},
        {"chain": {**IN_T, "name": "d", "handle": 11}},
        {"rule": {**IN_T, "chain": "b", "handle": 12, "comment": "x", "expr": [
            {"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 1]}, "right": 1}},
            {"match": {"op": "==", "left": {"payload": {"base": "nh", "offset": 0, "len": 4}}, "right": {"range": [1, 2]}}},
            {"match": {"op": "!=", "left": {"concat": [{"ct": {"key": "mark"}}, {"payload": {"protocol": "tcp", "field": "dport"}}]},
                       "right": {"set": [{"concat": [1, 2]}, {"concat": [3, {"range": [4, 9]}]}]}}},
            {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["new", "related"]}},
            {"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}},
            {"vmap": {"key": {"meta": {"key": "l4proto"}}, "data": {"set": [["tcp", {"goto": {"target": "d"}}], [17, {"drop": None}]]}}},
            {"vmap": {"key": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": "@m"}},
            {"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"|": [{"meta": {"key": "mark"}}, 2]}}},
            {"mangle": {"key": {"ct": {"key": "mark"}}, "value": {"map": {"key": {"meta": {"key": "skuid"}}, "data": {"set": [[1, 2]]}}}}},
            {"counter": {"packets": 0, "bytes": 0}}, {"counter": "n"}, LIMIT, {"quota": {"val": 1, "val_unit": "mbytes"}},
            {"ct count": {"val": 5, "inv": True}}, {"limit": "l"}, {"log": {"prefix": "x", "flags": "all"}},
            {"set": {"op": "add", "elem": {"elem": {"val": {"meta": {"key": "mark"}}, "timeout": 5}}, "set": "@s", "stmt": [{"counter": None}]}},
            {"flow": {"op": "add", "flowtable": "@f"}}, {"dup": {"addr": "192.0.2.1", "dev": "lo"}}, {"fwd": {"dev": "lo"}},
            {"tproxy": {"family": "ip", "addr": "127.0.0.1", "port": 9}}, {"queue": {"num": 1, "flags": "bypass"}},
            {"snat": {"addr": "192.0.2.1", "port": 9, "flags": "random"}}, {"masquerade": {"flags": "random"}}, {"redirect": {"port": 9}},
            {"reject": {"type": "icmp", "expr": "host-unreachable"}}, {"jump": {"target": "d"}}, {"accept": None}]}},
    ]
}  # fmt: skip
RECORDED = [EVERY_KIND, *(json.loads(path.read_text()) for path in sorted(FIXTURES.glob("*/kernel.json")))]
_UNHEARD = "unheard-of"
# Statements of an element make it conditional, whatever they contain.
_CONDITIONS = {"limit", "quota", "ct count"}


def _objects(node: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of each JSON object below a node."""
    if isinstance(node, dict):
        yield path
        for key, value in node.items():
            if not ("elem" in path and key in _CONDITIONS):
                yield from _objects(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _objects(value, (*path, index))


def _at(document: object, path: tuple):
    for key in path:
        document = document[key]  # type: ignore[index]
    return document


def _accounts_for(document: object, before: tuple[Table, ...]) -> bool:
    """Return True if the unheard-of key is reported, by an error or in the tables."""
    try:
        tables = nft_json_decode.decode_ruleset(document)
    except ValueError:
        return True
    unnamed = sum("unnamed" in table.flags for table in tables)
    return _UNHEARD in repr(tables) or unnamed > sum("unnamed" in table.flags for table in before)


@pytest.mark.parametrize("document", RECORDED, ids=range(len(RECORDED)))
def test_unheard_of_key_is_never_ignored(document):
    before = nft_json_decode.decode_ruleset(document)
    assert _UNHEARD not in repr(before)
    paths = [path for path in _objects(document["nftables"]) if "metainfo" not in path and path]
    assert len(paths) > 30
    step = max(1, len(paths) // 400)
    ignored = []
    for path in paths[::step]:
        changed = copy.deepcopy(document)
        _at(changed["nftables"], path)[_UNHEARD] = 1
        if not _accounts_for(changed, before):
            ignored.append(path)
    assert ignored == []


def test_every_kind_is_supported():
    (table,) = nft_json_decode.decode_ruleset(EVERY_KIND)
    assert "Unknown" not in repr(table) and not table.unknown and not table.flags
    ports, pairs = table.sets
    assert ports.statements == (Limit(1, "second", 3, True),)
    assert ports.conditional_elements == {9} and ports.elements == {9, 10} and ports.flags == {"timeout"}
    assert pairs.conditional_elements == frozenset() and pairs.elements == {("tcp", "1-4")}
    assert table.maps[0].conditional_elements == {"10.0.0.1"}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"chain": {**IN_T, "name": "c"}}, {"chain": {**IN_T, "name": "c"}}, "listed twice"),
        (
            {"set": {**IN_T, "name": "s", "type": "mark"}},
            {"set": {**IN_T, "name": "s", "type": "mark"}},
            "listed twice",
        ),
        ({"chain": {**IN_T, "name": "c"}}, {"rule": {**IN_T, "chain": "d", "expr": []}}, "not listed before"),
    ],
)
def test_contradictory_objects_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        nft_json_decode.decode_ruleset({"nftables": [first, second]})


@pytest.mark.parametrize(
    "body", [{"timeout": "5"}, {"stmt": [{"weird": 1}]}, {"elem": [{"elem": 5}]}, {"type": {"a": 1}}]
)
def test_malformed_part_makes_the_set_unsupported(body):
    listed = {"set": {**IN_T, "name": "s", "type": "mark", **body}}
    (table,) = nft_json_decode.decode_ruleset({"nftables": [listed]})
    assert table.sets == () and json.loads(table.unknown[0]) == listed
