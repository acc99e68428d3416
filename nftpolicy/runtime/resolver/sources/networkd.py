# SPDX-License-Identifier: BSD-2-Clause
"""systemd-networkd: /run/systemd/netif/links/INDEX and leases/INDEX. Pure.

links/INDEX has the servers of DHCPv4, DHCPv6, router advertisements and DNS= of the .network file, but for those
that UseDNS=no keeps out; leases/INDEX has all that DHCPv4 brought, in spite of UseDNS=no.
"""

from __future__ import annotations

from collections.abc import Iterator

from .keyfile import words_of


def parse(data: bytes) -> Iterator[str]:
    """The servers of one of the two files: ADDRESS, ADDRESS%INDEX, [ADDRESS]:PORT, each perhaps with #NAME."""
    yield from words_of(data.decode(errors="replace"), ("", "DNS"))
