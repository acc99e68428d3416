"""The packets of the probes as bytes, for the interpreter of the kernel's program."""

import socket
import struct

from nftpolicy.model.packet import TCP, UDP
from tests.engines.kernel_program import Flow, ProgramPacket

from .probe_senders import Probe, content

_STATES = {"established": 2, "related": 4, "new": 8}  # bits of NF_CT_STATE_BIT()
_NETDEV = 5  # NFPROTO_NETDEV
_CONNTRACK_PRIORITY = -200


def packet_at(probe: Probe, hook: str, priority: int, device_indices: dict[str, int]) -> ProgramPacket:
    """Return a probe at a hook.

    Fields that the kernel chooses (identification, checksums, sequence numbers) are 0.
    """
    view = probe.view(hook, priority)
    transport = _transport(probe)
    hops = 63 if view.iif and view.oif else 64
    source, destination = (_packed(probe.family, address) for address in probe.addresses)
    if probe.family == 4:
        length = 20 + len(transport)
        header = struct.pack("!BBHHHBBH", 0x45, probe.tos, length, 0, 0, hops, probe.protocol, 0) + source + destination
    else:
        first = 6 << 28 | probe.tos << 20
        header = struct.pack("!IHBB", first, len(transport), probe.protocol, hops) + source + destination
    is_first = hook == "output" or (hook == "prerouting" and probe.way != "lo")
    is_early = hook == "ingress" or (is_first and priority < _CONNTRACK_PRIORITY)
    is_untracked = view.notrack or (view.ct_state == "untracked" and not is_early)
    has_flow = not is_early and not is_untracked and view.ct_state in _STATES
    return ProgramPacket(
        network=bytearray(header + transport),
        ethertype=0x0800 if probe.family == 4 else 0x86DD,
        family=_NETDEV if hook in ("ingress", "egress") else {4: 2, 6: 10}[probe.family],
        transport=len(header),
        protocol=probe.protocol,
        mark=view.mark,
        iif=(device_indices[view.iif], view.iif) if view.iif else None,
        oif=(device_indices[view.oif], view.oif) if view.oif else None,
        uid=view.uid,
        gid=view.gid,
        flow=Flow(_STATES[view.ct_state], view.ct_mark, 0, view.ct_direction == "reply") if has_flow else None,
        is_untracked=is_untracked,
    )


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, address)


def _transport(probe: Probe) -> bytes:
    if probe.protocol == UDP:
        return struct.pack("!HHHH", probe.sport, probe.dport, 8 + len(content(probe)), 0) + content(probe)
    if probe.protocol == TCP:
        return struct.pack("!HHIIBBHHH", probe.sport, probe.dport, 0, 0, 0xA0, 2, 64240, 0, 0) + bytes(20)  # SYN
    return content(probe)
