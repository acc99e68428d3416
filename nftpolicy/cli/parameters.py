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
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
import typer.core

_READS_ANNOTATIONS = tuple(int(part) for part in typer.__version__.split(".")[:2]) >= (0, 9)
if not _READS_ANNOTATIONS:
    typer.core.rich = None  # type: ignore[attr-defined]  # boxes that cut lines; later versions leave them out for rich_markup_mode=None
_NO_DEFAULT = () if _READS_ANNOTATIONS else (...,)  # the place of the default in the calls of an earlier typer


class OrderedGroup(typer.core.TyperGroup):
    """Commands in the order in which they were added; an earlier typer sorts their names."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


def option(*flags: str, **settings: Any) -> Any:
    """Return the annotation of an option; the arguments are those of `typer.Option` without a default."""
    return typer.Option(*_NO_DEFAULT, *flags, **settings)


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
