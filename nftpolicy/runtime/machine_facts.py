# SPDX-License-Identifier: BSD-2-Clause
"""Facts about this machine for a first policy: state of the kernel, configuration files, processes."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path

from attrs import evolve

from ..compiler.object_names import AUXILIARY_TABLES, TABLE
from ..exceptions import NftpolicyError
from ..importers.machine.facts import (
    ForwardedPort,
    ListeningSocket,
    MachineFacts,
    SshSession,
    VpnProgram,
    WireguardTunnel,
)
from ..importers.machine.tunnel_files import parse_fastd, parse_openvpn, parse_wg_quick, parse_wg_show
from ..kernel.live_sockets import LiveSockets
from ..kernel.netlink import nft_ruleset
from ..kernel.netlink.rtnetlink import Rtnetlink
from ..kernel.netlink.sock_diag import TCP, UDP, InetSocket
from ..kernel.socket_owners import SocketOwner
from ..netstate import nft
from ..netstate.routing import RTPROT_NFTPOLICY, IpRule, Route
from ..netstate.state import Device
from ..policy.known_marks import MARK_USER_FILES
from .helper_environment import helper_environment
from .ownership import own_port
from .published_ports import published_ports
from .regular_file import read_regular

_LARGEST_FILE = 1 << 20  # bytes; a real configuration has a few hundred
_WG_TIMEOUT = 10  # seconds
_SSH_PORT = 22
_FEW_BITS, _ALL_BITS = 16, 0xFFFFFFFF
_DHCP_CLIENTS = {"NetworkManager", "systemd-network", "dhclient", "dhcpcd", "udhcpc", "connmand"}
# Process name -> program of `nftpolicy netconfig`, the first that runs.
_MANAGERS = {
    "NetworkManager": "networkmanager",
    "systemd-network": "networkd",
    "netifd": "netifd",
    "dhcpcd": "dhcpcd",
    "dhclient": "dhclient",
}


def read_machine_facts(etc: Path = Path("/etc")) -> MachineFacts:
    """Return the facts about the network namespace of this thread, with the files below `etc`.

    What this process may not read is left out. Raises OSError without rtnetlink.
    """
    rtnetlink = Rtnetlink()
    devices = tuple(rtnetlink.devices())
    rules, routes = [], []
    for family in (4, 6):
        with suppress(OSError):  # a kernel without this family
            rules += rtnetlink.rules(family)
            routes += rtnetlink.routes(family)
    tables: tuple[nft.Table, ...] = ()
    with suppress(NftpolicyError, OSError):
        tables = nft_ruleset.read_tables()
    sockets, owners = _sockets()
    programs = frozenset(_programs())
    return MachineFacts(
        name=socket.gethostname(),
        devices=devices,
        routes=tuple(route for route in routes if route.destination == "default"),
        rules=tuple(rules),
        marks=_marks_in_use(tables, rules),
        tables=_tables_in_use(rules, routes),
        mark_user_files=frozenset(file for file in MARK_USER_FILES if Path(file).exists()),
        groups=frozenset(group.gr_gid for group in grp.getgrall()),
        wireguard=tuple(_wireguard(devices, etc)),
        vpns=tuple(_vpns(etc, programs)),
        listening=tuple(_listening(sockets, owners)),
        sessions=tuple(_sessions(sockets, owners, devices)),
        forwarded_ports=tuple(_forwarded_ports(tables, devices)),
        uses_dhcp=bool(programs & _DHCP_CLIENTS),
        manager=_manager(programs, etc),
        forwards=_text(Path("/proc/sys/net/ipv4/ip_forward")).strip() == "1",
        is_complete=os.geteuid() == 0,
        in_force=any(table.name == TABLE for table in tables),
    )


def _tables_in_use(rules: Iterable[IpRule], routes: Sequence[Route]) -> frozenset[int]:
    """Return the tables of rules and routes, except nftpolicy's.

    A table without a rule that has routes of an uplink alone is one that its network manager fills for nftpolicy.
    """
    uplinks = {hop.device for each in routes if each.destination == "default" for hop in each.all_nexthops} - {None}
    by_route = {each.table for each in routes if any(hop.device not in uplinks for hop in each.all_nexthops)}
    own = {rule.table for rule in rules if rule.protocol == RTPROT_NFTPOLICY}
    return frozenset({rule.table for rule in rules} | by_route) - own


# --- marks ------------------------------------------------------------------------------------


def _marks_in_use(tables: Iterable[nft.Table], rules: Iterable[IpRule]) -> int:
    """Return the bits of marks that rules of other programs name."""
    bits = 0
    for rule in rules:
        if rule.protocol != RTPROT_NFTPOLICY and rule.mask:
            bits |= rule.mask if rule.mask != _ALL_BITS else rule.mark
    for table in tables:
        if table.name in (TABLE, *AUXILIARY_TABLES):
            continue
        for chain in table.chains:
            for rule_statement in (statement for rule in chain.rules for statement in rule.statements):
                parts = list(_parts(rule_statement))
                if any(isinstance(part, nft.Meta | nft.Ct) and part.key == "mark" for part in parts):
                    numbers = (part for part in parts if isinstance(part, int) and not isinstance(part, bool))
                    for number in numbers:  # a mask of the other bits counts as these bits
                        bits |= number if number.bit_count() <= _FEW_BITS else ~number & _ALL_BITS
    return bits


def _parts(item: object) -> Iterator[object]:
    """Yield a value and all values in it."""
    yield item
    for each in getattr(item, "__attrs_attrs__", ()):
        yield from _parts(getattr(item, each.name))
    if isinstance(item, tuple | frozenset):
        for value in item:
            yield from _parts(value)


# --- VPN programs -----------------------------------------------------------------------------


def _wireguard(devices: Iterable[Device], etc: Path) -> Iterator[WireguardTunnel]:
    kinds = {device.name: device.kind for device in devices}
    by_wg = parse_wg_show(_wg_show("listen-port"), _wg_show("fwmark"))
    tunnels = {name: WireguardTunnel(name) for name, kind in kinds.items() if kind == "wireguard" or name in by_wg}
    for file in _files(etc / "wireguard", "*.conf"):
        tunnels[file.stem] = parse_wg_quick(_text(file), file.stem, str(file))
    user_space = not _has_kernel_wireguard() and shutil.which("wireguard-go") is not None
    for name, tunnel in tunnels.items():
        port, mark = by_wg.get(name, (0, 0))
        is_program = kinds[name] == "tun" if name in kinds else user_space
        if tunnel.file is None:  # else wg-quick chooses what the file does not say anew at each start
            tunnel = evolve(tunnel, listen_port=port, fwmark=mark)
        yield evolve(tunnel, user_space=is_program)


def _wg_show(key: str) -> list[str]:
    """Return the lines of `wg show all KEY`; none without wg(8) or the right to ask. It shows no secret key."""
    program = shutil.which("wg")
    if program is None:
        return []
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [program, "show", "all", key],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_WG_TIMEOUT,
            check=True,
            env=helper_environment(),
        ).stdout.splitlines()
    return []


def _has_kernel_wireguard() -> bool:
    if Path("/sys/module/wireguard").exists():
        return True
    modules = Path("/lib/modules") / os.uname().release
    return any("/wireguard.ko" in _text(modules / name) for name in ("modules.dep", "modules.builtin"))


def _vpns(etc: Path, programs: frozenset[str]) -> Iterator[VpnProgram]:
    for directory in (etc / "openvpn/client", etc / "openvpn"):
        for file in _files(directory, "*.conf"):
            client = parse_openvpn(_text(file), file.stem, str(file))
            if client is not None:
                yield client
    for file in _files(etc / "fastd", "*/fastd.conf"):
        yield parse_fastd(_text(file), file.parent.name, str(file))
    if "tunneldigger" in programs:
        yield VpnProgram("tunneldigger", "tunneldigger")


def _files(directory: Path, pattern: str) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.glob(pattern))
    return []


def _text(file: Path) -> str:
    with suppress(OSError):
        return read_regular(file, _LARGEST_FILE).decode(errors="replace")
    return ""


# --- processes and sockets --------------------------------------------------------------------


def _programs() -> Iterator[str]:
    """Yield the names of the processes in this network namespace, of at most 15 characters (proc_pid_comm(5)).

    Where the namespace of a process is hidden, it counts as this one.
    """
    own = Path("/proc/self/ns/net").stat().st_ino
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            namespace = own
            with suppress(OSError):  # of another user
                namespace = (entry / "ns/net").stat().st_ino
            if namespace == own:
                yield _text(entry / "comm").strip()


def _manager(programs: frozenset[str], etc: Path) -> str | None:
    if any(line.split()[:1] == ["iface"] and "lo" not in line.split()[1:2]
           for line in _text(etc / "network/interfaces").splitlines()):  # fmt: skip
        return "ifupdown"
    return next((manager for name, manager in _MANAGERS.items() if name in programs), None)


def _sockets() -> tuple[list[InetSocket], Mapping[int, SocketOwner]]:
    with suppress(NftpolicyError, OSError), LiveSockets() as live:
        sockets = [each for each in live.sockets() if each.protocol in (TCP, UDP)]
        return sockets, live.socket_owners({each.inode for each in sockets} - {0})
    return [], {}


def _is_listening(each: InetSocket) -> bool:
    return each.state == "listen" if each.protocol == TCP else bool(each.sport) and not each.is_connected


def _listening(sockets: Iterable[InetSocket], owners: Mapping[int, SocketOwner]) -> Iterator[ListeningSocket]:
    for each in filter(_is_listening, sockets):
        owner = owners.get(each.inode)
        port = own_port(each)
        yield ListeningSocket(port, each.local, each.bound, owner.name if owner is not None else "")


def _sessions(
    sockets: Iterable[InetSocket], owners: Mapping[int, SocketOwner], devices: Iterable[Device]
) -> Iterator[SshSession]:
    """Yield the SSH sessions: that of this process (SSH_CONNECTION), and the connections of SSH servers."""
    by_address = {str(ip_interface(text).ip): each.name for each in devices for text in each.addresses}
    ends = [os.environ.get("SSH_CONNECTION", "").split()]  # address and port of the client, then of the server
    servers = {
        each.sport
        for each in filter(_is_listening, sockets)
        if each.protocol == TCP
        and (each.sport == _SSH_PORT or (each.inode in owners and owners[each.inode].name in ("sshd", "dropbear")))
    }
    for each in sockets:
        if each.protocol == TCP and each.is_connected and each.sport in servers:
            ends.append([str(each.remote), str(each.dport), str(each.local), str(each.sport)])
    for words in ends:
        with suppress(ValueError):
            client, _, address, port = words
            address = str(ip_address(address.partition("%")[0]))
            if address in by_address and not ip_address(address).is_loopback and 0 < int(port) < 1 << 16:
                yield SshSession(client, int(port), by_address[address])


def _forwarded_ports(tables: Iterable[nft.Table], devices: Iterable[Device]) -> Iterator[ForwardedPort]:
    networks = [(ip_interface(text).network, each.name) for each in devices for text in each.addresses]
    for published in published_ports(tables):
        device = None
        with suppress(ValueError):
            address = ip_address(published.address or "")
            device = next((name for network, name in networks if address in network), None)
        yield ForwardedPort(published.port, device)
