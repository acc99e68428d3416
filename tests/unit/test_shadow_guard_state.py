"""Comparison of the loaded shadow guard with a state."""

import pytest
from attrs import evolve

from nftpolicy.cli import apply_common
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.compiler.shadow_guard import shadow_guard_tables
from nftpolicy.kernel.fake import FakeKernel
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.runtime import shadow_guard_state
from nftpolicy.runtime.shadow_guard_state import await_shadow_guard, stale_shadow_families
from tests.unit.test_watch import STATE, TOML

LATER = compile_policy(load(TOML.replace(b'"0x1/0x1"', b'"0x2/0x2"'))[0])
OWNED = tuple(evolve(table, flags=frozenset({"owner"})) for table in shadow_guard_tables(STATE))


def test_shadow_guard_of_the_state_is_not_stale():
    assert stale_shadow_families(FakeKernel(NetState(OWNED)), STATE) == ()


def test_shadow_guard_of_an_earlier_state_is_stale():
    assert stale_shadow_families(FakeKernel(NetState(OWNED)), LATER) == ("inet", "netdev")
    assert stale_shadow_families(FakeKernel(NetState(OWNED[:1])), LATER) == ("inet",)


def test_kernel_without_shadow_guard_has_none_that_is_stale():
    assert stale_shadow_families(FakeKernel(STATE), LATER) == ()


def test_wait_ends_when_watch_takes_over(monkeypatch: pytest.MonkeyPatch):
    kernel = FakeKernel(NetState(OWNED))

    def take_over(_: float) -> None:
        kernel.tables.update({table.key: table for table in shadow_guard_tables(LATER)})

    monkeypatch.setattr(shadow_guard_state.time, "sleep", take_over)
    assert await_shadow_guard(kernel, LATER, 1)


def test_wait_for_a_stopped_watch_ends_with_a_warning(monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    monkeypatch.setattr(apply_common, "warn", warnings.append)
    monkeypatch.setattr(apply_common, "_TAKEOVER", 0.05)
    apply_common.warn_of_earlier_shadow_guard(FakeKernel(NetState(OWNED)), LATER)
    assert warnings == [shadow_guard_state.EARLIER_SHADOW_GUARD]
