"""Comparison of the kernel and the model on the same packets in the same chains."""

import json
import random
import socket
import subprocess
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager

from nftpolicy.model.branching import Choices, explore_branches
from nftpolicy.model.nft.chains import ACCEPT, Ruleset, evaluate_chain
from nftpolicy.netstate.formats import nft_json_decode, nft_text
from nftpolicy.netstate.nft import FULL_MASK
from tests.lab.netns import Namespace, wait_until
from tests.text_only_details import add_text_only_details

from . import probe_senders

SAMPLE = 60
OBSERVER = """
table {family} observer {{
    chain seen {{
        {marks}
    }}
    chain c {{
        type filter hook {hook} {device} priority {priority};
        {gates}
    }}
}}
"""
TABLE_NAMES = ("probed", "observer")
MARKS = (*range(0x20), 0x50, 0x120, 0x30, 0x100, FULL_MASK ^ 1)


class ChainComparison:
    """Tables that are loaded, packets that are sent and counters that are read, from inside the node."""

    def __init__(self, far_end: socket.socket) -> None:
        self._far = far_end
        self.probes = probe_senders.probes()
        self._senders = probe_senders.Senders([one for one in self.probes if not one.is_far])
        self._sinks = [_open_sink(family, port) for family in (4, 6) for port in (9, 22, 53, 80, 4444, 5353)]
        self.compared = self.uncertain = 0
        self.refused: list[tuple[str, str]] = []
        self._establish_flows()

    def _establish_flows(self) -> None:
        """Establish the flows that stay: one begun by the node, one begun by the far end."""
        for probe in self.probes:
            if probe.way == "kept":
                self._senders.send(probe)
        self._far.send(b"talk")
        self._far.recv(16)
        for probe in self.probes:
            if probe.way == "reply":
                self._senders.send(probe)

    def run_nft(self, words: str) -> None:
        """Load nft text in a process of its own, since some rules make nft 1.0.6 abort."""
        done = subprocess.run(["nft", "-f", "-"], input=words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(done.stderr or f"nft ended with {done.returncode}")

    def list_nft(self, *words: str) -> str:
        done = subprocess.run(["nft", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{words}: nft ended with {done.returncode} {done.stderr}")
        return done.stdout

    def keep(self, ruleset, table, base, probes) -> None:
        """Called with each table and the packets on which kernel and model agree."""

    def load(self, table) -> None:
        hook = next(chain.hook for chain in table.chains if chain.hook)
        self.clear()
        self.run_nft(nft_text.table_text(table))
        family = "netdev" if hook.device else "inet"
        names = {version: ", ".join(sorted(probe_senders.DESTINATIONS[version])) for version in (4, 6)}
        gates = "\n".join(f"{name} daddr {{ {names[version]} }} jump seen" for name, version in (("ip", 4), ("ip6", 6)))
        marks = "\n".join(f"meta mark {mark:#x} counter return" for mark in MARKS) + "\ncounter"
        device = f'device "{hook.device}"' if hook.device else ""
        self.run_nft(
            OBSERVER.format(
                family=family, hook=hook.hook, device=device, priority=hook.priority + 5, gates=gates, marks=marks
            )
        )

    def clear(self) -> None:
        for family in ("inet", "ip", "ip6", "netdev"):
            self.run_nft("".join(f"table {family} {name}\ndelete table {family} {name}\n" for name in TABLE_NAMES))

    def send(self, probes) -> None:
        for probe in probes:
            if probe.is_far:
                self._far.send(str(self.probes.index(probe)).encode())
                self._far.recv(16)
            else:
                self._senders.send(probe)

    def read_counters(self) -> tuple[dict[str, int], list[int]]:
        """Return the counts of the rules, by comment, and the counts of the observer, in order."""
        rules, seen = {}, []
        for item in json.loads(self.list_nft("-j", "list", "ruleset"))["nftables"]:
            rule = item.get("rule")
            if rule is None:
                continue
            counts = [one["counter"]["packets"] for one in rule["expr"] if isinstance(one.get("counter"), dict)]
            if rule["table"] == "probed" and "comment" in rule:
                rules[rule["comment"]] = counts[0]
            elif rule["table"] == "observer" and counts:
                seen.append(counts[0])
        return rules, seen


def _open_sink(family: int, port: int) -> socket.socket:
    made = socket.socket(probe_senders.DOMAIN[family], socket.SOCK_DGRAM)
    if family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("::" if family == 6 else "0.0.0.0", port))
    return made


def predict(ruleset, table, base, probe):
    """Return the comments of the matching rules and the final mark (None: dropped); None if the model is undecided."""
    hook = base.hook

    def run(choices: Choices):
        view, passed = probe.view(hook.hook, hook.priority), []
        verdict = evaluate_chain(ruleset, table, base, view, choices, passed)
        names = [one.subject.comment for one in passed if one.kind == "rule" and one.subject.comment]
        return tuple(names), view.mark if verdict == ACCEPT else None

    branches = explore_branches(run)
    return branches.results[0] if len(set(branches.results)) == 1 and not branches.undetermined else None


def expected_counts(ruleset, table, base, probes):
    rules: Tally = Tally()
    marks: Tally = Tally()
    for probe in probes:
        names, mark = predict(ruleset, table, base, probe)
        rules.update(names)
        if mark is not None:
            marks[MARKS.index(mark) if mark in MARKS else len(MARKS)] += 1
    return rules, marks


def compare_table(comparison: ChainComparison, table, only=None) -> None:
    try:
        comparison.load(table)
        place = ("list", "table", table.family, "probed")
        listed = comparison.list_nft("-j", *place)
    except ValueError as error:
        comparison.refused.append((nft_text.table_text(table), str(error)))
        return
    (read,) = add_text_only_details(nft_json_decode.decode_ruleset(json.loads(listed)), comparison.list_nft(*place))
    ruleset = Ruleset((read,))
    base = next(chain for chain in read.chains if chain.hook)
    versions = {"ip": (4,), "ip6": (6,)}.get(table.family, (4, 6))
    able = [one for one in comparison.probes if one.passes(base.hook.hook) and one.family in versions]
    able = random.Random(repr(table)).sample(able, min(SAMPLE, len(able))) if only is None else only
    certain = [one for one in able if predict(ruleset, read, base, one) is not None]
    comparison.uncertain += len(able) - len(certain)
    comparison.compared += len(certain)
    if (found := _difference(comparison, ruleset, read, base, certain)) is None:
        comparison.keep(ruleset, read, base, certain)
        return
    for probe in certain:
        comparison.load(table)
        alone = _difference(comparison, ruleset, read, base, [probe])
        if alone is not None:
            log: list = []
            evaluate_chain(ruleset, read, base, probe.view(base.hook.hook, base.hook.priority), Choices(), log)
            steps = "\n".join(f"  {one.text}: {one.effect}" for one in log)
            raise AssertionError(f"{nft_text.table_text(table)}\n{probe}\n{alone}\nthe model:\n{steps}")
    raise AssertionError(f"only together: {found}\n{nft_text.table_text(table)}")


def _difference(comparison: ChainComparison, ruleset, table, base, probes) -> str | None:
    comparison.send(probes)
    rules, marks = expected_counts(ruleset, table, base, probes)

    def difference() -> str | None:
        counts, seen = comparison.read_counters()
        wrong = {name: (count, rules[name]) for name, count in counts.items() if count != rules[name]}
        strange = {
            hex(MARKS[at]) if at < len(MARKS) else "other": (count, marks[at])
            for at, count in enumerate(seen)
            if count != marks[at]
        }
        return f"kernel, model: rules {wrong}, marks {strange}" if wrong or strange else None

    try:
        wait_until(lambda: difference() is None, 0.5, "agreement")
    except TimeoutError:
        return difference()
    return None


def _serve_far_end(channel: socket.socket) -> None:
    """Send the packets that the node requests, in the namespace of the far end."""
    probes = probe_senders.probes()
    senders = probe_senders.Senders([one for one in probes if one.is_far])
    sockets = {port: [_open_bound_socket(family, port) for family in (4, 6)] for port in (probe_senders.ECHO, 9)}
    channel.send(b"ready")
    while word := channel.recv(16):
        if word == b"talk":
            for echo, caller in zip(sockets[probe_senders.ECHO], sockets[9], strict=True):
                content, sender = echo.recvfrom(100)
                echo.sendto(content, sender)
                caller.sendto(
                    b"hello", (probe_senders.NODE[6 if caller.family == socket.AF_INET6 else 4], probe_senders.ECHO)
                )
        else:
            senders.send(probes[int(word)])
        channel.send(b"done")


def _open_bound_socket(family: int, port: int) -> socket.socket:
    made = socket.socket(probe_senders.DOMAIN[family], socket.SOCK_DGRAM)
    made.bind((probe_senders.FAR[family], port))
    return made


@contextmanager
def node_with_far_end() -> Iterator[tuple[Namespace, socket.socket]]:
    """Yield the node and the channel to the far end, for a ChainComparison inside the node."""
    with Namespace("node") as node, Namespace("far") as far:
        probe_senders.build(node, far)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with here, there:
            far.spawn(_serve_far_end, there)
            here.settimeout(10)
            assert here.recv(16) == b"ready"
            yield node, here
