# SPDX-License-Identifier: BSD-2-Clause
"""What netifd is to know of a policy, as UCI sections: plain data, rendered by `as_config` and `as_batch`.

netifd takes away all ip rules that are not its own when it starts, and puts its own back by itself; so the
ladder is in UCI as well, with explicit priorities, since it numbers rules without one from 1 in the order of the
file. Everything that it would leave out without a word is refused here first (traps.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from ..compiler import ladder
from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..policy.objects import Policy
from .plan import whole

PREFIX = "nftpolicy_"  # the names of all sections of ours begin with it
# netifd reads numbers by strtol(3): on a machine with 32 bits, this is the largest one that it can read.
# The route of the runner, with a metric that is larger still, stands behind.
LAST_METRIC = 2**31 - 1

_NAME = re.compile(r"[A-Za-z0-9_]+\Z")
_VALUE = re.compile(r"[A-Za-z0-9_./:@%+ -]*\Z")


@frozen
class Section:
    """One section of a file in /etc/config. A value that is a tuple is a list."""

    config: str
    type: str
    name: str
    options: tuple[tuple[str, str | tuple[str, ...]], ...]


@frozen
class Attachment:
    """What every interface on one of `devices` gets: its routes go to `table`, its DNS servers nowhere else."""

    devices: tuple[str, ...]
    table: int


def sections(policy: Policy) -> tuple[Section, ...]:
    """The ladder, and the end of each uplink's table.

    The routes have no `interface`, since netifd takes such a route away with the interface; and gateways are
    not among them, since a route with one needs it.
    """
    return (
        *map(_rule, map(whole, ladder.rules(policy))),
        *(_end(one) for one in ladder.routes(policy) if one.gateway is None),
    )


def attachments(policy: Policy) -> tuple[Attachment, ...]:
    """One for each uplink."""
    return tuple(Attachment(uplink.devices, uplink.table) for uplink in policy.uplink.values())


def _rule(rule: IpRule) -> Section:
    mark = (("mark", f"{rule.mark:#x}/{rule.mask:#x}"),) if rule.mask else ()
    to = (("dest", rule.destination),) if rule.destination else ()
    users = (("uidrange", f"{rule.uids[0]}-{rule.uids[1]}"),) if rule.uids else ()
    table = "main" if rule.table == TABLE_MAIN else str(rule.table)
    end = ("lookup", table) if rule.action == "lookup" else ("action", rule.action)
    # All users have one priority.
    name = f"{PREFIX}{rule.priority}_{rule.family}" + (f"_{rule.uids[0]}" if rule.uids else "")
    return Section("network", "rule6" if rule.family == 6 else "rule", name,
                   (("priority", str(rule.priority)), *mark, *to, *users, end))  # fmt: skip


def _end(route: Route) -> Section:
    target = "::/0" if route.family == 6 else "0.0.0.0/0"
    options = ("type", route.kind), ("target", target), ("table", str(route.table)), ("metric", str(LAST_METRIC))
    name = f"{PREFIX}table{route.table}_{route.family}"
    return Section("network", "route6" if route.family == 6 else "route", name, options)


def as_config(found: Iterable[Section]) -> str:
    """The sections as they stand in a file of /etc/config."""
    lines = []
    for one in found:
        lines += ["", f"config {_word(one.type)} '{_word(one.name)}'"]
        for key, held in one.options:
            lines += [f"\t{'option' if isinstance(held, str) else 'list'} {_word(key)} '{each}'" for each in _all(held)]
    return "\n".join([*lines[1:], ""])


def as_batch(found: Iterable[Section]) -> str:
    """The sections as commands for `uci batch`."""
    lines = []
    for one in found:
        place = f"{_word(one.config)}.{_word(one.name)}"
        lines.append(f"set {place}={_word(one.type)}")
        for key, held in one.options:
            verb = "set" if isinstance(held, str) else "add_list"
            lines += [f"{verb} {place}.{_word(key)}='{each}'" for each in _all(held)]
    return "\n".join(lines)


def _word(item: str) -> str:
    if not _NAME.match(item):
        raise ValueError(f"{item!r} is no name in UCI: letters, digits and _")
    return item


def _all(held: str | tuple[str, ...]) -> Iterator[str]:
    for one in (held,) if isinstance(held, str) else held:
        if not _VALUE.match(one):
            raise ValueError(f"{one!r} can't be written as a value in UCI")
        yield one
