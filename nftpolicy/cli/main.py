# SPDX-License-Identifier: BSD-2-Clause
"""Entry point: finds the command, imports only its module, and turns errors into exit codes."""

from __future__ import annotations

import gc
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from keyword import iskeyword
from typing import Any

from .. import __version__
from .plain_output import OutputLost, flush_streams, plain_line, plain_streams

# Each command is a module of this package; a Python keyword has "_" appended. A module with `group`
# has subcommands. Only the module of the given command is imported, so that start-up is quick.
COMMANDS = (
    "init", "check", "diff", "compile", "verify", "snapshot", "apply", "confirm", "rollback", "history", "recover",
    "status", "wait", "explain", "guard", "netconfig", "install", "uninstall", "units", "watch", "probe",
    "release", "resolver", "run", "demo", "completion", "import",
)  # fmt: skip
_OLD_NAMES = {"settings": "netconfig"}  # accepted until 0.3, not listed by --help
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIGTERM_EXIT = 128 + signal.SIGTERM
_SIGINT_EXIT = 128 + signal.SIGINT


def main() -> None:
    """Run the command line of this process."""
    plain_streams()
    # An exception unwinds the stack: context managers undo a change and remove temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_SIGTERM_EXIT))
    # Objects of a short command live until its end; collecting them would cost a tenth of its time.
    # Long-running commands turn the garbage collector on again.
    gc.disable()
    status = _status_of(_run)
    try:
        flush_streams()
    except OutputLost as lost:
        status = _status_of_lost_output(lost)
    sys.exit(status)


def _run() -> int:
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"nftpolicy {__version__}")
        return 0
    # Messages name files and values: a line feed in one would begin a line of its own.
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # not those of a program to run
    for argument in own:
        if _CONTROL.search(argument):
            from .common import EXIT_BAD_INPUT

            message = f"{argument!r} has a control character, which no file and no value here can have"
            return _fail(message, EXIT_BAD_INPUT)
    # typer would end the process with status 1 for an abort, and print usage errors around plain_streams.
    status = application(arguments)()
    return status if isinstance(status, int) else 0


def _status_of(operation: Callable[[], int]) -> int:
    """Return the exit status of an operation, after the message of its error."""
    try:
        return operation()
    except OutputLost as lost:
        return _status_of_lost_output(lost)
    except KeyboardInterrupt:
        return _fail("interrupted", _SIGINT_EXIT)
    except (SystemExit, Exception) as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # typer 0.7 makes an Abort of it
            return _SIGINT_EXIT
        return _status_of_error(error)


def _status_of_error(error: SystemExit | Exception) -> int:
    # Imported for an error only: `--version` needs none of them.
    from ..generated_text import Unwritable
    from ..kernel.errors import Unavailable
    from .common import EXIT_BAD_INPUT, EXIT_DEFECT, EXIT_UNAVAILABLE, Failure

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_DEFECT
    if isinstance(error, Failure):
        return _fail(error, error.status)
    if isinstance(error, Unavailable):
        return _fail(error, EXIT_UNAVAILABLE)
    if isinstance(error, Unwritable):
        return _fail(error, EXIT_BAD_INPUT)
    if hasattr(error, "format_message"):  # of the command line; typer may bring a click of its own
        return _report_usage(error)
    return _report_defect(error, EXIT_DEFECT)


def _fail(message: object, status: int) -> int:
    with suppress(OutputLost):
        print(f"nftpolicy: {message}", file=sys.stderr)
    return status


def _status_of_lost_output(lost: OutputLost) -> int:
    from .common import EXIT_FAILED, EXIT_OUTPUT_CLOSED

    return EXIT_OUTPUT_CLOSED if lost.is_closed else _fail(lost, EXIT_FAILED)  # closed: as after "| head"


def _report_usage(error: Any) -> int:
    """Print an error of the command line on one line, or the help of a command without arguments."""
    from .usage_errors import describe_usage_error

    if type(error).__name__ == "NoArgsIsHelpError":
        with suppress(OutputLost):
            print(error.format_message(), file=sys.stderr)
        return int(error.exit_code)
    return _fail(plain_line(describe_usage_error(error, COMMANDS)), int(error.exit_code))


def _report_defect(error: Exception, status: int) -> int:
    """Print an exception that no command expects, on one line: 1 means refuted, and nothing else."""
    import os
    import traceback

    if os.environ.get("NFTPOLICY_TRACEBACK"):
        with suppress(OutputLost):
            traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(f"{type(error).__name__} {error}".split())
    place = f"{frame.filename}:{frame.lineno}"
    defect = "this is a defect: report it with the output of NFTPOLICY_TRACEBACK=1"
    return _fail(f"internal error: {reason} ({place}); {defect}", status)


def application(arguments: list[str]) -> Callable[[], object]:
    """Return the typer application with the command in `arguments`, or with all commands."""
    app = _typer_application(arguments)

    def run_application() -> object:
        return app(prog_name="nftpolicy", standalone_mode=False)

    return run_application


def command_tree() -> Any:
    """Return the group of all commands, as an object of click."""
    import typer

    return typer.main.get_command(_typer_application([]))


def _typer_application(arguments: list[str]) -> Any:
    import typer

    from .options import print_version
    from .parameters import GroupedCommand, OrderedGroup, help_settings, readable_command

    class AllCommands(OrderedGroup):
        names = COMMANDS

    app = typer.Typer(
        name="nftpolicy",
        cls=AllCommands,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings=help_settings(),
    )

    app.callback()(readable_command(print_version))
    known = [*COMMANDS, *_OLD_NAMES]
    named = [word for word in arguments[:1] if word in known]
    for command in named or known:
        name = _OLD_NAMES.get(command, command)
        module = import_module(f".{name}{'_' if iskeyword(name) else ''}", __package__)
        if hasattr(module, "group"):
            app.add_typer(module.group, name=command)
        else:
            app.command(command, cls=GroupedCommand, hidden=command in _OLD_NAMES)(readable_command(module.command))
    return app
