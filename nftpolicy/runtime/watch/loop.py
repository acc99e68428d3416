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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...compiler import names
from ...compiler.compile import Machine
from ...compiler.second import second
from ...kernel.interface import Refused, Unavailable
from ...kernel.monitor import UNKNOWN, Author, News
from ...netstate.changes import NftTransaction, RuleChange
from ...policy.errors import PolicyError
from ...policy.objects import Policy
from ...proof.verdict import PROVED
from ..changes.apply import NotHeld, Prospect, StillChanged, apply, prospect
from ..changes.journal import Text
from ..changes.memory import Busy
from ..changes.recover import NoWay, recover
from ..changes.unproved import NotProved, NotSafe
from ..changes.wording import summary
from . import decisions as watching
from .aside import Aside
from .decisions import Held, Pace, Remedy, earliest
from .errand import Errand
from .keeper import Keeper
from .look import inspect
from .repairs import Repairs
from .sockets import SocketWatch
from .world import World

_LOCKED = 0.02  # seconds until somebody else's lock is tried again
_FAILED = 1.0  # and after a failure
_COMPARE = 5.0  # seconds between two comparisons of the sysctls whose changes nobody may have told
_LONGEST = 120.0  # seconds for a look at everything
_FAILURES = (Refused, NotHeld, StillChanged, NoWay, NotProved, NotSafe, Unavailable, OSError)


class Watch:
    """See the module. `run` ends on SIGTERM and SIGINT; nothing is taken back then."""

    def __init__(self, world: World) -> None:
        self.world, self.kernel, self.memory = world, world.changer.kernel, world.changer.memory
        self.text: Text | None = None
        self.policy: Policy | None = None
        self.held: Held | None = None
        self._aside = Aside(world)
        self.verdict = ""
        self._machine = Machine()
        self._look, self._proof, self._repairs = Pace(0.02, 1.0), Pace(), Repairs(world)
        self._keeper = Keeper(world)
        self._errand: Errand | None = None
        self._errand_proves = False
        self._repairs_then = 0
        self._state: int | None = None  # a hash of what the verdict is about
        self._failures: list[str] = []
        self._said: object = None
        self._again: float | None = None  # when to try for the lock again
        self._compare = self._alive = 0.0
        self._poll = select.poll()
        self._sockets = SocketWatch(self.kernel, world, self._poll)

    @property
    def blocked(self) -> bool:
        """Whether the uplinks are stopped."""
        return self._aside.blocked

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
                self._sockets.cancel()
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
        times = [*looks, self._again, self._repairs.due(), self._keeper.due(), self._sockets.due(self.policy)]
        times += [self._compare] if self.held else []
        times += [self._alive + watchdog] if watchdog else []
        times += [self._errand.begun + _LONGEST] if self._errand else []
        until = earliest(times)
        wait = None if until is None else max(0.0, until - self.world.now()) * 1000 + 0.5
        return any(descriptor == ending for descriptor, _ in self._poll.poll(wait))

    def turn(self) -> None:
        """Do all that is due now. Never waits for a message."""
        now = self.world.now()
        self._react(news := self.world.ears.read(), now)
        self._keeper.turn(news)
        if self._errand and self._errand.ended():
            self._answered()
        elif self._errand and now > self._errand.begun + _LONGEST:
            self._given_up()
        if self._again is not None and now >= self._again:
            self._in_order()
        if self.held and now >= self._compare:
            self._compare = now + _COMPARE
            self._quick(self.held.remedy(News(), self.world.ears.sysctls()), UNKNOWN, now)
            for facts in self.world.leaks(self.policy):
                self.world.say("resolver-leak", facts)
        self._look_if_due()
        self._sockets.turn(self.policy)
        self._repairs.tell()
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
            self._repairs.author = news.author
        if (news.damage and not news.sysctls) or news.links:
            self._repairs.begin(bool(news.gone or news.chains))
        self._quick(self.held.remedy(news, values), news.author, now)
        if news.aside and self._aside.blocked:
            self._alone(self._block)
        if news.damage or news.links or news.addresses:
            self._look.want()
        if news.damage or news.foreign or news.ladder or news.links:
            self._proof.want()

    def _quick(self, remedy: Remedy, author: Author, now: float) -> None:
        """Put back what was seen to go, from what lies ready."""
        if not remedy:
            return
        self._repairs.begin(bool(remedy.nft))
        if self._again is not None:
            return  # it is not our turn, and everything is looked at when it is
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
            self._repairs.done(remedy.what, author, bool(remedy.nft))
        else:
            self._again = self._again or now
        self._look.want()
        self._proof.want()

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
        self._repairs.devices = self._devices()
        found = prospect(self.kernel, self.policy, self.memory)
        if found.plan.steps:
            self._repairs.begin(False)
            apply(self.kernel, found, self.memory)
            guard = any(isinstance(step, NftTransaction) for step in found.plan.steps)
            self._repairs.done(list(summary(found.plan.steps)), self._repairs.author, guard)
        self._repairs.nothing()
        self._hold(found)

    def _hold(self, found: Prospect) -> None:
        self._machine = Machine(
            found.ports, any(one.family == "netdev" for one in found.desired.tables), found.unhooked
        )
        self._repairs.devices = self._devices()
        if self.held is None or self.held.desired != found.desired:
            self.held = Held(found.desired)
        self.world.ears.watch_sysctls(self.held.sysctls)
        self._aside.double(second(self.held.desired))
        self._keeper.hold(self.policy)
        self._warm()
        self.world.ears.leave_out(self.world.ports())
        self._proof.want()

    def _devices(self) -> frozenset[str]:
        assert self.policy is not None
        devices = {device for uplink in self.policy.uplink.values() for device in uplink.devices}
        return frozenset(devices | {port for ports in self._machine.ports.values() for port in ports})

    def _warm(self) -> None:
        """Do once what will be in a hurry: libraries are loaded at their first use, and sockets get an address."""
        assert self.held is not None
        self._repairs.warm()
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
        self._keeper.hold(None)
        if latest is None:
            self._aside.double(())
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
            if self._aside.find():
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
        self._repairs_then = self._repairs.number
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
        elif self._repairs.number == self._repairs_then:
            self._repairs.nothing()
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
        if stops and not self.blocked and self._alone(self._block) and self.blocked:
            self.world.say("blocked", {"policy": self.policy.name if self.policy else "", "why": self._failures})
        if self.verdict == PROVED and self.blocked:
            self._alone(lambda: self._lift("the proof holds again"))
        self._status_now()

    def _block(self) -> None:
        ours = self.policy is not None and self.memory.policy() == self.text
        if ours and not self._aside.block(self.policy, self._machine):
            self._state = None

    def _lift(self, why: str) -> None:
        if not self._aside.lift(why):
            self._proof.want()
            self._state = None

    # --- the service manager ---

    def _status(self) -> str:
        if self.policy is None:
            return "no policy is in force"
        return f"{'BLOCKED, ' if self.blocked else ''}{self.policy.name}: {self.verdict or 'held'}"

    def _status_now(self) -> None:
        self.world.manager.tell(STATUS=self._status())


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
