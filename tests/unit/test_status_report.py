"""Report of `status`: its verdict, its text and its JSON, from recorded facts."""

import json

import pytest
from attrs import evolve

from nftpolicy.cli import status as command
from nftpolicy.cli.render.status_text import print_report, running_line, uplink_lines, verdict_line, warning_lines
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.routing import IpRule
from nftpolicy.netstate.state import CounterValue
from nftpolicy.policy.load import load
from nftpolicy.runtime import status_report
from nftpolicy.runtime.apply.history_events import HistoryEvent
from nftpolicy.runtime.apply.pending_confirm import FAILED, WAITING, PendingConfirm, ProcessRef
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.apply.watch_record import WatchRecord
from nftpolicy.runtime.boot_state import BootState
from nftpolicy.runtime.foreign_rules import foreign_rules
from nftpolicy.runtime.status import Status
from nftpolicy.runtime.status_report import StatusReport, UplinkState, needs_default_route
from tests.unit.uplink_policy import TWO_DEVICES as TEXT

POLICY = load(TEXT)[0]
PARTS = dict.fromkeys(("guard", "link guard", "shadow guard", "ip rules", "routes", "sysctls"), True)
COUNTERS = {
    ("inet", "nftpolicy", "wan.dropped"): CounterValue(12, 720),
    ("inet", "nftpolicy", "wan.exempt.arp"): CounterValue(5, 200),
    ("inet", "nftpolicy", "wan.stray"): CounterValue(0, 0),
}
GOOD = StatusReport(
    Status(POLICY, PARTS, (), COUNTERS, sockets=()),
    "/etc/p.toml",
    "2026-01-02T12:00:00Z",
    uplinks={"wan": UplinkState()},
    has_tables=True,
)
WATCH = WatchRecord(7, "2026-01-02T12:00:01Z", "proved", (), "2026-01-02T12:00:02Z")
TRIAL = PendingConfirm("x", WAITING, 60, 1e12, "2026-01-02T13:00:00Z", None, ProcessRef(1, 1), ProcessRef(2, 2))
DOWN = {"wan": UplinkState(("eth0 is down", "wlan0 does not exist"))}


def report(parts=(), **changes):
    """Return the good report with parts that differ, and changes of the comparison and of the report."""
    own = {key: changes.pop(key) for key in [*changes] if hasattr(GOOD.comparison, key)}
    wrong = {**PARTS, **dict.fromkeys(parts, False)}
    return evolve(GOOD, comparison=evolve(GOOD.comparison, parts=wrong, **own), **changes)


STARVING = foreign_rules([IpRule(4, 100, table=9, protocol=0)], POLICY)
CASES = {
    "in force": (report(), "in force", "in force since 2026-01-02 12:00:00 UTC; dropped 12"),
    "proved": (report(watch=WATCH), "in force", "in force since 2026-01-02 12:00:00 UTC; leaks 0; dropped 12"),
    "cut off": (
        report(uplinks=DOWN),
        "in force",
        "in force since 2026-01-02 12:00:00 UTC, but nothing can leave by uplink wan; dropped 12",
    ),
    "on trial": (
        report(trial=TRIAL),
        "on trial",
        "on trial until 2026-01-02 13:00:00 UTC, then back to no policy (a release, which opens the uplinks); dropped 12",
    ),
    "rollback failed": (
        report(trial=evolve(TRIAL, state=FAILED)),
        "in force",
        "in force since 2026-01-02 12:00:00 UTC; dropped 12",
    ),
    "watch stands still": (
        report(["shadow guard"], watch=WATCH),
        "held",
        "held by the guard, but shadow guard differs; dropped 12",
    ),
    "routes": (report(["routes"]), "held", "held by the guard, but routes differ; dropped 12"),
    "starved": (
        report(foreign_rules=STARVING),
        "held",
        "held by the guard, but the services are starved by foreign ip rules; dropped 12",
    ),
    "blocked": (
        report(is_blocked=True, watch=WATCH),
        "blocked",
        "BLOCKED since 2026-01-02 12:00:00 UTC: the uplinks are stopped; dropped 12",
    ),
    "link guard": (report(["link guard"]), "not in force", "NOT in force: link guard differs; dropped 12"),
    "flushed": (
        report(["guard", "link guard"], has_tables=False),
        "not in force",
        "NOT in force: the guard is missing; dropped 12",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_first_line_is_the_verdict(name):
    found, verdict, line = CASES[name]
    assert (found.verdict, verdict_line(found)) == (verdict, f"p: {line}")
    assert found.is_in_force == (verdict in ("in force", "on trial"))
    assert found.as_json()["verdict"] in status_report.VERDICTS


def test_policy_that_is_not_applied_is_not_in_force():
    none = StatusReport(None)
    assert (verdict_line(none), none.is_in_force) == ("nftpolicy: not in force: no policy is applied here", False)
    event = HistoryEvent("2026-01-02T12:00:00Z", "released", "p", "release", "lisa", 1)
    released = "p: not in force: released 2026-01-02 12:00:00 UTC by lisa (release)"
    assert verdict_line(evolve(none, release=event)) == released
    assert "'nftpolicy release'" in warning_lines(evolve(none, has_tables=True))[0]
    assert set(none.as_json()) == set(GOOD.as_json())


def test_second_line_names_daemons():
    assert running_line(GOOD) == "watch does not run; at boot: nothing"
    record = evolve(WATCH, repairs=2, last_repair={"time": "2026-01-02T12:00:03Z", "what": [], "by": "nft"})
    found = report(
        watch=record,
        uplinks={"wan": UplinkState(resolver_runs=False)},
        boot=BootState(("nftpolicy-guard.service", "nftpolicy.service")),
    )
    assert running_line(found) == (
        "watch runs (process 7, proved since 2026-01-02 12:00:02 UTC, 2 repairs, the last one 2026-01-02 12:00:03 UTC "
        "after nft); resolver wan does not run; at boot: nftpolicy-guard, nftpolicy"
    )


def test_unusable_uplink_is_named_with_the_next_command():
    text = "eth0 is down; wlan0 does not exist: 'nftpolicy wait --uplink wan' waits for it"
    assert uplink_lines(report(uplinks=DOWN), POLICY) == [f"uplink wan (eth0, wlan0): {text}"]
    assert report(uplinks=DOWN).as_json()["uplinks"]["wan"]["usable"] is False


def test_each_warning_has_a_next_command():
    record = evolve(WATCH, verdict="unknown", failures=("P1 wan unknown",))
    found = report(["guard"], watch=record, misplaced_routes=("default dev eth0",), file="/etc/my p.toml")
    lines = warning_lines(found)
    assert len(lines) == 3
    assert "'nftpolicy apply '/etc/my p.toml''" in lines[0]
    assert all("'nftpolicy " in line for line in lines)
    assert warning_lines(report(["link guard"]))[0].startswith("frames of AF_PACKET sockets may leave by an uplink ")
    (confirm,) = warning_lines(report(trial=TRIAL))
    assert "'nftpolicy confirm'" in confirm
    reasons = warning_lines(report(is_blocked=True, block_reasons=("P1 wan refuted",)))
    assert reasons[0] == "the uplinks are stopped: P1 wan refuted"
    assert "'nftpolicy release'" in reasons[1]
    assert warning_lines(GOOD) == []


def test_text_leaves_out_zeros(capsys):
    print_report(GOOD)
    said = capsys.readouterr().out
    assert "wan.dropped" in said
    assert "wan.stray" not in said and "sockets" not in said and "differ" not in said
    print_report(report(["routes"], differences=tuple(map(str, range(30)))))
    assert "and 20 more: nftpolicy apply --dry-run" in capsys.readouterr().out


KEYS = [
    "version", "policy", "file", "verdict", "in_force", "since", "trial", "released", "leaks", "dropped", "watch", "boot",
    "blocked", "block_reasons", "parts", "differences", "notes", "strays", "asked_addresses", "foreign_rules", "uplinks",
    "services", "counters", "sockets", "socket_error", "resolver_leaks", "sysctl_files", "warnings",
]  # fmt: skip


def test_json_keys_of_version_1_are_fixed():
    found = json.loads(json.dumps(report(watch=WATCH, trial=TRIAL).as_json()))
    assert (list(found), found["version"]) == (KEYS, 1), "a key that is gone or has another meaning needs a new version"
    assert list(found["uplinks"]["wan"]) == ["devices", "mark", "table", "usable", "problems", "resolver_runs"]
    assert list(found["watch"]) == [
        "pid", "started", "verdict", "failures", "proved", "repairs", "last_repair", "last_socket", "policy",
    ]  # fmt: skip
    assert list(found["trial"]) == ["state", "until", "remaining", "back", "pid", "reason"]
    assert (found["leaks"], found["dropped"]) == (0, 12)


@pytest.mark.parametrize(
    ("users", "needed"),
    [
        (b"[service.vpn]\nuplink = 'wan'\ngroup = 800\n", True),
        (b"[service.log]\nuplink = 'wan'\ngroup = 800\nto = ['192.0.2.7']\n", False),
        (b"[forward.guests]\nuplink = 'wan'\nfrom = ['lan']\n", True),
    ],
)
def test_uplink_needs_a_default_route_for_any_address(users, needed):
    assert needs_default_route(load(TEXT[: TEXT.index(b"[service")] + users)[0], "wan") is needed


def test_report_reads_state_directory_and_history(tmp_path, monkeypatch):
    monkeypatch.setenv("NFTPOLICY_LIB", str(tmp_path / "lib"))
    state_dir = StateDir(tmp_path / "state")
    monkeypatch.setattr(status_report, "read_uplinks", lambda *_: {})
    assert status_report.read_report(FakeKernel(), None, state_dir).verdict == "not in force"
    state_dir.create()
    state_dir.save_policy("/etc/p.toml", TEXT)
    found = status_report.read_report(FakeKernel(), load(TEXT, "/etc/p.toml"), state_dir)
    assert (found.verdict, found.has_tables, found.since[:2]) == ("not in force", False, "20")
    state_dir.save_policy("/etc/other.toml", b"")
    found = status_report.read_report(FakeKernel(), load(TEXT, "/etc/p.toml"), state_dir)
    assert (found.since, "another policy was applied last (/etc/other.toml)" in found.warnings[0]) == ("", True)


def test_watch_prints_a_block_for_each_change(monkeypatch, capsys):
    reports = iter([GOOD, report(trial=None), report(["routes"])])
    monkeypatch.setattr(command, "_wait", lambda _: None)

    def read():
        found = next(reports, None)
        if found is None:
            raise KeyboardInterrupt
        return found

    command._print_changes(read, False, 2)
    said = capsys.readouterr().out
    assert [line[:16] for line in said.splitlines() if line.startswith("p: ")] == [
        "p: in force sinc",
        "p: held by the g",
    ]
    assert "\x1b" not in said
    reports = iter([GOOD, GOOD])
    command._print_changes(read, True, 2)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["verdict"] == "in force"
