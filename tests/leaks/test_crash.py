"""E5: an error or a kill -9 at steps of a long plan, under a flood. The guard holds; the change ends or is undone.

The steps are the first, one in the middle and the last of each row of steps of one kind, such as the routes that a
change adds. Each meets one error before it is done and one after, and a kill. With NFTPOLICY_CRASHES=all every step
meets every error and kill.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from itertools import groupby

import pytest
from attrs import evolve

from nftpolicy.policy.mark import Mark
from nftpolicy.policy.objects import Policy
from tests.faulty_kernel import ERRORS, KILL, LOST, Faulty
from tests.guarded_lab import SERVICE_GID
from tests.lab import addresses as at
from tests.policy_strategies import to_toml
from tests.policy_transitions import MARK, STICK, Change, Field, scenes, take_guard_away, take_ladder_away

pytestmark = pytest.mark.slow

FOLDER = "/run/lab/crash"
LEAST, LEAST_KINDS = 30, 5  # steps of a change, and kinds of them
ALL = os.environ.get("NFTPOLICY_CRASHES") == "all"


# --- policies: nothing of one routing is in the other -----------------------------------------------


def policies() -> tuple[Policy, Policy]:
    """Return two policies with two uplinks each, and with other tables, other mark masks and other gateways."""
    (scene,) = scenes(1, 1, passing=True)
    (service,) = [one for one in scene.policy.service.values() if one.group and one.group.number == SERVICE_GID]
    return tuple(_policy(scene.policy, service, bits) for bits in (0xF, 0xFF0))  # type: ignore[return-value]


def _policy(like: Policy, service, bits: int) -> Policy:  # type: ignore[no-untyped-def]
    one = next(iter(like.uplink.values()))
    uplinks = {
        name: evolve(
            one,
            devices=devices,
            mark=Mark(value & bits, bits),
            table=300 + bits + number,
            gateways=tuple(map(ip_address, gateways)),
            exempt=("arp", "ndp", "mld", "igmp"),
            answer=(),
            resolver=None,
        )
        for number, (name, devices, value, gateways) in enumerate(
            (
                ("wan", (at.WAN,), MARK, (at.HOME[4], at.HOME_LINK_LOCAL)),
                ("stick", (STICK,), ~MARK, ("198.18.0.2", "2001:db8:99::2")),
            )
        )
    }
    return Policy("crash", (at.MESH, at.CLIENT), uplinks, {"vpn": evolve(service, uplink="wan")})


# --- in the node ------------------------------------------------------------------------------------


def changer(at_step: int = -1, how: str = "", after: bool = False):  # type: ignore[no-untyped-def]
    from pathlib import Path

    from nftpolicy.kernel.linux import Linux
    from nftpolicy.policy.load import load
    from nftpolicy.runtime.apply.state_dir import StateDir
    from nftpolicy.runtime.apply.transaction import PolicyApplier

    folder = Path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["NFTPOLICY_LIB"] = f"{FOLDER}/lib"  # of this process in the node alone
    return PolicyApplier(Faulty(Linux(), at_step, how, after), StateDir(folder), lambda text: load(text[1], text[0])[0])


def change(policy: Policy | None, *fault: object) -> int:
    """Change to a policy, or release; return the number of steps."""
    return changed(changer(*fault), policy)


def target(policy: Policy | None):  # type: ignore[no-untyped-def]
    from nftpolicy.runtime.apply.transaction import TargetPolicy

    return None if policy is None else TargetPolicy(policy, (policy.name, to_toml(policy).encode()))


def changed(made, policy: Policy | None) -> int:  # type: ignore[no-untyped-def]
    wanted = target(policy)
    with made.locked():
        checked = made.check(wanted)
        made.apply(checked, wanted)
    return checked.step_count


def kinds(policy: Policy | None) -> list[str]:
    """Return the kind of each step of a change: its class and verb."""
    steps = changer().check(target(policy)).planned.plan.steps
    return [f"{type(step).__name__} {getattr(step, 'verb', '')}" for step in steps]


def chosen_steps(of_kinds: Sequence[str]) -> list[int]:
    """Return the numbers of the steps that fail: the first, a middle and the last one of each row of one kind."""
    rows = [[number for number, _ in row] for _, row in groupby(enumerate(of_kinds), key=lambda step: step[1])]
    chosen = {number for row in rows for number in (row[0], row[len(row) // 2], row[-1])}
    return list(range(len(of_kinds))) if ALL else sorted(chosen)


def failing(policy: Policy | None, *fault: object) -> str:
    """Change with an error at one step; return the exception as text."""
    try:
        change(policy, *fault)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def killed(policy: Policy | None, *fault: object) -> int:
    """Change in a process that the fault kills; return the signal."""
    child = os.fork()
    if child == 0:
        try:
            change(policy, *fault)
        finally:
            os._exit(1)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def held(policy: Policy | None) -> bool:
    """Return True if the kernel holds exactly this policy and no change is unfinished."""
    from nftpolicy.runtime.apply.executor import plan_change, plan_release

    made = changer()
    found = (
        plan_release(made.kernel, made.state_dir)
        if policy is None
        else plan_change(made.kernel, policy, made.state_dir)
    )
    return not found.plan.steps and made.state_dir.journal.interrupted() is None


def recovered() -> bool:
    from nftpolicy.runtime.apply.recover import recover

    made = changer()
    with made.locked():
        return recover(made) is not None


class Node:
    """Commands that the node executes. The last result stays in a file."""

    def __init__(self) -> None:
        self.changes = {
            name: self._kept(work)
            for name, work in {
                "change": change,
                "kinds": kinds,
                "failing": failing,
                "killed": killed,
                "held": held,
                "recovered": recovered,
                "clear": self._clear,
            }.items()
        }

    @staticmethod
    def _kept(work):  # type: ignore[no-untyped-def]
        def run(*args: object) -> None:
            from pathlib import Path

            Path("/run/lab/answer").write_text(repr(work(*args)))

        return run

    @staticmethod
    def _clear() -> None:
        import shutil

        take_guard_away(), take_ladder_away()
        shutil.rmtree(FOLDER, ignore_errors=True)


class FloodedLab:
    """Lab under the flood. `strays` are summed over all changes."""

    def __init__(self, field: Field) -> None:
        self.field, self.strays, self.points = field, {}, 0

    def do(self, name: str, *args: object, counted: bool = True):  # type: ignore[no-untyped-def]
        seen: Change = self.field.around(name, *args)
        if counted:
            for where, number in self.field.strays(seen).items():
                self.strays[where] = self.strays.get(where, 0) + number
        return eval(self.field.lab.node.outside("/run/lab/answer").read_text())


@pytest.fixture(scope="module")
def flooded() -> Iterator[FloodedLab]:
    with Field(Node().changes) as field:
        yield FloodedLab(field)
        assert field.lost_frames() == 0, "inconclusive: the sniffers lost frames"


OLD, NEW = policies()


@pytest.fixture(autouse=True)
def _from_nothing(flooded: FloodedLab) -> None:
    flooded.do("clear", counted=False)
    flooded.strays.clear()


def test_control_flood_without_guard_leaks(flooded: FloodedLab) -> None:
    flooded.do("held", None)
    assert any(where.startswith("wan: plain") for where in flooded.strays)
    flooded.do("change", OLD, counted=False)
    flooded.strays.clear()
    flooded.do("held", OLD)
    assert flooded.strays == {}


def points_of(number: int) -> list[tuple[str, bool]]:
    """Return the errors, and True for those that come after the step is done."""
    before, after = [(how, False) for how in ERRORS], [(how, True) for how in LOST]
    return [*before, *after] if ALL else [before[number % len(before)], after[number % len(after)]]


def test_change_error_at_a_step_is_undone(flooded: FloodedLab) -> None:
    flooded.do("change", OLD, counted=False)
    flooded.strays.clear()
    of_kinds = flooded.do("kinds", NEW)
    assert len(of_kinds) >= LEAST and len(set(of_kinds)) >= LEAST_KINDS
    met = []
    for number in chosen_steps(of_kinds):
        for how, after in points_of(number):
            assert flooded.do("failing", NEW, number, how, after) == f"StepRefused: {how}"
            assert flooded.do("held", OLD), (number, how, after)
            met.append(how)
    assert set(met) == set(ERRORS)
    print(f"{len(met)} errors in a plan of {len(of_kinds)} steps")
    assert flooded.strays == {}


@pytest.mark.parametrize("early", [False, True] if ALL else [False])
def test_change_killed_at_a_step_is_recovered(flooded: FloodedLab, early: bool) -> None:
    flooded.do("change", OLD, counted=False)
    flooded.strays.clear()
    of_kinds = flooded.do("kinds", NEW)
    assert len(of_kinds) >= LEAST and len(set(of_kinds)) >= LEAST_KINDS
    chosen = chosen_steps(of_kinds)
    for turn, number in enumerate(chosen):
        after = (turn // 2 % 2 == 0) != early
        assert flooded.do("killed", NEW, number, KILL, after) == signal.SIGKILL
        if turn % 2:
            assert flooded.do("recovered"), number
        else:
            flooded.do("change", NEW)
        assert flooded.do("held", NEW), number
        flooded.do("change", OLD)
    print(f"{len(chosen)} kills in a plan of {len(of_kinds)} steps")
    assert flooded.strays == {}


def test_release_killed_at_a_step_keeps_guard(flooded: FloodedLab) -> None:
    """The guard stands until the last step, which opens: an unfinished release is undone."""
    flooded.do("change", OLD, counted=False)
    flooded.strays.clear()
    of_kinds = flooded.do("kinds", None)
    assert len(of_kinds) >= LEAST * 2 / 3
    chosen = chosen_steps(of_kinds)
    for number in chosen:
        assert flooded.do("killed", None, number, KILL, False) == signal.SIGKILL
        assert flooded.do("recovered"), number
        assert flooded.do("held", OLD), number
    print(f"{len(chosen)} kills in a release of {len(of_kinds)} steps")
    assert flooded.strays == {}


def test_first_apply_killed_at_a_step_is_recovered(flooded: FloodedLab) -> None:
    """The guard stands from the first step on; no policy was in force before."""
    flooded.do("change", OLD, counted=False)
    flooded.do("change", None, counted=False)  # so that the sysctls are as they were
    of_kinds = flooded.do("kinds", OLD, counted=False)
    assert len(of_kinds) >= LEAST * 2 / 3
    flooded.strays.clear()
    chosen = chosen_steps(of_kinds)[1:]
    for number in chosen:
        flooded.do("change", None, counted=False)
        assert flooded.do("killed", OLD, number, KILL, False, counted=False) == signal.SIGKILL
        assert flooded.do("recovered"), number
        assert flooded.do("held", OLD), number
    print(f"{len(chosen)} kills in a first apply of {len(of_kinds)} steps")
    assert flooded.strays == {}
