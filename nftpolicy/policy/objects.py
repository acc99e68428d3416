# SPDX-License-Identifier: BSD-2-Clause
"""The classes of a policy. They are the Python API; nftpolicy.toml(5) documents the same keys."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from attrs import Factory, frozen

from .mark import Mark

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@frozen
class Account:
    """A user or group of this machine: how the policy writes it, and its number."""

    name: str
    number: int


@frozen
class Listen:
    """Where a resolver listens, on UDP and TCP."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@frozen
class Port:
    """Ports of one transport protocol, `low` to `high` inclusive."""

    protocol: str
    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.protocol}/{self.low}" + (f"-{self.high}" if self.high != self.low else "")


@frozen
class Answer:
    """An inbound service whose replies may go back: `name` as written, `port` None for ping."""

    name: str
    port: Port | None


@frozen
class Server:
    """An upstream DNS server; `zone` is the device of a link-local address."""

    address: Address
    zone: str | None = None

    def __str__(self) -> str:
        return f"{self.address}%{self.zone}" if self.zone else str(self.address)


@frozen
class Resolver:
    """The DNS server behind an uplink. Which servers it asks: `servers`, or what `sources` say, or the file `lease`."""

    listen: tuple[Listen, ...] = (
        Listen(IPv4Address("127.0.0.1"), 54),
        Listen(IPv6Address("::1"), 54),
    )
    servers: tuple[Server, ...] = ()
    lease: str | None = None
    sources: tuple[str, ...] = ()
    user: Account = Account("65534", 65534)


def lease_of(uplink: str, resolver: Resolver) -> str:
    """The file that names the resolver's servers where the policy has neither servers nor sources."""
    return resolver.lease or f"/run/nftpolicy/{uplink}.dns"


@frozen
class Uplink:
    """A way out through somebody else's network."""

    devices: tuple[str, ...]
    mark: Mark
    table: int
    exempt: tuple[str, ...] = ()
    answer: tuple[Answer, ...] = ()
    gateways: tuple[Address, ...] = ()
    learn: tuple[str, ...] = ()
    resolver: Resolver | None = None


@frozen
class Service:
    """Sockets that may use an uplink. Those of `group` or `user`, or the kernel's own (WireGuard).

    `marks` is a word of words.MARKS. `cgroup` (below the root of cgroup v2; None is the service's own) and `confine`
    are for "cgroup". `to` and `ports` narrow where they may send; empty is anywhere. `sport`: the UDP ports that the
    kernel's own socket is bound to; what it sends from there passes, whoever made what is inside.
    """

    uplink: str
    group: Account | None = None
    user: Account | None = None
    kernel: bool = False
    sport: tuple[Port, ...] = ()
    marks: str = "itself"
    cgroup: str | None = None
    confine: bool = False
    to: tuple[Network, ...] = ()
    ports: tuple[Port, ...] = ()

    @property
    def unmarked(self) -> bool:
        """Whether its sockets wear no mark: a rule for its user leads them to the uplink."""
        return self.marks == "uid-rule"


OURS = "nftpolicy"  # the cgroup that holds those of all services


def cgroup_of(name: str, service: Service) -> str:
    """The cgroup of a service with marks = "cgroup", below the root of cgroup v2."""
    return service.cgroup or f"{OURS}/{name}"


@frozen
class Policy:
    """A whole policy. Devices that `inside` does not name count as uplinks."""

    name: str
    inside: tuple[str, ...]
    uplink: dict[str, Uplink]
    service: dict[str, Service] = Factory(dict)
