"""Judgement of one state: it is loaded and proved, and the storm is sent in it, all inside the machine."""

import faulthandler
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import Factory, evolve, frozen

from nftpolicy.kernel.errors import RulesetUnreadable
from nftpolicy.kernel.libnft import Nft
from nftpolicy.kernel.linux import Linux
from nftpolicy.kernel.netlink import constants as nl
from nftpolicy.kernel.netlink.attributes import netfilter_header
from nftpolicy.kernel.netlink.socket import NetlinkSocket
from nftpolicy.model.packet import Packet
from nftpolicy.policy.mark import Mark
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec
from nftpolicy.proof.verdict import PROVED, REFUTED, Proof
from nftpolicy.runtime.marks_in_use import MarksInUse, read_marks_in_use
from nftpolicy.runtime.verify import GivenUplink, spec_of_uplinks

from . import storm
from .adversary_draw import EARLIER_FLOW, Part
from .adversary_programs import PROGRAMS, load_program, reset_program
from .adversary_states import SYSCTL_DEFAULTS, State
from .replay import replay
from .storm_machine import PATIENT, Machine
from .storm_packets import MARK, WAN

UPLINKS = [GivenUplink("wan", (WAN,), Mark(MARK, MARK))]
_ERROR_LINE = re.compile(r"/proc/self/fd/\d+:(\d+):")
_REFUSALS = 6  # parts that nft may refuse before a state is given up
_NUMBERS = {sender.name: number for number, sender in enumerate(storm.SENDERS)}


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


def judge_states(machine: Machine, states: Sequence[tuple[int, State]]) -> list[Judgement | Refused]:
    """Load, prove and attack each state. Runs in a child: nft 1.0.6 aborts on some states."""
    faulthandler.disable()  # such an abort is expected
    nft, kernel = Nft(), Linux()
    spec = spec_of_uplinks(UPLINKS)
    return [_judge(machine, nft, kernel, spec, seed, state) for seed, state in states]


def _judge(machine: Machine, nft: Nft, kernel: Linux, spec: Spec, seed: int, state: State) -> Judgement | Refused:
    _clear(nft)
    try:
        loaded = _load(machine, nft, state)
        if loaded is None:
            return Refused(seed)
        has_flows = any(part.place == EARLIER_FLOW for part in loaded.parts)
        marks = read_marks_in_use(kernel) if has_flows else MarksInUse({}, {})  # to list no flows takes long, too
        proof = prove(kernel.read_all(), marks.count(spec), usability=False)
        machine.arrivals()
        storm.send_storm(machine, _entitled_to_nothing(loaded, proof))
        escaped = frozenset(machine.arrivals(PATIENT) if proof.verdict == PROVED else machine.arrivals())
        findings = [each for each in proof.findings if each.deciding and each.verdict == proof.verdict]
        examples = [example for finding in findings for example in finding.examples]
        packets = [example.packet for example in examples] if proof.verdict == REFUTED else []
        replayed = _replay_each(machine, nft, loaded, packets)
        reasons = tuple(reason for finding in findings for reason in finding.unsupported)
        return Judgement(seed, loaded, proof.verdict, escaped, replayed, reasons)
    except RulesetUnreadable:
        return Refused(seed)
    finally:
        _reset(state)


def _replay_each(machine: Machine, nft: Nft, state: State, packets: Sequence[Packet]) -> dict[str, bool]:
    """Send the packets of a refutation again; return whether each left, by its description.

    Flows, expectations and limits that earlier packets have left behind can stop a packet. One that does not leave
    is sent again in the state as it was proved.
    """
    results: dict[str, bool] = {}
    for packet in packets:
        result = replay(machine, [packet])
        if not all(result.values()):
            _reset(state)
            _clear(nft)
            if _load(machine, nft, state) is not None:
                result = replay(machine, [packet])
        results |= result
    return results


def _entitled_to_nothing(state: State, proof: Proof) -> list[int]:
    """Return the numbers of the senders whose packets must not leave a proved state.

    Replies are entitled to the mark of their flow. A flow that has a mark is assumed to have begun at the uplink, by
    name, if only rules for such flows give it one.
    """
    with_replies = any("mark set" in part.text or "MARK" in part.text for part in state.parts)
    is_assumed = proof.verdict == PROVED and any(
        "mark of uplink" in assumption and "flow" in assumption for assumption in proof.assumptions
    )
    assumed = {_earlier_sender(part) for part in state.parts if is_assumed and part.place == EARLIER_FLOW}
    return [
        number
        for number, sender in enumerate(storm.SENDERS)
        if not (sender.reply and with_replies) and number not in assumed
    ]


# --- a state, loaded and removed -------------------------------------------------------------


def _load(machine: Machine, nft: Nft, state: State) -> State | None:
    """Load a state without the parts that its programs refuse; return what was loaded, or None."""
    flows = [part for part in state.parts if part.place == EARLIER_FLOW]
    if flows:
        _make_flows(machine, nft, flows)
    state = _load_program(state, "link")
    loaded = _load_tables(nft, state)
    if loaded is None:
        return None
    for program in PROGRAMS:
        if program != "link":
            loaded = _load_program(loaded, program)
    for name, value in state.sysctls:
        _write_sysctl(name, value)
    return loaded


def _load_tables(nft: Nft, state: State) -> State | None:
    """Load the tables of nft without the parts that it refuses; return what was loaded, or None."""
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


def _load_program(state: State, program: str) -> State:
    """Load the parts of one program; return the state without those that it refused."""
    own = [part for part in state.parts if part.program == program]
    if not own:
        return state
    refused = set(own) - set(load_program(program, own))
    return evolve(state, parts=tuple(part for part in state.parts if part not in refused))


def _clear(nft: Nft) -> None:
    nft.load("flush ruleset\n")
    _delete_flows()


def _reset(state: State) -> None:
    """Remove what nft does not flush."""
    for program in PROGRAMS:
        if any(part.program == program for part in state.parts):
            reset_program(program)
    for name, _ in state.sysctls:
        _write_sysctl(name, SYSCTL_DEFAULTS[name])


def reset_machine() -> None:
    """Remove what a child that did not survive has left."""
    subprocess.run(["nft", "flush", "ruleset"], check=False)
    for program in PROGRAMS:
        reset_program(program)
    for name, value in SYSCTL_DEFAULTS.items():
        _write_sysctl(name, value)


_EARLIER_RULESET = """table inet earlier {{
  chain last {{
    type filter hook postrouting priority 0; ct mark set {}
  }}
}}
"""


def _earlier_sender(part: Part) -> int:
    return _NUMBERS[part.text.split(maxsplit=1)[1]]


def _make_flows(machine: Machine, nft: Nft, parts: Sequence[Part]) -> None:
    """Send a packet of each flow, marked by a ruleset that is gone before the state is loaded."""
    for part in parts:
        nft.load(_EARLIER_RULESET.format(part.text.split()[0]))
        storm.send_storm(machine, [_earlier_sender(part)])
        nft.load("flush ruleset\n")


def _delete_flows() -> None:
    """Delete all conntrack entries of the namespace."""
    with NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        for family in nl.ADDRESS_FAMILY.values():
            netlink.change(nl.IPCTNL_MSG_CT_DELETE, netfilter_header(family))


def _write_sysctl(name: str, value: int) -> None:
    Path("/proc/sys", name.replace(".", "/")).write_text(str(value))
