"""A large ruleset read from the kernel and decoded, against `nft -j list ruleset`: time and memory.

The limits compare with nft's listing alone, which is JSON that no one has decoded yet. What the same
values cost by way of the listing (nft, json.loads, nft_json_decode) is printed beside it. Times are
those of a process that runs already, but for nft, which is always a new process. Memory is that of a
new process, the larger one where there are two, with its interpreter.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

from nftpolicy.kernel.netlink.nft_ruleset import read_tables
from nftpolicy.netstate.formats.nft_json_decode import decode_ruleset
from tests.lab.netns import Namespace

from .figures import Report, Series, in_turns, say

ROUNDS = 7
_RULES, _ELEMENTS = 10_000, 100_000
_OURS, _NFT, _JSON = "tables of the kernel, decoded", "nft -j list ruleset", "nft -j list ruleset, decoded"
_LIST = ["nft", "-j", "list", "ruleset"]
_READ = [sys.executable, "-c", "from nftpolicy.kernel.netlink.nft_ruleset import read_tables; read_tables()"]
_DECODE = [sys.executable, "-c", "from tests.bench.ruleset_bench import decode_listing; decode_listing()"]
_TIME_BOUND, _MEMORY_BOUND = 0.8, 1 / 3
_KIBIBYTES = 1024
# Linux adds to the peak of a process that of the process which started it (exec_mmap), so that this
# small one has to start it, and not the benchmark.
_PEAK = """
import os, sys
output = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=output)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _ruleset() -> Iterator[str]:
    addresses = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(_ELEMENTS))
    yield f"table inet large {{\nset s {{ type ipv4_addr\nelements = {{ {', '.join(addresses)} }}\n}}\n"
    yield "chain c { type filter hook output priority 0\n"
    for number in range(_RULES):
        host = f"10.{number >> 8}.{number & 255}.1"
        counter = f"counter packets {number} bytes {number * 77}"  # as in a ruleset that is in use
        yield f'oifname "eth{number % 100}" ip daddr {host} tcp dport {number + 1} {counter} accept\n'
    yield "}\n}\n"


def run(report: Report, rounds: int | None) -> None:
    """Measure, and add to the report."""
    say("ruleset: 10,000 rules and 100,000 elements")
    with Namespace("node") as node:
        node.nft("".join(_ruleset()))
        seconds, memory = node.call(_measure, rounds or ROUNDS, timeout=600)
    time_series = _series("s", "", seconds)
    memory_series = _series("MiB", ", memory", memory)
    report.series += [*time_series.values(), *memory_series.values()]
    report.limit(
        "the ruleset that the kernel executes, decoded whole: against nft's listing",
        time_series[_OURS],
        time_series[_NFT],
        _TIME_BOUND,
    )
    report.limit(
        "its memory, with the interpreter: against nft's", memory_series[_OURS], memory_series[_NFT], _MEMORY_BOUND
    )


def _series(unit: str, suffix: str, values: dict[str, list[float]]) -> dict[str, Series]:
    """Return the series of each case; nft's listing is the peer of the others."""
    listing = Series("ruleset", _NFT + suffix, unit, values[_NFT])
    others = {name: Series("ruleset", name + suffix, unit, values[name], listing) for name in (_JSON, _OURS)}
    return {_NFT: listing, **others}


def _measure(rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return seconds and MiB of each case; runs in the namespace."""
    turns = {_NFT: _list, _JSON: _decode, _OURS: _read}
    in_turns(turns, 1)
    seconds = in_turns(turns, rounds)
    return seconds, {_NFT: [_memory(_LIST)], _JSON: [_memory(_DECODE)], _OURS: [_memory(_READ)]}


def _list() -> float:
    start = time.perf_counter()
    subprocess.run(_LIST, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _decode() -> float:
    start = time.perf_counter()
    decode_listing()
    return time.perf_counter() - start


def decode_listing() -> None:
    """Read and decode the ruleset by way of nft's listing."""
    decode_ruleset(json.loads(subprocess.run(_LIST, check=True, stdout=subprocess.PIPE).stdout))


def _read() -> float:
    start = time.perf_counter()
    read_tables()
    return time.perf_counter() - start


def _memory(argv: list[str]) -> float:
    """Return the peak of the memory of a process, or of a larger one that it started, in MiB."""
    launcher = [sys.executable, "-I", "-S", "-c", _PEAK, *argv]
    return int(subprocess.run(launcher, check=True, stdout=subprocess.PIPE).stdout) / _KIBIBYTES
