# SPDX-License-Identifier: BSD-2-Clause
"""What the watch works with: all that it does not decide itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from attrs import field, frozen

from ...kernel.interface import Kernel
from ...kernel.monitor import News
from ...kernel.moving import Held
from ...kernel.notify import Manager
from ...policy.objects import Policy
from ..changes.change import Changer

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


class Routes(Protocol):
    """What the keeper wants of kernel.moving.Routes."""

    def by(self, devices: Collection[str]) -> list[Held]: ...
    def addresses(self, devices: Collection[str]) -> dict[str, tuple[str, ...]]: ...
    def put(self, held: Held, table: int, protocol: int | None = None) -> int: ...
    def take(self, held: Held) -> int: ...


@frozen
class World:
    """What the watch works with.

    `fresh` makes a kernel that shares no socket with another, for children. `load` carries out nft text (or only
    asks whether it could), and returns what is wrong with it or None. `ports` are this process's netlink
    sockets. `owns`: the kernel knows tables with an owner, and `load` always has the same one. `sent` counts
    packets that devices have sent, `counted` those of the named counters of our tables. `leaks` says what has
    changed about the uplinks' DNS servers in the machine's own resolver. `routes`: to move those over uplinks;
    None: they stay where they are.
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
    routes: Routes | None = None
    now: Callable[[], float] = time.monotonic
    leaks: Callable[[Policy | None], Iterable[dict[str, Any]]] = lambda _: ()
