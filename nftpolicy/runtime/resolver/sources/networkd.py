# SPDX-License-Identifier: BSD-2-Clause
"""systemd-networkd: /run/systemd/netif/links/INDEX and leases/INDEX. Pure.

links/INDEX has the servers of DHCPv4, DHCPv6, router advertisements and DNS= of the .network file,
except those that UseDNS=no excludes; leases/INDEX has all servers of DHCPv4, also with UseDNS=no.
"""

from __future__ import annotations

from collections.abc import Iterator

from .keyfile import value_words


def parse(data: bytes) -> Iterator[str]:
    """Yield the servers: ADDRESS, ADDRESS%INDEX or [ADDRESS]:PORT, optionally with #NAME."""
    yield from value_words(data.decode(errors="replace"), ("", "DNS"))
