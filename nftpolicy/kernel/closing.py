# SPDX-License-Identifier: BSD-2-Clause
"""What runs in this network namespace, as far as it can be ended from outside: sockets and flows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from .conntrack import Conntrack, Flow
from .holders import Holder, cgroups, holders
from .interface import Unavailable
from .libnft import Nft
from .rtnetlink import Lookups, RtNetlink
from .sock_diag import TCP, UDP, Listed, SockDiag

# The kernel deletes a table with an owner when the owner's socket closes, whatever ends the process.
_MUFFLE = """table inet nftpolicy-closing {{
    flags owner
    chain resets {{
        type filter hook postrouting priority 9000; policy accept
{rules}    }}
}}
"""


class Running:
    """Sockets and flows in the network namespace of the thread that makes it. A context manager.

    Each method raises Unavailable where the kernel, or a right, is missing.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._diag: SockDiag | None = None
        self._conntrack: Conntrack | None = None
        self._lookups: Lookups | None = None

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def sockets(self) -> list[Listed]:
        """All IP sockets that sock_diag lists."""
        if self._diag is None:
            self._diag = self._stack.enter_context(SockDiag())
        return self._diag.sockets()

    def destroy(self, one: Listed) -> str:
        """End a socket that `sockets` listed: see SockDiag.destroy."""
        if self._diag is None:
            self._diag = self._stack.enter_context(SockDiag())
        return self._diag.destroy(one)

    def flows(self, value: int, mask: int) -> list[Flow]:
        """The flows whose mark and `mask` is `value`."""
        if self._conntrack is None:
            self._conntrack = self._stack.enter_context(Conntrack())
        return self._conntrack.flows(value, mask)

    def forget(self, one: Flow) -> bool:
        """Delete one flow that `flows` listed; False if it is gone."""
        if self._conntrack is None:
            self._conntrack = self._stack.enter_context(Conntrack())
        return self._conntrack.forget(one)

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """The addresses of each device, without their lengths."""
        return {
            device.name: tuple(one.partition("/")[0] for one in device.addresses) for device in RtNetlink().devices()
        }

    def groups(self, inodes: Iterable[int]) -> dict[int, int]:
        """The group of who opened each socket, for those that a process holds which /proc shows here."""
        return {inode: one.gid for inode, one in holders(inodes).items()}

    def holders(self, inodes: Iterable[int]) -> dict[int, Holder]:
        """The process that holds each socket, for those that /proc shows here."""
        return holders(inodes)

    def cgroups(self, paths: Iterable[str]) -> dict[str, set[int]]:
        """The numbers of cgroups with those below them, by path."""
        return cgroups(paths)

    def leads(self, one: Listed) -> str | None:
        """The device by which packets of a connected socket would leave now; None if by none."""
        if self._lookups is None:
            self._lookups = self._stack.enter_context(Lookups())
        if one.remote is None:
            return None
        protocol = one.protocol if one.protocol in (TCP, UDP) else 0
        try:
            found = self._lookups.getroute(
                one.family, one.remote, one.local, one.mark or 0, None, one.bound, one.uid, protocol,
                one.sport if protocol else 0, one.dport if protocol else 0,
            )  # fmt: skip
        except KeyError:  # the device that it is bound to is gone
            return None
        return None if isinstance(found, int) else found.device

    @contextmanager
    def muffled(
        self, marks: Iterable[tuple[int, int]], addresses: Iterable[str], devices: Iterable[str]
    ) -> Iterator[str | None]:
        """Within this, no TCP reset leaves that wears one of the marks (value, mask), nor one from these
        addresses by other devices than `devices`.

        The kernel sends a reset for each connection that is destroyed, by the routes as they are then.
        Gives None, or why it can't be.
        """
        rules = [
            f'oifname != "lo" meta mark & {mask:#x} == {value:#x} tcp flags & rst != 0 drop' for value, mask in marks
        ]
        ways = ", ".join(f'"{one}"' for one in (*sorted(set(devices)), "lo"))
        for family, known in (("ip", "."), ("ip6", ":")):
            mine = ", ".join(sorted({one for one in addresses if known in one}))
            rules += [f"oifname != {{ {ways} }} {family} saddr {{ {mine} }} tcp flags & rst != 0 drop"] if mine else []
        if not rules:
            yield None
            return
        try:
            owner = Nft()
            error = owner.load(_MUFFLE.format(rules="".join(f"        {one}\n" for one in rules)))
        except Unavailable as unavailable:
            yield str(unavailable)
            return
        if error is not None:
            yield error.strip().splitlines()[0]
            return
        try:
            yield None
        finally:
            owner.load("delete table inet nftpolicy-closing\n")
