# SPDX-License-Identifier: BSD-2-Clause
"""Configuration files of VPN programs: the few settings that a policy depends on. Keys are skipped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from ...netstate.formats.state_check import parses
from .facts import VpnProgram, WireguardTunnel

_DEFAULTS = {"0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"}
_FASTD_MARK = re.compile(r"^\s*packet\s+mark\s+(0x[0-9a-fA-F]{1,8}|\d{1,10})\s*;", re.MULTILINE)


def parse_wg_quick(text: str, name: str, file: str) -> WireguardTunnel:
    """Return the tunnel of a file for wg-quick(8); `name` is the device's."""
    values: dict[str, list[str]] = {}
    for key, value in _settings(text):
        values.setdefault(key, []).append(value)
    allowed = {word.strip() for value in values.get("allowedips", ()) for word in value.split(",")}
    hosts = [value.rpartition(":")[0].strip("[]") for value in values.get("endpoint", ())]
    return WireguardTunnel(
        name,
        file,
        _number(values.get("listenport", ["0"])[-1]),
        _number(values.get("fwmark", ["0"])[-1]),
        bool(allowed & _DEFAULTS) and values.get("table", ["auto"])[-1].lower() != "off",
        tuple(dict.fromkeys(host for host in hosts if not parses(ip_address, host))),
    )


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, equals, value = line.partition("#")[0].partition("=")
        if equals:
            yield key.strip().lower(), value.strip()


def parse_openvpn(text: str, name: str, file: str) -> VpnProgram | None:
    """Return the client of a file for openvpn(8); None for a server or a file without `remote`."""
    lines = [line.split() for line in text.splitlines() if line.strip() and line.strip()[0] not in "#;"]
    remotes = [words[1] for words in lines if words[0] == "remote" and len(words) > 1]
    if not remotes or any(words[0] in ("server", "mode") for words in lines):
        return None
    marks = [_number(words[1]) for words in lines if words[0] == "mark" and len(words) > 1]
    return VpnProgram(
        "openvpn", name, file, marks[-1] if marks else 0, not all(parses(ip_address, each) for each in remotes)
    )


def parse_fastd(text: str, name: str, file: str) -> VpnProgram:
    """Return the node of a file for fastd, whose peers may have names."""
    marks = _FASTD_MARK.findall(text)
    return VpnProgram("fastd", name, file, _number(marks[-1]) if marks else 0)


def parse_wg_show(ports: Iterable[str], marks: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return port and mark of each device from the lines of `wg show all listen-port` and `wg show all fwmark`."""
    by_key = [
        {words[0]: _number(words[1]) for line in lines if len(words := line.split()) > 1} for lines in (ports, marks)
    ]
    return {name: (port, by_key[1].get(name, 0)) for name, port in by_key[0].items()}


def _number(text: str) -> int:
    """Return a number of 32 bits; 0 for "off", and for text that is not one."""
    try:
        number = int(text.strip(), 0)
    except ValueError:
        return 0
    return number if 0 <= number < 1 << 32 else 0
