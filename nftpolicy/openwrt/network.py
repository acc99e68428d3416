# SPDX-License-Identifier: BSD-2-Clause
"""The interfaces of UCI's `network`: which device each one is, its addresses and its routing tables.

Addresses that DHCP or a modem would bring are assumed: documentation addresses (RFC 5737, RFC 3849), so that
nobody takes them for real ones. `Interface.assumed` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, NetmaskValueError

from attrs import Factory, evolve, field, frozen

from .uci_in import Section

# Protocols that bring a default route from the network behind the device.
LEASED4 = frozenset(
    {"dhcp", "pppoe", "pppoa", "pptp", "ppp", "3g", "qmi", "mbim", "ncm", "wwan", "modemmanager", "ipcp"}
)
LEASED6 = frozenset({"dhcpv6"})
MODEMS = frozenset({"3g", "qmi", "mbim", "ncm", "wwan", "modemmanager", "hnet"})
SESSIONS = frozenset({"pppoe", "pppoa", "pptp", "ppp", "3g"})  # the device is named PROTOCOL-INTERFACE
# Protocols whose device leads through another network that is reached by an uplink.
TUNNELS = frozenset({"wireguard", "gre", "gretap", "grev6", "grev6tap", "vxlan", "vxlan6", "l2tp", "6in4", "6to4",
                     "6rd",
                     "ipip", "ipip6", "vti", "vtiv6", "xfrm", "map", "dslite", "464xlat", "openconnect", "vpnc", "sstp",
                     "openvpn", "tunneldigger", "gluon_mesh", "batadv", "batadv_hardif", "batadv_vlan"})  # fmt: skip
# The device of these is named after the protocol and the interface, as their handlers do.
_NAMED = {"l2tp": "l2tp-", "6in4": "6in4-", "6to4": "6to4-", "6rd": "6rd-", "gre": "gre4-", "gretap": "gre4t-",
          "grev6": "gre6-", "grev6tap": "gre6t-", "ipip": "ipip-", "dslite": "ds-", "vti": "", "map": "map-",
          "openconnect": "vpn-", "vpnc": "vpn-", "464xlat": "464-", "sstp": "sstp-"}  # fmt: skip


@frozen
class Interface:
    """A logical interface. `devices` are those that packets leave by, `below` is the one a session runs over.

    `order` counts the interfaces of the file from 0. Routing tables are 0 where the configuration names none.
    """

    name: str
    section: Section
    proto: str
    device: str = ""
    below: str = ""
    order: int = 0
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    gateways: tuple[IPv4Address | IPv6Address, ...] = ()
    tables: Mapping[int, int] = Factory(dict)
    up: bool = True
    assumed: tuple[str, ...] = field(default=())

    def address(self, family: int) -> IPv4Interface | IPv6Interface | None:
        """Its first address of a family."""
        return next((one for one in self.addresses if one.version == family), None)


@frozen
class Network:
    """All of it. `ifindex` is each device's number as it is assumed: 1 is lo, the others in their order."""

    interfaces: tuple[Interface, ...]
    ipv6_devices: frozenset[str]
    ports: Mapping[str, tuple[str, ...]]
    ifindex: Mapping[str, int]

    def named(self, name: str) -> Interface | None:
        """The interface of that name."""
        return next((one for one in self.interfaces if one.name == name), None)


def network(
    sections: Sequence[Section], wireless: Iterable[Section] = ()
) -> tuple[Network, list[tuple[Section, str, str]]]:
    """What `network` says, and what netifd would drop of it: (section, option, what is wrong)."""
    faults: list[tuple[Section, str, str]] = []
    radio = _by_radio(wireless)
    found: list[Interface] = []
    for order, section in enumerate(one for one in sections if one.type == "interface" and one.name):
        one = _interface(section, order, radio, faults)
        found.append(one)
    by_name = {one.name: one for one in found}
    found = [_aliased(one, by_name) for one in found]
    devices = [one for one in sections if one.type == "device"]
    ports = {
        one.get("name"): (*one.words("ports"), *one.words("ifname")) for one in devices if one.get("type") == "bridge"
    }
    ports |= {f"br-{one.name}": one.words("ifname") for one in sections
              if one.type == "interface" and one.get("type") == "bridge" and one.words("ifname")}  # fmt: skip
    ordered = [
        "lo",
        *(port for listed in ports.values() for port in listed),
        *(one.device for one in found if one.device),
    ]
    ifindex = {name: at for at, name in enumerate(dict.fromkeys(ordered), 1)}
    ipv6 = frozenset(one.get("name") for one in devices if one.get("ipv6") and one.flag("ipv6"))
    return Network(tuple(found), ipv6, ports, ifindex), faults


def _by_radio(wireless: Iterable[Section]) -> dict[str, str]:
    """Interface -> the device that a radio brings it, where UCI tells or OpenWrt's naming (phyN-MODEM) does."""
    found: dict[str, str] = {}
    counts: dict[tuple[str, str], int] = {}
    modes = {"ap": "ap", "sta": "sta", "mesh": "mesh", "adhoc": "ibss", "monitor": "mon"}
    for one in wireless:
        if one.type != "wifi-iface" or one.flag("disabled"):
            continue
        radio, mode = one.get("device"), modes.get(one.get("mode"), "ap")
        number = counts.get((radio, mode), 0)
        counts[radio, mode] = number + 1
        name = one.get("ifname") or f"phy{radio.removeprefix('radio') or '0'}-{mode}{number}"
        for interface in one.words("network"):
            found.setdefault(interface, name)
    return found


def _interface(section: Section, order: int, radio: Mapping[str, str], faults: list) -> Interface:  # type: ignore[type-arg]
    name, proto = section.name or "", section.get("proto", "none")
    device, below = _device(section, name, proto, radio)
    tables = {}
    for family, option in ((4, "ip4table"), (6, "ip6table")):
        if section.get(option):
            number = table(section.get(option))
            if number is None:
                said = f"netifd knows no table {section.get(option)!r}, so it is as if this were not there"
                faults.append((section, option, said))
            else:
                tables[family] = number
    addresses, gateways = _static(section, faults) if proto == "static" else ([], [])
    up = section.flag("auto", True) and not section.flag("disabled")
    return Interface(name, section, proto, device, below, order, tuple(addresses), tuple(gateways), tables, up)


def _device(section: Section, name: str, proto: str, radio: Mapping[str, str]) -> tuple[str, str]:
    named = section.words("device") or section.words("ifname")
    first = named[0] if named else radio.get(name, "")
    if proto in SESSIONS:
        return f"{proto}-{name}"[:15], "" if first.startswith("/dev/") else first
    if proto == "wireguard":
        return name, ""
    if proto in _NAMED:
        return f"{_NAMED[proto]}{name}"[:15], first
    if section.get("type") == "bridge":
        return f"br-{name}"[:15], ""
    if first.startswith("/"):  # a modem's control device; its network device is the first of its kind
        return "wwan0", ""
    if not first and proto in ("batadv", "vxlan", "vxlan6", "gluon_mesh"):
        return name, ""
    return first, ""


def _aliased(one: Interface, by_name: Mapping[str, Interface]) -> Interface:
    """`@wan` is the device of interface wan."""
    seen: set[str] = set()
    device = one.device
    while device.startswith("@") and device not in seen:
        seen.add(device)
        other = by_name.get(device[1:])
        device = other.device if other else ""
    return evolve(one, device="" if device.startswith("@") else device)


def _static(section: Section, faults: list) -> tuple[list, list]:  # type: ignore[type-arg]
    addresses: list[IPv4Interface | IPv6Interface] = []
    gateways: list[IPv4Address | IPv6Address] = []
    mask = section.get("netmask")
    for option, make in (("ipaddr", IPv4Interface), ("ip6addr", IPv6Interface)):
        for text in section.words(option):
            whole = f"{text}/{mask}" if option == "ipaddr" and "/" not in text and mask else text
            try:
                addresses.append(make(whole))
            except (AddressValueError, NetmaskValueError, ValueError):
                faults.append((section, option, f"netifd can't read {whole!r} and leaves the address out"))
    for option, take in (("gateway", IPv4Address), ("ip6gw", IPv6Address)):
        for text in section.words(option)[:1]:
            try:
                gateways.append(take(text))
            except (AddressValueError, ValueError):
                faults.append((section, option, f"netifd can't read {text!r}, so there is no default route"))
    return addresses, gateways


def with_leases(found: Network) -> Network:
    """The same with addresses where a lease would bring them."""
    made = []
    count = 0
    for one in found.interfaces:
        said: list[str] = []
        addresses, gateways = list(one.addresses), list(one.gateways)
        if one.up and one.device and one.proto in LEASED4:
            count += 1
            base = int(IPv4Address("192.0.2.0")) + 16 * (count % 16)
            addresses.append(IPv4Interface((base + 2, 28)))
            gateways.append(IPv4Address(base + 1))
            said.append(
                f"{one.name}: the address {addresses[-1]} and the router {gateways[-1]}, as a lease may bring them"
            )
        if one.up and one.device and one.proto in LEASED6:
            count += 1
            prefix = int(IPv6Address("2001:db8:1::")) + (count << 80)
            addresses.append(IPv6Interface((prefix + 2, 64)))
            gateways.append(IPv6Address("fe80::1"))
            said.append(
                f"{one.name}: the address {addresses[-1]} and the router {gateways[-1]}, as the network may tell"
            )
        made.append(evolve(one, addresses=tuple(addresses), gateways=tuple(gateways), assumed=tuple(said)))
    return evolve(found, interfaces=tuple(made))


NAMED_TABLES = {"main": 254, "local": 255, "default": 253, "prelocal": 128}  # OpenWrt's /etc/iproute2/rt_tables


def table(text: str, names: Mapping[str, int] = NAMED_TABLES) -> int | None:
    """The number of a routing table, or None where netifd knows none (0 is none either)."""
    if text in names:
        return names[text]
    number = unsigned(text)
    return number or None


def unsigned(text: str) -> int | None:
    """What strtoul(3) with base 0 and `unsigned int` make of a text that must be a number to its end.

    Octal behind a 0, a minus sign wraps, and of more than 32 bits the lower ones stay.
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


def local_names(found: Network) -> Iterator[str]:
    """Every device of an interface but lo, once."""
    yield from dict.fromkeys(one.device for one in found.interfaces if one.device and one.device != "lo")
