# SPDX-License-Identifier: BSD-2-Clause
"""What a leak test has found: for each probe, each device of an uplink, and the whole. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import Factory, frozen

from ...kernel.tap import Card
from .kinds import DISCARD, Probe, Seen

HELD, LEAKS, INCONCLUSIVE = "held", "leaks", "inconclusive"

# What became of one probe. LEAKED: it left by an uplink. BLOCKED: the kernel told its sender no. STOPPED: it was taken,
# and left nowhere. ELSEWHERE: it left by a device that is no uplink. UNTESTED: nothing was learned.
LEAKED, BLOCKED, STOPPED, ELSEWHERE, UNTESTED = "leaked", "blocked", "stopped", "elsewhere", "not tested"
TESTED = frozenset({LEAKED, BLOCKED, STOPPED, ELSEWHERE})


@frozen
class Identity:
    """Somebody who may use an uplink, as far as a socket shows it, and the port to which."""

    name: str
    uid: int
    gid: int
    dport: int = DISCARD


@frozen
class Target:
    """A device of an uplink, as it is now; `card` is None if it is not there."""

    uplink: str
    mark: int
    device: str
    card: Card | None
    ports: tuple[str, ...] = ()
    source: Mapping[int, str] = Factory(dict)
    identity: Identity | None = None

    @property
    def why_not(self) -> str:
        """Why nothing can be tested on it, in words; "" if it can."""
        if self.card is None:
            return f"there is no device {self.device} on this machine now"
        if not self.card.up:
            return f"{self.device} is down"
        return "" if self.card.running else f"{self.device} has no carrier"

    @property
    def watched(self) -> tuple[str, ...]:
        """The device, and its ports if it is a bridge."""
        return () if self.why_not else (self.device, *self.ports)


@frozen
class Control:
    """A packet that may leave, and whether it did. `by` is who sent it."""

    probe: Probe
    by: str
    seen: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What it is a control of: a device, in a family."""
        return self.probe.shot.device or "", self.probe.shot.family


@frozen
class Result:
    """What became of a probe: one of the words above, why (an errno, a device, a sentence), where it was seen, and as
    what it was seen first."""

    probe: Probe
    verdict: str
    detail: str = ""
    seen: tuple[str, ...] = ()
    packet: Seen | None = None


@frozen
class OnDevice:
    """All about one device of an uplink. `faults` say why silence would prove nothing."""

    target: Target
    results: tuple[Result, ...] = ()
    controls: tuple[Control, ...] = ()
    faults: tuple[str, ...] = ()
    leaked: int = 0

    @property
    def verdict(self) -> str:
        """HELD, LEAKS or INCONCLUSIVE."""
        return LEAKS if self.leaked else INCONCLUSIVE if self.faults else HELD

    def control(self, family: int, device: str | None = None) -> Control | None:
        """The best control that was seen."""
        wanted = (device or self.target.device, family)
        return next((one for one in self.controls if one.seen and one.key == wanted), None)


@frozen
class Report:
    """The whole. `routed` are the results of probes whose device the routes chose."""

    devices: tuple[OnDevice, ...]
    routed: tuple[Result, ...]
    seconds: float = 0.0

    @property
    def results(self) -> list[Result]:
        """All of them."""
        return [*self.routed, *(one for device in self.devices for one in device.results)]

    @property
    def leaks(self) -> list[Result]:
        """What left that may not."""
        return [one for one in self.results if one.verdict == LEAKED]

    @property
    def faults(self) -> list[str]:
        """Why there is no certainty, in sentences."""
        found = (f"{one.target.uplink}: {fault}" for one in self.devices for fault in one.faults)
        return list(dict.fromkeys(found))

    @property
    def verdict(self) -> str:
        """LEAKS if anything left, else INCONCLUSIVE if anything is uncertain, else HELD."""
        return LEAKS if self.leaks else INCONCLUSIVE if self.faults or not self.devices else HELD
