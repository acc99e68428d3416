# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy rollback [N]"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Optional

import typer

from ..policy.errors import Source
from . import changes
from .common import BAD_INPUT, Failure, changing, done, parse_policy, this_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..policy.objects import Policy
    from ..runtime.changes.change import Changer, Outlook, Wanted
    from ..runtime.changes.deadman import Around
    from ..runtime.changes.history import History
    from ..runtime.changes.memory import Memory
    from ..runtime.changes.pending import Back, Pending


def command(
    number: Optional[int] = typer.Argument(None, metavar="[N]", help="Its number; without it, the one before."),  # noqa: UP045
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would change, and change nothing."),
    at_deadline: bool = typer.Option(False, "--at-deadline", hidden=True),
) -> None:
    """Apply a policy of the history again, after the same proof as apply."""
    if at_deadline:
        _at_deadline()
        return
    kernel = this_kernel()
    from ..runtime.changes import history, pending
    from ..runtime.changes.change import Options

    changer = changes.changer(kernel, Options())
    memory = changer.memory
    kept = history.of_this_namespace(memory)
    with declining(), changing(None):
        trial = _trial(memory, number)
        back = _chosen(kept, memory, number, trial)
    around: Around = partial(pending.claimed, memory, trial.token) if trial else partial(pending.unless_pending, memory)
    what = "release" if back is None else f"rollback to {back.number}" if back.number else f"rollback to {back.file}"
    with _ending("nothing was changed"):
        policy, source = _loaded(back) if back else (None, None)
    wanted = _wanted(policy, back)
    with declining(), changing(source):
        if dry_run:
            print(changes.dry(changer.outlook(wanted), "the kernel holds it already"))
            return
        outlook = _go(changer, wanted, back, what, around)
    if policy is None:
        print(done(outlook.found, "released", "there was nothing to release"))
    else:
        print(f"{policy.name}: {done(outlook.found, f'rolled back to {back}', f'the kernel holds {back} already')}")


def _trial(memory: Memory, number: int | None) -> Pending | None:
    """The policy on trial; a damaged note of one is in the way, unless it is said what shall be in force."""
    from ..runtime.changes import pending

    try:
        return pending.pending(memory)
    except pending.Declined:
        if number is None:
            raise
        pending.end(memory)
        return None


def _chosen(kept: History, memory: Memory, number: int | None, trial: Pending | None) -> Back | None:
    """What to go back to; None: release. Raises Failure."""
    from ..runtime.changes.pending import Back

    if number is None and trial is not None:
        return trial.back
    shelf = kept.read()
    if number is None:
        last = memory.policy()
        if last is None:
            raise Failure("no policy is in force; 'nftpolicy rollback N' applies number N of 'nftpolicy history'")
        entry = shelf.before(last[1])
        if entry is None:
            raise Failure("there is no policy before this one in the history: 'nftpolicy history' lists what there is")
    else:
        entry = shelf.entry(number)
        damaged = next((one for one in shelf.damaged if one.path == kept.path(number)), None)
        if damaged:
            raise Failure(f"{damaged.path}: damaged, so it can't be used: {damaged.reason}")
        if entry is None:
            raise Failure(
                f"there is no number {number} in the history: 'nftpolicy history' lists what there is", BAD_INPUT
            )
    return Back(entry.number, entry.file, entry.text)


def _loaded(back: Back) -> tuple[Policy, Source]:
    """The policy, by today's users and groups; its source is named so that nobody looks into today's file."""
    name = f"{back.file} (number {back.number})" if back.number else back.file
    return parse_policy(back.text.encode(), name)


@contextmanager
def declining() -> Iterator[None]:
    """What a policy on trial does not allow, as Failure."""
    from ..runtime.changes import pending

    try:
        yield
    except pending.Declined as declined:
        raise Failure(str(declined)) from None
    except pending.Gone:
        raise Failure("the policy on trial was confirmed or taken back just now: look at 'nftpolicy history'") from None


@contextmanager
def _ending(words: str) -> Iterator[None]:
    """Say more after what a Failure says."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{failure}\nnftpolicy: {words}", failure.status) from None


def _wanted(policy: Policy | None, back: Back | None) -> Wanted | None:
    from ..runtime.changes.change import Wanted

    return None if policy is None or back is None else Wanted(policy, (back.file, back.text.encode()))


def _go(changer: Changer, wanted: Wanted | None, back: Back | None, why: str, around: Around) -> Outlook:
    """Apply, or release. The kernel is as it was if this raises."""
    with changer.alone(), around():
        outlook = changer.outlook(wanted)
        changes.foretell(outlook)
        carried = changer.carry_out(outlook, wanted, why, back.number if back else None)
    changes.afterwards(carried)
    return outlook


def _at_deadline() -> None:
    """The process that 'apply --confirm' starts: waits, and goes back unless somebody confirms."""
    from ..runtime.changes import deadman, way  # noqa: F401 - all that is needed then is there now
    from ..runtime.changes.change import Options
    from ..runtime.changes.memory import Busy

    gc.enable()
    try:
        order = deadman.take_order()
    except (ValueError, TypeError, KeyError):
        raise Failure("--at-deadline is what 'apply --confirm' starts, and nobody else", BAD_INPUT) from None
    kernel = this_kernel()
    changer = changes.changer(kernel, Options())
    # Read now: by the deadline its users and groups may have other names, or none.
    policy, source = _loaded(order.back) if order.back else (None, None)
    wanted = _wanted(policy, order.back)
    with changing(source):
        changer.outlook(wanted)  # shows that it can be planned
    back = f"back to {order.back.number or order.back.file}" if order.back else "release"

    def go_back(around: Around) -> None:
        busy = None
        with changing(source):
            try:
                _go(changer, wanted, order.back, f"confirm timed out, {back}", around)
            except Busy as error:
                busy = error
        if busy:
            raise busy

    with declining(), changing(source):
        deadman.stand(changer.memory, order, go_back, deadman.say_ready)
