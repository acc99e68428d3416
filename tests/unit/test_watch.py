"""Decisions of `watch`, on the kernel in memory and on netlink messages."""

import operator
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler import object_names
from nftpolicy.compiler.block import block_tables
from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.compiler.shadow_guard import shadow_guard_tables
from nftpolicy.kernel.errors import RulesetChanging, StepRefused
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.kernel.netlink.monitor import ChangeSet, Origin
from nftpolicy.kernel.sd_notify import ServiceManager
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.operations import IpRuleChange, NftTransaction, RouteChange, Step, SysctlChange
from nftpolicy.netstate.routing import IpRule
from nftpolicy.netstate.state import CounterValue, NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove_guard
from nftpolicy.proof.verdict import PROVED, REFUTED
from nftpolicy.runtime.apply.executor import apply_change, plan_change
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.apply.transaction import PolicyApplier
from nftpolicy.runtime.rate_limiter import RateLimiter
from nftpolicy.runtime.status import Status, read_status
from nftpolicy.runtime.watch import check_runner, full_check
from nftpolicy.runtime.watch import repair_plan as watching
from nftpolicy.runtime.watch.environment import Environment
from nftpolicy.runtime.watch.event_poll import EventPoll
from nftpolicy.runtime.watch.log_limiter import LogLimiter
from nftpolicy.runtime.watch.loop import Watch
from nftpolicy.runtime.watch.repair_plan import ConflictDetector, DesiredState, Exposure
from nftpolicy.runtime.watch.worker import WorkerProcess
from tests.lab.limits import limit

RULESETS = sorted((Path(__file__).parents[2] / "rulesets").glob("*.toml"))
TOML = b"""
name   = "small"
inside = ["bat0"]
[uplink.wan]
devices = ["br-wan"]
mark    = "0x1/0x1"
table   = 1
exempt  = ["arp"]
answer  = ["ssh"]
[service.vpn]
uplink = "wan"
group  = 800
"""
POLICY = load(TOML)[0]
STATE = compile_policy(POLICY)
REPAIRER = DesiredState(STATE)


# What lies ready


def test_foreign_changes_repair_nothing() -> None:
    assert not REPAIRER.repair_for(
        ChangeSet(foreign_changes=3, foreign_rules_changed=True, links=True, addresses=True), {}
    )


def test_deleted_table_is_restored_alone() -> None:
    repair = REPAIRER.repair_for(ChangeSet(deleted_families={"inet", "ip"}), {})
    assert repair.nft_text.startswith("table inet nftpolicy\ndelete table inet nftpolicy\n")
    assert nft_text.table_text(STATE.tables[0]) in repair.nft_text
    assert "netdev" not in repair.nft_text
    assert repair.repaired_objects == ("table:inet",)


def test_changed_chain_is_restored_alone() -> None:
    repair = REPAIRER.repair_for(ChangeSet(changed_chains={("inet", "guard"), ("inet", "somebody's")}), {})
    lines = repair.nft_text.splitlines()
    assert lines[0].startswith("add chain inet nftpolicy guard { type filter hook postrouting")
    assert lines[0].endswith("policy drop; }")
    assert lines[1] == "flush chain inet nftpolicy guard"
    assert len(lines) == 2 + len(next(one for one in STATE.tables[0].chains if one.name == "guard").rules)
    assert repair.repaired_objects == ("chain:guard",)


def test_changed_chain_of_deleted_table_comes_with_the_table() -> None:
    assert REPAIRER.repair_for(
        ChangeSet(deleted_families={"inet"}, changed_chains={("inet", "guard")}), {}
    ).repaired_objects == ("table:inet",)


def test_only_own_rules_routes_and_sysctls_are_restored() -> None:
    ours, others = STATE.rules[0], IpRule(4, 77, table=9, protocol=78)
    changes = ChangeSet(deleted_rules=[ours, others], deleted_routes=[STATE.routes[0]])
    path = STATE.sysctls[0].path
    repair = REPAIRER.repair_for(changes, {path: "7", "net/ipv4/tcp_syncookies": "0"})
    assert repair.changes == (
        SysctlChange("7", STATE.sysctls[0]),
        RouteChange("add", STATE.routes[0]),
        IpRuleChange("add", ours),
    )
    assert repair.repaired_objects == (f"sysctl:{path}", "routes:1", "rules:1")


# The wait


class PipeEvents:
    """Two pipes: one for damage, one for news."""

    def __init__(self) -> None:
        (self.damage, self.damage_writer), (self.news_descriptor, self.news_writer) = os.pipe(), os.pipe()
        self.descriptors = (self.damage, self.news_descriptor)
        self.guard_descriptor = self.damage


def test_news_wake_the_loop_seldom() -> None:
    events, clock = PipeEvents(), [100.0]
    poll = EventPoll(events, lambda: clock[0])  # type: ignore[arg-type]
    poll.register_events()
    os.write(events.news_writer, b"x")
    assert poll.wait(clock[0]) == [events.news_descriptor]
    poll.mute_news()
    assert poll.due() == pytest.approx(100.05)
    assert poll.wait(clock[0]) == []
    assert not poll.is_guard_changed()
    os.write(events.damage_writer, b"x")
    assert poll.is_guard_changed()
    assert poll.wait(clock[0]) == [events.damage]
    clock[0] = 101.0
    assert set(poll.wait(clock[0])) == {events.damage, events.news_descriptor}
    assert poll.due() is None
    poll.close()


def test_event_before_the_wait_has_no_time() -> None:
    events = PipeEvents()
    poll = EventPoll(events, time.monotonic)  # type: ignore[arg-type]
    poll.register_events()
    begin = time.monotonic()
    poll.wait(begin + 0.05)
    assert poll.event_time is not None
    assert begin <= poll.event_time <= time.monotonic()
    os.write(events.damage_writer, b"x")
    poll.wait(None)
    assert poll.event_time is None
    poll.close()


# The log


def test_log_limiter_counts_omitted_lines() -> None:
    clock, lines = [0.0], []
    log = LogLimiter(lambda event, fields: lines.append((event, fields)), lambda: clock[0])
    for _ in range(10_000):
        log.write("failed", {"what": "x"})
    log.write("start", {})
    assert len(lines) == 51
    clock[0] = 1
    log.write("failed", {"what": "x"})
    assert lines[-1] == ("failed", {"what": "x", "left_out": 9_950})


# The rate limiter, and conflicts


def test_rate_limiter_waits_in_proportion_to_the_cost() -> None:
    limiter = RateLimiter(pause=0.2, cost_factor=4)
    assert limiter.due() is None
    limiter.request()
    assert limiter.due() == 0
    limiter.begin()
    assert limiter.due() is None
    for _ in range(1000):
        limiter.request()
    limiter.end(10, 0.01)
    assert limiter.due() == pytest.approx(10.2)
    limiter.begin()
    limiter.request()
    limiter.end(20, 1)
    assert limiter.due() == pytest.approx(24)


def test_rate_limiter_with_period_runs_without_request() -> None:
    limiter = RateLimiter(pause=0.1, period=5)
    assert limiter.due() == 0
    assert limiter.begin_if_due(100)
    assert limiter.due() == 105
    assert not limiter.begin_if_due(104)
    limiter.request()
    assert limiter.due() == pytest.approx(100.1)
    assert not limiter.begin_if_due(100.05)
    assert limiter.begin_if_due(101)
    assert limiter.due() == 106


def test_conflict_detector_reports_frequent_repairs_seldom() -> None:
    fights = ConflictDetector(max_repairs=5, within=3, report_interval=5)
    assert [fights.count_repair(at) for at in (0, 0.1, 0.2, 0.3, 0.4)] == [True] * 5
    assert fights.take_pending_count(0.4) == 0
    assert fights.count_repair(0.5) is False
    assert fights.take_pending_count(0.5) == 1
    for at in range(1000):
        assert fights.count_repair(0.6 + at / 1000) is False
    assert fights.take_pending_count(1.7) == 0
    assert fights.due() == 5.5
    assert fights.take_pending_count(5.5) == 1000
    assert fights.due() is None
    assert len(fights._times) <= 6
    assert fights.count_repair(20) is True


# Lines


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a\nevent=b", '"a\\u000aevent=b"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        (["a", "b"], "a,b"),
        (["a b", "c"], '"a b; c"'),
        (3, "3"),
    ],
)
def test_log_value_is_quoted(value: object, shown: str) -> None:
    assert watching.format_log_line({"key": value}) == f"key={shown}"


def test_exposure_log_has_only_known_fields() -> None:
    assert Exposure(0.00123, passed_packets=4).log_fields() == {"ms": 1.2, "passed": 4}
    assert Exposure(1, stopped_packets=2).log_fields() == {"ms": 1000.0, "stopped": 2}
    counters = {"wan.dropped": 1, "unnamed-device": 2, "wan.exempt.arp": 4, "wan.answer.ssh": 8}
    values = {("inet", "nftpolicy", name): CounterValue(packets, 0) for name, packets in counters.items()}
    assert watching.sum_drop_counters(values) == 3


@pytest.mark.parametrize(
    ("verdict", "also_unknown", "blocks"),
    [
        ("proved", True, False),
        ("refuted", False, True),
        ("unknown", False, False),
        ("unknown", True, True),
        ("", True, False),
    ],
)
def test_requires_block_depends_on_the_verdict(verdict: str, also_unknown: bool, blocks: bool) -> None:
    assert watching.requires_block(verdict, also_unknown) is blocks


# The block


@pytest.mark.parametrize("file", RULESETS, ids=lambda file: file.stem)
def test_block_alone_is_proved(file: Path) -> None:
    policy = load(file.read_bytes(), str(file), lambda kind, item: load_account(item))[0]
    proof = prove_guard(NetState(block_tables([policy])), build_spec(policy))
    assert [one for one in proof.findings if one.deciding and one.verdict != "proved"] == []


def load_account(item: object):  # type: ignore[no-untyped-def]
    from nftpolicy.policy.objects import Account

    return Account(str(item), item if isinstance(item, int) else 4242)


def test_block_without_its_drop_is_refuted() -> None:
    """Show that the test above can fail."""
    ip, link = block_tables([POLICY])
    opened = tuple(
        evolve(one, rules=tuple(rule for rule in one.rules if "stopped" not in str(rule)))
        if one.name == "block"
        else one
        for one in ip.chains
    )
    opened = tuple(evolve(one, hook=evolve(one.hook, policy="accept")) if one.hook else one for one in opened)
    assert prove_guard(NetState((evolve(ip, chains=opened), link)), build_spec(POLICY)).verdict == "refuted"


def test_block_of_two_policies_stops_devices_of_both() -> None:
    other = evolve(POLICY, inside=("br-wan",), uplink={"wan": evolve(POLICY.uplink["wan"], devices=("bat0",))})
    tables = block_tables([POLICY, other], HostFacts({"br-wan": ("port",)}))
    chains = {one.name: one for one in tables[0].chains}
    base = [nft_text.rule_text(rule) for rule in chains["block"].rules]
    stops = [base.index(f'meta oifname "{device}" counter name "stopped" drop') for device in ("br-wan", "bat0")]
    assert max(stops) < min(base.index(f'meta oifname "{device}" accept') for device in ("br-wan", "bat0"))
    assert {"wan.passes", "wan.1.passes"} <= chains.keys()
    assert {one.name for one in tables[1].chains} >= {"device-br-wan", "device-bat0", "device-port"}


def test_block_without_egress_hook_has_only_the_ip_layer() -> None:
    assert [one.family for one in block_tables([POLICY], HostFacts(has_egress_hook=False))] == ["inet"]
    tables = block_tables([POLICY], HostFacts(unhookable_devices=frozenset({"br-wan"})))
    assert [one.name for one in tables[1].chains if one.hook] == []
    assert tables[1].chains[0].name == "wan.passes"


# The second guard


@pytest.mark.parametrize("file", RULESETS, ids=lambda file: file.stem)
def test_shadow_guard_alone_is_proved(file: Path) -> None:
    policy = load(file.read_bytes(), str(file), lambda kind, item: load_account(item))[0]
    copy = shadow_guard_tables(compile_policy(policy))
    assert prove_guard(NetState(copy), build_spec(policy)).verdict == "proved"
    assert {table.name for table in copy} == {object_names.SHADOW_TABLE}
    assert all(chain.hook is None or chain.hook.policy == "drop" for table in copy for chain in table.chains)


def test_shadow_guard_sets_no_mark_and_redirects_nothing() -> None:
    """Show that both guards together act as the first guard alone."""
    told = "".join(nft_text.table_text(table) for table in shadow_guard_tables(STATE))
    assert "mark set" not in told
    assert "redirect" not in told
    assert "mark set" in nft_text.table_text(STATE.tables[0])


# The service manager


def test_service_manager_is_notified(tmp_path: Path) -> None:
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(place)
        manager = ServiceManager({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
        manager.notify(READY=1, STATUS="two\nlines")
        assert heard.recv(100) == b"READY=1\nSTATUS=two lines"
        assert manager.watchdog_due() == 1.5  # no ping yet
    manager.notify(WATCHDOG=1)  # nobody listens any more


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}])
def test_service_manager_without_socket_sends_nothing(environment: dict[str, str]) -> None:
    manager = ServiceManager(environment)
    assert manager.watchdog_due() is None
    manager.notify(READY=1)


# The child


def test_worker_result_comes_by_its_descriptor() -> None:
    worker = WorkerProcess(lambda: {"long": "x" * 300_000})
    while not worker.is_finished():
        select.select([worker.descriptor], [], [], 5)
    assert len(worker.result()["long"]) == 300_000


def test_failed_or_cancelled_worker_leaves_no_process() -> None:
    worker = WorkerProcess(lambda: 1 / 0)
    while not worker.is_finished():
        select.select([worker.descriptor], [], [], 5)
    with pytest.raises(ValueError, match="ZeroDivisionError: division by zero"):
        worker.result()
    hanging = WorkerProcess(lambda: select.select([], [], [], 60))
    assert not hanging.is_finished()
    hanging.cancel()
    for each in (worker, hanging):
        with pytest.raises(ChildProcessError):
            os.waitpid(each._child._pid, os.WNOHANG)


# The whole of it, on the kernel in memory


class FakeListener:
    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel, self.next, self.paths = kernel, ChangeSet(), ()
        self.descriptors: tuple[int, ...] = ()
        self.news_descriptor = -1

    def read(self) -> ChangeSet:
        changes, self.next = self.next, ChangeSet()
        return changes

    def watch_sysctls(self, paths) -> None:  # type: ignore[no-untyped-def]
        self.paths = tuple(paths)

    def watch_directory(self, directory: Path) -> None:
        assert directory.is_dir()

    def sysctl_values(self) -> dict[str, str]:
        return {path: self.kernel.sysctls[path] for path in self.paths}

    def ignore_ports(self, ports) -> None:  # type: ignore[no-untyped-def]
        pass


class WatchRun:
    """Watch with everything in memory. `pass_time` lets it do what is due."""

    def __init__(self, folder: Path, block_unknown: bool = False, owns: bool = False) -> None:
        self.kernel = FakeKernel(NetState(sysctls=STATE.sysctls))
        self.memory = StateDir(folder)
        self.memory.directory.mkdir()
        self.ears, self.clock = FakeListener(self.kernel), 100.0
        self.said: list[tuple[str, dict[str, object]]] = []
        self.owned: list[str] = []
        changer = PolicyApplier(self.kernel, self.memory, lambda one: load(one[1], one[0])[0])
        world = Environment(
            changer,
            lambda: self.kernel,
            self.ears,
            self.load,
            lambda event, facts: self.said.append((event, facts)),
            lambda devices: 0,
            service_manager=ServiceManager({}),
            now=lambda: self.clock,
            block_unknown=block_unknown,
            supports_owner_flag=owns,
        )
        self.watch = Watch(world)

    def load(self, told: str, check: bool) -> str | None:
        """Understands the few shapes of text that the watch loads."""
        if "flags owner" in told:
            assert not check
            self.owned.append(told)
        elif not check:
            for wanted in (*STATE.tables, *block_tables([POLICY])):
                if watching.replace_table_text(wanted) in told:
                    self.kernel.tables[wanted.key] = wanted
                elif f"delete table {wanted.family} {wanted.name}\n" in told:
                    del self.kernel.tables[wanted.key]
        return None

    def apply(self, toml: bytes = TOML, name: str = "small.toml") -> None:
        policy = load(toml)[0]
        apply_change(self.kernel, plan_change(self.kernel, policy, self.memory), self.memory)
        self.memory.save_policy(name, toml)

    def hear(self, **changes) -> None:  # type: ignore[no-untyped-def]
        self.ears.next = ChangeSet(**changes)
        self.watch.process()

    def pass_time(self, seconds: float = 1) -> None:
        for _ in range(20):
            self.clock += seconds / 20
            self.watch.process()
            if worker := self.watch._checks.worker:
                select.select([worker.descriptor], [], [], limit(60))
                self.watch.process()

    def events(self) -> list[str]:
        events = [event for event, _ in self.said]
        self.said.clear()
        return events

    @property
    def right(self) -> bool:
        return not plan_change(self.kernel, POLICY, self.memory).plan.steps


@pytest.fixture
def watch_run(tmp_path: Path) -> Iterator[WatchRun]:
    made = WatchRun(tmp_path / "memory")
    yield made
    if made.watch._checks.worker:
        made.watch._checks.worker.cancel()


@pytest.fixture
def enforcing(watch_run: WatchRun) -> WatchRun:
    watch_run.apply()
    watch_run.watch.start()
    watch_run.pass_time()
    assert watch_run.events() == ["enforcing", "proof"]
    return watch_run


def test_watch_without_policy_waits_for_one(watch_run: WatchRun) -> None:
    watch_run.watch.start()
    assert watch_run.events() == ["waiting"]
    watch_run.apply()
    watch_run.hear(files=True)
    watch_run.pass_time()
    assert watch_run.events() == ["enforcing", "proof"]


def test_saved_policy_is_restored_at_the_start(watch_run: WatchRun) -> None:
    watch_run.memory.save_policy("small.toml", TOML)
    watch_run.watch.start()
    assert watch_run.right
    assert watch_run.events() == ["enforcing", "restored"]


def test_deleted_table_is_restored_in_the_same_turn(enforcing: WatchRun) -> None:
    del enforcing.kernel.tables["inet", "nftpolicy"]
    enforcing.hear(ours_changed=True, deleted_families={"inet"}, origin=Origin("nft", 7))
    assert enforcing.right
    event, facts = enforcing.said[0]
    assert (event, facts["by"], facts["pid"], facts["what"], facts["passed"]) == (
        "restored",
        "nft",
        7,
        ["table:inet"],
        0,
    )


def test_change_without_details_is_found_by_full_check(enforcing: WatchRun) -> None:
    table = enforcing.kernel.tables["inet", "nftpolicy"]
    enforcing.kernel.tables["inet", "nftpolicy"] = evolve(table, sets=(evolve(table.sets[0], elements=frozenset()),))
    enforcing.hear(ours_changed=True, origin=Origin("nft", 7))
    enforcing.pass_time()
    assert enforcing.right
    assert enforcing.said[0][1]["by"] == "nft"


def test_lost_notifications_cause_a_full_check(enforcing: WatchRun) -> None:
    enforcing.kernel.rules.clear()
    enforcing.hear(overflowed=True)
    enforcing.pass_time()
    assert enforcing.right
    assert enforcing.events()[:2] == ["notifications-lost", "restored"]


def test_changed_sysctl_is_found_by_full_check(enforcing: WatchRun) -> None:
    path = STATE.sysctls[0].path
    enforcing.kernel.sysctls[path] = "9"
    enforcing.pass_time(2)
    assert not enforcing.right
    enforcing.pass_time(5)
    assert enforcing.right


def test_release_gets_the_earlier_value_of_a_new_device(enforcing: WatchRun) -> None:
    path = STATE.sysctls[0].path
    (enforcing.memory.directory / "sysctls.json").unlink(missing_ok=True)  # `apply` did not know the device
    enforcing.kernel.sysctls[path] = "9"
    enforcing.pass_time(10)
    assert enforcing.right
    assert enforcing.memory.saved_sysctls()[path] == "9"


def test_watch_waits_for_the_lock_of_another_process(enforcing: WatchRun) -> None:
    with enforcing.memory.lock():
        enforcing.kernel.tables.clear()
        enforcing.hear(ours_changed=True, deleted_families={"inet", "netdev"})
        enforcing.pass_time()
        assert enforcing.kernel.tables == {}
    enforcing.pass_time()
    assert enforcing.right


def test_guard_is_repaired_while_reconciling_fails(enforcing: WatchRun) -> None:
    """As it does while another program changes the ruleset faster than it can be read."""

    def fail(*_: object) -> None:
        raise RulesetChanging("too fast")

    read_own, enforcing.kernel.read_own = enforcing.kernel.read_own, fail  # type: ignore[method-assign]
    enforcing.hear(files=True)
    enforcing.pass_time(2)
    del enforcing.kernel.tables["inet", "nftpolicy"]
    enforcing.hear(ours_changed=True, deleted_families={"inet"})
    assert ("inet", "nftpolicy") in enforcing.kernel.tables
    enforcing.kernel.read_own = read_own  # type: ignore[method-assign]


def test_refused_link_guard_leaves_the_ip_guard_and_a_block(enforcing: WatchRun) -> None:
    refuse_netdev(enforcing)
    enforcing.kernel.tables.clear()
    enforcing.hear(files=True)
    enforcing.pass_time(2)
    assert set(enforcing.kernel.tables) == {("inet", object_names.TABLE), ("inet", object_names.BLOCK_TABLE)}
    assert "failed" in enforcing.events()


def refuse_netdev(watch_run: WatchRun) -> None:
    """Let the kernel refuse each transaction about a table of family netdev."""
    load_text, apply_step = watch_run.load, watch_run.kernel.apply_step

    def load(text: str, check: bool) -> str | None:
        return "No such device" if "table netdev" in text and not check else load_text(text, check)

    def apply(step: Step) -> None:
        if isinstance(step, NftTransaction) and any(one.family == "netdev" for one in step.operations):
            raise StepRefused(step, "No such device")
        apply_step(step)

    watch_run.kernel.apply_step = apply  # type: ignore[method-assign]
    watch_run.watch._tables._environment = evolve(watch_run.watch.environment, load_nft=load)


def test_check_from_before_a_repair_does_not_reconcile(enforcing: WatchRun) -> None:
    """Reconciling takes longer than a repair, and would delay the next one."""
    reconciled: list[int] = []
    enforcing.watch._reconcile = lambda: reconciled.append(1)  # type: ignore[method-assign]

    def repair_during_a_check() -> None:
        del enforcing.kernel.tables["inet", "nftpolicy"]
        enforcing.watch._checks.request_comparison()
        enforcing.clock += 1
        enforcing.watch.process()
        worker = enforcing.watch._checks.worker
        assert worker is not None
        enforcing.hear(ours_changed=True, deleted_families={"inet"})
        while enforcing.watch._checks.worker is worker:
            select.select([worker.descriptor], [], [], limit(60))
            enforcing.watch.process()

    repair_during_a_check()
    assert reconciled == []
    for _ in range(6):
        repair_during_a_check()
    assert reconciled, "but a conflict does not keep all results away"


def test_failed_check_is_repeated_without_reconciling(enforcing: WatchRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RulesetChanging("too fast")

    monkeypatch.setattr(check_runner, "run_full_check", fail)
    enforcing.hear(foreign_changes=1)
    enforcing.pass_time(3)
    assert enforcing.watch._reconcile_at is None
    assert enforcing.events() == ["failed"], "said once in a while"
    monkeypatch.undo()
    enforcing.watch._proof.state = None
    enforcing.watch._proof._logged = None
    enforcing.pass_time(5)
    assert "proof" in enforcing.events()


@pytest.mark.parametrize("method", ["read_all", "read_own"])
def test_full_check_waits_while_rules_are_loaded(
    enforcing: WatchRun, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    read, left = getattr(enforcing.kernel, method), [3]

    def read_when_settled(*words: object) -> object:
        left[0] -= 1
        if left[0] >= 0:
            raise RulesetChanging("too fast")
        return read(*words)

    monkeypatch.setattr(full_check, "_READ_PAUSE", 0)
    monkeypatch.setattr(enforcing.kernel, method, read_when_settled)
    result = full_check.run_full_check(
        enforcing.kernel, enforcing.watch.policy, enforcing.watch.environment.applier, proves=True, known_hash=None
    )
    assert (result["verdict"], left[0] < 0) == ("proved", True)


def test_newly_applied_policy_is_enforced(enforcing: WatchRun) -> None:
    other = TOML.replace(b"800", b"801").replace(b"small", b"other")
    with enforcing.memory.lock():
        enforcing.apply(other, "other.toml")
    enforcing.hear(ours_changed=True, files=True, changed_chains={("inet", "wan.mark-owner")})
    enforcing.pass_time()
    assert enforcing.events()[:1] == ["enforcing"]
    assert enforcing.watch.policy == load(other)[0]
    assert not plan_change(enforcing.kernel, load(other)[0], enforcing.memory).plan.steps


@pytest.mark.parametrize("ends", ["before the adoption", "after the adoption"])
def test_check_of_the_earlier_policy_blocks_nothing(
    enforcing: WatchRun, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """A check that began before another policy was applied refutes: it compared the one with the rules of the other."""
    read_end, write_end = os.pipe()
    refuted = {"state": 1, "verdict": REFUTED, "failures": ["P1"], "leak_verdict": REFUTED, "leaks": ["P1"]}

    def check(*_: object) -> dict[str, object]:
        os.read(read_end, 1)
        return {"differs": False, "unwritable_ports": [], **refuted}

    monkeypatch.setattr(check_runner, "run_full_check", check)
    enforcing.hear(foreign_changes=1)
    enforcing.clock += 5
    enforcing.watch.process()
    worker = enforcing.watch._checks.worker
    assert worker is not None
    monkeypatch.undo()
    with enforcing.memory.lock():
        enforcing.apply(TOML.replace(b"800", b"801").replace(b"small", b"other"), "other.toml")
    if ends == "before the adoption":
        os.write(write_end, b"1")
        select.select([worker.descriptor], [], [], limit(60))
    enforcing.hear(ours_changed=True, files=True)
    os.write(write_end, b"1")
    enforcing.pass_time(3)
    os.close(read_end), os.close(write_end)
    assert enforcing.events() == ["enforcing", "proof"]
    assert enforcing.watch.verdict == PROVED
    assert ("inet", object_names.BLOCK_TABLE) not in enforcing.kernel.tables


def test_release_removes_the_block(enforcing: WatchRun) -> None:
    enforcing.watch._block()
    assert ("inet", object_names.BLOCK_TABLE) in enforcing.kernel.tables
    for table in STATE.tables:
        del enforcing.kernel.tables[table.key]
    enforcing.kernel.rules.clear(), enforcing.kernel.routes.clear()
    enforcing.memory.clear()
    enforcing.hear(ours_changed=True, files=True, deleted_families={"inet", "netdev"})
    enforcing.pass_time()
    assert enforcing.kernel.tables == {}
    assert enforcing.events() == ["blocked", "unblocked", "released"]
    assert enforcing.watch.desired is None


def test_lost_state_directory_is_restored_while_guard_exists(enforcing: WatchRun) -> None:
    enforcing.memory.clear()
    enforcing.hear(files=True)
    enforcing.pass_time()
    assert enforcing.memory.policy() == ("small.toml", TOML)
    assert enforcing.right
    assert enforcing.events()[:1] == ["policy-restored"]


def test_unreadable_policy_is_reported_and_not_enforced(enforcing: WatchRun) -> None:
    enforcing.memory.save_policy("broken.toml", b"name = ")
    enforcing.hear(files=True)
    assert enforcing.events() == ["failed"]
    enforcing.kernel.tables.clear()
    enforcing.hear(ours_changed=True, deleted_families={"inet"})
    enforcing.pass_time()
    assert enforcing.kernel.tables == {}


def foreign_marking_state() -> NetState:
    """Return foreign tables that set the mark on every packet."""
    from nftpolicy.netstate.nft import Chain, Hook, Mangle, Meta, Rule, Table

    rules = (Rule((Mangle(Meta("mark"), 1),)),)
    hook = Hook("route", "output", 20, "accept")
    frames = Chain("frames", rules, Hook("filter", "egress", 0, "accept", "br-wan"))
    return NetState((Table("inet", "evil", (Chain("out", rules, hook),)), Table("netdev", "evil", (frames,))))


def test_foreign_ip_rule_does_not_block(enforcing: WatchRun) -> None:
    """Keep the uplinks open: the guard holds what another program's ip rule leads elsewhere."""
    enforcing.kernel.rules += [IpRule(family, 100, table=100, mark=1, mask=1, protocol=4) for family in (4, 6)]
    enforcing.hear(foreign_rules_changed=True)
    enforcing.pass_time()
    assert (enforcing.events(), enforcing.watch.verdict) == (["foreign-rule"], "proved")
    assert not any(name == object_names.BLOCK_TABLE for _, name in enforcing.kernel.tables)


def test_flood_of_routes_makes_the_verdict_unknown(enforcing: WatchRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_check, "MAX_ROUTES", 0)
    for _ in range(3):
        enforcing.hear(foreign_changes=1)
        enforcing.pass_time(3)
    assert (enforcing.events(), enforcing.watch.verdict) == (["proof"], "unknown")
    monkeypatch.undo()
    enforcing.hear(foreign_changes=1)
    enforcing.pass_time(3)
    assert enforcing.watch.verdict == "proved"


def test_exposure_counts_from_the_last_whole_guard(enforcing: WatchRun) -> None:
    """A part that takes 10 seconds is between the kernel's event and the read of its message."""
    sent = [100]
    enforcing.watch._repairs._environment = evolve(enforcing.watch.environment, tx_packets=lambda _: sent[0])
    enforcing.watch.process()

    def take_long(_: object) -> None:
        enforcing.clock += 10
        sent[0] += 7

    enforcing.watch._keeper.process = take_long  # type: ignore[method-assign]
    enforcing.watch.process()
    enforcing.watch._keeper.process = lambda _: None  # type: ignore[method-assign]
    del enforcing.kernel.tables["inet", "nftpolicy"]
    enforcing.hear(ours_changed=True, deleted_families={"inet"})
    fields = next(fields for event, fields in enforcing.said if event == "restored")
    assert (fields["ms"], fields["passed"]) == (10_000, 7)


def test_status_is_not_as_expected_while_blocked(enforcing: WatchRun) -> None:
    def status() -> Status:
        planned = plan_change(enforcing.kernel, enforcing.watch.policy, enforcing.memory)
        return read_status(enforcing.kernel, enforcing.watch.policy, planned)

    assert status().as_expected
    enforcing.watch._block()
    blocked = status()
    assert (blocked.as_expected, blocked.is_blocked, blocked.as_json()["blocked"]) == (False, True, True)


def test_failed_proof_blocks_until_proved_again(enforcing: WatchRun) -> None:
    for table in foreign_marking_state().tables:
        enforcing.kernel.tables[table.key] = table
    enforcing.hear(foreign_changes=2)
    enforcing.pass_time()
    assert enforcing.events() == ["proof", "blocked"]
    assert {("inet", object_names.BLOCK_TABLE), ("netdev", object_names.BLOCK_TABLE)} <= enforcing.kernel.tables.keys()
    del enforcing.kernel.tables["inet", object_names.BLOCK_TABLE]  # somebody takes the block away
    enforcing.hear(auxiliary_changed=True)
    assert ("inet", object_names.BLOCK_TABLE) in enforcing.kernel.tables
    for table in foreign_marking_state().tables:
        del enforcing.kernel.tables[table.key]
    enforcing.hear(foreign_changes=2)
    enforcing.pass_time(3)
    assert enforcing.events() == ["proof", "unblocked"]
    assert enforcing.kernel.tables.keys() == {table.key for table in STATE.tables}


def test_block_present_at_the_start_is_lifted_when_proved(watch_run: WatchRun) -> None:
    watch_run.apply()
    for table in block_tables([POLICY]):
        watch_run.kernel.tables[table.key] = table
    watch_run.watch.start()
    watch_run.pass_time()
    assert watch_run.events() == ["blocked", "enforcing", "proof", "unblocked"]
    assert watch_run.kernel.tables.keys() == {table.key for table in STATE.tables}


def test_unchanged_state_is_not_proved_again(enforcing: WatchRun) -> None:
    before = enforcing.watch._proof.state
    enforcing.hear(foreign_changes=1)
    enforcing.pass_time(3)
    assert enforcing.events() == []
    assert enforcing.watch._proof.state == before


def test_shadow_guard_follows_the_policy(tmp_path: Path) -> None:
    watch_run = WatchRun(tmp_path / "memory", owns=True)
    watch_run.apply()
    watch_run.watch.start()
    tables = shadow_guard_tables(STATE)
    assert watch_run.owned[:2] == list(map(watching.owned_table_text, tables)), "nothing of it was there"
    other = TOML.replace(b"800", b"801")
    watch_run.apply(other, "other.toml")
    watch_run.owned.clear()
    watch_run.hear(files=True)
    wanted = shadow_guard_tables(compile_policy(load(other)[0]))
    assert watch_run.owned == [
        watching.delete_table_text(old) + watching.owned_table_text(new)
        for old, new in zip(tables, wanted, strict=True)
    ]
    released = []
    watch_run.watch._tables._environment = evolve(
        watch_run.watch.environment, load_nft=lambda told, check: released.append(told)
    )
    watch_run.kernel.tables.clear()
    watch_run.memory.clear()
    watch_run.hear(files=True)
    assert released == list(map(watching.delete_table_text, wanted))


def test_shadow_guard_comes_first_and_needs_no_lock(tmp_path: Path) -> None:
    watch_run = WatchRun(tmp_path / "memory", owns=True)
    watch_run.memory.save_policy("small.toml", TOML)
    with watch_run.memory.lock():
        watch_run.watch.start()
        assert watch_run.owned == list(map(watching.owned_table_text, shadow_guard_tables(STATE)))
        assert watch_run.events() == []
    watch_run.pass_time()
    assert watch_run.right


@pytest.mark.parametrize(
    "part", ["ears.read", "watch._keeper.process", "watch._sockets.process", "watch._start_check_if_due"]
)
def test_exception_in_one_part_ends_no_other_part(enforcing: WatchRun, part: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such part")

    owner, _, name = part.rpartition(".")
    setattr(operator.attrgetter(owner)(enforcing), name, fail)
    enforcing.kernel.sysctls[STATE.sysctls[0].path] = "9"
    enforcing.pass_time(10)
    assert enforcing.right, "the comparison of sysctls goes on"
    failures = [fields for event, fields in enforcing.said if event == "failed"]
    assert failures
    assert len(failures) < 10, "what fails again and again is not logged each time"


def test_table_that_the_kernel_refuses_keeps_no_other_away(tmp_path: Path) -> None:
    watch_run = WatchRun(tmp_path / "memory", owns=True)
    watch_run.apply()
    load_text = watch_run.load
    refused = "No such file or directory"
    watch_run.watch._tables._environment = watch_run.watch.environment = evolve(
        watch_run.watch.environment,
        load_nft=lambda text, check: refused if "netdev" in text and not check else load_text(text, check),
    )
    watch_run.watch.start()
    assert watch_run.owned[0] == watching.owned_table_text(shadow_guard_tables(STATE)[0])
    del watch_run.kernel.tables["inet", "nftpolicy"]
    watch_run.hear(deleted_families={"inet", "netdev"})
    assert ("inet", "nftpolicy") in watch_run.kernel.tables


def test_kernel_without_table_owner_has_no_shadow_guard(enforcing: WatchRun) -> None:
    assert enforcing.owned == []


# Messages as the kernel writes them


def message(kind: int, body: bytes, port: int = 9, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, port) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nft(kind: int, *attributes: bytes, family: int = 1, port: int = 9) -> bytes:
    return message(10 << 8 | kind, struct.pack("=BBH", family, 0, 0) + b"".join(attributes), port)


@pytest.fixture
def monitor_without_socket():  # type: ignore[no-untyped-def]
    from nftpolicy.kernel.netlink.monitor import Monitor

    instance = Monitor.__new__(Monitor)
    from nftpolicy.kernel.netlink import monitor

    instance._ours, instance._auxiliary = (
        monitor._table_attribute(object_names.TABLE),
        monitor._table_attribute(object_names.BLOCK_TABLE),
    )
    instance._protocol, instance._own_ports, instance._links, instance._touched = 78, frozenset({5}), {}, False
    return instance


OURS, BLOCK, FOREIGN = (attribute(1, name) for name in (b"nftpolicy\0", b"nftpolicy-block\0", b"nftpolicy2\0"))
GENERATION = nft(
    15, attribute(1, b"\0\0\0\7"), attribute(2, struct.pack("!I", 4242)), attribute(3, b"evil\0"), family=0
)


def test_monitor_names_the_process_that_changes_own_tables(monitor_without_socket) -> None:  # type: ignore[no-untyped-def]
    changes = ChangeSet()
    monitor_without_socket._read_nft(
        nft(2, FOREIGN) + nft(2, OURS, family=5) + nft(8, OURS, attribute(2, b"guard\0")) + GENERATION, changes
    )
    assert (changes.deleted_families, changes.changed_chains, changes.foreign_changes) == (
        {"netdev"},
        {("inet", "guard")},
        1,
    )
    assert changes.origin == Origin("evil", 4242)


def test_monitor_names_no_process_for_foreign_tables(monitor_without_socket) -> None:  # type: ignore[no-untyped-def]
    changes = ChangeSet()
    monitor_without_socket._read_nft(nft(2, FOREIGN) + GENERATION, changes)
    assert changes == ChangeSet(foreign_changes=1)


def test_monitor_ignores_changes_of_this_process(monitor_without_socket) -> None:  # type: ignore[no-untyped-def]
    changes = ChangeSet()
    monitor_without_socket._read_nft(nft(2, OURS, port=5) + nft(2, BLOCK, port=5) + GENERATION, changes)
    assert changes == ChangeSet()


def test_monitor_recognises_auxiliary_tables(monitor_without_socket) -> None:  # type: ignore[no-untyped-def]
    changes = ChangeSet()
    monitor_without_socket._read_nft(nft(2, BLOCK), changes)
    assert (changes.auxiliary_changed, changes.ours_changed, changes.foreign_changes) == (True, False, 0)


def test_monitor_reads_the_process_from_a_later_datagram(monitor_without_socket) -> None:  # type: ignore[no-untyped-def]
    first, second = ChangeSet(), ChangeSet()
    monitor_without_socket._read_nft(nft(2, OURS), first)
    monitor_without_socket._read_nft(GENERATION, second)
    assert (first.origin.pid, second.origin.pid) == (None, 4242)


@pytest.mark.parametrize(
    ("kind", "table", "port", "told"),
    [
        (1, 254, 9, True),
        (1, 77, 0, True),
        (1, 255, 0, False),
        (2, 255, 0, False),
        (7, 254, 9, False),
        (1, 254, 5, False),
    ],
)
def test_monitor_reports_only_foreign_unicast_routes(monitor_without_socket, kind, table, port, told) -> None:  # type: ignore[no-untyped-def]
    changes = ChangeSet()
    monitor_without_socket._read_rtnetlink(
        message(24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, table, 3, 0, kind, 0), port), changes
    )
    assert changes == ChangeSet(route_added=told)


@pytest.mark.parametrize("cut", range(0, 60, 4))
def test_monitor_accepts_truncated_messages(monitor_without_socket, cut: int) -> None:  # type: ignore[no-untyped-def]
    monitor_without_socket._read_nft(nft(8, OURS, attribute(2, b"guard\0"))[:cut], ChangeSet())
