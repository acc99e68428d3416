"""Specification: its regions, devices and ip rules."""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.compiler.object_names import FINAL_UNREACHABLE_PRIORITY
from nftpolicy.model.symbolic.box import points
from nftpolicy.netstate.routing import IpRule, Route
from nftpolicy.policy.load import load
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.entitlement import entitled_regions, reply_regions
from nftpolicy.proof.policy_spec import EXEMPTIONS, build_spec
from nftpolicy.proof.rpdb_check import rpdb_faults
from nftpolicy.proof.spec import Region, ServiceSpec, UplinkSpec
from tests.unit.proved_policy import POLICY, SPEC, STATE

IN_FIRST_FRAGMENT = {"sport", "dport", "icmp.type", "icmpv6.type", "tcp.rst"}
REGIONS = {
    **{f"exemption {name}": regions for name, (by_family, _) in EXEMPTIONS.items() for regions in by_family.values()},
    **{
        f"{title} {uplink.name} {family}": tuple(regions(uplink, family))
        for title, regions in (("entitled", entitled_regions), ("reply", reply_regions))
        for uplink in SPEC.uplinks
        for family in (4, 6)
    },
}


@pytest.mark.parametrize("name", REGIONS)
def test_region_with_ports_or_types_holds_no_fragments(name):
    for region in REGIONS[name]:
        if IN_FIRST_FRAGMENT & region.fields.keys():
            assert region.fields["fragment"] == points(0)
            assert "protocol" in region.fields


def test_regions_with_ports_exist_for_each_kind():
    fields = {
        name.split()[0]: {field for region in found for field in region.fields} for name, found in REGIONS.items()
    }
    assert set(fields) == {"exemption", "entitled", "reply"}
    entitled = {
        field
        for name, found in REGIONS.items()
        if "entitled wan" in name
        for region in found
        for field in region.fields
    }
    assert {"dport", "sport", "icmp.type", "icmpv6.type", "tcp.rst", "gid", "uid", "daddr"} <= entitled


def test_kernel_service_without_ports_is_udp_without_socket():
    service = ServiceSpec("wg", (), (), True, {4: (Region(),), 6: (Region(),)})
    first = next(entitled_regions(UplinkSpec("wan", ("wan",), 1, 1, services=(service,)), 4))
    assert (first.fields, first.marks) == ({"socket": points(0), "protocol": points(17)}, ())


def test_region_of_another_family_has_no_box():
    space = ProofContext(STATE, SPEC.devices, SPEC.masks).space(4)
    assert Region({"nfproto": points(6)}).boxes(space) == []
    assert len(Region({"nfproto": points(4)}).boxes(space)) == 1


def test_devices_of_a_spec_are_uplinks_ports_and_inside():
    spec = build_spec(POLICY, {"wan": ("port0",)})
    assert sorted(spec.devices) == ["lan", "lo", "lte", "port0", "wan"]


# --- ip rules ------------------------------------------------------------------------------------

WAN = SPEC.uplinks[0]


def faults(family=4, rules=None, routes=None):
    state = evolve(
        STATE, rules=STATE.rules if rules is None else rules, routes=STATE.routes if routes is None else routes
    )
    return rpdb_faults(state, WAN, family, SPEC.uplinks[1:])


def with_rule(rule):
    """Return the compiled rules and one more, in the order of the kernel."""
    return tuple(sorted((*STATE.rules, rule), key=lambda each: (each.family, each.priority)))


@pytest.mark.parametrize("family", [4, 6])
def test_compiled_ip_rules_have_no_fault(family):
    assert faults(family) == []


SELECTORS = (
    *({key: "192.0.2.0/24"} for key in ("source", "destination")),
    *({key: "lan"} for key in ("iif", "oif")),
    *({key: (5, 6)} for key in ("uids", "sports", "dports")),
    *({"l4proto": 17}, {"tos": 16}, {"l3mdev": True}, {"unknown": ("dscp 8",)}),
)


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_compiled_ip_rule_for_some_packets_only_is_a_fault(selector):
    """Narrow the rule for the mark, the end of its lookups, and the end of those without the mark."""
    everything = with_rule(IpRule(4, 32766, table=254))
    assert faults(rules=everything) == []
    narrowed = [
        rule
        for rule in everything
        if rule.family == 4 and (rule.mark == WAN.value or rule.priority == FINAL_UNREACHABLE_PRIORITY)
    ]
    assert len(narrowed) == 3
    for rule in narrowed:
        assert faults(rules=tuple(evolve(each, **selector) if each is rule else each for each in everything)) != []


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        (IpRule(4, 5, table=99), "with the mark may be looked up in table 99 (ip rule 5)"),
        (IpRule(4, 5, table=99), "without the mark may be looked up in table 99 (ip rule 5)"),
        (IpRule(4, 5, table=99, mark=1, mask=1), "with the mark may be looked up in table 99 (ip rule 5)"),
        (IpRule(4, 5, table=99, uids=(5, 6)), "with the mark may be looked up in table 99 (ip rule 5)"),
        (IpRule(4, 5, table=7), "without the mark may be looked up in table 7 (ip rule 5)"),
        (IpRule(4, 5, action="goto 9"), "ip rule 5 (goto 9) is not supported by this check"),
        (IpRule(4, 5, action="unreachable"), "no ip rule sends all packets with the mark to table 7"),
        (IpRule(4, 5, table=99, mark=2, mask=255, invert=True), "with the mark may be looked up in table 99"),
    ],
)  # fmt: skip
def test_ip_rule_before_the_compiled_ones_is_a_fault(rule, part):
    assert any(part in fault for fault in faults(rules=with_rule(rule)))


@pytest.mark.parametrize(
    "rule",
    [
        IpRule(4, 5, table=99, mark=2, mask=2),  # another mark; unmarked packets may have it
        IpRule(4, 5, action="nop"),
        IpRule(4, 5, table=255, mark=1, mask=1),
        IpRule(4, 5, table=7, mark=1, mask=255),
        IpRule(4, 50000, table=99),  # behind the end
        IpRule(6, 5, table=99),
    ],
)
def test_ip_rule_that_leaves_marked_packets_is_no_fault(rule):
    found = [fault for fault in faults(rules=with_rule(rule)) if "without the mark" not in fault]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "device", "is_fault"),
    [
        ({"iif": "lo", "dports": (53, 53)}, "lo", False),
        ({"iif": "lo", "dports": (53, 53)}, "lan", True),
        ({"iif": "lo", "dports": (53, 54)}, "lo", True),
        ({"dports": (53, 53)}, "lo", True),
        ({"iif": "lo"}, "lo", True),
    ],
)
def test_ip_rule_to_other_table_is_for_queries_by_lo_only(rule, device, is_fault):
    found = faults(
        rules=with_rule(IpRule(4, 950, table=99, **rule)), routes=(*STATE.routes, Route(4, 99, device=device))
    )
    assert any("without the mark may be looked up in table 99" in fault for fault in found) == is_fault


def test_missing_ip_rule_or_route_is_a_fault():
    for index, rule in enumerate(STATE.rules):
        if rule.family == 4 and (
            rule.table == 7 or (rule.mask and rule.mark == 1) or rule.priority == FINAL_UNREACHABLE_PRIORITY
        ):
            assert faults(rules=(*STATE.rules[:index], *STATE.rules[index + 1 :]))
    terminal = next(route for route in STATE.routes if (route.family, route.table) == (4, 7))
    assert faults(routes=tuple(route for route in STATE.routes if route != terminal))
    assert faults(6, rules=tuple(rule for rule in STATE.rules if rule.destination != "fe80::/10"))


# A policy with users who send without the mark, and one ip rule for each of them.
UID_POLICY = load((Path(__file__).parents[1] / "golden" / "11-uid-rule" / "policy.toml").read_bytes())[0]
UID_STATE, (UID_UPLINK, *UID_OTHERS) = compile_policy(UID_POLICY), build_spec(UID_POLICY).uplinks
UID = UID_UPLINK.unmarked_uids[0]
UNMARKED_IN_99 = "packets without the mark may be looked up in table 99 (ip rule 5)"


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        (IpRule(4, 5, table=99, uids=(UID, UID)), UNMARKED_IN_99),
        (IpRule(4, 5, table=99, uids=(UID, UID)), f"packets of user {UID} may be looked up in table 99 (ip rule 5)"),
        (IpRule(4, 5, table=UID_UPLINK.table, uids=(UID, UID + 1)), "packets without the mark may be looked up"),
        (IpRule(4, 5, table=UID_UPLINK.table, uids=(950, 950)), "packets without the mark may be looked up"),
        (IpRule(4, 5, table=UID_UPLINK.table, uids=(UID, UID), invert=True), "packets without the mark may be looked"),
    ],
)
def test_ip_rule_of_a_user_leads_to_the_uplink_only(rule, part):
    assert rpdb_faults(UID_STATE, UID_UPLINK, 4, UID_OTHERS) == []
    added = evolve(UID_STATE, rules=tuple(sorted((*UID_STATE.rules, rule), key=lambda each: each.priority)))
    assert any(part in fault for fault in rpdb_faults(added, UID_UPLINK, 4, UID_OTHERS))


def test_one_more_ip_rule_of_an_unmarked_user_is_no_fault():
    rule = IpRule(4, 5, table=UID_UPLINK.table, uids=(UID, UID))
    assert rpdb_faults(evolve(UID_STATE, rules=(rule, *UID_STATE.rules)), UID_UPLINK, 4, UID_OTHERS) == []
