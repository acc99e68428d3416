"""Faults that are known and not mended: each one's smallest case, and the filters that keep it out of the properties."""

import contextlib

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.fake import Fake
from nftpolicy.netstate import json_in, text
from nftpolicy.netstate.changes import NftOperation
from nftpolicy.netstate.nft import FULL, Bitwise, Chain, Hook, Match, Meta, UnknownExpression, Verdict
from nftpolicy.netstate.state import NetState
from nftpolicy.planner.plan import plan
from nftpolicy.policy.load import load
from nftpolicy.runtime.apply import carry_out
from tests.unit.namespace import clear, kernel, linux, normal, observe

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


def names_stay_or_are_plain(pair):
    """No set of names with a wildcard in it changes: nft 1.0.6 refuses additions to one as overlaps."""
    listed = [set(one.inside) if one else set() for one in pair]
    return not any("*" in name for name in listed[0] | listed[1]) or listed[0] == listed[1] or set() in listed


@pytest.mark.xfail(strict=True, reason="nft 1.0.6 refuses to add to a set of names that has a wildcard and others")
@pytest.mark.kernel
def test_a_device_joins_those_inside():
    policies = [load(POLICY.replace(b"[]", inside))[0] for inside in (b'["eth1", "tun*"]', b'["eth1", "tun*", "zz"]')]

    def applied():
        found = linux()
        try:
            for policy in policies:
                wanted = evolve(compile_policy(policy), rules=(), routes=(), sysctls=())
                carry_out(found, plan(observe(found), wanted))
        finally:
            clear(found)

    with kernel() as namespace:
        namespace.call(applied)


@pytest.mark.xfail(strict=True, reason="these errors are not turned into ValueErrors")
@pytest.mark.parametrize(
    "read",
    [
        lambda: json_in.ruleset(_rule({"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[]]}}})),
        lambda: json_in.counters({"nftables": [{"counter": {}}]}),
    ],
)
def test_a_strange_listing_is_a_value_error(read):
    with contextlib.suppress(ValueError):
        read()


@pytest.mark.xfail(strict=True, reason="the letters of one flag are taken for flags")
def test_one_flag_that_is_listed_as_a_word():  # nft 1.1
    listed = {"family": "ip", "table": "t", "name": "s", "type": "mark", "flags": "interval"}
    assert json_in.ruleset({"nftables": [{"set": listed}]})[0].sets[0].flags == {"interval"}


@pytest.mark.xfail(strict=True, reason="what is said beside the known keys is passed over")
@pytest.mark.parametrize(
    "listed",
    [{"payload": {"protocol": "ip", "field": "saddr", "tunnel": "vxlan"}}, {"meta": {"key": "mark", "new": 1}}],
)
def test_an_expression_with_more_to_it_is_unknown(listed):
    assert isinstance(json_in.expression(listed), UnknownExpression)


@pytest.mark.xfail(strict=True, reason="the table's own flags are passed over")
def test_a_dormant_table_is_not_taken_for_one_that_works():
    (table,) = json_in.ruleset({"nftables": [{"table": {"family": "ip", "name": "t", "flags": ["dormant"]}}]})
    assert table.unknown


@pytest.mark.xfail(strict=True, reason="these words are written as they are")
@pytest.mark.parametrize(
    "write",
    [
        lambda bad: text.verdict(Verdict(bad)),
        lambda bad: text.hook(Hook(bad, "output", 0)),
        lambda bad: text.hook(Hook("filter", bad, 0)),
        lambda bad: text.hook(Hook("filter", "output", 0, bad)),
        lambda bad: text.statement(Match(Meta("mark"), 1, bad)),
        lambda bad: text.operation(NftOperation(bad, "inet", "t", Chain("c"))),
    ],
)
def test_no_word_of_the_grammar_smuggles_anything(write):
    with pytest.raises(ValueError, match="can not be written"):
        write("accept; flush ruleset")


@pytest.mark.xfail(strict=True, reason="both devices' chains have one name")
def test_devices_that_differ_by_an_at_sign_have_two_chains():
    policy, _ = load(POLICY.replace(b'"eth0"', b'"a@b", "a_b"'))
    names = [chain.name for chain in compile_policy(policy).tables[1].chains]
    assert len(set(names)) == len(names)


@pytest.mark.xfail(strict=True, reason="the step that was interrupted is not taken back")
def test_an_interrupt_after_the_kernel_has_done_a_step():
    class Interrupted(Fake):
        def carry_out(self, step):
            super().carry_out(step)
            if self.asked == 2:
                raise KeyboardInterrupt

    held = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        carry_out(held, plan(NetState(), evolve(compile_policy(load(POLICY)[0]), sysctls=())))
    assert held.state == NetState()


def _rule(statement):
    place = {"family": "inet", "table": "t"}
    chain = {"chain": {**place, "name": "c"}}
    return {"nftables": [chain, {"rule": {**place, "chain": "c", "expr": [statement]}}]}


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
