# SPDX-License-Identifier: BSD-2-Clause
"""Arguments and options as annotations, for every typer that a supported distribution has.

typer reads annotations since 0.9. Debian 12 has 0.7, which reads them from the defaults of a function, and knows
optional values as `Optional` only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from functools import wraps
from shutil import get_terminal_size
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
import typer.core

_READS_ANNOTATIONS = tuple(int(part) for part in typer.__version__.split(".")[:2]) >= (0, 9)
if not _READS_ANNOTATIONS:
    typer.core.rich = None  # type: ignore[attr-defined]  # boxes that cut lines; later versions leave them out for rich_markup_mode=None
_NO_DEFAULT = () if _READS_ANNOTATIONS else (...,)  # the place of the default in the calls of an earlier typer


HelpFormatter: Any = typer.Context.formatter_class  # of the click that this typer uses
_WHOLE_LINE = 200  # characters of a command's first line
_NARROW, _LEAST_COLUMNS = 52, 24  # columns of a terminal
_TERM_COLUMNS = 4  # an option is longer, so its text begins on the next line


class NarrowFormatter(HelpFormatter):  # type: ignore[misc]
    """Formatter of help: on a narrow terminal, the text of an option is below it."""

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        """Write a list of terms and texts."""
        super().write_dl(rows, _TERM_COLUMNS if self.width < _NARROW else col_max, col_spacing)


class _UncutHelp:
    """Help of a command or group on a terminal of any width."""

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        ctx.formatter_class = NarrowFormatter
        return str(super().get_help(ctx))  # type: ignore[misc]

    def get_short_help_str(self, limit: int = _WHOLE_LINE) -> str:
        """Return the first line, which the list of commands would cut to the width of the terminal."""
        return str(super().get_short_help_str(_WHOLE_LINE))  # type: ignore[misc]


class OrderedGroup(_UncutHelp, typer.core.TyperGroup):
    """Commands in the order of `names`, then in which they were added; typer sorts names, or lists groups last."""

    names: tuple[str, ...] = ()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return [name for name in dict.fromkeys((*self.names, *self.commands)) if name in self.commands]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command and its arguments; click 8.1 has help for an unknown name without a letter first."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}.")
        return super().resolve_command(ctx, args)


class GroupedCommand(_UncutHelp, typer.core.TyperCommand):
    """Command whose help has the options in groups: their `rich_help_panel`, which plain help leaves out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; the name of a file is not empty, which would be the current directory."""
        remaining = super().parse_args(ctx, args)
        for parameter in self.get_params(ctx):
            if parameter.name and ctx.params.get(parameter.name) == "" and parameter.type.name == "path":
                raise typer.BadParameter("expected the name of a file, got ''", ctx=ctx, param=parameter)
        return list(remaining)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the groups in the order of their options, and the other options."""
        sections: dict[str, list[Any]] = {"Arguments": []}
        ungrouped: list[Any] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            group = getattr(parameter, "rich_help_panel", None)
            if parameter.param_type_name == "argument":
                group = "Arguments"
            if record:
                (sections.setdefault(group, []) if group else ungrouped).append(record)
        for title, records in (*sections.items(), ("Options", ungrouped)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def help_settings() -> dict[str, Any]:
    """Return the settings of help; the formatter's own width is never below 50 columns."""
    columns = get_terminal_size().columns
    narrow = {"terminal_width": max(columns - 1, _LEAST_COLUMNS)} if columns < _NARROW else {}
    return {"help_option_names": ["-h", "--help"], **narrow}


def option(*flags: str, group: str | None = None, **settings: Any) -> Any:
    """Return the annotation of an option, in a group of the help.

    The other arguments are those of `typer.Option` without a default.
    """
    return typer.Option(*_NO_DEFAULT, *flags, rich_help_panel=group, **settings)


def argument(**settings: Any) -> Any:
    """Return the annotation of an argument; the arguments are those of `typer.Argument` without a default."""
    return typer.Argument(*_NO_DEFAULT, **settings)


def require_number(value: float) -> float:
    """Return the value of an option; nan is in no range, and not out of one either."""
    if value != value:
        raise typer.BadParameter("nan is not a valid float.")
    return value


def readable_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with annotated parameters in the form that the installed typer reads."""
    return function if _READS_ANNOTATIONS else _with_defaults(function)


def _with_defaults(function: Callable[..., Any]) -> Callable[..., Any]:
    hints = get_type_hints(function, include_extras=True)
    types: dict[str, object] = {}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        default = parameter.default
        if get_origin(hint) is Annotated:
            hint, declared = get_args(hint)
            declared = copy(declared)
            declared.default = ... if default is inspect.Parameter.empty else default
            default = declared
        types[name] = _without_union_type(hint)
        parameters.append(parameter.replace(default=default, annotation=types[name]))

    @wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    command.__annotations__ = types
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    del command.__wrapped__
    return command


def _without_union_type(hint: Any) -> Any:
    return Union[get_args(hint)] if get_origin(hint) is UnionType else hint  # noqa: UP007 - of any types
