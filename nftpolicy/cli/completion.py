# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy completion SHELL

The scripts name the commands, options and values of this version, so that a shell need not start nftpolicy for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from attrs import frozen

from .parameters import argument

if TYPE_CHECKING:
    from ..generated_text import CheckedText


class Shell(StrEnum):
    """Shell with programmable completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@frozen
class OptionWords:
    """Option of a command: its flags, its help, if it takes a value, and the values if they are a list."""

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    values: tuple[str, ...] = ()


@frozen
class CommandWords:
    """Command: its name with that of its group, the first line of its help, and its options."""

    names: tuple[str, ...]
    help: str
    options: tuple[OptionWords, ...]


def command(
    shell: Annotated[Shell, argument(metavar="SHELL", help="Shell: bash, zsh or fish.", show_default=False)],
) -> None:
    """Print a script for a shell that completes commands."""
    print(completion_script(shell), end="")


def completion_script(shell: Shell) -> str:
    """Return the completion script of a shell, such as for /usr/share/bash-completion/completions/nftpolicy."""
    commands = tuple(_commands())
    return {Shell.BASH: _bash, Shell.ZSH: _zsh, Shell.FISH: _fish}[shell](commands)


def _commands() -> Iterator[CommandWords]:
    """Yield all commands that --help lists."""
    from .main import command_tree

    for name, listed in command_tree().commands.items():
        for names, each in _with_subcommands((name,), listed):
            help_text = (each.help or "").partition("\n")[0]
            options = tuple(_options(each))
            yield CommandWords(names, help_text, options)


def _with_subcommands(names: tuple[str, ...], listed: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if listed.hidden:
        return
    yield names, listed
    for name, each in getattr(listed, "commands", {}).items():
        yield from _with_subcommands((*names, name), each)


def _options(listed: Any) -> Iterator[OptionWords]:
    for parameter in listed.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            values = tuple(getattr(parameter.type, "choices", ()))
            takes_value = not (parameter.is_flag or parameter.count)
            yield OptionWords(tuple(parameter.opts), parameter.help or "", takes_value, tuple(map(str, values)))
    yield OptionWords(("-h", "--help"), "Show this message and exit.", False)


# --- scripts --------------------------------------------------------------------------

_BASH = """\
# bash completion of nftpolicy(1)
_nftpolicy() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "{commands} --help --version" -- "$cur")
        return
    fi
    case "${{COMP_WORDS[1]}} $prev" in
{values}    esac
    case "$cur" in
        -*)
            case "${{COMP_WORDS[1]}}" in
{options}            esac
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur") ;;
        *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    esac
}}
complete -o filenames -F _nftpolicy nftpolicy
"""
_BASH_VALUES = """\
        {previous}) mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$cur"); return ;;
"""
_BASH_OPTIONS = """\
                {name}) words="{words}" ;;
"""


def _bash(commands: tuple[CommandWords, ...]) -> CheckedText:
    from ..generated_text import fill, join, quoted, words

    top = _top_level(commands)
    values = [
        fill(_BASH_VALUES, previous=quoted(f"{name} {flag}"), words=words(option.values))
        for name, _, options in top
        for option in options
        if option.values
        for flag in option.flags
    ]
    values += [
        fill(_BASH_VALUES, previous=quoted(f"{name} {name}"), words=words(subcommands))
        for name, subcommands, _ in top
        if subcommands
    ]
    flags = [
        fill(
            _BASH_OPTIONS,
            name=quoted(name),
            words=join(" ", (quoted(flag) for option in options for flag in option.flags)),
        )
        for name, _, options in top
    ]
    return fill(_BASH, commands=words(name for name, _, _ in top), values=join("", values), options=join("", flags))


def _top_level(commands: tuple[CommandWords, ...]) -> list[tuple[str, tuple[str, ...], tuple[OptionWords, ...]]]:
    """Return the first word of each command, its subcommands, and its options with those of the subcommands."""
    names = dict.fromkeys(each.names[0] for each in commands)
    return [
        (
            name,
            tuple(each.names[1] for each in commands if each.names[0] == name and len(each.names) > 1),
            tuple(dict.fromkeys(option for each in commands if each.names[0] == name for option in each.options)),
        )
        for name in names
    ]


_ZSH = """\
#compdef nftpolicy
_nftpolicy() {{
    local -a commands
    commands=(
{commands}    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    case $words[2] in
{options}    esac
}}
_nftpolicy "$@"
"""
_ZSH_COMMAND = """\
        {described}
"""
_ZSH_OPTIONS = """\
        {name}) _arguments {specs} '*:file:_files' ;;
"""


def _zsh(commands: tuple[CommandWords, ...]) -> CheckedText:
    from ..generated_text import fill, join, quoted

    first = [each for each in commands if len(each.names) == 1]
    described = [fill(_ZSH_COMMAND, described=quoted(f"{each.names[0]}:{each.help}")) for each in first]
    options = [
        fill(
            _ZSH_OPTIONS,
            name=quoted(name),
            specs=join(" ", (quoted(_zsh_spec(flag, option)) for option in options for flag in option.flags)),
        )
        for name, _, options in _top_level(commands)
    ]
    return fill(_ZSH, commands=join("", described), options=join("", options))


def _zsh_spec(flag: str, option: OptionWords) -> str:
    """Return an option in the form of _arguments, where brackets and colons have a meaning."""
    text = option.help
    for special in "\\[]:":
        text = text.replace(special, f"\\{special}")
    action = f"({' '.join(option.values)})" if option.values else "_files"
    return f"*{flag}[{text}]" + (f":value:{action}" if option.takes_value else "")


_FISH_COMMAND = """\
complete -c nftpolicy -f -n __fish_use_subcommand -a {name} -d {help}
"""
_FISH_SUBCOMMAND = """\
complete -c nftpolicy -f -n '__fish_seen_subcommand_from {name}' -a {subcommand}
"""
_FISH_OPTION = """\
complete -c nftpolicy -n '__fish_seen_subcommand_from {name}' {flags} -d {help}
"""


def _fish(commands: tuple[CommandWords, ...]) -> CheckedText:
    from ..generated_text import fill, join, quoted, word

    lines = [
        fill(_FISH_COMMAND, name=word(each.names[0]), help=quoted(each.help))
        for each in commands
        if len(each.names) == 1
    ]
    for name, subcommands, options in _top_level(commands):
        lines += [fill(_FISH_SUBCOMMAND, name=word(name), subcommand=word(each)) for each in subcommands]
        for option in options:
            flags = [part for flag in option.flags for part in _fish_flag(flag)]
            if option.takes_value:
                flags += ["-x", "-a", " ".join(option.values)] if option.values else ["-r"]
            described = {"flags": join(" ", map(quoted, flags)), "help": quoted(option.help)}
            lines.append(fill(_FISH_OPTION, name=word(name), **described))
    return join("", lines)


def _fish_flag(flag: str) -> tuple[str, str]:
    return ("-l", flag[2:]) if flag.startswith("--") else ("-s", flag[1:])
