"""Options that netifd and fw4 drop or misread silently, each by name. The control: a valid section has no fault."""

import pytest
from attrs import evolve
from hypothesis import given

from nftpolicy.compiler import ip_rules
from nftpolicy.importers.openwrt import netifd_model, uci_parser
from nftpolicy.importers.openwrt.interfaces import read_network
from nftpolicy.integration.openwrt import tree, uci, uci_lint
from nftpolicy.integration.openwrt.router_plan import require_expressible
from nftpolicy.integration.openwrt.uci import UciSection
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY, IpRule
from nftpolicy.policy.load import load
from tests import policy_strategies
from tests.guarded_lab import GLUON

RULE = {"priority": "510", "mark": "0x1/0x1", "lookup": "1"}
ROUTE = {"type": "unreachable", "target": "0.0.0.0/0", "table": "1", "metric": "65535"}
INCLUDE = {"type": "nftables", "path": "/etc/my.nft", "position": "table-post"}
KINDS = {
    "rule": ("network", RULE),
    "rule6": ("network", RULE),
    "route": ("network", ROUTE),
    "include": ("firewall", INCLUDE),
}


def faults(kind: str, **changes: str | None) -> list[str]:
    config, good = KINDS[kind]
    options = {key: held for key, held in {**good, **changes}.items() if held is not None}
    return list(uci_lint.section_faults(UciSection(config, kind, "x", tuple(options.items()))))


@pytest.mark.parametrize("kind", KINDS)
def test_lint_valid_section_has_no_fault(kind: str) -> None:
    assert faults(kind) == []


# Name of the trap -> kind, what is changed, and what is said.
TRAPS: dict[str, tuple[str, dict[str, str | None], str]] = {
    "mark 0 matches every packet": ("rule", {"mark": "0x0"}, "matches every packet"),
    "so does mask 0": ("rule", {"mark": "0x0/0x0"}, "matches every packet"),
    "a mark above 32 bits": ("rule", {"mark": "0x100000000"}, "netifd reads another number"),
    "a mask above 32 bits": ("rule", {"mark": "1/0x1ffffffff"}, "netifd reads another number"),
    "octal": ("rule", {"mark": "010"}, "is octal to netifd: 8"),
    "negative": ("rule", {"mark": "-1"}, "is not a number"),
    "a word as mark": ("rule", {"mark": "abc"}, "is not a number"),
    "the mark inverted in fw3's way": ("rule", {"mark": "!0x1/0x1"}, "is not a number"),
    "a mark outside its mask": ("rule", {"mark": "2/1"}, "no packet matches"),
    "no priority: others renumber it": ("rule", {"priority": None}, "numbers such rules from 1"),
    "a priority behind netifd's own": ("rule", {"priority": "10000"}, "after netifd's own"),
    "priority 0": ("rule", {"priority": "0"}, "table of local addresses"),
    "a table that has no number": ("rule", {"lookup": "nosuch"}, "is not a number"),
    "table 0": ("rule", {"lookup": "0"}, "is not a table"),
    "table is an option of routes": ("rule", {"lookup": None, "table": "1"}, "option table is not known"),
    "a rule that does nothing": ("rule", {"lookup": None}, "has no effect"),
    "an action of iptables": ("rule", {"lookup": None, "action": "local"}, "is not one of"),
    "the action wins": ("rule", {"action": "unreachable"}, "the action wins"),
    "enabled is no option of rules": ("rule", {"enabled": "0"}, "is ignored"),
    "preference is no option": ("rule", {"preference": "1"}, "is ignored"),
    "a user by name": ("rule", {"uidrange": "root"}, "is not a number"),
    "users the wrong way round": ("rule", {"uidrange": "1999-1000"}, "ends before it begins"),
    "a source without a length": ("rule", {"src": "10.1.2.3"}, "matches everything"),
    "IPv6 in a rule of IPv4": ("rule", {"dest": "fe80::/10"}, "is not an IPv4"),
    "IPv4 in a rule of IPv6": ("rule6", {"dest": "10.0.0.0/8"}, "is not an IPv6"),
    "default is no target": ("route", {"target": "default"}, "is left out"),
    "a route with neither type nor interface": ("route", {"type": None}, "neither an interface nor a type"),
    "a guard route of an interface": ("route", {"interface": "wan"}, "is removed with its interface"),
    "a metric above 31 bits": ("route", {"metric": "4294967294"}, "netifd reads another number"),
    "an include of fw3": ("include", {"type": "restore"}, "is not one of nftables, script"),
    "a position that fw4 does not know": ("include", {"position": "table-after"}, "is not one of"),
    "an include that is there twice": ("include", {"path": "/usr/share/nftables.d/ruleset-post/x.nft"}, "loaded twice"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_lint_invalid_option_is_named(name: str) -> None:
    kind, changes, said = TRAPS[name]
    found = faults(kind, **changes)
    assert any(said in one for one in found), found


@given(policy_strategies.policies())
def test_lint_compiled_policy_has_no_fault(policy) -> None:  # type: ignore[no-untyped-def]
    for section in uci.network_sections(policy):
        assert list(uci_lint.section_faults(section)) == []
    assert all(not one.name[len(uci.PREFIX) :].startswith("_") for one in uci.network_sections(policy))
    assert len({one.name for one in uci.network_sections(policy)}) == len(uci.network_sections(policy))


@given(policy_strategies.policies())
def test_netifd_model_of_any_policy_has_its_ip_rules(policy) -> None:  # type: ignore[no-untyped-def]
    """Includes every selector: a rule that lost one would lead the packets of all users to the uplink."""
    sections = uci_parser.parse_uci(uci.render_config(uci.network_sections(policy)).encode(), "network", "network")
    made = netifd_model.netifd_state(sections, read_network(sections)[0])
    assert made.warnings == ()
    rules = {evolve(one, protocol=RTPROT_NFTPOLICY) for one in made.rules if one.protocol == 0}
    assert rules == set(ip_rules.ip_rules(policy))


@pytest.mark.parametrize("more", [{"source": "192.0.2.1"}, {"iif": "eth0"}, {"invert": True}, {"unknown": ("x",)}])
def test_require_expressible_refuses_unsupported_rule(more) -> None:  # type: ignore[no-untyped-def]
    rule = IpRule(4, 510, table=1, mark=1, mask=1, uids=(5, 5))
    assert require_expressible(rule) is rule
    with pytest.raises(ValueError, match="the router plan does not support"):
        require_expressible(evolve(rule, **more))


def test_build_tree_with_lint_fault_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uci, "LAST_METRIC", 2**32 - 2)
    with pytest.raises(tree.UciLintError, match=r"network.nftpolicy_table1_4: option metric"):
        tree.build_tree(load(GLUON.read_bytes())[0])
