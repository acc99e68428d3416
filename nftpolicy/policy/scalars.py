# SPDX-License-Identifier: BSD-2-Clause
"""Parsers of single TOML values: each function takes a TOML value and returns a typed value.

All raise ValueError; its message names the expected value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network

from attrs import evolve

from . import vocabulary
from .errors import did_you_mean, quote_excerpt
from .objects import DNS_PORT, DNS_TLS_PORT, Address, Answer, Listen, Network, Port, Server

# The kernel's dev_valid_name(): 15 bytes, no "/", ":" or white space. The characters here are
# those that every tool involved can represent.
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}\Z")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,23}\Z")
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})\Z")
# Cgroup names of systemd, systemd.unit(5). "cgroup." begins the kernel's own files.
_CGROUP_PART = r"(?!\.{1,2}(?:/|\Z)|cgroup\.)[A-Za-z0-9_.:@\\-]{1,255}"
_CGROUP = re.compile(rf"{_CGROUP_PART}(?:/{_CGROUP_PART}){{0,31}}\Z")
_PORT = re.compile(r"(tcp|udp)/([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")
_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?\Z")
# ADDRESS:PORT, [ADDRESS]:PORT and [ADDRESS%DEVICE]:PORT.
_WITH_PORT = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*)):([0-9]{1,5})\Z")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
_TLS = "tls://"
MAX_PORT = 65535
# This network, loopback, link-local addresses, groups and reserved ones (RFC 6890, RFC 4291).
_NOT_ROUTED = tuple(
    map(
        ip_network,
        ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8"),
    )
)


def parse_text(item: object) -> str:
    """Return a string."""
    if not isinstance(item, str):
        raise ValueError(f"expected a string in quotes, got {describe_value(item)}")
    return item


def parse_integer(item: object) -> int:
    """Return a whole number."""
    if isinstance(item, bool) or not isinstance(item, int):
        raise ValueError(f"expected a whole number, got {describe_value(item)}")
    return item


def parse_boolean(item: object) -> bool:
    """Return a boolean."""
    if not isinstance(item, bool):
        raise ValueError(f"expected true or false, got {describe_value(item)}")
    return item


def describe_value(item: object) -> str:
    """Return the TOML type of a value and an excerpt of it."""
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a decimal number",
        list: "a list",
        dict: "a table",
        str: "a string",
    }
    kind = kinds.get(type(item), "a date")
    return kind if isinstance(item, dict | list) else f"{kind} ({quote_excerpt(item)})"


def parse_name(item: object) -> str:
    """Return the name of a policy, uplink or service; it becomes part of nft object names."""
    if not _NAME.match(parse_text(item)):
        raise ValueError(
            f"{quote_excerpt(item)} is not a valid name; use a letter, then up to 23 letters, digits, '-' or '_'"
        )
    return parse_text(item)


def parse_device(item: object) -> str:
    """Return the exact name of a network device."""
    if parse_text(item).endswith("*"):
        raise ValueError(
            f"{quote_excerpt(item)} is a pattern, which only 'inside' accepts; name each device of an uplink"
        )
    if not _DEVICE.match(parse_text(item)):
        raise ValueError(
            f"{quote_excerpt(item)} is not a valid device name; use up to 15 letters, digits, '.', '_' or '-'"
        )
    return parse_text(item)


def parse_device_pattern(item: object) -> str:
    """Return a device name, or a prefix of device names followed by "*"."""
    stem = parse_text(item)[:-1] if parse_text(item).endswith("*") else parse_text(item)
    if item == "*":
        raise ValueError("'*' matches every device and leaves none to guard; name the devices inside")
    parse_device(stem)
    return parse_text(item)


def matching_pattern(device: str, patterns: Iterable[str]) -> str | None:
    """Return the first of the patterns that matches the device, or each device of a pattern; None without one."""
    for pattern in patterns:
        if device == pattern or (pattern[-1] == "*" and device.startswith(pattern[:-1])):
            return pattern
    return None


def parse_address(item: object) -> Address:
    """Return an IPv4 or IPv6 address."""
    plain = parse_text(item)
    try:
        parsed = ip_address(plain)
    except ValueError:
        raise ValueError(f"expected an IPv4 or IPv6 address, got {quote_excerpt(item)}") from None
    if "%" in plain:
        raise ValueError(f"expected an address without '%' and a device, got {quote_excerpt(item)}")
    _refuse_embedded_ipv4(ip_network(parsed))
    return parsed


def parse_network(item: object) -> Network:
    """Return the network of an address or ADDRESS/LENGTH."""
    plain = parse_text(item)
    if _HOST_NAME.match(plain):
        raise ValueError(
            f"{quote_excerpt(item)} is a name, and DNS decides which addresses it has: no proof can rely on it; "
            "write the addresses (getent ahosts NAME lists them), or the network of the provider"
        )
    try:
        parsed = ip_network(plain)
    except ValueError as error:
        raise ValueError(f"expected a network such as 192.0.2.0/24: {str(error)[:120]}") from None
    if "%" in plain:
        raise ValueError(f"expected a network without '%' and a device, got {quote_excerpt(item)}")
    _refuse_embedded_ipv4(parsed)
    return parsed


# IPv4 addresses in IPv6 notation (RFC 4291 2.5.5). No packet carries them, and each tool formats
# them differently.
_MAPPED, _COMPATIBLE = IPv6Network("::ffff:0:0/96"), IPv6Network("::/96")
_IPV4_MASK = 0xFFFFFFFF
_LAST_SHORT_ADDRESS = 0xFFFF  # ::1 and the like are IPv6


def _refuse_embedded_ipv4(net: Network) -> None:
    if not isinstance(net, IPv6Network):
        return
    low = int(net.network_address)
    if net.subnet_of(_MAPPED) or (net.subnet_of(_COMPATIBLE) and low > _LAST_SHORT_ADDRESS):
        raise ValueError(f"{net} is IPv4 in IPv6 notation; write {IPv4Address(low & _IPV4_MASK)}")


def is_routed(network: Network) -> bool:
    """Return True if a network may route all addresses of a prefix to this machine."""
    return not any(network.overlaps(reserved) for reserved in _NOT_ROUTED if reserved.version == network.version)


def has_hosts(network: Network) -> bool:
    """Return True if some address of a network is one with which another host sends packets."""
    nets = (net for net in _NOT_ROUTED if not net.is_link_local and net.version == network.version)
    first, last = int(network.network_address), int(network.broadcast_address)
    return not any(int(net.network_address) <= first and last <= int(net.broadcast_address) for net in nets)


def parse_server(item: object) -> Server:
    """Return a DNS server: its address, with a port if it is not 53; a link-local IPv6 address needs %DEVICE.

    One that is queried over TLS is tls://ADDRESS#NAME, with a port if it is not 853.
    """
    if not parse_text(item).startswith(_TLS):
        return _parse_server(parse_text(item), DNS_PORT)
    host, _, name = parse_text(item).removeprefix(_TLS).partition("#")
    if not _DOMAIN.match(name):
        raise ValueError(
            f"{quote_excerpt(item)}: a server that is queried over TLS needs the name in its certificate, in lower "
            'case: "tls://192.0.2.53#dns.example"'
        )
    return evolve(_parse_server(host, DNS_TLS_PORT), tls_name=name)


def _parse_server(item: str, default_port: int) -> Server:
    with_port = _WITH_PORT.match(item)
    host, port = (with_port[1] or with_port[2], int(with_port[3])) if with_port else (item, default_port)
    if "#" in host or "@" in host:  # as dnsmasq and unbound spell them
        raise ValueError(
            f'{quote_excerpt(item)}: write a port as "192.0.2.1:5353" or "[2001:db8::1]:5353", and a server over TLS '
            'as "tls://192.0.2.53#dns.example"'
        )
    if not 1 <= port <= MAX_PORT:
        raise ValueError(f"{item}: a port is 1 to 65535")
    plain, _, zone = host.partition("%")
    parsed = parse_address(plain)
    if parsed.is_link_local and parsed.version == 6 and not zone:
        raise ValueError(f'{item} is a link-local address and needs its device: "{parsed}%DEVICE"')
    if parsed.is_unspecified or parsed.is_multicast:
        raise ValueError(f"{parsed} cannot be the address of a DNS server")
    return Server(parsed, parse_device(zone) if zone else None, port)


def parse_domain(item: object) -> str:
    """Return a domain of the DNS, without a dot at its end."""
    if not _DOMAIN.match(parse_text(item)):
        raise ValueError(
            f"{quote_excerpt(item)} is not a valid domain; write it in lower case, without '*' and without a dot at "
            'either end, such as "corp.example" (names with other letters: xn--...)'
        )
    return parse_text(item)


def parse_listen(item: object) -> Listen:
    """Return a listen address: ADDRESS:PORT or [IPV6]:PORT."""
    parts = _LISTEN.match(parse_text(item))
    if not parts:
        raise ValueError(f'expected "127.0.0.1:54" or "[::1]:54", got {quote_excerpt(item)}')
    parsed, port = parse_address(parts[1] or parts[2]), int(parts[3])
    if not 1 <= port <= MAX_PORT:
        raise ValueError(f"{item}: a port is 1 to 65535")
    if parsed.is_unspecified or parsed.is_multicast:
        raise ValueError(
            f"{item}: a resolver on every address would be open to the network; name one address of this machine"
        )
    return Listen(parsed, port)


def parse_port(item: object) -> Port:
    """Return ports: tcp/PORT, udp/PORT or udp/LOW-HIGH."""
    parts = _PORT.match(parse_text(item))
    if not parts:
        raise ValueError(f'expected a port such as "udp/10000" or "tcp/7000-7010", got {quote_excerpt(item)}')
    low, high = int(parts[2]), int(parts[3] or parts[2])
    if not 1 <= low <= high <= MAX_PORT:
        raise ValueError(f"{item}: ports are 1 to 65535, the lower one first")
    return Port(parts[1], low, high)


def parse_destination_port(item: object) -> Port:
    """Return ports as `parse_port`, "ping", or all packets of a protocol of tunnels."""
    if parse_text(item) in ("ping", *vocabulary.TUNNEL_PROTOCOLS):
        return Port(parse_text(item), 0, 0)
    _refuse_group_protocol(item)
    if parse_text(item) in vocabulary.UNSUPPORTED_TUNNELS:
        raise ValueError(vocabulary.UNSUPPORTED_TUNNELS[parse_text(item)])
    try:
        return parse_port(item)
    except ValueError as error:
        words = ("ping", *vocabulary.TUNNEL_PROTOCOLS)
        choices = f"{', '.join(words)}{did_you_mean(parse_text(item), words)}"
        raise ValueError(f"{error}; or {choices}; for other protocols leave the key out, and narrow 'to'") from None


def _refuse_group_protocol(item: object) -> None:
    """Raise ValueError for a protocol that has no ports, and say what lets it pass."""
    groups = vocabulary.GROUP_PROTOCOLS.get(parse_text(item))
    if groups is not None:
        listed = ", ".join(f'"{group}"' for group in groups)
        raise ValueError(
            f"{quote_excerpt(item)} has no ports; write a [lan.NAME] without 'ports', with to = [{listed}] and the "
            "network of the other routers if it is private, and the program's user or group; its packets need no mark"
        )


def parse_answer(item: object) -> Answer:
    """Return an inbound service by name or port."""
    if parse_text(item) == "ping":
        return Answer("ping", None)
    _refuse_group_protocol(item)
    if parse_text(item) in vocabulary.UNSUPPORTED_ANSWERS:
        raise ValueError(vocabulary.UNSUPPORTED_ANSWERS[parse_text(item)])
    try:
        return Answer(parse_text(item), parse_port(vocabulary.NAMED_ANSWERS.get(parse_text(item), item)))
    except ValueError:
        suggestion = did_you_mean(parse_text(item), vocabulary.NAMED_ANSWERS)
        choices = f'{", ".join(vocabulary.NAMED_ANSWERS)}, "tcp/PORT" or "udp/PORT"{suggestion}'
        if " " in parse_text(item):
            choices += '; for some networks only, { name = "tcp/PORT", source = ["NETWORK"] }'
        raise ValueError(f"{quote_excerpt(item)} is not a valid service to answer; use {choices}") from None


def parse_cgroup(item: object) -> str:
    """Return the path of a cgroup below the root of cgroup v2."""
    plain = parse_text(item)
    if plain.startswith("/"):
        raise ValueError(f"{quote_excerpt(item)}: write the path below the root of cgroup v2, without a leading slash")
    if not _CGROUP.match(plain):
        raise ValueError(
            'expected the path of a cgroup such as "system.slice/openvpn.service", '
            f"got {quote_excerpt(item)}; each part has up to 255 letters, digits, "
            "'_', '-', '.', ':', '@' or '\\', and is neither '.' nor '..'"
        )
    return plain


def parse_keyword(item: object, table: dict[str, str], label: str) -> str:
    """Return a key of one of the tables of `vocabulary`; `label` names the table in the error."""
    if parse_text(item) not in table:
        _refuse_group_protocol(item)
        raise ValueError(
            f"{quote_excerpt(item)} is not a valid {label}{did_you_mean(parse_text(item), table)}; "
            f"use {', '.join(table)}"
        )
    return parse_text(item)
