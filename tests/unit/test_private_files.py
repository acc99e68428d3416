"""Files of the state directory: modes whatever the umask; links, pipes and files of other users are refused."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.file_lock import exclusive_lock, is_locked
from nftpolicy.runtime.private_files import make_directory, open_private, read_private


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    previous = os.umask(0)
    yield
    os.umask(previous)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_directory_and_parents_are_private(tmp_path: Path) -> None:
    make_directory(tmp_path / "a/b/c")
    assert [mode(tmp_path / path) for path in ("a", "a/b", "a/b/c")] == [0o700] * 3


def test_existing_directory_and_file_become_private(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o777)
    file = tmp_path / "state/policy.toml"
    file.write_bytes(b"text")
    file.chmod(0o666)
    make_directory(tmp_path / "state")
    assert read_private(file) == b"text"
    assert (mode(file.parent), mode(file)) == (0o700, 0o600)


def test_everything_in_the_state_directory_is_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "netns-1")
    with state.lock(), exclusive_lock(state.directory / "other"):
        state.save_policy("name", b"text")
        state.save_sysctls({"net/ipv4/ip_forward": "0"})
        assert is_locked(state.directory / "lock")
    assert {path.name: mode(path) for path in state.directory.iterdir()} == dict.fromkeys(
        ("lock", "other", "name", "policy.toml", "sysctls.json"), 0o600
    )
    assert mode(state.directory) == 0o700


def link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"")
    path.symlink_to(target)


PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "link": (link, "symbolic links"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "directory": (Path.mkdir, "irectory"),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREAT])
def test_link_pipe_and_directory_are_refused(tmp_path: Path, kind: str, flags: int) -> None:
    plant, message = PLANTED[kind]
    plant(tmp_path / "file")
    with pytest.raises(OSError) as raised:
        open_private(tmp_path / "file", flags)
    assert message in str(raised.value) or "No such device" in str(raised.value)  # ENXIO: a pipe without a reader


def test_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "state").symlink_to("elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        make_directory(tmp_path / "state")
    assert mode(tmp_path / "elsewhere") == 0o755


def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o644)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    for refused in (lambda: read_private(tmp_path / "file"), lambda: make_directory(tmp_path)):
        with pytest.raises(PermissionError, match=f"belongs to user {own}, not to user {own + 1}: remove it"):
            refused()
    assert mode(tmp_path / "file") == 0o644
