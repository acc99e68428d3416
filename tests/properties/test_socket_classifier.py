"""Verdict of a socket against the trace of its packets through the compiled guard."""

from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.kernel.netlink.sock_diag import TCP, UDP, InetSocket
from nftpolicy.kernel.socket_owners import SocketOwner
from nftpolicy.model.packet import Packet, parse_address
from nftpolicy.model.trace import Model
from nftpolicy.netstate.nft import CounterRef, Rule
from nftpolicy.proof.assumptions import add_assumed_environment
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.runtime.services.socket_classifier import (
    FORGED,
    KERNEL_PORT,
    RIGHT,
    UNMARKED,
    WRONG_DESTINATION,
    classify_sockets,
)
from tests import policy_strategies
from tests.properties.test_policy_invariant import assert_can_fail

FAR = {4: "198.51.100.10", 6: "2001:db8:99::10"}  # of no uplink's network
NEAR = {4: "192.0.2.2", 6: "2001:db8:77::2"}
DNS = 53


@st.composite
def scenes(draw):
    """Generate a policy and a connected socket near it, with the group of its process."""
    policy = draw(policy_strategies.policies(most_uplinks=2))
    services = list(policy.service.values())
    service = draw(st.sampled_from(services)) if services else None
    uplink = draw(st.sampled_from(list(policy.uplink.values())))
    family = draw(st.sampled_from((4, 6)))
    known = [port for one in services for port in one.ports if port.protocol in ("tcp", "udp")]
    port = draw(st.sampled_from(known)) if known and draw(st.booleans()) else None
    there = [
        str(net[0])
        for one in services
        for net in one.to
        # What is link-local needs a device, which the socket has not.
        if net.version == family and not (net[0].is_multicast or net[0].is_unspecified or net[0].is_link_local)
    ]
    uids = [1234, *(one.user.number for one in services if one.user)]
    gids = [1234, *(one.group.number for one in services if one.group)]
    mine = service is not None and draw(st.booleans())
    one = InetSocket(
        family,
        {"tcp": TCP, "udp": UDP}[port.protocol] if port else draw(st.sampled_from((TCP, UDP))),
        "established",
        NEAR[family],
        40000,
        draw(st.sampled_from((FAR[family], *there))),
        port.low if port else 4711,
        draw(st.sampled_from((0, uplink.mark.value, uplink.mark.value))),
        service.user.number if mine and service.user else draw(st.sampled_from(uids)),
        7,
        1,
    )
    gid = service.group.number if mine and service.group else draw(st.sampled_from(gids))
    assume(one.dport != DNS)  # which goes another way
    # Answers are for replies, which the packet of the walk is not.
    assume(not any(a.port and a.port.low <= one.sport <= a.port.high for a in uplink.answer))
    return policy, one, gid


def trace_of_socket(policy, one, gid, bound=None):
    """Return the trace of a packet of the socket, with the last counter that it met."""
    state = add_assumed_environment(compile_policy(policy), build_spec(policy))[0]
    packet = Packet(
        one.family, parse_address(one.remote), None, one.protocol, one.sport, one.dport, mark=one.mark, uid=one.uid, gid=gid,
        bound=bound,
    )  # fmt: skip
    walk = Model(state).trace(packet)
    counters = [
        part.name
        for decision in walk.steps
        if isinstance(decision.subject, Rule) and decision.effect == "drop"
        for part in decision.subject.statements
        if isinstance(part, CounterRef)
    ]
    return walk, counters


def check_verdict(scene):
    policy, one, gid = scene
    found = classify_sockets([one], policy, {}, {7: SocketOwner(1, "x", gid)})
    if not found:
        return
    (seen,) = found
    devices = policy.uplink[seen.uplink].devices
    if seen.verdict in (RIGHT, KERNEL_PORT):
        assert trace_of_socket(policy, one, gid)[0].device in devices
    elif seen.verdict in (FORGED, WRONG_DESTINATION):
        walk, counters = trace_of_socket(policy, one, gid)
        assert (walk.outcome, counters) == ("dropped", [seen.counter])
    elif seen.verdict == UNMARKED:
        walk, counters = trace_of_socket(policy, one, gid)
        assert walk.device not in devices or walk.outcome != "leaves"
        # Bound to the uplink's device it is on its way there, and is stopped.
        walk, counters = trace_of_socket(policy, one, gid, devices[0])
        exempt = (policy.uplink[seen.uplink].exempt or policy.lan) and walk.outcome == "leaves"
        unroutable = walk.outcome == "unroutable"  # IPv6 without a route by that device
        assert exempt or unroutable or (walk.outcome, counters) == ("dropped", [seen.counter])
    else:
        raise AssertionError(seen.verdict)


@settings(max_examples=60)
@given(scenes())
def test_socket_verdict_equals_the_guard(scene):
    check_verdict(scene)


def test_verdict_test_detects_a_blind_classifier(monkeypatch):
    """Leave the services out of the policy that the classifier reads."""
    real = classify_sockets

    def blind(sockets, policy, addresses, holders):
        return real(sockets, evolve(policy, service={}), addresses, holders)

    monkeypatch.setattr(f"{__name__}.classify_sockets", blind)
    assert_can_fail(check_verdict, scenes())
