# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy explain [FILE]"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import frozen

from .common import (
    EXIT_BAD_INPUT,
    EXIT_REFUTED,
    EXIT_UNAVAILABLE,
    Failure,
    applied_policy,
    read_policy,
    this_kernel,
    warn,
)
from .findings_text import source_locator
from .options import STATE, AppliedPolicyFile, ChainDevices, PrintJson, RouteFiles, RuleFiles, RulesetFile
from .parameters import option
from .plain_output import print_json
from .state_files import CHAIN_DEVICE_ALONE, state_from_files

if TYPE_CHECKING:
    from ..kernel.process_sockets import ProcessSocket
    from ..model.packet import Packet
    from ..policy.errors import PolicyText
    from ..policy.objects import Policy
    from ..runtime.explain import Explainer, Explanation
    from .packet_options import PacketOptions
    from .render.trace import SourceLocator

_packet, _sender = partial(option, group="Packet"), partial(option, group="Socket that sends it")
_COMPILED = "what FILE compiles to"


def command(
    file: AppliedPolicyFile = None,
    to: Annotated[str | None, _packet(help="Destination: an IPv4 or IPv6 address.")] = None,
    source: Annotated[str | None, _packet("--from", help="Source address; default: the kernel's choice.")] = None,
    proto: Annotated[str, _packet(help="udp, tcp, icmp, ipv6-icmp, or an IP protocol number.")] = "udp",
    dport: Annotated[int, _packet(min=0, max=65535, help="Destination port.")] = 9,
    sport: Annotated[int, _packet(min=0, max=65535, help="Source port.")] = 40000,
    uid: Annotated[str | None, _sender(help="User of the socket, by name or number; default: root.")] = None,
    gid: Annotated[str | None, _sender(help="Group of the socket; default: the user's primary group.")] = None,
    mark: Annotated[str, _sender(help="Mark of the socket (SO_MARK), in decimal or 0x...")] = "0",
    cgroup: Annotated[str | None, _sender(help="Cgroup of the socket, relative to the root of cgroup v2.")] = None,
    dev: Annotated[str | None, _sender(help="Device that the socket is bound to.")] = None,
    frame: Annotated[bool, _packet("--frame", help="Sent by an AF_PACKET socket on --dev.")] = False,
    kernel: Annotated[bool, _packet("--kernel", help="Sent by the kernel, without a socket.")] = False,
    forward: Annotated[str | None, _packet(help="Forwarded from another host: the device where it arrives.")] = None,
    state: Annotated[str, _packet(help="Conntrack state: new, established, related, invalid or untracked.")] = "new",
    reply: Annotated[bool, _packet("--reply", help="Conntrack direction reply, not original.")] = False,
    ct_mark: Annotated[str, _packet(help="Mark of the connection (ct mark).")] = "0",
    field: Annotated[
        list[str] | None,
        _packet(help="HEADER.NAME=NUMBER, a header field by nft's names; may be repeated."),
    ] = None,
    pid: Annotated[
        int | None,
        _packet(min=1, help="Explain the sockets of this process, not the packet of the options."),
    ] = None,
    compiled: Annotated[
        bool,
        option("--compiled", group=STATE, help="Explain in what FILE compiles to, not in this kernel's state."),
    ] = False,
    ruleset: RulesetFile = None,
    chain_device: ChainDevices = None,
    rules: RuleFiles = None,
    routes: RouteFiles = None,
    as_json: PrintJson = False,
) -> None:
    """Trace one packet: each decision, and its policy line.

    The model of Linux is compared with the routes that the kernel itself chooses.
    """
    from .packet_options import PacketOptions

    options = PacketOptions(
        to, source, proto, dport, sport, uid, gid, mark, cgroup, dev, frame, kernel, forward, state,
        reply, ct_mark, tuple(field or ()),
    )  # fmt: skip
    has_state_files = bool(ruleset or rules or routes)
    if chain_device and ruleset is None:
        raise Failure(CHAIN_DEVICE_ALONE, EXIT_BAD_INPUT)
    if pid is not None:
        options.require_destination_only()
        if has_state_files or compiled:
            raise Failure(
                "--pid reads this kernel: it excludes --compiled, --ruleset, --rules and --routes",
                EXIT_BAD_INPUT,
            )
        results = _explain_process(file, pid, options)
    else:
        packet = options.packet()  # before any state is read, so that bad input is the first message
        if has_state_files or compiled:
            judged_state = _state_from_files(file, compiled, ruleset, rules or (), routes or (), chain_device or ())
        else:
            judged_state = _state_from_kernel(file)
        judged_state.warn_of_absent(packet.bound, packet.iif)
        results = ExplainResults(judged_state, (ExplainResult(None, _explain_packet(judged_state, packet)),))
    results.print(as_json)
    if results.faults:
        raise typer.Exit(EXIT_REFUTED)


@frozen
class JudgedState:
    """Network state for an explanation: explainer, name, assumptions, and devices if known."""

    explainer: Explainer
    locate: SourceLocator
    name: str
    assumptions: tuple[str, ...] = ()
    devices: frozenset[str] | None = None

    def warn_of_absent(self, *devices: str | None) -> None:
        """Warn of devices that this machine does not have now."""
        for device in devices:
            if device and self.devices is not None and device not in self.devices:
                warn(f"there is no device {device} on this machine now")


@frozen
class ExplainResult:
    """Explanation of one packet; `note` is the reason if there is none."""

    socket: ProcessSocket | None
    explained: Explanation | None
    note: str = ""


@frozen
class ExplainResults:
    """Explanations of all packets in one state, and the process that owns the sockets."""

    judged: JudgedState
    items: tuple[ExplainResult, ...]
    process: dict[str, Any] | None = None

    @property
    def faults(self) -> list[str]:
        """Return a line for each route on which model and kernel disagree."""
        return [
            f"model/kernel mismatch (bug): {route.name}: the model finds '{route.model}', the kernel '{route.kernel}'"
            for item in self.items
            if item.explained
            for route in item.explained.mismatches
        ]

    def print(self, as_json: bool) -> None:
        """Print the traces, or JSON."""
        if as_json:
            print_json(self._as_json())
            return
        for line in self.judged.assumptions:
            print(f"assumption: {line}")
        if self.process:
            self._print_process(self.process)
        for index, item in enumerate(self.items):
            if index or self.process:
                print()
            self._print_item(item)
        for fault in self.faults:
            print(fault)

    def _print_process(self, process: dict[str, Any]) -> None:
        from ..phrases import quantity
        from .plain_output import plain_line

        namespace = " (in another network namespace)" if process["entered"] else ""
        count = quantity(len(self.items), "IP or packet socket") if self.items else "no IP or packet sockets"
        print(f"process {process['pid']} {plain_line(process['name'])}{namespace}: {count}")

    def _print_item(self, item: ExplainResult) -> None:
        from .packet_options import describe_socket
        from .render.trace import print_trace

        head = describe_socket(item.socket) if item.socket else None
        if item.explained is None:
            print(f"{head}: {item.note}" if head else item.note)
            return
        confirmed = [route.kernel for route in item.explained.comparisons if route.agrees]
        # A second lookup, from the chosen source address, mostly returns the same route.
        different = {(route.kind, route.device, route.gateway): route for route in reversed(confirmed)}
        notes = [f"the kernel's own route: {route}" for route in reversed(different.values())]
        print_trace(item.explained.trace, self.judged.locate, head, [*notes, *item.explained.notes])

    def _as_json(self) -> dict[str, Any]:
        from attrs import asdict

        from .render.trace import trace_json

        packets = []
        for item in self.items:
            facts: dict[str, Any] = {"socket": asdict(item.socket)} if item.socket else {}
            if item.explained is None:
                facts["note"] = item.note
            else:
                facts |= trace_json(item.explained.trace, self.judged.locate)
                facts |= {"notes": list(item.explained.notes)} if item.explained.notes else {}
                facts["kernel"] = [asdict(route) for route in item.explained.comparisons]
            packets.append(facts)
        return {
            "judged": self.judged.name,
            "assumed": list(self.judged.assumptions),
            **({"process": self.process} if self.process else {}),
            "packets": packets,
            "faults": self.faults,
        }


def _explain_packet(judged_state: JudgedState, packet: Packet) -> Explanation:
    try:
        return judged_state.explainer.explain(packet)
    except ValueError as error:
        raise Failure(f"such a packet cannot exist: {error}", EXIT_BAD_INPUT) from None


def _explain_process(file: Path | None, pid: int, options: PacketOptions) -> ExplainResults:
    this_kernel()  # first, so that a missing root privilege is the message
    from ..kernel.errors import NoSuchProcess, Unavailable
    from ..kernel.netlink.conntrack import find_flow
    from ..kernel.process_sockets import enter_netns_of, read_process_sockets
    from .packet_options import socket_packet

    policy = read_policy(file) if file else None  # before entering a namespace where the path may differ
    try:
        entered = enter_netns_of(pid)
        process = read_process_sockets(pid)
    except NoSuchProcess as error:
        raise Failure(f"--pid: {error}", EXIT_BAD_INPUT) from None
    except Unavailable as error:
        raise Failure(str(error), EXIT_UNAVAILABLE) from None
    judged_state = _state_from_kernel(file, policy)
    items = []
    for socket in process.sockets:
        packet = socket_packet(socket, process, options, find_flow)
        if isinstance(packet, str):
            items.append(ExplainResult(socket, None, packet))
        else:
            items.append(ExplainResult(socket, _explain_packet(judged_state, packet)))
    facts = {"pid": pid, "name": process.name, "cgroup": process.cgroup, "entered": entered}
    return ExplainResults(judged_state, tuple(items), facts)


# --- the state --------------------------------------------------------------------------------


def _state_from_kernel(file: Path | None, policy: tuple[Policy, PolicyText] | None = None) -> JudgedState:
    """Return the state of this namespace, with the lines of FILE or of the applied policy."""
    if file is not None and policy is None:
        policy = read_policy(file)
    try:
        kernel = this_kernel()
    except Failure as failure:
        if policy is None:
            raise
        warn(f"{failure}; explaining in what {file} compiles to instead")
        return _state_from_policy(*policy)
    from ..runtime import explain

    policy = policy or _applied_policy_if_valid()
    state = kernel.read_all()
    if policy is not None:
        devices = [device for uplink in policy[0].uplink.values() for device in uplink.devices]
        state = explain.with_origins(state, explain.compile_for(policy[0], kernel.bridge_ports(devices)))
    devices_here = frozenset(kernel.device_names())
    explainer = explain.Explainer(state, policy[0] if policy else None, explain.kernel_route_query(devices_here))
    return JudgedState(explainer, source_locator(policy and policy[1]), "this kernel", devices=devices_here)


def _applied_policy_if_valid() -> tuple[Policy, PolicyText] | None:
    try:
        return applied_policy()
    except Failure as failure:  # an account was removed; only the policy lines are lost
        warn(f"no policy lines are shown: the policy that was applied last cannot be used: {failure}")
        return None


def _state_from_files(
    file: Path | None,
    compiled: bool,
    ruleset: Path | None,
    rules: Sequence[str],
    routes: Sequence[str],
    chain_devices: Sequence[str],
) -> JudgedState:
    """Return the state in files, joined with what FILE compiles to if `compiled`."""
    policy = read_policy(file) if file is not None else None
    if compiled and policy is None:
        raise Failure("--compiled needs a policy: name FILE", EXIT_BAD_INPUT)
    if policy is not None and compiled and not (ruleset or rules or routes):
        return _state_from_policy(*policy)
    from ..runtime import explain

    state = state_from_files(ruleset, rules, routes, chain_devices)
    if policy is not None:
        desired = explain.compile_for(policy[0])
        state = explain.merge_states(desired, state) if compiled else explain.with_origins(state, desired)
    name = f"{_COMPILED}, among files" if compiled else "files"
    explainer = explain.Explainer(state, policy[0] if policy else None)
    return JudgedState(explainer, source_locator(policy and policy[1]), name)


def _state_from_policy(policy: Policy, source: PolicyText) -> JudgedState:
    """Return what the policy compiles to, with an assumed environment."""
    from ..runtime import explain

    environment, assumptions = explain.assumed_environment(policy)
    state = explain.merge_states(explain.compile_for(policy), environment)
    explainer = explain.Explainer(state, policy)
    return JudgedState(explainer, source_locator(source), _COMPILED, assumptions)
