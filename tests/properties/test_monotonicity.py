"""Monotonicity: more services pass no more packets of other processes, fewer exemptions pass no more packets."""

from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.packet import KERNEL, UDP
from nftpolicy.model.trace import Model
from nftpolicy.policy import validate
from nftpolicy.policy.objects import Account, Service
from nftpolicy.proof.assumptions import add_assumed_environment
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED
from tests import packet_strategies as states
from tests import policy_strategies
from tests.properties.test_policy_invariant import assert_can_fail, is_from_lent_port, is_owned_by, is_tunnel

PACKETS = 12
SETTINGS = settings(max_examples=60)


def uplink_traces(policy, state, packets):
    """Yield for each packet the uplink device by which it leaves or may leave (None: none), and its trace."""
    model = Model(state)
    outer = {device for uplink in policy.uplink.values() for device in uplink.devices}
    for packet in packets:
        walk = model.trace(packet)
        yield walk.device if walk.outcome in ("leaves", "unknown") and walk.device in outer else None, walk


def kernel_state(policy, extra):
    """Return the kernel's state under a policy, with addresses and foreign routes that do not
    depend on its services.
    """
    return add_assumed_environment(states.joined(compile_policy(policy), extra), build_spec(policy))[0]


@st.composite
def additions(draw):
    """Generate a policy, one more service for it, foreign routes, and packets near both."""
    policy = draw(policy_strategies.policies(most_services=3))
    added = draw(policy_strategies.services(list(policy.uplink)))
    name = next(f"added{at}" for at in range(99) if f"added{at}" not in policy.service)
    larger = evolve(policy, service={**policy.service, name: added})
    if any(validate.find_faults(larger)):  # somebody's account is taken: another one
        added = Service(added.uplink, group=Account("3000000", 3000000), to=added.to, ports=added.ports)
        larger = evolve(policy, service={**policy.service, name: added})
        assume(not any(validate.find_faults(larger)))  # ports of the kernel's own services
    wanted = draw(st.lists(states.packets(larger), min_size=PACKETS, max_size=PACKETS))
    return policy, larger, added, draw(states.machines(policy)), wanted


def is_packet_of(added, policy, packet, walk):
    """Return True if the added service allows this packet."""
    if is_tunnel(added, packet, walk.destination):  # needs no mark
        return walk.device in policy.uplink[added.uplink].devices
    mark = policy.uplink[added.uplink].mark
    kernels = (
        added.kernel and not added.sport and not added.ports and packet.origin == KERNEL and packet.protocol == UDP
    )
    mine = is_owned_by(added, packet) or is_from_lent_port(added, packet) or kernels
    has_mark_of_flow = packet.flow.direction == "reply" and mark.matches(packet.flow.mark)
    return mine and (mark.matches(packet.mark) or has_mark_of_flow)


@SETTINGS
@given(additions())
def test_added_service_passes_only_its_own_marked_packets(case):
    policy, larger, added, extra, packets = case
    before = uplink_traces(policy, kernel_state(policy, extra), packets)
    after = uplink_traces(policy, kernel_state(larger, extra), packets)
    for packet, (old, _), (new, walk) in zip(packets, before, after, strict=True):
        assert new in (old, None) or is_packet_of(added, policy, packet, walk), (packet, walk)


@settings(max_examples=20)
@given(additions())
def test_policies_with_and_without_service_are_proved(case):
    policy, larger, *_ = case
    for one in (policy, larger):
        assert prove(compile_policy(one), build_spec(one)).verdict == PROVED


@st.composite
def removals(draw):
    """Generate a policy with an exemption, the same without it, foreign routes, and packets near both."""
    policy = draw(
        policy_strategies.policies(most_services=1).filter(lambda one: any(up.exempt for up in one.uplink.values()))
    )
    name = draw(st.sampled_from([name for name, up in policy.uplink.items() if up.exempt]))
    uplink = policy.uplink[name]
    gone = draw(st.sampled_from(uplink.exempt))
    rest = tuple(word for word in uplink.exempt if word != gone)
    smaller = evolve(policy, uplink={**policy.uplink, name: evolve(uplink, exempt=rest)})
    wanted = draw(st.lists(states.packets(policy), min_size=PACKETS, max_size=PACKETS))
    return policy, smaller, draw(states.machines(policy)), wanted


@SETTINGS
@given(removals())
def test_removed_exemption_passes_no_more_packets(case):
    policy, smaller, extra, packets = case
    before = uplink_traces(policy, kernel_state(policy, extra), packets)
    after = uplink_traces(policy, kernel_state(smaller, extra), packets)
    for packet, (old, _), (new, walk) in zip(packets, before, after, strict=True):
        assert new in (old, None), (packet, walk)


@settings(max_examples=20)
@given(removals())
def test_proof_distinguishes_states_by_their_exemptions(case):
    """Prove each state with the spec of the other. An exemption without a rule is no leak."""
    policy, smaller, *_ = case
    proof = prove(compile_policy(smaller), build_spec(policy))
    assert proof.property_verdict("P1") == PROVED
    assert proof.property_verdict("P3") != PROVED  # and so it is seen that a word is missing
    reverse = prove(compile_policy(policy), build_spec(smaller))
    assert reverse.property_verdict("P1") != PROVED  # an exemption that the claim does not name is a leak


def test_service_test_detects_a_compiler_without_guard(monkeypatch):
    """Remove the guard if there is an added service."""
    whole = compile_policy

    def careless(policy):
        state = whole(policy)
        return evolve(state, tables=()) if any(name.startswith("added") for name in policy.service) else state

    monkeypatch.setattr(f"{__name__}.compile_policy", careless)
    assert_can_fail(test_added_service_passes_only_its_own_marked_packets.hypothesis.inner_test, additions())


def test_exemption_test_detects_a_compiler_without_guard(monkeypatch):
    """Remove the guard if there is no exemption."""
    whole = compile_policy

    def careless(policy):
        bare = all(not uplink.exempt for uplink in policy.uplink.values())
        return evolve(whole(policy), tables=()) if bare else whole(policy)

    monkeypatch.setattr(f"{__name__}.compile_policy", careless)
    assert_can_fail(test_removed_exemption_passes_no_more_packets.hypothesis.inner_test, removals())
