# SPDX-License-Identifier: BSD-2-Clause
"""Verification of a policy, or of the marks of some uplinks, in a state.

The state is the compiled one, the kernel's, or one from files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import evolve, frozen

from ..compiler import object_names
from ..compiler.compile import compile_policy
from ..exceptions import NftpolicyError
from ..netstate.formats.nft_json_hidden import hidden_tests
from ..netstate.state import NetState
from ..policy.mark import Mark
from ..policy.objects import Policy
from ..proof.exemption_spec import exemption
from ..proof.policy_spec import build_spec
from ..proof.prover import Progress, prove
from ..proof.spec import IP_FAMILIES, Spec, UplinkSpec
from ..proof.verdict import REFUTED, Counterexample, Finding, Proof
from .marks_in_use import MarksInUse
from .snapshot import Snapshot

Ports = Mapping[str, Sequence[str]]  # bridge -> its ports


def _no_progress(_: str) -> None:
    pass


class AlternativeNameError(NftpolicyError):
    """A device of an uplink is named by an alternative name (ip-link(8), altname)."""


@frozen
class GivenUplink:
    """An uplink given by options, without a policy: name, devices, and the mark that may use it."""

    name: str
    devices: tuple[str, ...]
    mark: Mark


@frozen
class KernelFeatures:
    """Features of a kernel: the netdev egress hook, and its address families."""

    egress: bool = True
    families: tuple[int, ...] = IP_FAMILIES


@frozen
class Verification:
    """A proof with its subject. `not_verified`: what was not verified, since it was not given."""

    name: str
    state: NetState
    spec: Spec
    proof: Proof
    policy: Policy | None = None
    not_verified: tuple[str, ...] = ()

    @property
    def has_own_table(self) -> bool:
        """True if the state has a table of nftpolicy."""
        return self.state.table("inet", object_names.TABLE) is not None

    @property
    def deciding_properties(self) -> tuple[str, ...]:
        """The properties that decide the verdict, sorted."""
        deciding = {finding.property for finding in self.proof.findings if finding.deciding}
        return tuple(sorted(deciding))

    def refutations(self) -> list[tuple[Finding, Counterexample]]:
        """Return every counterexample with its finding, those that decide the verdict first."""
        refuted = [finding for finding in self.proof.findings if finding.verdict == REFUTED]
        refuted.sort(key=lambda finding: (not finding.deciding, finding.property))
        return [(finding, example) for finding in refuted for example in finding.examples]

    def reproduction_script(self, finding: Finding, example: Counterexample) -> str | None:
        """Return a shell script that sends the counterexample's packet in namespaces of its own.

        None if the finding is not about a packet that leaves by a device.

        Raises:
            ValueError: the state has names that cannot be written in a script.
        """
        from ..proof.assumptions import add_assumed_environment
        from ..proof.reproduce.script import reproduction_script

        device = example.device or example.trace.device
        if not device:
            return None
        uplink = f", uplink {finding.uplink}" if finding.uplink else ""
        title = f"{finding.property}{uplink}: {finding.subject}"
        return reproduction_script(add_assumed_environment(self.state, self.spec)[0], example.packet, device, title)


def verify_policy(policy: Policy, progress: Progress = _no_progress) -> Verification:
    """Verify a compiled policy without a machine, so that the verdict is the same on every host."""
    state, spec = compile_policy(policy), build_spec(policy)
    return Verification("what it compiles to", state, spec, prove(state, spec, progress), policy)


def verify_snapshot(
    name: str,
    snapshot: Snapshot,
    subject: Policy | Sequence[GivenUplink],
    exempt: Iterable[str],
    progress: Progress,
) -> Verification:
    """Verify what was read of a kernel; `name` says which, for the report."""
    devices = _devices(subject)
    ports = {device: snapshot.bridge_ports[device] for device in devices if device in snapshot.bridge_ports}
    state = snapshot.state
    if isinstance(subject, Policy):
        state = _with_policy_keys(state, subject, ports)
    absent = sorted(set(devices) - snapshot.devices)
    _require_own_names(state, absent)
    unjudged = tuple(f"ports of {device}: it is not on this machine now" for device in absent)
    features = KernelFeatures(snapshot.egress_hook, snapshot.families)
    verification = _verify(name, state, subject, ports, exempt, unjudged, progress, features, snapshot.marks)
    return _with_assumptions(verification, snapshot.assumptions)


def _require_own_names(state: NetState, names: Iterable[str]) -> None:
    """Check that no name is an alternative name of a device.

    Raises:
        AlternativeNameError: one is.
    """
    for name in names:
        for device in state.devices:
            if name in device.other_names:
                raise AlternativeNameError(
                    f"{name!r} is an alternative name of {device.name!r}, and rules of nftables match by the name "
                    f"alone: use {device.name!r}"
                )


def verify_files(
    state: NetState,
    subject: Policy | Sequence[GivenUplink],
    exempt: Iterable[str],
    progress: Progress,
) -> Verification:
    """Verify a state that was read from files, which do not have the ports of bridges."""
    if isinstance(subject, Policy):
        state = _with_policy_keys(state, subject, {})
    unjudged = tuple(_missing_parts(state))
    verification = _verify("the files", state, subject, {}, exempt, unjudged, progress, KernelFeatures(), MarksInUse())
    return _with_assumptions(verification, hidden_tests(state.tables))


def _with_assumptions(verification: Verification, further: Iterable[str]) -> Verification:
    proof = verification.proof
    return evolve(verification, proof=evolve(proof, assumptions=(*proof.assumptions, *further)))


def _verify(
    name: str,
    state: NetState,
    subject: Policy | Sequence[GivenUplink],
    ports: Ports,
    exempt: Iterable[str],
    unjudged: tuple[str, ...],
    progress: Progress,
    features: KernelFeatures,
    marks: MarksInUse,
) -> Verification:
    policy = None
    if isinstance(subject, Policy):
        policy = subject
        spec = build_spec(policy, ports)
        spec = evolve(spec, frames=features.egress, families=features.families)
    else:
        spec = spec_of_uplinks(subject, exempt, ports)
    spec = marks.count(spec)
    return Verification(name, state, spec, prove(state, spec, progress), policy, unjudged)


def spec_of_uplinks(
    uplinks: Iterable[GivenUplink],
    exempt: Iterable[str] = (),
    ports: Ports | None = None,
) -> Spec:
    """Return the spec of uplinks without a policy. Raises KeyError for an unknown exemption."""
    words = tuple(exempt)
    return Spec(tuple(_uplink_spec(uplink, words, ports or {}) for uplink in uplinks))


def _uplink_spec(uplink: GivenUplink, exempt: Sequence[str], ports: Ports) -> UplinkSpec:
    return UplinkSpec(
        uplink.name,
        uplink.devices,
        uplink.mark.value,
        uplink.mark.mask,
        ports=tuple(port for device in uplink.devices for port in ports.get(device, ())),
        exemptions=tuple(exemption(word, uplink.name) for word in exempt),
        origin=("uplink", uplink.name),
    )


def _devices(subject: Policy | Sequence[GivenUplink]) -> list[str]:
    if isinstance(subject, Policy):
        return [device for uplink in subject.uplink.values() for device in uplink.devices]
    return [device for uplink in subject for device in uplink.devices]


def _with_policy_keys(state: NetState, policy: Policy, ports: Ports) -> NetState:
    """Return the state with policy keys on the objects that equal the compiled ones."""
    from .explain import compile_for, with_origins

    return with_origins(state, compile_for(policy, ports))


def _missing_parts(state: NetState) -> Iterator[str]:
    """Yield the parts of a state that its files do not have."""
    for family in (4, 6):
        has_rules = any(rule.family == family for rule in state.rules)
        has_routes = any(route.family == family for route in state.routes)
        if not has_rules and not has_routes:
            yield f"routing of IPv{family}: no ip rules and no routes of IPv{family} were given"
        elif not has_rules:
            yield f"routing of IPv{family}: no ip rules of IPv{family} were given"
        elif not has_routes:
            yield f"routing of IPv{family}: no routes of IPv{family} were given"
    yield "ports of bridges: the files do not have them"
    for table in state.tables:
        for chain in table.chains:
            if chain.hook is not None and chain.hook.needs_device:
                path = f"{table.family} {table.name} {chain.name}"
                yield f"device of chain {path}: the ruleset does not name it; add --chain-device '{path}=DEVICE'"
