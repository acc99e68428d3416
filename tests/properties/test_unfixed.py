"""Faults that are known and not mended: each one's smallest case, and the filters that keep it out of the properties."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.fake import Fake
from nftpolicy.netstate import json_in
from nftpolicy.netstate.nft import FULL, Bitwise, Match, Meta
from nftpolicy.planner.plan import plan
from nftpolicy.policy.load import load
from nftpolicy.runtime.apply import carry_out
from tests.unit.namespace import normal, observe

POLICY = b"""
name = "p"
inside = []
[uplink.wan]
devices = ["eth0"]
mark = "0x1"
table = 7
gateways = ["192.0.2.1"]
[service]
"""


def masks_can_be_read_back(policy):
    """No mask is a prefix of 32 bits: nft lists 0xffffffff without a mask, 0xffff0000 as a prefix."""
    masks = [uplink.mark.mask for uplink in policy.uplink.values()]
    return not any(mask | (mask - 1) == FULL for mask in [*masks, sum(set(masks)) & FULL])


def routes_do_not_meet(pair):
    """No route of one policy is in the place of another route of the other policy."""
    old, new = (set(compile_policy(one).routes) if one else set() for one in pair)
    places = [
        {(one.family, one.table, one.destination, one.metric) for one in routes} for routes in (old - new, new - old)
    ]
    return not places[0] & places[1]


@pytest.mark.xfail(strict=True, reason="a mark without a mask is compiled to a match that the kernel lists otherwise")
def test_a_mark_with_all_bits_is_written_as_it_is_listed():
    policy, _ = load(POLICY)
    rules = [rule for chain in compile_policy(policy).tables[0].chains for rule in chain.rules]
    lefts = [one.left for rule in rules for one in rule.statements if isinstance(one, Match)]
    assert not [one for one in lefts if isinstance(one, Bitwise) and one.keep == FULL and not one.put]


@pytest.mark.xfail(strict=True, reason="nft lists a mask of the high bits as a prefix of the number")
def test_a_mask_of_the_high_bits_is_read_back():
    listed = {
        "match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": {"prefix": {"addr": 0x10000, "len": 16}}}
    }
    assert json_in.statement(listed) == Match(Bitwise(Meta("mark"), 0xFFFF0000), 0x10000)


@pytest.mark.xfail(strict=True, reason="the new default route is added before the old one goes: File exists")
@pytest.mark.parametrize("change", [{"gateways": ()}, {"devices": ("eth1",)}])
def test_another_gateway_or_device_takes_the_old_ones_place(change):
    policy, _ = load(POLICY)
    other = load(POLICY.replace(b"192.0.2.1", b"192.0.2.2"))[0]
    if "devices" in change:
        other = evolve(policy, uplink={"wan": evolve(policy.uplink["wan"], **change)})
    kernel = Fake(evolve(compile_policy(policy), sysctls=()))
    wanted = compile_policy(other)
    carry_out(kernel, plan(observe(kernel), wanted))
    assert normal(observe(kernel)).routes == normal(wanted).routes
