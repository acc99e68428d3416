"""Kinds of packets that may try to leave by the WAN, and their sightings."""

import errno
import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from . import addresses as at
from . import packet_senders
from .frames import TCP, Frame
from .limits import brief
from .packet_senders import Job
from .sniffer import Sniffer
from .topology import Lab

NOTHING, DEFAULT_IN_MAIN, CONNECTED_IN_MAIN = "nothing", "wan-default-in-main", "wan-connected-in-main"
NOBODY = 65534
MARK = 1
_UNSUPPORTED = {"EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EAFNOSUPPORT", "ENOPROTOOPT"}
_ports = itertools.cycle(random.Random(0).sample(range(10240, 32000), 20000))  # below the ephemeral ones, above fastd's


@dataclass(frozen=True)
class Kind:
    """Sender of a kind of probe, and the routes that it needs to leave without guard and mark (`needs`, by family)."""

    send: Callable[[Job], None]
    needs: dict[int, str]  # the families that it exists for; 0 stands for what is not IP
    leak: str  # its class in the catalogue of leaks
    origin: str = "node"


def _both(needs: str) -> dict[int, str]:
    return {4: needs, 6: needs}


_ON_LINK = {4: NOTHING, 6: CONNECTED_IN_MAIN}  # IPv4 takes any address for on-link on a named device; IPv6 does not

KINDS: dict[str, Kind] = {
    "udp": Kind(packet_senders.udp, _both(DEFAULT_IN_MAIN), "A1"),
    "udp-connected": Kind(packet_senders.udp_connected, _both(DEFAULT_IN_MAIN), "A1"),
    "udp-source": Kind(packet_senders.udp_source, _both(DEFAULT_IN_MAIN), "A3"),
    "udp-source-pktinfo": Kind(packet_senders.udp_source_pktinfo, _both(DEFAULT_IN_MAIN), "A3"),
    "udp-fragments": Kind(packet_senders.udp_fragments, _both(DEFAULT_IN_MAIN), "D13"),
    "udp-mapped": Kind(packet_senders.udp_mapped, {4: DEFAULT_IN_MAIN}, "A12"),
    "udplite": Kind(packet_senders.udplite, _both(DEFAULT_IN_MAIN), "D14"),
    "tcp": Kind(packet_senders.tcp, _both(DEFAULT_IN_MAIN), "A1"),
    "ping": Kind(packet_senders.ping, _both(DEFAULT_IN_MAIN), "A1"),
    "ping-raw": Kind(packet_senders.ping_raw, _both(DEFAULT_IN_MAIN), "A13"),
    "raw-protocol": Kind(packet_senders.raw_protocol, _both(DEFAULT_IN_MAIN), "D14"),
    "raw-header": Kind(packet_senders.raw_header, _both(DEFAULT_IN_MAIN), "A13"),
    "udp-bound": Kind(packet_senders.udp_bound, _ON_LINK, "A5"),
    "tcp-bound": Kind(packet_senders.tcp_bound, _ON_LINK, "A5"),
    "udp-pktinfo": Kind(packet_senders.udp_pktinfo, _ON_LINK, "A6"),
    "udp-unicast-if": Kind(packet_senders.udp_unicast_if, _ON_LINK, "A7"),
    "udp-dontroute": Kind(packet_senders.udp_dontroute, _both(CONNECTED_IN_MAIN), "A8"),
    "multicast-site": Kind(packet_senders.multicast_site, _both(NOTHING), "A9"),
    "multicast-link": Kind(packet_senders.multicast_link, _both(NOTHING), "A9"),
    "multicast-scope": Kind(packet_senders.multicast_scope, {6: NOTHING}, "A9"),
    "unicast-scope": Kind(packet_senders.unicast_scope, {6: NOTHING}, "A11"),
    "broadcast-limited": Kind(packet_senders.broadcast_limited, {4: NOTHING}, "A10"),
    "broadcast-directed": Kind(packet_senders.broadcast_directed, {4: NOTHING}, "A10"),
    "packet": Kind(packet_senders.packet, _both(NOTHING), "A14"),
    "packet-bypass": Kind(packet_senders.packet_bypass, _both(NOTHING), "A14"),
    "packet-port": Kind(packet_senders.packet_port, _both(NOTHING), "A14"),
    "packet-private": Kind(packet_senders.packet_private, {0: NOTHING}, "A14"),
    "forwarded-udp": Kind(packet_senders.udp, _both(DEFAULT_IN_MAIN), "D1", origin="client"),
    "forwarded-tcp": Kind(packet_senders.tcp, _both(DEFAULT_IN_MAIN), "D1", origin="client"),
}


@dataclass(frozen=True)
class Probe:
    """Packet to send: a key of KINDS, a family (4, 6; 0: not IP), and the presence of the mark."""

    kind: str
    family: int
    marked: bool

    @property
    def needs(self) -> str:
        """Needs of an unmarked probe to leave by the WAN without a guard: NOTHING, or routes in the main table."""
        return KINDS[self.kind].needs[self.family]

    @property
    def leak(self) -> str:
        """Id of its class in the catalogue of leaks."""
        return KINDS[self.kind].leak

    @property
    def origin(self) -> str:
        """Namespace that sends it: "node" or "client"."""
        return KINDS[self.kind].origin

    def __str__(self) -> str:
        family = f"ipv{self.family}" if self.family else "frame"
        return f"{self.kind}/{family}/{'marked' if self.marked else 'unmarked'}"


@dataclass(frozen=True)
class Sent:
    """Probe that was sent, with its identification: a random payload, or a source port for TCP."""

    probe: Probe
    id: bytes
    sport: int
    error: str | None  # the errno's name if the kernel refused, such as "EPERM"

    @property
    def unsupported(self) -> bool:
        """True if this kernel has no such socket, so that the probe proves nothing."""
        return self.error in _UNSUPPORTED

    def matches(self, frame: Frame) -> bool:
        """Return True if a frame is (a part of) this probe."""
        if self.probe.kind.endswith(("tcp", "tcp-bound")):
            return (frame.l4proto, frame.family, frame.sport) == (TCP, self.probe.family, self.sport)
        return self.id in frame.payload


def matrix() -> list[Probe]:
    """Return every probe: each kind and family, unmarked and marked; a forwarded packet has no socket to mark."""
    return [
        Probe(name, family, marked)
        for name, kind in KINDS.items()
        for family in kind.needs
        for marked in (False, True)
        if kind.origin == "node" or not marked
    ]


def send(lab: Lab, probe: Probe, gid: int = NOBODY, uid: int = NOBODY) -> Sent:
    """Send one probe with these ids (capabilities are kept, so that every user can send every kind)."""
    return _send_batch(lab, [probe], gid, uid)[0]


def send_all(
    lab: Lab,
    probes: Iterable[Probe] | None = None,
    gid: int = NOBODY,
    uid: int = NOBODY,
    other_gid: int = NOBODY,
    other_uid: int = NOBODY,
    mark: int = MARK,
) -> list[Sent]:
    """Send many probes, all of `matrix` if none are named, in three processes at most.

    The marked ones are sent with `mark`, `gid` and `uid`, the service's; the others with `other_gid` and `other_uid`.
    """
    groups: dict[tuple[str, bool], list[Probe]] = {}
    for probe in matrix() if probes is None else probes:
        groups.setdefault((probe.origin, probe.marked), []).append(probe)
    return [
        sent
        for (_, marked), group in groups.items()
        for sent in _send_batch(lab, group, gid if marked else other_gid, uid if marked else other_uid, mark)
    ]


def seen(sniffer: Sniffer, sent: Sent) -> bool:
    """Return True if a probe has arrived at a sniffer by now."""
    return any(sent.matches(frame) for frame in sniffer.frames())


def sightings(sniffer: Sniffer, sents: Sequence[Sent], seconds: float = 0.5) -> set[Sent]:
    """Return the probes that arrive at a sniffer within some time; returns early only if all have."""
    end, found, done = time.monotonic() + brief(seconds), set[Sent](), 0
    while True:
        frames = sniffer.frames()
        for frame in frames[done:]:
            found.update(sent for sent in sents if sent.matches(frame))
        done = len(frames)
        if len(found) == len(sents) or time.monotonic() > end:
            return found
        time.sleep(0.01)


def _send_batch(lab: Lab, batch: Sequence[Probe], gid: int, uid: int, mark: int = MARK) -> list[Sent]:
    source = {family: lab.wan_address(family) or at.NEIGHBOUR[family] for family in (4, 6)}
    jobs = [
        Job(probe.family, os.urandom(16), mark if probe.marked else 0, next(_ports), source, lab.wan_port)
        for probe in batch
    ]
    space = {"node": lab.node, "client": lab.client}[batch[0].origin]
    senders_ = [KINDS[probe.kind].send for probe in batch]
    errors = space.call(_run, senders_, jobs, gid=gid, uid=uid, keep_caps=True)
    return [Sent(probe, job.payload, job.sport, error) for probe, job, error in zip(batch, jobs, errors, strict=True)]


def _run(functions: Sequence[Callable[[Job], None]], jobs: Sequence[Job]) -> list[str | None]:
    answers: list[str | None] = []
    for function, job in zip(functions, jobs, strict=True):
        try:
            function(job)
            answers.append(None)
        except OSError as error:
            answers.append(errno.errorcode.get(error.errno or 0, type(error).__name__))
    time.sleep(0.02)  # neighbours answer while the sockets are open
    return answers
