# SPDX-License-Identifier: BSD-2-Clause
"""What an uplink's DNS servers are now: asks the sources of the policy, and waits for what changes their answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from attrs import define, frozen

from ...kernel.hearing import Heard, Hearing
from ...kernel.rtnetlink import RtNetlink
from ...policy.objects import Resolver, Uplink, lease_of
from .sources import reading
from .sources.choice import Choice, Machine, chosen
from .sources.ra import Known
from .sources.reading import HEARD, Reading, Source

_APART = 0.1  # seconds between two looks at files, at least
_EVERY = 5.0  # and at most: leases end without a word
_PROGRAMS_APART, _PROGRAMS_EVERY = 1.0, 15.0  # the same for programs, which cost a process each time
_SOLICITATIONS, _SOLICITED_EVERY = 3, 4.0  # MAX_RTR_SOLICITATIONS, RTR_SOLICITATION_INTERVAL of RFC 4861
_REMEMBERED = 256  # complaints that are not repeated
_STATIC, _LEASE = "servers", "lease"  # how the keys of the policy are called among the sources


def sources_of(name: str, resolver: Resolver) -> dict[str, Source | None]:
    """The sources of the resolver of uplink `name`, by their words; None for those that are no file or program."""
    if resolver.servers:
        return {_STATIC: None}
    if not resolver.sources:
        return {_LEASE: reading.lease(lease_of(name, resolver))}
    listed = (*reading.SOURCES, HEARD) if resolver.sources == ("auto",) else resolver.sources
    return {word: reading.SOURCES.get(word) for word in listed}


@frozen
class Wanted:
    """An uplink whose servers are to be known: its name, itself and its resolver."""

    name: str
    uplink: Uplink
    resolver: Resolver


@define
class _Pace:
    """When something is to be done next: at once when it is wanted, but not more often than `apart` (seconds)."""

    apart: float
    every: float
    last: float = -1e9
    wanted: bool = True

    @property
    def due(self) -> float:
        return self.last + (self.apart if self.wanted else self.every)

    def now(self, now: float) -> bool:
        if now < self.due:
            return False
        self.last, self.wanted = now, False
        return True


@define
class _Asking:
    """How often the routers behind a device were asked, and when the next time is."""

    left: int = _SOLICITATIONS
    due: float = -1e9


class Learner:
    """Learns in the network namespace of the thread that makes it. A context manager.

    `say` gets a line for each word that is left out and each source that fails, once. `root` is for tests.
    """

    def __init__(self, wanted: Wanted, say: Callable[[str], None], root: Path = Path("/")) -> None:
        self.wanted, self._say, self._root = wanted, say, root
        self.sources = sources_of(wanted.name, wanted.resolver)
        self.readings: dict[str, Reading] = {}
        self.choice = Choice()
        self.machine = Machine()
        self._indexes: dict[str, int] = {}
        self._known = Known()
        self._asking: dict[str, _Asking] = {}
        self._files, self._programs = _Pace(_APART, _EVERY), _Pace(_PROGRAMS_APART, _PROGRAMS_EVERY)
        self._complained: dict[tuple[str, str], None] = {}
        self._hearing, self._deaf = self._hear()

    def _hear(self) -> tuple[Hearing, str]:
        asked = [one for one in self.sources.values() if one]
        files = [self._root / str(one).lstrip("/") for source in asked for one in reading.files(source, self._devices)]
        if HEARD in self.sources:
            try:
                return Hearing(files, True), ""
            except PermissionError:
                return Hearing(files, False), "router advertisements can be heard by root only"
        return Hearing(files, False), ""

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *_: object) -> None:
        self._hearing.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to wait on."""
        return self._hearing.descriptors

    def due(self) -> float:
        """When to look again, though nothing was told (seconds, monotonic)."""
        times = [self._files.due, self._programs.due]
        times += [one.due for one in self._asking.values() if one.left]
        end = self._known.next_end()
        return min(times if end is None else [*times, end])

    def look(self, now: float | None = None) -> Choice:
        """Take in what was told, ask what is due, and return the servers as they are now. Never waits for a message."""
        now = time.monotonic() if now is None else now
        heard = self._hearing.read()
        if heard.links or not self.machine.names:
            self._place()
        self._files.wanted |= bool(heard)
        self._programs.wanted |= heard.links
        self._take(heard, now)
        if self._files.now(now):
            self._ask(lambda one: not one.program)
        if self._programs.now(now):
            self._ask(lambda one: bool(one.program))
        if HEARD in self.sources:
            self._ask_routers(now)
            words = [(device, word) for device in self._devices for word in self._known.servers(device, now)]
            self.readings[HEARD] = Reading(tuple(words), self._deaf)
        self._choose()
        return self.choice

    @property
    def _devices(self) -> tuple[str, ...]:
        return self.wanted.uplink.devices

    def _place(self) -> None:
        names, addresses = RtNetlink.indexes_and_addresses()
        listens = {one.address for one in self.wanted.resolver.listen}
        self.machine = Machine(frozenset(map(ip_address, addresses)) | listens, names)
        self._indexes = {name: index for index, name in names.items()}

    def _take(self, heard: Heard, now: float) -> None:
        """What came in is about the device as it was before: first the messages, then the links."""
        names = self.machine.names
        for one in heard.advertisements:
            if (device := names.get(one.index)) in self._devices:
                self._known.hear(device, one.message, now)
        for device in self._devices:
            running = heard.carriers.get(self._indexes.get(device, 0))
            if running is False or device not in self._indexes:
                self._known.forget(device)
                self._asking.pop(device, None)

    def _ask(self, which: Callable[[Source], bool]) -> None:
        devices = [(device, self._indexes.get(device)) for device in self._devices]
        for word, source in self.sources.items():
            if source is not None and which(source):
                self.readings[word] = reading.read(source, devices, time.time(), self._root)

    def _ask_routers(self, now: float) -> None:
        """Behind each device, as long as no router has told of a server; not where the guard lets no question out."""
        if "ndp" not in self.wanted.uplink.exempt:
            return
        for device in self._devices:
            if (index := self._indexes.get(device)) is None:
                continue
            asking = self._asking.setdefault(device, _Asking())
            if self._known.servers(device, now):
                asking.left = 0
            elif asking.left and now >= asking.due and self._hearing.solicit(index):
                asking.left, asking.due = asking.left - 1, now + _SOLICITED_EVERY
            elif asking.left and now >= asking.due:
                asking.due = now + 1.0  # no link, or no address yet

    def _choose(self) -> None:
        words = [one for word in self.sources for one in self.readings.get(word, Reading()).words]
        words += [(one.zone or self._devices[0], str(one)) for one in self.wanted.resolver.servers]
        choice = chosen(words, self._devices, self.machine)
        self.choice = choice
        for word, why in choice.refused:
            self._complain(repr(word[:60]), f"left out: {why}")
        automatic = self.wanted.resolver.sources == ("auto",)
        for word, found in self.readings.items():
            source = self.sources[word]
            missing = source is not None and found.trouble == f"{source.sign} is not there"
            if found.trouble and not (missing and (automatic or word == _LEASE)):
                self._complain(f"source {word}", found.trouble)

    def _complain(self, what: str, why: str) -> None:
        """Say it, but not again as long as it is remembered."""
        if (what, why) in self._complained:
            return
        self._complained[what, why] = None
        while len(self._complained) > _REMEMBERED:
            del self._complained[next(iter(self._complained))]
        self._say(f"{what} {why}" if why.startswith("left out") else f"{what}: {why}")
