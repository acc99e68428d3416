# SPDX-License-Identifier: BSD-2-Clause
"""UCI sections of a policy for netifd: plain data, rendered by `render_config` and `render_batch`.

netifd deletes all ip rules of other programs when it starts, and restores its own. So the ip rules
are in UCI as well, with explicit priorities, since netifd numbers rules without one from 1 in file
order. Sections that netifd would silently ignore are rejected here first (uci_lint.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from ...compiler import ip_rules
from ...generated_text import CheckedText, fill, join, word
from ...netstate.routing import TABLE_MAIN, IpRule, Route
from ...policy.objects import Policy
from .router_plan import require_expressible

PREFIX = "nftpolicy_"  # of the names of all generated sections
# netifd parses numbers by strtol(3): the largest value on a 32-bit machine. The route of the
# nftpolicy script has a larger metric, so it comes after this one.
LAST_METRIC = 2**31 - 1

_NAME = re.compile(r"[A-Za-z0-9_]+\Z")


@frozen
class UciSection:
    """Section of a file in /etc/config. A tuple as value is a list."""

    config: str
    type: str
    name: str
    options: tuple[tuple[str, str | tuple[str, ...]], ...]


@frozen
class UplinkAttachment:
    """Options of every interface on one of `devices`.

    Its routes go to `table`, and only the resolver uses its DNS servers.
    """

    devices: tuple[str, ...]
    table: int


def network_sections(policy: Policy) -> tuple[UciSection, ...]:
    """Return the ip rules as sections, and the terminal route of each uplink's table.

    The routes have no `interface`, since netifd removes a route together with its interface. Gateway
    routes are left out, since a route with a gateway needs an interface.
    """
    return (
        *map(_rule, map(require_expressible, ip_rules.ip_rules(policy))),
        *(_terminal_route(route) for route in ip_rules.uplink_routes(policy) if route.gateway is None),
    )


def uplink_attachments(policy: Policy) -> tuple[UplinkAttachment, ...]:
    """Return one attachment for each uplink."""
    return tuple(UplinkAttachment(uplink.devices, uplink.table) for uplink in policy.uplink.values())


def _rule(rule: IpRule) -> UciSection:
    mark = (("mark", f"{rule.mark:#x}/{rule.mask:#x}"),) if rule.mask else ()
    destination = (("dest", rule.destination),) if rule.destination else ()
    users = (("uidrange", f"{rule.uids[0]}-{rule.uids[1]}"),) if rule.uids else ()
    table = "main" if rule.table == TABLE_MAIN else str(rule.table)
    action = ("lookup", table) if rule.action == "lookup" else ("action", rule.action)
    # The rules of all users have the same priority.
    name = f"{PREFIX}{rule.priority}_{rule.family}" + (f"_{rule.uids[0]}" if rule.uids else "")
    return UciSection("network", "rule6" if rule.family == 6 else "rule", name,
                   (("priority", str(rule.priority)), *mark, *destination, *users, action))  # fmt: skip


def _terminal_route(route: Route) -> UciSection:
    target = "::/0" if route.family == 6 else "0.0.0.0/0"
    options = ("type", route.kind), ("target", target), ("table", str(route.table)), ("metric", str(LAST_METRIC))
    name = f"{PREFIX}table{route.table}_{route.family}"
    return UciSection("network", "route6" if route.family == 6 else "route", name, options)


def render_config(sections: Iterable[UciSection]) -> CheckedText:
    """Return the sections in the form of a file of /etc/config."""
    blocks = []
    for section in sections:
        lines = [fill("config {type} '{name}'\n", type=uci_name(section.type), name=uci_name(section.name))]
        for key, value in section.options:
            template = "\toption {key} '{item}'\n" if isinstance(value, str) else "\tlist {key} '{item}'\n"
            lines += [fill(template, key=uci_name(key), item=item) for item in _values(value)]
        blocks.append(join("", lines))
    return join("\n", blocks)


def render_batch(sections: Iterable[UciSection]) -> CheckedText:
    """Return the sections as commands for `uci batch`."""
    lines = []
    for section in sections:
        path = fill("{config}.{name}", config=uci_name(section.config), name=uci_name(section.name))
        lines.append(fill("set {path}={type}", path=path, type=uci_name(section.type)))
        for key, value in section.options:
            template = "set {path}.{key}='{item}'" if isinstance(value, str) else "add_list {path}.{key}='{item}'"
            lines += [fill(template, path=path, key=uci_name(key), item=item) for item in _values(value)]
    return join("\n", lines)


def uci_name(name: str) -> CheckedText:
    """Return the name of a section, type or option. Raises ValueError."""
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is not a valid UCI name: use letters, digits and _")
    return word(name)


def _values(value: str | tuple[str, ...]) -> Iterator[CheckedText]:
    yield from map(word, (value,) if isinstance(value, str) else value)
