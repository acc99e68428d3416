"""The program `nftpolicy` in a forked child: a process of its own, without the time that Python needs to start.

The child has the modules of the tests, so a changed module (tests/mutation) is changed there too. What a test has to
know about the start itself, such as the modules that a command imports, it learns from a new interpreter instead.
"""

import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import nftpolicy
from tests.lab.limits import limit


@cache
def _import_all() -> Callable[[], None]:
    """Import all modules once, so that no child has to; return the entry point."""
    for module in pkgutil.walk_packages(nftpolicy.__path__, "nftpolicy."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    main: Callable[[], None] = import_module("nftpolicy.cli.main").main
    return main


def run_program(
    *arguments: object,
    given: bytes = b"",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    prepare: Callable[[], object] = lambda: None,
    seconds: float = 60,
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command with `given` as standard input; `prepare` is called in the child first.

    Raises: subprocess.TimeoutExpired after `limit(seconds)` seconds.
    """
    main, words = _import_all(), ["nftpolicy", *map(str, arguments)]
    with ExitStack() as stack:
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(given)
        streams[0].seek(0)
        child = os.fork()
        if not child:
            _be_program(main, words, streams, cwd, env, prepare)
        status = _wait(child, words, limit(seconds))
        return subprocess.CompletedProcess(words, status, *map(_content, streams[1:]))


def _be_program(
    main: Callable[[], None],
    words: list[str],
    streams: list[BinaryIO],
    cwd: str | Path | None,
    env: Mapping[str, str] | None,
    prepare: Callable[[], object],
) -> NoReturn:
    """Run the program in this process, as its interpreter would begin, and exit with its status."""
    status: Any = 1
    try:
        for number, file in enumerate(streams):
            os.dup2(file.fileno(), number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.argv = words
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd or os.curdir)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        prepare()
        main()
        status = 0
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status if isinstance(status, int) else 1)  # whatever happens, no child goes on with the tests


def _wait(child: int, words: list[str], seconds: float) -> int:
    """Return the status of a child: its exit status, or the negative number of the signal that ended it."""
    end, is_over = os.pidfd_open(child), False
    try:
        is_over = bool(select.select([end], [], [], seconds)[0])
    finally:  # also after Ctrl-C: no child outlives its test
        os.close(end)
        if not is_over:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not is_over:
        raise subprocess.TimeoutExpired(words, seconds)
    return status


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
