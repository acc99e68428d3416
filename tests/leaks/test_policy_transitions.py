"""C-E1: while random policies change under a flood of every kind, no packet leaves that both policies forbid.

NFTPOLICY_TRANSITIONS and NFTPOLICY_SEED select others: `NFTPOLICY_TRANSITIONS=1000 NFTPOLICY_SEED=7 pytest FILE`.
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.lab import addresses as at
from tests.policy_strategies import to_toml
from tests.policy_transitions import (
    ALIEN,
    ASTRAY,
    FORBIDDEN,
    FOREIGN,
    MARKED,
    MESH,
    ORDINARY,
    PLAIN,
    STOLEN,
    Change,
    Field,
    Ours,
    Scene,
    scenes,
    take_guard_away,
    take_ladder_away,
    words,
)

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("NFTPOLICY_TRANSITIONS", "80"))
SEED = int(os.environ.get("NFTPOLICY_SEED", "1"))
LOOKS = 10
RESTARTS = 5
GLIMPSE = 0.05  # seconds for a control


def nothing() -> None:
    time.sleep(GLIMPSE)


@pytest.fixture
def field() -> Iterator[Field]:
    ours = Ours()
    changes = {
        "apply": ours.apply,
        "restart": ours.restart,
        "nothing": nothing,
        "no guard": lambda: (take_guard_away(), nothing()),
        "no ip rules": lambda: (take_ladder_away(), nothing()),
    }
    with Field(changes) as made:
        yield made


def faults(field: Field, change: Change, old: Scene, new: Scene) -> list[str]:
    """Return descriptions of packets that left although both policies forbid them."""
    found = [f"{count} frames of {where}" for where, count in field.strays(change).items()]
    arrived = sum(change.seen["wan"][index] for index in field.where(MARKED))
    if arrived and not (old.entitled or new.entitled):
        found.append(f"{arrived} frames of a service that neither policy lets leave")
    strangers = set(words(change.others)) - old.exempt - new.exempt
    return [*found, *(f"{word}, which neither policy exempts" for word in sorted(strangers))]


def test_policy_transition_leaks_nothing(field: Field) -> None:
    first, *rest = scenes(COUNT + 1, SEED)
    field.around("apply", first.policy)
    old, during, passed, allowed = first, [0] * len(field.kinds), 0, 0
    for number, new in enumerate(rest, 1):
        change = field.around("apply", new.policy)
        bad = faults(field, change, old, new)
        assert not bad, (
            f"seed {SEED}, transition {number}: {bad}, from\n{to_toml(old.policy)}\nto\n{to_toml(new.policy)}"
        )
        during = [sum(one) for one in zip(during, change.during.taken, change.during.refused, strict=True)]
        if old.passes and new.passes:
            allowed += sum(change.sent.taken[index] + change.sent.refused[index] for index in field.where(MARKED))
            passed += sum(change.seen["wan"][index] for index in field.where(MARKED))
        old = new
    print(f"seed {SEED}: {len(rest)} transitions; {sum(during):,} packets of {len(during)} kinds sent while they ran")
    print(f"where the service may leave before and after: {passed:,} of {allowed:,} marked packets arrived by br-wan")
    assert min(during) >= COUNT, "inconclusive: the flood hardly flowed"
    assert passed > allowed / 2 > 0, "inconclusive: what may leave does not"
    controls(field)
    assert field.lost_frames() == 0, "inconclusive: the sniffers lost frames"


def controls(field: Field) -> None:
    """Check that each kind is seen as soon as its barrier is removed, and is stopped again afterwards."""
    # Where the foreign mark is another uplink's, its table stops IPv6 without any guard.
    drawn = scenes(40, SEED, passing=True)
    last = next(one for one in drawn if not any(up.mark.matches(ALIEN) for up in one.policy.uplink.values()))
    field.around("apply", last.policy)

    def seen(name: str) -> dict[str, int]:
        return field.strays(field.around(name))

    def missing(wanted: set[str], name: str) -> set[str]:
        """Return the kinds that were not seen after the change; repeats the reading, for a busy machine."""
        left = wanted - seen(name).keys()
        for _ in range(LOOKS):
            left = left and left - seen("nothing").keys()
        return left

    assert seen("nothing") == {}
    guardless = {f"{wire}: {kind}" for role in (PLAIN, FOREIGN, STOLEN) for wire, kind in led(field, role)}
    left = missing(guardless, "no guard")
    assert not left, f"inconclusive: without the guard not all of it leaves: {sorted(left)}"
    astray = {f"{MESH}: {kind}" for kind in field.kinds if kind.role in (STOLEN, MARKED, ASTRAY)}
    left = missing(astray, "no ip rules")
    assert not left, f"inconclusive: without the ip rules not all of it strays: {sorted(left)}"
    field.around("apply", last.policy)
    assert seen("nothing") == {}


def led(field: Field, role: str) -> list[tuple[str, object]]:
    """Return the wire by which each kind of a role leaves if nothing stops it."""
    return [("stick" if kind.device == "usb0" else "wan", kind) for kind in field.kinds if kind.role == role]


def test_control_release_and_apply_leaks(field: Field) -> None:
    """Control of the test above: the method of tools that restart."""
    first, *rest = scenes(RESTARTS + 1, SEED)
    field.around("apply", first.policy)
    old = first
    for new in rest:
        bad = faults(field, field.around("restart", new.policy), old, new)
        roles = {role for role in FORBIDDEN for one in bad if f": {role} " in one}
        assert roles == set(FORBIDDEN) - {ORDINARY}, bad
        old = new
    assert field.lost_frames() == 0


def test_flood_covers_every_kind_and_family(field: Field) -> None:
    """Families, UDP, TCP and frames, with and without mark; every kind is sent in each round."""
    flood_kinds = {(kind.role, kind.how, kind.family) for kind in field.kinds}
    assert {
        (role, how, family) for role in (PLAIN, MARKED) for how in ("udp", "tcp") for family in at.FAMILIES
    } <= flood_kinds
    change = field.around("nothing")
    each = [taken + refused for taken, refused in zip(change.during.taken, change.during.refused, strict=True)]
    assert min(each) / GLIMPSE > 100, "a window of a moment needs more packets than that each second"
    arrived = [sum(counts) for counts in zip(*change.seen.values(), strict=True)]
    assert arrived == list(change.sent.taken), "without a policy, each packet that was taken is on one wire"
    assert field.lost_frames() == 0
