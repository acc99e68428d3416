"""Constructs that nft lists, written as text, loaded and listed again."""

import json
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.netstate.formats import nft_json_decode, nft_text
from nftpolicy.netstate.nft import (
    ACCEPT,
    DROP,
    Chain,
    Counter,
    CtHelper,
    Flowtable,
    Hook,
    Limit,
    Map,
    NamedCounter,
    NamedObject,
    Quota,
    Rule,
    Set,
    Table,
    Verdict,
)
from tests.lab.netns import Namespace
from tests.text_only_details import add_text_only_details

pytestmark = pytest.mark.kernel

FORMS = json.loads((Path(__file__).parents[1] / "fixtures/forms.json").read_text())
INTERVAL, ADDRESS = frozenset({"interval"}), ("ipv4_addr",)
SURROUNDINGS = Table(
    "inet",
    "t",
    sets=(
        Set("sd", ADDRESS, flags=frozenset({"dynamic", "timeout"}), timeout=300),
        Set("sty", ("ipv4_addr", "inet_service"), frozenset({("192.0.2.0/24", "5-9"), ("192.0.3.1", 5)}), INTERVAL),
        Set("sm", ("mark",), frozenset({"5-9", 15}), INTERVAL),
        Set("states", ("ct_state",), frozenset({"new", "related"})),
        Set("sf", ("tcp_flag",), frozenset({"ack,syn", "rst"})),
    ),
    maps=(
        Map("m4", ADDRESS, ADDRESS, frozenset({("192.0.2.1", "192.0.2.2")})),
        Map("mi", ADDRESS, ("mark",), frozenset({("10.0.0.0/8", 1), ("11.0.0.1-11.0.0.5", 2)}), INTERVAL),
        Map("mc", ("ipv4_addr", "inet_service"), ("ipv4_addr", "inet_service"),
            frozenset({(("192.0.2.1", 80), ("192.0.2.2", 81))})),
        Map("mv", ("ifname",), ("verdict",), frozenset({("eth*", Verdict("jump", "c1")), ("lo", ACCEPT)}), INTERVAL),
        Map("rest", ("inet_service",), ("verdict",), frozenset({(5, DROP), ("*", ACCEPT)})),
    ),
    counters=(NamedCounter("cn"),),
    objects=(
        NamedObject("ln", Limit(10, "minute", 3, over=True)),
        NamedObject("qn", Quota(500, over=True)),
        NamedObject("hftp", CtHelper("ftp", "tcp", "ip")),
    ),
    chains=(Chain("c1"),),
)  # fmt: skip
PLACES = {
    "filter": Hook("filter", "output", 0),
    "nat": Hook("nat", "output", -100),
    "source nat": Hook("nat", "postrouting", 100),
    "prerouting": Hook("filter", "prerouting", -150),
    "ip": Hook("filter", "prerouting", -150),
    "ip nat": Hook("nat", "output", -100),
    "ip source nat": Hook("nat", "postrouting", 100),
    "netdev": Hook("filter", "ingress", 0, device="lo"),
}


def rules(place):
    return tuple(
        Rule(nft_json_decode.decode_statements(form["json"]), f"form {at}")
        for at, form in enumerate(FORMS)
        if form["place"] == place
    )


def listed_again(table):
    with Namespace("node") as node:
        node.nft(nft_text.table_text(table))
        found = json.loads(node.run(["nft", "-j", "list", "ruleset"]).stdout)
        (back,) = add_text_only_details(
            nft_json_decode.decode_ruleset(found), node.run(["nft", "list", "ruleset"]).stdout
        )
    return back


@pytest.mark.parametrize("place", PLACES)
def test_nft_text_of_rule_round_trips(place):
    hook = PLACES[place]
    family = {"ip": "ip", "netdev": "netdev"}.get(place.split()[0], "inet")
    around = SURROUNDINGS if family == "inet" else Table(family, "t")
    # nft takes only some of them in a base chain of one hook, and takes all of them in a chain without a caller.
    chain = Chain("forms", rules(place), hook if place != "filter" else None)
    table = evolve(around, chains=(*around.chains, chain))
    assert chain.rules
    back = listed_again(table)
    for listed, written in zip(back.chains[-1].rules, chain.rules, strict=True):
        assert listed == written or with_code_numbers(listed) == with_code_numbers(written)
    assert evolve(back, chains=back.chains[:-1]) == evolve(table, chains=table.chains[:-1])


def with_code_numbers(rule):
    """Return the text of a rule with ICMP codes as numbers, as nft 1.1 lists them."""
    return repr(rule).replace("'port-unreachable'", "3").replace("'net-unreachable'", "0")


def test_nft_text_of_table_objects_round_trips():
    flowtable = Flowtable("ft", 5, frozenset())
    table = evolve(SURROUNDINGS, flags=frozenset({"dormant"}))
    assert listed_again(table) == table
    assert "flowtable ft" in nft_text.table_text(evolve(table, flowtables=(flowtable,)))


def test_nft_text_of_chain_with_several_devices_round_trips():
    hook = Hook("filter", "egress", 5, devices=frozenset({"lo", "eth0"}))
    table = Table("netdev", "t", (Chain("several", (Rule((Counter(), DROP)),), hook),))
    assert listed_again(table) == table
