"""Commands in this process, as `main` runs them."""

import contextlib
import gc
import io
import signal
import sys
from unittest import mock

from nftpolicy.cli import main


def run_here(*arguments):
    """Return exit status, standard output and standard error of a command."""
    output, errors = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", ["nftpolicy", *map(str, arguments)]),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            main.main()
    except SystemExit as end:
        return end.code, output.getvalue(), errors.getvalue()
    finally:
        signal.signal(signal.SIGTERM, handler)
        gc.enable()
    raise AssertionError("main returned")
