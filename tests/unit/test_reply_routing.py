"""Ip rules of UDP replies and of sockets that are bound to a device."""

import pytest

from nftpolicy.compiler.reply_routing import ip_rules
from nftpolicy.policy.load import load

TEXT = """
name = "p"
inside = ["lan"]
[uplink.wan]
devices = ["eth0", "wlan0"]
mark = "1/1"
table = 7
answer = [ANSWER]
"""


def rules(answer):
    return list(ip_rules(load(TEXT.replace("ANSWER", answer).encode())[0]))


@pytest.mark.parametrize(
    ("answer", "ports"),
    [
        ('"udp/53"', [(53, 53)]),
        ('"udp/53", "udp/5000-5010"', [(53, 53), (5000, 5010)]),
        ('"udp/1-65535"', [(1, 65534)]),
        ('"udp/65535"', []),
        ('"ssh", "ping"', []),
    ],
)
def test_each_answered_udp_port_has_a_rule(answer, ports):
    """The kernel refuses a rule with port 65535."""
    for family in (4, 6):
        found = [rule for rule in rules(answer) if rule.family == family and rule.sports]
        assert [rule.sports for rule in found] == ports
        assert {(rule.priority, rule.table, rule.l4proto) for rule in found} <= {(33100, 7, 17)}


def test_networks_of_several_uplinks_come_before_default_routes():
    text = TEXT.replace("ANSWER", '"udp/53"').replace('"1/1"', '"1/3"')
    other = text[text.index("[uplink") :].replace("wan", "lte").replace("eth0", "wwan0").replace("wlan0", "wwan1")
    other = other.replace('"1/3"', '"2/3"').replace("table = 7", "table = 8")
    found = [rule for rule in ip_rules(load((text + other).encode())[0]) if rule.family == 4 and rule.sports]
    places = sorted((rule.priority, rule.table, rule.suppress_prefix) for rule in found)
    assert places == [(33090, 7, 7), (33090, 8, 7), (33100, 7, None), (33100, 8, None)]


@pytest.mark.parametrize(
    ("source", "destinations"),
    [("", {4: [None], 6: [None]}), (', source = ["10.0.0.0/8"]', {4: ["10.0.0.0/8"], 6: []})],
)
def test_exclusive_port_has_its_own_default_route(source, destinations):
    found = [
        rule for rule in rules(f'{{ name = "udp/53", exclusive = true{source} }}, "udp/54"') if rule.priority < 900
    ]
    for family, wanted in destinations.items():
        of_family = [rule for rule in found if rule.family == family and rule.sports]
        assert [rule.destination for rule in of_family] == [each for each in wanted for _ in range(2)]
        places = [(rule.priority, rule.table, rule.suppress_prefix, rule.sports) for rule in of_family]
        assert places == [(890, 254, 7, (53, 53)), (895, 7, None, (53, 53))][: len(places)]


def test_each_rule_is_there_once():
    """The kernel refuses the second of two equal rules."""
    port = '{{ name = "udp/{0}", source = ["10.0.0.0/8"] }}'.format
    both = rules(f"{port('65000-65534')}, {port('65000-65535')}")
    assert len(both) == len(dict.fromkeys(both))
    assert both == rules(port("65000-65534"))


def test_each_device_has_a_rule():
    bound = [(rule.family, rule.priority, rule.table, rule.oif) for rule in rules('"ssh"') if rule.oif]
    assert bound == [(family, 870, 7, name) for family in (4, 6) for name in ("eth0", "wlan0")]
