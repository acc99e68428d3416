# SPDX-License-Identifier: BSD-2-Clause
"""Classes of a policy. They are the Python API; nftpolicy.toml(5) documents the same keys."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses

from attrs import Factory, field, frozen

from .mark import Mark

ROOT = 0  # the number of user and group root
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@frozen
class Account:
    """User or group of this machine: its text in the policy, and its number."""

    name: str
    number: int


@frozen
class Listen:
    """Address and port on which a resolver listens, on UDP and TCP."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@frozen
class Port:
    """Ports of TCP or UDP, `low` to `high` inclusive; or all packets of a protocol without ports, both 0.

    `protocol` is "tcp", "udp", "ping" (echo requests of ICMP and ICMPv6) or a key of vocabulary.TUNNEL_PROTOCOLS.
    """

    protocol: str
    low: int
    high: int

    def __str__(self) -> str:
        if not self.high:
            return self.protocol
        if self.high == self.low:
            return f"{self.protocol}/{self.low}"
        return f"{self.protocol}/{self.low}-{self.high}"

    def contains(self, other: Port) -> bool:
        """Return True if each port of `other` is one of these."""
        return self.protocol == other.protocol and self.low <= other.low and other.high <= self.high

    def overlaps(self, other: Port) -> bool:
        """Return True if both have a port in common."""
        return self.protocol == other.protocol and self.low <= other.high and other.low <= self.high


@frozen
class Answer:
    """Inbound service with permitted replies: `name` as in the policy, `port` None for ping.

    `source`: the networks that get replies; empty: any. `exclusive`: default routes inside do not count for its
    packets, so that a server that is bound to no address replies by the uplink.
    """

    name: str
    port: Port | None
    source: tuple[Network, ...] = ()
    exclusive: bool = False

    def __str__(self) -> str:
        return f"{self.name} from {', '.join(map(str, self.source))}" if self.source else self.name


DNS_PORT = 53
DNS_TLS_PORT = 853  # RFC 7858 3.1


@frozen
class Server:
    """Upstream DNS server; `zone` is the device of a link-local address.

    `tls_name`: the name in its certificate, if it is queried over TLS (RFC 7858).
    """

    address: Address
    zone: str | None = None
    port: int = DNS_PORT
    tls_name: str | None = None

    def __str__(self) -> str:
        text = f"{self.address}%{self.zone}" if self.zone else str(self.address)
        if self.port != (DNS_TLS_PORT if self.tls_name else DNS_PORT):
            text = f"[{text}]:{self.port}" if self.address.version == 6 else f"{text}:{self.port}"
        return f"tls://{text}#{self.tls_name}" if self.tls_name else text

    @property
    def protocols(self) -> tuple[str, ...]:
        """Return the transport protocols of queries to the server."""
        return ("tcp",) if self.tls_name else ("tcp", "udp")


@frozen
class Resolver:
    """DNS forwarder of an uplink.

    Its upstream servers are `servers`, or come from `sources`, or from the file `lease`. `domains`: the only
    servers for names in these domains.
    """

    listen: tuple[Listen, ...] = (
        Listen(IPv4Address("127.0.0.1"), 54),
        Listen(IPv6Address("::1"), 54),
    )
    servers: tuple[Server, ...] = ()
    lease: str | None = None
    sources: tuple[str, ...] = ()
    user: Account = Account("65534", 65534)
    domains: dict[str, tuple[Server, ...]] = Factory(dict)

    @property
    def learns_servers(self) -> bool:
        """Return True if the servers, except those of `domains`, come from outside the policy."""
        return not self.servers

    @property
    def uses_tls(self) -> bool:
        """Return True if a server is queried over TLS."""
        return any(server.tls_name for server in self.named_servers)

    @property
    def named_servers(self) -> tuple[Server, ...]:
        """Return all servers of the policy, without duplicates."""
        return tuple(dict.fromkeys((*self.servers, *(server for each in self.domains.values() for server in each))))


def lease_file(uplink: str, resolver: Resolver) -> str:
    """Return the file with the resolver's servers, used if the policy has neither servers nor sources."""
    return resolver.lease or f"/run/nftpolicy/{uplink}.dns"


WELL_KNOWN_PREFIX = IPv6Network("64:ff9b::/96")  # RFC 6052 2.1


@frozen
class Clat:
    """Customer-side translator of 464XLAT (RFC 6877): the device that it reads IPv4 packets from.

    `prefix`: the NAT64 prefix of the network (RFC 6052), which its IPv6 packets are for.
    """

    device: str
    prefix: Network = WELL_KNOWN_PREFIX


@frozen
class Uplink:
    """Uplink: devices of a foreign network, with the mark and routing table of its traffic.

    `addresses`: addresses of this machine on other devices that the uplink's network knows, too. `stp`: the
    bridges among its devices send their own frames of the spanning tree protocol. The device of `clat` is
    one of `devices`.
    """

    devices: tuple[str, ...]
    mark: Mark
    table: int
    exempt: tuple[str, ...] = ()
    answer: tuple[Answer, ...] = ()
    gateways: tuple[Address, ...] = ()
    addresses: tuple[Network, ...] = ()
    learn: tuple[str, ...] = ()
    resolver: Resolver | None = None
    stp: bool = True
    clat: Clat | None = None

    @property
    def network_devices(self) -> tuple[str, ...]:
        """Return the devices that lead to the uplink's network: all but that of the CLAT."""
        return tuple(device for device in self.devices if self.clat is None or device != self.clat.device)


@frozen
class Service:
    """Sockets that may use an uplink: those of `group` or `user`, or the kernel's own (WireGuard).

    `marks` is a key of vocabulary.MARKS_VALUES. `cgroup` (below the root of cgroup v2; None: the
    default of the service) and `confine` belong to "cgroup". `to` and `ports` restrict the
    destinations; empty: anywhere. `sport`: UDP ports that the kernel's own socket is bound to;
    packets from these ports pass, whichever process sent the encapsulated packet. With `kernel`,
    `ports` are the protocols of the kernel's tunnels, and the TCP ports of its servers, at `to`.
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
        """Return True if its sockets carry no mark: an ip rule for its user selects the uplink."""
        return self.marks == "uid-rule"

    @property
    def of_root(self) -> bool:
        """Return True if its sockets are those of root with the uplink's mark, which its cgroup sets."""
        return self.user is not None and self.user.number == ROOT

    @property
    def by_destination(self) -> bool:
        """Return True if protocol and destination alone select its packets, which the kernel sends without a mark."""
        return self.kernel and bool(self.ports)


SERVICES_CGROUP = "nftpolicy"  # parent of the cgroups of all services


def service_cgroup(name: str, service: Service) -> str:
    """Return the cgroup of a service with marks = "cgroup", below the root of cgroup v2."""
    return service.cgroup or f"{SERVICES_CGROUP}/{name}"


@frozen
class Forward:
    """Packets of other machines that may use an uplink: those that arrive by `devices`, the key "from".

    `source`, `to` and `ports` restrict them; empty: any. `masquerade`: they leave with the uplink's address.
    """

    uplink: str
    devices: tuple[str, ...] = field(metadata={"key": "from"})
    source: tuple[Network, ...] = ()
    to: tuple[Network, ...] = ()
    ports: tuple[Port, ...] = ()
    masquerade: bool = False

    def networks(self, key: str, family: int) -> list[Network]:
        """Return the networks of one family of `source` or `to`, without overlaps."""
        listed: tuple[Network, ...] = getattr(self, key)
        if family == 4:
            return list(collapse_addresses(network for network in listed if isinstance(network, IPv4Network)))
        return list(collapse_addresses(network for network in listed if isinstance(network, IPv6Network)))

    @property
    def families(self) -> tuple[int, ...]:
        """Return the IP families in which both `source` and `to` have an address; without either, both."""
        lists = [networks for networks in (self.source, self.to) if networks]
        return tuple(
            family for family in (4, 6) if all(any(net.version == family for net in networks) for networks in lists)
        )


@frozen
class Publish:
    """Port of the uplink that a rule of another program forwards to the device `to` (DNAT)."""

    uplink: str
    port: Port
    to: str


@frozen
class Lan:
    """Packets to the uplink's own network that need no mark: of the sockets of `group` or `user`, else of any.

    `to`: private networks; nothing else is permitted. `ports` restricts the destination ports; empty: any.
    `sport`: the UDP ports that they are sent from, as answers to broadcast and multicast are; empty: any.
    """

    uplink: str
    to: tuple[Network, ...]
    group: Account | None = None
    user: Account | None = None
    ports: tuple[Port, ...] = ()
    sport: tuple[Port, ...] = ()


@frozen
class Policy:
    """Policy. Devices that `inside` does not match count as uplinks."""

    name: str
    inside: tuple[str, ...]
    uplink: dict[str, Uplink]
    service: dict[str, Service] = Factory(dict)
    forward: dict[str, Forward] = Factory(dict)
    publish: dict[str, Publish] = Factory(dict)
    lan: dict[str, Lan] = Factory(dict)
