# SPDX-License-Identifier: BSD-2-Clause
"""Files that another user may replace: a pipe does not stop a reader, and a device does not fill its memory."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftpolicy.cli import common
from nftpolicy.runtime import import_openwrt
from nftpolicy.runtime.regular_file import read_regular
from nftpolicy.runtime.resolver import resolv_files
from nftpolicy.runtime.resolver.sources import registry
from nftpolicy.runtime.services import preload, readiness
from tests.lab.limits import limit


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe without a writer; a reader that waits for one is interrupted."""
    path = tmp_path / "file"
    os.mkfifo(path)

    def interrupt(*_: object) -> None:
        raise TimeoutError("the reader waits for a writer")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit(20))
    yield path
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_control_pipe_stops_ordinary_reader(pipe: Path) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(TimeoutError):
        pipe.read_bytes()


def test_lease_that_is_a_pipe_is_reported(pipe: Path) -> None:
    found = registry.read_source(registry.lease_source(str(pipe)), [("eth0", 1)], time.time())
    assert (found.entries, found.error) == ((), f"{pipe}: is not a regular file")


def test_readers_of_foreign_files_do_not_wait_for_pipe(pipe: Path) -> None:
    assert resolv_files._text(pipe) == ""
    assert readiness._has_no_servers(pipe) is False
    assert "is not a regular file" in str(preload.refusal_reason(pipe))
    with pytest.raises(import_openwrt.RouterConfigError, match="not a regular file"):
        import_openwrt._content(pipe)


def test_read_of_regular_file_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_regular(tmp_path / "file", 4) == b"0123"
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(Path("/dev/zero"), 4)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 4)


def test_endless_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_LARGEST_INPUT", 1 << 20)
    with pytest.raises(common.Failure, match="larger than 1 MiB"):
        common.read_input(Path("/dev/zero"))
