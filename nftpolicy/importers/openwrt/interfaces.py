# SPDX-License-Identifier: BSD-2-Clause
"""Interfaces of UCI's `network`: the device, addresses and routing tables of each.

Addresses from DHCP or a modem are assumed: documentation addresses (RFC 5737, RFC 3849), so that
they cannot be confused with real ones. `Interface.assumptions` lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, NetmaskValueError

from attrs import Factory, evolve, field, frozen

from .uci_parser import ParsedSection

Faults = list[tuple[ParsedSection, str, str]]  # section, option, fault
_Address = IPv4Interface | IPv6Interface
_Gateway = IPv4Address | IPv6Address

# Protocols that bring a default route from the network behind the device.
LEASE_PROTOCOLS_IPV4 = frozenset(
    {"dhcp", "pppoe", "pppoa", "pptp", "ppp", "3g", "qmi", "mbim", "ncm", "wwan", "modemmanager", "ipcp"}
)
LEASE_PROTOCOLS_IPV6 = frozenset({"dhcpv6"})
MODEM_PROTOCOLS = frozenset({"3g", "qmi", "mbim", "ncm", "wwan", "modemmanager", "hnet"})
SESSION_PROTOCOLS = frozenset({"pppoe", "pppoa", "pptp", "ppp", "3g"})  # the device is named PROTOCOL-INTERFACE
# Protocols of tunnels: their packets use another network that is reached by an uplink.
TUNNEL_PROTOCOLS = frozenset({
    "wireguard", "gre", "gretap", "grev6", "grev6tap", "vxlan", "vxlan6", "l2tp", "6in4", "6to4",
                     "6rd",
                     "ipip", "ipip6", "vti", "vtiv6", "xfrm", "map", "dslite", "464xlat", "openconnect", "vpnc", "sstp",
                     "openvpn", "tunneldigger", "gluon_mesh", "batadv", "batadv_hardif", "batadv_vlan"})  # fmt: skip
# Prefixes of device names that the handlers of these protocols form with the interface name.
_NAMED = {"l2tp": "l2tp-", "6in4": "6in4-", "6to4": "6to4-", "6rd": "6rd-", "gre": "gre4-", "gretap": "gre4t-",
          "grev6": "gre6-", "grev6tap": "gre6t-", "ipip": "ipip-", "dslite": "ds-", "vti": "", "map": "map-",
          "openconnect": "vpn-", "vpnc": "vpn-", "464xlat": "464-", "sstp": "sstp-"}  # fmt: skip


@frozen
class Interface:
    """Logical interface. `device` sends its packets, `lower_device` is the device below a session.

    `order` counts the interfaces of the file from 0. `tables` has no entry for a family without one.
    """

    name: str
    section: ParsedSection
    proto: str
    device: str = ""
    lower_device: str = ""
    order: int = 0
    addresses: tuple[_Address, ...] = ()
    gateways: tuple[_Gateway, ...] = ()
    tables: Mapping[int, int] = Factory(dict)
    up: bool = True
    assumptions: tuple[str, ...] = field(default=())

    def address(self, family: int) -> _Address | None:
        """Return its first address of a family; None if it has none."""
        return next((address for address in self.addresses if address.version == family), None)


@frozen
class NetworkConfig:
    """Interfaces and devices. `ifindex` is assumed: lo is 1, the other devices in file order."""

    interfaces: tuple[Interface, ...]
    ipv6_devices: frozenset[str]
    ports: Mapping[str, tuple[str, ...]]
    ifindex: Mapping[str, int]

    def find_interface(self, name: str) -> Interface | None:
        """Return the interface of that name; None if there is none."""
        return next((interface for interface in self.interfaces if interface.name == name), None)


def read_network(
    sections: Sequence[ParsedSection], wireless: Iterable[ParsedSection] = ()
) -> tuple[NetworkConfig, Faults]:
    """Return the interfaces, and the options that netifd would ignore: (section, option, fault)."""
    faults: Faults = []
    radio_devices = _radio_devices(wireless)
    interfaces: list[Interface] = []
    named_sections = [section for section in sections if section.type == "interface" and section.name]
    for order, section in enumerate(named_sections):
        interfaces.append(_interface(section, order, radio_devices, faults))
    by_name = {interface.name: interface for interface in interfaces}
    interfaces = [_resolve_alias(interface, by_name) for interface in interfaces]
    devices = [section for section in sections if section.type == "device"]
    ports = {
        section.get("name"): (*section.words("ports"), *section.words("ifname"))
        for section in devices
        if section.get("type") == "bridge"
    }
    for section in sections:
        if section.type == "interface" and section.get("type") == "bridge" and section.words("ifname"):
            ports[f"br-{section.name}"] = section.words("ifname")
    ordered = [
        "lo",
        *(port for bridge_ports in ports.values() for port in bridge_ports),
        *(interface.device for interface in interfaces if interface.device),
    ]
    ifindex = {name: index for index, name in enumerate(dict.fromkeys(ordered), 1)}
    ipv6 = frozenset(section.get("name") for section in devices if section.get("ipv6") and section.flag("ipv6"))
    return NetworkConfig(tuple(interfaces), ipv6, ports, ifindex), faults


def _radio_devices(wireless: Iterable[ParsedSection]) -> dict[str, str]:
    """Return interface -> device of its radio, from UCI or from OpenWrt's naming (phyN-MODE)."""
    devices: dict[str, str] = {}
    counts: dict[tuple[str, str], int] = {}
    modes = {"ap": "ap", "sta": "sta", "mesh": "mesh", "adhoc": "ibss", "monitor": "mon"}
    for section in wireless:
        if section.type != "wifi-iface" or section.flag("disabled"):
            continue
        radio, mode = section.get("device"), modes.get(section.get("mode"), "ap")
        number = counts.get((radio, mode), 0)
        counts[radio, mode] = number + 1
        name = section.get("ifname") or f"phy{radio.removeprefix('radio') or '0'}-{mode}{number}"
        for interface in section.words("network"):
            devices.setdefault(interface, name)
    return devices


def _interface(section: ParsedSection, order: int, radio_devices: Mapping[str, str], faults: Faults) -> Interface:
    name, proto = section.name or "", section.get("proto", "none")
    device, lower_device = _device(section, name, proto, radio_devices)
    tables = {}
    for family, option in ((4, "ip4table"), (6, "ip6table")):
        if section.get(option):
            number = table_number(section.get(option))
            if number is None:
                fault = f"netifd does not know table {section.get(option)!r} and ignores the option"
                faults.append((section, option, fault))
            else:
                tables[family] = number
    addresses, gateways = _static_addresses(section, faults) if proto == "static" else ([], [])
    up = section.flag("auto", True) and not section.flag("disabled")
    return Interface(name, section, proto, device, lower_device, order, tuple(addresses), tuple(gateways), tables, up)


def _device(section: ParsedSection, name: str, proto: str, radio_devices: Mapping[str, str]) -> tuple[str, str]:
    devices = section.words("device") or section.words("ifname")
    first = devices[0] if devices else radio_devices.get(name, "")
    if proto in SESSION_PROTOCOLS:
        return f"{proto}-{name}"[:15], "" if first.startswith("/dev/") else first
    if proto == "wireguard":
        return name, ""
    if proto in _NAMED:
        return f"{_NAMED[proto]}{name}"[:15], first
    if section.get("type") == "bridge":
        return f"br-{name}"[:15], ""
    if first.startswith("/"):  # control device of a modem; the network device is assumed
        return "wwan0", ""
    if not first and proto in ("batadv", "vxlan", "vxlan6", "gluon_mesh"):
        return name, ""
    return first, ""


def _resolve_alias(interface: Interface, by_name: Mapping[str, Interface]) -> Interface:
    """Return the interface, with the device that an alias such as @wan refers to."""
    followed: set[str] = set()
    device = interface.device
    while device.startswith("@") and device not in followed:
        followed.add(device)
        other = by_name.get(device[1:])
        device = other.device if other else ""
    return evolve(interface, device="" if device.startswith("@") else device)


def _static_addresses(section: ParsedSection, faults: Faults) -> tuple[list[_Address], list[_Gateway]]:
    addresses: list[_Address] = []
    gateways: list[_Gateway] = []
    mask = section.get("netmask")
    for option, parse_prefix in (("ipaddr", IPv4Interface), ("ip6addr", IPv6Interface)):
        for address in section.words(option):
            prefix = f"{address}/{mask}" if option == "ipaddr" and "/" not in address and mask else address
            try:
                addresses.append(parse_prefix(prefix))
            except (AddressValueError, NetmaskValueError, ValueError):
                faults.append((section, option, f"netifd cannot parse {prefix!r} and ignores the address"))
    for option, parse_address in (("gateway", IPv4Address), ("ip6gw", IPv6Address)):
        for address in section.words(option)[:1]:
            try:
                gateways.append(parse_address(address))
            except (AddressValueError, ValueError):
                faults.append((section, option, f"netifd cannot parse {address!r}, so there is no default route"))
    return addresses, gateways


def add_assumed_leases(network_config: NetworkConfig) -> NetworkConfig:
    """Return the network with assumed addresses where a lease would bring them."""
    interfaces = []
    count = 0
    for interface in network_config.interfaces:
        assumptions: list[str] = []
        addresses, gateways = list(interface.addresses), list(interface.gateways)
        if interface.up and interface.device and interface.proto in LEASE_PROTOCOLS_IPV4:
            count += 1
            base = int(IPv4Address("192.0.2.0")) + 16 * (count % 16)
            addresses.append(IPv4Interface((base + 2, 28)))
            gateways.append(IPv4Address(base + 1))
            assumptions.append(
                f"{interface.name}: address {addresses[-1]} and router {gateways[-1]}, as a lease may bring them"
            )
        if interface.up and interface.device and interface.proto in LEASE_PROTOCOLS_IPV6:
            count += 1
            prefix = int(IPv6Address("2001:db8:1::")) + (count << 80)
            addresses.append(IPv6Interface((prefix + 2, 64)))
            gateways.append(IPv6Address("fe80::1"))
            assumptions.append(
                f"{interface.name}: address {addresses[-1]} and router {gateways[-1]}, as the network may advertise"
            )
        interfaces.append(
            evolve(interface, addresses=tuple(addresses), gateways=tuple(gateways), assumptions=tuple(assumptions))
        )
    return evolve(network_config, interfaces=tuple(interfaces))


NAMED_TABLES = {"main": 254, "local": 255, "default": 253, "prelocal": 128}  # OpenWrt's /etc/iproute2/rt_tables


def table_number(text: str, names: Mapping[str, int] = NAMED_TABLES) -> int | None:
    """Return the number of a routing table; None if netifd does not know it (0 is unknown, too)."""
    if text in names:
        return names[text]
    number = parse_unsigned(text)
    return number or None


def parse_unsigned(text: str) -> int | None:
    """Return the number that strtoul(3) with base 0 parses, as `unsigned int`.

    None if the text has other characters. After a 0 the number is octal, a minus sign wraps, and only
    the lower 32 bits are kept.
    """
    plain = text.strip(" \t\n\r\v\f") if text[:1].isspace() else text
    sign, digits = (-1, plain[1:]) if plain[:1] == "-" else (1, plain.removeprefix("+"))
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[:1] == "0" and len(digits) > 1 else 10
    digits = digits[2:] if base == 16 else digits
    if not digits or len(digits) > 40 or not digits.isascii() or not digits.isalnum():
        return None
    try:
        value = int(digits, base)
    except ValueError:
        return None
    return sign * min(value, 2**64 - 1) & 0xFFFFFFFF
