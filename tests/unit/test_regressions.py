"""Minimal cases of faults that property tests or reviews have found."""

import contextlib

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.errors import StepRefused
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.formats import nft_json_decode, nft_text
from nftpolicy.netstate.nft import FULL_MASK, Bitwise, Chain, Hook, Match, Meta, Rule, UnknownExpression, Verdict
from nftpolicy.netstate.operations import NftOperation
from nftpolicy.netstate.state import NetState
from nftpolicy.planner.plan import plan
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.runtime.apply.executor import run_plan
from tests.unit.forked_namespace import clear, kernel, linux, normal, observe

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


@pytest.mark.kernel
def test_device_is_added_to_inside_set():
    policies = [load(POLICY.replace(b"[]", inside))[0] for inside in (b'["eth1", "tun*"]', b'["eth1", "tun*", "zz"]')]

    def applied():
        found = linux()
        try:
            for policy in policies:
                wanted = evolve(compile_policy(policy), rules=(), routes=(), sysctls=())
                run_plan(found, plan(observe(found), wanted))
        finally:
            clear(found)

    with kernel() as namespace:
        namespace.call(applied)


@pytest.mark.parametrize(
    "read",
    [
        lambda: nft_json_decode.decode_ruleset(
            _rule({"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[]]}}})
        ),
    ],
)
def test_malformed_listing_raises_only_value_error(read):
    with contextlib.suppress(ValueError):
        read()


def test_single_flag_as_string_is_decoded():  # nft 1.1
    listed = {"family": "ip", "table": "t", "name": "s", "type": "mark", "flags": "interval"}
    assert nft_json_decode.decode_ruleset({"nftables": [{"set": listed}]})[0].sets[0].flags == {"interval"}


@pytest.mark.parametrize(
    "listed",
    [{"payload": {"protocol": "ip", "field": "saddr", "tunnel": "vxlan"}}, {"meta": {"key": "mark", "new": 1}}],
)
def test_expression_with_extra_keys_is_unknown(listed):
    assert isinstance(nft_json_decode.decode_expression(listed), UnknownExpression)


def test_dormant_flag_of_table_is_decoded():
    (table,) = nft_json_decode.decode_ruleset(
        {"nftables": [{"table": {"family": "ip", "name": "t", "flags": ["dormant"]}}]}
    )
    assert table.flags == {"dormant"} and table.has_foreign_objects


@pytest.mark.parametrize(
    "write",
    [
        lambda bad: nft_text.verdict_text(Verdict(bad)),
        lambda bad: nft_text.hook_text(Hook(bad, "output", 0)),
        lambda bad: nft_text.hook_text(Hook("filter", bad, 0)),
        lambda bad: nft_text.hook_text(Hook("filter", "output", 0, bad)),
        lambda bad: nft_text.statement_text(Match(Meta("mark"), 1, bad)),
        lambda bad: nft_text.operation_text(NftOperation(bad, "inet", "t", Chain("c"))),
    ],
)
def test_bad_keyword_is_refused(write):
    with pytest.raises(ValueError, match="cannot be written"):
        write("accept; flush ruleset")


def test_devices_a_at_b_and_a_underscore_b_have_two_chains():
    policy, _ = load(POLICY.replace(b'"eth0"', b'"a@b", "a_b"'))
    names = [chain.name for chain in compile_policy(policy).tables[1].chains]
    assert len(set(names)) == len(names)


def test_interrupt_after_a_step_is_rolled_back():
    class Interrupted(FakeKernel):
        def apply_step(self, step):
            super().apply_step(step)
            if self.steps_taken == 2:
                raise KeyboardInterrupt

    held = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run_plan(held, plan(NetState(), evolve(compile_policy(load(POLICY)[0]), sysctls=())))
    assert held.state == NetState()


def _rule(statement):
    place = {"family": "inet", "table": "t"}
    chain = {"chain": {**place, "name": "c"}}
    return {"nftables": [chain, {"rule": {**place, "chain": "c", "expr": [statement]}}]}


def test_full_mask_match_has_no_bitwise_and():
    policy, _ = load(POLICY)
    rules = [rule for chain in compile_policy(policy).tables[0].chains for rule in chain.rules]
    lefts = [one.left for rule in rules for one in rule.statements if isinstance(one, Match)]
    assert not [one for one in lefts if isinstance(one, Bitwise) and one.and_mask == FULL_MASK and not one.or_bits]


def test_prefix_of_mark_is_decoded_as_mask():
    listed = {
        "match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": {"prefix": {"addr": 0x10000, "len": 16}}}
    }
    assert nft_json_decode.decode_statement(listed) == Match(Bitwise(Meta("mark"), 0xFFFF0000), 0x10000)


@pytest.mark.parametrize("change", [{"gateways": ()}, {"devices": ("eth1",)}])
def test_changed_gateway_or_device_replaces_its_route(change):
    policy, _ = load(POLICY)
    other = load(POLICY.replace(b"192.0.2.1", b"192.0.2.2"))[0]
    if "devices" in change:
        other = evolve(policy, uplink={"wan": evolve(policy.uplink["wan"], **change)})
    kernel = FakeKernel(evolve(compile_policy(policy), sysctls=()))
    wanted = compile_policy(other)
    run_plan(kernel, plan(observe(kernel), wanted))
    assert normal(observe(kernel)).routes == normal(wanted).routes


def test_rollback_undoes_steps_in_reverse_order():
    class Recording(FakeKernel):
        steps = ()

        def apply_step(self, step):
            self.steps += (step,)
            super().apply_step(step)

    todo = plan(NetState(), evolve(compile_policy(load(POLICY)[0]), sysctls=()))
    kernel = Recording(refuse_at=len(todo.steps) - 1)
    with pytest.raises(StepRefused):
        run_plan(kernel, todo)
    assert kernel.state == NetState()
    assert kernel.steps[len(todo.steps) :] == tuple(step.inverse() for step in reversed(todo.steps[:-1]))


def test_gateways_of_one_family_have_distinct_metrics():
    policy, _ = load(POLICY.replace(b'["192.0.2.1"]', b'["192.0.2.1", "2001:db8::1", "192.0.2.2"]'))
    found = [(one.gateway, one.metric) for one in compile_policy(policy).routes if one.gateway]
    assert found == [("192.0.2.1", 1024), ("2001:db8::1", 1024), ("192.0.2.2", 1025)]


def test_foreign_object_in_own_table_is_a_difference():
    wanted = evolve(compile_policy(load(POLICY)[0]), sysctls=())
    strange = Match(Meta("mark"), UnknownExpression("{}"))
    table = wanted.tables[0]
    chains = (evolve(table.chains[0], rules=(*table.chains[0].rules, Rule((strange,)))), *table.chains[1:])
    for held in (evolve(table, unknown=('{"map":{}}',)), evolve(table, chains=chains)):
        (step,) = plan(evolve(wanted, tables=(held, *wanted.tables[1:])), wanted).steps
        kernel = FakeKernel(evolve(wanted, tables=(evolve(held, unknown=()), *wanted.tables[1:])))
        run_plan(kernel, plan(evolve(wanted, tables=(held, *wanted.tables[1:])), wanted))
        assert normal(observe(kernel)).tables == normal(wanted).tables
        for one in step.undo:
            nft_text.operation_text(one)  # can be written


def test_endless_dotted_key_is_refused():
    with pytest.raises(PolicyError, match="more than 64 parts"):
        load(b"name = 'x'\n" + b"a." * 500_000)


def test_kernel_port_does_not_bypass_another_resolver():
    """Send a DNS query of one uplink's service from a kernel port of the other uplink."""
    policy, _ = load(b"""
name = "p"
inside = []
[uplink.wan]
devices = ["eth0"]
mark = "0x10/0xf0"
table = 100
[uplink.wan.resolver]
[uplink.lte]
devices = ["wwan0"]
mark = "0x20/0xf0"
table = 101
[service.vpn]
uplink = "wan"
group = 800
[service.wireguard]
uplink = "lte"
kernel = true
sport = ["udp/51820"]
""")
    assert [one for one in prove(compile_policy(policy), build_spec(policy)).findings if one.verdict != "proved"] == []
