# SPDX-License-Identifier: BSD-2-Clause
"""The guard for the time before nftpolicy runs: static files that `nft -f` alone puts into the kernel.

Each file is one transaction that takes the place of whatever its table was, so it can be loaded at any
time with the same result. Users and groups are numbers, and what is named (tcp, arp) is of nft's own
grammar, so nothing is looked up at boot.

Three files, since a transaction is carried out whole or not at all:

- the guard of the IP layer, which needs no device to be there;
- the guard of the link layer, whose chains a kernel before Linux 6.18 or so takes only for devices
  that are there;
- a block, made of the least that nft can say: it drops all but what goes to `lo` or to a device inside.
  It is loaded before the guard and stays if the guard can't be loaded. All three use the tables of
  `nftpolicy apply`, which takes what it finds there as the beginning of its difference.
"""

from __future__ import annotations

from pathlib import Path

from attrs import evolve, frozen

from ...compiler.block import least
from ...compiler.compile import compile_policy
from ...kernel.interface import Kernel
from ...netstate import text
from ...netstate.nft import Table
from ...netstate.state import NetState
from ...planner.plan import plan
from ...policy.objects import Policy
from ...proof.promise import claim
from ...proof.prover import guards
from ...proof.verdict import PROVED
from ..changes.apply import Prospect, apply, prospect
from ..changes.memory import Memory
from ..changes.unproved import NotProved

GUARD = Path("/etc/nftpolicy/guard.nft")

_HEAD = """# nftpolicy: {what}.
# Written by 'nftpolicy guard', to be loaded by 'nft -f'. Not to be changed here: change the policy,
# and type 'nftpolicy guard' again.

"""
_GUARD = "the guard of the IP layer, from the start of the machine until 'nftpolicy apply'"
_LINK = "the guard of the link layer, which some kernels take only when the devices are there"
_BLOCK = "nothing leaves by an uplink; in force if the guard can't be loaded"


@frozen
class Tables:
    """What the files say: the guard at the IP layer, at the link layer, and the block."""

    guard: Table
    link: Table
    block: Table

    def shown(self) -> str:
        """The file of the guard at the IP layer."""
        return whole(self.guard, _GUARD)

    def files(self, where: Path = GUARD) -> dict[Path, bytes]:
        """Path -> content of all three; `where` is the guard's, the others stand beside it."""
        texts = {where: self.shown(), link(where): whole(self.link, _LINK), block(where): whole(self.block, _BLOCK)}
        return {path: content.encode() for path, content in texts.items()}


def link(where: Path) -> Path:
    """The file of the link layer that belongs to a guard: guard.nft -> guard-link.nft."""
    return where.with_name(f"{where.stem}-link{where.suffix}")


def block(where: Path) -> Path:
    """The file of the block that belongs to a guard: guard.nft -> guard-block.nft."""
    return where.with_name(f"{where.stem}-block{where.suffix}")


def whole(table: Table, what: str) -> str:
    """A table as a file that can be loaded over any other state of it: to delete a table it must be there."""
    return _HEAD.format(what=what) + text.replacing(table)


def tables(policy: Policy) -> Tables:
    """The tables of a policy on no machine in particular: bridges have no ports yet when it starts.

    Raises:
        NotProved: one of the states that they can lead to does not hold P1 and P2.
    """
    guard, link = compile_policy(policy).tables
    found = Tables(guard, link, least(policy))
    promised = claim(policy)
    # Without the link layer, AF_PACKET sockets are not judged: they are not held back then.
    for held, frames in (((found.block,), False), ((guard,), False), ((guard, link), True)):
        proof = guards(NetState(held), evolve(promised, frames=frames))
        if proof.verdict != PROVED:
            raise NotProved(proof)
    return found


@frozen
class Loaded:
    """What came of loading. `others`: ip rules, routes or sysctls of ours in the kernel are not this policy's."""

    found: Prospect
    others: bool


def load(kernel: Kernel, policy: Policy, memory: Memory) -> Loaded:
    """Put the guard into this kernel by the difference to what it holds, so that no counter is lost.

    ip rules, routes and sysctls stay as they are. The caller is alone.

    Raises:
        Refused, NotHeld, StillChanged: see runtime.apply.
    """
    found = prospect(kernel, policy, memory)
    held = found.observed
    desired = evolve(held, tables=found.desired.tables)
    guarded = evolve(found, desired=desired, plan=plan(held, desired))
    apply(kernel, guarded, memory)
    rest = plan(desired, found.desired).steps
    return Loaded(guarded, bool(held.rules or held.routes) and bool(rest))
