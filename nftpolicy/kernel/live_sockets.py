# SPDX-License-Identifier: BSD-2-Clause
"""Sockets and conntrack entries of this network namespace: list and destroy them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from ..generated_text import CheckedText, fill, join, word
from ..netstate.formats import nft_text
from .errors import Unavailable
from .libnft import Nft
from .netlink.conntrack import Conntrack, ConntrackEntry, FlowAddresses
from .netlink.rtnetlink import RouteLookups, Rtnetlink
from .netlink.sock_diag import TCP, UDP, InetSocket, SockDiag
from .socket_owners import SocketOwner, cgroup_numbers, socket_owners

# The kernel deletes a table with an owner when the socket of the owner closes, however the process
# ends.
_RESET_TABLE = """table inet nftpolicy-closing {{
    flags owner
    chain resets {{
        type filter hook postrouting priority 9000; policy accept
{rules}    }}
}}
"""
_MARK_RULE = '        oifname != "lo" meta mark & {mask:#x} == {value:#x} tcp flags & rst != 0 drop\n'
_ADDRESS_RULE = "        oifname != {{ {names} }} {family} saddr {{ {sources} }} tcp flags & rst != 0 drop\n"


class LiveSockets:
    """Sockets and flows in the network namespace of the thread that creates it. A context manager.

    Each method raises Unavailable if the kernel lacks support, or the process a capability.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._diag: SockDiag | None = None
        self._conntrack: Conntrack | None = None
        self._lookups: RouteLookups | None = None

    def __enter__(self) -> LiveSockets:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sockets(self) -> list[InetSocket]:
        """Return all IP sockets that sock_diag lists."""
        return self._sock_diag().sockets()

    def destroy(self, entry: InetSocket) -> str:
        """Destroy a socket from `sockets`: see SockDiag.destroy."""
        return self._sock_diag().destroy(entry)

    def _sock_diag(self) -> SockDiag:
        if self._diag is None:
            self._diag = self._stack.enter_context(SockDiag())
        return self._diag

    def flows(self, value: int, mask: int) -> list[ConntrackEntry]:
        """Return the flows with `value` as conntrack mark & mask."""
        return self._connection_tracking().flows(value, mask)

    def mark_flow(self, flow: FlowAddresses, value: int, mask: int) -> bool:
        """Set the bits `mask` of a flow's mark to `value`; return False if there is no such flow."""
        return self._connection_tracking().mark_flow(flow, value, mask)

    def delete_flow(self, entry: ConntrackEntry) -> bool:
        """Delete a flow from `flows`; return False if it has gone."""
        return self._connection_tracking().delete_flow(entry)

    def _connection_tracking(self) -> Conntrack:
        if self._conntrack is None:
            self._conntrack = self._stack.enter_context(Conntrack())
        return self._conntrack

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Return the addresses of each device, without prefix length."""
        return {
            device.name: tuple(address.partition("/")[0] for address in device.addresses)
            for device in Rtnetlink().devices()
        }

    def owner_groups(self, inodes: Iterable[int]) -> dict[int, int]:
        """Return the group that opened each socket, by inode.

        Skip sockets that /proc does not show.
        """
        return {inode: process.gid for inode, process in socket_owners(inodes).items()}

    def socket_owners(self, inodes: Iterable[int]) -> dict[int, SocketOwner]:
        """Return the owning process of each socket, by inode.

        Skip sockets that /proc does not show.
        """
        return socket_owners(inodes)

    def cgroup_numbers(self, paths: Iterable[str]) -> dict[str, set[int]]:
        """Return the numbers of cgroups and of the cgroups below them, by path."""
        return cgroup_numbers(paths)

    def egress_device(self, entry: InetSocket) -> str | None:
        """Return the output device of a connected socket by the routes of now; None if there is no route."""
        if self._lookups is None:
            self._lookups = self._stack.enter_context(RouteLookups())
        if entry.remote is None:
            return None
        has_ports = entry.protocol in (TCP, UDP)
        try:
            route = self._lookups.get_route(
                entry.family,
                entry.remote,
                entry.local,
                entry.mark or 0,
                None,
                entry.bound,
                entry.uid,
                entry.protocol if has_ports else 0,
                entry.sport if has_ports else 0,
                entry.dport if has_ports else 0,
            )
        except KeyError:  # the device that it is bound to has gone
            return None
        return None if isinstance(route, int) else route.device

    @contextmanager
    def suppress_resets(
        self, marks: Iterable[tuple[int, int]], addresses: Iterable[str], devices: Iterable[str]
    ) -> Iterator[str | None]:
        """Drop TCP resets that carry one of the marks (value, mask), within this context.

        Drop those from one of `addresses` as well, unless they leave by one of `devices`. The
        kernel sends a reset for each connection that is destroyed, by the routes of that moment.
        Yield None, or the reason why resets cannot be dropped.
        """
        try:
            rules = join("", _reset_rules(marks, set(addresses), set(devices)))
            if not rules:
                yield None
                return
            owner = Nft()
            error = owner.load(fill(_RESET_TABLE, rules=rules))
        except (Unavailable, ValueError) as refusal:  # ValueError: a device with a name that nft cannot read
            yield str(refusal)
            return
        if error is not None:
            yield error.strip().splitlines()[0]
            return
        try:
            yield None
        finally:
            owner.load("delete table inet nftpolicy-closing\n")


def _reset_rules(marks: Iterable[tuple[int, int]], addresses: set[str], devices: set[str]) -> Iterator[CheckedText]:
    """Yield a rule for each mark, and one for the addresses of each family. Raises ValueError."""
    for value, mask in marks:
        yield fill(_MARK_RULE, mask=mask, value=value)
    names = join(", ", [nft_text.quoted_name(device) for device in (*sorted(devices), "lo")])
    for family, separator in (("ip", "."), ("ip6", ":")):
        sources = join(", ", [word(address) for address in sorted(addresses) if separator in address])
        if sources:
            yield fill(_ADDRESS_RULE, names=names, family=word(family), sources=sources)
