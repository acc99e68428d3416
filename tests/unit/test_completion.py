"""The completion scripts, and the form of commands that an earlier typer reads."""

import inspect
import subprocess
from pathlib import Path
from typing import Union, get_args, get_origin

import pytest
import typer

from nftpolicy.cli import apply, compile, parameters
from nftpolicy.cli.completion import Shell, completion_script
from nftpolicy.cli.main import COMMANDS, command_tree

OPTIONS = {
    option
    for command in command_tree().commands.values()
    for parameter in command.params
    if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False)
    for option in parameter.opts
}


@pytest.mark.parametrize("shell", Shell)
def test_script_has_all_commands_and_options(shell):
    script = completion_script(shell)
    assert [name for name in COMMANDS if name not in script] == []
    # fish(1) names them without the hyphens.
    listed = {option.lstrip("-") for option in OPTIONS} if shell is Shell.FISH else OPTIONS
    assert [option for option in sorted(listed) if option not in script] == []
    assert "settings" not in script, "an old name"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["che"], ["check"]),
        (["apply", "--c"], ["--confirm"]),
        (["compile", "--to", "openw"], ["openwrt", "openwisp"]),
        (["import", ""], ["openwrt"]),
        (["check", "nftp"], ["nftpolicy"]),
    ],
)
def test_bash_completes(words, offered, tmp_path):
    (tmp_path / "nftpolicy").touch()
    script = f"""{completion_script(Shell.BASH)}
        COMP_WORDS=(nftpolicy "$@") COMP_CWORD=$#
        _nftpolicy
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_early_typer_reads_defaults_of_a_command():
    command = parameters._with_defaults(apply.command)
    read = inspect.signature(command).parameters
    assert {type(one.default) for one in read.values()} == {typer.models.OptionInfo, typer.models.ArgumentInfo}
    assert get_origin(read["file"].annotation) is Union
    assert get_args(read["file"].annotation) == (Path, type(None))
    assert read["confirm"].default.default == inspect.signature(apply.command).parameters["confirm"].default


def test_early_typer_requires_a_file_to_compile():
    read = inspect.signature(parameters._with_defaults(compile.command)).parameters["file"]
    assert read.default.default is ...
