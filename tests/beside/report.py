"""Table of what was seen, for the terminal and for docs/beside.md."""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .runner import CONTROL, Row
from .scenario import Scenario

_COLUMNS = ("scenario", "order", "job", "leaks", "status", "verify", "watch", "release")
_NOTES = """
| Column | Good |
|---|---|
| job | what the program is for works, after start, reload and restart |
| leaks | frames of a flood that the policy forbids, at the far end of the uplink: 0 of N packets that the kernel took |
| status | `nftpolicy status` exits with 0, and with 2 after `release` |
| verify | `nftpolicy verify --live` proves P1 to P5 with all that the program made |
| watch | no repair, conflict, block or failure in the log of `nftpolicy watch` |
| release | ip rules, routes, nft ruleset and network sysctls as without a policy |

The control is the same flood without a policy: each of its kinds arrives, before or while the program runs. The kinds
are packets without the mark, with the mark of the uplink and another group, and with another mark; by UDP, TCP and raw
sockets, bound to the uplink or not, by AF_PACKET, and from a host in the LAN; IPv4 and IPv6. "Theirs first": the
program starts, then the policy. "Ours first": the policy, then the program. A "!" is a bad cell.
"""


def lines(rows: Iterable[Row]) -> list[str]:
    """Return the rows of the table in Markdown, without its head."""
    return [_line([row.scenario, row.order, *(row.cells.get(column, "-") for column in _COLUMNS[2:])]) for row in rows]


def head() -> list[str]:
    """Return the head of the table."""
    return [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]


def page(rows: Sequence[Row], scenarios: Sequence[Scenario], versions: Mapping[str, str], earlier: str) -> str:
    """Return the page; `versions` are those of the packages.

    `earlier` is the page of an earlier run: what it says of other scenarios stays.
    """
    names = {one.name for one in scenarios}
    kept = [line for line in earlier.splitlines() if _scenario_of(line) not in (None, *names)]
    seen = [_line([one.name, _packages(one, versions), "; ".join(_exceptions(one)) or "-"]) for one in scenarios]
    faults = [f"- {row.scenario}, {row.order}: {fault.splitlines()[0]}" for row in rows for fault in row.faults]
    table = [line for line in kept if line.count(" | ") == len(_COLUMNS) - 1] + lines(rows)
    seen = [line for line in kept if line.count(" | ") == 2] + seen
    faults = [line for line in kept if line.startswith("- ")] + faults
    guarded = [line for line in table if f" | {CONTROL} | " not in line]
    good = sum("! |" not in line for line in guarded)
    text = [
        "# Beside other programs",
        "",
        "Real daemons in a Debian 12 machine with systemd, in network namespaces. `script/beside --write docs/beside.md`",
        "ran them and wrote this page.",
        f"The kernel was Linux {platform.release().partition('-')[0]}."
        f" {good} of {len(guarded)} rows with a policy have no bad cell.",
        "",
        *head(),
        *table,
        _NOTES,
        "| Scenario | Packages | Exceptions |",
        "| --- | --- | --- |",
        *seen,
        *(["", "Bad cells:", "", *faults] if faults else []),
        "",
    ]
    return "\n".join(text)


def _scenario_of(line: str) -> str | None:
    """Return the scenario that a line of a page is about, None if it is about none."""
    if line.startswith("- "):
        return line[2:].partition(",")[0]
    cells = line.split(" | ")
    is_row = line.startswith("| ") and len(cells) in (len(_COLUMNS), 3) and "---" not in line
    return cells[0].removeprefix("| ") if is_row and cells[0] not in ("| scenario", "| Scenario") else None


def _packages(scenario: Scenario, versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {versions[package]}" for package in scenario.packages)


def _exceptions(scenario: Scenario) -> Iterator[str]:
    """Yield what a good cell of this scenario may show."""
    for difference in scenario.keeps.values():
        yield f"after release, {difference}"
    for event, reason in scenario.events.items():
        yield f"watch logs `{event}`: {reason}"
    if scenario.released:
        yield f"after release, `{scenario.released}`"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
