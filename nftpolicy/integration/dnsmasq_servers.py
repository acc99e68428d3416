# SPDX-License-Identifier: BSD-2-Clause
"""Upstream servers of a resolver, as dnsmasq(8) reads them (--server)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..generated_text import CheckedText, Unwritable, domain_name, fill, own_text, scoped_address
from ..policy.objects import DNS_PORT, Server


def server_value(server: Server) -> CheckedText:
    """Return one server, for all names. Raises Unwritable."""
    if server.tls_name:
        raise Unwritable(f"{str(server)!r} cannot be written for dnsmasq, which does not query over TLS")
    if "@" in (server.zone or ""):
        raise Unwritable(f"{str(server)!r} cannot be written for dnsmasq, which reads @ as the end of the address")
    address = scoped_address(str(server.address), server.zone)
    return address if server.port == DNS_PORT else fill("{address}#{port}", address=address, port=server.port)


def domain_values(domains: Mapping[str, Iterable[Server]]) -> Iterator[CheckedText]:
    """Yield the servers for names in domains. Raises Unwritable.

    A domain without a server has a value too: names in it do not exist, and no other server is queried.
    """
    for domain, servers in domains.items():
        for server in map(server_value, servers) if servers else (own_text(""),):
            yield fill("/{domain}/{server}", domain=domain_name(domain), server=server)
