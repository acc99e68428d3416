"""Block of the uplinks: only for a packet that leaves, with its reason and the way out."""

import pytest

from nftpolicy.compiler import object_names
from nftpolicy.netstate.routing import IpRule
from nftpolicy.policy.objects import Policy
from nftpolicy.runtime.apply.block_reason import BlockReasonFile
from nftpolicy.runtime.watch.repair_plan import status_text
from tests.unit.test_watch import POLICY, WatchRun, foreign_marking_state


@pytest.fixture
def enforcing(tmp_path):
    run = WatchRun(tmp_path / "memory")
    run.apply()
    run.watch.start()
    run.pass_time()
    run.events()
    yield run
    if run.watch._checks.worker:
        run.watch._checks.worker.cancel()


def reasons(run: WatchRun) -> tuple[str, ...]:
    return BlockReasonFile(run.memory.directory).read()


def let_leak(run: WatchRun) -> None:
    for table in foreign_marking_state().tables:
        run.kernel.tables[table.key] = table
    run.hear(foreign_changes=2)
    run.pass_time()


def is_blocked(run: WatchRun) -> bool:
    return ("inet", object_names.BLOCK_TABLE) in run.kernel.tables


def test_reasons_outlast_a_process_and_have_a_line_each(tmp_path) -> None:
    file = BlockReasonFile(tmp_path)
    assert file.read() == ()
    file.write(("P1 wan\nrefuted", "P5 wan refuted"))
    assert file.read() == ("P1 wan refuted", "P5 wan refuted")
    file.write(())
    assert file.read() == ()


def test_block_has_a_reason_and_the_way_out(enforcing: WatchRun) -> None:
    let_leak(enforcing)
    assert is_blocked(enforcing)
    assert reasons(enforcing)[0].startswith("P1 wan refuted")
    fields = next(fields for event, fields in enforcing.said if event == "blocked")
    assert "nftpolicy verify --live" in str(fields["then"])
    assert enforcing.watch._status().startswith("BLOCKED, small: ")
    for table in foreign_marking_state().tables:
        del enforcing.kernel.tables[table.key]
    enforcing.hear(foreign_changes=2)
    enforcing.pass_time(3)
    assert not is_blocked(enforcing)
    assert reasons(enforcing) == ()
    assert enforcing.watch._status() == "small: proved"


@pytest.mark.parametrize("priority", [400, 508, 509])
def test_foreign_ip_rules_block_nothing(enforcing: WatchRun, priority: int) -> None:
    rules = [IpRule(family, priority, table=20736, protocol=0) for family in (4, 6)]
    enforcing.kernel.rules.extend(rules)
    enforcing.hear(foreign_rules_changed=True)
    enforcing.pass_time(3)
    assert not is_blocked(enforcing)
    let_leak(enforcing)
    assert is_blocked(enforcing), "the control"


def test_removed_block_stays_removed_without_a_leak(enforcing: WatchRun) -> None:
    enforcing.watch._block(("a reason of before",))
    for family in object_names.FAMILIES:
        del enforcing.kernel.tables[family, object_names.BLOCK_TABLE]  # apply has proved the state
    enforcing.hear(auxiliary_changed=True)
    assert not is_blocked(enforcing)
    assert not enforcing.watch.is_blocked


BLOCKED = "BLOCKED, small: the uplinks are stopped; 'nftpolicy status' has the reason and the way out"
STARVED = "small: proved, services are starved by foreign ip rules: type 'nftpolicy status'"


@pytest.mark.parametrize(
    ("policy", "verdict", "blocked", "starved", "text"),
    [
        (None, "", False, False, "no policy is in force"),
        (POLICY, "", False, False, "small: enforced"),
        (POLICY, "unknown", False, False, "small: unknown"),
        (POLICY, "refuted", True, True, BLOCKED),
        (POLICY, "proved", False, True, STARVED),
    ],
    ids=lambda value: value.name if isinstance(value, Policy) else str(value),
)
def test_status_text_names_the_state(policy, verdict, blocked, starved, text) -> None:
    assert status_text(policy, verdict, blocked, starved) == text
