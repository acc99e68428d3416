# SPDX-License-Identifier: BSD-2-Clause
"""ISC dhclient: its lease files, dhclient.leases(5). Pure.

A file grows: of the leases of a device the last one of each family holds, if it has not expired and was not released.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterator

# A statement ends at ";" and may hold quoted text; a block begins at "{" and ends at "}".
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{};]|[^\s{};"]+|"', re.DOTALL)
_DATE = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})$")
_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})$")
_OPTIONS = ("domain-name-servers", "dhcp6.name-servers")
_FOREVER = 0xFFFFFFFF


class _Lease:
    """What is known of one lease: its statements, each a list of words, with the depth of its block."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.statements: list[list[str]] = []

    def first(self, *head: str) -> list[str] | None:
        return next((one[len(head) :] for one in self.statements if one[: len(head)] == list(head)), None)

    @property
    def device(self) -> str:
        return " ".join(self.first("interface") or ()).strip('"')

    def servers(self) -> Iterator[str]:
        for option in _OPTIONS:
            for word in self.first("option", option) or ():
                yield from filter(None, word.split(","))

    def lasts(self, now: float) -> bool:
        """Whether it holds at `now`, in seconds since 1970."""
        if ["released"] in self.statements:
            return False
        if self.kind == "lease":
            end = _end(self.first("expire") or [])
            return end is None or now < end
        return not (ends := list(self._ends6())) or now < max(ends)

    def _ends6(self) -> Iterator[float]:
        """When the addresses of a DHCPv6 lease end. A lease without addresses has no end."""
        starts: int | None = None
        for one in self.statements:
            if len(one) == 2 and one[1].isdecimal() and len(one[1]) < 12:
                if one[0] == "starts":
                    starts = int(one[1])
                elif one[0] == "max-life" and starts is not None:
                    life = int(one[1])
                    yield float("inf") if life >= _FOREVER else starts + life


def parse(data: bytes, device: str, now: float) -> Iterator[str]:
    """The servers of a device's leases that hold at `now`, in seconds since 1970."""
    last: dict[str, _Lease] = {}
    for one in _leases(data.decode(errors="replace")):
        if one.device == device:
            last[one.kind] = one
    for one in last.values():
        if one.lasts(now):
            yield from one.servers()


def _leases(text: str) -> Iterator[_Lease]:
    depth, lease, words = 0, None, list[str]()
    for token in _TOKEN.findall(text):
        if token == "{":
            if depth == 0:
                lease = _Lease(words[0]) if words and words[0] in ("lease", "lease6") else None
            depth, words = depth + 1, []
        elif token == "}":
            depth, words = max(0, depth - 1), []
            if depth == 0 and lease is not None:
                yield lease
                lease = None
        elif token == ";":
            if lease is not None and words:
                lease.statements.append(words)
            words = []
        else:
            words.append(token)


def _end(words: list[str]) -> float | None:
    """The time of `expire`: WEEKDAY YYYY/MM/DD HH:MM:SS in UTC, `epoch SECONDS`, or `never`; None for no end."""
    if words[:1] == ["never"] or not words:
        return None
    if words[0] == "epoch" and len(words) > 1 and words[1].isdecimal():
        return float(words[1][:15])
    if len(words) == 3 and (date := _DATE.match(words[1])) and (time := _TIME.match(words[2])):
        year, month, day, hour, minute, second = map(int, (*date.groups(), *time.groups()))
        if 1 <= month <= 12:
            return float(timegm((year, month, day, hour, minute, second)))
    return 0.0  # not understood: it does not hold
