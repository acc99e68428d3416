"""Invariants of every compiled policy."""

from collections import Counter as Tally
from ipaddress import ip_network

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from nftpolicy.compiler import exemptions
from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.compiler.describe import describe_policy
from nftpolicy.compiler.reply_routing import uplinks_with_unmarked_udp
from nftpolicy.netstate.formats import ip_text, nft_json_encode, nft_text
from nftpolicy.netstate.nft import Chain, CounterRef, Match, NamedCounter, Set, SetRef, SetUpdate, Verdict, VerdictMap
from nftpolicy.policy import validate, vocabulary
from nftpolicy.policy.objects import Account, Policy, Port, Service
from tests import policy_strategies
from tests.unit.forked_namespace import normal

KIND = {Chain: "chains", Set: "sets", NamedCounter: "counters"}


def referenced_objects(table):
    """Yield (kind, name) of all objects that the rules of a table reference."""
    for chain in table.chains:
        for rule in chain.rules:
            for one in rule.statements:
                match one:
                    case Match(_, SetRef(name)) | SetUpdate(_, name):
                        yield Set, name
                    case CounterRef(name):
                        yield NamedCounter, name
                    case Verdict(_, str(name)):
                        yield Chain, name
                    case VerdictMap(_, entries):
                        yield from ((Chain, to.target) for _, to in entries if to.target)


def defined_objects(table):
    return [(kind, one.name) for kind, group in KIND.items() for one in getattr(table, group)]


@given(policy_strategies.policies(), st.booleans())
def test_tables_define_exactly_the_referenced_objects(policy, link_guard):
    for table in compile_policy(policy, HostFacts(has_egress_hook=link_guard)).tables:
        names = defined_objects(table)
        assert not [name for name, count in Tally(names).items() if count > 1]
        referenced = set(referenced_objects(table))
        assert referenced <= set(names)
        bases = {(Chain, chain.name) for chain in table.chains if chain.hook}
        assert set(names) - referenced - bases <= unreferenced_objects(policy)


def unreferenced_objects(policy):
    """Return the objects that exist without a reference: the chain of inside devices and the
    clients of a resolver where the policy has none, and the counter of their DNS queries.
    """
    clients = {
        (Set, f"{name}.{key}s") for name, up in policy.uplink.items() if not up.resolver for key in ("group", "user")
    }
    served = {service.uplink for service in policy.service.values() if validate.account_selectors(service)}
    blocked = {(NamedCounter, f"{name}.dns-blocked") for name in policy.uplink if name not in served}
    return clients | blocked | (set() if policy.inside else {(Chain, "inside")})


@given(policy_strategies.policies())
def test_compiling_is_deterministic(policy):
    again = evolve(policy, uplink=dict(policy.uplink), service=dict(policy.service))
    first, second = compile_policy(policy), compile_policy(again)
    assert first == second
    assert [nft_text.table_text(one) for one in first.tables] == [nft_text.table_text(one) for one in second.tables]
    assert nft_json_encode.encode_ruleset(first.tables) == nft_json_encode.encode_ruleset(second.tables)
    assert describe_policy(policy, first) == describe_policy(again, second)


@given(policy_strategies.policies())
def test_compiling_ignores_the_order_of_services(policy):
    turned = evolve(policy, service=dict(reversed(policy.service.items())))
    one, other = compile_policy(policy), compile_policy(turned)
    assert normal(one) == normal(other)


def rule_count(policy):
    return sum(len(chain.rules) for table in compile_policy(policy).tables for chain in table.chains)


@settings(max_examples=20)
@given(policy_strategies.policies(), st.sampled_from(("group", "user")), st.sampled_from(("udp", "tcp")))
def test_more_services_add_elements_and_no_rules(policy, key, protocol):
    uplink = next(iter(policy.uplink))

    def with_services(count):
        services = {
            f"service-{number}": Service(
                uplink,
                **{key: Account(str(100_000 + number), 100_000 + number)},
                to=tuple(ip_network(f"10.{number}.{low}.0/24") for low in range(0, 2 * count, 2)),
                ports=tuple(Port(protocol, 1000 + 2 * low, 1000 + 2 * low) for low in range(count)),
            )
            for number in range(count)
        }
        return Policy(policy.name, policy.inside, policy.uplink, services)

    assert rule_count(with_services(1)) == rule_count(with_services(12))


@given(policy_strategies.policies())
def test_every_output_form_can_be_written(policy):
    state = compile_policy(policy)
    for table in state.tables:
        written = nft_text.table_text(table)
        assert written.isascii()
        assert written.count("{") == written.count("}")
    for family in (4, 6):
        lines = ip_text.batch_text(state.rules, state.routes, family).splitlines()
        assert len(lines) == sum(one.family == family for one in (*state.rules, *state.routes))
    assert policy.name in describe_policy(policy, state)


@given(policy_strategies.policies())
def test_both_families_have_the_same_ip_rules(policy):
    four, six = (
        [
            (one.priority, one.action, one.table, one.mark, one.mask)
            for one in compile_policy(policy).rules
            if one.family == family
            and one.destination is None
            and one.table != validate.QUERY_TABLE  # in the families in which a resolver listens
        ]
        for family in (4, 6)
    )
    assert four == six


@given(policy_strategies.policies())
def test_uplink_tables_end_in_unreachable_in_both_families(policy):
    state = compile_policy(policy)
    ends = {
        (one.family, one.table) for one in state.routes if one.kind == "unreachable" and one.destination == "default"
    }
    answering = uplinks_with_unmarked_udp(policy)
    without = set(answering) if len(answering) > 1 else set()  # the rules of replies look into one after the other
    ending = [uplink for name, uplink in policy.uplink.items() if name not in without]
    assert ends == {(family, uplink.table) for family in (4, 6) for uplink in ending}
    errors = {(one.family, one.mark) for one in state.rules if one.action == "unreachable" and one.mask}
    assert errors == {(family, uplink.mark.value) for family in (4, 6) for uplink in policy.uplink.values()}


def test_every_exemption_has_a_match():
    assert exemptions.EXEMPTION_MATCHES.keys() == vocabulary.EXEMPTIONS.keys()


@pytest.mark.parametrize("word", vocabulary.EXEMPTIONS)
def test_every_exemption_has_a_rule(word):
    assert exemptions.exemption_rules("wan", (word,)) or exemptions.frame_rules("wan", (word,))
