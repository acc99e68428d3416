# SPDX-License-Identifier: BSD-2-Clause
"""Text of `status`: the verdict, what runs, and all that is not zero. Imports rich only for a table."""

from __future__ import annotations

from shlex import quote

from ...phrases import and_more, quantity
from ...policy.objects import Policy
from ...runtime.apply.block_reason import WAY_OUT
from ...runtime.apply.watch_record import WatchRecord
from ...runtime.status import LAYERS, Status
from ...runtime.status_report import BLOCKED, GUARD_ONLY, IN_FORCE, ON_TRIAL, StatusReport
from .terminal import make_console, make_table, print_styled, styled

_MOST_SOCKETS = 20  # rows
_MOST_DIFFERENCES = 10  # lines
_COLOURS = {IN_FORCE: "green", ON_TRIAL: "yellow"}
_NO_NAME = "nftpolicy"


def print_report(report: StatusReport) -> None:
    """Print a report on standard output; its warnings are in `warning_lines`."""
    print_styled([(verdict_line(report), _COLOURS.get(report.verdict, "red"))])
    print_styled([(running_line(report), "")])
    state = report.comparison
    if state is None:
        return
    print_styled((line, "") for line in uplink_lines(report, state.policy))
    _print_counters(state)
    _print_sockets(state)
    if state.differences:
        lines = ["changes that 'nftpolicy apply' would make:", *(f"  {line}" for line in state.differences)]
        if (more := len(lines) - 1 - _MOST_DIFFERENCES) > 0:
            lines[1 + _MOST_DIFFERENCES :] = [f"  {and_more(more)}: nftpolicy apply --dry-run"]
        print_styled((line, "") for line in lines)


def verdict_line(report: StatusReport) -> str:
    """Return the first line: is the policy in force, since when, and what has the guard dropped."""
    state = report.comparison
    if state is None:
        if report.release is not None:
            how = f"released {readable_time(report.release.time)} by {report.release.user} ({report.release.why})"
            return f"{report.release.policy or _NO_NAME}: not in force: {how}"
        return f"{_NO_NAME}: not in force: no policy is applied here"
    facts = [f"{state.policy.name}: {_verdict_text(report, state)}"]
    if report.leaks is not None:
        facts.append(f"leaks {report.leaks}")
    facts.append(f"dropped {state.dropped}{_last_dropped(report, state)}")
    return "; ".join(facts)


def _verdict_text(report: StatusReport, state: Status) -> str:
    since = f" since {readable_time(report.since)}" if report.since else ""
    cut_off = ", ".join(report.unusable_uplinks)
    cut_off = f", but nothing can leave by uplink {cut_off}" if cut_off else ""
    parts = [part for part, good in state.parts.items() if not good]
    different = f"{', '.join(parts)} {'differ' if parts[1:] or parts[0].endswith('s') else 'differs'}" if parts else ""
    match report.verdict:
        case verdict if verdict == IN_FORCE:
            return f"in force{since}{cut_off}"
        case verdict if verdict == ON_TRIAL and report.trial is not None:
            until = f"on trial until {readable_time(report.trial.until)}, then back to {report.trial.target_text}"
            return f"{until}{cut_off}"
        case verdict if verdict == BLOCKED:
            return f"BLOCKED{since}: the uplinks are stopped"
        case verdict if verdict == GUARD_ONLY:
            starved = "the services are starved by foreign ip rules"
            causes = " and ".join(filter(None, (starved if state.is_starved else "", different)))
            return f"held by the guard, but {causes}"
        case _:
            return f"NOT in force: {different if report.has_tables else 'the guard is missing'}"


def _last_dropped(report: StatusReport, state: Status) -> str:
    """Return the last wrong socket whose packets the guard drops, with the process that owns it."""
    wrong = [each for each in state.sockets or () if each.counter]
    if wrong:
        return f", now from {wrong[0].process_label} ({wrong[0].verdict})"
    if report.watch is not None and (last := report.watch.last_socket):
        return (
            f", last from {last['program']}/{last.get('pid', '?')} ({last['verdict']}, {readable_time(last['time'])})"
        )
    return ""


def running_line(report: StatusReport) -> str:
    """Return the second line: which daemons run, and what the next boot starts."""
    facts = [_watch_text(report.watch)]
    for name, uplink in report.uplinks.items():
        if uplink.resolver_runs is not None:
            facts.append(f"resolver {name} {'runs' if uplink.resolver_runs else 'does not run'}")
    names = [name.removesuffix(".service") for name in (*report.boot.units, *report.boot.scripts)]
    facts.append(f"at boot: {', '.join(names) or 'nothing'}")
    return "; ".join(facts)


def _watch_text(record: WatchRecord | None) -> str:
    if record is None:
        return "watch does not run"
    verdict = f"{record.verdict} since {readable_time(record.proved)}" if record.verdict else "no proof yet"
    repairs = ""
    if record.last_repair is not None:
        repairs = f", {quantity(record.repairs, 'repair')}, the last one {readable_time(record.last_repair['time'])}"
        if record.last_repair["by"]:
            repairs += f" after {record.last_repair['by']}"
    return f"watch runs (process {record.pid}, {verdict}{repairs})"


def uplink_lines(report: StatusReport, policy: Policy) -> list[str]:
    """Return a line for each uplink: its devices, and what keeps packets from it."""
    lines = []
    for name, uplink in policy.uplink.items():
        problems = report.uplinks[name].problems if name in report.uplinks else ()
        usable = f"{'; '.join(problems)}: 'nftpolicy wait --uplink {name}' waits for it" if problems else "usable"
        lines.append(f"uplink {name} ({', '.join(uplink.devices)}): {usable}")
    return lines


def warning_lines(report: StatusReport) -> list[str]:
    """Return the warnings, each with the next command to type."""
    state = report.comparison
    if state is None:
        if report.has_tables:
            return ["tables of nftpolicy are loaded, but their policy is not known, so packets may be dropped: "
                    "'nftpolicy apply FILE' or 'nftpolicy release'"]  # fmt: skip
        return [
            "any program may use any uplink: 'nftpolicy apply FILE', or 'nftpolicy history' and 'nftpolicy rollback N'"
        ]
    lines = []
    if state.is_blocked:
        lines += [*(f"the uplinks are stopped: {reason}" for reason in state.block_reasons), WAY_OUT]
    elif not state.holds:
        packets = "frames of AF_PACKET sockets" if state.parts["guard"] else "packets"
        command = f"nftpolicy apply {_file_argument(report.file)}"
        lines.append(f"{packets} may leave by an uplink against the policy: '{command}' loads the guard")
    lines += [*state.notes, *report.warnings]
    if report.trial is not None and report.verdict == ON_TRIAL:
        lines.append("'nftpolicy confirm' keeps the policy, 'nftpolicy rollback' ends the trial now")
    if report.watch is not None and report.watch.failures and not state.is_blocked:
        lines.append(f"watch could not prove the state: {report.watch.failures[0]}; 'nftpolicy verify --live' has more")
    lines += [f"not in its uplink's table, so the guard drops packets that use it: {route}; 'nftpolicy watch' moves it"
              for route in state.misplaced_routes]  # fmt: skip
    lines += [*map(str, state.asked_addresses), *map(str, state.foreign_rules)]
    return [*lines, *report.resolver_leaks, *report.sysctl_files]


def _print_counters(state: Status) -> None:
    counters = [(name, family, counts) for (family, _, name), counts in state.counters.items() if counts.packets]
    if not counters:
        return
    table = make_table("counter", "layer", "packets", "bytes", right=("packets", "bytes"))
    for name, family, counts in sorted(counters, key=lambda row: (row[1], row[0])):
        table.add_row(name, LAYERS[family], str(counts.packets), str(counts.bytes))
    make_console().print(table)


def _print_sockets(state: Status) -> None:
    """Print the number of right sockets, and the wrong ones with the meanings of their verdicts."""
    if state.sockets is None:
        print_styled([(f"sockets: not known: {state.socket_error}", "")])
        return
    wrong = [each for each in state.sockets if each.is_wrong]
    if state.sockets:
        print_styled([(f"sockets: {len(state.sockets) - len(wrong)} right, {len(wrong)} not right", "")])
    if not wrong:
        return
    table = make_table("socket of", "program", "socket", "mark", "verdict")
    for each in wrong[:_MOST_SOCKETS]:
        mark = "" if each.socket.mark is None else f"{each.socket.mark:#x}"
        owner = each.owner or "no service"
        table.add_row(owner, each.process_label, str(each.socket), mark, styled(each.verdict, "red"))
    make_console().print(table)
    lines = [f"{and_more(len(wrong) - _MOST_SOCKETS)}: --json"] if len(wrong) > _MOST_SOCKETS else []
    meanings = dict.fromkeys((each.verdict, each.description) for each in wrong)
    print_styled(
        (line, "") for line in (*lines, *(f"{verdict}: {meaning}" for verdict, meaning in [*meanings][:_MOST_SOCKETS]))
    )


def readable_time(time: str) -> str:
    """Return a time of ISO 8601 in UTC for a person."""
    return f"{time.replace('T', ' ').rstrip('Z')} UTC"


def _file_argument(file: str) -> str:
    """Return the name of a policy's file as an argument of a shell; FILE if it was no file."""
    return quote(file) if file not in ("", "standard input") else "FILE"
