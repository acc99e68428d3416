"""An unprivileged user can't lock, read, replace or write the state of nftpolicy, whatever umask root has."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import ENVIRONMENT, POLICY, PROGRAM, RESOLVER_UID, STATE, Guarded, guarded_lab

STRANGER = 12345


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """Node with a policy and a resolver, started with the umask 0."""
    previous = os.umask(0)
    try:
        with guarded_lab(resolver=True) as found:
            yield found
    finally:
        os.umask(previous)


def reachable_by(uid: int, roots: list[str]) -> list[str]:
    """Return what a user can open, lock or change below these directories. Runs inside the node."""
    paths = [*roots, *all_files(roots)]
    os.setresgid(uid, uid, uid)
    os.setgroups([])
    os.setresuid(uid, uid, uid)
    found = []
    for path in paths:
        if os.access(path, os.W_OK):
            found.append(f"writes {path}")
        try:
            descriptor = os.open(path, os.O_RDONLY)  # a directory can be locked too
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(f"locks {path}")
            os.close(descriptor)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("uid", [STRANGER, RESOLVER_UID])
def test_stranger_reaches_nothing_but_the_servers_file(made: Guarded, uid: int) -> None:
    (state,) = made.lab.node.outside(STATE).iterdir()
    servers = f"{STATE}-resolver/{state.name}-wan/servers"
    roots = [STATE, f"{STATE}-resolver"]
    assert {servers, f"{STATE}/{state.name}/lock"} <= set(made.lab.node.call(all_files, roots))
    public = [f"locks {path}" for path in (f"{STATE}-resolver", str(Path(servers).parent), servers)]
    assert sorted(made.lab.node.call(reachable_by, uid, roots)) == public, "nftpolicy locks none of these"
    # The control: the same user locks a file of the same root that it can read.
    made.lab.node.outside("/run/lab/public").mkdir(exist_ok=True)
    made.lab.node.outside("/run/lab/public/lock").touch()
    made.lab.node.outside("/run/lab/public").chmod(0o755)
    control = made.lab.node.call(reachable_by, uid, ["/run/lab/public"])
    assert "locks /run/lab/public/lock" in control


def all_files(roots: list[str]) -> list[str]:
    return [str(path) for root in roots for path in Path(root).rglob("*")]


def test_state_of_an_earlier_version_becomes_private(made: Guarded) -> None:
    (state,) = made.lab.node.outside(STATE).iterdir()
    state.parent.chmod(0o755)
    state.chmod(0o777)
    for path in state.iterdir():
        path.chmod(0o777 if path.is_dir() else 0o666)
    open_to_all = made.lab.node.call(reachable_by, STRANGER, [STATE])
    assert any(path.endswith("/lock") for path in open_to_all), "the control: a stranger can lock it now"
    made.apply()
    made.nftpolicy("status", POLICY)
    assert [path for path in made.lab.node.call(reachable_by, STRANGER, [STATE]) if path != f"locks {STATE}"] == []


def test_file_of_a_stranger_in_the_state_is_refused(made: Guarded) -> None:
    (state,) = made.lab.node.outside(STATE).iterdir()
    policy = state / "policy.toml"
    os.chown(policy, STRANGER, STRANGER)
    try:
        for command in (["apply", POLICY], ["status"], ["release", POLICY]):
            done = made.lab.node.run([PROGRAM, *command], check=False, env=ENVIRONMENT)
            assert done.returncode, (command, done)
            assert done.stderr.count("\n") == 1, done.stderr
            assert f"belongs to user {STRANGER}, not to user 0: remove it" in done.stderr
    finally:
        os.chown(policy, 0, 0)
    made.apply()
