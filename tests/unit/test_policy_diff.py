"""Difference of two policies in words: the ports by each uplink that one of them permits."""

import json

import attrs
import pytest
from hypothesis import given, settings

from nftpolicy.policy.load import load
from nftpolicy.policy.policy_diff import _SHOWN_FIELDS, diff_policies
from tests import policy_strategies
from tests.unit.command_line import run_here

TEXT = """
name = "p"
inside = ["lan0", "tun*"]
[uplink.wan]
devices = ["eth0"]
mark = "0x10/0xf0"
table = 100
exempt = ["arp"]
answer = ["ping", { name = "ssh", source = ["10.0.0.0/8"] }]
[uplink.wan.resolver]
listen = ["127.0.0.1:54"]
servers = ["192.0.2.53"]
[service.backup]
uplink = "wan"
group = 800
ports = ["tcp/22", "tcp/443"]
to = ["192.0.2.0/24"]
[forward.guests]
uplink = "wan"
from = ["lan0"]
source = ["10.9.0.0/24"]
masquerade = true
[publish.web]
uplink = "wan"
port = "tcp/80"
to = "lan0"
[lan.files]
uplink = "wan"
to = ["10.7.0.0/16"]
ports = ["tcp/445"]
group = 900
"""


def policy(*replacements):
    text = TEXT
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return load(text.encode())[0]


def test_first_policy_takes_all_except_permissions():
    assert diff_policies(None, policy()).lines == [
        "loses: every program: eth0 (uplink wan); all other devices, except lan0, tun*",
        "keeps: uplink wan: every program may send arp",
        "keeps: uplink wan: hosts in its network get answers from ping; tcp/22 for 10.0.0.0/8",
        "keeps: uplink wan: its services send DNS queries to 192.0.2.53",
        "keeps: uplink wan: group 800 may send tcp/22, tcp/443 to 192.0.2.0/24",
        "keeps: uplink wan: hosts behind lan0 from 10.9.0.0/24 may send anything",
        "keeps: uplink wan: hosts in its network reach, behind lan0, tcp/80",
        "keeps: uplink wan: group 900 may send without a mark tcp/445 to 10.7.0.0/16",
    ]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ('"tcp/22", ', "", ["loses: uplink wan: group 800 may send tcp/22 to 192.0.2.0/24"]),
        ('["tcp/445"]', '["tcp/445", "tcp/139"]', [
            "gains: uplink wan: group 900 may send without a mark tcp/139 to 10.7.0.0/16",
        ]),
        ("192.0.2.0/24", "192.0.2.7", [
            "loses: uplink wan: group 800 may send tcp/22, tcp/443 to 192.0.2.0/24 (keeps tcp/22, tcp/443 to 192.0.2.7/32)",
        ]),
        ('to = ["192.0.2.0/24"]', "", [
            "gains: uplink wan: group 800 may send tcp/22, tcp/443 (had tcp/22, tcp/443 to 192.0.2.0/24)",
        ]),
        ("group = 800", "group = 801", [
            "loses: uplink wan: group 800 may send tcp/22, tcp/443 to 192.0.2.0/24",
            "gains: uplink wan: group 801 may send tcp/22, tcp/443 to 192.0.2.0/24",
        ]),
        ('"ping", ', "", ["loses: uplink wan: hosts in its network get answers from ping"]),
        ('["arp"]', "[]", ["loses: uplink wan: every program may send arp"]),
        ('["eth0"]', '["eth0", "eth1"]', ["gains: uplink wan has device eth1"]),
        ('["eth0"]', '["eth9"]', ["loses: uplink wan loses device eth0", "gains: uplink wan has device eth9"]),
        ('"tun*"', '"wg*"', [
            "loses: every program may use device tun*", "gains: every program may use device wg*",
        ]),
        ('"tcp/80"', '"tcp/81"', [
            "loses: uplink wan: hosts in its network reach, behind lan0, tcp/80",
            "gains: uplink wan: hosts in its network reach, behind lan0, tcp/81",
        ]),
        ("0x10/0xf0", "0x20/0xf0", ["changes: uplink wan: mark: 0x10/0xf0 -> 0x20/0xf0"]),
        ("table = 100", "table = 101", ["changes: uplink wan: table: 100 -> 101"]),
        ("table = 100", 'table = 100\ngateways = ["192.0.2.1"]', ["changes: uplink wan: gateways: none -> 192.0.2.1"]),
        ('"127.0.0.1:54"', '"127.0.0.1:55"', ["changes: uplink wan: resolver differs"]),
        ("group = 800", 'group = 800\nmarks = "cgroup"', ["changes: service backup: marks: itself -> cgroup"]),
        ("masquerade = true", "masquerade = false", ["changes: forward guests: masquerade: true -> false"]),
        ('name = "ssh",', 'name = "udp/22", exclusive = true,', [
            "loses: uplink wan: hosts in its network get answers from tcp/22 for 10.0.0.0/8",
            "gains: uplink wan: hosts in its network get answers from udp/22 for 10.0.0.0/8",
            "changes: uplink wan: exclusive answers: none -> udp/22 from 10.0.0.0/8",
        ]),
        ('name = "p"', 'name = "q"', ["changes: name: p -> q"]),
        ("[service.backup]", "[service.other]", []),  # a name permits nothing
    ],
    ids=str,
)  # fmt: skip
def test_change_is_described_by_its_meaning(old, new, lines):
    assert diff_policies(policy(), policy((old, new))).lines == lines


def test_shown_fields_exist():
    for title, names in _SHOWN_FIELDS.items():
        (entry, *_) = getattr(policy(), title).values()
        assert set(names) <= {field.name for field in attrs.fields(type(entry))}


@settings(max_examples=5)
@given(policy_strategies.policies(), policy_strategies.policies())
def test_drawn_policies_are_compared(before, after):
    assert diff_policies(before, before).lines == []
    assert diff_policies(None, after).loses
    lines = diff_policies(before, after)
    back = diff_policies(after, before)
    assert bool(lines.gains) == bool(back.loses) and bool(lines.loses) == bool(back.gains)


def test_device_that_moves_between_inside_and_uplink_is_named():
    before, after = policy(('"tun*"', '"eth1"')), policy(('["eth0"]', '["eth0", "eth1"]'))
    assert "loses: every program may use device eth1" in diff_policies(before, after).lines
    assert "gains: every program may use device eth1" in diff_policies(after, before).lines


def test_command_compares_two_files(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(TEXT)
    second.write_text(TEXT.replace("table = 100", "table = 101"))
    status, output, _ = run_here("diff", str(first), str(second), "--statements")
    lines = output.splitlines()
    assert (status, lines[:2]) == (0, ["changes: uplink wan: table: 100 -> 101", "statements:"])
    assert "  ip -4 rule add priority 510 from all fwmark 0x10/0xf0 lookup 101 protocol 78" in lines
    found = json.loads(run_here("diff", str(first), str(second), "--json")[1])
    assert (found["changes"], found["gains"], found["statements"]) == (["uplink wan: table: 100 -> 101"], [], [])
    assert run_here("diff", str(first), str(first))[1] == "both policies mean the same\n"
