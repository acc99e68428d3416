"""Run of a scenario: both orders of starting, a start, reload and restart under a flood, and the control."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nftpolicy.policy.load import load

from .machine import Host, StepFailed, booted_host, verdict
from .outside import Leaks, outside
from .scenario import Scenario

CONTROL, THEIRS_FIRST, OURS_FIRST = "control: no policy", "theirs first", "ours first"
ORDERS = (CONTROL, THEIRS_FIRST, OURS_FIRST)


@dataclass
class Row:
    """Line of the table: cells by column, and what is wrong."""

    scenario: str
    order: str
    cells: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def judge(self, column: str, text: str, *faults: str) -> None:
        """Fill a cell; it is bad if it has faults."""
        self.cells[column] = f"{text} !" if faults else text
        self.faults += [f"{column}: {fault}" for fault in faults]


def run_scenario(scenario: Scenario, root: Path) -> Iterator[Row]:
    """Yield the rows of a scenario."""
    states: dict[str, list[str]] = {}
    for order in ORDERS:
        row = Row(scenario.name, order)
        mark = next(iter(load(scenario.policy.encode())[0].uplink.values())).mark.value
        with outside() as around:
            leaks = Leaks(around, mark, scenario.containers)
            with booted_host(root, around, scenario) as host:
                try:
                    (_control if order == CONTROL else _guarded)(scenario, row, host, leaks, states)
                except StepFailed as error:
                    row.judge("job", "no", str(error), host.words())
        yield row


def _control(scenario: Scenario, row: Row, host: Host, leaks: Leaks, states: dict[str, list[str]]) -> None:
    """Show that each kind of the flood arrives without a policy, before the program runs or beside it."""
    with leaks.flowing():
        host.run("sleep 0.5")
        host.run(scenario.start)
        host.check(guarded=False)
        for command in (scenario.reload, scenario.restart):
            host.run(command)
            host.check(guarded=False)
        states[CONTROL] = host.state()
        host.run(scenario.stop)
        host.run("sleep 0.5")
    arrived = leaks.arrived()
    never = [name for name in leaks.names if name not in arrived]
    row.judge("job", "works")
    row.judge(
        "leaks", f"{sum(arrived.values())} of {leaks.sent}: each kind arrives", *(f"never: {one}" for one in never)
    )


def _guarded(scenario: Scenario, row: Row, host: Host, leaks: Leaks, states: dict[str, list[str]]) -> None:
    if row.order == THEIRS_FIRST:
        host.run(scenario.start)
        host.check(guarded=False)
        commands = (scenario.reload, scenario.restart)
    else:
        commands = (scenario.start, scenario.reload, scenario.restart)
    host.guard()
    host.wait_for_watch()
    with leaks.flowing():
        if row.order == THEIRS_FIRST:
            host.check(guarded=True)
        for command in commands:
            host.run(command)
            host.check(guarded=True)
            leaks.arrived()
        host.run("sleep 1")
    row.judge("job", "works")
    arrived, lost = leaks.arrived(), leaks.lost
    faults = [f"{count} of {kind}" for kind, count in arrived.items()] + (["the capture lost frames"] if lost else [])
    row.judge("leaks", f"{sum(arrived.values())} of {leaks.sent}", *faults)
    status = host.nftpolicy("status")
    row.judge(
        "status", "as expected" if status.returncode == 0 else "no", *([status.stdout] if status.returncode else [])
    )
    proof, findings = verdict(host.nftpolicy("verify --live --json").stdout)
    row.judge("verify", proof, *([] if proof == "proved" else [str(findings)]))
    events = host.events()
    row.judge("watch", "quiet" if not events else "not quiet", *events[:8])
    host.open()
    if scenario.released:
        host.run(scenario.released)
    host.check(guarded=False)
    closed = host.nftpolicy("status").returncode
    if not closed:
        row.judge("status", "as expected after release", "it says that a released policy is in force")
    if before := states.get(CONTROL):
        changed = _difference(before, host.state(), scenario)
        row.judge("release", "as before" if not changed else "differs", *changed[:12])
    else:
        row.judge("release", "unknown", "the control did not work")


def _difference(before: list[str], after: list[str], scenario: Scenario) -> list[str]:
    """Return the lines that only one state has, with a sign, without those that the scenario allows."""
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    changed = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    return [line for line in changed if not any(re.search(pattern, line[1:]) for pattern in scenario.keeps)]
