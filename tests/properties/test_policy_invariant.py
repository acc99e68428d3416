"""Properties of generated policies, packets and hosts, by traces of packets and by proofs."""

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.model.packet import FORWARD, FRAME, ICMPV6, KERNEL, SOCKET, TCP, UDP
from nftpolicy.model.trace import Model
from nftpolicy.netstate.formats import nft_text
from nftpolicy.proof.assumptions import add_assumed_environment, device_matches
from nftpolicy.proof.exemption_spec import EXEMPTIONS
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, REFUTED, worst
from tests import foreign_table_strategies, policy_strategies, state_mutants
from tests import packet_strategies as states

pytestmark = pytest.mark.slow

PACKETS = 12  # of each policy
FEW = policy_strategies.policies(most_uplinks=2, most_services=2)
DNS = 53


def excuse(policy, packet, walk):
    """Return the reason why a packet may leave by its uplink device; None without one."""
    uplink = next(one for one in policy.uplink.values() if walk.device in one.devices)
    began = packet.iif in uplink.devices if packet.origin == FORWARD else uplink.mark.matches(packet.mark)
    if began:
        return "it began with the mark, or arrived by the uplink"
    if is_forwarded(policy, uplink, packet, walk):
        return "a forward"
    flow = packet.flow
    if flow.direction == "reply" and flow.state != "new" and uplink.mark.matches(flow.mark):
        return "a reply in a flow that began at the uplink"
    if packet.origin == SOCKET and any(
        one.unmarked and policy.uplink[one.uplink] is uplink and one.user.number == packet.uid
        for one in policy.service.values()
    ):
        return entitlement(policy, packet, walk)  # who needs no mark may do what he may with it
    if any(
        is_tunnel(one, packet, walk.destination)
        for one in policy.service.values()
        if policy.uplink[one.uplink] is uplink
    ):
        return "a tunnel of the kernel"
    if uplink.clat and walk.device == uplink.clat.device:
        return None  # nothing else has to be translated
    for name, lan in policy.lan.items():
        if policy.uplink[lan.uplink] is uplink and is_to_lan(lan, packet, walk):
            return f"lan {name}"
    return next((word for word in uplink.exempt if is_exempt(word, packet, walk)), None)


def is_to_lan(lan, packet, walk):
    """Return True if a `lan` table lets the packet leave."""
    said_type = {4: 0x0800, 6: 0x86DD}[packet.family]
    has_link_header = packet.fields.get(("meta", "oiftype"), 1) == 1
    if packet.origin == FRAME and packet.protocol_number != said_type:
        return False
    if packet.origin == FRAME and has_link_header and packet.fields.get(("ether", "type"), said_type) != said_type:
        return False
    if packet.iif is not None or not any(holds(net, packet.family, walk.destination) for net in lan.to):
        return False
    owned = [(lan.group, packet.gid), (lan.user, packet.uid)]
    if any(account is not None and not (packet.has_socket and account.number == number) for account, number in owned):
        return False
    later = packet.fields.get(("ip", "frag-off"), 0)
    if lan.ports:
        kinds = {"tcp": TCP, "udp": UDP}
        return not later and any(
            kinds[one.protocol] == packet.protocol and one.low <= walk.dport <= one.high for one in lan.ports
        )
    if lan.sport:
        is_from_port = any(one.low <= packet.sport <= one.high for one in lan.sport)
        return not later and packet.protocol == UDP and is_from_port and walk.dport != DNS
    return packet.protocol not in (TCP, UDP) or (not later and walk.dport != DNS)


def is_translated(uplink, packet, walk):
    """Return True if a packet is one of the uplink's CLAT, or an answer to it."""
    clat = uplink.clat
    if clat is None or packet.family == 4 or packet.origin != FORWARD or walk.device == packet.iif:
        return False
    if packet.iif == clat.device:
        return holds(clat.prefix, 6, walk.destination)
    is_answer = walk.device == clat.device and packet.iif in uplink.devices and packet.flow.direction == "reply"
    is_error = packet.protocol == ICMPV6 and packet.fields.get(("icmpv6", "type")) in (1, 2, 3, 4)
    return is_answer and (holds(clat.prefix, 6, packet.source) or (is_error and packet.flow.state == "related"))


def is_forwarded(policy, uplink, packet, walk):
    """Return True if a packet of another machine is one of a forward of the uplink."""
    if packet.origin != FORWARD or packet.flow.direction != "original":
        return False
    return any(
        policy.uplink[one.uplink] is uplink
        and packet.family in one.families
        and any(device_matches(pattern, packet.iif) for pattern in one.devices)
        and (not one.source or any(holds(net, packet.family, packet.source) for net in one.source))
        and may_reach(one, packet, walk)
        for one in policy.forward.values()
    )


def holds(network, family, address):
    low, high = int(network.network_address), int(network.broadcast_address)
    return network.version == family and low <= address <= high


def is_exempt(word, packet, walk):
    """Return True if an exemption covers the packet."""
    headers, frames = EXEMPTIONS[word]
    if packet.origin == FRAME:
        has_link_header = packet.fields.get(("meta", "oiftype"), 1) == 1
        own_type = packet.fields.get(("ether", "type"), packet.protocol_number)
        link = {"ether.type": own_type, "llc": packet.fields.get(("llc", "header"), -1)}
        if has_link_header and any(
            all(any(low <= link[name] <= high for low, high in some) for name, some in region.fields.items())
            for region in frames
        ):
            return True
        said_type = {4: 0x0800, 6: 0x86DD}[packet.family]
        if packet.protocol_number != said_type or (has_link_header and own_type != said_type):
            return False
    later = packet.fields.get(("ip", "frag-off"), 0)
    seen = {
        "protocol": packet.protocol,
        "fragment": int(bool(later)),
        "saddr": walk.source or 0,
        "daddr": walk.destination,
        "sport": packet.sport,
        "dport": walk.dport,
        "ttl": packet.fields.get(states.TTL[packet.family], 64),
        "icmpv6.type": packet.fields.get(("icmpv6", "type"), 128),
        "icmpv6.code": packet.fields.get(("icmpv6", "code"), 0),
        "igmp.type": packet.fields.get(("igmp", "type"), -1),
        "socket": int(packet.has_socket),
    }
    return any(
        all(any(low <= seen[name] <= high for low, high in some) for name, some in region.fields.items())
        for region in headers.get(packet.family, ())
    )


def departures(policy, state, packets):
    """Yield (packet, trace) of each packet that leaves, or may leave, by an uplink."""
    model = Model(state)
    outer = {device for uplink in policy.uplink.values() for device in uplink.devices}
    for packet in packets:
        walk = model.trace(packet)
        if walk.outcome in ("leaves", "unknown") and walk.device in outer:
            yield packet, walk


def leaks(policy, state, packets):
    """Return the departures without an excuse."""
    return [one for one in departures(policy, state, packets) if excuse(policy, *one) is None]


def kernel_state(policy, extra=((), ()), machine=HostFacts()):
    """Return the kernel's state under a policy, with addresses and foreign rules and routes."""
    return add_assumed_environment(states.joined(compile_policy(policy, machine), extra), build_spec(policy))[0]


@st.composite
def scenes(draw, policies=policy_strategies.policies(), count=PACKETS):
    """Generate a policy, misleading foreign rules and routes, and packets."""
    policy = draw(policies)
    wanted = draw(st.lists(states.packets(policy), min_size=count, max_size=count))
    return policy, draw(states.machines(policy)), wanted


@settings(max_examples=100)
@given(scenes())
def test_packet_leaving_by_uplink_is_marked_or_excused(scene):
    policy, extra, packets = scene
    assert not leaks(policy, kernel_state(policy, extra), packets)


def assert_can_fail(inner, inputs):
    """Assert that some example of `inputs` breaks a test."""
    run = settings(settings.get_profile("first"), max_examples=200)(given(inputs)(inner))
    with pytest.raises(AssertionError):
        run()


def kernel_state_without_guard(policy, extra=((), ())):
    """Return `kernel_state` of a compiler that forgets the tables."""
    state = evolve(compile_policy(policy), tables=())
    return add_assumed_environment(states.joined(state, extra), build_spec(policy))[0]


def test_leak_test_detects_a_missing_guard(monkeypatch):
    monkeypatch.setattr(f"{__name__}.kernel_state", kernel_state_without_guard)
    assert_can_fail(test_packet_leaving_by_uplink_is_marked_or_excused.hypothesis.inner_test, scenes())


# --- who wears the mark --------------------------------------------------------------------


def is_of_resolver(resolver, packet, walk, is_dns):
    """Return True if the packet is a query of the resolver to a server that it may use."""
    if not resolver or not packet.has_socket or packet.uid != resolver.user.number:
        return False
    if packet.protocol not in (TCP, UDP) or packet.fields.get(("ip", "frag-off")):
        return False
    servers = [*resolver.servers, *(server for only in resolver.domains.values() for server in only)]
    usable = [one for one in servers if packet.protocol == TCP or one.tls_name is None]
    named = {(one.address.version, int(one.address), one.port) for one in usable}
    return (is_dns and not resolver.servers) or (packet.family, walk.destination, walk.dport) in named


def entitlement(policy, packet, walk):
    """Return the reason why a packet may have its mark as it leaves by the uplink; None without one."""
    name, uplink = next(one for one in policy.uplink.items() if walk.device in one[1].devices)
    if packet.origin == FRAME:
        return "AF_PACKET sockets set marks themselves"
    clat = uplink.clat.device if uplink.clat else None
    if clat is not None and (packet.iif == clat or (walk.device == clat and packet.family == 6)):
        return "a CLAT" if is_translated(uplink, packet, walk) else None
    is_dns = walk.dport == DNS and packet.protocol in (TCP, UDP) and not packet.fields.get(("ip", "frag-off"))
    clients = [one for one in policy.service.values() if one.uplink == name and is_owned_by(one, packet)]
    if clients and is_dns and uplink.resolver:
        return None  # names come from the resolver
    if any(may_reach(one, packet, walk) for one in clients):
        return "a service"
    mine = [one for one in policy.service.values() if one.uplink == name and one.kernel]
    if any(is_from_lent_port(one, packet) for one in mine):
        return "a service of the kernel, by its port"
    if any(is_tunnel(one, packet, walk.destination) for one in mine):
        return "a tunnel of the kernel"
    if is_of_resolver(uplink.resolver, packet, walk, is_dns):
        return "the resolver"
    if any(word in ("mld", "igmp") and is_exempt(word, packet, walk) for word in uplink.exempt):
        return "a report that wears the mark by accident"
    if is_forwarded(policy, uplink, packet, walk):
        return "a forward"
    if packet.flow.direction == "reply" and uplink.mark.matches(packet.flow.mark):
        if any(one.uplink == name and is_published(one, packet) for one in policy.publish.values()):
            return "a published port"
        return "an answer" if is_answer(uplink, packet, walk) else None
    if not packet.has_socket and packet.protocol == UDP:
        return (
            "a service of the kernel"
            if any(not one.sport and not one.ports for one in mine)
            else closed_connection_reason(packet)
        )
    return closed_connection_reason(packet)


def closed_connection_reason(packet):
    return "the rest of a closed connection" if packet.origin == KERNEL and packet.flow.state == "established" else None


def is_owned_by(service, packet):
    """Return True if the packet, which has the mark, is one of the service: of root, a reply may be any server's."""
    if service.of_root and packet.flow.direction != "original":
        return False
    ids = ((service.user, packet.uid), (service.group, packet.gid))
    return packet.has_socket and any(account is not None and account.number == held for account, held in ids)


def is_from_lent_port(service, packet):
    """Return True if the packet comes from a kernel port that the service names, whatever its owner."""
    whole = packet.protocol == UDP and not packet.fields.get(("ip", "frag-off"))
    return whole and any(port.low <= packet.sport <= port.high for port in service.sport)


def may_reach(service, packet, walk):
    """Return True if the service may send to the destination."""
    near = not service.to or any(holds(net, packet.family, walk.destination) for net in service.to)
    numbers = {"tcp": TCP, "udp": UDP}
    fits = not service.ports or any(
        is_ping(packet)
        if port.protocol == "ping"
        else numbers[port.protocol] == packet.protocol and port.low <= walk.dport <= port.high
        for port in service.ports
    )
    return near and fits


def is_ping(packet):
    field, request = (("icmp", "type"), 8) if packet.family == 4 else (("icmpv6", "type"), 128)
    return packet.protocol == (1 if packet.family == 4 else 58) and packet.fields.get(field, request) == request


def is_tunnel(service, packet, destination):
    """Return True for a packet of this machine that only the kernel sends, to the other end of a tunnel or a server."""
    return (
        service.kernel
        and packet.origin in (SOCKET, KERNEL)
        and any(
            states.TUNNELS.get(port.protocol) == packet.protocol or is_to_server(port, packet) for port in service.ports
        )
        and any(holds(net, packet.family, destination) for net in service.to)
    )


def is_to_server(port, packet):
    """Return True for TCP without an owner, in a flow from here, to a port."""
    is_whole = packet.protocol == TCP and not packet.fields.get(("ip", "frag-off"))
    is_of_kernel = not packet.has_socket and packet.flow.direction == "original"
    return is_whole and is_of_kernel and port.protocol == "tcp" and port.low <= packet.dport <= port.high


def is_published(publish, packet):
    number = {"tcp": TCP, "udp": UDP}[publish.port.protocol]
    return (packet.iif, packet.protocol) == (
        publish.to,
        number,
    ) and publish.port.low <= packet.sport <= publish.port.high


def is_answer(uplink, packet, walk):
    numbers, of_tcp = {"tcp": TCP, "udp": UDP}, []
    for answer in uplink.answer:
        reached = not answer.source or any(holds(net, packet.family, walk.destination) for net in answer.source)
        if answer.port is not None and answer.port.protocol == "tcp":
            of_tcp.append(reached)
        if not reached:
            continue
        if answer.port is None:
            # Where a packet does not say its type, it is that of its flow: an answer, or an error about it.
            natural = None if packet.flow.state == "related" else 0 if packet.family == 4 else 129
            kind = packet.fields.get(("icmp" if packet.family == 4 else "icmpv6", "type"), natural)
            if packet.protocol in (1, 58) and kind in (0, 129):
                return True
        elif numbers[answer.port.protocol] == packet.protocol and answer.port.low <= packet.sport <= answer.port.high:
            return True
    return any(of_tcp) and packet.protocol == TCP and bool(packet.fields.get(("tcp", "flags"), states.SYN) & states.RST)


def forged_departures(policy, state, packets):
    """Return the departures with a mark of another owner."""
    return [
        (packet, walk)
        for packet, walk in departures(policy, state, packets)
        if walk.outcome == "leaves" and any(up.mark.matches(walk.mark) for up in policy.uplink.values())
        and excuse(policy, packet, walk) not in EXEMPTIONS and entitlement(policy, packet, walk) is None
    ]  # fmt: skip


@settings(max_examples=100)
@given(scenes())
def test_marked_packet_leaving_by_uplink_is_entitled(scene):
    policy, extra, packets = scene
    assert not forged_departures(policy, kernel_state(policy, extra), packets)


def wrong_device_departures(policy, state, packets):
    """Return packets that began with an uplink's mark, or of a user who needs none, and leave by another device."""
    model, found = Model(state), []
    users = {one.user.number for one in policy.service.values() if one.unmarked}
    uplinks = {device for uplink in policy.uplink.values() for device in uplink.devices}
    for packet in packets:
        walk = model.trace(packet)
        for uplink in policy.uplink.values():
            mark = packet.origin != FORWARD and packet.origin != FRAME and uplink.mark.matches(packet.mark)
            astray = walk.outcome in ("leaves", "unknown") and walk.device not in uplink.devices
            report = any(is_exempt(word, packet, walk) for word in ("mld", "igmp"))
            error = is_error_about_forward(policy, uplink, packet, walk)
            if mark and astray and not report and not error and not is_reply_to_uplink(policy, packet, walk):
                found.append((packet, walk))
        if packet.origin == SOCKET and packet.uid in users and walk.outcome == "leaves" and walk.device not in uplinks:
            found.append((packet, walk))
        marked = any(uplink.mark.matches(packet.mark) for uplink in policy.uplink.values())
        tunnel = not marked and any(is_tunnel(one, packet, packet.destination) for one in policy.service.values())
        if tunnel and walk.outcome == "leaves" and walk.device not in uplinks:
            found.append((packet, walk))
    return found


def is_error_about_forward(policy, uplink, packet, walk):
    """Return True if the kernel's own ICMP error goes to a client of a forward, without the mark that it copied."""
    field, types = {4: (("icmp", "type"), {3, 11, 12}), 6: (("icmpv6", "type"), {1, 2, 3, 4})}[packet.family]
    is_error = packet.protocol in (1, 58) and packet.fields.get(field) in types
    forwards = [one for one in policy.forward.values() if policy.uplink[one.uplink] is uplink]
    return packet.origin == KERNEL and is_error and bool(forwards) and not walk.mark & uplink.mark.mask


def is_reply_to_uplink(policy, packet, walk):
    """Return True if a reply leaves by the uplink of its flow with that uplink's mark."""
    return any(
        walk.device in one.devices and one.mark.matches(walk.mark) and one.mark.matches(packet.flow.mark)
        and packet.flow.direction == "reply" and is_answer(one, packet, walk)
        for one in policy.uplink.values()
    )  # fmt: skip


@settings(max_examples=60)
@given(scenes())
def test_marked_packet_leaves_only_by_its_uplink(scene):
    policy, extra, packets = scene
    assert not wrong_device_departures(policy, kernel_state(policy, extra), packets)


@pytest.mark.parametrize(
    "test",
    [test_marked_packet_leaving_by_uplink_is_entitled, test_marked_packet_leaves_only_by_its_uplink],
)
def test_mark_tests_detect_a_missing_guard(monkeypatch, test):
    monkeypatch.setattr(f"{__name__}.kernel_state", kernel_state_without_guard)
    assert_can_fail(test.hypothesis.inner_test, scenes())


# --- proofs ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(policy_strategies.policies(most_uplinks=5))
def test_compiled_policy_is_proved(policy):
    proof = prove(compile_policy(policy), build_spec(policy))
    assert not [one for one in proof.findings if one.deciding and one.verdict != PROVED]


@settings(max_examples=20)
@given(policy_strategies.policies(most_uplinks=2), st.booleans())
def test_policy_with_bridge_ports_or_no_link_guard_is_proved(policy, link_guard):
    ports = {device: (f"p{at}", f"q{at}") for at, up in enumerate(policy.uplink.values()) for device in up.devices[:1]}
    machine = HostFacts(bridge_ports=ports, has_egress_hook=link_guard)
    proof = prove(compile_policy(policy, machine), evolve(build_spec(policy, ports), frames=link_guard))
    assert not [one for one in proof.findings if one.deciding and one.verdict != PROVED]


def no_leak(proof, uplink):
    """Return the findings about packets without the mark, by origin of the packet."""
    words = {"sockets:": "socket", "forwarded": FORWARD, "AF_PACKET": FRAME, "frames": "other frames"}
    found = [one for one in proof.findings if (one.property, one.uplink) == ("P1", uplink) and "without" in one.subject]
    return {words[one.subject.split()[0]]: one for one in found}


def falsely_proved(policy, state, packets, proof):
    """Yield packets that leave by an uplink though a proof excludes them."""
    for packet, walk in leaks(policy, add_assumed_environment(state, build_spec(policy))[0], packets):
        name, uplink = next(one for one in policy.uplink.items() if walk.device in one[1].devices)
        kind = "socket" if packet.origin == KERNEL else packet.origin
        kind = "other frames" if packet.ethertype is not None else kind
        # A flow that has the mark already is the doing of a packet before, which a proof judges by itself.
        if uplink.mark.matches(packet.flow.mark):
            continue
        # What arrives with the mark has it from where no rule of ours reaches; a word of the policy is about that.
        arrived = packet.origin == FORWARD and uplink.mark.matches(packet.mark)
        if (proof.property_verdict("P1") if arrived else no_leak(proof, name)[kind].verdict) == PROVED:
            yield packet, walk


def wrongly_refuted(policy, state, proof):
    """Yield counterexamples that do not leave."""
    model = Model(add_assumed_environment(state, build_spec(policy))[0])
    for name, uplink in policy.uplink.items():
        for one in no_leak(proof, name).values():
            for example in one.examples if one.verdict == REFUTED else ():
                walk = model.trace(example.packet)
                gone = (walk.outcome, walk.device) == ("leaves", example.device)
                if not gone or (walk.device in uplink.devices and excuse(policy, example.packet, walk)):
                    yield example


class StateWithForeignTables:
    """Policy in a kernel with foreign tables and some damage to its own ones."""

    def __init__(self, policy, others, damage, state, packets):
        self.policy, self.others, self.damage, self.state, self.packets = policy, others, damage, state, packets

    def __repr__(self):
        others = "".join(
            nft_text.display_text(rule) + "; " for one in self.others for chain in one.chains for rule in chain.rules
        )
        return f"{policy_strategies.to_toml(self.policy)}\n{others}\n{self.damage}"


@st.composite
def states_with_foreign_tables(draw, tables, damage=0):
    """Generate policies with foreign tables."""
    policy, extra, packets = draw(scenes(FEW, 2 * PACKETS))
    state, done = evolve(compile_policy(policy), sysctls=()), []
    for _ in range(draw(st.integers(0, damage))):
        mutant = draw(st.sampled_from(list(state_mutants.mutants(state))))
        state, done = mutant.state, [*done, str(mutant)]
    others = draw(tables(policy))
    both = (*others, *state.tables) if draw(st.booleans()) else (*state.tables, *others)
    return StateWithForeignTables(
        policy, others, tuple(done), states.joined(evolve(state, tables=both), extra), packets
    )


@settings(max_examples=30)
@given(states_with_foreign_tables(foreign_table_strategies.harmless))
def test_harmless_foreign_tables_keep_the_proof(sample):
    proof = prove(sample.state, build_spec(sample.policy))
    found = [one for name in sample.policy.uplink for one in no_leak(proof, name).values()]
    assert worst(one.verdict for one in found) == PROVED, [one for one in found if one.verdict != PROVED]


CROWDS = states_with_foreign_tables(foreign_table_strategies.anything, damage=2)


@settings(max_examples=40)
@given(CROWDS)
def test_proofs_and_traces_agree(sample):
    proof = prove(sample.state, build_spec(sample.policy))
    leaked = list(falsely_proved(sample.policy, sample.state, sample.packets, proof))
    assert not leaked, leaked[:1]
    refuted = list(wrongly_refuted(sample.policy, sample.state, proof))
    assert not refuted, refuted[:1]


def test_agreement_test_detects_a_blind_prover(monkeypatch):
    for lemma, no_result in (("integrity_violations", []), ("guard_violation", None)):
        monkeypatch.setattr(f"nftpolicy.proof.no_leak.{lemma}", lambda *_, result=no_result, **__: result)
    agree = test_proofs_and_traces_agree.hypothesis.inner_test

    def unguarded_agree(sample):
        agree(StateWithForeignTables(sample.policy, (), (), kernel_state_without_guard(sample.policy), sample.packets))

    assert_can_fail(unguarded_agree, states_with_foreign_tables(foreign_table_strategies.anything))
