# SPDX-License-Identifier: BSD-2-Clause
"""Configuration of unbound(8), which forwards the queries of a resolver whose servers speak TLS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ...generated_text import CheckedText, domain_name, fill, join, own_text, scoped_address, word
from ...policy.objects import Listen, Server

# unbound has no cache and no recursion here: what is not forwarded is refused. It drops root after it has bound its
# sockets. A server that does not answer costs one query two seconds; the default is three, several times. The
# certificates are those that Debian's ca-certificates trusts; unbound compares the name, and never falls back.
_SERVER = """\
server:
    use-syslog: no
    logfile: ""
    verbosity: 0
    do-daemonize: no
    pidfile: ""
    chroot: ""
    directory: "/"
    username: "{user}"
{interfaces}\
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    num-threads: 1
    outgoing-range: 200
    incoming-num-tcp: 100
    module-config: "iterator"
    cache-max-ttl: 0
    cache-max-negative-ttl: 0
    unblock-lan-zones: yes
    insecure-lan-zones: yes
    infra-keep-probing: yes
    tcp-auth-query-timeout: 2000
    tls-cert-bundle: "/etc/ssl/certs/ca-certificates.crt"
    hide-identity: yes
    hide-version: yes
{zones}\
remote-control:
    control-enable: no
{forwards}"""


def unbound_text(
    listen: Iterable[Listen], user: str, servers: Iterable[Server], domains: Mapping[str, Iterable[Server]]
) -> CheckedText:
    """Return the configuration. A domain without a server is refused. Raises Unwritable."""
    interfaces = (
        fill("    interface: {address}@{port}\n", address=word(str(each.address)), port=each.port) for each in listen
    )
    lists = [(own_text("."), tuple(servers))]
    lists += [(fill("{domain}.", domain=domain_name(domain)), tuple(only)) for domain, only in domains.items()]
    zones = (
        # unbound answers for some domains itself, such as those of RFC 6761, unless they have a zone.
        fill('    local-zone: "{name}" {kind}\n', name=name, kind=own_text("transparent" if only else "refuse"))
        for name, only in lists
        if name != "." or not only
    )
    forwards = (line for name, only in lists if only for line in _forward_lines(name, only))
    return fill(
        _SERVER, user=word(user), interfaces=join("", interfaces), zones=join("", zones), forwards=join("", forwards)
    )


def _forward_lines(name: CheckedText, servers: tuple[Server, ...]) -> Iterator[CheckedText]:
    """Yield the lines of a zone. The policy has no zone with some servers that speak TLS, and some that do not."""
    yield fill('forward-zone:\n    name: "{name}"\n    forward-first: no\n', name=name)
    if any(server.tls_name for server in servers):
        yield own_text("    forward-tls-upstream: yes\n")
    for server in servers:
        address = scoped_address(str(server.address), server.zone)
        certificate = fill("#{name}", name=domain_name(server.tls_name)) if server.tls_name else own_text("")
        yield fill(
            '    forward-addr: "{address}@{port}{certificate}"\n',
            address=address,
            port=server.port,
            certificate=certificate,
        )
