# SPDX-License-Identifier: BSD-2-Clause
"""ISC dhclient: its lease files, dhclient.leases(5). Pure.

dhclient appends to a file: the last lease of a device in each family counts, unless it has expired
or was released.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterator

# A statement ends at ";" and may contain quoted text; a block begins at "{" and ends at "}".
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{};]|[^\s{};"]+|"', re.DOTALL)
_DATE = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})$")
_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})$")
_OPTIONS = ("domain-name-servers", "dhcp6.name-servers")
_INFINITE = 0xFFFFFFFF
_MAX_DIGITS = 11  # of a time in seconds
_MAX_EPOCH_DIGITS = 15
_DATE_WORDS, _MONTHS = 3, 12


class _Lease:
    """Statements of one lease block, each a list of words."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.statements: list[list[str]] = []

    def arguments(self, *head: str) -> list[str] | None:
        """Return the words after `head` in the first statement that begins with it.

        None without one.
        """
        matching = (words[len(head) :] for words in self.statements if words[: len(head)] == list(head))
        return next(matching, None)

    @property
    def device(self) -> str:
        return " ".join(self.arguments("interface") or ()).strip('"')

    def servers(self) -> Iterator[str]:
        for option in _OPTIONS:
            for word in self.arguments("option", option) or ():
                yield from filter(None, word.split(","))

    def is_valid(self, now: float) -> bool:
        """Return True if the lease is valid at `now`, in seconds since 1970."""
        if ["released"] in self.statements:
            return False
        if self.kind == "lease":
            end = _expiry(self.arguments("expire") or [])
            return end is None or now < end
        ends = list(self._address_ends())
        return not ends or now < max(ends)

    def _address_ends(self) -> Iterator[float]:
        """Yield the end of each address of a DHCPv6 lease. A lease without addresses has no end."""
        starts: int | None = None
        for words in self.statements:
            if len(words) == 2 and words[1].isdecimal() and len(words[1]) <= _MAX_DIGITS:
                if words[0] == "starts":
                    starts = int(words[1])
                elif words[0] == "max-life" and starts is not None:
                    lifetime = int(words[1])
                    yield float("inf") if lifetime >= _INFINITE else starts + lifetime


def parse(data: bytes, device: str, now: float) -> Iterator[str]:
    """Yield the servers of a device's leases that are valid at `now`, in seconds since 1970."""
    last: dict[str, _Lease] = {}
    for lease in _leases(data.decode(errors="replace")):
        if lease.device == device:
            last[lease.kind] = lease
    for lease in last.values():
        if lease.is_valid(now):
            yield from lease.servers()


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


def _expiry(words: list[str]) -> float | None:
    """Return the time of `expire`, in seconds since 1970; None for `never` or an empty statement.

    Formats: WEEKDAY YYYY/MM/DD HH:MM:SS in UTC, `epoch SECONDS`, or `never`. Another format counts
    as expired.
    """
    if words[:1] == ["never"] or not words:
        return None
    if words[0] == "epoch" and len(words) > 1 and words[1].isdecimal():
        return float(words[1][:_MAX_EPOCH_DIGITS])
    if len(words) == _DATE_WORDS and (date := _DATE.match(words[1])) and (time := _TIME.match(words[2])):
        year, month, day, hour, minute, second = map(int, (*date.groups(), *time.groups()))
        if 1 <= month <= _MONTHS:
            return float(timegm((year, month, day, hour, minute, second)))
    return 0.0
