# SPDX-License-Identifier: BSD-2-Clause
"""The DNS servers that an uplink brought, out of the files that DHCP clients write. Pure."""

from __future__ import annotations

import re

from ..policy.objects import Server
from ..policy.values import server

# How each kind of file says it. A lease of dhclient is followed by newer ones: the last one holds.
_RESOLV_CONF = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)
_NETWORKD = re.compile(r"^(?:DNS|dns)=(.*)$", re.MULTILINE)  # systemd-networkd; udhcpc's variable dumps
_DHCLIENT = re.compile(r"^\s*option (domain-name-servers|dhcp6\.name-servers)\s+([^;]+);", re.MULTILINE)


def servers(text: str, device: str) -> tuple[list[Server], list[str]]:
    """The servers that a file names, without duplicates, and the words in it that are none.

    `device` is the zone of link-local addresses that do not name theirs.
    """
    found: list[Server] = []
    refused: list[str] = []
    for word in _words(text):
        zoned = f"{word}%{device}" if word.lower().startswith("fe80:") and "%" not in word else word
        try:
            one = server(zoned)
            if one.address.is_loopback:
                raise ValueError("this machine itself")
        except ValueError:
            refused.append(word)
            continue
        if one not in found:
            found.append(one)
    return found, refused


def _words(text: str) -> list[str]:
    leases = dict(_DHCLIENT.findall(text))  # of each option the last one
    joined = [*_RESOLV_CONF.findall(text), *_NETWORKD.findall(text), *leases.values()]
    return [word for part in joined for word in re.split(r"[\s,]+", part) if word]
