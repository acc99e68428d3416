"""Sysctls of a device that goes and comes during an apply: the change is neither given up nor left half done."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from nftpolicy.compiler.sysctls import required_sysctls
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.operations import Step, SysctlChange
from nftpolicy.netstate.routing import Sysctl
from nftpolicy.netstate.state import NetState
from nftpolicy.runtime.apply.executor import PlannedChange, ReadBackMismatch, apply_change, plan_change
from nftpolicy.runtime.apply.state_dir import StateDir
from tests.unit.proved_policy import POLICY

REQUIRED = {sysctl.path: sysctl.value for sysctl in required_sysctls(POLICY)}
OF_WAN = sorted(path for path in REQUIRED if "/wan/" in path)
BEFORE = "9"  # no required value


class Flapping(FakeKernel):
    """Kernel whose device `wan` goes before some writes of its first sysctl, and comes again after others."""

    def __init__(self, goes_at: Iterable[int], comes_at: Iterable[int]) -> None:
        super().__init__(NetState(sysctls=tuple(Sysctl(path, BEFORE) for path in REQUIRED)))
        self.goes_at, self.comes_at, self.writes = set(goes_at), set(comes_at), 0

    def apply_step(self, step: Step) -> None:
        if isinstance(step, SysctlChange) and step.new.path == OF_WAN[0]:
            if self.writes in self.goes_at:
                for path in OF_WAN:
                    del self.sysctls[path]
            if self.writes in self.comes_at:
                self.sysctls |= dict.fromkeys(OF_WAN, BEFORE)
            self.writes += 1
        super().apply_step(step)


def applied(kernel: FakeKernel, directory: Path) -> PlannedChange:
    state_dir = StateDir(directory)
    state_dir.create()
    planned = plan_change(kernel, POLICY, state_dir)
    apply_change(kernel, planned, state_dir)
    return planned


def test_device_that_comes_again_gets_its_sysctls(tmp_path: Path) -> None:
    kernel = Flapping({0}, {1})
    applied(kernel, tmp_path)
    assert kernel.sysctls == REQUIRED
    assert kernel.writes > 1


def test_device_that_stays_away_does_not_stop_the_change(tmp_path: Path) -> None:
    kernel = Flapping({0}, ())
    planned = applied(kernel, tmp_path)
    assert kernel.sysctls == {path: value for path, value in REQUIRED.items() if path not in OF_WAN}
    assert kernel.state.tables == planned.desired.tables


def test_device_back_before_reading_back_is_set_once_more(tmp_path: Path) -> None:
    class Late(Flapping):
        def read_own(self, *arguments: object) -> NetState:
            if self.writes == 2:  # the change could not set it twice, and reads back now
                self.sysctls |= dict.fromkeys(OF_WAN, BEFORE)
            return super().read_own(*arguments)  # type: ignore[arg-type]

    kernel = Late({0}, ())
    applied(kernel, tmp_path)
    assert kernel.sysctls == REQUIRED


def test_control_sysctl_that_cannot_be_set_rolls_back(tmp_path: Path) -> None:
    class Stubborn(FakeKernel):
        def apply_step(self, step: Step) -> None:
            if not isinstance(step, SysctlChange) or step.new.path != OF_WAN[0]:
                super().apply_step(step)

    kernel = Stubborn(NetState(sysctls=tuple(Sysctl(path, BEFORE) for path in REQUIRED)))
    before = kernel.state
    with pytest.raises(ReadBackMismatch):
        applied(kernel, tmp_path)
    assert kernel.state == before
