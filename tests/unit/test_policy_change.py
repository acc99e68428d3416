"""A change of policy: the policies that may be in force, the journal, the state directory, the history."""

import pytest

from nftpolicy.kernel.errors import StepRefused
from nftpolicy.netstate.operations import IpRuleChange, NftTransaction, RouteChange
from nftpolicy.runtime.apply.executor import ReadBackMismatch
from nftpolicy.runtime.apply.history import History
from nftpolicy.runtime.apply.journal import InconsistentState
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.apply.transaction import TargetPolicy
from tests.unit.test_earlier_flows import flow
from tests.unit.test_safe_order import OTHER_TEXT, TEXT, applier, apply, machine, policy, source
from tests.unit.test_stale_cleanup import FakeRunningKernel

OTHER = TargetPolicy(policy(OTHER_TEXT), ("q.toml", OTHER_TEXT.encode()))

MARKED_BEFORE = "deleted 1 conntrack entry: marked before these rules were loaded"


@pytest.fixture(autouse=True)
def history_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NFTPOLICY_LIB", str(tmp_path / "history"))
    return History(tmp_path / "history")


@pytest.fixture
def guarded(tmp_path):
    """Return a kernel with the policy p, which no state directory knows."""
    kernel = machine()
    apply(kernel, tmp_path / "elsewhere")
    return kernel


def interrupt(memory, before, after):
    """Leave the journal of a change that was interrupted after one step."""
    memory.directory.mkdir(parents=True, exist_ok=True)
    with pytest.raises(InconsistentState), memory.journal.record(3, before, after) as writer:
        writer.count_step()
        raise InconsistentState


@pytest.mark.parametrize(
    ("before", "after", "previous"),
    [(source(), OTHER.source, "q"), (None, source(), "p"), (source(), None, "p"), (OTHER.source, source(), "p")],
)
def test_policies_of_an_interrupted_change_may_be_in_force(guarded, tmp_path, before, after, previous):
    memory = StateDir(tmp_path / "memory")
    interrupt(memory, before, after)
    checked = applier(guarded, memory.directory).check(OTHER)
    assert checked.order.own_proofs[0].named_spec.name == "p, as it is"
    assert checked.previous.name == previous
    assert (checked.interrupted.before, checked.interrupted.after) == (before, after)


def test_stored_policy_is_likelier_than_an_interrupted_one(guarded, tmp_path):
    memory = StateDir(tmp_path / "memory")
    interrupt(memory, None, OTHER.source)
    memory.save_policy(*source())
    checked = applier(guarded, memory.directory).check(OTHER)
    assert checked.previous.name == "p"
    assert checked.order.own_proofs[0].named_spec.name == "p, as it is"


def test_policy_that_no_longer_loads_is_left_out(guarded, tmp_path):
    memory = StateDir(tmp_path / "memory")
    interrupt(memory, source(), OTHER.source)
    memory.save_policy("p.toml", b"not a policy")
    checked = applier(guarded, memory.directory).check(OTHER)
    assert checked.previous.name == "q"
    assert checked.order.own_proofs[0].named_spec.name == "p, as it is"


def test_unknown_policy_in_force_gives_no_spec(guarded, tmp_path):
    checked = applier(guarded, tmp_path / "memory").check(OTHER)
    assert checked.previous is None
    assert checked.interrupted is None
    assert checked.order.own_proofs[0].named_spec is None


class Watched:
    """Proxy of a kernel that reads the journal before each step, refuses step `refuse`, and ignores step `ignore`."""

    def __init__(self, kernel, memory, refuse=None, ignore=None):
        self._kernel, self._memory, self._refuse, self._ignore = kernel, memory, refuse, ignore
        self.seen, self.steps = [], []

    def __getattr__(self, name):
        return getattr(self._kernel, name)

    def apply_step(self, step):
        number = len(self.steps)
        self.seen.append(self._memory.journal.interrupted())
        self.steps.append(step)
        if number == self._refuse:
            raise StepRefused(step, "no")
        if number != self._ignore:
            self._kernel.apply_step(step)


def change(kernel, memory, target, **options):
    changer = applier(kernel, memory.directory)
    with changer.locked():
        checked = changer.check(target)
        report = changer.apply(checked, target, **options)
    return checked, report


def test_journal_has_both_policies_and_the_steps(tmp_path):
    memory = StateDir(tmp_path / "memory")
    kernel = machine()
    for before, target in ((None, TargetPolicy(policy(), source())), (source(), OTHER), (OTHER.source, None)):
        watched = Watched(kernel, memory)
        checked, _ = change(watched, memory, target)
        assert checked.step_count == len(watched.seen) > 1
        assert [entry.done_steps for entry in watched.seen] == list(range(checked.step_count))
        assert {entry.steps for entry in watched.seen} == {checked.step_count}
        after = target and target.source
        assert {(entry.before, entry.after) for entry in watched.seen} == {(before, after)}
        assert memory.journal.interrupted() is None
        assert memory.policy() == after
    assert kernel.tables == {}


def test_journal_after_an_interruption_keeps_the_earlier_policy(guarded, tmp_path):
    memory = StateDir(tmp_path / "memory")
    interrupt(memory, source(), OTHER.source)
    watched = Watched(guarded, memory)
    change(watched, memory, OTHER)
    assert {(entry.before, entry.after) for entry in watched.seen} == {(source(), OTHER.source)}


def test_interrupted_change_without_steps_is_completed(guarded, tmp_path):
    memory = StateDir(tmp_path / "memory")
    interrupt(memory, None, source())
    checked, report = change(guarded, memory, TargetPolicy(policy(), source()))
    assert (checked.step_count, checked.order, report.warnings, report.cleanup_lines) == (0, None, (), ())
    assert memory.journal.interrupted() is None
    assert memory.policy() == source()


def test_refused_step_leaves_policy_and_kernel(guarded, tmp_path, history_dir):
    memory = StateDir(tmp_path / "memory")
    memory.directory.mkdir()
    memory.save_policy(*source())
    before, entries = guarded.state, history_dir.entries()
    with pytest.raises(Exception, match="no"):
        change(Watched(guarded, memory, refuse=2), memory, OTHER)
    assert guarded.state == before
    assert (memory.policy(), memory.journal.interrupted()) == (source(), None)
    assert history_dir.entries() == entries


@pytest.mark.parametrize("options", [{}, {"via_block": True}])
def test_executed_steps_are_the_proved_order(guarded, tmp_path, options):
    watched = Watched(guarded, StateDir(tmp_path / "memory"))
    changer = applier(watched, tmp_path / "memory", **options)
    with changer.locked():
        checked = changer.check(OTHER)
        changer.apply(checked, OTHER)
    assert tuple(watched.steps) == checked.order.plan.steps
    assert checked.step_count == len(watched.steps)


def test_release_restores_all_original_sysctls(tmp_path):
    kernel, memory = machine(), StateDir(tmp_path / "memory")
    before = dict(kernel.sysctls)
    for target in (TargetPolicy(policy(), source()), OTHER):
        change(kernel, memory, target)
        assert kernel.sysctls != before
    change(kernel, memory, None)
    assert kernel.sysctls == before


@pytest.mark.parametrize("ignored", [NftTransaction, IpRuleChange, RouteChange])  # sysctls are tried again
def test_change_that_reads_back_otherwise_is_undone(tmp_path, ignored):
    kernel, memory = machine(), StateDir(tmp_path / "memory")
    target = TargetPolicy(policy(), source())
    steps = applier(kernel, memory.directory).check(target).order.plan.steps
    number = next(number for number, step in enumerate(steps) if isinstance(step, ignored))
    before = kernel.state
    with pytest.raises(ReadBackMismatch):
        change(Watched(kernel, memory, ignore=number), memory, target)
    assert kernel.state == before
    assert (memory.policy(), memory.journal.interrupted()) == (None, None)


def test_change_is_added_to_the_history(tmp_path, history_dir):
    kernel, memory = machine(), StateDir(tmp_path / "memory")
    change(kernel, memory, TargetPolicy(policy(), source()))
    change(kernel, memory, OTHER, why="rollback", repeats=1)
    first, second = history_dir.entries()
    assert (first.policy, first.text, first.verdict, first.why, first.of) == ("p", TEXT, "proved", "apply", None)
    assert (second.policy, second.text, second.why, second.of) == ("q", OTHER_TEXT, "rollback", 1)
    assert 0 <= first.seconds < 600
    change(kernel, memory, None)
    assert len(history_dir.entries()) == 2


class RunningMachine(FakeRunningKernel):
    """Proxy of a kernel with flows, which are open during a change only."""

    def __init__(self, kernel, *flows):
        super().__init__()
        self._kernel, self.entries, self.opened, self.closed = kernel, list(flows), 0, 0

    def __getattr__(self, name):
        return getattr(self._kernel, name)

    def live_sockets(self):
        return self

    def __enter__(self):
        self.opened += 1

    def __exit__(self, *_):
        self.closed += 1

    def flows(self, value, mask):
        return [one for one in self.entries if one.mark & mask == value]

    def delete_flow(self, one):
        self.entries.remove(one)
        return True


def test_first_change_deletes_marked_flows_later_ones_none(tmp_path):
    memory, target = StateDir(tmp_path / "memory"), TargetPolicy(policy(), source())
    running = RunningMachine(machine(), flow(0x1))
    _, report = change(running, memory, target)
    assert (report.cleanup_lines, running.entries) == ((MARKED_BEFORE,), [])
    assert running.opened == running.closed > 0
    running.entries, running.opened = [flow(0x1)], 0
    _, report = change(running, memory, target)
    assert (report.cleanup_lines, running.entries, running.opened) == ((), [flow(0x1)], 0)
    # In force, but applied by another program, so the policy before is not known.
    _, report = change(running, StateDir(tmp_path / "elsewhere"), target)
    assert (report.cleanup_lines, running.entries) == ((), [flow(0x1)])


def test_change_of_the_same_uplink_keeps_its_flows(guarded, tmp_path):
    memory = StateDir(tmp_path / "memory")
    memory.directory.mkdir()
    memory.save_policy(*source())
    running = RunningMachine(guarded, flow(0x1))
    _, report = change(running, memory, OTHER)
    assert MARKED_BEFORE not in report.cleanup_lines


def test_release_deletes_no_flows_from_before_its_rules(guarded, tmp_path):
    running = RunningMachine(guarded, flow(0x1))
    _, report = change(running, StateDir(tmp_path / "memory"), None)
    assert (report.cleanup_lines, running.entries) == ((), [flow(0x1)])


def test_change_of_the_mark_deletes_flows_with_the_old_one(guarded, tmp_path):
    memory = StateDir(tmp_path / "memory")
    memory.directory.mkdir()
    memory.save_policy(*source())
    text = TEXT.replace("0x1/0xff", "0x2/0xff")
    running = RunningMachine(guarded, flow(0x1), flow(0x3))
    _, report = change(running, memory, TargetPolicy(policy(text), source(text)))
    assert report.cleanup_lines[0] == (
        "deleted 1 conntrack entry: the mark 0x1/0xff of uplink wan is not used any more"
    )
    assert running.entries == [flow(0x3)]
    assert running.opened == running.closed > 0


@pytest.mark.parametrize("target", [TargetPolicy(policy(), source()), None])
def test_state_directory_that_fails_is_a_warning(tmp_path, monkeypatch, target):
    memory, kernel = StateDir(tmp_path / "memory"), machine()
    change(kernel, memory, OTHER)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StateDir, "save_policy", fail)
    monkeypatch.setattr(StateDir, "clear", fail)
    monkeypatch.setattr(History, "add", lambda *_, **__: fail())
    _, report = change(kernel, memory, target)
    first = (
        f"{memory.directory}: cannot be written (No space left on device); "
        "pass the policy file to 'nftpolicy status' from now on"
    )
    second = "the history cannot be written (No space left on device); 'nftpolicy rollback' will not find this policy"
    assert report.warnings == ((first, second) if target else (first,))
