# SPDX-License-Identifier: BSD-2-Clause
"""Inbound packets that a router's firewall accepts from its uplinks, as `answer` entries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from ...policy import scalars, vocabulary
from .forwards import ForwardedTraffic
from .uci_parser import ParsedSection
from .uplinks import wan_zones

_RANGE = re.compile(r"([0-9]{1,5})(?:[-:]([0-9]{1,5}))?\Z")
_ANSWER_NAMES = {port: word for word, port in vocabulary.NAMED_ANSWERS.items()}
# Handled by exemptions or the kernel; by protocol and destination port.
_EXEMPTED = {("udp", "68"): "dhcpv4", ("udp", "546"): "dhcpv6", ("udp", "4789"): "vxlan-mesh"}
_ICMP = frozenset({"icmp", "icmpv6", "ipv6-icmp", "1", "58"})


@frozen
class AllowedInbound:
    """Firewall section with its `answer` entries, or the `reason` that it has none; neither if it needs none."""

    section: ParsedSection
    answers: tuple[str, ...] = ()
    reason: str = ""


def allowed_inbound(
    firewall: Iterable[ParsedSection], forwarded: Iterable[ForwardedTraffic] = ()
) -> Iterator[AllowedInbound]:
    """Yield each section that accepts inbound packets, or that has no counterpart in a policy."""
    sections = tuple(firewall)
    zones = {section.get("name") for section in wan_zones(sections)}
    advice = {traffic.section.location(): traffic.advice for traffic in forwarded}
    for section in sections:
        if section.type == "rule":
            yield _rule(section, zones)
        elif section.type == "redirect" and not section.flag("enabled", True):
            yield AllowedInbound(section)
        elif section.type == "redirect" and section.location() in advice:
            yield AllowedInbound(section, (), f"this redirection ends{advice[section.location()]}")
        elif section.type in _UNMAPPED_TYPES:
            yield AllowedInbound(section, (), _UNMAPPED_TYPES[section.type])
        elif section.type == "include":
            yield AllowedInbound(section, (), _include(section))
        elif section.type not in ("defaults", "zone", "forwarding"):
            yield AllowedInbound(
                section, (), "firewall4 does not know this section, or it does not concern the use of an uplink"
            )


_UNMAPPED_TYPES = {
    "redirect": "it translates addresses of other packets than requests from an uplink; NAT is not part of a policy",
    "nat": "NAT is not part of a policy; the guard runs after it",
    "ipset": "sets of the firewall are not part of a policy",
}


def _include(section: ParsedSection) -> str:
    if section.get("type", "script") not in ("nftables", "script"):
        return (
            f"firewall4 does not support includes of type {section.get('type')!r} (for firewall3) and then renders NO "
            "ruleset at all"
        )
    return "the included file was not read; pass the whole ruleset with --ruleset (nft -j list ruleset)"


def _rule(section: ParsedSection, zones: set[str]) -> AllowedInbound:
    if not section.flag("enabled", True):
        return AllowedInbound(section)
    if section.get("src") not in zones and section.get("src") != "*":
        return AllowedInbound(section, (), _OUTBOUND if section.get("dest") in zones else "")
    if section.get("dest"):
        return AllowedInbound(section, (), "it forwards packets from an uplink; a policy needs [publish.NAME]")
    if section.get("target").upper() != "ACCEPT":
        return AllowedInbound(section)  # the firewall still rejects these packets
    protocols = [word.lower() for word in section.words("proto")] or ["tcp", "udp"]
    protocols = ["tcp", "udp"] if protocols in (["tcpudp"], ["all"], ["any"], ["*"]) else protocols
    answers: list[str] = []
    for protocol in protocols:
        if protocol in _ICMP:
            icmp_types = section.words("icmp_type")
            if not icmp_types or "echo-request" in icmp_types:
                answers.append("ping")
        elif protocol in ("tcp", "udp"):
            if section.get("src_port") and protocol == "udp":
                return AllowedInbound(
                    section,
                    (),
                    "it accepts replies to queries of this machine; a policy needs a service for queries by an uplink",
                )
            if not section.words("dest_port"):
                return AllowedInbound(
                    section, (), f"it accepts all ports of {protocol}; a policy names the ports that it answers"
                )
            answers += [word for port in section.words("dest_port") if (word := _answer(protocol, port))]
        elif protocol != "igmp":
            return AllowedInbound(section, (), f"a policy has no answer entry for protocol {protocol}")
    return AllowedInbound(section, tuple(dict.fromkeys(answers)))


_OUTBOUND = "it concerns packets of other hosts that leave by the uplink; a policy forwards those of [forward.NAME]"


def _answer(protocol: str, port_text: str) -> str:
    """Return the `answer` entry for a port; "" for exempted or invalid ports."""
    parts = _RANGE.match(port_text)
    if (protocol, port_text) in _EXEMPTED or not parts:
        return ""
    port = f"{protocol}/{parts[1]}{f'-{parts[2]}' if parts[2] else ''}"
    try:
        scalars.parse_port(port)
    except ValueError:
        return ""
    return _ANSWER_NAMES.get(port, port)
