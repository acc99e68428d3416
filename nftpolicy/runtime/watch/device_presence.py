# SPDX-License-Identifier: BSD-2-Clause
"""Presence of the uplinks' devices, on kernels that hook a chain only at a present device (before Linux 6.18)."""

from __future__ import annotations

from collections.abc import Collection

from ...compiler.compile import HostFacts
from ...kernel.interface import Kernel


class DevicePresence:
    """Devices of the uplinks that were present, or absent and without a link guard, in the last plan."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._present: frozenset[str] = frozenset()
        self._unhooked: frozenset[str] = frozenset()

    def set_devices(self, devices: Collection[str], host: HostFacts) -> None:
        """Take over the devices of a plan."""
        self._present, self._unhooked = frozenset(devices) - host.unhookable_devices, host.unhookable_devices

    def requires_plan(self) -> bool:
        """Return True if the link guard is another one since devices appeared, or since the kernel dropped chains."""
        if not self._present and not self._unhooked:
            return False
        names = self._kernel.device_names()
        vanished = self._present - names
        if self._unhooked & names:
            return True
        return any(not self._kernel.supports_egress_hook(device) for device in vanished)
