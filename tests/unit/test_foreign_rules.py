"""Foreign ip rules that conflict with a policy: effect, owner and remedy."""

import pytest

from nftpolicy.compiler.ip_rules import ip_rules
from nftpolicy.netstate.routing import IpRule
from nftpolicy.policy.load import load
from nftpolicy.runtime.foreign_rules import SELECTS_SOME, SHADOWED, STARVES, foreign_rules

POLICY = load(b"""
name = "laptop"
inside = ["wg0"]
[uplink.wan]
devices = ["eth0"]
mark = "0xca6c"
table = 7
[service.vpn]
uplink = "wan"
group = 800
[service.clock]
uplink = "wan"
user = 901
marks = "uid-rule"
ports = ["udp/123"]
""")[0]
FULL = 0xFFFFFFFF
BOOT = 3
KERNEL = tuple(IpRule(family, priority, table=table, protocol=2)
               for family, numbers in ((4, {0: 255, 32766: 254, 32767: 253}), (6, {0: 255, 32766: 254}))
               for priority, table in numbers.items())  # fmt: skip


def conflicts(*rules):
    return foreign_rules(sorted((*KERNEL, *ip_rules(POLICY), *rules), key=lambda rule: rule.priority), POLICY)


def foreign(priority, **values):
    return IpRule(4, priority, protocol=BOOT, **values)


def test_machine_without_foreign_rules_has_no_conflict():
    assert conflicts() == ()


EFFECTS = {
    "all packets to a tunnel": (foreign(400, table=51820), [STARVES, STARVES]),
    "an error for all": (foreign(400, action="prohibit"), [STARVES, STARVES]),
    "between mark and user": (foreign(600, table=51820), [STARVES]),
    "behind both": (foreign(5270, table=52), []),
    "wg-quick with another mark": (foreign(509, table=51820, mark=51821, mask=FULL, invert=True), [STARVES] * 2),
    "wg-quick with the uplink's mark": (foreign(509, table=51820, mark=51820, mask=FULL, invert=True), [STARVES]),
    "the same, behind ours": (foreign(32765, table=51820, mark=51820, mask=FULL, invert=True), []),
    "wg-quick's look at main": (foreign(508, table=254, suppress_prefix=0), [SELECTS_SOME, SELECTS_SOME]),
    "the mark, to elsewhere": (foreign(100, table=9, mark=0xCA6C, mask=FULL), [STARVES]),
    "the mark, to its own table": (foreign(100, table=7, mark=0xCA6C, mask=FULL), []),
    "another mark": (foreign(100, table=9, mark=0x80000, mask=0xFF0000), []),
    "some destinations": (foreign(100, table=9, destination="192.0.2.0/24"), [SELECTS_SOME, SELECTS_SOME]),
    "an output device": (foreign(100, table=9, oif="tun0"), [SELECTS_SOME, SELECTS_SOME]),
    "arriving packets": (foreign(100, table=9, iif="lan"), []),
    "local addresses": (foreign(0, table=255), []),
    "one user": (foreign(100, table=9, uids=(901, 901)), [SELECTS_SOME, STARVES]),
    "another user": (foreign(100, table=9, uids=(1000, 1000)), [SELECTS_SOME]),
    "nothing": (foreign(100, action="nop"), []),
    "a jump over ours": (foreign(100, action="goto", goto=32766), [STARVES, STARVES]),
    "a jump to ours": (foreign(100, action="goto", goto=510), []),
    "the mark behind ours": (foreign(1000, table=9, mark=0xCA6C, mask=FULL), [SHADOWED]),
    "the user behind ours": (foreign(1000, table=9, uids=(901, 901)), [SHADOWED]),
    "a VRF": (foreign(100, l3mdev=True), []),
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
def test_effect_of_a_foreign_rule(name):
    rule, effects = EFFECTS[name]
    assert [conflict.effect for conflict in conflicts(rule)] == effects


def test_rule_of_both_families_is_one_conflict():
    found = conflicts(foreign(400, table=9), IpRule(6, 400, table=9, protocol=BOOT))
    assert [conflict.families for conflict in found] == [(4, 6), (4, 6)]


def test_rule_that_uci_made_for_the_policy_is_not_foreign():
    by_netifd = [IpRule(rule.family, rule.priority, rule.action, rule.table, rule.mark, rule.mask,
                        destination=rule.destination, uids=rule.uids, protocol=0)
                 for rule in ip_rules(POLICY)]  # fmt: skip
    assert foreign_rules((*KERNEL, *by_netifd), POLICY) == ()


@pytest.mark.parametrize(
    ("rule", "owner"),
    [
        (foreign(509, table=51821, mark=51821, mask=FULL, invert=True), "as wg-quick makes it"),
        (foreign(5210, table=9, mark=0xCA6C, mask=FULL), "as Tailscale makes it"),
        (foreign(400, table=9), "made by hand or a script"),
        (IpRule(4, 400, table=9, protocol=4), "of systemd-networkd, netplan or NetworkManager"),
        (IpRule(4, 400, table=9, protocol=199), "protocol 199"),
    ],
)
def test_text_names_owner_effect_and_remedy(rule, owner):
    (conflict, *_) = conflicts(rule)
    text = str(conflict)
    assert owner in text
    assert text.startswith(f"ip rule priority {rule.priority} ")
    assert "; " in text
    assert conflict.as_json()["effect"] == conflict.effect


def test_remedy_for_wg_quick_is_the_mark_of_the_uplink():
    (conflict, *_) = conflicts(foreign(509, table=51821, mark=51821, mask=FULL, invert=True))
    assert "FwMark = 0xca6c" in str(conflict)


def test_remedy_for_wg_quick_look_at_main_is_the_order():
    """Its priority cannot be configured."""
    (conflict, *_) = conflicts(foreign(508, table=254, suppress_prefix=0))
    assert str(conflict).endswith("networks that table main has routes for; start wg-quick first, and it comes last")
