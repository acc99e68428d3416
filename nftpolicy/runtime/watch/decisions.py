# SPDX-License-Identifier: BSD-2-Clause
"""What the watch decides, apart from how it waits and acts: nothing here touches a kernel or a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Factory, define, field, frozen

from ...compiler import names
from ...kernel.monitor import Author, News
from ...netstate import nft, text
from ...netstate.changes import NftOperation, RouteChange, RuleChange, Rules, SysctlChange
from ...netstate.state import NetState
from ...proof.verdict import PROVED, REFUTED

Change = RuleChange | RouteChange | SysctlChange


@frozen
class Remedy:
    """What puts back at once what was seen to go: one nft transaction as text ("" for none), and single changes."""

    nft: str = ""
    changes: tuple[Change, ...] = ()
    what: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nft or self.changes)


@define
class Held:
    """A desired state, with the text of its tables ready to be loaded."""

    desired: NetState
    _tables: dict[str, str] = field(init=False)
    _chains: dict[tuple[str, str], nft.Chain] = field(init=False)
    _values: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tables = {one.family: anew(one) for one in self.desired.tables}
        self._chains = {(one.family, chain.name): chain for one in self.desired.tables for chain in one.chains}
        self._values = {one.path: one.value for one in self.desired.sysctls}

    @property
    def sysctls(self) -> tuple[str, ...]:
        """The paths of the sysctls that it wants."""
        return tuple(self._values)

    @property
    def everything(self) -> str:
        """All tables as one transaction."""
        return "".join(self._tables.values())

    def remedy(self, news: News, values: Mapping[str, str]) -> Remedy:
        """What answers the news. `values` are the sysctls as they are now, if they may have changed."""
        gone = [family for family in self._tables if family in news.gone]
        chains = [one for one in sorted(news.chains) if one in self._chains and one[0] not in gone]
        rules = set(self.desired.rules).intersection(news.rules) if news.rules else ()
        routes = set(self.desired.routes).intersection(news.routes) if news.routes else ()
        wrong = [one for one in self.desired.sysctls if values.get(one.path, one.value) != one.value]
        changes: list[Change] = [SysctlChange(values[one.path], one) for one in wrong]
        changes += [RouteChange("add", one) for one in self.desired.routes if one in routes]
        changes += [RuleChange("add", one) for one in self.desired.rules if one in rules]
        what = [*(f"table:{family}" for family in gone), *(f"chain:{name}" for _, name in chains)]
        what += [f"sysctl:{one.path}" for one in wrong]
        what += [f"{kind}:{len(found)}" for kind, found in (("routes", routes), ("rules", rules)) if found]
        load = [self._tables[family] for family in gone] + [
            _chain(family, self._chains[family, name]) for family, name in chains
        ]
        return Remedy("".join(load), tuple(changes), tuple(what))


def anew(table: nft.Table) -> str:
    """The table in the place of whatever has its name, in one transaction."""
    name = f"{table.family} {table.name}"
    return f"table {name}\ndelete table {name}\n{text.table(table)}\n"


def owned(table: nft.Table) -> str:
    """The table as one that belongs to whoever loads it, for as long as that lives."""
    first, rest = text.table(table).split("\n", 1)
    return f"{first}\n\tflags owner\n{rest}\n"


def away(table: nft.Table) -> str:
    """The end of a table."""
    return f"delete table {table.family} {table.name}\n"


def _chain(family: str, chain: nft.Chain) -> str:
    """The chain with its own rules alone. Counters and sets of the table stay as they are."""

    def told(verb: str, item: nft.Chain | Rules) -> str:
        return text.operation(NftOperation(verb, family, names.TABLE, item)) + "\n"

    return told("add", chain) + told("flush", chain) + (told("add", Rules(chain, chain.rules)) if chain.rules else "")


@define
class Pace:
    """When to look at everything: at once after a quiet time, then as seldom as what a look costs asks for.

    `rest` is the least time in seconds between the end of a look and the next, `share` how much longer than the
    last look the rest is at least.
    """

    rest: float = 0.2
    share: float = 4.0
    _wanted: bool = False
    _not_before: float = 0.0

    def want(self) -> None:
        """Something has changed."""
        self._wanted = True

    def due(self) -> float | None:
        """When the next look is to begin; None: nothing asks for one."""
        return self._not_before if self._wanted else None

    def begin(self) -> None:
        """A look begins: whatever changes from now on asks for another one."""
        self._wanted = False

    def end(self, now: float, took: float) -> None:
        """It has ended, `took` seconds after it began."""
        self._not_before = now + max(self.rest, self.share * took)


@define
class Fights:
    """Tells a fight with another program from single mishaps: more than `most` repairs in `within` seconds."""

    most: int = 5
    within: float = 3.0
    every: float = 5.0  # seconds between two words about the same fight
    _times: deque[float] = Factory(deque)
    _told: float | None = None
    _untold: int = 0

    def repaired(self, now: float) -> bool:
        """Count a repair; whether it is to be told by itself."""
        self._times.append(now)
        while self._times[0] < now - self.within or len(self._times) > self.most + 1:
            self._times.popleft()
        if len(self._times) > self.most:
            self._untold += 1
            return False
        self._told = None
        return True

    def word(self, now: float) -> int:
        """How many repairs were not told by themselves, if that is to be said now; else 0."""
        if not self._untold or (self._told is not None and now < self._told + self.every):
            return 0
        self._told, number, self._untold = now, self._untold, 0
        return number

    def due(self) -> float | None:
        """When `word` has something to say at the latest; None: it has nothing."""
        return None if not self._untold else (self._told or 0) + self.every


@frozen
class Exposure:
    """How open the machine was while something was missing.

    `seconds`: from the moment this process was told until it was back. `passed`, if the guard itself was
    missing: packets that the uplinks sent meanwhile, whosever they were. `stopped`, if the guard stood: how
    many it stopped.
    """

    seconds: float
    passed: int | None = None
    stopped: int | None = None

    def facts(self) -> dict[str, Any]:
        """For a line of the log."""
        counts = {"passed": self.passed, "stopped": self.stopped}
        known = {name: count for name, count in counts.items() if count is not None}
        return {"ms": round(self.seconds * 1000, 1), **known}


def blocks(verdict: str, also_unknown: bool) -> bool:
    """Whether a verdict asks for the block."""
    return verdict == REFUTED or (also_unknown and verdict not in (PROVED, ""))


def stopped(counters: Mapping[str, int]) -> int:
    """Packets that the guard has stopped, of all its counters that are not about what may pass."""
    return sum(packets for name, packets in counters.items() if not _MAY_PASS.intersection(name.split(".")))


_MAY_PASS = frozenset({"exempt", "answer"})


def by(author: Author) -> dict[str, Any]:
    """Who did it, for a line of the log."""
    return {"by": author.name, **({"pid": author.pid} if author.pid is not None else {})}


def line(facts: Mapping[str, Any]) -> str:
    """key=value, with quotes where a value has blanks, quotes or nothing."""
    return " ".join(f"{key}={_value(value)}" for key, value in facts.items())


def _value(value: Any) -> str:
    words = str(value)
    if isinstance(value, list | tuple):
        each = list(map(str, value))
        words = ("; " if any(" " in one for one in each) else ",").join(each)
    plain = words and not any(one.isspace() or one in '"=\\' or not one.isprintable() for one in words)
    if plain:
        return words
    escaped = words.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in escaped) + '"'


def earliest(times: Iterable[float | None]) -> float | None:
    """The first of some moments; None if there is none."""
    return min((one for one in times if one is not None), default=None)
