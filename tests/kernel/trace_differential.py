"""Comparison of packets that were really sent with the traces of the model."""

from attrs import evolve, frozen

from nftpolicy.model.packet import FORWARD, KERNEL, SOCKET, TCP, UDP, CtInfo, Packet, format_address
from nftpolicy.model.trace import Model, Trace
from nftpolicy.netstate.state import NetState

from .packet_machine import HERE, MARKS, REPLY, RESET, Arrival, Key, PacketMachine, key


@frozen
class Sample:
    """Packets that were sent in one state of the kernel, and their arrivals."""

    seed: int
    state: NetState
    packets: tuple[Packet, ...]
    answers: tuple[str, ...]
    seen: dict[Key, list[Arrival]]


@frozen
class Disagreement:
    """Packet that the kernel and the model treat differently."""

    seed: int
    trace: Trace
    answer: str
    seen: tuple[Arrival, ...]

    def __str__(self) -> str:
        trace = self.trace
        lines = [f"seed {self.seed}: {trace.packet}", f"kernel: {self.answer}, {self.seen}"]
        lines += [f"model: {trace.outcome} {trace.device}, mark {trace.mark}, unsupported {trace.unsupported}"]
        return "\n  ".join([*lines, *(f"{one.kind}: {one.text} -> {one.effect}" for one in trace.steps)])


def send(machine: PacketMachine, seed: int, state: NetState, packets: list[Packet]) -> Sample:
    """Send the packets in that state."""
    packets = [machine.with_new_identity(packet) for packet in packets]
    found, answers = machine.send(state, packets)
    expected = sum(trace.outcome in ("leaves", "delivered") for trace in traces(found, packets))
    return Sample(seed, found, tuple(packets), tuple(answers), machine.seen(expected))


def traces(state: NetState, packets: list[Packet] | tuple[Packet, ...]) -> list[Trace]:
    """Return the traces of packets, followed by those of the kernel's replies."""
    model = Model(state)
    found = [model.trace(packet) for packet in packets]
    return found + [model.trace(answer) for one in found for answer in _kernel_replies(one, state)]


def _kernel_replies(trace: Trace, state: NetState) -> list[Packet]:
    """Return the replies of the kernel to a ping, or to a SYN for a closed port, from outside."""
    packet = trace.packet
    if packet.origin != FORWARD or trace.outcome != "delivered" or trace.unsupported or packet.protocol == UDP:
        return []
    if (trace.destination, trace.dport) != (packet.destination, packet.dport):
        return []  # its answer is translated back, which no walk shows
    reflects = f"net/ipv{packet.family}/fwmark_reflect"
    is_reflected = any((one.path, one.value) == (reflects, "1") for one in state.sysctls)
    answer = evolve(
        packet,
        source=packet.destination,
        destination=packet.source,
        origin=KERNEL,
        iif=None,
        mark=trace.mark if is_reflected else 0,
        flow=CtInfo("established", "reply", trace.ct_mark),
    )
    if packet.protocol == TCP:
        fields = {**packet.fields, ("tcp", "flags"): RESET}
        return [evolve(answer, sport=packet.dport, dport=packet.sport, fields=fields)]
    fields = {**packet.fields, ({4: "icmp", 6: "icmpv6"}[packet.family], "type"): REPLY[packet.family][1]}
    return [evolve(answer, bound=packet.iif if packet.family == 6 else None, fields=fields)]


def disagreements(sample: Sample) -> list[Disagreement]:
    """Return all disagreements of the model with a sample."""
    found = traces(sample.state, sample.packets)
    answers = (*sample.answers, *["an answer of the kernel"] * (len(found) - len(sample.answers)))
    return [
        Disagreement(sample.seed, one, answer, tuple(sample.seen.get(key(one.packet), ())))
        for one, answer in zip(found, answers, strict=True)
        if not _agrees(one, sample.seen.get(key(one.packet), []))
    ]


def _agrees(trace: Trace, seen: list[Arrival]) -> bool:
    if trace.outcome == "unknown":
        return True
    if _is_for_many(trace.packet.family, trace.destination) and trace.packet.origin == SOCKET:
        seen = [one for one in seen if one.where != HERE]  # a copy comes back to the machine
    if trace.unsupported and trace.outcome != "leaves":  # all that is known is that it does not leave
        return all(one.where == HERE for one in seen)
    if trace.outcome not in ("leaves", "delivered"):
        return not seen
    if len(seen) != 1:
        return False
    (one,) = seen
    where, mark = (HERE, trace.mark) if trace.outcome == "delivered" else (trace.device, trace.mark & (MARKS - 1))
    if trace.packet.frame_type != trace.packet.protocol_number:
        mark = one.mark  # which the sniffer reads only in packets that say what they are
    return (
        (one.where, one.mark, one.dport) == (where, mark, trace.dport)
        and one.destination in (None, trace.destination)
        and (trace.source is None or one.source in (None, trace.source))
    )


def _is_for_many(family: int, address: int) -> bool:
    return address >> {4: 28, 6: 120}[family] == {4: 0xE, 6: 0xFF}[family] or (
        family == 4 and format_address(4, address) in ("255.255.255.255", "192.0.2.255")
    )
