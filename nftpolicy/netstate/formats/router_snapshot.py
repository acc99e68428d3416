# SPDX-License-Identifier: BSD-2-Clause
"""Parser of the file that integration/openwrt/snapshot.sh writes: the output of nft, ip and tc, and parts of /proc.

Whatever the file does not have becomes a look with `missing`, or an assumption: never a state in which it is absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attrs import frozen

from ...exceptions import NftpolicyError
from .. import bypass
from ..bypass import ANY_EFFECT, Actor, HeaderWrite, Look, MarkWrite, Move, Stop, only_drops
from ..routing import IpRule, Route, Sysctl
from ..state import Device, NetState
from .ip_json_decode import decode_routes, decode_rules
from .nft_debug.listing import DebugOutputError
from .nft_debug.ruleset import ASSUMPTIONS, decode_debug_output

HEADER = "nftpolicy router snapshot 1"
_REQUIRED = ("host", "nft", "addresses", "rules-4", "routes-4", "sysctls", "legacy-tables")
_PARTS = (*_REQUIRED, "rules-6", "routes-6", "bridge-tables", "xdp-sockets", "mpls", "xfrm", "tc", "flows", "end")
_HOST_KEYS = frozenset({"kernel", "time", "byte-order", "nft", "ip", "egress"})
_NFT_VERSION = re.compile(r"nftables v(\d+)\.(\d+)\.(\d+)\b.*")
_OLDEST, _NEWEST = (1, 0, 2), (1, 1, 6)  # with libnftnl 1.2.1 to 1.3.1, which print values in the same form
_KERNEL = re.compile(r"(\d+)\.(\d+).*")
_FIRST_TCX = (6, 6)  # Linux
_LEGACY_FILES = {"ip_tables_names": "iptables", "ip6_tables_names": "ip6tables", "arp_tables_names": "arptables"}
# Qdiscs whose filters `tc filter show` lists whole: those without classes (see kernel/netlink/tc.py), and the
# ones that have no filters.
_QDISCS = frozenset(
    ("bfifo", "cake", "clsact", "codel", "fq", "fq_codel", "fq_pie", "hhf", "ingress", "mq", "noop", "noqueue", "pfifo",
     "pfifo_fast", "pie", "sfq", "tbf")
)  # fmt: skip
_HARMLESS_ENCAPSULATIONS = ("encap mpls", "encap ip", "encap ip6")
_CLASSIC_BPF = re.compile(
    r"filter protocol all pref \d+ bpf chain 0"
    r"(?: handle \w+(?: direct-action)?(?: not_in_hw)? bytecode '\d+((?:,\d+ \d+ \d+ \d+)+)')?"
)
_FLOW = re.compile(r"(\d+) (\d+)")

Result = TypeVar("Result")


class RouterSnapshotError(NftpolicyError):
    """An unknown line of the file; the message begins with "line NUMBER"."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")


@frozen
class RouterState:
    """Contents of the file. `flows`: numbers of flows by mark, or None. `assumptions`: what it cannot show."""

    state: NetState
    egress_hook: bool
    families: tuple[int, ...]
    flows: Mapping[int, int] | None
    kernel: str
    time: str
    assumptions: tuple[str, ...]


@frozen
class _Part:
    """A part of the file: its lines, the number of the first one; or why it is missing."""

    lines: tuple[str, ...]
    first: int
    missing: str = ""


def parse_router_snapshot(text: str) -> RouterState:
    """Return the contents of a file that begins with HEADER.

    Raises:
        RouterSnapshotError: a line is unknown, or a part that a proof needs is missing.
    """
    parts = _split(text.split("\n"))
    host = _host(parts["host"])
    _require_known_nft(host["nft"], parts["host"].first)
    families = (4, 6) if "rules-6" in parts else (4,)
    links = _json(parts["addresses"])
    devices = _decode(parts["addresses"], lambda: tuple(_device(item) for item in links))
    names = _decode(parts["addresses"], lambda: {int(item["ifindex"]): str(item["ifname"]) for item in links})
    routes = tuple(route for family in families for route in _routes(parts[f"routes-{family}"], family))
    rules = tuple(rule for family in families for rule in _rules(parts[f"rules-{family}"], family))
    nft = parts["nft"]
    try:
        tables = decode_debug_output(nft.lines, names, host["byte-order"], nft.first)
    except DebugOutputError as error:
        raise RouterSnapshotError(error.line, str(error)) from None
    state = NetState(tables, rules, routes, _sysctls(parts["sysctls"]), devices, _looks(parts, host, links, routes))
    ip_shows = f"ip ({host['ip']}) shows all selectors of ip rules and all attributes of routes"
    return RouterState(
        state,
        host["egress"] == "yes",
        families,
        _flows(parts["flows"]),
        host["kernel"],
        host["time"],
        (*ASSUMPTIONS, ip_shows),
    )


def _split(lines: list[str]) -> dict[str, _Part]:
    """Return the parts of the file by name."""
    if lines[0] != HEADER:
        raise RouterSnapshotError(1, f"expected {HEADER!r}")
    parts: dict[str, _Part] = {}
    current, body, first = "", [], 0
    for index, line in enumerate(lines[1:], 2):
        if line.startswith(" ") and current:
            body.append(line[1:])
            continue
        if current:
            parts[current] = _Part(tuple(body), first)
        current, body, first = "", [], index + 1
        mark, _, remaining = line.partition(" ")
        name, _, reason = remaining.partition(" ")
        if mark not in ("@", "?") or name not in _PARTS or name in parts:
            if line or index < len(lines):
                raise RouterSnapshotError(
                    index, "expected '@ PART' or '? PART REASON', or a line that begins with a space"
                )
        elif mark == "@":
            current = name
        else:
            parts[name] = _Part((), index, reason or "no reason given")
    if current:
        parts[current] = _Part(tuple(body), first)
    if "end" not in parts:
        raise RouterSnapshotError(len(lines), "expected '@ end': the file is not complete")
    family_parts = [name for name in ("rules-6", "routes-6") if {"rules-6", "routes-6"} & parts.keys()]
    for name in (*_REQUIRED, *family_parts, "bridge-tables", "xdp-sockets", "xfrm", "tc", "flows"):
        if name not in parts:
            raise RouterSnapshotError(len(lines), f"expected the part {name!r}")
        if parts[name].missing and name in (*_REQUIRED, *family_parts):
            raise RouterSnapshotError(parts[name].first, f"nothing can be proved without {name}: {parts[name].missing}")
    return parts


def _host(part: _Part) -> dict[str, str]:
    values = dict(line.partition(" ")[::2] for line in part.lines)
    for name in sorted(_HOST_KEYS ^ values.keys()):
        raise RouterSnapshotError(
            part.first, f"expected the keys {', '.join(sorted(_HOST_KEYS))} of this part; {name!r} differs"
        )
    if values["byte-order"] not in ("little", "big"):
        raise RouterSnapshotError(part.first, "expected byte-order little or big")
    return values


def _require_known_nft(text: str, line: int) -> None:
    match = _NFT_VERSION.fullmatch(text)
    if match is None or not _OLDEST <= tuple(map(int, match.groups())) <= _NEWEST:
        known = f"{'.'.join(map(str, _OLDEST))} to {'.'.join(map(str, _NEWEST))}"
        raise RouterSnapshotError(line, f"the form of the debug output of {text!r} is not known; expected nft {known}")


def _decode(part: _Part, decode: Callable[[], Result]) -> Result:
    try:
        return decode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RouterSnapshotError(part.first, f"not the JSON that 'ip -j' prints: {error}") from None


def _json(part: _Part) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = _decode(part, lambda: json.loads("\n".join(part.lines) or "[]"))
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RouterSnapshotError(part.first, "expected the JSON of ip: a list of objects")
    return [item for item in items if item]


def _rules(part: _Part, family: int) -> tuple[IpRule, ...]:
    return _decode(part, lambda: decode_rules(_json(part), family))


def _routes(part: _Part, family: int) -> tuple[Route, ...]:
    return _decode(part, lambda: decode_routes(_json(part), family))


def _device(item: Mapping[str, Any]) -> Device:
    # ip gives an index instead of a name if the other end is in another network namespace.
    is_elsewhere = "link_netnsid" in item or "link_index" in item
    group = item.get("group", "0")
    link_type = str(item.get("link_type", "")).strip("[]")  # with -N the number of the hardware type, in brackets
    return Device(
        str(item["ifname"]),
        tuple(f"{entry['local']}/{entry['prefixlen']}" for entry in item["addr_info"] if entry),
        "UP" in item["flags"],
        0 if group == "default" else int(group),
        item.get("master"),
        str(item.get("linkinfo", {}).get("info_kind", "")),
        None if is_elsewhere else item.get("link"),
        is_elsewhere,
        int(link_type) if link_type.isascii() and link_type.isdigit() else None,
        tuple(map(str, item.get("altnames", ()))),
    )


def _sysctls(part: _Part) -> tuple[Sysctl, ...]:
    sysctls = []
    for index, line in enumerate(part.lines):
        path, space, value = line.partition(" ")
        if not space:
            raise RouterSnapshotError(part.first + index, "expected 'PATH VALUE' of a sysctl")
        if "/conf/default/" not in path:
            sysctls.append(Sysctl(path, value.strip()))
    return tuple(sysctls)


def _flows(part: _Part) -> dict[int, int] | None:
    if part.missing:
        return None
    numbers = {}
    for index, line in enumerate(part.lines):
        match = _FLOW.fullmatch(line)
        if not line:
            continue
        if match is None:
            raise RouterSnapshotError(part.first + index, "expected 'NUMBER MARK' of flows")
        numbers[int(match[2])] = int(match[1])
    return numbers


# --- what marks or moves packets outside nftables ---------------------------------------------


def _looks(
    parts: Mapping[str, _Part], host: Mapping[str, str], links: list[dict[str, Any]], routes: tuple[Route, ...]
) -> tuple[Look, ...]:
    return (
        _legacy_tables(parts["legacy-tables"]),
        _bridge_tables(parts["bridge-tables"]),
        _traffic_control(parts["tc"]),
        Look(
            bypass.XDP,
            tuple(Actor(f"XDP program on {item['ifname']}", ANY_EFFECT) for item in links if item.get("xdp")),
        ),
        _xdp_sockets(parts["xdp-sockets"]),
        _device_programs(host["kernel"]),
        Look(bypass.CGROUP_BPF, missing="a shell cannot list them"),
        _xfrm(parts["xfrm"]),
        _encapsulations(routes, parts.get("mpls")),
    )


def _legacy_tables(part: _Part) -> Look:
    names = []
    for index, line in enumerate(part.lines):
        file, _, table = line.partition(" ")
        if not line:
            continue
        if file not in _LEGACY_FILES:
            raise RouterSnapshotError(part.first + index, f"expected one of {', '.join(_LEGACY_FILES)} and a table")
        names.append(f"table {table} of {_LEGACY_FILES[file]}")
    return Look(bypass.XTABLES, missing=f"the file has no rules of {', '.join(names)}" if names else "")


def _bridge_tables(part: _Part) -> Look:
    if part.missing:
        return Look(bypass.EBTABLES, missing=part.missing)
    tables = [line.removeprefix("ebtable_") for line in part.lines if line.startswith("ebtable_")]
    if tables:
        return Look(bypass.EBTABLES, missing=f"the file has no rules of table {', '.join(tables)}")
    return Look(bypass.EBTABLES, missing="no module has them, and a shell cannot see if the kernel itself does")


def _traffic_control(part: _Part) -> Look:
    if part.missing:
        return Look(bypass.TC, missing=part.missing)
    actors: dict[str, Actor] = {}
    missing: dict[str, None] = {}
    for index, line in enumerate(part.lines):
        word, _, remaining = line.partition(" ")
        words = remaining.split()
        if word == "qdisc" and len(words) > 3:
            kind, device = words[0], words[3]
            if kind not in _QDISCS:
                missing[f"classes of {kind} on {device}"] = None
            if any("block" in each for each in words[4:]):
                actors[device] = _tc_actor(device)
        elif word == "filter" and len(words) > 1:
            device = words[0]
            if words[1] in ("Error:", "RTNETLINK", "We"):
                missing[f"filters on {device}: {' '.join(words[1:])}"] = None
            elif _is_flush_filter(" ".join(words[1:])):
                stops = (Stop(device=device), Stop(device=device, at_ingress=True))
                actors.setdefault(device, Actor(f"tc filters on {device}: classic BPF", stops))
            else:
                actors[device] = _tc_actor(device)
        elif line.strip():
            raise RouterSnapshotError(
                part.first + index, "expected 'qdisc KIND HANDLE dev DEVICE' or 'filter DEVICE TEXT'"
            )
    return Look(bypass.TC, tuple(actors.values()), "", "; ".join(missing))


def _is_flush_filter(text: str) -> bool:
    """Return True for a line of `tc filter show` about a classic BPF program without actions that at most drops."""
    match = _CLASSIC_BPF.fullmatch(text)
    if match is None:
        return False
    instructions = (instruction.split() for instruction in (match[1] or "").split(",")[1:])
    return only_drops((int(operation), int(value)) for operation, _, _, value in instructions)


def _tc_actor(device: str) -> Actor:
    return Actor(
        f"tc filters on {device}, which the file does not have whole", (*ANY_EFFECT, HeaderWrite(device=device))
    )


def _xdp_sockets(part: _Part) -> Look:
    if part.missing:
        return Look(bypass.AF_XDP, missing=part.missing)
    counts = [line.split()[2] for line in part.lines if len(line.split()) > 2]
    actors = [Actor(f"AF_XDP sockets: {count}", (Move(),)) for count in counts if count != "0"]
    return Look(bypass.AF_XDP, tuple(actors))


def _device_programs(kernel: str) -> Look:
    match = _KERNEL.fullmatch(kernel)
    if match is not None and (int(match[1]), int(match[2])) < _FIRST_TCX:
        return Look(bypass.TCX)
    return Look(bypass.TCX, missing="a shell cannot list them")


def _xfrm(part: _Part) -> Look:
    if part.missing:
        return Look(bypass.XFRM, missing=part.missing)
    count = sum(line.startswith("src ") for line in part.lines)
    marked = sum("output-mark" in line for line in part.lines)
    actors = [Actor(f"IPsec security associations with output-mark: {marked}", (MarkWrite(),))] if marked else []
    return Look(bypass.XFRM, tuple(actors), f"{count} security associations" if count else "")


def _encapsulations(routes: tuple[Route, ...], labels: _Part | None) -> Look:
    actors = []
    value = "".join(labels.lines).strip() if labels is not None and not labels.missing else "0"
    if value != "0":
        actors.append(Actor(f"MPLS routing (net.mpls.platform_labels = {value})", (Move(),)))
    for route in routes:
        for entry in route.unknown:
            if entry.startswith("encap") and entry not in _HARMLESS_ENCAPSULATIONS:
                location = f"route to {route.destination} in table {route.table} ({entry})"
                actors.append(Actor(location, ANY_EFFECT))
    return Look(bypass.ENCAPSULATION, tuple(dict.fromkeys(actors)))
