# SPDX-License-Identifier: BSD-2-Clause
"""Entry point: finds the command, imports only its module, and turns errors into exit codes."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from keyword import iskeyword

from .. import __version__
from .plain_output import plain_streams

# Each command is a module of this package; a Python keyword has "_" appended. A module with `group`
# has subcommands. Only the module of the given command is imported, so that start-up is quick.
COMMANDS = (
    "check", "compile", "verify", "snapshot", "apply", "confirm", "rollback", "history", "recover", "status",
    "wait", "explain", "guard", "netconfig", "install", "uninstall", "units", "watch", "probe",
    "release", "resolver", "run", "demo", "import",
)  # fmt: skip
_OLD_NAMES = {"settings": "netconfig"}  # accepted until 0.3, not listed by --help
_SIGTERM_EXIT = 128 + signal.SIGTERM
_SIGINT_EXIT = 128 + signal.SIGINT


def main() -> None:
    """Run the command line of this process."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"nftpolicy {__version__}")
        return
    plain_streams()
    # An exception unwinds the stack: context managers undo a change and remove temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_SIGTERM_EXIT))
    # Objects of a short command live until its end; collecting them would cost a tenth of its time.
    # Long-running commands turn the garbage collector on again.
    gc.disable()
    from .common import EXIT_BAD_INPUT, EXIT_DEFECT, EXIT_UNAVAILABLE, Failure

    try:
        application(arguments)()
    except Failure as failure:
        print(f"nftpolicy: {failure}", file=sys.stderr)
        sys.exit(failure.status)
    except Exception as error:
        from ..generated_text import Unwritable
        from ..kernel.errors import Unavailable

        if isinstance(error, Unavailable | Unwritable):
            print(f"nftpolicy: {error}", file=sys.stderr)
            sys.exit(EXIT_UNAVAILABLE if isinstance(error, Unavailable) else EXIT_BAD_INPUT)
        _report_defect(error)
        sys.exit(EXIT_DEFECT)
    except KeyboardInterrupt:
        print("nftpolicy: interrupted", file=sys.stderr)
        sys.exit(_SIGINT_EXIT)


def _report_defect(error: Exception) -> None:
    """Print an exception that no command expects, on one line: 1 means refuted, and nothing else."""
    import os
    import traceback

    if os.environ.get("NFTPOLICY_TRACEBACK"):
        traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(f"{type(error).__name__} {error}".split())
    print(
        f"nftpolicy: internal error: {reason} ({frame.filename}:{frame.lineno}); this is a defect: report it with the "
        "output of NFTPOLICY_TRACEBACK=1",
        file=sys.stderr,
    )


def application(arguments: list[str]) -> Callable[[], None]:
    """Return the typer application with the command in `arguments`, or with all commands."""
    import typer

    from .options import print_version

    app = typer.Typer(
        name="nftpolicy",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    app.callback()(print_version)
    known = [*COMMANDS, *_OLD_NAMES]
    named = [word for word in arguments[:1] if word in known]
    for command in named or known:
        name = _OLD_NAMES.get(command, command)
        module = import_module(f".{name}{'_' if iskeyword(name) else ''}", __package__)
        if hasattr(module, "group"):
            app.add_typer(module.group, name=command)
        else:
            app.command(command, hidden=command in _OLD_NAMES)(module.command)

    def run_application() -> None:
        app(prog_name="nftpolicy")

    return run_application
