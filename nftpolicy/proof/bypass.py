# SPDX-License-Identifier: BSD-2-Clause
"""Rules and programs beside the IP hooks of nftables: what they can do to P1 and P2, and what was not seen.

The lemmas walk the chains of the families ip, ip6, inet and netdev. All else that can write an uplink's
mark, rewrite a header after the guard, or take a packet past it, is a violation here, without a packet: the
property is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..model.packet import FORWARD, FRAME, KERNEL, SOCKET, Packet
from ..model.trace import Trace
from ..netstate.bypass import SUBJECTS, TC, TCX, XTABLES, Effect, HeaderWrite, Look, MarkWrite, Move, Stop
from ..netstate.formats import nft_text
from ..netstate.state import NetState
from ..phrases import name_some
from .context import ProofContext
from .device_paths import DATAPATH, DevicePaths, FramePoint
from .lemmas import Violation, may_set_mark
from .spec import IP_FAMILIES, Spec, UplinkSpec

_OTHER_FAMILIES = ("bridge", "arp")  # nft families whose chains see the marks of the same packets
_ARPHRD_PPP = 512  # include/uapi/linux/if_arp.h; such a device does not say by which one it sends
_RETURNING = ("ifb",)  # kinds of devices that give each packet back to the device from which it was taken


def leak_violations(context: ProofContext, spec: Spec, uplink: UplinkSpec) -> list[Violation]:
    """Return violations of P1: what may mark a packet for the uplink, or send it there past the guard."""
    paths, targets = context.device_paths, (*uplink.devices, *uplink.ports)
    below = paths.devices_below(targets)
    leading = paths.sources([*map(FramePoint, targets), *(FramePoint(target, True) for target in targets)])

    def concerns(effect: Effect) -> bool:
        match effect:
            case MarkWrite():
                return effect.may_set(uplink.value, uplink.mask)
            case HeaderWrite():
                return effect.device in below
            case Move(_, target, at_ingress):
                return not paths.is_known(target) or FramePoint(target, at_ingress) in leading
        return False

    violations = [*_nft_mark_writers(context, uplink), *_actor_violations(context.state, concerns)]
    if not spec.frames:
        for name in dict.fromkeys((*paths.sent_by(targets), *paths.received_on_the_way(targets))):
            violations += _violations(f"frames of {name} leave by {', '.join(targets)}, without the egress hook")
    return violations


def confinement_violations(context: ProofContext, uplink: UplinkSpec) -> list[Violation]:
    """Return violations of P2: what may mark a packet, or send marked packets by another device."""
    paths = context.device_paths
    below = paths.devices_below((*uplink.devices, *uplink.ports))

    def concerns(effect: Effect) -> bool:
        match effect:
            case MarkWrite():
                return effect.may_set(uplink.value, uplink.mask)
            case Move(source, target):
                return (not source or source in below) and target not in below and paths.kind(target) not in _RETURNING
        return False

    return [*_nft_mark_writers(context, uplink), *_actor_violations(context.state, concerns)]


def redirect_violations(state: NetState) -> list[Violation]:
    """Return violations of P5: legacy rules that may translate the destination of a packet of this machine."""
    return _actor_violations(
        state,
        lambda effect: (
            isinstance(effect, Move) or (isinstance(effect, HeaderWrite) and effect.is_nat and effect.hook == "output")
        ),
    )


# Hooks that packets pass on their way, by origin; those that are delivered pass two more.
_HOOKS_PASSED = {
    SOCKET: ("output", "postrouting"),
    KERNEL: ("output", "postrouting"),
    FORWARD: ("prerouting", "forward", "postrouting"),
    FRAME: (),
}
_HOOKS_OF_ARRIVAL = ("prerouting", "input")


def interfering_rules(state: NetState, packet: Packet, trace: Trace) -> list[str]:
    """Return the rules and programs outside nftables that may stop the packet of a trace, or lead it elsewhere.

    The model of the trace does not have them.
    """
    hooks = _HOOKS_PASSED[packet.origin] + (_HOOKS_OF_ARRIVAL if trace.outcome == "delivered" else ())

    def interferes(subject: str, effect: Effect) -> bool:
        match effect:
            case Stop(family, hook) if hook:
                return family == packet.family and hook in hooks
            case Stop(device=device, at_ingress=at_ingress):
                return device in ("", packet.iif if at_ingress else trace.device)
            case HeaderWrite(family, hook):
                return bool(hook) and family == packet.family and hook in hooks
            case Move(source):
                return source in ("", packet.iif, trace.device)
        return packet.origin == FORWARD or (packet.origin != FRAME and subject == XTABLES)

    return [
        actor.location
        for look in state.looks
        if look.subject in (XTABLES, TC, TCX)
        for actor in look.actors
        if any(interferes(look.subject, effect) for effect in actor.effects)
    ]


def _nft_mark_writers(context: ProofContext, uplink: UplinkSpec) -> list[Violation]:
    """Return the statements of other nft families that may set the uplink's mark."""
    return [
        violation
        for table in context.ruleset.tables
        if table.family in _OTHER_FAMILIES and "dormant" not in table.flags
        for statement in context.mark_writes(table)
        if any(may_set_mark(context, family, statement, uplink) for family in IP_FAMILIES)
        for violation in _violations(f"table {table.family} {table.name}: {nft_text.display_text(statement)}")
    ]


def _actor_violations(state: NetState, concerns: Callable[[Effect], bool]) -> list[Violation]:
    return [
        violation
        for look in state.looks
        for actor in look.actors
        if any(map(concerns, actor.effects))
        for violation in _violations(actor.location)
    ]


def _violations(location: str) -> list[Violation]:
    return [Violation(family, {}, location, (location,)) for family in IP_FAMILIES]


def environment_assumptions(state: NetState, spec: Spec) -> Iterator[str]:
    """Yield the assumptions about rules, programs and devices beside nftables, with what was seen."""
    subjects = {look.subject for look in state.looks}
    unseen = [subject for subject in SUBJECTS if subject not in subjects]
    if unseen:
        yield f"none of these marks, rewrites or moves packets (not looked at): {'; '.join(unseen)}"
    for look in state.looks:
        if look.missing:
            yield f"{look.subject} do not mark, rewrite or move packets (not looked at: {look.missing})"
    clean = [look.subject + (f" ({look.contents})" if look.contents else "") for look in state.looks if _is_clean(look)]
    if clean:
        yield f"nothing is added later that marks, rewrites or moves packets (looked at: none now): {'; '.join(clean)}"
    for look in state.looks:
        names = [actor.location for actor in look.actors if not actor.only_stops]
        if names:
            yield f"{look.subject} stay as they are (looked at: {name_some(names)})"
        yield from look.narrowed
    switches = [device.name for device in state.devices if device.kind == DATAPATH]
    if switches:
        yield f"flows of Open vSwitch mark no packet ({name_some(switches)}; not looked at)"
    yield "no module of the kernel sends frames past the egress hook, such as pktgen and netconsole (not looked at)"
    paths = DevicePaths(state.devices)
    for uplink in spec.uplinks:
        yield from _device_assumptions(paths, state, spec, uplink)


def _is_clean(look: Look) -> bool:
    return not look.missing and all(actor.only_stops for actor in look.actors)


def _device_assumptions(paths: DevicePaths, state: NetState, spec: Spec, uplink: UplinkSpec) -> Iterator[str]:
    targets = (*uplink.devices, *uplink.ports)
    names = ", ".join(targets)
    if not state.devices:
        yield f"no other device of this machine sends frames that leave by {names} (not looked at)"
    for name in paths.from_elsewhere(targets):
        yield f"the network namespace at the other end of {name} is another host; its frames may leave by {names}"
    for name, parent in paths.parents(targets):
        yield f"AF_PACKET sockets (CAP_NET_RAW) on {parent}, the device below {name}, send no frames of {name}"
    ppp = [device.name for device in state.devices if device.link_type == _ARPHRD_PPP and device.name not in targets]
    if ppp and not spec.frames:
        yield f"{name_some(ppp)} does not send PPPoE frames by {names} (not looked at)"
    sends = "sends frames with its mark" if spec.frames else "sends frames"
    yield f"no device of another network namespace on top of {names} {sends} (not looked at)"
