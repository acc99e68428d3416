# SPDX-License-Identifier: BSD-2-Clause
"""Leaks of an uplink's DNS servers into the host's own resolver, for all programs. Pure.

Such queries break DNS isolation: the guard drops those without the mark, so resolution fails. Each
leak is in one file, and names the line to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import PurePosixPath as Path

from attrs import frozen

from ...policy.objects import Address
from .sources.keyfile import assignments

RESOLV_CONF, RESOLVED_CONF = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
_NAMESERVER = re.compile(r"\s*nameserver\s+([^\s#;]+)")
_MAX_SHOWN = 80  # characters of a value in a message
_NO = ("no", "false", "off", "0", "n", "f")
_YES = ("yes", "true", "on", "1", "y", "t")


@frozen
class ResolverLeak:
    """Leak in `file` at `line` (None for the whole file), with the problem and its fix."""

    file: str
    line: int | None
    problem: str
    fix: str

    def __str__(self) -> str:
        location = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{location}: {self.problem}; {self.fix}"


@frozen
class UplinkDns:
    """Uplink of each device, interface index of each device, and uplink of each DNS server."""

    devices: Mapping[str, str]
    indexes: Mapping[str, int]
    servers: Mapping[Address, str]

    def uplink_of(self, server: str) -> str | None:
        """Return the uplink of a server, given as ADDRESS or ADDRESS%DEVICE.

        None for other servers.
        """
        host, _, zone = server.partition("%")
        by_index = {str(index): device for device, index in self.indexes.items()}
        device = zone if zone in self.devices else by_index.get(zone)
        if device is not None:
            return self.devices[device]
        try:
            return self.servers.get(ip_address(host))
        except ValueError:
            return None


Texts = Mapping[str, str]  # path -> contents of the file


def find_leaks(texts: Texts, uplink_dns: UplinkDns) -> list[ResolverLeak]:
    """Return all leaks in these files, without duplicates."""
    leaks = (leak for check in _CHECKS for leak in check(texts, uplink_dns))
    return list(dict.fromkeys(leaks))


# --- files of nameserver lines ---


def _resolv_conf(texts: Texts, uplink_dns: UplinkDns) -> Iterator[ResolverLeak]:
    for path, fix in (
        (RESOLV_CONF, "name the host's own resolver there, such as 'nameserver 127.0.0.1'"),
        (RESOLVED_CONF, "keep them from systemd-resolved: UseDNS=no, or 'resolvectl revert DEVICE'"),
    ):
        for number, server, uplink in _nameservers(texts.get(path, ""), uplink_dns):
            yield ResolverLeak(path, number, f"{server} is a DNS server of uplink {uplink!r}", fix)


def _nameservers(text: str, uplink_dns: UplinkDns) -> Iterator[tuple[int, str, str]]:
    """Yield line number, server and uplink of each nameserver line with an uplink's server."""
    for number, line in enumerate(text.split("\n"), 1):
        if (match := _NAMESERVER.match(line)) and (uplink := uplink_dns.uplink_of(match[1])):
            yield number, match[1][:_MAX_SHOWN], uplink


def _resolvconf(texts: Texts, uplink_dns: UplinkDns) -> Iterator[ResolverLeak]:
    """Check the files of resolvconf and openresolv, DEVICE or DEVICE.PROGRAM."""
    for path, text in texts.items():
        if str(Path(path).parent) not in (
            "/run/resolvconf/interface",
            "/run/resolvconf/interfaces",
        ):
            continue
        name = Path(path).name
        matching = (device for device in uplink_dns.devices if name == device or name.startswith(f"{device}."))
        device = next(matching, None)
        lines = [number for number, line in enumerate(text.split("\n"), 1) if _NAMESERVER.match(line)]
        if device and lines:
            problem = f"resolvconf has DNS servers of {device} (uplink {uplink_dns.devices[device]!r})"
            deny = f'deny_interfaces="{device}"'
            fix = f"write {deny} into /etc/resolvconf.conf, and run 'resolvconf -d {name}'"
            yield ResolverLeak(path, lines[0], problem, fix)


# --- dnsmasq ---


def is_dnsmasq_config(path: str) -> bool:
    """Return True if dnsmasq reads the file.

    Debian: /etc/dnsmasq.conf and /etc/dnsmasq.d/, OpenWrt: /var/etc/dnsmasq.conf.NAME.
    """
    return path == "/etc/dnsmasq.conf" or path.startswith(("/etc/dnsmasq.d/", "/var/etc/dnsmasq.conf."))


def _dnsmasq(texts: Texts, uplink_dns: UplinkDns) -> Iterator[ResolverLeak]:
    files = [path for path in texts if is_dnsmasq_config(path)]
    options = [(path, number, key, value) for path in files for number, key, value in _dnsmasq_options(texts[path])]
    for path, number, key, value in options:
        if key == "server" and (uplink := _server_option_uplink(value, uplink_dns)):
            yield ResolverLeak(
                path,
                number,
                f"{value[:_MAX_SHOWN]} is a DNS server of uplink {uplink!r}",
                "remove the line",
            )
        if key == "resolv-file":
            for line, server, uplink in _nameservers(texts.get(value, ""), uplink_dns):
                problem = f"{value}:{line} names {server}, a DNS server of uplink {uplink!r}"
                yield ResolverLeak(path, number, problem, "write 'no-resolv' and server= lines instead")
    keys = {key for _, _, key, _ in options}
    if files and not keys & {"resolv-file", "no-resolv"}:
        for _, server, uplink in _nameservers(texts.get(RESOLV_CONF, ""), uplink_dns):
            problem = f"dnsmasq reads {RESOLV_CONF} with {server}, a DNS server of uplink {uplink!r}"
            yield ResolverLeak(files[0], None, problem, "write 'no-resolv' and server= lines into it")


def _dnsmasq_options(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, key and value of each option."""
    for number, line in enumerate(text.split("\n"), 1):
        comment = "#" if line.lstrip().startswith("#") else " #"
        key, _, value = line.partition(comment)[0].partition("=")
        if key.strip():
            yield number, key.strip(), value.strip()


def _server_option_uplink(value: str, uplink_dns: UplinkDns) -> str | None:
    """Return the uplink of `server=[/DOMAIN/]ADDRESS[#PORT][@DEVICE]`."""
    address, _, source = value.rpartition("/")[2].partition("@")
    return uplink_dns.devices.get(source.partition("#")[0]) or uplink_dns.uplink_of(address.partition("#")[0])


# --- systemd-networkd ---

_USE_DNS = ("DHCPv4", "DHCPv6", "IPv6AcceptRA")
# A later directory overrides files of the same name in an earlier one, systemd.network(5).
_NETWORK_DIRECTORIES = ("/usr/lib", "/run", "/etc")


def _networkd(texts: Texts, uplink_dns: UplinkDns) -> Iterator[ResolverLeak]:
    files = {
        Path(path).name: path for directory in _NETWORK_DIRECTORIES for path in texts if _is_network(path, directory)
    }
    for device, uplink in uplink_dns.devices.items():
        path = next(
            (files[name] for name in sorted(files) if _matches_device(texts[files[name]], device)),
            None,
        )
        if path is None:
            continue
        settings = list(_network_settings(texts, path))
        last = {(section, key): value.lower() for _, _, section, key, value in settings}
        if last.get(("Match", "Unmanaged")) in _YES or last.get(("Link", "Unmanaged")) in _YES:
            continue
        for file, number, section, key, value in settings:
            if (section, key) == ("Network", "DNS") and value:
                dns = value[:_MAX_SHOWN]
                owner = f"{device} (uplink {uplink!r})"
                problem = f"DNS={dns} gives systemd-resolved the DNS servers of {owner}"
                yield ResolverLeak(
                    file,
                    number,
                    problem,
                    "name them in 'servers' of the policy, and remove the line",
                )
        missing = [section for section in _USE_DNS if _is_requested(section, last) and not _is_off(section, last)]
        if missing:
            owner = f"{device} (uplink {uplink!r})"
            problem = f"systemd-resolved, if it runs, gets the DNS servers that {owner} learns"
            sections = ", ".join(f"[{section}]" for section in missing)
            yield ResolverLeak(path, None, problem, f"write UseDNS=no into {sections}")


def _is_network(path: str, directory: str) -> bool:
    return str(Path(path).parent) == f"{directory}/systemd/network" and path.endswith(".network")


def _matches_device(text: str, device: str) -> bool:
    """Return True if [Match] selects the device by its name.

    A pattern together with other conditions counts as no match, since those are not evaluated.
    """
    conditions = [(key, value) for _, section, key, value in assignments(text) if section == "Match"]
    names = [name for key, value in conditions if key == "Name" for name in value.split()]
    if not names or (any(key != "Name" for key, _ in conditions) and device not in names):
        return False
    inverted = names[0].startswith("!")
    names[0] = names[0].removeprefix("!")
    return any(fnmatchcase(device, pattern) for pattern in names) != inverted


def _network_settings(texts: Texts, path: str) -> Iterator[tuple[str, int, str, str, str]]:
    """Yield (file, line, section, key, value) of a .network file and its drop-ins.

    The last counts.
    """
    name = Path(path).name
    drop_ins = {
        Path(file).name: file
        for directory in _NETWORK_DIRECTORIES
        for file in texts
        if _is_drop_in(file, directory, name)
    }
    for file in (path, *(drop_ins[key] for key in sorted(drop_ins))):
        for number, section, key, value in assignments(texts[file]):
            yield file, number, section, key, value


def _is_drop_in(path: str, directory: str, name: str) -> bool:
    return str(Path(path).parent) == f"{directory}/systemd/network/{name}.d" and path.endswith(".conf")


def _is_requested(section: str, last: Mapping[tuple[str, str], str]) -> bool:
    """Return True if networkd requests servers of this section: RA by default, DHCP if it is on."""
    if section == "IPv6AcceptRA":
        return last.get(("Network", "IPv6AcceptRA"), "yes") not in _NO
    dhcp = last.get(("Network", "DHCP"), "no")
    return dhcp in _YES or dhcp == {"DHCPv4": "ipv4", "DHCPv6": "ipv6"}[section]


def _is_off(section: str, last: Mapping[tuple[str, str], str]) -> bool:
    old_section = last.get(("DHCP", "UseDNS"), "yes") if section != "IPv6AcceptRA" else "yes"
    return last.get((section, "UseDNS"), old_section) in _NO


# --- NetworkManager ---


def _networkmanager(texts: Texts, uplink_dns: UplinkDns) -> Iterator[ResolverLeak]:
    main: dict[str, str] = {}
    for path in sorted(texts, key=lambda path: ("conf.d" in path, Path(path).name)):
        if path == "/etc/NetworkManager/NetworkManager.conf" or path.startswith("/etc/NetworkManager/conf.d/"):
            main |= {key: value for _, section, key, value in assignments(texts[path]) if section == "main"}
    if main.get("dns") == "none" or main.get("rc-manager") == "unmanaged":
        return
    device_by_uuid: dict[str, str] = {}  # of the active connections
    for device, index in uplink_dns.indexes.items():
        for _, _, key, value in assignments(texts.get(f"/run/NetworkManager/devices/{index}", "")):
            if key == "connection-uuid":
                device_by_uuid[value] = device
    for path, text in texts.items():
        if not path.endswith(".nmconnection"):
            continue
        settings = {(section, key): value for _, section, key, value in assignments(text)}
        uuid = settings.get(("connection", "uuid"), "")
        name = settings.get(("connection", "interface-name")) or device_by_uuid.get(uuid)
        if name is None or name not in uplink_dns.devices:
            continue
        families = [family for family in ("ipv4", "ipv6") if _uses_dns(settings, family)]
        if families:
            uplink = uplink_dns.devices[name]
            owner = f"{name} (uplink {uplink!r})"
            problem = f"NetworkManager gives the DNS servers of {owner} to all programs"
            sections = " and ".join(f"[{family}]" for family in families)
            fix = f"write ignore-auto-dns=true into {sections} and no dns=, or dns=none into [main]"
            yield ResolverLeak(path, None, problem, fix)


def _uses_dns(settings: Mapping[tuple[str, str], str], family: str) -> bool:
    method = settings.get((family, "method"), "auto")
    ignores = settings.get((family, "ignore-auto-dns"), "false").lower() in _YES
    automatic = method in ("auto", "dhcp") and not ignores
    return method not in ("disabled", "ignore") and (automatic or bool(settings.get((family, "dns"))))


# --- netifd ---

_UCI = re.compile(
    r"\s*(config|option|list)\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+))"
    r"(?:\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+)))?"
)
_MAX_ALIASES = 8  # a chain of @aliases that is longer is a loop


def _netifd(texts: Texts, uplink_dns: UplinkDns) -> Iterator[ResolverLeak]:
    path = "/etc/config/network"
    interfaces = _uci_interfaces(texts.get(path, ""))
    for name, options in interfaces.items():
        device = _device_of(name, interfaces)
        last = {key: value for _, key, value in options}
        if device not in uplink_dns.devices or last.get("proto", "none") == "none":
            continue
        uplink = uplink_dns.devices[device]
        owner = f"{device} (uplink {uplink!r})"
        problem = f"interface {name!r} gives the DNS servers of {owner} to all programs"
        for number, key, value in options:
            if key == "dns":
                fix = "name them in 'servers' of the policy instead"
                yield ResolverLeak(path, number, f"{problem}: {value[:_MAX_SHOWN]}", fix)
        if last.get("proto") != "static" and last.get("peerdns") != "0":
            yield ResolverLeak(path, options[0][0], problem, "write option peerdns '0' into it")


def _uci_interfaces(text: str) -> dict[str, list[tuple[int, str, str]]]:
    """Return (line, key, value) of each option by interface.

    The first item is the line of the section.
    """
    interfaces: dict[str, list[tuple[int, str, str]]] = {}
    section: list[tuple[int, str, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not (match := _UCI.match(line)):
            continue
        key, value = match[2] or match[3] or match[4] or "", match[5] or match[6] or match[7] or ""
        if match[1] == "config":
            section = [(number, "", "")]
            if key == "interface":
                interfaces[value] = section
        else:
            section.append((number, key, value))
    return interfaces


def _device_of(name: str, interfaces: Mapping[str, list[tuple[int, str, str]]]) -> str:
    """Return the device of an interface, or of the interface that it names by @; "" without one.

    The option is `device`, and `ifname` before OpenWrt 21.02.
    """
    for _ in range(_MAX_ALIASES):
        options = {key: value for _, key, value in interfaces.get(name, [])}
        device = options.get("device") or options.get("ifname") or ""
        if not device.startswith("@"):
            return device
        name = device[1:]
    return ""


_CHECKS: tuple[Callable[[Texts, UplinkDns], Iterator[ResolverLeak]], ...] = (
    _resolv_conf, _resolvconf, _dnsmasq, _networkd, _networkmanager, _netifd
)  # fmt: skip
