# SPDX-License-Identifier: BSD-2-Clause
"""Proof of P1 to P5 of a specification, for all packets: proved, refuted with packets, or unknown.

Only the lemmas yield "proved", and only traces of single packets yield "refuted". Everything else
is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..netstate.state import NetState
from .answer_cases import answer_assumptions
from .assumptions import add_assumed_environment, without_absent_devices
from .bypass import environment_assumptions
from .context import ProofContext
from .dns_isolation import check_dns_isolation
from .inherited_marks import inherited_mark_assumptions
from .mark_confinement import check_mark_confinement
from .no_leak import check_no_leak, check_unnamed_devices
from .peer_flow_cases import peer_flow_assumptions
from .query_routes import check_query_routes, query_route_assumptions
from .spec import ServiceSpec, Spec, UplinkSpec
from .udp_replies import check_udp_replies
from .usability import check_usability
from .verdict import Finding, Proof

Progress = Callable[[str], None]


def prove(state: NetState, spec: Spec, progress: Progress = lambda _: None, usability: bool = True) -> Proof:
    """Return the proof of all properties; `progress` is called before each part, with its name.

    Without `usability` only the safety properties P1, P2 and P5 are proved, not usability (P3, P4).
    """
    spec = without_absent_devices(state, spec)
    full_state, assumed = add_assumed_environment(state, spec)
    context = ProofContext(full_state, spec.devices, spec.masks)
    findings: list[Finding] = []
    for uplink in spec.uplinks:
        progress(f"P1 {uplink.name}")
        findings += check_no_leak(context, spec, uplink)
        progress(f"P2 {uplink.name}")
        findings += check_mark_confinement(context, spec, uplink)
        if spec.has_policy and uplink.resolver is not None:
            progress(f"P5 {uplink.name}")
            findings += check_dns_isolation(context, spec, uplink)
            findings += check_query_routes(context, spec, uplink)
    if spec.has_policy:
        findings += check_unnamed_devices(context, spec)
    if spec.has_policy and usability:
        progress("P3, P4")
        if state.devices and full_state.routes != state.routes:  # of a kernel: the routes that are there decide
            present_state = add_assumed_environment(state, spec, uplink_routes=False)[0]
            context = ProofContext(present_state, spec.devices, spec.masks)
        for uplink in spec.uplinks:
            findings += check_udp_replies(context, spec, uplink)
        unusable, skipped = check_usability(context, spec)
        findings += unusable
        assumed += (*skipped, *peer_flow_assumptions(context, spec))
    inherited = inherited_mark_assumptions(context, spec)
    stated = (*assumed, *assumptions(state, spec), *answer_assumptions(context, spec), *inherited)
    return Proof(tuple(findings), stated, exemptions(spec))


def prove_guard(state: NetState, spec: Spec) -> Proof:
    """Return the proof of P1 and P2 for the guard alone, for all ip rules and routes.

    It also holds in the intermediate states of a change.
    """
    spec = without_absent_devices(state, spec)
    full_state, assumed = add_assumed_environment(state, spec)
    context = ProofContext(full_state, spec.devices, spec.masks)
    findings: list[Finding] = []
    for uplink in spec.uplinks:
        findings += check_no_leak(context, spec, uplink)
        findings += check_mark_confinement(context, spec, uplink)
    if spec.has_policy:
        findings += check_unnamed_devices(context, spec)
    inherited = inherited_mark_assumptions(context, spec)
    stated = (*assumed, *assumptions(state, spec), *answer_assumptions(context, spec), *inherited)
    return Proof(tuple(findings), stated, exemptions(spec))


def exemptions(spec: Spec) -> tuple[str, ...]:
    """Return the exemptions, which may leave without a mark, as "uplink: exemption"."""
    bridges = (f"{uplink.name}: BPDUs of its bridges" for uplink in spec.uplinks if uplink.ports and uplink.bpdus)
    words = (
        f"{uplink.name}: {exemption.name}{f' ({exemption.detail})' if exemption.detail else ''}"
        for uplink in spec.uplinks
        for exemption in uplink.exemptions
    )
    return (*words, *bridges)


def assumptions(state: NetState, spec: Spec) -> tuple[str, ...]:
    """Return the assumptions of every verdict but those about answers, as text."""
    return tuple(_assumptions(state, spec))


def _assumptions(state: NetState, spec: Spec) -> Iterator[str]:
    yield "the kernel applies nftables, ip rules and routes as the model does"
    yield from environment_assumptions(state, spec)
    yield "processes that may set SO_MARK (CAP_NET_ADMIN or CAP_NET_RAW) set it as the policy requires"
    yield from _service_assumptions(spec)
    yield from _frame_assumptions(spec)
    for clat in (uplink.clat for uplink in spec.uplinks if uplink.clat):
        yield f"the CLAT behind {clat.device} (CAP_NET_ADMIN) sends translations of packets that it read, no others"
    for port in (port for uplink in spec.uplinks for port in uplink.ports):
        yield f"a frame that a bridge forwards to {port} from another port is not of this machine"
    if any(uplink.resolver is not None and uplink.services for uplink in spec.uplinks):
        yield "services ask for names by DNS, not by D-Bus (systemd-resolved) or another program of this machine"
    yield from query_route_assumptions(state, spec)
    if spec.has_policy and spec.frames:
        yield "a frame of an AF_PACKET socket that set the mark itself counts as marked, whatever process sent it"


def _service_assumptions(spec: Spec) -> Iterator[str]:
    """Yield what the guard cannot ask of the sockets of services of root and of the kernel."""
    for uplink in spec.uplinks:
        if names := _names(uplink, lambda service: service.has_marked_owner):
            yield f"no other program of root begins a flow with the mark of uplink {uplink.name}: it counts as {names}"
    if any(service.is_tunnel for uplink in spec.uplinks for service in uplink.services):
        yield "raw sockets (CAP_NET_RAW) send no packets of the kernel's tunnels to their other ends"
    for uplink in spec.uplinks:
        if names := _names(uplink, lambda service: service.is_l2tp):
            yield f"no process opens AF_PPPOX sockets for sessions of its own in the L2TP tunnels of {names}"
    for uplink in spec.uplinks:
        if names := _names(uplink, lambda service: service.has_no_owner):
            yield (
                f"TCP that no process owns, to the servers of {names}, is the kernel's: no process opens "
                "AF_SMC sockets or adds MPTCP subflows"
            )


def _names(uplink: UplinkSpec, condition: Callable[[ServiceSpec], bool]) -> str:
    return ", ".join(service.name for service in uplink.services if condition(service))


def _frame_assumptions(spec: Spec) -> Iterator[str]:
    """Yield by which devices the frames of AF_PACKET sockets reach an uplink."""
    if not spec.frames:
        for device in (device for uplink in spec.uplinks for device in (*uplink.devices, *uplink.ports)):
            yield f"AF_PACKET sockets (CAP_NET_RAW) are not used on {device}: this kernel has no netdev egress hook"
        return
    hooked = ", ".join(device for uplink in spec.uplinks for device in spec.frame_devices(uplink))
    if hooked:
        yield f"AF_PACKET sockets (CAP_NET_RAW) reach an uplink by {hooked} only, not by a renamed or new device"
    for device in sorted(spec.absent_devices):
        yield f"device {device} is absent, so no packet leaves by it until watch or apply has added its link guard"
