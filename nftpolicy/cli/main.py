# SPDX-License-Identifier: BSD-2-Clause
"""The entry point: finds the command, imports that one alone, and turns errors into exit codes."""

from __future__ import annotations

import gc
import signal
import sys
from importlib import import_module
from keyword import iskeyword

from .. import __version__

# Each is a module here, with _ behind a keyword of Python; one with a `group` has commands of its own. Only the
# one that is asked for is imported, so that start-up is quick.
COMMANDS = (
    "check", "compile", "verify", "apply", "confirm", "rollback", "history", "recover", "status", "wait", "explain",
    "guard", "settings", "install", "uninstall", "units", "watch", "probe", "release", "resolver", "run", "demo",
    "import",
)  # fmt: skip


def main() -> None:
    """Run the command line of this process."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"nftpolicy {__version__}")
        return
    # So that whatever runs is ended in order: what was begun is taken back, what was made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What a short command makes stays until its end; looking for garbage in it would cost a tenth of
    # the time. Commands that stay turn it on again.
    gc.disable()
    from .common import NOT_HERE, Failure

    try:
        application(arguments)()
    except Failure as failure:
        print(f"nftpolicy: {failure}", file=sys.stderr)
        sys.exit(failure.status)
    except Exception as error:
        from ..kernel.interface import Unavailable

        if not isinstance(error, Unavailable):
            raise
        print(f"nftpolicy: {error}", file=sys.stderr)
        sys.exit(NOT_HERE)
    except KeyboardInterrupt:
        print("nftpolicy: interrupted", file=sys.stderr)
        sys.exit(130)


def application(arguments: list[str]):  # type: ignore[no-untyped-def]
    """The typer application, with the command that `arguments` name or with all of them."""
    import typer

    app = typer.Typer(
        name="nftpolicy",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    ) -> None:
        """Who may use the uplink: compiled to nftables, ip rules and routes, and held there."""
        if version:
            print(f"nftpolicy {__version__}")
            raise typer.Exit

    asked = [word for word in arguments[:1] if word in COMMANDS]
    for command in asked or COMMANDS:
        module = import_module(f".{command}{'_' if iskeyword(command) else ''}", __package__)
        if hasattr(module, "group"):
            app.add_typer(module.group, name=command)
        else:
            app.command(command)(module.command)
    return lambda: app(prog_name="nftpolicy")
