# SPDX-License-Identifier: BSD-2-Clause
"""Where an uplink's DNS servers get into the machine's own resolver, so that everybody's names go to them. Pure.

The guard drops what is then asked without the mark, so such names fail; and who the names are asked of is not what the
policy says. Each finding is of one file, and says what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import PurePosixPath as Path

from attrs import frozen

from ...policy.objects import Address
from .sources.keyfile import pairs

RESOLV_CONF, RESOLVED = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
_NAMESERVER = re.compile(r"\s*nameserver\s+([^\s#;]+)")
_NO = ("no", "false", "off", "0", "n", "f")
_YES = ("yes", "true", "on", "1", "y", "t")


@frozen
class Leak:
    """A place: `file` and `line` (None for all of it), what is wrong there, and what to do."""

    file: str
    line: int | None
    what: str
    instead: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.what}; {self.instead}"


@frozen
class Learned:
    """What is an uplink's: `devices` (name -> uplink), their kernel numbers, and `servers` (address -> uplink)."""

    devices: Mapping[str, str]
    indexes: Mapping[str, int]
    servers: Mapping[Address, str]

    def uplink_of(self, word: str) -> str | None:
        """Whose the server is that a file names, as ADDRESS or ADDRESS%DEVICE."""
        plain, _, zone = word.partition("%")
        named = self.devices.get(zone) or next(
            (self.devices[d] for d, i in self.indexes.items() if str(i) == zone), None
        )
        try:
            return named or self.servers.get(ip_address(plain))
        except ValueError:
            return None


Texts = Mapping[str, str]  # path -> what is in the file


def leaks(texts: Texts, learned: Learned) -> list[Leak]:
    """All places in these files, each once."""
    found = (one for look in _LOOKS for one in look(texts, learned))
    return list(dict.fromkeys(found))


# --- files of nameserver lines ---


def _resolv_conf(texts: Texts, learned: Learned) -> Iterator[Leak]:
    for path, instead in (
        (RESOLV_CONF, "name the machine's own resolver there, such as 'nameserver 127.0.0.1'"),
        (RESOLVED, "keep them from systemd-resolved: UseDNS=no, or 'resolvectl revert DEVICE'"),
    ):
        for number, word, uplink in _named(texts.get(path, ""), learned):
            yield Leak(path, number, f"{word} is a DNS server of uplink {uplink!r}", instead)


def _named(text: str, learned: Learned) -> Iterator[tuple[int, str, str]]:
    """Line, word and uplink of each nameserver line with an uplink's server."""
    for number, line in enumerate(text.split("\n"), 1):
        if (found := _NAMESERVER.match(line)) and (uplink := learned.uplink_of(found[1])):
            yield number, found[1][:80], uplink


def _resolvconf(texts: Texts, learned: Learned) -> Iterator[Leak]:
    """resolvconf and openresolv keep a file for each device and program, DEVICE or DEVICE.PROGRAM."""
    for path, text in texts.items():
        if str(Path(path).parent) not in ("/run/resolvconf/interface", "/run/resolvconf/interfaces"):
            continue
        name = Path(path).name
        device = next((one for one in learned.devices if name == one or name.startswith(f"{one}.")), None)
        lines = [number for number, line in enumerate(text.split("\n"), 1) if _NAMESERVER.match(line)]
        if device and lines:
            yield Leak(
                path,
                lines[0],
                f"resolvconf was told the DNS servers of {device}, a device of uplink {learned.devices[device]!r}",
                f"write deny_interfaces=\"{device}\" into /etc/resolvconf.conf, and 'resolvconf -d {name}'",
            )


# --- dnsmasq ---


def is_dnsmasq(path: str) -> bool:
    """Whether dnsmasq reads the file: /etc/dnsmasq.conf and .d in Debian, /var/etc/dnsmasq.conf.NAME in OpenWrt."""
    return path == "/etc/dnsmasq.conf" or path.startswith(("/etc/dnsmasq.d/", "/var/etc/dnsmasq.conf."))


def _dnsmasq(texts: Texts, learned: Learned) -> Iterator[Leak]:
    files = [path for path in texts if is_dnsmasq(path)]
    options = [(path, number, key, value) for path in files for number, key, value in _dnsmasq_options(texts[path])]
    read = [value for _, _, key, value in options if key == "resolv-file"]
    for path, number, key, value in options:
        if key == "server" and (uplink := _server_option(value, learned)):
            yield Leak(path, number, f"{value[:80]} is a DNS server of uplink {uplink!r}", "take the line out")
        if key == "resolv-file":
            for at, word, uplink in _named(texts.get(value, ""), learned):
                told = f"{value}:{at} names {word}, a DNS server of uplink {uplink!r}"
                yield Leak(path, number, told, "write 'no-resolv' and server= lines instead")
    if files and not read and not any(key == "no-resolv" for _, _, key, _ in options):
        for _, word, uplink in _named(texts.get(RESOLV_CONF, ""), learned):
            told = f"dnsmasq reads {RESOLV_CONF}, which names {word}, a DNS server of uplink {uplink!r}"
            yield Leak(files[0], None, told, "write 'no-resolv' and server= lines into it")


def _dnsmasq_options(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        key, _, value = line.partition("#" if line.lstrip().startswith("#") else " #")[0].partition("=")
        if key.strip():
            yield number, key.strip(), value.strip()


def _server_option(value: str, learned: Learned) -> str | None:
    """Whose server `server=[/DOMAIN/]ADDRESS[#PORT][@DEVICE]` is."""
    address, _, source = value.rpartition("/")[2].partition("@")
    return learned.devices.get(source.partition("#")[0]) or learned.uplink_of(address.partition("#")[0])


# --- systemd-networkd ---

_USE_DNS = ("DHCPv4", "DHCPv6", "IPv6AcceptRA")


def _networkd(texts: Texts, learned: Learned) -> Iterator[Leak]:
    files = {Path(one).name: one for folder in _NETWORK_FOLDERS for one in texts if _is_network(one, folder)}
    for device, uplink in learned.devices.items():
        path = next((files[name] for name in sorted(files) if _matches(texts[files[name]], device)), None)
        if path is None:
            continue
        said = list(_network_settings(texts, path))
        last = {(section, key): value.lower() for _, _, section, key, value in said}
        if last.get(("Match", "Unmanaged")) in _YES or last.get(("Link", "Unmanaged")) in _YES:
            continue
        for where, number, section, key, value in said:
            if (section, key) == ("Network", "DNS") and value:
                told = f"DNS={value[:80]} tells systemd-resolved the DNS servers of {device} (uplink {uplink!r})"
                yield Leak(where, number, told, "name them in 'servers' of the policy, and take the line out")
        missing = [section for section in _USE_DNS if _asks(section, last) and not _off(section, last)]
        if missing:
            told = f"systemd-resolved, if it runs, gets the DNS servers that {device} (uplink {uplink!r}) learns"
            yield Leak(path, None, told, f"write UseDNS=no into {', '.join(f'[{one}]' for one in missing)}")


# The later ones win over a file of the same name, systemd.network(5).
_NETWORK_FOLDERS = ("/usr/lib", "/run", "/etc")


def _is_network(path: str, folder: str) -> bool:
    return str(Path(path).parent) == f"{folder}/systemd/network" and path.endswith(".network")


def _matches(text: str, device: str) -> bool:
    """Whether [Match] takes the device by its name. A pattern that is not all it asks for is not judged."""
    asked = [(key, value) for _, section, key, value in pairs(text) if section == "Match"]
    names = [word for key, value in asked if key == "Name" for word in value.split()]
    if not names or (any(key != "Name" for key, _ in asked) and device not in names):
        return False
    inverted = names[0].startswith("!")
    names[0] = names[0].removeprefix("!")
    return any(fnmatchcase(device, one) for one in names) != inverted


def _network_settings(texts: Texts, path: str) -> Iterator[tuple[str, int, str, str, str]]:
    """(file, line, section, key, value) of a .network file and its drop-ins, in the order in which they count."""
    name = Path(path).name
    drop_ins = {Path(one).name: one for folder in _NETWORK_FOLDERS for one in texts if _is_drop_in(one, folder, name)}
    for one in (path, *(drop_ins[key] for key in sorted(drop_ins))):
        for number, section, key, value in pairs(texts[one]):
            yield one, number, section, key, value


def _is_drop_in(path: str, folder: str, name: str) -> bool:
    return str(Path(path).parent) == f"{folder}/systemd/network/{name}.d" and path.endswith(".conf")


def _asks(section: str, last: Mapping[tuple[str, str], str]) -> bool:
    """Whether servers come that way. Router advertisements do unless that is off, DHCP only if it is on."""
    if section == "IPv6AcceptRA":
        return last.get(("Network", "IPv6AcceptRA"), "yes") not in _NO
    dhcp = last.get(("Network", "DHCP"), "no")
    return dhcp in _YES or dhcp == {"DHCPv4": "ipv4", "DHCPv6": "ipv6"}[section]


def _off(section: str, last: Mapping[tuple[str, str], str]) -> bool:
    old = last.get(("DHCP", "UseDNS"), "yes") if section != "IPv6AcceptRA" else "yes"
    return last.get((section, "UseDNS"), old) in _NO


# --- NetworkManager ---


def _networkmanager(texts: Texts, learned: Learned) -> Iterator[Leak]:
    main = {}
    for path in sorted(texts, key=lambda one: ("conf.d" in one, Path(one).name)):
        if path == "/etc/NetworkManager/NetworkManager.conf" or path.startswith("/etc/NetworkManager/conf.d/"):
            main |= {key: value for _, section, key, value in pairs(texts[path]) if section == "main"}
    if main.get("dns") == "none" or main.get("rc-manager") == "unmanaged":
        return
    in_use = {}  # uuid of a connection -> the device that runs by it
    for device, index in learned.indexes.items():
        said = pairs(texts.get(f"/run/NetworkManager/devices/{index}", ""))
        in_use |= {value: device for _, _, key, value in said if key == "connection-uuid"}
    for path, text in texts.items():
        if not path.endswith(".nmconnection"):
            continue
        said = {(section, key): value for _, section, key, value in pairs(text)}
        device = said.get(("connection", "interface-name")) or in_use.get(said.get(("connection", "uuid"), ""))
        if device not in learned.devices:
            continue
        taken = [one for one in ("ipv4", "ipv6") if _takes_dns(said, one)]
        if taken:
            told = f"NetworkManager gives the DNS servers of {device} (uplink {learned.devices[device]!r}) to everybody"
            what = " and ".join(f"[{one}]" for one in taken)
            yield Leak(path, None, told, f"write ignore-auto-dns=true into {what} and no dns=, or dns=none into [main]")


def _takes_dns(said: Mapping[tuple[str, str], str], family: str) -> bool:
    method = said.get((family, "method"), "auto")
    automatic = method in ("auto", "dhcp") and said.get((family, "ignore-auto-dns"), "false").lower() not in _YES
    return method not in ("disabled", "ignore") and (automatic or bool(said.get((family, "dns"))))


# --- netifd ---

_UCI = re.compile(r"\s*(config|option|list)\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+))(?:\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+)))?")


def _netifd(texts: Texts, learned: Learned) -> Iterator[Leak]:
    path = "/etc/config/network"
    interfaces: dict[str, list[tuple[int, str, str]]] = {}
    current: list[tuple[int, str, str]] = []
    for number, line in enumerate(texts.get(path, "").split("\n"), 1):
        if not (found := _UCI.match(line)):
            continue
        key, value = found[2] or found[3] or found[4] or "", found[5] or found[6] or found[7] or ""
        if found[1] == "config":
            current = [(number, "", "")]
            if key == "interface":
                interfaces[value] = current
        else:
            current.append((number, key, value))
    for name, said in interfaces.items():
        device = _device_of(name, interfaces)
        last = {key: value for _, key, value in said}
        if device not in learned.devices or last.get("proto", "none") == "none":
            continue
        told = f"interface {name!r} gives the DNS servers of {device} (uplink {learned.devices[device]!r}) to everybody"
        for number, key, value in said:
            if key == "dns":
                yield Leak(path, number, f"{told}: {value[:80]}", "name them in 'servers' of the policy instead")
        if last.get("proto") != "static" and last.get("peerdns") != "0":
            yield Leak(path, said[0][0], told, "write option peerdns '0' into it")


def _device_of(name: str, interfaces: Mapping[str, list[tuple[int, str, str]]]) -> str:
    """The device of an interface: its option device (ifname before OpenWrt 21.02), or that of the one it names by @."""
    device = ""
    for _ in range(8):  # a circle of names has no device
        said = {key: value for _, key, value in interfaces.get(name, [])}
        device = said.get("device") or said.get("ifname") or ""
        if not device.startswith("@"):
            return device
        name = device[1:]
    return ""


_LOOKS: tuple[Callable[[Texts, Learned], Iterator[Leak]], ...] = (
    _resolv_conf, _resolvconf, _dnsmasq, _networkd, _networkmanager, _netifd
)  # fmt: skip
