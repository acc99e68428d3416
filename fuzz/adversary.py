"""python -m fuzz.adversary [--states N] [--seed S]: try to make the proof wrong about the running kernel.

Each state (adversary_states.py) is loaded, read back and proved, and a storm of packets without the uplink's mark
(storm.py) is sent in it. Wrong is a "proved" while a packet leaves, and a "refuted" whose packet does not leave. A
wrong state is reduced to the parts that matter, and printed.
"""

import argparse
import contextlib
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from attrs import Factory, evolve, frozen

from nftpolicy.kernel.errors import RulesetUnreadable
from nftpolicy.kernel.libnft import Nft
from nftpolicy.kernel.linux import Linux
from nftpolicy.model.packet import FORWARD, FRAME, SOCKET, UDP, CtInfo, Packet, format_address
from nftpolicy.policy.mark import Mark
from nftpolicy.proof.prover import prove
from nftpolicy.proof.verdict import PROVED, REFUTED, UNKNOWN, describe_packet
from nftpolicy.runtime.verify import GivenUplink, spec_of_uplinks

from . import storm
from .adversary_states import State, draw_state
from .storm_machine import Machine
from .storm_packets import MARK, WAN, datagram, ip_packet

BATCH = 25  # states of one child process: what aborts it costs no more than these
UPLINKS = [GivenUplink("wan", (WAN,), Mark(MARK, MARK))]
_ERROR_LINE = re.compile(r"/proc/self/fd/\d+:(\d+):")
_REFUSALS = 6  # parts that nft may refuse before a state is given up


@frozen
class Judgement:
    """What the proof says of a state, and what happened in it.

    `escaped` are the numbers of the senders whose packets left. `replayed` tells whether each packet of
    the refutation left, as far as a sender can build it.
    """

    seed: int
    state: State
    verdict: str
    escaped: frozenset[int] = frozenset()
    replayed: Mapping[str, bool] = Factory(dict)
    reasons: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """Return why the proof is wrong, or None."""
        if self.verdict == PROVED and self.escaped:
            return "proved, but these left: " + ", ".join(storm.SENDERS[number].name for number in sorted(self.escaped))
        absent = [packet for packet, left in self.replayed.items() if not left]
        if self.verdict == REFUTED and absent:
            return "refuted, but these do not leave: " + "; ".join(absent)
        return None


@frozen
class Refused:
    """State that nft does not load."""

    seed: int


# --- one state, inside the machine -----------------------------------------------------------


def judge_states(machine: Machine, states: Sequence[tuple[int, State]]) -> list[Judgement | Refused]:
    """Load, prove and attack each state."""
    nft, kernel = Nft(), Linux()
    spec = spec_of_uplinks(UPLINKS)
    return [_judge(machine, nft, kernel, spec, seed, state) for seed, state in states]


def _judge(machine: Machine, nft: Nft, kernel: Linux, spec, seed: int, state: State) -> Judgement | Refused:
    nft.load("flush ruleset\n")
    _clear_flows()
    loaded = _load(nft, state)
    if loaded is None:
        return Refused(seed)
    _set_sysctls(state)
    try:
        proof = prove(kernel.read_all(), spec, usability=False)
        machine.arrivals()
        numbers = [
            number for number, sender in enumerate(storm.SENDERS) if not (sender.reply and "mark set" in loaded.text())
        ]
        storm.send_storm(machine, numbers)
        escaped = frozenset(machine.arrivals())
        findings = [each for each in proof.findings if each.deciding and each.verdict == proof.verdict]
        examples = [example for finding in findings for example in finding.examples]
        replayed = _replay(machine, [example.packet for example in examples]) if proof.verdict == REFUTED else {}
        return Judgement(
            seed,
            loaded,
            proof.verdict,
            escaped,
            replayed,
            tuple(reason for finding in findings for reason in finding.unsupported),
        )
    except RulesetUnreadable:
        return Refused(seed)
    finally:
        _reset_sysctls(state)


def _load(nft: Nft, state: State) -> State | None:
    """Load a state without the parts that nft refuses; return what was loaded, or None."""
    for _ in range(_REFUSALS):
        text = state.text()
        error = nft.load(text)
        if error is None:
            return state
        match = _ERROR_LINE.search(error)
        line = text.splitlines()[int(match[1]) - 1].strip() if match else ""
        parts = tuple(part for part in state.parts if part.text != line)
        if len(parts) == len(state.parts):
            return None
        state = evolve(state, parts=parts)
    return None


def _clear_flows() -> None:
    """Delete all conntrack entries of the namespace (IPCTNL_MSG_CT_DELETE without a tuple)."""
    import socket
    import struct

    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
            netlink.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, family, 0, 0))
            netlink.recv(4096)


def _set_sysctls(state: State) -> None:
    for name, value in state.sysctls:
        _write_sysctl(name, value)


def _reset_sysctls(state: State) -> None:
    for name, _ in state.sysctls:
        _write_sysctl(name, 0)


def _write_sysctl(name: str, value: int) -> None:
    with open(f"/proc/sys/{name.replace('.', '/')}", "w") as file:  # noqa: PTH123
        file.write(str(value))


# --- the packet of a refutation --------------------------------------------------------------

_REPLAY = 999  # number of the packets that are sent again


def _replay(machine: Machine, packets: Sequence[Packet]) -> dict[str, bool]:
    """Send the packets of a refutation that can be sent; return whether each left, by its description."""
    results: dict[str, bool] = {}
    for packet in packets:
        if not _can_send(packet):
            continue
        machine.arrivals()
        with contextlib.suppress(OSError):
            _send(machine, packet)
        results[describe_packet(packet, with_details=True)] = _REPLAY in machine.arrivals()
    return results


def _can_send(packet: Packet) -> bool:
    plain = packet.protocol == UDP and packet.ethertype is None and not packet.fields and packet.flow == CtInfo()
    return plain and packet.origin in (SOCKET, FRAME, FORWARD) and packet.cgroup is None and bool(packet.dport)


def _send(machine: Machine, packet: Packet) -> None:
    family = packet.family
    target = format_address(family, packet.destination)
    source = "" if packet.source is None else format_address(family, packet.source)
    if packet.origin == SOCKET:
        storm.send_datagram(packet, source, target, _REPLAY)
        return
    body = ip_packet(family, source, target, UDP, datagram(family, source, target, packet.sport, packet.dport, _REPLAY))
    if packet.origin == FORWARD:
        machine.inject(str(packet.iif), family, body)
    else:
        machine.send_frame(family, body, packet.mark, owner=(packet.uid, packet.gid))


# --- many states -----------------------------------------------------------------------------


@frozen
class Tally:
    """Counts of a run, and its faults."""

    verdicts: Counter[str]
    reasons: Counter[str]
    refused: int
    aborted: int
    replayed: int
    escapes: Counter[str]
    faults: tuple[Judgement, ...]


def attack(machine: Machine, seeds: Sequence[int], stop_at: int = 20) -> Tally:
    """Judge the states of these seeds; return at once after `stop_at` faults."""
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    escapes: Counter[str] = Counter()
    refused = aborted = replayed = 0
    faults: list[Judgement] = []
    for start in range(0, len(seeds), BATCH):
        results, lost = _judge_batch(machine, [(seed, draw_state(seed)) for seed in seeds[start : start + BATCH]])
        aborted += lost
        for result in results:
            if isinstance(result, Refused):
                refused += 1
                continue
            verdicts[result.verdict] += 1
            replayed += len(result.replayed)
            reasons.update(set(result.reasons) if result.verdict == UNKNOWN else ())
            escapes.update(storm.SENDERS[number].name for number in result.escaped)
            if result.fault:
                faults.append(_reduce(machine, result))
        if len(faults) >= stop_at:
            break
    return Tally(verdicts, reasons, refused, aborted, replayed, escapes, tuple(faults))


def _judge_batch(machine: Machine, states: Sequence[tuple[int, State]]) -> tuple[list[Judgement | Refused], int]:
    """Judge states in a child, and one by one if it does not survive them (nft 1.0.6 aborts on some)."""
    try:
        return machine.node.call(judge_states, machine, states, timeout=60), 0
    except (ChildProcessError, TimeoutError):
        if len(states) == 1:
            return [], 1
    results: list[Judgement | Refused] = []
    lost = 0
    for state in states:
        found, aborted = _judge_batch(machine, [state])
        results += found
        lost += aborted
    return results, lost


def _reduce(machine: Machine, judgement: Judgement) -> Judgement:
    """Remove parts of a state as long as its proof stays wrong in the same way."""
    smaller = True
    while smaller:
        smaller = False
        for state in judgement.state.reductions():
            results, _ = _judge_batch(machine, [(judgement.seed, state)])
            result = results[0] if results else None
            if isinstance(result, Judgement) and result.fault and result.verdict == judgement.verdict:
                judgement, smaller = result, True
                break
    return judgement


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/adversary", description="Attack the proof with real packets.")
    parser.add_argument("--states", type=int, default=1000, help="number of states (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first state (default: 1)")
    options = parser.parse_args()
    begin = time.monotonic()
    with Machine() as machine:
        unprotected = machine.node.call(judge_states, machine, [(0, State(()))])[0]
        missing = set(range(len(storm.SENDERS))) - unprotected.escaped
        if missing:
            print("without a guard these do not leave:", *(storm.SENDERS[number].name for number in sorted(missing)))
            return 2
        tally = attack(machine, range(options.seed, options.seed + options.states))
    for judgement in tally.faults:
        print(f"--- seed {judgement.seed}: {judgement.fault}\n{judgement.state.text()}{judgement.state.sysctls or ''}")
    print(f"{sum(tally.verdicts.values())} states in {time.monotonic() - begin:.0f} s, {len(storm.SENDERS)} senders:")
    print(f"  {dict(tally.verdicts)}, {tally.refused} refused by nft, {tally.aborted} aborted nft")
    print(f"  {tally.replayed} refutations replayed; {len(tally.escapes)} kinds of senders got out somewhere")
    for reason, count in tally.reasons.most_common(25):
        print(f"  {count:6} {reason[:110]}")
    print(f"{len(tally.faults)} faults")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
