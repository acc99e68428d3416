# SPDX-License-Identifier: BSD-2-Clause
"""File of the policy key `lease`: resolv.conf(5), dhclient.leases(5), or DNS= lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

_RESOLV_CONF = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)
_NETWORKD = re.compile(r"^(?:DNS|dns)=(.*)$", re.MULTILINE)  # systemd-networkd; variables of udhcpc
_DHCLIENT = re.compile(r"^\s*option (domain-name-servers|dhcp6\.name-servers)\s+([^;]+);", re.MULTILINE)


def parse(data: bytes) -> Iterator[str]:
    """Yield the entries for DNS servers."""
    text = data.decode(errors="replace")
    # dhclient appends newer leases: the last value of each option counts.
    leases = dict(_DHCLIENT.findall(text))
    values = [*_RESOLV_CONF.findall(text), *_NETWORKD.findall(text), *leases.values()]
    yield from (entry for value in values for entry in re.split(r"[\s,]+", value) if entry)
