# SPDX-License-Identifier: BSD-2-Clause
"""Devices of a policy that this machine does not have, and devices in use that the policy does not name. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from ipaddress import ip_interface

from attrs import frozen

from ..netstate.state import Device
from ..policy.errors import did_you_mean
from ..policy.objects import Policy
from ..policy.scalars import matching_pattern


@frozen
class DeviceWarnings:
    """Warnings, a line each; `unnamed` are those about devices in use that the policy does not name.

    `is_misnamed`: an uplink's device is absent, and the policy does not name one in use.
    """

    lines: tuple[str, ...] = ()
    is_misnamed: bool = False
    unnamed: tuple[str, ...] = ()


def find_device_warnings(
    policy: Policy, devices: Sequence[Device], default_devices: Collection[str] = ()
) -> DeviceWarnings:
    """Return the warnings about absent devices of uplinks, and about unnamed devices with an address.

    `default_devices`: those of default routes, of which an absent name probably means one.
    """
    present = {device.name for device in devices}
    of_uplinks = {device: name for name, uplink in policy.uplink.items() for device in uplink.devices}
    absent = {device: name for device, name in of_uplinks.items() if device not in present}
    unnamed = {
        device.name: device
        for device in devices
        if device.name not in ("lo", *of_uplinks)
        and matching_pattern(device.name, policy.inside) is None
        and device.up
        and any(_is_global(text) for text in device.addresses)
    }
    candidates = [name for name in unnamed if name in default_devices] or list(unnamed)
    lines = [
        f"uplink.{name}.devices: this machine has no device {device!r} now{_hint(device, candidates, devices)}"
        for device, name in absent.items()
    ]
    unnamed_lines = [
        f"device {name!r} ({next(filter(_is_global, device.addresses))}) is in no part of the policy, so nothing may "
        "leave by it: add it to 'inside', or to 'devices' of an uplink"
        for name, device in unnamed.items()
    ]
    return DeviceWarnings(
        (*lines, *find_vrf_warnings(policy, devices), *unnamed_lines), bool(absent and unnamed), tuple(unnamed_lines)
    )


def find_vrf_warnings(policy: Policy, devices: Sequence[Device]) -> list[str]:
    """Return the warnings about uplinks in a VRF whose `addresses` lack some of theirs, with the line to write.

    Packets leave a VRF by the VRF's device, which has none of these addresses, so that the guard drops them.
    """
    vrfs = {device.name for device in devices if device.kind == "vrf"}
    warnings = []
    for name, uplink in policy.uplink.items():
        ports = [device for device in devices if device.name in uplink.devices and device.master in vrfs]
        own = [ip_interface(text).ip for device in ports for text in device.addresses if _is_global(text)]
        absent = [str(address) for address in own if not any(address in each for each in uplink.addresses)]
        if absent:
            line = json.dumps([*map(str, uplink.addresses), *absent])
            warnings.append(
                f"uplink.{name}.addresses: {ports[0].name!r} is in the VRF {ports[0].master!r}, so packets from "
                f"{', '.join(absent)} do not leave: write 'addresses = {line}'"
            )
    return warnings


def _is_global(address: str) -> bool:
    return not ip_interface(address).is_link_local


def _hint(device: str, candidates: Sequence[str], devices: Sequence[Device]) -> str:
    """Return which device the policy probably means."""
    named = next((each.name for each in devices if device in each.other_names), None)
    if named is not None:
        return f": it is an alternative name of {named!r}; write that"
    near = did_you_mean(device, candidates)
    return near or (f" (did you mean {' or '.join(map(repr, candidates))}?)" if candidates else "")
