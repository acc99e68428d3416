# SPDX-License-Identifier: BSD-2-Clause
"""Single values of a policy file: each function takes what TOML gave and returns a typed value.

All raise ValueError with a sentence that says what was expected.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network

from . import words
from .errors import nearest, quoted
from .objects import Address, Answer, Listen, Network, Port, Server

# The kernel's dev_valid_name(): 15 bytes, no "/", ":" or white space. We keep to the characters
# that every tool on the way can carry.
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}\Z")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,23}\Z")
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})\Z")
# What systemd calls its cgroups, systemd.unit(5). "cgroup." begins the kernel's own files.
_CGROUP_PART = r"(?!\.{1,2}(?:/|\Z)|cgroup\.)[A-Za-z0-9_.:@\\-]{1,255}"
_CGROUP = re.compile(rf"{_CGROUP_PART}(?:/{_CGROUP_PART}){{0,31}}\Z")
_PORT = re.compile(r"(tcp|udp)/([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")


def text(item: object) -> str:
    """A string."""
    if not isinstance(item, str):
        raise ValueError(f"expected a string in quotes, got {describe(item)}")
    return item


def integer(item: object) -> int:
    """A whole number."""
    if isinstance(item, bool) or not isinstance(item, int):
        raise ValueError(f"expected a whole number, got {describe(item)}")
    return item


def boolean(item: object) -> bool:
    """true or false."""
    if not isinstance(item, bool):
        raise ValueError(f"expected true or false, got {describe(item)}")
    return item


def describe(item: object) -> str:
    """A value in the words of TOML, short."""
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a decimal number",
        list: "a list",
        dict: "a table",
        str: "a string",
    }
    kind = kinds.get(type(item), "a date")
    return kind if isinstance(item, dict | list) else f"{kind} ({quoted(item)})"


def name(item: object) -> str:
    """The name of a policy, uplink or service: it becomes part of chain, set and counter names."""
    if not _NAME.match(text(item)):
        raise ValueError(f"{quoted(item)} is no name: a letter, then up to 23 letters, digits, '-' or '_'")
    return text(item)


def device(item: object) -> str:
    """A network device's name, exactly."""
    if text(item).endswith("*"):
        raise ValueError(f"{quoted(item)} is a pattern, which is for 'inside'; name an uplink's devices one by one")
    if not _DEVICE.match(text(item)):
        raise ValueError(f"{quoted(item)} is no device name (up to 15 letters, digits, '.', '_', '-')")
    return text(item)


def pattern(item: object) -> str:
    """A device's name, or the start of one and "*"."""
    stem = text(item)[:-1] if text(item).endswith("*") else text(item)
    if item == "*":
        raise ValueError("'*' alone would leave no device to guard; name the devices that are inside")
    device(stem)
    return text(item)


def address(item: object) -> Address:
    """An IPv4 or IPv6 address."""
    plain = text(item)
    try:
        found = ip_address(plain)
    except ValueError:
        raise ValueError(f"expected an IPv4 or IPv6 address, got {quoted(item)}") from None
    if "%" in plain:
        raise ValueError(f"{quoted(item)}: an address without '%' and a device is expected here")
    _no_ipv4_inside(ip_network(found))
    return found


def network(item: object) -> Network:
    """An address or ADDRESS/LENGTH."""
    plain = text(item)
    try:
        found = ip_network(plain)
    except ValueError as error:
        raise ValueError(f"expected a network such as 192.0.2.0/24: {str(error)[:120]}") from None
    if "%" in plain:
        raise ValueError(f"{quoted(item)}: a network without '%' and a device is expected here")
    _no_ipv4_inside(found)
    return found


# IPv4 written as IPv6 (RFC 4291 2.5.5). No packet carries it, and each tool writes it differently.
_MAPPED, _COMPATIBLE = IPv6Network("::ffff:0:0/96"), IPv6Network("::/96")


def _no_ipv4_inside(found: Network) -> None:
    if not isinstance(found, IPv6Network):
        return
    low = int(found.network_address)
    if found.subnet_of(_MAPPED) or (found.subnet_of(_COMPATIBLE) and low > 0xFFFF):
        raise ValueError(f"{found} is IPv4 inside IPv6; write {IPv4Address(low & 0xFFFFFFFF)} as it is")


def server(item: object) -> Server:
    """A DNS server's address, link-local ones with %DEVICE."""
    plain, _, zone = text(item).partition("%")
    found = address(plain)
    if found.is_link_local and found.version == 6 and not zone:
        raise ValueError(f'{item} is a link-local address and needs its device: "{found}%DEVICE"')
    if found.is_unspecified or found.is_multicast:
        raise ValueError(f"{found} is no address of a DNS server")
    return Server(found, device(zone) if zone else None)


def listen(item: object) -> Listen:
    """ADDRESS:PORT or [IPV6]:PORT."""
    parts = _LISTEN.match(text(item))
    if not parts:
        raise ValueError(f'expected "127.0.0.1:54" or "[::1]:54", got {quoted(item)}')
    found, port = address(parts[1] or parts[2]), parts[3]
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"{item}: a port is 1 to 65535")
    if found.is_unspecified or found.is_multicast:
        raise ValueError(
            f"{item}: a resolver that listens everywhere answers everybody; name one address of this machine"
        )
    return Listen(found, int(port))


def port(item: object) -> Port:
    """tcp/PORT, udp/PORT or udp/LOW-HIGH."""
    found = _PORT.match(text(item))
    if not found:
        raise ValueError(f'expected a port such as "udp/10000" or "tcp/7000-7010", got {quoted(item)}')
    low, high = int(found[2]), int(found[3] or found[2])
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{item}: ports are 1 to 65535, the lower one first")
    return Port(found[1], low, high)


def answer(item: object) -> Answer:
    """An inbound service by name or port."""
    if text(item) == "ping":
        return Answer("ping", None)
    try:
        return Answer(text(item), port(words.ANSWERS.get(text(item), item)))
    except ValueError:
        known = f'{", ".join(words.ANSWERS)}, "tcp/PORT" or "udp/PORT"{nearest(text(item), words.ANSWERS)}'
        raise ValueError(f"{quoted(item)} is no service that an uplink can answer: {known}") from None


def cgroup(item: object) -> str:
    """The path of a cgroup below the root of cgroup v2."""
    plain = text(item)
    if plain.startswith("/"):
        raise ValueError(f"{quoted(item)}: write the path below the root of cgroup v2, without a slash in front")
    if not _CGROUP.match(plain):
        raise ValueError(
            f'expected the path of a cgroup such as "system.slice/openvpn.service", got {quoted(item)}; each part has '
            "up to 255 letters, digits, '_', '-', '.', ':', '@' or '\\', and is neither '.' nor '..'"
        )
    return plain


def one_of(item: object, table: dict[str, str], what: str) -> str:
    """A word out of one of the tables of `words`."""
    if text(item) not in table:
        raise ValueError(f"{quoted(item)} is no {what}: {', '.join(table)}{nearest(text(item), table)}")
    return text(item)
