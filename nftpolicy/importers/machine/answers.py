# SPDX-License-Identifier: BSD-2-Clause
"""Answers of a drafted uplink: the servers of this machine, and the SSH session of now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_interface

from ...policy.objects import Port
from ...policy.vocabulary import NAMED_ANSWERS
from .facts import ListeningSocket, MachineFacts, WireguardTunnel

_ANSWER_WORDS = {text: name for name, text in NAMED_ANSWERS.items()}
_SSH = Port("tcp", 22, 22)
_CLIENT_PORTS = 32768  # of sockets that chose no port (net.ipv4.ip_local_port_range)
# Ports of clients and of protocols of the own network, which no answer is for: DHCP, NTP, mDNS, LLMNR, SSDP.
_NOT_SERVED = {Port("udp", port, port) for port in (68, 546, 123, 5353, 5355, 1900)} | {Port("tcp", 5355, 5355)}


def uplink_answers(
    facts: MachineFacts, devices: Sequence[str], is_client: bool, tunnels: Sequence[WireguardTunnel]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the answers of an uplink with their reasons, ssh first; and the servers that it does not answer."""
    answers = {}
    for session in facts.sessions:
        if session.device in devices:
            answers[_word(Port("tcp", session.port, session.port))] = "the SSH session of now comes by this uplink"
    own = {ip_interface(text).ip for each in facts.devices if each.name in devices for text in each.addresses}
    own_ports = {Port("udp", tunnel.listen_port, tunnel.listen_port) for tunnel in tunnels}
    unserved = [*_NOT_SERVED, *own_ports, *published_ports(facts)]
    served: dict[str, str] = {}
    for each in sorted(facts.listening, key=lambda each: (each.port != _SSH, each.port.protocol, each.port.low)):
        if any(each.port.overlaps(port) for port in unserved) or not _is_reachable(each, devices, own):
            continue
        if each.port.protocol == "udp" and each.port.low >= _CLIENT_PORTS:
            continue
        served.setdefault(_word(each.port), each.program or "a server that listens now")
    if is_client:
        return list(answers.items()), [f"{word} ({program})" for word, program in served.items() if word not in answers]
    ping = {"ping": "echo requests"}
    return list({**answers, **{word: text for word, text in served.items() if word not in answers}, **ping}.items()), []


def published_ports(facts: MachineFacts) -> list[Port]:
    """Return the ports that are forwarded to a known device, without overlaps and without those of SSH sessions."""
    ports: list[Port] = []
    sessions = [Port("tcp", each.port, each.port) for each in facts.sessions]
    for each in facts.forwarded_ports:
        if each.device is not None and not any(each.port.overlaps(port) for port in (*ports, *sessions)):
            ports.append(each.port)
    return ports


def _word(port: Port) -> str:
    return _ANSWER_WORDS.get(str(port), str(port))


def _is_reachable(server: ListeningSocket, devices: Sequence[str], own: Iterable[object]) -> bool:
    if server.device is not None:
        return server.device in devices
    return server.address is None or ip_address(server.address) in own


def session_warnings(facts: MachineFacts, uplinks: Sequence[str]) -> Iterator[str]:
    """Yield what becomes of each SSH session; `uplinks` are the devices of all uplinks."""
    for client, port, device in dict.fromkeys((each.client, each.port, each.device) for each in facts.sessions):
        session = f"the SSH session from {client} to port {port} comes by {device}"
        if device in uplinks:
            yield f"{session}, an uplink: 'answer' keeps it"
        else:
            yield f"{session}, which is inside: the policy does not concern it"
