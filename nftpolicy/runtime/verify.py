# SPDX-License-Identifier: BSD-2-Clause
"""A policy, or the marks of some uplinks, held against a state: the compiled one, the kernel's, or one from files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ..compiler import names
from ..compiler.compile import compile_policy
from ..netstate.state import NetState
from ..policy.mark import Mark
from ..policy.objects import Policy
from ..proof.claim import BOTH, Claim, UplinkClaim
from ..proof.promise import claim as promised
from ..proof.promise import hole
from ..proof.prover import Progress, prove
from ..proof.verdict import REFUTED, Counterexample, Finding, Proof

if TYPE_CHECKING:
    from ..kernel.linux import Linux
    from .changes.apply import Prospect

Ports = Mapping[str, Sequence[str]]  # bridge -> its ports


def _silent(_: str) -> None:
    pass


@frozen
class Asked:
    """An uplink that no policy describes: its name, its devices, the mark of what may use it."""

    name: str
    devices: tuple[str, ...]
    mark: Mark


@frozen
class Has:
    """What a kernel has: the netdev egress hook, and address families."""

    egress: bool = True
    families: tuple[int, ...] = BOTH


@frozen
class Judged:
    """A proof, and what it is about. `unjudged` says what was not looked at, since it was not given."""

    name: str
    state: NetState
    claim: Claim
    proof: Proof
    policy: Policy | None = None
    unjudged: tuple[str, ...] = ()

    @property
    def applied(self) -> bool:
        """Whether tables of ours are there at all."""
        return self.state.table("inet", names.TABLE) is not None

    @property
    def decides(self) -> tuple[str, ...]:
        """The properties that the verdict is made of, in order."""
        return tuple(sorted({one.property for one in self.proof.findings if one.deciding}))

    def refutations(self) -> list[tuple[Finding, Counterexample]]:
        """Every packet that refutes something, those that decide first."""
        found = sorted(
            (one for one in self.proof.findings if one.verdict == REFUTED),
            key=lambda one: (not one.deciding, one.property),
        )
        return [(one, example) for one in found for example in one.examples]

    def script(self, finding: Finding, example: Counterexample) -> str | None:
        """The packet as a script that anybody can run; None if leaving by a device is not what it is about.

        Raises:
            ValueError: the state has names that can't be written in a script.
        """
        from ..proof.script import script
        from ..proof.surroundings import completed

        device = example.device or example.walk.device
        if not device:
            return None
        uplink = f", uplink {finding.uplink}" if finding.uplink else ""
        title = f"{finding.property}{uplink}: {finding.subject}"
        return script(completed(self.state, self.claim)[0], example.packet, device, title)


def of_policy(policy: Policy, progress: Progress = _silent) -> Judged:
    """What a policy compiles to, on no machine in particular, so that the verdict is the same everywhere."""
    state, claim = compile_policy(policy), promised(policy)
    return Judged("what it compiles to", state, claim, prove(state, claim, progress), policy)


def of_prospect(found: Prospect, policy: Policy, families: tuple[int, ...]) -> Proof:
    """What is about to be applied: nothing can happen that must not. Whether all words can be used is for check."""
    claim = evolve(promised(policy, found.ports), frames=not found.unhooked, families=families)
    return prove(found.desired, claim, use=False)


def of_kernel(kernel: Linux, wanted: Policy | Sequence[Asked], exempt: Iterable[str], progress: Progress) -> Judged:
    """This kernel, with the tables, rules and routes of everybody."""
    policy = wanted if isinstance(wanted, Policy) else None
    devices = [device for one in _uplinks(wanted) for device in one.devices]
    ports = kernel.bridge_ports(devices)
    state = kernel.everything()
    if policy is not None:
        state = _named(state, policy, ports)
    absent = sorted(set(devices) - kernel.links())
    unjudged = tuple(f"ports of {device}: it is not on this machine now" for device in absent)
    has = Has(kernel.takes_link_guard("lo"), kernel.ip_families())
    return _of_state("this kernel", state, wanted, ports, exempt, unjudged, progress, has)


def of_files(state: NetState, wanted: Policy | Sequence[Asked], exempt: Iterable[str], progress: Progress) -> Judged:
    """A state that was read from files. Which ports bridges have is not in them."""
    if isinstance(wanted, Policy):
        state = _named(state, wanted, {})
    return _of_state("the files", state, wanted, {}, exempt, tuple(_not_given(state)), progress)


def _of_state(
    name: str,
    state: NetState,
    wanted: Policy | Sequence[Asked],
    ports: Ports,
    exempt: Iterable[str],
    unjudged: tuple[str, ...],
    progress: Progress,
    has: Has = Has(),
) -> Judged:
    if isinstance(wanted, Policy):
        claim = evolve(promised(wanted, ports), frames=has.egress, families=has.families)
        return Judged(name, state, claim, prove(state, claim, progress), wanted, unjudged)
    claim = asked_claim(wanted, exempt, ports)
    return Judged(name, state, claim, prove(state, claim, progress), None, unjudged)


def asked_claim(uplinks: Iterable[Asked], exempt: Iterable[str] = (), ports: Ports | None = None) -> Claim:
    """The claim where no policy is at hand. KeyError if there is no such exemption."""
    words = tuple(exempt)
    return Claim(
        tuple(
            UplinkClaim(
                one.name,
                one.devices,
                one.mark.value,
                one.mark.mask,
                ports=tuple(port for device in one.devices for port in (ports or {}).get(device, ())),
                holes=tuple(hole(word, one.name) for word in words),
                origin=("uplink", one.name),
            )
            for one in uplinks
        )
    )


def _uplinks(wanted: Policy | Sequence[Asked]) -> Iterable:  # type: ignore[type-arg]
    return wanted.uplink.values() if isinstance(wanted, Policy) else wanted


def _named(state: NetState, policy: Policy, ports: Ports) -> NetState:
    """The state with the policy's keys on what is as the policy wants it."""
    from .explain import compiled, with_origins

    return with_origins(state, compiled(policy, ports))


def _not_given(state: NetState) -> Iterable[str]:
    for family in (4, 6):
        rules = any(one.family == family for one in state.rules)
        routes = any(one.family == family for one in state.routes)
        if not rules and not routes:
            yield f"how IPv{family} is routed: no ip rules and no routes of IPv{family} were given"
        elif not rules or not routes:
            yield f"how IPv{family} is routed: no {'routes' if rules else 'ip rules'} of IPv{family} were given"
    yield "ports of bridges: these files do not name them"
    hooks = [chain.hook for table in state.tables for chain in table.chains if chain.hook]
    if any(hook.hook in ("ingress", "egress") and not (hook.device or hook.devices) for hook in hooks):
        yield "which devices have the chains at ingress and egress: an old nft does not tell it in JSON"
