"""Decoding of nft listings: real ones, and damaged ones."""

import json
from collections import Counter
from pathlib import Path

import pytest

from nftpolicy.netstate.formats import nft_json_decode, nft_json_encode, nft_json_expressions, nft_text
from nftpolicy.netstate.nft import (
    Binary,
    Bitwise,
    Chain,
    Ct,
    CtCount,
    CtHelper,
    Dnat,
    Dup,
    FlowOffload,
    Flowtable,
    Fwd,
    Hook,
    Limit,
    Log,
    Lookup,
    Mangle,
    Map,
    MapRef,
    Masquerade,
    Match,
    Meta,
    NamedObject,
    Notrack,
    ObjectRef,
    OpaqueExpression,
    Option,
    Payload,
    Queue,
    Quota,
    RawPayload,
    Redirect,
    Reject,
    Rt,
    Rule,
    Set,
    SetUpdate,
    Snat,
    Socket,
    Table,
    Tproxy,
    UnknownExpression,
    UnknownStatement,
    Verdict,
    VerdictMapRef,
)
from nftpolicy.netstate.nft import (
    Counter as Count,
)
from tests.text_only_details import add_text_only_details

FORMS = json.loads((Path(__file__).parents[1] / "fixtures/forms.json").read_text())  # as nft 1.0.6 lists them
DUMPS = {path.parent.name: path for path in sorted((Path(__file__).parents[1] / "fixtures").glob("*/kernel.json"))}


@pytest.mark.parametrize("name", DUMPS)
def test_fixture_listing_is_decoded_completely(name):
    document = json.loads(DUMPS[name].read_text())
    tables = nft_json_decode.decode_ruleset(document)
    chains = [chain for table in tables for chain in table.chains]
    listed = Counter(kind for one in document["nftables"] for kind in one)
    assert len(tables) == listed["table"]
    assert len(chains) == listed["chain"]
    assert sum(len(chain.rules) for chain in chains) == listed["rule"]
    kinds = ("sets", "counters", "unknown", "maps", "flowtables", "objects")
    assert sum(len(getattr(table, kind)) for table in tables for kind in kinds) == sum(
        count for kind, count in listed.items() if kind not in ("metainfo", "table", "chain", "rule")
    )
    # Every statement of the listing is a statement here, known or not.
    assert sum(len(rule.statements) for chain in chains for rule in chain.rules) == sum(
        len(one["rule"]["expr"]) for one in document["nftables"] if "rule" in one
    )


def test_gluon_node_listing_has_expected_chains():
    (table,) = nft_json_decode.decode_ruleset(json.loads(DUMPS["gluon-node"].read_text()))
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
    assert unknown == []


@pytest.mark.parametrize(
    "strange",
    [
        {"log": {"prefix": {}}},
        {"log": 5},
        {"reject": {"type": "icmp", "weird": 1}},
        {"limit": {"rate": 5}},
        {"quota": {"val": "x"}},
        {"masquerade": {"port": {"weird": 1}}},
        {"set": {"op": "add", "set": "s", "elem": 5}},
        {"set": {"op": "add", "set": "@s", "elem": {"elem": {"val": 5, "expires": 1}}}},
        {"synproxy": {"weird": 5}},
        {"ct helper": {"map": {"key": 1}, "weird": 1}},
        {"meter": {"name": "m"}},
        "jump { meta mark set 1 }",
        "jump {\n\t\tmeta mark set 0x1; }",
        "goto { queue; }",
        {"xt": {"type": "target", "name": "MARK"}},
        {"xt": {"type": "target", "name": "unheard of"}},
        {"xt": {"type": "target", "name": "LOG", "weird": 1}},
        {"mangle": 5},
        {"dnat": {"family": "ip", "addr": {"set": []}}},
        {"accept": None, "drop": None},
        {"vmap": {"key": {"meta": {"key": "mark"}}, "data": "map"}},
        {"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[{"weird": 1}, {"accept": None}]]}}},
        "accept",
        5,
        None,
        [],
        {},
    ],
)
def test_unknown_statement_is_kept_as_json(strange):
    found = nft_json_decode.decode_statement(strange)
    assert isinstance(found, UnknownStatement)
    assert json.loads(found.raw) == strange


OPAQUE = {
    "osf name": {"osf": {"key": "name"}},
    "osf ttl loose version": {"osf": {"key": "version", "ttl": "loose"}},
    "ipsec in ip saddr": {"ipsec": {"key": "saddr", "family": "ip", "dir": "in", "spnum": 0}},
    "ipsec out spnum 2 spi": {"ipsec": {"key": "spi", "dir": "out", "spnum": 2}},
    "numgen random mod 2 offset 5": {"numgen": {"mode": "random", "mod": 2, "offset": 5}},
    "jhash meta mark mod 2 seed 0x5": {"jhash": {"mod": 2, "seed": 5, "expr": {"meta": {"key": "mark"}}}},
    "symhash mod 2": {"symhash": {"mod": 2}},
}


@pytest.mark.parametrize("text", OPAQUE)
def test_expression_that_is_not_evaluated_has_its_text(text):
    found = nft_json_decode.decode_expression(OPAQUE[text])
    assert isinstance(found, OpaqueExpression) and nft_text.expression_text(found) == text


@pytest.mark.parametrize(
    "strange",
    [
        {"osf": {"key": "name", "ttl": "other"}},
        {"osf": {"key": "name", "new": 1}},
        {"numgen": {"mode": "other", "mod": 2, "offset": 0}},
        {"numgen": {"mode": "inc", "mod": 2, "offset": "1"}},
        {"jhash": {"mod": 2, "seed": "1", "expr": {"meta": {"key": "mark"}}}},
        {"jhash": {"mod": 2, "expr": {"strange": 1}}},
        {"symhash": {"mod": 2, "expr": {"meta": {"key": "mark"}}}},
        {"ipsec": {"key": "saddr", "dir": "in", "spnum": 0}},
        {"ipsec": {"key": "reqid", "dir": "fwd", "spnum": 0}},
        {"numgen": {}},
        {"&": [{"meta": {"key": "x"}}, "rst"]},
        5,
        None,
        [],
    ],
)
def test_unknown_expression_is_kept_as_json(strange):
    found = nft_json_decode.decode_expression(strange)
    assert isinstance(found, UnknownExpression)
    assert json.loads(found.raw) == strange


def test_unknown_right_side_is_kept_as_json():
    listed = {"match": {"op": "==", "left": {"ct": {"key": "mark"}}, "right": {"fib": 1}}}
    assert nft_json_decode.decode_statement(listed) == Match(Ct("mark"), UnknownExpression('{"fib":1}'))


@pytest.mark.parametrize(
    ("addr", "length", "value"),
    [(16, 31, "16-17"), (0, 1, "0-2147483647"), (7, 32, "7-7"), (17, 31, None), (1 << 32, 31, None), (16, 33, None)],
)
def test_prefix_of_a_number_is_a_range(addr, length, value):
    listed = {"prefix": {"addr": addr, "len": length}}  # nft 1.0.6: meta mark { 0x10-0x11 }
    assert nft_json_expressions.decode_element(listed) == value


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
    ],
)
def test_invalid_listing_raises_value_error(document):
    with pytest.raises(ValueError):
        nft_json_decode.decode_ruleset(document)


@pytest.mark.parametrize("entry", [5, None, "x", [], {}, {"chain": 5}, {"metainfo": {}, "table": {}}])
def test_entry_without_object_is_refused(entry):
    assert nft_json_decode.decode_ruleset({"nftables": [{"metainfo": {}}]}) == ()
    with pytest.raises(ValueError, match="expected an object"):
        nft_json_decode.decode_ruleset({"nftables": [entry]})


def test_incomplete_map_is_kept_as_unknown():
    listed = {"nftables": [{"map": {"family": "ip", "table": "t", "name": "m", "map": "verdict"}}]}
    (table,) = nft_json_decode.decode_ruleset(listed)
    assert json.loads(table.unknown[0]) == listed["nftables"][0]


def test_set_with_unknown_elements_is_kept_as_unknown():
    listed = {"set": {"family": "ip", "table": "t", "name": "s", "type": "mark", "elem": [{"&": [1, 2]}]}}
    (table,) = nft_json_decode.decode_ruleset({"nftables": [listed]})
    assert table.sets == ()
    assert json.loads(table.unknown[0]) == listed


def test_dnat_is_decoded():
    listed = {"dnat": {"family": "ip6", "addr": "::1", "port": 54}}
    assert nft_json_decode.decode_statement(listed) == Dnat("ip6", "::1", 54)


@pytest.mark.parametrize("form", FORMS, ids=[form["nft"] for form in FORMS])
def test_statement_forms_of_nft_round_trip(form):
    read = nft_json_decode.decode_statements(form["json"])
    assert "Unknown" not in repr(read)
    assert nft_text.rule_text(Rule(read)) == form.get("program", form["nft"])
    written = [nft_json_encode.encode_statement(one) for one in read]
    assert nft_json_decode.decode_statements(json.loads(json.dumps(written))) == read


def test_ether_type_is_read_with_the_test_that_nft_hides():
    listed = {"match": {"op": "==", "left": {"payload": {"protocol": "ether", "field": "type"}}, "right": "arp"}}
    frame_type = Match(Payload("ether", "type"), "arp")
    assert nft_json_decode.decode_statements([listed], "netdev") == (Match(Meta("iiftype"), 1), frame_type)
    assert nft_json_decode.decode_statements([listed], "bridge") == (frame_type,)
    raw = {"match": {**listed["match"], "left": {"payload": {"base": "ll", "offset": 96, "len": 16}}, "right": 0x806}}
    assert nft_json_decode.decode_statements([raw], "netdev") == (frame_type,)
    nested = {"match": {"op": "==", "left": {"concat": [listed["match"]["left"]]}, "right": "arp"}}
    assert "Unknown" in repr(nft_json_decode.decode_statements([nested], "netdev"))


STATEMENTS = [
    ({"reject": None}, Reject()),
    ({"reject": {"type": "tcp reset"}}, Reject("tcp reset", None)),
    ({"reject": {"type": "icmpv6", "expr": "no-route"}}, Reject("icmpv6", "no-route")),
    ({"log": None}, Log()),
    ({"log": {"prefix": "x", "flags": ["skuid", "ether"]}}, Log((("flags", "skuid,ether"), ("prefix", "x")))),
    ({"notrack": None}, Notrack()),
    ({"queue": {"num": {"range": [1, 3]}, "flags": ["bypass"]}}, Queue("1-3", frozenset({"bypass"}))),
    ({"queue": None}, Queue()),
    ({"limit": {"rate": 5, "per": "hour", "inv": True}}, Limit(5, "hour", over=True)),
    ({"limit": "l"}, ObjectRef("limit", "l")),
    ({"quota": {"val": 5, "val_unit": "mbytes"}}, Quota(5, "mbytes")),
    ({"ct count": {"val": 5, "inv": True}}, CtCount(5, True)),
    ({"ct helper": "ftp"}, ObjectRef("ct helper", "ftp")),
    ({"masquerade": None}, Masquerade()),
    ({"masquerade": {"port": {"range": [5, 9]}, "flags": "random"}}, Masquerade("5-9", frozenset({"random"}))),
    ({"redirect": {"port": 80}}, Redirect(80)),
    ({"dnat": {"port": 80}}, Dnat(None, None, 80)),
    ({"dnat": {"addr": "192.0.2.1"}}, Dnat(None, "192.0.2.1")),
    ({"snat": {"family": "ip6", "addr": {"range": ["::1", "::9"]}}}, Snat("ip6", "::1-::9")),
    ({"flow": {"op": "add", "flowtable": "@f"}}, FlowOffload("f")),
    ({"dup": {"addr": "192.0.2.1", "dev": "lo"}}, Dup("192.0.2.1", "lo")),
    ({"fwd": {"dev": "lo"}}, Fwd("lo")),
    ({"tproxy": {"family": "ip", "addr": "127.0.0.1", "port": 5}}, Tproxy("ip", "127.0.0.1", 5)),
    ({"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@m"}}, VerdictMapRef(Meta("mark"), "m")),
    (
        {"set": {"op": "add", "elem": {"elem": {"val": {"meta": {"key": "mark"}}, "timeout": 9}}, "set": "@s",
                 "stmt": [{"counter": None}]}},
        SetUpdate("add", "s", Meta("mark"), 9, (Count(),)),
    ),
    (
        {"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"map": {"key": {"meta": {"key": "skuid"}}, "data": "@m"}}}},
        Mangle(Meta("mark"), Lookup(Meta("skuid"), MapRef("m"))),
    ),
    (
        {"mangle": {"key": {"ct": {"key": "mark"}}, "value": {"^": [{"ct": {"key": "mark"}}, 5]}}},
        Mangle(Ct("mark"), Binary("^", Ct("mark"), 5)),
    ),
    # As nft 1.1 lists flags.
    (
        {"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}},
                                              {"|": ["fin", {"|": ["syn", "rst"]}]}]}, "right": "syn"}},
        Match(Bitwise(Payload("tcp", "flags"), "fin,rst,syn"), "syn"),
    ),
    (
        {"match": {"op": "!=", "left": {"ct": {"key": "state"}}, "right": {"|": ["new", "established"]}}},
        Match(Ct("state"), "established,new", "!="),
    ),
    ({"match": {"op": "==", "left": {"exthdr": {"name": "hbh"}}, "right": False}}, Match(Option("exthdr", "hbh"), "missing")),
    ({"match": {"op": "==", "left": {"rt": {"key": "mtu"}}, "right": 5}}, Match(Rt("mtu"), 5)),
    ({"match": {"op": "==", "left": {"socket": {"key": "mark"}}, "right": 5}}, Match(Socket("mark"), 5)),
    (
        {"match": {"op": "==", "left": {"payload": {"base": "th", "offset": 0, "len": 8}}, "right": 5}},
        Match(RawPayload("th", 0, 8), 5),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("listed", "value"), STATEMENTS, ids=[json.dumps(listed) for listed, _ in STATEMENTS])
def test_statement_json_round_trips(listed, value):
    assert nft_json_decode.decode_statement(listed) == value
    assert nft_json_decode.decode_statement(nft_json_encode.encode_statement(value)) == value


IN_T = {"family": "ip", "table": "t"}
OBJECTS = {
    "nftables": [
        {"table": {"family": "ip", "name": "t", "flags": "dormant"}},
        {"map": {**IN_T, "name": "m", "type": "ifname", "map": "verdict", "flags": ["interval"],
                 "elem": [["eth*", {"jump": {"target": "c"}}]]}},
        {"map": {**IN_T, "name": "n", "type": ["inet_proto", "mark"], "map": "ipv4_addr . inet_service", "timeout": 5,
                 "elem": [[{"concat": [6, 1]}, {"concat": ["192.0.2.1", 80]}]]}},
        {"flowtable": {**IN_T, "name": "f", "hook": "ingress", "prio": 0, "dev": ["lo", "eth0"]}},
        {"flowtable": {**IN_T, "name": "g", "hook": "ingress", "prio": 5, "dev": "lo"}},
        {"limit": {**IN_T, "name": "l", "handle": 1, "rate": 10, "per": "minute", "inv": True, "burst": 3}},
        {"quota": {**IN_T, "name": "q", "handle": 1, "bytes": 500, "used": 10, "inv": True}},
        {"ct helper": {**IN_T, "name": "h", "handle": 1, "type": "ftp", "protocol": "tcp", "l3proto": "ip"}},
        {"ct helper": {**IN_T, "name": "i", "type": "tftp", "protocol": "udp"}},
    ]
}  # fmt: skip


def test_maps_flowtables_and_objects_are_decoded():
    (table,) = nft_json_decode.decode_ruleset(OBJECTS)
    assert table == Table(
        "ip",
        "t",
        maps=(
            Map("m", ("ifname",), ("verdict",), frozenset({("eth*", Verdict("jump", "c"))}), frozenset({"interval"})),
            Map("n", ("inet_proto", "mark"), ("ipv4_addr", "inet_service"), frozenset({(("tcp", 1), ("192.0.2.1", 80))}),
                timeout=5),
        ),
        flowtables=(Flowtable("f", 0, frozenset({"lo", "eth0"})), Flowtable("g", 5, frozenset({"lo"}))),
        objects=(
            NamedObject("l", Limit(10, "minute", 3, True)),
            NamedObject("q", Quota(500, "bytes", True)),
            NamedObject("h", CtHelper("ftp", "tcp", "ip")),
            NamedObject("i", CtHelper("tftp", "udp")),
        ),
        flags=frozenset({"dormant"}),
    )  # fmt: skip
    assert table.has_foreign_objects
    assert nft_json_decode.decode_ruleset(
        {"nftables": [one["add"] for one in nft_json_encode.encode_table(table)]}
    ) == (table,)


@pytest.mark.parametrize(
    "strange",
    [
        {"map": {**IN_T, "name": "m", "type": "ipv4_addr", "map": "counter"}},
        {"map": {**IN_T, "name": "m", "type": "mark", "map": "mark", "elem": [[1, {"&": [1, 2]}]]}},
        {"limit": {**IN_T, "name": "l", "rate": 10, "per": "minute", "weird": 1}},
        {"synproxy": {**IN_T, "name": "s", "mss": 1460}},
    ],
)
def test_unsupported_object_is_kept_as_json(strange):
    (table,) = nft_json_decode.decode_ruleset({"nftables": [strange]})
    assert json.loads(table.unknown[0]) == strange


# What nft 1.0.6 says in JSON and in text of the same tables.
LISTING = """table inet asleep {
\tcomment "flags owner"
\tflags dormant
}
table inet awake { # progname x
\tflags owner

\tset s {
\t\ttype ipv4_addr
\t\tsize 65535
\t\tflags dynamic,timeout
\t\ttimeout 5m
\t}

\tset plain {
\t\ttype ipv4_addr
\t\telements = { 192.0.2.1 }
\t}

\tmap m {
\t\ttype ipv4_addr : mark
\t\tflags dynamic
\t}
}
table netdev link {
\tchain one {
\t\ttype filter hook egress device "eth0" priority filter; policy accept;
\t}

\tchain two {
\t\tcomment "x"
\t\ttype filter hook egress devices = { eth0, "wg*" } priority filter; policy accept;
\t}
}
"""


def test_text_listing_completes_the_json_listing():
    egress = Hook("filter", "egress", 0)
    tables = (
        Table("inet", "asleep", flags=frozenset({"unnamed"})),
        Table(
            "inet",
            "awake",
            sets=(Set("s", ("ipv4_addr",), flags=frozenset({"timeout"}), timeout=300), Set("plain", ("ipv4_addr",))),
            maps=(Map("m", ("ipv4_addr",), ("mark",)),),
            flags=frozenset({"unnamed"}),
        ),
        Table("netdev", "link", (Chain("one", (), egress), Chain("two", (), egress))),
        Table("ip", "elsewhere"),
    )
    asleep, awake, link, elsewhere = add_text_only_details(tables, LISTING)
    assert asleep.flags == {"dormant"} and awake.flags == {"owner"}
    assert [one.flags for one in (*awake.sets, *awake.maps)] == [{"dynamic", "timeout"}, set(), {"dynamic"}]
    assert [chain.hook.device for chain in link.chains] == ["eth0", None]
    assert link.chains[1].hook.devices == {"eth0", "wg*"}
    assert elsewhere == tables[3]


@pytest.mark.parametrize(
    "flags", ["ip", ["owner", "ip"], [{"meta": {"key": "mark"}}], {"chain": {}}, [["owner"]], 7, None]
)
def test_garbled_owner_flag_is_unnamed(flags):
    """Decode the flag "owner" as nft 1.0.6 prints it, from memory outside of its buffer."""
    (table,) = nft_json_decode.decode_ruleset({"nftables": [{"table": {"family": "ip", "name": "t", "flags": flags}}]})
    assert table.flags == {"unnamed"}
