"""Table of what was seen, for the terminal and for docs/beside.md."""

import platform
from collections.abc import Iterable, Sequence

from .runner import CONTROL, Row

_COLUMNS = ("scenario", "order", "job", "leaks", "status", "verify", "watch", "release")
_NOTES = """
| Column | Good |
|---|---|
| job | what the program is for works, after start, reload and restart |
| leaks | frames of a flood that the policy forbids, at the far end of the uplink: 0 of N packets that the kernel took |
| status | `nftpolicy status` exits with 0, and with 1 after `release` |
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


def page(rows: Sequence[Row], versions: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return the page; `versions` are the packages of each scenario."""
    seen = [f"| {name} | {', '.join(packages)} |" for name, packages in versions]
    good = sum(not row.faults for row in rows if row.order != CONTROL)
    guarded = sum(row.order != CONTROL for row in rows)
    faults = [f"- {row.scenario}, {row.order}: {fault.splitlines()[0]}" for row in rows for fault in row.faults]
    return "\n".join(
        [
            "# Beside other programs",
            "",
            "Real daemons in a Debian 12 machine with systemd, in network namespaces; `script/beside --write"
            " docs/beside.md` ran them and wrote this page.",
            f"The kernel was Linux {platform.release().partition('-')[0]}. {good} of {guarded} rows with a policy have no bad cell.",
            "",
            *head(),
            *lines(rows),
            _NOTES,
            "| Scenario | Packages |",
            "|---|---|",
            *seen,
            *(["", "Bad cells:", "", *faults] if faults else []),
            "",
        ]
    )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
