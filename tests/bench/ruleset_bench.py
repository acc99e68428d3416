"""A large ruleset read from the kernel and decoded, against `nft -j list ruleset`: time and memory."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from nftpolicy.kernel.netlink.nft_ruleset import read_tables
from tests.lab.netns import Namespace

from .figures import Report, Series, in_turns, say

ROUNDS = 7
_RULES, _ELEMENTS = 10_000, 100_000
_OURS, _NFT = "tables of the kernel, decoded", "nft -j list ruleset"
_LIST = ["nft", "-j", "list", "ruleset"]
_READ = [sys.executable, "-c", "from nftpolicy.kernel.netlink.nft_ruleset import read_tables; read_tables()"]
_TIME_BOUND, _MEMORY_BOUND = 0.8, 1 / 3
_KIBIBYTES = 1024


def _ruleset() -> Iterator[str]:
    addresses = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(_ELEMENTS))
    yield f"table inet large {{\nset s {{ type ipv4_addr\nelements = {{ {', '.join(addresses)} }}\n}}\n"
    yield "chain c { type filter hook output priority 0\n"
    for number in range(_RULES):
        host = f"10.{number >> 8}.{number & 255}.1"
        yield f'oifname "eth{number % 100}" ip daddr {host} tcp dport {number + 1} counter accept\n'
    yield "}\n}\n"


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    say("ruleset: 10,000 rules and 100,000 elements")
    with Namespace("node") as node:
        node.nft("".join(_ruleset()))
        values, memory = node.call(_measure, rounds or ROUNDS, timeout=600)
    listing, listing_memory = (
        Series("ruleset", name, unit, found[_NFT]) for name, unit, found in _kinds(values, memory)
    )
    ours = Series("ruleset", _OURS, "s", values[_OURS], listing)
    ours_memory = Series("ruleset", f"{_OURS}, memory", "MiB", memory[_OURS], listing_memory)
    report.series += [listing, ours, listing_memory, ours_memory]
    report.limit(
        "the ruleset that the kernel executes, decoded whole: against nft's listing", ours, listing, _TIME_BOUND
    )
    report.limit("its memory, with the interpreter: against nft's", ours_memory, listing_memory, _MEMORY_BOUND)


def _kinds(
    values: dict[str, list[float]], memory: dict[str, list[float]]
) -> Iterator[tuple[str, str, dict[str, list[float]]]]:
    yield _NFT, "s", values
    yield f"{_NFT}, memory", "MiB", memory


def _measure(rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return seconds and MiB of each case; runs in the namespace."""
    turns = {_NFT: _list, _OURS: _read}
    in_turns(turns, 1)
    seconds = in_turns(turns, rounds)
    return seconds, {_NFT: [_memory(_LIST)], _OURS: [_memory(_READ)]}


def _list() -> float:
    start = time.perf_counter()
    subprocess.run(_LIST, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _read() -> float:
    start = time.perf_counter()
    read_tables()
    return time.perf_counter() - start


def _memory(argv: list[str]) -> float:
    """Return the peak of the memory of a process in MiB."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{argv[0]} ended with status {process.returncode}")
    return usage.ru_maxrss / _KIBIBYTES
