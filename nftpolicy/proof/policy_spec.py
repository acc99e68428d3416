# SPDX-License-Identifier: BSD-2-Clause
"""Specification of a policy: the packets that it allows and requires.

Written from the manual page and the standards only, not from the compiler: a common mistake would
hide from every proof. Nothing here knows a chain, a set or a priority.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..model.packet import ICMP, L2TP, TCP, UDP, parse_address
from ..model.symbolic.box import Ranges, complement, intersect_ranges, merge_ranges, points
from ..netstate.nft.symbols import CT_DIRECTIONS
from ..policy import objects
from ..policy.objects import Answer, Policy, Port, Resolver, Uplink
from .entitlement import DNS_PORT
from .exemption_spec import EXEMPTIONS, LOCAL_GROUPS, NOT_GLOBAL, address_ranges, exemption, icmpv6_regions
from .spec import (
    ARRIVAL,
    IP_FAMILIES,
    ClatSpec,
    ExemptionSpec,
    ForwardSpec,
    OwnerSpec,
    PublishSpec,
    Region,
    ReplySpec,
    ResolverSpec,
    ServiceSpec,
    Spec,
    UplinkSpec,
)

_PROTOCOLS = {"tcp": TCP, "udp": UDP}
# RFC 2003 3.1, RFC 4213 3.5, RFC 2784 3, RFC 4303 2: the IP protocol numbers of tunnels.
_TUNNELS = {"ipip": 4, "6in4": 41, "gre": 47, "esp": 50}
# RFC 3931 4.1.1: a data packet begins with its session ID, which is not 0. The model reads it as two ports.
_NOT_0 = ((1, 0xFFFF),)
_L2TP_DATA = (
    Region({"protocol": points(L2TP), "fragment": points(0), "dport": _NOT_0}),
    Region({"protocol": points(L2TP), "fragment": points(0), "sport": _NOT_0, "dport": points(0)}),
)


def _owners(service: objects.Service | objects.Lan) -> tuple[OwnerSpec, ...]:
    accounts = (("gid", service.group), ("uid", service.user))
    is_marked = isinstance(service, objects.Service) and service.of_root
    return tuple(OwnerSpec(key, account.number, is_marked) for key, account in accounts if account is not None)


_SHORTEST_OWN_NETWORK = {4: 16, 6: 48}
# The name server of a network learns from its queries which hosts a machine speaks to.
_NOT_DNS = complement(points(DNS_PORT), 0xFFFF)
_ALL_BUT_DNS = (
    Region({"protocol": complement(points(TCP, UDP), 255)}),
    Region({"protocol": points(TCP, UDP), "fragment": points(0), "dport": _NOT_DNS}),
)


def _lan(name: str, lan: objects.Lan) -> ExemptionSpec:
    """Return the packets to the uplink's own network: to no global address, and not of another machine.

    A server's answers may be for global addresses. DNS only if a port names it.
    """
    owner = {key: ranges for each in _owners(lan) for key, ranges in each.match_fields.items()}
    headers = {}
    for family in IP_FAMILIES:
        networks = _own_networks(lan, family)
        fields = {**owner, "daddr": networks, ARRIVAL: points(0)}
        if networks:
            regions = _ports(lan.ports) or tuple(each.narrowed(dport=_NOT_DNS) for each in _ports(lan.sport, "sport"))
            headers[family] = tuple(Region({**region.fields, **fields}) for region in regions or _ALL_BUT_DNS)
    accounts = [("group", lan.group), ("user", lan.user)]
    sender = next((f"{key} {account.name}" for key, account in accounts if account is not None), "any program")
    ports = f" on {', '.join(map(str, lan.ports))}" if lan.ports else ""
    ports += f" from {', '.join(map(str, lan.sport))}" if lan.sport else ""
    detail = f"{', '.join(map(str, lan.to))}{ports} for {sender}"
    return ExemptionSpec(f"lan {name}", ("lan", name), headers, is_lan=True, detail=detail)


def _own_networks(lan: objects.Lan, family: int) -> Ranges:
    """Return the addresses of a lan that are not global; those of a server's answers (`sport`) may be."""
    local = address_ranges(*NOT_GLOBAL[family], *LOCAL_GROUPS[family])
    small = [net for net in lan.to if lan.sport and net.prefixlen >= _SHORTEST_OWN_NETWORK[family]]
    return merge_ranges([*intersect_ranges(_bounds(lan.to, family), local), *_bounds(small, family)])


def _service(name: str, service: objects.Service) -> ServiceSpec:
    regions = {}
    for family in IP_FAMILIES:
        ports = (*_ports(service.ports), *_echo_requests(service, family)) or _ports(service.sport, "sport")
        addresses = _bounds(service.to, family)
        if service.to and not addresses:
            continue
        destinations = {"daddr": addresses} if addresses else {}
        regions[family] = tuple(
            _kernel_packets(Region({**port_region.fields, **destinations}), service.kernel)
            for port_region in ports or (Region(),)
        )
    unmarked = service.unmarked or service.by_destination
    return ServiceSpec(name, ("service", name), _owners(service), service.kernel, regions, unmarked)


def _kernel_packets(region: Region, is_kernel: bool) -> Region:
    """Return a region of a service; of TCP of the kernel, the packets that no process owns, of flows from here."""
    if not is_kernel or region.fields.get("protocol") != points(TCP):
        return region
    return region.narrowed(socket=points(0), ct_direction=points(CT_DIRECTIONS["original"]))


def _echo_requests(service: objects.Service, family: int) -> tuple[Region, ...]:
    """Return the echo requests of a service that may ping (RFC 792, RFC 4443 4.1)."""
    if all(port.protocol != "ping" for port in service.ports):
        return ()
    if family == 6:
        return icmpv6_regions((128,))
    return (Region({"protocol": points(ICMP), "fragment": points(0), "icmp.type": points(8)}),)


def _ports(ports: Sequence[Port], field: str = "dport") -> tuple[Region, ...]:
    by_protocol: dict[str, list[tuple[int, int]]] = {}
    tunnels = sorted({_TUNNELS[port.protocol] for port in ports if port.protocol in _TUNNELS})
    for port in ports:
        if port.protocol in _PROTOCOLS:
            by_protocol.setdefault(port.protocol, []).append((port.low, port.high))
    regions = tuple(
        Region({"protocol": points(_PROTOCOLS[protocol]), "fragment": points(0), field: merge_ranges(pairs)})
        for protocol, pairs in sorted(by_protocol.items())
    )
    data = _L2TP_DATA if any(port.protocol == "l2tp" for port in ports) else ()
    return (*regions, *(Region({"protocol": points(number)}) for number in tunnels), *data)


def _reply(uplink: str, answer: Answer) -> ReplySpec:
    origin = ("uplink", uplink, "answer")
    if answer.port is None:  # RFC 792, RFC 4443 4.2: echo replies
        four = Region({"protocol": points(ICMP), "fragment": points(0), "icmp.type": points(0)})
        return ReplySpec(answer.name, origin, _to_sources({4: (four,), 6: icmpv6_regions((129,))}, answer.source))
    headers = _ports((answer.port,), "sport")
    return ReplySpec(answer.name, origin, _to_sources({4: headers, 6: headers}, answer.source), answer.exclusive)


def _to_sources(
    headers: Mapping[int, tuple[Region, ...]], networks: Sequence[objects.Network]
) -> Mapping[int, tuple[Region, ...]]:
    """Return the headers of replies to these networks, by family; of all replies without networks."""
    if not networks:
        return headers
    return {
        family: tuple(region.narrowed(daddr=addresses) for region in regions)
        for family, regions in headers.items()
        if (addresses := _bounds(networks, family))
    }


def _resets(uplink: Uplink) -> Mapping[int, tuple[Region, ...]]:
    """Return the RSTs of closed ports: to each host that some TCP answer is for, by family."""
    sources = [answer.source for answer in uplink.answer if answer.port is not None and answer.port.protocol == "tcp"]
    if not sources:
        return {}
    reset = Region({"protocol": points(TCP), "fragment": points(0), "tcp.rst": points(1)})
    networks = [network for listed in sources for network in listed] if all(sources) else []
    return _to_sources({4: (reset,), 6: (reset,)}, networks)


def _uplink(name: str, uplink: Uplink, policy: Policy, ports: Sequence[str]) -> UplinkSpec:
    resolver = uplink.resolver
    resolver_spec = None
    if resolver is not None:
        listen = tuple(
            (endpoint.address.version, parse_address(str(endpoint.address)), endpoint.port)
            for endpoint in resolver.listen
        )
        resolver_spec = ResolverSpec(
            listen,
            resolver.user.number,
            ("uplink", name, "resolver"),
            {family: tuple(_upstream(resolver, family)) for family in IP_FAMILIES},
        )
    return UplinkSpec(
        name,
        uplink.devices,
        uplink.mark.value,
        uplink.mark.mask,
        uplink.table,
        tuple(ports),
        (
            *(exemption(entry, name) for entry in uplink.exempt),
            *(_lan(key, lan) for key, lan in policy.lan.items() if lan.uplink == name),
        ),
        tuple(_service(key, service) for key, service in policy.service.items() if service.uplink == name),
        tuple(_reply(name, answer) for answer in uplink.answer),
        _resets(uplink),
        resolver_spec,
        ("uplink", name),
        forwards=tuple(_forward(key, policy) for key, each in policy.forward.items() if each.uplink == name),
        publishes=tuple(_publish(key, each) for key, each in policy.publish.items() if each.uplink == name),
        addresses={family: _bounds(uplink.addresses, family) for family in IP_FAMILIES},
        bpdus=tuple(region.narrowed(socket=points(0)) for region in EXEMPTIONS["stp"][1]) if uplink.stp else (),
        clat=_clat(name, uplink),
    )


def _clat(name: str, uplink: Uplink) -> ClatSpec | None:
    """Return the translator, whose packets are for the NAT64 prefix (RFC 6877 6.3)."""
    if uplink.clat is None:
        return None
    network = tuple(device for device in uplink.devices if device != uplink.clat.device)
    return ClatSpec(uplink.clat.device, _bounds((uplink.clat.prefix,), 6), network, ("uplink", name, "clat"))


def _upstream(resolver: Resolver, family: int) -> Iterator[Region]:
    """Yield the queries of a resolver: to port 53 if it learns its servers, and to each server of the policy."""
    queries = Region({"protocol": points(TCP, UDP), "fragment": points(0)})
    if not resolver.servers:
        yield queries.narrowed(dport=points(DNS_PORT))
    for server in dict.fromkeys((*resolver.servers, *itertools.chain(*resolver.domains.values()))):
        if server.address.version == family:
            address = points(parse_address(str(server.address)))
            protocols = points(TCP) if server.tls_name else points(TCP, UDP)
            yield queries.narrowed(daddr=address, dport=points(server.port), protocol=protocols)


def _forward(name: str, policy: Policy) -> ForwardSpec:
    """Return the packets of a forward. Packets to a network in the `source` of a forward stay inside."""
    forward = policy.forward[name]
    earlier = itertools.takewhile(lambda key: key != name, policy.forward)
    precedence = [policy.forward[key] for key in earlier if policy.forward[key].uplink != forward.uplink]
    arriving, leaving, elsewhere, inside_ranges = {}, {}, {}, {}
    for family in forward.families:
        sources, destinations = _bounds(forward.source, family), _bounds(forward.to, family)
        to = {"daddr": destinations} if forward.to else {}
        ports = _ports(forward.ports) or (Region(),)
        leaving[family] = tuple(Region({**region.fields, **to}) for region in ports)
        source = {"saddr": sources} if forward.source else {}
        arriving[family] = tuple(Region({**region.fields, **source}) for region in leaving[family])
        inside = _bounds([net for other in policy.forward.values() for net in other.source], family)
        inside_ranges[family] = inside
        excluded_regions = [Region({"daddr": inside})] if inside else []
        for other in (other for other in precedence if family in other.families):
            fields = {"saddr": _bounds(other.source, family), "daddr": _bounds(other.to, family)}
            networks = {field: ranges for field, ranges in fields.items() if ranges}
            for region in _ports(other.ports) or (Region(),):
                excluded_regions.append(Region({**region.fields, **networks}, iifname=other.devices))
        elsewhere[family] = tuple(excluded_regions)
    origin = ("forward", name)
    return ForwardSpec(
        name,
        origin,
        forward.devices,
        arriving,
        leaving,
        elsewhere,
        inside_ranges,
        forward.masquerade,
    )


def _publish(name: str, publish: objects.Publish) -> PublishSpec:
    return PublishSpec(name, ("publish", name), publish.to, _ports((publish.port,), "sport")[0])


def _bounds(networks: Iterable[objects.Network], family: int) -> Ranges:
    """Return the addresses of the networks of one family."""
    return merge_ranges(
        (int(network.network_address), int(network.broadcast_address))
        for network in networks
        if network.version == family
    )


def build_spec(policy: Policy, ports: Mapping[str, Sequence[str]] | None = None) -> Spec:
    """Return the specification of a policy. `ports`: bridge of an uplink -> its ports."""
    bridge_ports = ports or {}
    uplinks = tuple(
        _uplink(name, uplink, policy, [port for device in uplink.devices for port in bridge_ports.get(device, ())])
        for name, uplink in policy.uplink.items()
    )
    # lo is inside of itself, and its packets never leave: no case of P3 can use it as a device.
    return Spec(uplinks, tuple(device for device in policy.inside if device != "lo"))
