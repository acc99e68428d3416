# SPDX-License-Identifier: BSD-2-Clause
"""Watching devices for the packets of a leak test, while they are sent and a while longer."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from ...kernel.tap import Tap
from .kinds import Known, Seen
from .report import Control

_PATIENCE = 0.6  # seconds for controls to be seen: a neighbour may have to be asked for first
_BEST = 0.25  # seconds of these for the best of them
_AFTER = 0.15  # seconds for what is late, behind the controls


class Watch:
    """Watches some devices, and with less care all of them. A context manager.

    `left` is by token what was seen on each of the devices, `order` by which devices at all, in order.
    """

    def __init__(self, devices: Iterable[str]) -> None:
        self.devices = tuple(dict.fromkeys(devices))
        self.known = Known(())
        self.left: dict[bytes, dict[str, Seen]] = {}
        self.order: dict[bytes, list[tuple[str, Seen]]] = {}

    def __enter__(self) -> Watch:
        with ExitStack() as stack:
            self._taps = {device: stack.enter_context(Tap(device)) for device in self.devices}
            self._all = stack.enter_context(Tap())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def until(self, descriptor: int) -> None:
        """Wait for a descriptor or for packets, and look at those."""
        self._wait(1.0, [descriptor])

    def for_controls(self, controls: Sequence[Control]) -> None:
        """Wait until each control is seen, or until it makes no sense any more; and then for what is late."""
        best: dict[tuple[str, int], bytes] = {}
        some: dict[tuple[str, int], list[bytes]] = {}
        for one in controls:
            best.setdefault(one.key, one.probe.token)
            some.setdefault(one.key, []).append(one.probe.token)
        begun = time.monotonic()

        def seen(key: tuple[str, int], token: bytes) -> bool:
            return key[0] in self.left.get(token, {})

        while (now := time.monotonic() - begun) < _PATIENCE:
            if all(seen(key, token) for key, token in best.items()):
                break
            if now > _BEST and all(any(seen(key, one) for one in tokens) for key, tokens in some.items()):
                break
            self._wait(0.02)
        end = time.monotonic() + _AFTER
        while (now := time.monotonic()) < end:
            self._wait(end - now)

    def faults(self) -> dict[str, str]:
        """For each watched device that was not seen whole, why."""
        found = {}
        for device, tap in self._taps.items():
            if tap.lost:
                found[device] = f"{device}: {tap.lost} packets left unseen, since it is too busy; try again"
            elif tap.gone:
                found[device] = f"{device} went down meanwhile"
        return found

    def _wait(self, seconds: float, more: Sequence[int] = ()) -> None:
        select.select([*self._taps.values(), self._all, *more], [], [], seconds)
        for device, tap in self._taps.items():
            for one in tap.passed():
                if found := self.known.find(one.ethertype, one.data):
                    self.left.setdefault(found[0].token, {}).setdefault(device, found[1])
        for one in self._all.passed():
            if found := self.known.find(one.ethertype, one.data):
                self.order.setdefault(found[0].token, []).append((one.device, found[1]))
