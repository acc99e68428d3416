# SPDX-License-Identifier: BSD-2-Clause
"""Marks that other software on Linux uses, each with where that is written."""

from __future__ import annotations

from attrs import frozen

from .mark import FULL, Mark

_NARROW = 8  # bits of a mask that is somebody's in particular
_TELLING = 16  # bits that are not alike by accident


@frozen
class Other:
    """`marks` are what it uses: a value of 0 stands for any within the mask. `signs` are files that it installs."""

    name: str
    marks: tuple[Mark, ...]
    source: str
    signs: tuple[str, ...] = ()

    def clashes(self, mark: Mark, here: bool) -> bool:
        """Whether a packet of one may be taken for one of the other's. `here`: it is on this machine."""
        return any(_clashes(mark, one, here) for one in self.marks)


def _clashes(mark: Mark, theirs: Mark, here: bool) -> bool:
    if theirs.mask == FULL:
        worn = mark.worn_by(theirs.value)
        return worn and (here or mark.mask.bit_count() >= _TELLING)
    if here:
        return bool(mark.mask & theirs.mask)
    return theirs.mask.bit_count() <= _NARROW and mark.mask & ~theirs.mask == 0


OTHERS = (
    Other(
        "Tailscale",
        (Mark(0, 0xFF0000),),
        "util/linuxfw: TailscaleFwmarkMask",
        ("/usr/sbin/tailscaled", "/usr/bin/tailscaled"),
    ),
    Other("pbr", (Mark(0, 0xFF0000),), "pbr's option fw_mask", ("/etc/init.d/pbr",)),
    Other("mwan3", (Mark(0, 0x3F00),), "mwan3's option mmx_mask", ("/etc/init.d/mwan3",)),
    Other(
        "Kubernetes",
        (Mark(0x4000, 0x4000), Mark(0x8000, 0x8000)),
        "kubelet: iptables-masquerade-bit 14, iptables-drop-bit 15",
        ("/usr/bin/kubelet", "/usr/local/bin/k3s"),
    ),
    Other("Calico", (Mark(0, 0xFFFF0000),), "Felix: IptablesMarkMask", ("/opt/cni/bin/calico",)),
    Other("Cilium", (Mark(0, 0xFFFF1FFF),), "pkg/datapath/linux/linux_defaults", ("/opt/cni/bin/cilium-cni",)),
    Other("Amazon's CNI for Kubernetes", (Mark(0x80, 0x80),), "AWS_VPC_K8S_CNI_CONNMARK", ("/opt/cni/bin/aws-cni",)),
    Other("Weave Net", (Mark(0x20000, 0x20000), Mark(0x40000, 0x40000)), "weave-npc", ("/opt/cni/bin/weave-net",)),
    Other("wg-quick", (Mark(51820, FULL),), "wg-quick/linux.bash: add_default()"),
    Other("Mullvad VPN", (Mark(0x6D6F6C65, FULL),), "talpid: TUNNEL_FW_MARK", ("/usr/bin/mullvad-daemon",)),
    Other("NordVPN", (Mark(0xE1F1, FULL),), "its setting fwmark, by default", ("/usr/sbin/nordvpnd",)),
    Other("NetBird", (Mark(0x1BD00, FULL),), "its ip rules", ("/usr/bin/netbird",)),
)


def clashing(mark: Mark, here: frozenset[str] = frozenset()) -> list[tuple[Other, bool]]:
    """Whose marks clash with this one, and whether they are on this machine; `here` are files that are there."""
    found = ((other, bool(here.intersection(other.signs))) for other in OTHERS)
    return [(other, there) for other, there in found if other.clashes(mark, there)]


SIGNS = tuple(sign for other in OTHERS for sign in other.signs)
