# SPDX-License-Identifier: BSD-2-Clause
"""Facts about a machine from which a first policy is drafted."""

from __future__ import annotations

from attrs import frozen

from ...netstate.routing import IpRule, Route
from ...netstate.state import Device
from ...policy.objects import Port


@frozen
class WireguardTunnel:
    """WireGuard tunnel: a device, a file of wg-quick(8), or both.

    `file` is None without a file. `listen_port` and `fwmark` are those of the file, else of the device; 0 if unset.
    `has_default_route`: AllowedIPs has a default route. `endpoint_names`: the endpoints that are no addresses.
    `user_space`: a program such as wireguard-go sends its packets, not the kernel.
    """

    name: str
    file: str | None = None
    listen_port: int = 0
    fwmark: int = 0
    has_default_route: bool = False
    endpoint_names: tuple[str, ...] = ()
    user_space: bool = False


@frozen
class VpnProgram:
    """VPN client of a configuration file or a process: `program` is "openvpn", "fastd" or "tunneldigger".

    `file` is "" without a file. `mark` is the one that the file sets; 0 if none. `looks_up_names`: a server is given
    by its name.
    """

    program: str
    name: str
    file: str = ""
    mark: int = 0
    looks_up_names: bool = True


@frozen
class ListeningSocket:
    """Server socket of this machine: `address` is None for all addresses, `device` the one that it is bound to."""

    port: Port
    address: str | None = None
    device: str | None = None
    program: str = ""


@frozen
class SshSession:
    """SSH session from `client` to this machine's TCP port `port`; its packets arrive by `device`."""

    client: str
    port: int
    device: str


@frozen
class ForwardedPort:
    """Port of this machine that a rule forwards to a host behind `device`; None if the device is not known."""

    port: Port
    device: str | None


@frozen
class MachineFacts:
    """Facts about this machine.

    `marks` and `tables` are in use, apart from those of nftpolicy itself; `mark_user_files` are files of programs with
    marks of their own (known_marks.py). `groups`: numbers in use. `uses_dhcp`: a DHCP client runs. `manager`: the
    program of `nftpolicy netconfig` that configures the network, or None. `forwards`: forwarding of IPv4 is on.
    `is_complete`: nothing was hidden for lack of rights. `in_force`: a policy is in force.
    """

    name: str = ""
    devices: tuple[Device, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[IpRule, ...] = ()
    marks: int = 0
    tables: frozenset[int] = frozenset()
    mark_user_files: frozenset[str] = frozenset()
    groups: frozenset[int] = frozenset()
    wireguard: tuple[WireguardTunnel, ...] = ()
    vpns: tuple[VpnProgram, ...] = ()
    listening: tuple[ListeningSocket, ...] = ()
    sessions: tuple[SshSession, ...] = ()
    forwarded_ports: tuple[ForwardedPort, ...] = ()
    uses_dhcp: bool = True
    manager: str | None = None
    forwards: bool = False
    is_complete: bool = True
    in_force: bool = False
