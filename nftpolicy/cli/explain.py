# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy explain [FILE]"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer
from attrs import frozen

from .common import BAD_INPUT, NOT_HERE, REFUSED, Failure, parse_policy, read_policy, this_kernel, warn
from .desk import ROUTES, RULES, RULESET, desk_state

if TYPE_CHECKING:
    from ..kernel.sockets import Socket
    from ..policy.errors import Source
    from ..policy.objects import Policy
    from ..runtime.explain import Explained, Explainer
    from .picture import Place


def command(
    file: Optional[Path] = typer.Argument(None, help="The policy; without it, the one that was applied last."),  # noqa: UP045
    to: Optional[str] = typer.Option(None, help="Where the packet goes: an IPv4 or IPv6 address."),  # noqa: UP045
    from_: Optional[str] = typer.Option(None, "--from", help="Its source address; else the kernel chooses."),  # noqa: UP045
    proto: str = typer.Option("udp", help="udp, tcp, icmp, ipv6-icmp, or the number of an IP protocol."),
    dport: int = typer.Option(9, min=0, max=65535, help="Destination port."),
    sport: int = typer.Option(40000, min=0, max=65535, help="Source port."),
    uid: Optional[str] = typer.Option(None, help="Who opened the socket, by name or number; else root."),  # noqa: UP045
    gid: Optional[str] = typer.Option(None, help="In which group; else the user's own."),  # noqa: UP045
    mark: str = typer.Option("0", help="The socket's mark (SO_MARK), decimal or 0x..."),
    cgroup: Optional[str] = typer.Option(None, help="The socket's cgroup, below the root of cgroup v2."),  # noqa: UP045
    dev: Optional[str] = typer.Option(None, help="The device that the socket is bound to."),  # noqa: UP045
    frame: bool = typer.Option(False, "--frame", help="Sent by an AF_PACKET socket on --dev."),
    kernel: bool = typer.Option(False, "--kernel", help="Made by the kernel itself, without a socket."),
    forward: Optional[str] = typer.Option(None, help="From another host: the device that it arrived by."),  # noqa: UP045
    state: str = typer.Option("new", help="Its connection: new, established, related, invalid or untracked."),
    reply: bool = typer.Option(False, "--reply", help="It goes in the direction of replies."),
    ct_mark: str = typer.Option("0", help="The mark of its connection."),
    field: list[str] = typer.Option([], help="HEADER.NAME=NUMBER, by nft's names; may be repeated."),
    pid: Optional[int] = typer.Option(None, min=1, help="The sockets of this process, instead of one described."),  # noqa: UP045
    compiled: bool = typer.Option(False, "--compiled", help="Judge what FILE compiles to, not this kernel."),
    ruleset: Optional[Path] = typer.Option(None, help=RULESET),  # noqa: UP045
    rules: list[str] = typer.Option([], help=RULES),
    routes: list[str] = typer.Option([], help=ROUTES),
    json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show what Linux does with one packet, decision by decision, and which policy line is behind it."""
    from .asked import Asked

    asked = Asked(
        to, from_, proto, dport, sport, uid, gid, mark, cgroup, dev, frame, kernel, forward, state, reply, ct_mark,
        tuple(field),
    )  # fmt: skip
    desk = bool(ruleset or rules or routes)
    if pid is not None:
        asked.only_a_destination()
        if desk or compiled:
            raise Failure("--pid asks this kernel; not with --compiled, --ruleset, --rules or --routes", BAD_INPUT)
        found = _of_process(file, pid, asked)
    else:
        packet = asked.packet()  # before anything is looked at: bad input is told first
        judged = _from_files(file, compiled, ruleset, rules, routes) if desk or compiled else _from_kernel(file)
        judged.tell_absent(packet.bound, packet.iif)
        found = Answers(judged, (Answer(None, _explained(judged, packet)),))
    found.print(json)
    if found.faults:
        raise typer.Exit(REFUSED)


@frozen
class Judged:
    """The state that is judged: its explainer, its name, and what was taken for granted."""

    explainer: Explainer
    place: Place
    name: str
    assumed: tuple[str, ...] = ()
    links: frozenset[str] | None = None

    def tell_absent(self, *devices: str | None) -> None:
        """Warn of devices that this machine does not have now."""
        for device in devices:
            if device and self.links is not None and device not in self.links:
                warn(f"there is no device {device} on this machine now")


@frozen
class Answer:
    """One socket of a program, or the one that was described; `note` where there is nothing to explain."""

    socket: Socket | None
    explained: Explained | None
    note: str = ""


@frozen
class Answers:
    """All that was asked."""

    judged: Judged
    items: tuple[Answer, ...]
    process: dict[str, Any] | None = None

    @property
    def faults(self) -> list[str]:
        """Where the kernel says something else than the model, in words."""
        return [
            f"a fault of the model: {one.what}: the model finds '{one.model}', the kernel '{one.kernel}'"
            for item in self.items
            if item.explained
            for one in item.explained.faults
        ]

    def print(self, as_json: bool) -> None:
        """The picture, or JSON."""
        if as_json:
            import json

            print(json.dumps(self._as_json(), indent=1))
            return
        from .asked import describe
        from .picture import draw, printable

        for line in self.judged.assumed:
            print(f"assumed: {line}")
        if self.process:
            where = " (in another network namespace)" if self.process["entered"] else ""
            count = len(self.items)
            print(
                f"process {self.process['pid']} {printable(self.process['name'])}{where}: "
                f"{count or 'no'} IP or packet socket{'' if count == 1 else 's'}"
            )
        for index, item in enumerate(self.items):
            if index or self.process:
                print()
            head = describe(item.socket) if item.socket else None
            if item.explained is None:
                print(f"{head}: {item.note}" if head else item.note)
                continue
            agreed = [one.kernel for one in item.explained.agreements if one.agrees]
            # Asked again from its source address, the kernel mostly says the same.
            different = {(one.kind, one.device, one.gateway): one for one in reversed(agreed)}
            notes = [f"the kernel itself says: {one}" for one in reversed(different.values())]
            draw(item.explained.walk, self.judged.place, head, notes)
        for fault in self.faults:
            print(fault)

    def _as_json(self) -> dict[str, Any]:
        from attrs import asdict

        from .picture import as_json

        packets = []
        for item in self.items:
            facts: dict[str, Any] = {"socket": asdict(item.socket)} if item.socket else {}
            if item.explained is None:
                facts["note"] = item.note
            else:
                facts |= as_json(item.explained.walk, self.judged.place)
                facts["kernel"] = [asdict(one) for one in item.explained.agreements]
            packets.append(facts)
        return {
            "judged": self.judged.name,
            "assumed": list(self.judged.assumed),
            **({"process": self.process} if self.process else {}),
            "packets": packets,
            "faults": self.faults,
        }


def _explained(judged: Judged, packet: Any) -> Explained:
    try:
        return judged.explainer.explain(packet)
    except ValueError as error:
        raise Failure(f"no such packet can be: {error}", BAD_INPUT) from None


def _of_process(file: Path | None, pid: int, asked: Any) -> Answers:
    this_kernel()  # without root, that is what is told
    from ..kernel.conntrack import tracked
    from ..kernel.interface import Unavailable
    from ..kernel.sockets import Gone, enter_network_of, sockets_of
    from .asked import packet_of

    policy = read_policy(file) if file else None  # before the way to it may be another
    try:
        entered = enter_network_of(pid)
        process = sockets_of(pid)
    except Gone as error:
        raise Failure(f"--pid: {error}", BAD_INPUT) from None
    except Unavailable as error:
        raise Failure(str(error), NOT_HERE) from None
    judged = _from_kernel(file, policy)
    items = []
    for one in process.sockets:
        packet = packet_of(one, process, asked, tracked)
        if isinstance(packet, str):
            items.append(Answer(one, None, packet))
        else:
            items.append(Answer(one, _explained(judged, packet)))
    about = {"pid": pid, "name": process.name, "cgroup": process.cgroup, "entered": entered}
    return Answers(judged, tuple(items), about)


def _from_kernel(file: Path | None, policy: tuple[Policy, Source] | None = None) -> Judged:
    """The kernel of this network namespace, with the lines of FILE or of the policy that was applied last."""
    if file is not None and policy is None:
        policy = read_policy(file)
    try:
        kernel = this_kernel()
    except Failure as failure:
        if policy is None:
            raise
        warn(f"{failure}; so this is what {file} compiles to")
        return _of_policy(*policy)
    from ..runtime import explain

    policy = policy or _last()
    state = kernel.everything()
    if policy is not None:
        devices = [device for uplink in policy[0].uplink.values() for device in uplink.devices]
        state = explain.with_origins(state, explain.compiled(policy[0], kernel.bridge_ports(devices)))
    links = frozenset(kernel.links())
    explainer = explain.Explainer(state, policy[0] if policy else None, explain.asking(links))
    return Judged(explainer, _place(policy), "this kernel", links=links)


def _last() -> tuple[Policy, Source] | None:
    from ..runtime.changes.memory import of_this_namespace

    last = of_this_namespace().policy()
    try:
        return parse_policy(last[1], last[0]) if last else None
    except Failure as failure:  # an account is gone; only the names of lines are lost
        warn(f"the policy that was applied last can't be read any more: {failure}")
        return None


def _from_files(file: Path | None, compiled: bool, ruleset: Path | None, rules: list[str], routes: list[str]) -> Judged:
    policy = read_policy(file) if file is not None else None
    if compiled and policy is None:
        raise Failure("--compiled judges what FILE compiles to: name a policy", BAD_INPUT)
    if compiled and not (ruleset or rules or routes):
        return _of_policy(*policy)  # type: ignore[misc]
    from ..runtime import explain

    state = desk_state(ruleset, rules, routes)
    if policy is not None:
        desired = explain.compiled(policy[0])
        state = explain.joined(desired, state) if compiled else explain.with_origins(state, desired)
    name = "what FILE compiles to, among files" if compiled else "files"
    explainer = explain.Explainer(state, policy[0] if policy else None)
    return Judged(explainer, _place(policy), name)


def _of_policy(policy: Policy, source: Source) -> Judged:
    from ..runtime import explain

    others, said = explain.assumed(policy)
    state = explain.joined(explain.compiled(policy), others)
    return Judged(explain.Explainer(state, policy), _place((policy, source)), "what FILE compiles to", said)


def _place(policy: tuple[Policy, Source] | None) -> Place:
    from .picture import nowhere, of_source

    return of_source(policy[1].name, policy[1].line) if policy else nowhere
