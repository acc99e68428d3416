"""Absent uplink devices on a kernel that hooks no chain at them (before Linux 6.18): no fault, and named."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.runtime.apply.executor import apply_change, plan_change
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.apply.step_order import prove_desired
from nftpolicy.runtime.status import read_status
from nftpolicy.runtime.watch.device_presence import DevicePresence
from nftpolicy.runtime.watch.full_check import run_full_check
from tests.unit.test_watch import STATE, WatchRun
from tests.unit.uplink_policy import TWO_DEVICES as TEXT

POLICY = load(TEXT)[0]
NOTE = "device wlan0 is absent; its link guard is added when it appears (by watch, or by the next apply)"


def kernel_without_wlan() -> FakeKernel:
    sysctls = compile_policy(POLICY).sysctls
    return FakeKernel(NetState(sysctls=sysctls), ("eth0", "lan"), without_egress_hook=("wlan0",))


def link_chains(kernel: FakeKernel) -> set[str]:
    return {chain.hook.device for chain in kernel.tables["netdev", "nftpolicy"].chains if chain.hook}


@pytest.fixture
def state_dir(tmp_path) -> StateDir:
    return StateDir(tmp_path)


def test_status_beside_absent_device_is_as_expected(state_dir) -> None:
    kernel = kernel_without_wlan()
    planned = plan_change(kernel, POLICY, state_dir)
    assert prove_desired(planned, POLICY, kernel).verdict == "proved"
    apply_change(kernel, planned, state_dir)
    assert link_chains(kernel) == {"eth0"}
    status = read_status(kernel, POLICY, plan_change(kernel, POLICY, state_dir))
    assert (status.as_expected, status.differences, status.notes) == (True, (), (NOTE,))
    assert status.as_json()["notes"] == [NOTE]


def test_status_after_device_appeared_differs(state_dir) -> None:
    kernel = kernel_without_wlan()
    apply_change(kernel, plan_change(kernel, POLICY, state_dir), state_dir)
    kernel.attach_device("wlan0")
    planned = plan_change(kernel, POLICY, state_dir)
    status = read_status(kernel, POLICY, planned)
    assert (status.as_expected, status.parts["link guard"], status.notes) == (False, False, ())
    apply_change(kernel, planned, state_dir)
    assert link_chains(kernel) == {"eth0", "wlan0"}


def test_kernel_without_egress_hook_is_not_as_expected(state_dir) -> None:
    kernel = FakeKernel(
        kernel_without_wlan().state, ("eth0", "wlan0", "lan"), without_egress_hook=("lo", "eth0", "wlan0")
    )
    apply_change(kernel, plan_change(kernel, POLICY, state_dir), state_dir)
    status = read_status(kernel, POLICY, plan_change(kernel, POLICY, state_dir))
    assert (status.as_expected, status.parts["link guard"]) == (False, False)
    assert "no netdev egress hook" in status.notes[0]


def state_with(*names: str, hooked: frozenset[str]) -> NetState:
    desired = compile_policy(POLICY, HostFacts(unhookable_devices=frozenset({"eth0", "wlan0"}) - hooked))
    return evolve(desired, devices=tuple(Device(name, link_type=1) for name in ("lo", *names)))


def test_absent_device_is_an_assumption_by_name() -> None:
    proof = prove(state_with("eth0", hooked=frozenset({"eth0"})), build_spec(POLICY), usability=False)
    assert proof.verdict == "proved"
    assert any("wlan0 is absent" in assumption for assumption in proof.assumptions)
    reached = next(assumption for assumption in proof.assumptions if "reach an uplink by" in assumption)
    assert "eth0" in reached
    assert "wlan0" not in reached


def test_present_device_without_link_guard_is_refuted() -> None:
    proof = prove(state_with("eth0", "wlan0", hooked=frozenset({"eth0"})), build_spec(POLICY), usability=False)
    assert proof.verdict == "refuted"
    assert {example.device for finding in proof.findings for example in finding.examples} == {"wlan0"}


def test_absent_device_with_link_guard_is_no_assumption() -> None:
    proof = prove(state_with("eth0", hooked=frozenset({"eth0", "wlan0"})), build_spec(POLICY), usability=False)
    assert proof.verdict == "proved"
    assert not any("is absent" in assumption for assumption in proof.assumptions)


def test_other_name_of_a_present_device_is_not_absent() -> None:
    state = state_with("eth0", hooked=frozenset({"eth0"}))
    named = tuple(
        evolve(device, other_names=("wlan0",)) if device.name == "eth0" else device for device in state.devices
    )
    assert prove(evolve(state, devices=named), build_spec(POLICY), usability=False).verdict != "proved"


def test_presence_requires_a_plan_when_hooks_change() -> None:
    kernel = kernel_without_wlan()
    presence = DevicePresence(kernel)
    assert not presence.requires_plan(), "no policy"
    presence.set_devices(("eth0", "wlan0"), HostFacts(unhookable_devices=frozenset({"wlan0"})))
    assert not presence.requires_plan()
    kernel.attach_device("wlan0")
    assert presence.requires_plan()
    presence.set_devices(("eth0", "wlan0"), HostFacts())
    assert not presence.requires_plan()
    kernel.devices.discard("wlan0")
    assert not presence.requires_plan(), "this kernel keeps the chain of an absent device"
    kernel.detach_device("wlan0")
    assert presence.requires_plan()


@pytest.fixture
def absent(tmp_path):
    """A watch over a policy whose only device is absent."""
    run = WatchRun(tmp_path / "memory")
    run.kernel.devices = {"lo", "bat0"}
    run.kernel.detach_device("br-wan")
    run.apply()
    run.watch.start()
    run.pass_time()
    yield run
    if run.watch._checks.worker:
        run.watch._checks.worker.cancel()


def test_watch_beside_absent_device_is_quiet(absent: WatchRun) -> None:
    absent.hear(links=True)
    absent.pass_time(10)
    assert absent.events() == ["enforcing", "proof"]
    assert not absent.watch.is_blocked
    assert absent.watch.verdict == "proved"


def test_watch_adds_link_guard_at_once_when_device_appears(absent: WatchRun) -> None:
    absent.kernel.attach_device("br-wan")
    absent.hear(links=True)
    assert absent.kernel.state.tables == tuple(sorted(STATE.tables, key=lambda table: table.key))
    absent.pass_time()
    assert "failed" not in absent.events()
    assert absent.right


def test_watch_gives_no_alarm_when_device_disappears(absent: WatchRun) -> None:
    absent.kernel.attach_device("br-wan")
    absent.hear(links=True)
    absent.pass_time()
    absent.events()
    absent.kernel.detach_device("br-wan")  # the kernel drops the chain
    absent.hear(links=True)
    absent.pass_time(10)
    assert {"failed", "blocked", "restored"} & set(absent.events()) == set()
    # A repair after that is loaded as a whole.
    del absent.kernel.tables["inet", "nftpolicy"]
    absent.hear(ours_changed=True, deleted_families={"inet"})
    absent.pass_time()
    assert "failed" not in absent.events()
    assert absent.right


def test_full_check_beside_absent_device_proves_other_frames(absent: WatchRun) -> None:
    changer = absent.watch.environment.applier
    result = run_full_check(absent.kernel, absent.watch.policy, changer, proves=True, known_hash=None)
    assert (result["verdict"], result["leak_verdict"], result["leaks"]) == ("proved", "proved", [])
