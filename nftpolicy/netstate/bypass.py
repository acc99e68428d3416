# SPDX-License-Identifier: BSD-2-Clause
"""Rules and programs outside nftables that can mark, rewrite or move packets, and the looks that found them."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from .nft.expressions import FULL_MASK

# Subjects of the looks, in the order in which they are reported.
XTABLES = "legacy iptables, ip6tables and arptables"
EBTABLES = "legacy ebtables"
TC = "tc filters and actions"
XDP = "XDP programs"
AF_XDP = "AF_XDP sockets"
TCX = "tcx and netkit programs"
CGROUP_BPF = "cgroup BPF programs"
XFRM = "output marks of IPsec (xfrm)"
ENCAPSULATION = "routes with encapsulation (lwtunnel, MPLS)"
SUBJECTS = (XTABLES, EBTABLES, TC, XDP, AF_XDP, TCX, CGROUP_BPF, XFRM, ENCAPSULATION)


@frozen
class MarkWrite:
    """Write of a mark: the bits of `fixed` become those of `value`, the bits of `varied` any value.

    `field` is "mark" (of the packet) or "ctmark" (of its flow). The default is a write of any value.
    """

    fixed: int = 0
    value: int = 0
    varied: int = FULL_MASK
    field: str = "mark"

    def may_set(self, mark: int, mask: int) -> bool:
        """Return True if a packet without `mark` under `mask` can have it after this write."""
        changed = (self.fixed | self.varied) & mask
        return bool(changed) and not (self.value ^ mark) & self.fixed & mask


@frozen
class HeaderWrite:
    """Write of header fields at a netfilter hook of one IP family, or (hook "") at the egress of `device`.

    `is_nat`: addresses and ports, of tracked flows.
    """

    family: int = 0
    hook: str = ""
    priority: int = 0
    is_nat: bool = False
    device: str = ""


@frozen
class Move:
    """Move or copy of packets from `source` to `target`, device names; "" is any device.

    `at_ingress`: the packet arrives by `target`; otherwise it leaves by it.
    """

    source: str = ""
    target: str = ""
    at_ingress: bool = False


@frozen
class Stop:
    """End of packets, or their way to another place: at a netfilter hook of one IP family, or on `device`.

    `device` "" is any device. `at_ingress`: of packets that arrive by it; otherwise of those that leave by it.
    """

    family: int = 0
    hook: str = ""
    device: str = ""
    at_ingress: bool = False


Effect = MarkWrite | HeaderWrite | Move | Stop


@frozen
class Actor:
    """A rule, action or program outside nftables, described by `location`, with its effects on packets."""

    location: str
    effects: tuple[Effect, ...]

    @property
    def only_stops(self) -> bool:
        """Return True if it marks, rewrites and moves no packet."""
        return all(isinstance(effect, Stop) for effect in self.effects)


@frozen
class Look:
    """Result of one look: all rules and programs of `subject` that have an effect on packets.

    `contents` counts the objects that were read, or "". `missing` is the reason why this look was not possible,
    or "". `narrowed` are assumptions that the look leaves.
    """

    subject: str
    actors: tuple[Actor, ...] = ()
    contents: str = ""
    missing: str = ""
    narrowed: tuple[str, ...] = ()


# Any effect: a program whose code is not known, a packet that a process gets and gives back.
ANY_EFFECT: tuple[Effect, ...] = (MarkWrite(), MarkWrite(field="ctmark"), Move())


# Operations of classic BPF (include/uapi/linux/bpf_common.h), and the verdicts TC_ACT_OK, SHOT and UNSPEC.
_CLASS, _RETURN, _RETURN_CONSTANT = 0x07, 0x06, 0x06
_PASS_OR_DROP = (0, 2, FULL_MASK)


def only_drops(program: Iterable[tuple[int, int]]) -> bool:
    """Return True if a classic BPF program of tc passes or drops packets, and returns no other verdict.

    `program`: operation and constant of each instruction. None of them writes a packet or its mark.
    """
    return all(
        operation == _RETURN_CONSTANT and value in _PASS_OR_DROP
        for operation, value in program
        if operation & _CLASS == _RETURN
    )
