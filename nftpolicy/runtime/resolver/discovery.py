# SPDX-License-Identifier: BSD-2-Clause
"""Discovery of an uplink's DNS servers from the sources of the policy, and their changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path

from attrs import define, frozen

from ...kernel.netlink.link_ra_listener import LinkRaListener, ListenerEvents
from ...kernel.netlink.rtnetlink import Rtnetlink
from ...policy.objects import Resolver, Server, Uplink, lease_file
from ..rate_limiter import RateLimiter, earliest_deadline
from .sources import registry
from .sources.filter import MAX_REJECTED, HostAddresses, ServerList, usable_servers
from .sources.ra import RdnssCache
from .sources.registry import SOURCE_RA, DnsSource, SourceReading

# Seconds.
_FILES_PAUSE, _FILES_PERIOD = 0.1, 5.0  # reads of files: leases expire without a notification
_PROGRAMS_PAUSE, _PROGRAMS_PERIOD = 1.0, 15.0  # runs of programs, each of which costs a process
_SOLICITATIONS, _SOLICITATION_INTERVAL = (
    3,
    4.0,
)  # MAX_RTR_SOLICITATIONS, RTR_SOLICITATION_INTERVAL of RFC 4861
_SOLICITATION_RETRY = 1.0  # after a failure: no carrier, or no address yet

_MAX_WARNINGS = 256  # warnings that are not repeated
_MAX_SHOWN = 60  # characters of a rejected entry in a warning
_STATIC, _LEASE = "servers", "lease"  # policy keys that stand for sources


def resolver_sources(name: str, resolver: Resolver) -> dict[str, DnsSource | None]:
    """Return the sources of the resolver of uplink `name` by their names.

    The value is None for a source that is neither a file nor a program.
    """
    if resolver.servers:
        return {_STATIC: None}
    if not resolver.sources:
        return {_LEASE: registry.lease_source(lease_file(name, resolver))}
    selected = (*registry.SOURCES, SOURCE_RA) if resolver.sources == ("auto",) else resolver.sources
    return {source: registry.SOURCES.get(source) for source in selected}


@frozen
class DiscoveryTarget:
    """Uplink and resolver of which the DNS servers are discovered."""

    name: str
    uplink: Uplink
    resolver: Resolver


@define
class _Solicitation:
    """Router solicitations on one device: number left, and time of the next one."""

    left: int = _SOLICITATIONS
    due: float = 0.0


class ServerDiscovery:
    """Discovery in the network namespace of the creating thread. A context manager.

    `warn` gets a line for each rejected entry and each source that fails, once. `root` is for
    tests.
    """

    def __init__(self, target: DiscoveryTarget, warn: Callable[[str], None], root: Path = Path("/")) -> None:
        self.target, self._warn, self._root = target, warn, root
        self.sources = resolver_sources(target.name, target.resolver)
        self.readings: dict[str, SourceReading] = {}
        self.server_list = ServerList()
        self.domains: dict[str, tuple[Server, ...]] = {}
        self.host = HostAddresses()
        self._indexes: dict[str, int] = {}
        self._announced = RdnssCache()
        self._solicitations: dict[str, _Solicitation] = {}
        self._files_limiter = RateLimiter(_FILES_PAUSE, period=_FILES_PERIOD)
        self._programs_limiter = RateLimiter(_PROGRAMS_PAUSE, period=_PROGRAMS_PERIOD)
        self._warned: dict[str, None] = {}
        self._listener, self._listener_error = self._open_listener()

    def _open_listener(self) -> tuple[LinkRaListener, str]:
        """Return the listener, and the reason why it receives no advertisements ("" if it does)."""
        sources = [source for source in self.sources.values() if source]
        patterns = [pattern for source in sources for pattern in registry.watched_patterns(source, self._devices)]
        files = [self._root / str(pattern).lstrip("/") for pattern in patterns]
        if SOURCE_RA in self.sources:
            try:
                return LinkRaListener(files, True), ""
            except PermissionError:
                return LinkRaListener(files, False), "only root can receive router advertisements"
        return LinkRaListener(files, False), ""

    def __enter__(self) -> ServerDiscovery:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that become readable on an event."""
        return self._listener.descriptors

    def due(self) -> float:
        """Return the time of the next refresh without an event (monotonic seconds)."""
        deadlines = [
            self._files_limiter.due(),
            self._programs_limiter.due(),
            self._announced.next_expiry(),
        ]
        deadlines += [solicitation.due for solicitation in self._solicitations.values() if solicitation.left]
        earliest = earliest_deadline(deadlines)
        assert earliest is not None  # the limiters have a period
        return earliest

    def refresh(self, now: float | None = None) -> ServerList:
        """Process all events, read the sources that are due, and return the current servers.

        Never waits.
        """
        now = time.monotonic() if now is None else now
        events = self._listener.read()
        if events.links or not self.host.device_names:
            self._read_host()
        if events:
            self._files_limiter.request()
        if events.links:
            self._programs_limiter.request()
        self._process_events(events, now)
        if self._files_limiter.begin_if_due(now):
            self._read_sources(lambda source: not source.program)
        if self._programs_limiter.begin_if_due(now):
            self._read_sources(lambda source: bool(source.program))
        if SOURCE_RA in self.sources:
            self._solicit_routers(now)
            entries = [(device, server) for device in self._devices for server in self._announced.servers(device, now)]
            self.readings[SOURCE_RA] = SourceReading(tuple(entries), self._listener_error)
        self._select_servers()
        return self.server_list

    @property
    def _devices(self) -> tuple[str, ...]:
        return self.target.uplink.devices

    def _read_host(self) -> None:
        """Read addresses and devices of this host."""
        names, addresses = Rtnetlink.indexes_and_addresses()
        listen_addresses = {listen.address for listen in self.target.resolver.listen}
        self.host = HostAddresses(frozenset(map(ip_address, addresses)) | listen_addresses, names)
        self._indexes = {name: index for index, name in names.items()}

    def _process_events(self, events: ListenerEvents, now: float) -> None:
        """Process advertisements before link changes: they are older than a loss of the link."""
        names = self.host.device_names
        for advertisement in events.advertisements:
            if (device := names.get(advertisement.index)) in self._devices:
                self._announced.add(device, advertisement.message, now)
        for device in self._devices:
            carrier = events.carriers.get(self._indexes.get(device, 0))
            if carrier is False or device not in self._indexes:
                self._announced.clear(device)
                self._solicitations.pop(device, None)

    def _read_sources(self, is_selected: Callable[[DnsSource], bool]) -> None:
        devices = [(device, self._indexes.get(device)) for device in self._devices]
        for name, source in self.sources.items():
            if source is not None and is_selected(source):
                self.readings[name] = registry.read_source(source, devices, time.time(), self._root)

    def _solicit_routers(self, now: float) -> None:
        """Solicit on each device until a router announces a server.

        Not where the guard drops solicitations.
        """
        if "ndp" not in self.target.uplink.exempt:
            return
        for device in self._devices:
            if (index := self._indexes.get(device)) is None:
                continue
            solicitation = self._solicitations.setdefault(device, _Solicitation())
            if self._announced.servers(device, now):
                solicitation.left = 0
            if not solicitation.left or now < solicitation.due:
                continue
            if self._listener.solicit(index):
                solicitation.left -= 1
                solicitation.due = now + _SOLICITATION_INTERVAL
            else:
                solicitation.due = now + _SOLICITATION_RETRY

    def _select_servers(self) -> None:
        entries = [entry for name in self.sources for entry in self.readings.get(name, SourceReading()).entries]
        self.server_list = self._usable_servers((*entries, *self._named(self.target.resolver.servers)))
        self.domains = {
            domain: self._usable_servers(self._named(servers)).servers
            for domain, servers in self.target.resolver.domains.items()
        }
        automatic = self.target.resolver.sources == ("auto",)
        for name, reading in self.readings.items():
            source = self.sources[name]
            is_missing = source is not None and reading.error == f"{source.marker} does not exist"
            if reading.error and not (is_missing and (automatic or name == _LEASE)):
                self._warn_once(f"source {name}: {reading.error}")

    def _named(self, servers: tuple[Server, ...]) -> list[tuple[str, str | Server]]:
        """Return servers of the policy as entries."""
        return [(server.zone or self._devices[0], server) for server in servers]

    def _usable_servers(self, entries: Iterable[tuple[str, str | Server]]) -> ServerList:
        server_list = usable_servers(entries, self._devices, self.host)
        for entry, why in server_list.rejected:
            self._warn_once(f"{entry[:_MAX_SHOWN]!r} left out: {why}")
        if server_list.rejects_more:
            self._warn_once(f"more than {MAX_REJECTED} entries left out")
        return server_list

    def _warn_once(self, warning: str) -> None:
        """Log a warning, unless it is among the last ones."""
        if warning in self._warned:
            return
        self._warned[warning] = None
        while len(self._warned) > _MAX_WARNINGS:
            del self._warned[next(iter(self._warned))]
        self._warn(warning)
