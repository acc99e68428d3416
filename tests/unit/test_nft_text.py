"""nft text and JSON, `ip` lines, and the refusal of words with special characters."""

import pytest
from attrs import evolve

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import ip_text, nft_json_decode, nft_json_encode, nft_text
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Bitwise,
    Chain,
    Concat,
    Counter,
    CounterRef,
    Ct,
    Dnat,
    Hook,
    Mangle,
    Match,
    Meta,
    NamedCounter,
    Payload,
    Rule,
    Set,
    SetRef,
    Table,
    UnknownExpression,
    UnknownStatement,
    Verdict,
    VerdictMap,
)
from nftpolicy.netstate.operations import ChainRules, NftOperation, SetElements
from nftpolicy.netstate.routing import IpRule, Route
from tests.text_only_details import add_hook_devices

MARK = Meta("mark")

STATEMENTS = [
    (Match(MARK, 1), "meta mark 1"),
    (Match(MARK, 1, "!="), "meta mark != 1"),
    (Match(Bitwise(MARK, and_mask=0xFF), 1), "meta mark & 0xff == 1"),
    (Match(Meta("oifname"), "eth0"), 'meta oifname "eth0"'),
    (Match(Meta("iifname"), SetRef("inside")), "meta iifname @inside"),
    (Match(Meta("l4proto"), AnonymousSet(frozenset({"udp", "tcp"}))), "meta l4proto { tcp, udp }"),
    (Match(Payload("ip6", "daddr"), "fe80::/10"), "ip6 daddr fe80::/10"),
    (Match(Payload("th", "dport"), "1-5"), "th dport 1-5"),
    (Match(Ct("direction"), "reply"), "ct direction reply"),
    (Match(Ct("state"), "established", "in"), "ct state established"),
    (Match(Payload("tcp", "flags"), "rst", "&"), "tcp flags & rst == rst"),
    (Match(Concat((Meta("skgid"), Payload("ip", "daddr"))), SetRef("a.b")), "meta skgid . ip daddr @a.b"),
    (ACCEPT, "accept"),
    (Verdict("goto", "wan.guard"), "goto wan.guard"),
    (
        VerdictMap(Meta("oifname"), frozenset({("eth1", DROP), ("eth0", Verdict("jump", "a"))})),
        'meta oifname vmap { "eth0" : jump a, "eth1" : drop }',
    ),
    (Counter(), "counter"),
    (CounterRef("wan.dropped"), 'counter name "wan.dropped"'),
    (Mangle(MARK, 5), "meta mark set 0x5"),
    (Mangle(Ct("mark"), Bitwise(Ct("mark"), 0xF0, 1)), "ct mark set ct mark & 0xf0 | 0x1"),
    (Mangle(MARK, Bitwise(MARK, or_bits=1)), "meta mark set meta mark | 0x1"),
    (Dnat("ip", "127.0.0.1", 54), "dnat ip to 127.0.0.1:54"),
    (Dnat("ip6", "::1", 54), "dnat ip6 to [::1]:54"),
]


@pytest.mark.parametrize(("statement", "written"), STATEMENTS, ids=[written for _, written in STATEMENTS])
def test_statement_has_expected_text_and_json_round_trip(statement, written):
    assert nft_text.statement_text(statement) == written
    assert nft_json_decode.decode_statement(nft_json_encode.encode_statement(statement)) == statement


INJECTIONS = [
    "x; flush ruleset",
    'x"',
    "x\ny",
    "x y",
    "x{",
    "}",
    "$x",
    "x#",
    "\\x",
    "x'",
    "x\0",
    "\u00e4",
    "x\n",
    "",
    "x,y",
]
BAD_NAMES = [*INJECTIONS, "1x", "-x", ".x", "@x", "x*", "x:"]


@pytest.mark.parametrize("bad", BAD_NAMES)
@pytest.mark.parametrize(
    "place",
    [
        lambda bad: nft_text.table_text(Table(bad, "t")),
        lambda bad: nft_text.table_text(Table("inet", bad)),
        lambda bad: nft_text.table_text(Table("inet", "t", (Chain(bad),))),
        lambda bad: nft_text.table_text(Table("inet", "t", (), (Set(bad, ("mark",)),))),
        lambda bad: nft_text.table_text(Table("inet", "t", (), (Set("s", (bad,)),))),
        lambda bad: nft_text.table_text(Table("inet", "t", (), (Set("s", ("mark",), frozenset(), frozenset({bad})),))),
        lambda bad: nft_text.table_text(Table("inet", "t", (), (), (NamedCounter(bad),))),
        lambda bad: nft_text.statement_text(Verdict("goto", bad)),
        lambda bad: nft_text.statement_text(CounterRef(bad)),
        lambda bad: nft_text.statement_text(Match(MARK, SetRef(bad))),
        lambda bad: nft_text.statement_text(VerdictMap(MARK, frozenset({(1, Verdict("jump", bad))}))),
        lambda bad: nft_text.operation_text(NftOperation("add", bad, "t", Table("inet", "t"))),
        lambda bad: nft_text.operation_text(NftOperation("add", "inet", bad, Chain("c"))),
        lambda bad: nft_text.operation_text(NftOperation("add", "inet", "t", Chain(bad))),
        lambda bad: nft_text.operation_text(NftOperation("delete", "inet", "t", Set(bad, ("mark",)))),
        lambda bad: nft_text.operation_text(
            NftOperation("add", "inet", "t", ChainRules(Chain(bad), (Rule((ACCEPT,)),)))
        ),
        lambda bad: nft_text.operation_text(
            NftOperation("add", "inet", "t", SetElements(Set(bad, ("mark",)), frozenset({1})))
        ),
    ],
)
def test_bad_name_is_refused(place, bad):
    with pytest.raises(ValueError, match="cannot be written"):
        place(bad)


@pytest.mark.parametrize("bad", INJECTIONS)
@pytest.mark.parametrize(
    "place",
    [
        lambda bad: nft_text.value_text(bad),
        lambda bad: nft_text.value_text(bad, quoted=True),
        lambda bad: nft_text.element_text((1, bad), ("gid", "ipv4_addr")),
        lambda bad: nft_text.element_text(bad, ("ifname",)),
        lambda bad: nft_text.statement_text(Match(Meta("oifname"), bad)),
        lambda bad: nft_text.statement_text(Match(Meta(bad), 1)),
        lambda bad: nft_text.statement_text(Match(Ct(bad), 1)),
        lambda bad: nft_text.statement_text(Match(Ct("mark", bad or "\n"), 1)),
        lambda bad: nft_text.statement_text(Match(Payload(bad, "x"), 1)),
        lambda bad: nft_text.statement_text(Match(Payload("x", bad), 1)),
        lambda bad: nft_text.statement_text(Match(MARK, AnonymousSet(frozenset({bad})))),
        lambda bad: nft_text.statement_text(Match(Payload("tcp", "flags"), bad, "&")),
        lambda bad: nft_text.statement_text(VerdictMap(MARK, frozenset({(bad, ACCEPT)}))),
        lambda bad: nft_text.statement_text(Dnat(bad, "::1", 1)),
        lambda bad: nft_text.statement_text(Dnat("ip6", bad, 1)),
        lambda bad: nft_text.operation_text(
            NftOperation("add", "inet", "t", SetElements(Set("s", ("ifname",)), frozenset({bad})))
        ),
    ],
)
def test_bad_value_is_refused(place, bad):
    with pytest.raises(ValueError, match="cannot be written"):
        place(bad)


@pytest.mark.parametrize("bad", ['x"', '"; flush ruleset; "', "x\ny", "x y", "x\x00"])
def test_hooked_device_cannot_end_its_quotes(bad):
    with pytest.raises(ValueError, match="cannot be written"):
        nft_text.hook_text(Hook("filter", "egress", 0, "drop", bad))


@pytest.mark.parametrize("bad", [one for one in INJECTIONS if one not in ("", "x,y")])
@pytest.mark.parametrize(
    "place",
    [
        lambda bad: nft_text.statement_text(Match(Ct("state"), bad, "in")),
        lambda bad: nft_text.statement_text(Match(Ct("state"), bad, "==")),
        lambda bad: nft_text.statement_text(Match(Payload("tcp", "flags"), AnonymousSet(frozenset({bad})))),
        lambda bad: nft_text.statement_text(Match(Bitwise(Payload("tcp", "flags"), and_mask=f"syn,{bad}"), "syn")),
        lambda bad: nft_text.statement_text(Match(Meta("hour"), bad)),
        lambda bad: nft_text.statement_text(Match(Meta("iif"), bad)),
        lambda bad: nft_text.statement_text(Match(nft.Socket("cgroupv2"), bad)),
        lambda bad: nft_text.statement_text(Match(nft.Socket(bad), 1)),
        lambda bad: nft_text.statement_text(Match(nft.Rt(bad), 1)),
        lambda bad: nft_text.statement_text(Match(nft.Rt("mtu", bad), 1)),
        lambda bad: nft_text.statement_text(Match(nft.Option("tcp option", bad), 1)),
        lambda bad: nft_text.statement_text(Match(nft.Option("exthdr", "frag", bad), 1)),
        lambda bad: nft_text.statement_text(Match(nft.Option(bad, "x"), 1)),
        lambda bad: nft_text.statement_text(Match(nft.RawPayload(bad, 0, 8), 1)),
        lambda bad: nft_text.statement_text(Match(nft.Binary(bad, MARK, 1), 1)),
        lambda bad: nft_text.statement_text(Match(nft.Lookup(MARK, nft.MapRef(bad)), 1)),
        lambda bad: nft_text.statement_text(Mangle(MARK, bad)),
        lambda bad: nft_text.statement_text(Mangle(Ct("event"), bad)),
        lambda bad: nft_text.statement_text(Mangle(MARK, nft.Lookup(MARK, frozenset({(1, bad)})))),
        lambda bad: nft_text.statement_text(nft.VerdictMapRef(MARK, bad)),
        lambda bad: nft_text.statement_text(nft.ObjectRef("limit", bad)),
        lambda bad: nft_text.statement_text(nft.Snat("ip", bad)),
        lambda bad: nft_text.statement_text(nft.Snat(bad, "192.0.2.1")),
        lambda bad: nft_text.statement_text(nft.Masquerade(flags=frozenset({bad}))),
        lambda bad: nft_text.statement_text(nft.Reject("icmp", bad)),
        lambda bad: nft_text.statement_text(nft.Reject(bad, "no-route")),
        lambda bad: nft_text.statement_text(nft.Log((("level", bad),))),
        lambda bad: nft_text.statement_text(nft.Log((("flags", bad),))),
        lambda bad: nft_text.statement_text(nft.Queue(bad)),
        lambda bad: nft_text.statement_text(nft.Limit(1, bad)),
        lambda bad: nft_text.statement_text(nft.Limit(1, "second", unit=bad)),
        lambda bad: nft_text.statement_text(nft.Quota(1, bad)),
        lambda bad: nft_text.statement_text(nft.SetUpdate("add", bad, MARK)),
        lambda bad: nft_text.statement_text(nft.SetUpdate(bad, "s", MARK)),
        lambda bad: nft_text.statement_text(nft.FlowOffload(bad)),
        lambda bad: nft_text.statement_text(nft.Dup(bad)),
        lambda bad: nft_text.statement_text(nft.Dup("192.0.2.1", bad)),
        lambda bad: nft_text.statement_text(nft.Fwd(bad)),
        lambda bad: nft_text.statement_text(nft.Tproxy("ip", bad, 1)),
        lambda bad: nft_text.hook_text(Hook("filter", "egress", 0, devices=frozenset({"lo", bad}))),
        lambda bad: nft_text.table_text(Table("ip", "t", maps=(nft.Map(bad, ("mark",), ("mark",)),))),
        lambda bad: nft_text.table_text(Table("ip", "t", maps=(nft.Map("m", ("mark",), (bad,)),))),
        lambda bad: nft_text.table_text(
            Table("ip", "t", maps=(nft.Map("m", ("mark",), ("mark",), frozenset({(1, bad)})),))
        ),
        lambda bad: nft_text.table_text(Table("ip", "t", flowtables=(nft.Flowtable("f", 0, frozenset({bad})),))),
        lambda bad: nft_text.table_text(Table("ip", "t", objects=(nft.NamedObject(bad, nft.Quota(5)),))),
        lambda bad: nft_text.table_text(Table("ip", "t", objects=(nft.NamedObject("h", nft.CtHelper(bad, "tcp")),))),
        lambda bad: nft_text.table_text(
            Table("ip", "t", objects=(nft.NamedObject("h", nft.CtHelper("ftp", "tcp", bad)),))
        ),
    ],
)
def test_bad_foreign_object_is_refused(place, bad):
    with pytest.raises(ValueError, match="cannot be written"):
        place(bad)


@pytest.mark.parametrize("bad", ['x"; flush ruleset', "x\\", "x\ny", "$x", "x" * 128, "x{"])
def test_log_prefix_with_quote_is_refused(bad):
    with pytest.raises(ValueError, match="cannot be written"):
        nft_text.statement_text(nft.Log((("prefix", bad),)))


@pytest.mark.parametrize("table", [Table("ip", "t", unknown=("{}",)), Table("ip", "t", flags=frozenset({"unnamed"}))])
def test_table_with_unsupported_parts_is_refused(table):
    with pytest.raises(ValueError, match="unsupported"):
        nft_text.table_text(table)


@pytest.mark.parametrize("bad", ['"; flush ruleset; #', "a\nb", "a\\", "a;b", "x" * 121, "{"])
def test_comment_with_quote_is_refused(bad):
    with pytest.raises(ValueError, match="cannot be written"):
        nft_text.rule_text(Rule((ACCEPT,), bad))


@pytest.mark.parametrize(
    "unknown",
    [
        UnknownStatement("{}"),
        Match(UnknownExpression("{}"), 1),
        Match(MARK, UnknownExpression("{}")),
        Mangle(MARK, UnknownExpression("{}")),
        VerdictMap(UnknownExpression("{}"), frozenset({(1, ACCEPT)})),
    ],
)
def test_unsupported_statement_is_refused(unknown):
    with pytest.raises(ValueError, match="unsupported"):
        nft_text.statement_text(unknown)


def test_text_in_place_of_number_is_refused():
    with pytest.raises(ValueError, match="invalid literal"):
        nft_text.hook_text(Hook("filter", "output", "0; flush ruleset"))
    with pytest.raises(ValueError, match="invalid literal"):
        nft_text.statement_text(Dnat("ip", "127.0.0.1", "5 accept"))


TABLE = Table(
    "inet",
    "t",
    (
        Chain("base", (Rule((Verdict("jump", "one"),)),), Hook("filter", "output", -5, "drop")),
        Chain("one", (Rule((CounterRef("seen"), ACCEPT), "why (RFC 1)"),)),
    ),
    (
        Set("names", ("ifname",), frozenset({"wg*", "eth0"}), frozenset({"interval"})),
        Set("rows", ("gid", "ipv4_addr"), frozenset({(5, "192.0.2.0/24"), (4, "192.0.2.1")}), frozenset({"interval"})),
        Set("none", ("mark",)),
    ),
    (NamedCounter("seen"),),
)


def test_table_has_expected_text():
    assert nft_text.table_text(TABLE) == (
        "table inet t {\n\tcounter seen { }\n"
        '\n\tset names {\n\t\ttype ifname\n\t\tflags interval\n\t\telements = { "eth0", "wg*" }\n\t}\n'
        "\n\tset rows {\n\t\ttype gid . ipv4_addr\n\t\tflags interval\n"
        "\t\telements = { 4 . 192.0.2.1, 5 . 192.0.2.0/24 }\n\t}\n"
        "\n\tset none {\n\t\ttype mark\n\t}\n"
        "\n\tchain base {\n\t\ttype filter hook output priority -5; policy drop;\n\t\tjump one\n\t}\n"
        '\n\tchain one {\n\t\tcounter name "seen" accept comment "why (RFC 1)"\n\t}\n}\n'
    )


def test_table_json_round_trips():
    document = nft_json_encode.encode_ruleset((TABLE,))
    listed = {"nftables": [one["add"] for one in document["nftables"] if "add" in one]}
    assert nft_json_decode.decode_ruleset(listed) == (TABLE,)


def test_operations_have_expected_commands():
    rows, chain = TABLE.sets[1], TABLE.chains[0]
    wanted = {
        ("add", TABLE): "add table inet t",
        ("delete", TABLE): "delete table inet t",
        ("add", chain): "add chain inet t base { type filter hook output priority -5; policy drop; }",
        ("add", evolve(chain, hook=None)): "add chain inet t base",
        ("flush", chain): "flush chain inet t base",
        ("delete", chain): "delete chain inet t base",
        ("add", rows): "add set inet t rows { type gid . ipv4_addr; flags interval; }",
        ("delete", rows): "delete set inet t rows",
        ("delete", SetElements(rows, frozenset({(4, "192.0.2.1")}))): "delete element inet t rows { 4 . 192.0.2.1 }",
        ("add", NamedCounter("seen")): "add counter inet t seen",
        (
            "add",
            ChainRules(chain, (Rule((ACCEPT,)), Rule((DROP,)))),
        ): "add rule inet t base accept\nadd rule inet t base drop",
    }
    for (verb, item), command in wanted.items():
        assert nft_text.operation_text(NftOperation(verb, "inet", "t", item)) == command


def test_hook_devices_are_read_from_the_text():
    table = Table("netdev", "t", (Chain("a.b", (), Hook("filter", "egress", 1)), Chain("c")))
    listing = (
        'table netdev t {\n\tchain a.b {\n\t\ttype filter hook egress device "eth0" priority 1; policy drop;\n\t}\n}\n'
    )
    assert add_hook_devices(table, listing).chains[0].hook.device == "eth0"
    assert add_hook_devices(table, "") == table


IP_RULES = [
    (IpRule(4, 510, table=7, mark=1, mask=0xFF), "priority 510 from all fwmark 0x1/0xff lookup 7 protocol 78"),
    (IpRule(4, 900, table=254), "priority 900 from all lookup main protocol 78"),
    (IpRule(6, 500, table=254, destination="fe80::/10"), "priority 500 from all to fe80::/10 lookup main protocol 78"),
    (IpRule(4, 910, action="unreachable"), "priority 910 from all unreachable protocol 78"),
    (IpRule(4, 1, action="goto", goto=9, invert=True), "priority 1 not from all goto 9 protocol 78"),
    (
        IpRule(4, 1, "lookup", 5, source="192.0.2.0/24", tos=16, iif="eth0", oif="eth1", uids=(5, 5), l4proto=17),
        "priority 1 from 192.0.2.0/24 tos 0x10 iif eth0 oif eth1 uidrange 5-5 ipproto 17 lookup 5 protocol 78",
    ),
    (
        IpRule(4, 1, table=254, sports=(1, 2), dports=(53, 53), suppress_prefix=0, protocol=2),
        "priority 1 from all sport 1-2 dport 53 lookup main suppress_prefixlength 0 protocol 2",
    ),
]
ROUTES = [
    (Route(4, 7, kind="unreachable", metric=9), "unreachable default table 7 metric 9 proto 78"),
    (
        Route(4, 7, gateway="192.0.2.1", device="eth0", metric=5, onlink=True),
        "default via 192.0.2.1 dev eth0 table 7 metric 5 onlink proto 78",
    ),
    (Route(6, 7, "2001:db8::/32", device="eth0", protocol=3), "2001:db8::/32 dev eth0 table 7 proto 3"),
]


@pytest.mark.parametrize(("rule", "line"), IP_RULES)
def test_ip_rule_has_expected_line(rule, line):
    assert ip_text.rule_text(rule) == line


@pytest.mark.parametrize(("route", "line"), ROUTES)
def test_route_has_expected_line(route, line):
    assert ip_text.route_text(route) == line


def test_batch_adds_routes_before_rules():
    lines = ip_text.batch_text(tuple(rule for rule, _ in IP_RULES), tuple(route for route, _ in ROUTES), 4).splitlines()
    assert [line.split()[0] for line in lines] == ["route"] * 2 + ["rule"] * 6
    assert ip_text.batch_text((), (), 6) == ""


@pytest.mark.parametrize("value", [nft.FULL_MASK, 0, -1])
def test_number_text_is_decimal(value):
    assert nft_text.value_text(value) == str(value)
