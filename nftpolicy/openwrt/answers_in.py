# SPDX-License-Identifier: BSD-2-Clause
"""What the firewall of a router lets in from its uplinks, in the words of a policy; and what has no word there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from ..policy import values, words
from .roles import wan_zones
from .uci_in import Section

_RANGE = re.compile(r"([0-9]{1,5})(?:[-:]([0-9]{1,5}))?\Z")
_NAMED = {port: word for word, port in words.ANSWERS.items()}
# What exemptions or the kernel see to; by protocol and destination port.
_CARRIED = {("udp", "68"): "dhcpv4", ("udp", "546"): "dhcpv6", ("udp", "4789"): "vxlan-mesh"}
_ICMP = frozenset({"icmp", "icmpv6", "ipv6-icmp", "1", "58"})


@frozen
class Let:
    """A section of the firewall: the `answer` words that it comes to, or why it comes to none (`why`)."""

    section: Section
    answers: tuple[str, ...] = ()
    why: str = ""
    done: bool = False  # the policy sees to it otherwise


def let_in(firewall: Iterable[Section]) -> Iterator[Let]:
    """Each section that lets something in, or that has no counterpart in a policy."""
    sections = tuple(firewall)
    zones = {one.get("name") for one in wan_zones(sections)}
    for one in sections:
        if one.type == "rule":
            yield _rule(one, zones)
        elif one.type in _OTHERS:
            yield Let(one, (), _OTHERS[one.type])
        elif one.type == "include":
            yield Let(one, (), _include(one))
        elif one.type not in ("defaults", "zone", "forwarding"):
            yield Let(one, (), "firewall4 knows no such section, or it has nothing to do with who may use an uplink")


_OTHERS = {
    "redirect": "a policy forwards nothing between an uplink and other devices, so this redirection ends",
    "nat": "translation of addresses is not part of a policy; the guard comes behind it",
    "ipset": "sets of the firewall stay with the firewall",
}


def _include(one: Section) -> str:
    if one.get("type", "script") not in ("nftables", "script"):
        return (f"firewall4 knows no include of type {one.get('type')!r} and then renders NO ruleset at all; "
                "it is for firewall3")  # fmt: skip
    return "what it includes was not read; give the whole with --ruleset (nft -j list ruleset)"


def _rule(one: Section, zones: set[str]) -> Let:
    if not one.flag("enabled", True):
        return Let(one, done=True)
    if one.get("src") not in zones and one.get("src") != "*":
        return Let(one, done=True) if one.get("dest") not in zones else Let(one, (), _OUT)
    if one.get("dest"):
        return Let(one, (), "it forwards from an uplink, which a policy does not")
    if one.get("target").upper() != "ACCEPT":
        return Let(one, done=True)  # the firewall still refuses what comes in
    protocols = [word.lower() for word in one.words("proto")] or ["tcp", "udp"]
    protocols = ["tcp", "udp"] if protocols in (["tcpudp"], ["all"], ["any"], ["*"]) else protocols
    found: list[str] = []
    for protocol in protocols:
        if protocol in _ICMP:
            kinds = one.words("icmp_type")
            found += ["ping"] if not kinds or "echo-request" in kinds else []
        elif protocol in ("tcp", "udp"):
            if one.get("src_port") and protocol == "udp":
                return Let(
                    one, (), "it lets in replies to what this machine asks; what is asked by an uplink is a service"
                )
            if not one.words("dest_port"):
                return Let(one, (), f"it lets in all of {protocol}; a policy names the ports that it answers")
            found += [word for text in one.words("dest_port") if (word := _answer(protocol, text))]
        elif protocol != "igmp":
            return Let(one, (), f"a policy has no answer for protocol {protocol}")
    return Let(one, tuple(dict.fromkeys(found)), done=True)


_OUT = "it is about what other hosts send by the uplink; a policy forwards nothing there"


def _answer(protocol: str, text: str) -> str:
    """The word for a port, "" for one that exemptions are for."""
    parts = _RANGE.match(text)
    if (protocol, text) in _CARRIED or not parts:
        return ""
    port = f"{protocol}/{parts[1]}{f'-{parts[2]}' if parts[2] else ''}"
    try:
        values.port(port)
    except ValueError:
        return ""
    return _NAMED.get(port, port)
