# SPDX-License-Identifier: BSD-2-Clause
"""The watch: waits for the kernel's word, puts back what goes missing, and proves again what others change.

Two ways lead back. What a message names is put back from text that lies ready, within milliseconds.
Whatever else may have happened is found by a look at everything, in a child, so that the first way never
waits for it. Pure decisions are in `watching`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, Protocol

from attrs import evolve, field, frozen

from ..compiler import names
from ..compiler.block import block
from ..compiler.compile import Machine
from ..compiler.second import second
from ..kernel.interface import Kernel, Refused, Unavailable
from ..kernel.monitor import UNKNOWN, Author, News
from ..kernel.notify import Manager
from ..netstate import text
from ..netstate.changes import NftTransaction, RuleChange, Step
from ..netstate.nft import Table
from ..netstate.state import NetState
from ..policy.errors import PolicyError
from ..policy.objects import Policy
from ..proof.promise import claim
from ..proof.prover import prove
from ..proof.verdict import PROVED
from . import watching
from .apply import NotHeld, Prospect, StillChanged, apply, prospect
from .change import Changer
from .errand import Errand
from .journal import Text
from .memory import Busy
from .recover import NoWay, recover
from .status import describe, step_lines
from .unproved import NotProved, NotSafe
from .watching import Exposure, Fights, Held, Pace, Remedy, by, earliest

_LOCKED = 0.02  # seconds until somebody else's lock is tried again
_FAILED = 1.0  # and after a failure
_COMPARE = 5.0  # seconds between two comparisons of the sysctls whose changes nobody may have told
_LONGEST = 120.0  # seconds for a look at everything
_SHOWN = 6  # steps named in a line
_FAILURES = (Refused, NotHeld, StillChanged, NoWay, NotProved, NotSafe, Unavailable, OSError)

Say = Callable[[str, dict[str, Any]], None]  # an event, and the facts about it


class Ears(Protocol):
    """What the watch wants of kernel.monitor.Monitor."""

    @property
    def descriptors(self) -> tuple[int, ...]: ...
    def read(self) -> News: ...
    def watch_sysctls(self, paths: Any) -> None: ...
    def watch_folder(self, folder: Any) -> None: ...
    def sysctls(self) -> dict[str, str]: ...
    def leave_out(self, ports: Any) -> None: ...


@frozen
class World:
    """What the watch works with.

    `fresh` makes a kernel that shares no socket with another, for children. `load` carries out nft text (or only
    asks whether it could), and returns what is wrong with it or None. `ports` are this process's netlink
    sockets. `owns`: the kernel knows tables with an owner, and `load` always has the same one. `sent` counts
    packets that devices have sent, `counted` those of the named counters of our tables.
    """

    changer: Changer
    fresh: Callable[[], Kernel]
    ears: Ears
    load: Callable[[str, bool], str | None]
    say: Say
    sent: Callable[[Any], int]
    counted: Callable[[str], dict[str, int]]
    ports: Callable[[], frozenset[int]] = frozenset
    manager: Manager = field(factory=Manager)
    block_unknown: bool = False
    owns: bool = False
    now: Callable[[], float] = time.monotonic


@frozen
class _Since:
    """When something went missing, and by then: packets that the uplinks had sent and that the guard had stopped."""

    at: float
    sent: int
    stopped: int | None  # None: there was no time to ask, or nobody left to


class Watch:
    """See the module. `run` ends on SIGTERM and SIGINT; nothing is taken back then."""

    def __init__(self, world: World) -> None:
        self.world, self.kernel, self.memory = world, world.changer.kernel, world.changer.memory
        self.text: Text | None = None
        self.policy: Policy | None = None
        self.held: Held | None = None
        self.blocked = False
        self.verdict = ""
        self._machine = Machine()
        self._look, self._proof, self._fights = Pace(0.02, 1.0), Pace(), Fights()
        self._errand: Errand | None = None
        self._errand_proves = False
        self._repairs = self._repairs_then = 0
        self._state: int | None = None  # a hash of what the verdict is about
        self._failures: list[str] = []
        self._said: object = None
        self._since: _Since | None = None
        self._author = UNKNOWN
        self._sums = {"ms": 0.0, "passed": 0, "stopped": 0}
        self._again: float | None = None  # when to try for the lock again
        self._second: tuple[Table, ...] = ()  # the second guard, as it is loaded
        self._compare = self._alive = 0.0
        self._poll = select.poll()

    # --- the loop ---

    def run(self) -> None:
        """Watch until a signal comes."""
        with _signals() as ending:
            self.world.say("start", {"pid": os.getpid()})
            self._poll.register(ending, select.POLLIN)
            self.begin()
            for one in self.world.ears.descriptors:
                self._poll.register(one, select.POLLIN)
            self.world.manager.tell(READY=1, STATUS=self._status())
            try:
                while not self._wait(ending):
                    self.turn()
            finally:
                if self._errand:
                    self._errand.cancel()
                self.world.manager.tell(STOPPING=1)
        facts: dict[str, Any] = {"policy": self.policy.name} if self.policy else {}
        self.world.say("end", {**facts, **({"blocked": "stays"} if self.blocked else {})})

    def begin(self) -> None:
        """Look for what was applied last, and put in order what is not as it should be."""
        self.memory.folder.mkdir(parents=True, exist_ok=True)
        self.world.ears.watch_folder(self.memory.folder)
        self.world.ears.leave_out(self.world.ports())
        self._compare = self.world.now() + _COMPARE
        self._in_order()
        if self.held is None and self._again is None:
            self.world.say("waiting", {"for": "a policy to be applied"})

    def _wait(self, ending: int) -> bool:
        """Sleep until there is something to do; whether that is to end."""
        watchdog = self.world.manager.watchdog
        looks = () if self._errand else (self._look.due(), self._proof.due())
        times = [*looks, self._again, self._fights.due()]
        times += [self._compare] if self.held else []
        times += [self._alive + watchdog] if watchdog else []
        times += [self._errand.begun + _LONGEST] if self._errand else []
        until = earliest(times)
        wait = None if until is None else max(0.0, until - self.world.now()) * 1000 + 0.5
        return any(descriptor == ending for descriptor, _ in self._poll.poll(wait))

    def turn(self) -> None:
        """Do all that is due now. Never waits for a message."""
        now = self.world.now()
        self._react(self.world.ears.read(), now)
        if self._errand and self._errand.ended():
            self._answered()
        elif self._errand and now > self._errand.begun + _LONGEST:
            self._given_up()
        if self._again is not None and now >= self._again:
            self._in_order()
        if self.held and now >= self._compare:
            self._compare = now + _COMPARE
            self._quick(self.held.remedy(News(), self.world.ears.sysctls()), UNKNOWN, now)
        self._look_if_due()
        if number := self._fights.word(self.world.now()):
            self._tell_of_a_fight(number)
        watchdog = self.world.manager.watchdog
        if watchdog and now >= self._alive + watchdog:
            self._alive = now
            self.world.manager.tell(WATCHDOG=1)

    # --- what a message says ---

    def _react(self, news: News, now: float) -> None:
        if news.files:
            self._again = now
        if not news or self.held is None:
            return
        if news.lost:
            self.world.say("lost", {"why": "more changes than the kernel keeps", "then": "a look at everything"})
        if news.links:
            self.world.ears.watch_sysctls(self.held.sysctls)
        values = self.world.ears.sysctls() if news.sysctls or news.links else {}
        if news.damage:
            self._author = news.author
        if (news.damage and not news.sysctls) or news.links:
            self._since = self._since or self._opened(now, bool(news.gone or news.chains))
        self._quick(self.held.remedy(news, values), news.author, now)
        if news.aside and self.blocked:
            self._alone(self._load_block)
        if news.damage or news.links or news.addresses:
            self._look.want()
        if news.damage or news.foreign or news.ladder or news.links:
            self._proof.want()

    def _quick(self, remedy: Remedy, author: Author, now: float) -> None:
        """Put back what was seen to go, from what lies ready."""
        if not remedy:
            return
        since = self._since or self._opened(now, bool(remedy.nft))
        if self._again is not None:
            self._since = since  # it is not our turn, and everything is looked at when it is
            return
        done = False

        def put_back() -> None:
            nonlocal done
            if self.memory.policy() != self.text or self.memory.journal.interrupted():
                return
            if remedy.nft and (wrong := self.world.load(remedy.nft, False)):
                self.world.say("failed", {"what": remedy.what, "why": wrong.strip().splitlines()[0]})
                return
            for change in remedy.changes:
                with suppress(Refused):  # it is back already, or its device has gone: the look finds out
                    self.kernel.carry_out(change)
            done = True

        if self._alone(put_back) and done:
            self._restored(list(remedy.what), author, since, bool(remedy.nft))
        else:
            self._since = since
            self._again = self._again or now
        self._look.want()
        self._proof.want()

    def _opened(self, now: float, guard: bool) -> _Since:
        """Something went missing; `guard`: of the guard itself, whose counters may be gone too."""
        return _Since(now, self._sent(), None if guard else self._stopped())

    def _sent(self) -> int:
        if self.policy is None:
            return 0
        devices = {device for uplink in self.policy.uplink.values() for device in uplink.devices}
        return self.world.sent(devices | {port for ports in self._machine.ports.values() for port in ports})

    def _stopped(self) -> int:
        with suppress(OSError):
            return watching.stopped(self.world.counted(names.TABLE))
        return 0

    def _restored(self, what: list[str], author: Author, since: _Since, guard: bool) -> None:
        now = self.world.now()
        exposure = Exposure(
            now - since.at,
            max(0, self._sent() - since.sent) if guard else None,
            None if guard or since.stopped is None else max(0, self._stopped() - since.stopped),
        )
        self._since, self._author = None, author
        self._repairs += 1
        facts = exposure.facts()
        if self._fights.repaired(now):
            self.world.say("restored", {"what": what, **by(author), **facts})
        else:
            self._sums = {key: value + facts.get(key, 0) for key, value in self._sums.items()}

    def _tell_of_a_fight(self, number: int) -> None:
        sums = {**self._sums, "ms": round(self._sums["ms"], 1)}
        self._sums = dict.fromkeys(self._sums, 0)
        self.world.say("fight", {**by(self._author), "times": number, **sums})

    # --- alone, and in order ---

    def _alone(self, action: Callable[[], None]) -> bool:
        """Do it while nobody else changes anything; False, and another try later, if somebody does."""
        try:
            with self.memory.alone():
                action()
            return True
        except Busy:
            self._again = self.world.now() + _LOCKED
        except _FAILURES as error:
            self._again = self.world.now() + _FAILED
            self.world.say("failed", {"why": str(error) or type(error).__name__})
        return False

    def _in_order(self) -> None:
        """Alone: end what was interrupted, adopt what was applied last, and make the kernel hold it."""
        self._again = None
        self._alone(self._set_in_order)

    def _set_in_order(self) -> None:
        if self.memory.journal.interrupted() is not None:
            recover(self.world.changer, tell=lambda line: self.world.say("interrupted", {"what": line}))
        self._adopt(self.memory.policy())
        if self.policy is None:
            return
        found = prospect(self.kernel, self.policy, self.memory)
        if found.plan.steps:
            since = self._since or self._opened(self.world.now(), False)
            apply(self.kernel, found, self.memory)
            guard = any(isinstance(step, NftTransaction) for step in found.plan.steps)
            self._restored(list(_named(found.plan.steps)), self._author, since, guard)
        self._since = None
        self._hold(found)

    def _hold(self, found: Prospect) -> None:
        self._machine = Machine(
            found.ports, any(one.family == "netdev" for one in found.desired.tables), found.unhooked
        )
        if self.held is None or self.held.desired != found.desired:
            self.held = Held(found.desired)
        self.world.ears.watch_sysctls(self.held.sysctls)
        self._double(second(self.held.desired))
        self._warm()
        self.world.ears.leave_out(self.world.ports())
        self._proof.want()

    def _warm(self) -> None:
        """Do once what will be in a hurry: libraries are loaded at their first use, and sockets get an address."""
        assert self.held is not None
        self._sent(), self._stopped()
        self.world.load(self.held.everything, True)
        for rule in self.held.desired.rules[:1]:
            with suppress(Refused):
                self.kernel.carry_out(RuleChange("add", rule))  # it is there

    def _adopt(self, latest: Text | None) -> None:
        """Follow what somebody applied or released meanwhile."""
        if latest == self.text and (latest is None) == (self.policy is None):
            return
        if latest is None and self._is_there():
            assert self.text is not None  # nobody released it: the file is gone, no more
            self.memory.remember_policy(*self.text)
            self.world.say("remembered", {"policy": self.text[0], "why": "the file was gone, the guard was not"})
            return
        self.text, self.policy, self.held, self._state, self.verdict = latest, None, None, None, ""
        if latest is None:
            self._double(())
            self._lift("released")
            self.world.ears.watch_sysctls(())
            self.world.say("released", {"then": "nothing is held until a policy is applied"})
        else:
            try:
                self.policy = self.world.changer.load(latest)
            except (PolicyError, ValueError) as error:
                self.world.say("failed", {"what": latest[0], "why": str(error), "then": "nothing is held"})
                self._status_now()
                return
            self.blocked = bool(self._block_tables())
            if self.blocked:
                self.world.say("blocked", {"policy": self.policy.name, "why": "it was found so"})
            self.world.say("holding", {"policy": self.policy.name, "file": latest[0]})
        self._status_now()

    def _is_there(self) -> bool:
        return self.text is not None and bool(self.kernel.observe(names.TABLE, ("inet",), 0, ()).tables)

    # --- the look at everything ---

    def _look_if_due(self) -> None:
        if self._errand or self.policy is None or self.held is None or self._again is not None:
            return
        now = self.world.now()
        proof, look = self._proof.due(), self._look.due()
        self._errand_proves = proof is not None and now >= proof
        if not self._errand_proves and not (look is not None and now >= look):
            return
        self._look.begin()
        if self._errand_proves:
            self._proof.begin()
        self._repairs_then = self._repairs
        policy, known = self.policy, self._state
        self._errand = Errand(
            lambda: inspect(self.world.fresh(), policy, self.world.changer, self._errand_proves, known)
        )
        self._poll.register(self._errand.descriptor, select.POLLIN)

    def _end_of_errand(self) -> Errand:
        assert self._errand is not None
        errand, self._errand = self._errand, None
        self._poll.unregister(errand.descriptor)
        now = self.world.now()
        took = now - errand.begun
        self._look.end(now, took)
        if self._errand_proves:
            self._proof.end(now, took)
        return errand

    def _given_up(self) -> None:
        self._end_of_errand().cancel()
        self._proof.want()
        self.world.say("failed", {"why": f"a look at the kernel took more than {_LONGEST:.0f} s"})

    def _answered(self) -> None:
        try:
            found = self._end_of_errand().answer()
        except ValueError as error:
            self.world.say("failed", {"why": str(error)})
            self._again = self.world.now() + _FAILED
            return
        if found["differs"]:
            self._in_order()
        elif self._repairs == self._repairs_then:
            self._since = None
            if self._errand_proves:
                self._judge(found)

    def _judge(self, found: dict[str, Any]) -> None:
        if found["state"] != self._state:
            self._state, self.verdict = found["state"], found["verdict"]
            self._failures = found["failures"]
            said = (self.verdict, self._failures)
            if said != self._said:
                self._said = said
                why = {"why": self._failures} if self._failures else {}
                self.world.say("proof", {"verdict": self.verdict, **why})
        stops = watching.blocks(self.verdict, self.world.block_unknown)
        if stops and not self.blocked and self._alone(self._load_block) and self.blocked:
            self.world.say("blocked", {"policy": self.policy.name if self.policy else "", "why": self._failures})
        if self.verdict == PROVED and self.blocked:
            self._alone(lambda: self._lift("the proof holds again"))
        self._status_now()

    # --- the second guard ---

    def _double(self, tables: tuple[Table, ...]) -> None:
        """Put it in the place of what is loaded of it. The first guard stands whatever comes of that."""
        if not self.world.owns or (not tables and not self._second):
            return
        text = "".join([*map(watching.away, self._second), *map(watching.owned, tables)])
        if wrong := self.world.load(text, False):
            self.world.say("failed", {"what": "the second guard", "why": wrong.strip().splitlines()[0]})
        else:
            self._second = tables

    # --- the block ---

    def _load_block(self) -> None:
        if self.policy is None or self.memory.policy() != self.text:
            return
        tables = block([self.policy], self._machine)
        wrong = self.world.load("".join(map(watching.anew, tables)), False)
        self.blocked = wrong is None
        if wrong is not None:
            self._state = None
            self.world.say("failed", {"what": "the block", "why": wrong.strip().splitlines()[0]})

    def _block_tables(self) -> tuple[Table, ...]:
        return self.kernel.observe(names.BLOCK_TABLE, names.FAMILIES, 0, ()).tables

    def _lift(self, why: str) -> None:
        there = self._block_tables() if self.blocked else ()
        commands = [f"delete table {text.name(one.family)} {text.name(one.name)}\n" for one in there]
        if commands and (wrong := self.world.load("".join(commands), False)):
            self.world.say("failed", {"what": "the end of the block", "why": wrong.strip().splitlines()[0]})
            self._proof.want()
            self._state = None
            return
        if self.blocked:
            self.blocked = False
            self.world.say("lifted", {"why": why})

    # --- the service manager ---

    def _status(self) -> str:
        if self.policy is None:
            return "no policy is in force"
        return f"{'BLOCKED, ' if self.blocked else ''}{self.policy.name}: {self.verdict or 'held'}"

    def _status_now(self) -> None:
        self.world.manager.tell(STATUS=self._status())


def inspect(kernel: Kernel, policy: Policy, changer: Changer, proves: bool, known: int | None) -> dict[str, Any]:
    """Whether the kernel differs from what the policy wants; and if not and it is asked for, the proof with the
    tables of everybody, without what stands beside our guard. A state that is `known` is not proved again. For JSON."""
    found = prospect(kernel, policy, changer.memory)
    if found.plan.steps or not proves:
        return {"differs": bool(found.plan.steps)}
    state = kernel.everything()
    state = evolve(state, tables=tuple(one for one in state.tables if one.name not in names.ASIDE))
    mark = hash(_decisive(state))
    if mark == known:
        return {"differs": False, "state": mark, "verdict": "", "failures": []}
    asked = evolve(claim(policy, found.ports), frames=not found.unhooked, families=kernel.ip_families())
    proof = prove(state, asked, use=False)
    failures = [
        " ".join(filter(None, (one.property, one.uplink, one.verdict, one.subject, one.detail, *one.doubts[:1])))
        for one in proof.findings
        if one.deciding and one.verdict != PROVED
    ]
    return {"differs": False, "state": mark, "verdict": proof.verdict, "failures": failures[:_SHOWN]}


def _decisive(state: NetState) -> object:
    return state.tables, state.rules, state.routes, state.sysctls, state.devices


def _named(steps: Sequence[Step]) -> Iterator[str]:
    """The first few things that steps do, and how many more there are."""
    done = list(chain.from_iterable(map(_parts, steps)))
    yield from done[:_SHOWN]
    if len(done) > _SHOWN:
        yield f"and {len(done) - _SHOWN} more"


def _parts(step: Step) -> list[str]:
    if not isinstance(step, NftTransaction):
        return step_lines(step)
    return [f"{one.verb} {describe(one.object)}" for one in step.operations]


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable when this process is asked to end, which it does between two actions."""
    ended, end = os.pipe()
    os.set_blocking(end, False)
    kept = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    before = signal.set_wakeup_fd(end)
    try:
        yield ended
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in kept.items():
            signal.signal(number, handler)
        os.close(ended)
        os.close(end)
