"""Last lines of `nftpolicy release`: whether the uplinks are open, and what guards them again."""

from types import SimpleNamespace

import pytest

from nftpolicy.cli import release
from nftpolicy.cli.common import Failure
from nftpolicy.runtime import boot_state
from nftpolicy.runtime.boot_state import BootState


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(release, "_WATCH_SECONDS", 0.05)
    monkeypatch.setattr(boot_state, "read_boot_state", BootState)


def kernel_with(*tables):
    return SimpleNamespace(table_names=lambda: set(tables))


def test_open_uplinks_without_units_are_one_line(capsys) -> None:
    release._print_openness(kernel_with(("inet", "fw4")))
    assert capsys.readouterr() == ("the uplinks are open now: any program may use them\n", "")


def test_enabled_units_are_named_with_their_command(capsys, monkeypatch) -> None:
    state = BootState(("nftpolicy-guard.service", "nftpolicy.service"), ("nftpolicy",))
    monkeypatch.setattr(boot_state, "read_boot_state", lambda: state)
    release._print_openness(kernel_with())
    assert capsys.readouterr().out.splitlines()[1] == (
        "the next boot guards them again, by nftpolicy-guard.service and nftpolicy.service and nftpolicy; to leave "
        "them open: systemctl disable --now nftpolicy-guard.service nftpolicy.service; /etc/init.d/nftpolicy disable"
    )


def test_table_of_a_stuck_watch_is_named(capsys) -> None:
    release._print_openness(kernel_with(("inet", "nftpolicy-second")))
    said = capsys.readouterr()
    assert "inet nftpolicy-second" in said.err
    assert "open" not in said.out


def test_guard_that_stays_is_a_failure() -> None:
    with pytest.raises(Failure, match="not open"):
        release._print_openness(kernel_with(("inet", "nftpolicy")))
