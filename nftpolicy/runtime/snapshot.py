# SPDX-License-Identifier: BSD-2-Clause
"""Snapshot: everything that a proof reads of one network namespace, as one JSON document.

A proof of the snapshot, on any machine and without root, is the proof of the machine at that time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import Factory, frozen

from ..exceptions import NftpolicyError
from ..netstate.formats import router_snapshot
from ..netstate.formats.json_text import describe_json_error, encode_json, parse_json
from ..netstate.formats.snapshot_codec import decode_value, encode_value
from ..netstate.formats.state_check import is_device_name, require_valid
from ..netstate.state import NetState, ports_of_devices
from ..policy.errors import PolicyText
from ..policy.load import AccountLookup, load
from ..policy.objects import Account, Policy
from .marks_in_use import MarksInUse, read_marks_in_use

if TYPE_CHECKING:
    from ..kernel.linux import Linux

FORMAT = "nftpolicy snapshot 1"


class SnapshotError(NftpolicyError):
    """A document is not a snapshot that this version can read; the message says why."""


@frozen
class PolicyInForce:
    """Policy that was in force: file name, text, and the numbers of its accounts on that machine.

    `accounts` has (kind, name or number as text, number); kind is "user" or "group".
    """

    name: str
    text: str
    accounts: tuple[tuple[str, str, int], ...] = ()

    def load(self) -> tuple[Policy, PolicyText]:
        """Return the policy with the accounts of its machine.

        Raises:
            PolicyError: the text is not a policy of this version.
        """
        numbers = {(kind, item): number for kind, item, number in self.accounts}

        def account(kind: str, item: object) -> Account:
            if (kind, str(item)) not in numbers:
                raise ValueError(f"the snapshot has no number of {kind} {item!r}")
            return Account(str(item), numbers[kind, str(item)])

        return load(self.text.encode(errors="surrogatepass"), self.name, account)  # refused as not UTF-8


@frozen
class Snapshot:
    """State of one network namespace at `time` (UTC, ISO 8601), and the features of its kernel.

    `program` is the version of nftpolicy that read it, `kernel` the release of Linux. `assumptions`: what the
    file cannot show.
    """

    state: NetState
    bridge_ports: Mapping[str, tuple[str, ...]]
    devices: frozenset[str]
    egress_hook: bool
    families: tuple[int, ...]
    policy: PolicyInForce | None = None
    program: str = ""
    kernel: str = ""
    time: str = ""
    marks: MarksInUse = Factory(MarksInUse)
    assumptions: tuple[str, ...] = ()


def take_snapshot(kernel: Linux) -> Snapshot:
    """Return the snapshot of the network namespace of this process, without policy, versions and time."""
    state = kernel.read_all()
    devices = frozenset(device.name for device in state.devices)
    return Snapshot(
        bridge_ports=ports_of_devices(state.devices, sorted(devices)),
        state=state,
        devices=devices,
        egress_hook=kernel.supports_egress_hook("lo"),
        families=kernel.ip_families(),
        marks=read_marks_in_use(kernel),
    )


def policy_in_force(name: str, text: bytes, accounts: AccountLookup) -> PolicyInForce:
    """Return the policy in force with the numbers of its accounts on this machine.

    Raises:
        PolicyError: the text is no longer a valid policy here.
    """
    numbers: list[tuple[str, str, int]] = []

    def account(kind: str, item: object) -> Account:
        resolved = accounts(kind, item)
        numbers.append((kind, str(item), resolved.number))
        return resolved

    load(text, name, account)
    return PolicyInForce(name, text.decode(), tuple(numbers))


def encode_snapshot(snapshot: Snapshot) -> str:
    """Return the document of a snapshot."""
    return encode_json({"format": FORMAT, **encode_value(snapshot)}, indent=1) + "\n"


def decode_snapshot(text: bytes) -> Snapshot:
    """Return the snapshot in a document, or in the file that the script for a router writes.

    Raises:
        SnapshotError: it is not a snapshot, is damaged, or another version wrote it.
    """
    if text.startswith(router_snapshot.HEADER.encode().rpartition(b" ")[0]):
        return _of_router(text)
    try:
        document = parse_json(text)
    except (ValueError, RecursionError) as error:
        message = f"not the JSON that 'nftpolicy snapshot' prints: {describe_json_error(text, error)}"
        raise SnapshotError(message) from None
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise SnapshotError(f'not a snapshot of this version: its key "format" is not {FORMAT!r}')
    try:
        snapshot = decode_value(document, Snapshot)
        _require_valid_texts(snapshot)
        return snapshot
    except ValueError as error:
        version = document.get("program")
        version = version if isinstance(version, str) and version.isprintable() else "?"
        raise SnapshotError(f"damaged, or of another version (it is of nftpolicy {version}): {error}") from None


def _require_valid_texts(snapshot: Snapshot) -> None:
    """Check the texts of a snapshot that messages name. Raises ValueError."""
    for device in snapshot.devices:
        if not is_device_name(device):
            raise ValueError(f"{device!r} is not the name of a device")
    texts = [snapshot.program, snapshot.kernel, snapshot.time, *snapshot.assumptions]
    if snapshot.policy is not None:
        texts += [snapshot.policy.name, *(text for kind, name, _ in snapshot.policy.accounts for text in (kind, name))]
    for text in texts:
        if not text.isprintable():
            raise ValueError(f"{text!r} has control characters")


def _of_router(text: bytes) -> Snapshot:
    try:
        router = router_snapshot.parse_router_snapshot(text.decode("utf-8", "surrogateescape"))
        require_valid(router.state)
    except (router_snapshot.RouterSnapshotError, ValueError) as error:
        raise SnapshotError(str(error)) from None
    devices = frozenset(device.name for device in router.state.devices)
    return Snapshot(
        state=router.state,
        bridge_ports=ports_of_devices(router.state.devices, sorted(devices)),
        devices=devices,
        egress_hook=router.egress_hook,
        families=router.families,
        kernel=router.kernel,
        time=router.time,
        marks=MarksInUse(router.flows, None),
        assumptions=router.assumptions,
    )
