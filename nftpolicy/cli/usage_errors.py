# SPDX-License-Identifier: BSD-2-Clause
"""Errors of the command line in the words of this program: the option, what is wrong, what to type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..policy.errors import did_you_mean, near_words

_MAX_WORD = 60  # characters of an argument that a message repeats
_BAD_VALUE = re.compile(r"(?P<value>.*) is not (?:a valid (?P<kind>\w+)(?: range)?|in the range .*)\.\Z", re.DOTALL)
_KINDS = {"int": "a whole number", "integer": "a whole number", "float": "a number"}


def describe_usage_error(error: Any, commands: Iterable[str]) -> str:
    """Return one line for an error of click or typer; `commands` are the commands of this program."""
    context = getattr(error, "ctx", None)
    return _describe(error, commands) + (f"; type '{context.command_path} -h'" if context else "")


def _describe(error: Any, commands: Iterable[str]) -> str:
    context: Any = getattr(error, "ctx", None)
    message = str(error.format_message())
    parameter, option = getattr(error, "param", None), getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        flags = [flag for known in context.command.params for flag in (*known.opts, "--help") if flag[:2] == "--"]
        near = near_words(option.strip("-"), [flag.strip("-") for flag in flags])
        hint = f" (did you mean --{near[0]}?)" if near else ""
        return f"{option[:_MAX_WORD]}: no such option{hint}"
    if option:
        return f"{option}: takes no value" if "does not take" in message else f"{option}: its value is missing"
    if parameter is not None:
        return _describe_parameter(parameter, error, message)
    if unknown := re.match(r"No such command '(.*)'\.", message, re.DOTALL):
        names = getattr(context.command, "commands", None) if context else None
        names = list(commands if context is None or context.parent is None else names or ())
        word = unknown[1]
        return f"there is no command {word[:_MAX_WORD]!r}{did_you_mean(word, names)}"
    if extra := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message, re.DOTALL):
        return f"more arguments than the command takes: {extra[1][:_MAX_WORD]!r}"
    return message.rstrip(".")


def _describe_parameter(parameter: Any, error: Any, message: str) -> str:
    flags = [flag for flag in parameter.opts if flag.startswith("--")]
    name = flags[0] if flags else str(parameter.metavar or parameter.name).strip("[]").upper()
    choices = list(getattr(parameter.type, "choices", ()))
    words = f"one of {', '.join(map(_value_of, choices))}" if choices else ""
    if type(error).__name__ == "MissingParameter":
        return f"{name}: missing{'; give ' + words if words else ''}"
    bad = _BAD_VALUE.match(error.message)
    if bad:
        kind = _KINDS.get(bad["kind"] or _kind_of(parameter.type), "a valid value")
        return f"{name}: expected {kind}{_range_of(parameter.type)}, got {bad['value'][:_MAX_WORD]}"
    if choices and (quoted := re.match(r"'(.*?)' is not one of", error.message, re.DOTALL)):
        near = did_you_mean(quoted[1], list(map(_value_of, choices)))
        return f"{name}: {quoted[1][:_MAX_WORD]!r} is not {words}{near}"
    return f"{name}: {error.message or message}".rstrip(".")


def _value_of(choice: Any) -> str:
    return str(getattr(choice, "value", choice))


def _kind_of(kind: Any) -> str:
    return str(kind.name).partition(" ")[0]


def _range_of(kind: Any) -> str:
    """Return the range of a number of the command line, or ""."""
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    if low is None:
        return ""
    return f" from {low}" + (f" to {high}" if high is not None else " up")
