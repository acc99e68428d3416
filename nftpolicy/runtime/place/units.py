# SPDX-License-Identifier: BSD-2-Clause
"""The systemd units, as text (systemd.unit(5), systemd.exec(5), systemd.special(7)).

No unit has an ExecStop: whatever systemd stops, what is in the kernel stays there.

The guard's unit has no condition on its file, since a unit whose condition fails is passed over in
silence. It loads the block first and then the guard, in one unit and in this order: a unit of its own
that starts when this one fails (OnFailure=) would start beside network-pre.target, not before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .boot import GUARD, block, link

POLICY = "/etc/nftpolicy/policy.toml"
UNITDIR = "/etc/systemd/system"

_PROGRAM = re.compile(r"/[A-Za-z0-9_./+@:-]+\Z")

_GUARD = """\
[Unit]
Description=Guard of the uplinks, before the network is up
Documentation=man:nftpolicy(1)
DefaultDependencies=no
RequiresMountsFor=/etc/nftpolicy {nft}
Wants=network-pre.target
Before=network-pre.target
# Debian's begins with "flush ruleset".
After=systemd-modules-load.service nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
# First nothing leaves; then what the policy lets leave. Where the second fails, the first stays.
ExecStart=-{nft} -f {block}
ExecStart={nft} -f {guard}
# Some kernels take it only when the devices are there; "apply" brings it then.
ExecStart=-{nft} -f {link}

[Install]
WantedBy=sysinit.target
"""

_APPLY = """\
[Unit]
Description=Policy of who may use the uplinks
Documentation=man:nftpolicy(1) man:nftpolicy.toml(5)
RequiresMountsFor=/etc/nftpolicy {program}
Wants=nftpolicy-guard.service
After=nftpolicy-guard.service nftables.service nss-user-lookup.target network.target
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={program} apply {policy}
# The guard of the next start is this policy's too.
ExecStartPost=-{program} guard --no-load {policy}
ExecReload={program} apply {policy}
ExecReload=-{program} guard --no-load {policy}
# A resolver reads the policy when it starts. Where the policy is refused, this is not reached, and they go on.
ExecReload=-systemctl --no-block try-restart {resolvers}
ReadWritePaths=/etc/nftpolicy
{hardening}
[Install]
WantedBy=multi-user.target
"""

_WATCH = """\
[Unit]
Description=Watch over the policy of who may use the uplinks
Documentation=man:nftpolicy(1)
RequiresMountsFor=/etc/nftpolicy {program}
Wants=nftpolicy.service
After=nftpolicy.service nss-user-lookup.target
ConditionPathExists={policy}
# It never gives up.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} watch {policy}
WatchdogSec=30
Restart=always
RestartSec=1
{hardening}
[Install]
WantedBy=multi-user.target
"""

# The name of an uplink is an instance as it is: %i, and not %I, where each "-" would be a "/".
_RESOLVER = """\
[Unit]
Description=Resolver of uplink %i
Documentation=man:nftpolicy(1) man:dnsmasq(8)
RequiresMountsFor=/etc/nftpolicy {program}
Wants=nftpolicy.service
After=nftpolicy-guard.service nftpolicy.service nss-user-lookup.target
# For the services that it is for. It is not the machine's own and does not pull that target in.
Before=nss-lookup.target
# "stop" and "restart" of the policy are the resolver's, too.
PartOf=nftpolicy.service
ConditionPathExists={policy}
# It never gives up.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} resolver --uplink %i {policy}
Restart=always
RestartSec=2
# It ends its dnsmasq itself, which is in a cgroup of its own. What was left by a kill, the next start ends.
KillMode=mixed
{hardening}\
# The program that marks; dnsmasq's user, and its end; the marks of its sockets; leases of others.
CapabilityBoundingSet=CAP_BPF CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID CAP_KILL CAP_SYS_PTRACE CAP_DAC_READ_SEARCH
# A lease may be anywhere.
PrivateTmp=no
ProtectHome=read-only
# It writes none.
ProtectKernelTunables=yes

[Install]
WantedBy=nftpolicy.service
"""

# ProtectKernelTunables= is off, since sysctls are written; PrivateNetwork= and ProtectControlGroups= are
# about what it is there for. What a unit sets after this is added (capabilities), or counts instead.
_HARDENING = """\
# What sysctls were before the policy is kept in /run until the machine restarts.
RuntimeDirectory=nftpolicy
RuntimeDirectoryPreserve=yes
StateDirectory=nftpolicy
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
# Not ProtectKernelTunables: sysctls are written.
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_NETLINK AF_UNIX AF_INET AF_INET6
"""

RESOLVER = "nftpolicy-resolver@.service"
_UNITS = {
    "nftpolicy-guard.service": _GUARD,
    "nftpolicy.service": _APPLY,
    "nftpolicy-watch.service": _WATCH,
    RESOLVER: _RESOLVER,
}
NAMES = tuple(_UNITS)


def resolver(uplink: str) -> str:
    """The unit of an uplink's resolver."""
    return RESOLVER.replace("@", f"@{uplink}")


def started(uplinks: Iterable[str]) -> tuple[str, ...]:
    """What is enabled and started where these uplinks have a resolver."""
    return (*(name for name in NAMES if name != RESOLVER), *map(resolver, uplinks))


def units(program: str, nft: str, policy: str = POLICY) -> dict[str, str]:
    """Name -> text of every unit, for these two programs.

    Raises:
        ValueError: a path that would mean something else in a unit.
    """
    for path in (program, nft, policy):
        checked(path)
    words = {
        "program": program,
        "nft": nft,
        "policy": policy,
        "guard": GUARD,
        "link": link(GUARD),
        "block": block(GUARD),
        "hardening": _HARDENING,
        "resolvers": resolver("*"),
    }
    return {name: content.format(**words) for name, content in _UNITS.items()}


def checked(path: str) -> str:
    """The same path. Raises ValueError for one that would mean something else in a unit or a script of sh."""
    if not _PROGRAM.match(path):
        raise ValueError(
            f"{path!r} can't stand in a unit or an init script: "
            "it takes an absolute path of letters, digits and _ . / + @ : -"
        )
    return path
