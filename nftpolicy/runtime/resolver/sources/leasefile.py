# SPDX-License-Identifier: BSD-2-Clause
"""The file that the policy's `lease` names, in whatever form: as resolv.conf(5), dhclient's, or DNS= lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

# How each kind of file says it. A lease of dhclient is followed by newer ones: the last one holds.
_RESOLV_CONF = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)
_NETWORKD = re.compile(r"^(?:DNS|dns)=(.*)$", re.MULTILINE)  # systemd-networkd; udhcpc's variable dumps
_DHCLIENT = re.compile(r"^\s*option (domain-name-servers|dhcp6\.name-servers)\s+([^;]+);", re.MULTILINE)


def parse(data: bytes) -> Iterator[str]:
    """The words that stand where servers stand."""
    text = data.decode(errors="replace")
    leases = dict(_DHCLIENT.findall(text))  # of each option the last one
    joined = [*_RESOLV_CONF.findall(text), *_NETWORKD.findall(text), *leases.values()]
    yield from (word for part in joined for word in re.split(r"[\s,]+", part) if word)
