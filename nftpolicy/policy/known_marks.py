# SPDX-License-Identifier: BSD-2-Clause
"""Registry of packet marks that other Linux software uses, each with its source."""

from __future__ import annotations

from attrs import frozen

from .mark import FULL_MASK, Mark

_FEW_BITS = 8  # a mask of at most this many bits is specific to one program
_MANY_BITS = 16  # a match on this many bits is not a coincidence


@frozen
class MarkUser:
    """Program that uses marks.

    `marks` are its marks; a value of 0 stands for any value within the mask. `installed_files` are files that
    it installs, `source` is where its marks are documented.
    """

    name: str
    marks: tuple[Mark, ...]
    source: str
    installed_files: tuple[str, ...] = ()

    def conflicts_with(self, mark: Mark, installed: bool) -> bool:
        """Return True if a packet of the program may carry `mark`, or lose it.

        `installed`: the program is on this machine.
        """
        return any(_conflict(mark, used, installed) for used in self.marks)


def _conflict(mark: Mark, used: Mark, installed: bool) -> bool:
    if used.mask == FULL_MASK:
        is_match = mark.matches(used.value)
        return is_match and (installed or mark.mask.bit_count() >= _MANY_BITS)
    if installed:
        return bool(mark.mask & used.mask)
    return used.mask.bit_count() <= _FEW_BITS and mark.mask & ~used.mask == 0


MARK_USERS = (
    MarkUser(
        "Tailscale",
        (Mark(0, 0xFF0000),),
        "util/linuxfw: TailscaleFwmarkMask",
        ("/usr/sbin/tailscaled", "/usr/bin/tailscaled"),
    ),
    MarkUser("pbr", (Mark(0, 0xFF0000),), "pbr's option fw_mask", ("/etc/init.d/pbr",)),
    MarkUser("mwan3", (Mark(0, 0x3F00),), "mwan3's option mmx_mask", ("/etc/init.d/mwan3",)),
    MarkUser(
        "Kubernetes",
        (Mark(0x4000, 0x4000), Mark(0x8000, 0x8000)),
        "kubelet: iptables-masquerade-bit 14, iptables-drop-bit 15",
        ("/usr/bin/kubelet", "/usr/local/bin/k3s"),
    ),
    MarkUser("Calico", (Mark(0, 0xFFFF0000),), "Felix: IptablesMarkMask", ("/opt/cni/bin/calico",)),
    MarkUser(
        "Cilium",
        (Mark(0, 0xFFFF1FFF),),
        "pkg/datapath/linux/linux_defaults",
        ("/opt/cni/bin/cilium-cni",),
    ),
    MarkUser(
        "Amazon's CNI for Kubernetes",
        (Mark(0x80, 0x80),),
        "AWS_VPC_K8S_CNI_CONNMARK",
        ("/opt/cni/bin/aws-cni",),
    ),
    MarkUser(
        "Weave Net",
        (Mark(0x20000, 0x20000), Mark(0x40000, 0x40000)),
        "weave-npc",
        ("/opt/cni/bin/weave-net",),
    ),
    MarkUser("wg-quick", (Mark(51820, FULL_MASK),), "wg-quick/linux.bash: add_default()"),
    MarkUser(
        "Mullvad VPN",
        (Mark(0x6D6F6C65, FULL_MASK),),
        "talpid: TUNNEL_FW_MARK",
        ("/usr/bin/mullvad-daemon",),
    ),
    MarkUser("NordVPN", (Mark(0xE1F1, FULL_MASK),), "its setting fwmark, by default", ("/usr/sbin/nordvpnd",)),
    MarkUser("NetBird", (Mark(0x1BD00, FULL_MASK),), "its ip rules", ("/usr/bin/netbird",)),
)


def conflicting_users(mark: Mark, present: frozenset[str] = frozenset()) -> list[tuple[MarkUser, bool]]:
    """Return the programs with marks that conflict with `mark`, each with True if it is installed.

    `present` are the files of MARK_USER_FILES that exist on this machine.
    """
    users = ((user, bool(present.intersection(user.installed_files))) for user in MARK_USERS)
    return [(user, installed) for user, installed in users if user.conflicts_with(mark, installed)]


MARK_USER_FILES = tuple(sign for user in MARK_USERS for sign in user.installed_files)
