"""Effects of rules on this kernel that the model assumes, or once had wrong."""

import json
import socket

import pytest

from nftpolicy.model.branching import Choices
from nftpolicy.model.nft.chains import Ruleset, evaluate_chain
from nftpolicy.model.packet import parse_address
from nftpolicy.model.packet_view import PacketView
from nftpolicy.netstate.formats import nft_json_decode, nft_text
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    AnonymousSet,
    Binary,
    Bitwise,
    Chain,
    Concat,
    Counter,
    Ct,
    Dnat,
    Hook,
    Lookup,
    Mangle,
    Map,
    MapRef,
    Masquerade,
    Match,
    Meta,
    Notrack,
    Payload,
    Redirect,
    Reject,
    Rule,
    Set,
    SetRef,
    Snat,
    Table,
    Verdict,
    VerdictMap,
    VerdictMapRef,
)
from tests.lab.netns import Namespace

from . import probe_senders
from .chain_differential import ChainComparison, compare_table, node_with_far_end

pytestmark = pytest.mark.kernel

MARK = Meta("mark")


def base_chain_table(*rules: tuple, hook: Hook | None = None, family: str = "inet", **more) -> Table:
    """Return a table whose base chain has these rules, each counted before its verdict."""
    made = []
    for at, rule in enumerate(rules):
        if any(isinstance(one, VerdictMap | VerdictMapRef) for one in rule):
            made.append(Rule(rule))  # a packet may come to its end and find nothing
            continue
        last = rule[-1:] if isinstance(rule[-1], Verdict | Reject) else ()
        made.append(Rule((*rule[: len(rule) - len(last)], Counter(), *last), f"r{at}"))
    called = (Chain("called", (Rule((Counter(),), "called"),)),)
    sent = (
        AnonymousSet(frozenset(probe_senders.DESTINATIONS[4])),
        AnonymousSet(frozenset(probe_senders.DESTINATIONS[6])),
    )
    gates = tuple(
        Rule((Match(Payload(of, "daddr"), to), Verdict("jump", "first")))
        for of, to in zip(("ip", "ip6"), sent, strict=True)
        if family in (of, "inet", "netdev")
    )
    return Table(family, "probed", (*called, Chain("first", tuple(made)), Chain("base", gates, hook or OUT)), **more)


OUT, EARLY = Hook("filter", "output", 0), Hook("filter", "output", -300)
EGRESS, INGRESS = (Hook("filter", hook, 0, device="w0") for hook in ("egress", "ingress"))
FORWARD, BEHIND = Hook("filter", "forward", 0), Hook("filter", "postrouting", 0)
BACK = Hook("filter", "prerouting", -300)
EDGES = Set(
    "edges",
    ("ipv4_addr", "inet_service"),
    frozenset({("192.0.2.64/26", "9-22"), ("127.0.0.0-127.0.0.2", 80)}),
    frozenset({"interval"}),
)

FACTS = {
    "what-has-no-owner-matches-no-owner-negated-or-not": base_chain_table(
        (Match(Meta("skuid"), 0),),
        (Match(Meta("skuid"), 0, "!="),),
        (Match(Meta("skgid"), AnonymousSet(frozenset({1, 2})), "!="),),
        (Match(Meta("skuid"), 5, "<"),),
        hook=FORWARD,
    ),
    "a-header-of-the-other-family-never-matches": base_chain_table(
        (Match(Payload("ip", "saddr"), "10.0.0.1", "!="),),
        (Match(Payload("ip6", "saddr"), "fe80::1", "!="),),
        (Match(Payload("ip", "protocol"), "tcp", "!="),),
        (Match(Payload("ip6", "nexthdr"), "tcp", "!="),),
    ),
    "a-header-of-another-protocol-never-matches": base_chain_table(
        (Match(Payload("tcp", "dport"), 22, "!="),),
        (Match(Payload("udp", "dport"), 22, "!="),),
        (Match(Payload("sctp", "dport"), 22, "!="),),
        (Match(Payload("icmp", "type"), "echo-request", "!="),),
        (Match(Payload("icmpv6", "type"), "echo-request", "!="),),
        (Match(Payload("tcp", "flags"), "syn", "!="),),
    ),
    "there-is-no-device-of-arrival-at-output-and-none-matches-that": base_chain_table(
        (Match(Meta("iifname"), "w0", "!="),),
        (Match(Meta("iifname"), "w*", "!="),),
        (Match(Meta("iif"), "lo", "!="),),
        (Match(Meta("iifname"), AnonymousSet(frozenset({"w0", "lo"})), "!="),),
    ),
    "there-is-no-device-to-leave-by-at-prerouting": base_chain_table(
        (Match(Meta("oifname"), "w0", "!="),),
        (Match(Meta("oif"), "lo", "!="),),
        (Match(Meta("iifname"), "w0"),),
        hook=BACK,
    ),
    "egress-knows-the-device-by-which-it-leaves-alone": base_chain_table(
        (Match(Meta("oifname"), "w0"),),
        (Match(Meta("iifname"), "w0"),),
        (Match(Meta("iifname"), "w0", "!="),),
        (Match(Meta("skuid"), 0, "!="),),
        (Match(Meta("protocol"), "ip"),),
        (Match(Payload("udp", "dport"), 9, "!="),),
        hook=EGRESS,
        family="netdev",
    ),
    "ingress-knows-the-device-of-arrival-alone": base_chain_table(
        (Match(Meta("iifname"), "w0"),),
        (Match(Meta("oifname"), "w0"),),
        (Match(Meta("skuid"), 0, "!="),),
        hook=INGRESS,
        family="netdev",
    ),
    "before-tracking-all-is-invalid-and-has-no-mark": base_chain_table(
        (Match(Ct("state"), "invalid", "in"),),
        (Match(Ct("state"), "new", "in"),),
        (Match(Ct("mark"), 0),),
        (Match(Ct("mark"), 0, "!="),),
        (Match(Ct("direction"), "original"),),
        hook=EARLY,
    ),
    "what-lo-brings-back-is-tracked-already": base_chain_table(
        (Match(Ct("state"), "invalid", "in"),), (Match(Ct("state"), "new", "in"),), (Match(Ct("mark"), 5),), hook=BACK
    ),
    "what-is-not-tracked-has-a-state-and-nothing-else": base_chain_table(
        (Notrack(),),
        (Match(Ct("state"), "untracked", "in"),),
        (Match(Ct("mark"), 5, "!="),),
        (Mangle(Ct("mark"), 5),),
        (Match(Ct("mark"), 5),),
        hook=EARLY,
    ),
    "what-tracking-refused-can-be-untracked-later": base_chain_table((Notrack(),), (Match(Ct("state"), "untracked", "in"),)),
    "talk-among-neighbours-is-not-tracked": base_chain_table(
        (Match(Payload("icmpv6", "type"), AnonymousSet(frozenset({130, 133, 135, 136, 143}))),),
        (Match(Ct("state"), "untracked", "in"),),
        (Match(Ct("mark"), 5, "!="),),
    ),
    "flags-of-states": base_chain_table(
        (Match(Ct("state"), "established,related", "in"),),
        (Match(Ct("state"), "established", "!="),),
        (Match(Ct("state"), "established,invalid", "!"),),
        (Match(Ct("state"), "new", "=="),),
        (Match(Ct("direction"), "reply"),),
        (Match(Ct("state"), AnonymousSet(frozenset({"new", "invalid"}))),),
    ),
    "flags-of-tcp": base_chain_table(
        (Match(Bitwise(Payload("tcp", "flags"), and_mask="ack,fin,rst,syn"), "syn"),),
        (Match(Payload("tcp", "flags"), "rst", "&"),),
        (Match(Payload("tcp", "flags"), "ack,syn", "in"),),
        (Match(Payload("tcp", "flags"), "ack,syn", "!"),),
        (Match(Payload("tcp", "flags"), "syn", "=="),),
        (Match(Payload("tcp", "flags"), AnonymousSet(frozenset({"syn", "ack,syn"}))),),
    ),
    "a-reject-of-one-family-lets-the-other-pass-inet": base_chain_table((Reject("icmp", "admin-prohibited"),), hook=FORWARD),
    "a-reject-of-one-family-lets-the-other-pass-inet6": base_chain_table((Reject("icmpv6", "no-route"),), hook=FORWARD),
    "a-reject-of-both-drops": base_chain_table((Reject(),), hook=FORWARD),
    "maps-with-wildcards-and-a-rest": base_chain_table(
        (VerdictMap(Meta("oifname"), frozenset({("w*", Verdict("jump", "called")), ("lo", ACCEPT)})),),
        (VerdictMap(Payload("th", "dport"), frozenset({(9, DROP), ("20-60", Verdict("continue")), ("*", ACCEPT)})),),
        (Mangle(MARK, 7),),
    ),
    "a-named-map-of-verdicts-gone-by-halves": base_chain_table(
        (VerdictMapRef(Meta("skuid"), "ways"),),
        (Mangle(MARK, Lookup(Meta("skgid"), MapRef("marks"))),),
        maps=(
            Map("ways", ("uid",), ("verdict",), frozenset({("1-999", Verdict("goto", "called")), (1000, DROP)}),
                frozenset({"interval"})),
            Map("marks", ("gid",), ("mark",), frozenset({("5-99", 7), (100, 8)}), frozenset({"interval"})),
        ),
    ),
    "concatenations-with-intervals": base_chain_table(
        (Match(Concat((Payload("ip", "daddr"), Payload("udp", "dport"))), SetRef("edges")),),
        (Match(Concat((Payload("ip", "daddr"), Payload("udp", "dport"))), SetRef("edges"), "!="),),
        (Match(Concat((Meta("oifname"), Meta("l4proto"), MARK)), AnonymousSet(frozenset({("w0", "udp", 1)}))),),
        sets=(EDGES,),
    ),
    "arithmetic-of-marks": base_chain_table(
        (Match(Bitwise(MARK, and_mask=0x10), 0, "!="),),
        (Match(MARK, 3, ">="), Mangle(MARK, Binary("^", MARK, 1))),
        (Match(MARK, "1-2"), Mangle(MARK, Binary("<<", MARK, 2))),
        (Mangle(Ct("mark"), Bitwise(MARK, and_mask=0x1C, or_bits=3)),),
        (Match(Ct("mark"), 7), Mangle(MARK, Ct("mark"))),
        (Mangle(MARK, Bitwise(MARK, and_mask=0xFFFFFFF0, or_bits=9)), ACCEPT),
    ),
    "postrouting-sees-both-devices-of-what-is-passed-on": base_chain_table(
        (Match(Meta("iifname"), "w0"), Match(Meta("oifname"), "w1")), (Match(Meta("skuid"), 0),), hook=BEHIND
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def chain_node(able):
    with node_with_far_end() as both:
        yield both


@pytest.mark.usefixtures("egress")
@pytest.mark.parametrize("name", FACTS)
def test_chain_model_on_fact_agrees_with_kernel(name, chain_node):
    node, channel = chain_node

    def run() -> tuple[int, list[tuple[str, str]]]:
        comparison = ChainComparison(channel)
        passing = [one for one in comparison.probes if one.passes(FACTS[name].chains[-1].hook.hook)]
        compare_table(comparison, FACTS[name], passing)
        return comparison.compared, comparison.refused

    compared, refused = node.call(run, timeout=60)
    assert refused == []
    assert compared > 10
    print(f"{compared} packets compared")


# --- address translation ---------------------------------------------------------------


def nat(statement, hook="output", protocol="udp"):
    at = Hook("nat", hook, -100 if hook == "output" else 100)
    return Table("inet", "probed", (Chain("base", (Rule((Match(Meta("l4proto"), protocol), statement)),), at),))


OWNERS = frozenset({(1000, "192.0.2.79"), ("2000-3000", "192.0.2.80")})
TRANSLATIONS = {
    "dnat4": (4, nat(Dnat("ip", "192.0.2.78"))),
    "dnat4-port": (4, nat(Dnat("ip", "192.0.2.78", 53))),
    "dnat6-port": (6, nat(Dnat("ip6", "2001:db8:1::78", 53))),
    "dnat-other-family": (4, nat(Dnat("ip6", "2001:db8:1::78", 53))),
    "dnat-port-alone": (6, nat(Dnat(None, None, 53))),
    "dnat-map": (4, nat(Dnat("ip", Lookup(Meta("skuid"), OWNERS)))),
    "dnat-map-without-entry": (4, nat(Dnat("ip", Lookup(Meta("skuid"), frozenset({(5, "192.0.2.79")}))))),
    "redirect4": (4, nat(Redirect(5300))),
    "redirect6": (6, nat(Redirect(5300))),
    "redirect-without-port": (4, nat(Redirect())),
    "snat4": (4, nat(Snat("ip", "192.0.2.5"), "postrouting")),
    "snat6-port": (6, nat(Snat("ip6", "2001:db8:1::5", 7000), "postrouting")),
    "masquerade": (4, nat(Masquerade(), "postrouting")),
}
WATCHER = """
table inet observer {{
    set seen {{ type {kind} . {kind} . inet_service . inet_service; flags dynamic; size 10; }}
    chain c {{
        type filter hook {hook} priority 200;
        {of} saddr {source} update @seen {{ {of} saddr . {of} daddr . udp sport . udp dport }}
        {of} daddr {destination} update @seen {{ {of} saddr . {of} daddr . udp sport . udp dport }}
        udp dport {{ 53, 5300, {port} }} update @seen {{ {of} saddr . {of} daddr . udp sport . udp dport }}
    }}
}}
"""


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_nat_model_agrees_with_kernel(name, chain_node):
    node, _ = chain_node
    family, table = TRANSLATIONS[name]
    source, destination, port = (
        probe_senders.NODE[family],
        probe_senders.NOBODY[family],
        3000 + list(TRANSLATIONS).index(name),
    )
    hook = table.chains[0].hook.hook
    words = {"kind": f"ipv{family}_addr", "of": "ip" if family == 4 else "ip6"}
    node.nft("\n".join(f"table inet {one}\ndelete table inet {one}" for one in ("probed", "observer")))
    node.nft(
        nft_text.table_text(table)
        + WATCHER.format(**words, hook=hook, source=source, destination=destination, port=port)
    )

    def send() -> None:
        with socket.socket(probe_senders.DOMAIN[family], socket.SOCK_DGRAM) as made:
            made.bind((source, port))
            made.sendto(b"fact", (destination, port))

    node.call(send, uid=1000, gid=100)
    listed = json.loads(node.run(["nft", "-j", "list", "set", "inet", "observer", "seen"]).stdout)
    node.nft("delete table inet probed\ndelete table inet observer")
    (seen,) = nft_json_decode.decode_ruleset(listed)[0].sets
    view = PacketView(
        family, parse_address(source), parse_address(destination), 17, port, port, oif="w0", uid=1000, gid=100
    )
    assert evaluate_chain(Ruleset((table,)), table, table.chains[0], view, Choices()) == "accept"
    if view.snat and view.new_source is None:
        view.source = parse_address(source)  # the device has several addresses, and the first is the one that is taken
    shown = {tuple(parse_address(one) if isinstance(one, str) else one for one in element) for element in seen.elements}
    assert shown == {(view.source, view.destination, view.sport, view.dport)}


# --- order -----------------------------------------------------------------------------

ORDER = """
table ip old {{
    chain c {{ type filter hook output priority {first}; meta mark set meta mark & 0xf0 | 1; }}
}}
table inet young {{
    chain c {{ type filter hook output priority {second}; meta mark set meta mark & 0xf0 | 2; }}
    chain d {{ type filter hook output priority {second}; meta mark set (meta mark & 0xf) << 4; }}
}}
table ip observer {{
    chain c {{
        type filter hook output priority 100;
        meta mark 0x10 counter comment "0x10"
        meta mark 0x11 counter comment "0x11"
        meta mark 0x12 counter comment "0x12"
        meta mark 0x20 counter comment "0x20"
        meta mark 0x22 counter comment "0x22"
        meta mark 0x1 counter comment "0x1"
        meta mark 0x2 counter comment "0x2"
    }}
}}
"""


@pytest.mark.parametrize(("first", "second"), [(0, 0), (-1, 0), (0, -1)])
def test_chain_order_of_model_agrees_with_kernel(first, second):
    with Namespace("node") as node:
        for part in ORDER.format(first=first, second=second).split("\ntable ")[1:]:
            node.nft(f"table {part}")
        ruleset = Ruleset(nft_json_decode.decode_ruleset(json.loads(node.run(["nft", "-j", "list", "ruleset"]).stdout)))
        view = PacketView(4, parse_address("127.0.0.1"), parse_address("127.0.0.2"), 17, 1, 9, oif="lo")
        for table, chain in ruleset.base_chains(4, "output"):
            evaluate_chain(ruleset, table, chain, view, Choices())

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.sendto(b"fact", ("127.0.0.2", 9))

        node.call(send)
        listed = json.loads(node.run(["nft", "-j", "list", "table", "ip", "observer"]).stdout)["nftables"]
        rules = [one["rule"] for one in listed if "rule" in one]
        counted = [one["comment"] for one in rules if one["expr"][1]["counter"]["packets"]]
        # The error of a closed port comes from the kernel and passes the same chains.
        assert counted == [hex(view.mark)]
