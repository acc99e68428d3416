# SPDX-License-Identifier: BSD-2-Clause
"""Uplinks from the options --uplink, --mark and --exempt, where no policy describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .common import EXIT_BAD_INPUT, Failure

if TYPE_CHECKING:
    from ..runtime.verify import GivenUplink


def uplinks_from_options(
    file: Path | None, uplinks: Sequence[str], marks: Sequence[str], exempt: Sequence[str]
) -> list[GivenUplink]:
    """Return the uplinks, each with its devices and mark; [] if no option is given. `file` is the policy file.

    Raises:
        Failure: an option is malformed, or the options contradict each other or the policy file.
    """
    if uplinks and file is not None:
        raise Failure("--uplink: cannot be used with a policy, which names the uplinks itself", EXIT_BAD_INPUT)
    devices = _devices_by_uplink(uplinks)
    if not devices:
        for option, values in (("--mark", marks), ("--exempt", exempt)):
            if values:
                raise Failure(
                    f"{option}: is for an uplink that no policy describes; name it with --uplink",
                    EXIT_BAD_INPUT,
                )
        return []
    _check_devices(devices)
    if len(marks) not in (1, len(devices)):
        problem = f"{len(marks)} for {len(devices)} uplinks" if marks else "missing"
        raise Failure(f"--mark: {problem}; give one mark for all, or one for each in their order", EXIT_BAD_INPUT)
    from ..policy.errors import did_you_mean
    from ..policy.mark import parse_mark
    from ..policy.vocabulary import EXEMPTIONS
    from ..runtime.verify import GivenUplink

    for word in exempt:
        if word not in EXEMPTIONS:
            known = f"{', '.join(EXEMPTIONS)}{did_you_mean(word, EXEMPTIONS)}"
            raise Failure(f"--exempt: {word!r} is not an exemption; known are {known}", EXIT_BAD_INPUT)
    try:
        parsed = [parse_mark(text) for text in marks]
    except ValueError as error:
        raise Failure(f"--mark: {error}", EXIT_BAD_INPUT) from None
    if len(parsed) == 1:
        parsed *= len(devices)
    return [
        GivenUplink(name, tuple(device_names), mark)
        for (name, device_names), mark in zip(devices.items(), parsed, strict=True)
    ]


def _devices_by_uplink(uplinks: Sequence[str]) -> dict[str, list[str]]:
    from ..policy import scalars

    devices: dict[str, list[str]] = {}
    for text in uplinks:
        name, equals, device_names = text.partition("=")
        if not equals or not device_names:
            raise Failure(f"--uplink: expected NAME=DEVICE such as wan=eth0, got {text!r}", EXIT_BAD_INPUT)
        try:
            devices.setdefault(scalars.parse_name(name), []).extend(
                scalars.parse_device(device) for device in device_names.split(",")
            )
        except ValueError as error:
            raise Failure(f"--uplink: {error}", EXIT_BAD_INPUT) from None
    return devices


def _check_devices(devices: Mapping[str, Sequence[str]]) -> None:
    owners: dict[str, str] = {}
    for name, device_names in devices.items():
        for device in device_names:
            if device == "lo":
                raise Failure(
                    "--uplink: packets to 'lo' never leave this machine: it cannot be an uplink",
                    EXIT_BAD_INPUT,
                )
            if device in owners:
                raise Failure(f"--uplink: {device} is already a device of {owners[device]}", EXIT_BAD_INPUT)
            owners[device] = name
