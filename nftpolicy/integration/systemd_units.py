# SPDX-License-Identifier: BSD-2-Clause
"""Text of the systemd units (systemd.unit(5), systemd.exec(5), systemd.special(7)).

No unit has an ExecStop=: if systemd stops a unit, the kernel's state stays as it is.

The guard's unit has no condition on its file, since systemd silently skips a unit if a condition
fails. The unit loads first the block, then the guard: a separate unit that starts on failure
(OnFailure=) would start in parallel with network-pre.target, not before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..generated_text import CheckedText, fill, own_text, word
from .guard_files import GUARD_PATH, block_path, device_guard_path, link_guard_path

POLICY_PATH = "/etc/nftpolicy/policy.toml"
UNIT_DIR = "/etc/systemd/system"
_LINK_STEM = device_guard_path(GUARD_PATH, "").removesuffix("-.nft")  # of the files of the devices

_SAFE_PATH = re.compile(r"/[A-Za-z0-9_./+@:-]+\Z")

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
# First the block, then the guard. If the guard cannot be loaded, the block stays in force.
ExecStart=-{nft} -f {block}
ExecStart={nft} -f {guard}
ExecStart=-{nft} -f {link}
# Before about Linux 6.18 the kernel accepts these only for present devices; udev loads them when others appear.
ExecStart=-/bin/sh -c 'for file in {stem}-*.nft; do {nft} -f "$$file"; done'
CapabilityBoundingSet=CAP_NET_ADMIN
RestrictAddressFamilies=AF_NETLINK
{sandbox}# PrivateTmp= would wait for other mounts. Where there are no mount namespaces, systemd goes on without.
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectControlGroups=yes
IPAddressDeny=any

[Install]
WantedBy=sysinit.target
"""

_APPLY = """\
[Unit]
Description=Policy for the use of the uplinks
Documentation=man:nftpolicy(1) man:nftpolicy.toml(5)
RequiresMountsFor=/etc/nftpolicy {program}
Wants=nftpolicy-guard.service
After=nftpolicy-guard.service nftables.service nss-user-lookup.target network.target
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={program} apply {policy}
# The boot guard of the next start belongs to the same policy.
ExecStartPost=-{program} guard --no-load {policy}
ExecReload={program} apply {policy}
ExecReload=-{program} guard --no-load {policy}
# A resolver reads the policy when it starts. If the policy is refused, the resolvers keep running.
ExecReload=-systemctl --no-block try-restart {resolvers}
ReadWritePaths=/etc/nftpolicy
{hardening}# It proves with a low priority.
SystemCallFilter=nice setpriority
ProtectControlGroups=yes
# It sends no packet: netlink and the sockets of systemd are not IP. It receives router advertisements by AF_PACKET.
IPAddressDeny=any
RestrictAddressFamilies=AF_PACKET

[Install]
WantedBy=multi-user.target
"""

_WATCH = """\
[Unit]
Description=Watch over the policy for the use of the uplinks
Documentation=man:nftpolicy(1)
RequiresMountsFor=/etc/nftpolicy {program}
Wants=nftpolicy.service
After=nftpolicy.service nss-user-lookup.target
ConditionPathExists={policy}
# systemd restarts it without limit.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} watch {policy}
WatchdogSec=30
# Repairs come before other work of the machine; proofs run with a low priority. The limit permits the
# same for the service as a whole: the kernel compares the nice value only within a session (sched(7)).
Nice=-10
LimitNICE=-10
Restart=always
RestartSec=1
{hardening}SystemCallFilter=nice setpriority
ProtectControlGroups=yes
# It sends no packet: netlink and the sockets of systemd are not IP.
IPAddressDeny=any

[Install]
WantedBy=multi-user.target
"""

# The instance is the name of the uplink: %i, since in %I each "-" would become a "/".
_RESOLVER = """\
[Unit]
Description=Resolver of uplink %i
Documentation=man:nftpolicy(1) man:dnsmasq(8)
RequiresMountsFor=/etc/nftpolicy {program}
Wants=nftpolicy.service
After=nftpolicy-guard.service nftpolicy.service nss-user-lookup.target
# For services of the policy: it is not the machine's resolver, so it does not want that target.
Before=nss-lookup.target
# Stop and restart of nftpolicy.service apply to the resolver, too.
PartOf=nftpolicy.service
ConditionPathExists={policy}
# systemd restarts it without limit.
StartLimitIntervalSec=0

[Service]
Type=notify
# The resolver makes the cgroup of dnsmasq below this one. The root of cgroup v2 has the mode 0555, so that root needs
# CAP_DAC_OVERRIDE to make one there. "+": outside of the sandbox.
ExecStartPre=-+mkdir -p /sys/fs/cgroup/nftpolicy
ExecStart={program} resolver --uplink %i {policy}
Restart=always
RestartSec=2
# It stops its dnsmasq, which has a cgroup of its own; the next start stops one left by a kill.
KillMode=mixed
{hardening}\
# BPF program; port 53; user of dnsmasq; stopping it; leases of other users.
CapabilityBoundingSet=CAP_BPF CAP_NET_BIND_SERVICE CAP_SETUID CAP_SETGID CAP_KILL CAP_DAC_READ_SEARCH
# dnsmasq changes its user, and drops capabilities.
SystemCallFilter=@setuid capset
# The user of dnsmasq reads its servers there. nftpolicy sets the exact mode of each directory.
RuntimeDirectory=nftpolicy-resolver
RuntimeDirectoryMode=0711
# A lease file may be in any directory.
PrivateTmp=no
ProtectHome=read-only
# It writes no sysctl.
ProtectKernelTunables=yes
ProtectProc=invisible
# It asks routers on the link for advertisements; dnsmasq has a cgroup of its own.
IPAddressDeny=any
IPAddressAllow=fe80::/10 ff02::/16

[Install]
WantedBy=nftpolicy.service
"""

# For all units. A unit may add to lists after this text, or override settings.
_SANDBOX = """\
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
"""

# Not ProtectKernelTunables=, since sysctls are written, and not PrivateNetwork=.
_HARDENING = """\
# The values of sysctls from before the policy are in /run until the machine restarts.
RuntimeDirectory=nftpolicy
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
StateDirectory=nftpolicy
StateDirectoryMode=0700
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
RestrictAddressFamilies=AF_NETLINK AF_UNIX AF_INET AF_INET6
PrivateTmp=yes
# No module of Python from the directory of the program, or of a user.
Environment=PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1
# Not ProtectKernelTunables: sysctls are written.
{sandbox}# It looks at foreign BPF programs.
SystemCallFilter=bpf
"""

# After 80-net-setup-link.rules, which renames devices. udev sets a new device up only after its rules.
_UDEV_RULES_PATH = "/etc/udev/rules.d/85-nftpolicy.rules"
_UDEV_RULES = """\
# nftpolicy: load the link-layer guard of a device that appears.
ACTION=="add|move", SUBSYSTEM=="net", TEST=="{stem}-$name.nft", RUN+="{nft} -f {stem}-$name.nft"
"""

RESOLVER_TEMPLATE = "nftpolicy-resolver@.service"
_ALL_RESOLVERS = "nftpolicy-resolver@*.service"  # a pattern of systemctl(1)
_UNITS = {
    "nftpolicy-guard.service": _GUARD,
    "nftpolicy.service": _APPLY,
    "nftpolicy-watch.service": _WATCH,
    RESOLVER_TEMPLATE: _RESOLVER,
}
UNIT_NAMES = tuple(_UNITS)


def resolver_unit(uplink: str) -> str:
    """Return the name of the unit of an uplink's resolver."""
    return RESOLVER_TEMPLATE.replace("@", f"@{uplink}")


def units_to_start(uplinks: Iterable[str]) -> tuple[str, ...]:
    """Return the units to enable and start if these uplinks have a resolver."""
    return (*(name for name in UNIT_NAMES if name != RESOLVER_TEMPLATE), *map(resolver_unit, uplinks))


def render_units(program: str, nft: str, policy: str = POLICY_PATH) -> dict[str, CheckedText]:
    """Return name -> text of every unit, for the paths of nftpolicy, nft and the policy.

    Raises:
        ValueError: a path has a character with a special meaning in a unit.
    """
    values = {
        **path_values(program, nft, policy),
        "sandbox": own_text(_SANDBOX),
        "hardening": fill(_HARDENING, sandbox=own_text(_SANDBOX)),
        "resolvers": own_text(_ALL_RESOLVERS),
    }
    return {name: fill(_UNITS[name], **values) for name in _UNITS}


def render_udev_rules(nft: str) -> dict[str, CheckedText]:
    """Return path -> text of the rules of udev(7), for the path of nft. Raises ValueError as require_safe_path."""
    return {_UDEV_RULES_PATH: fill(_UDEV_RULES, nft=require_safe_path(nft), stem=word(_LINK_STEM))}


def path_values(program: str, nft: str, policy: str) -> dict[str, CheckedText]:
    """Return the paths that a unit or an init script names, by field. Raises ValueError as require_safe_path."""
    return {
        "program": require_safe_path(program),
        "nft": require_safe_path(nft),
        "policy": require_safe_path(policy),
        "guard": word(GUARD_PATH),
        "link": word(link_guard_path(GUARD_PATH)),
        "block": word(block_path(GUARD_PATH)),
        "stem": word(_LINK_STEM),
    }


def require_safe_path(path: str) -> CheckedText:
    """Return an absolute path as a word.

    Raises ValueError if a character has a special meaning in a unit or in sh.
    """
    if not _SAFE_PATH.match(path):
        raise ValueError(
            f"{path!r} cannot be used in a unit or an init script; "
            "use an absolute path of letters, digits and _ . / + @ : -"
        )
    return word(path)
