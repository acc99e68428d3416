# SPDX-License-Identifier: BSD-2-Clause
"""Difference of two policies by their meaning: traffic that only one of them permits, and other changes."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import fields, frozen

from .objects import Policy
from .permissions import Permission, by_sender, describe_permissions, describe_traffic, permissions
from .scalars import matching_pattern

# Fields that permissions and devices show, by table; all others are changes.
_SHOWN_FIELDS = {
    "uplink": ("devices", "exempt", "answer"),
    "service": ("uplink", "group", "user", "kernel", "sport", "to", "ports"),
    "forward": ("uplink", "devices", "source", "to", "ports"),
    "publish": ("uplink", "port", "to"),
    "lan": ("uplink", "group", "user", "sport", "to", "ports"),
}
_TABLES = ("clat", "resolver")  # fields that are tables


@frozen
class PolicyDiff:
    """Difference of two policies, a line for each fact. `keeps`: what a first policy leaves of what it takes."""

    gains: tuple[str, ...] = ()
    loses: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, list[str]]:
        """Return the lines by their kind, as a JSON object."""
        return {kind: list(getattr(self, kind)) for kind in ("loses", "keeps", "gains", "changes")}

    @property
    def lines(self) -> list[str]:
        """Return all lines, each with its kind."""
        return [f"{kind}: {line}" for kind, lines in self.as_json().items() for line in lines]


def diff_policies(before: Policy | None, after: Policy) -> PolicyDiff:
    """Return the difference; without a policy before, every program may use every device."""
    if before is None:
        return _first_policy(after)
    old, new = permissions(before), permissions(after)
    device_loses, device_gains = _moved_devices(before, after)
    name = (f"name: {before.name} -> {after.name}",) if before.name != after.name else ()
    return PolicyDiff(
        gains=(*device_gains, *_uncovered(new, old, "had")),
        loses=(*device_loses, *_uncovered(old, new, "keeps")),
        changes=(*_changes(before, after), *name),
    )


def _uncovered(listed: tuple[Permission, ...], covering: tuple[Permission, ...], verb: str) -> Iterator[str]:
    """Yield the permissions that the other policy does not cover, a line for each sender, with the part that it has."""
    uncovered = [each for each in listed if not any(other.covers(each) for other in covering)]
    for group in by_sender(uncovered).values():
        (line,) = describe_permissions(group)
        part = [each for each in covering if any(permission.covers(each) for permission in group)]
        yield f"{line} ({verb} {describe_traffic(part)})" if part else line


def _first_policy(policy: Policy) -> PolicyDiff:
    """Return what a first policy takes from all programs, and the exceptions."""
    names = (f"{', '.join(uplink.devices)} (uplink {name})" for name, uplink in policy.uplink.items())
    inside = f", except {', '.join(policy.inside)}" if policy.inside else ""
    return PolicyDiff(
        loses=(f"every program: {'; '.join(names)}; all other devices{inside}",),
        keeps=tuple(describe_permissions(each for each in permissions(policy) if each.uplink)),
    )


def _moved_devices(before: Policy, after: Policy) -> tuple[list[str], list[str]]:
    """Return the lines about devices that became an uplink's, or ceased to be one: losses, then gains."""
    old = {device: name for name, uplink in before.uplink.items() for device in uplink.devices}
    new = {device: name for name, uplink in after.uplink.items() for device in uplink.devices}
    loses, gains = [], []
    for device, name in new.items():
        if device in old:
            continue
        if matching_pattern(device, before.inside) not in (None, device):
            loses.append(f"every program loses {device}: it belongs to uplink {name}")
        gains.append(f"uplink {name} has device {device}")
    for device, name in old.items():
        if device not in new:
            loses.append(f"uplink {name} loses device {device}")
            if matching_pattern(device, after.inside) not in (None, device):
                gains.append(f"every program may use {device}: it is inside")
    return loses, gains


def _changes(before: Policy, after: Policy) -> Iterator[str]:
    """Yield the changed fields that no permission shows."""
    for title, shown_fields in _SHOWN_FIELDS.items():
        old, new = getattr(before, title), getattr(after, title)
        for name in (each for each in new if each in old):
            for key in (each.name for each in fields(type(new[name])) if each.name not in shown_fields):
                values = getattr(old[name], key), getattr(new[name], key)
                if values[0] != values[1]:
                    text = f": {' -> '.join(map(_text, values))}" if key not in _TABLES else " differs"
                    yield f"{title} {name}: {key}{text}"
    for name in (each for each in after.uplink if each in before.uplink):
        exclusive = [
            tuple(answer for answer in policy.uplink[name].answer if answer.exclusive) for policy in (before, after)
        ]
        if exclusive[0] != exclusive[1]:
            yield f"uplink {name}: exclusive answers: {' -> '.join(map(_text, exclusive))}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)
