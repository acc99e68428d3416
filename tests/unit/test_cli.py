"""Commands with bad input: one line on stderr, status 2, empty stdout, no traceback."""

import inspect
import os
from importlib import import_module
from keyword import iskeyword

import pytest

from nftpolicy.cli.main import COMMANDS, command_tree
from tests.forked_program import run_program
from tests.unit.test_policy_errors import GOOD, GOOD_ELSEWHERE


def run(*arguments, stdin=b""):
    return run_program(*arguments, given=stdin)


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "policy.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


BAD = {
    "empty": b"",
    "type": GOOD.replace("table = 7", "table = []"),
    "unknown key": GOOD.replace("table = 7", "table = 7\ntabel = 1"),
    "not TOML": b"a = ",
    "not UTF-8": b"\xff\xfe",
    "NUL": b"\x00",
    "a line feed in a key": '"a\\nb" = 1',
    "a line feed in a value": 'name = "a\\nb"\n',
    "deep": b"a = " + b"[" * 50_000,
    "too many digits": b"a = " + b"1" * 5000,
    "no such group": GOOD.replace("group = 800", 'group = "no-such-group"'),
    "NUL in a group": GOOD.replace("group = 800", 'group = "a\\u0000b"'),
    "a line feed in a group": GOOD.replace("group = 800", 'group = "a\\nb"'),
    "digits of another script": GOOD.replace("group = 800", 'group = "\u00b2"'),
}


@pytest.mark.parametrize("command", [["check"], ["compile", "--to", "nft"], ["verify"]])
@pytest.mark.parametrize("bad", BAD)
def test_bad_policy_is_named_with_status_2(file, command, bad):
    path = file(BAD[bad])
    result = run(command[0], path, *command[1:])
    assert (result.returncode, result.stdout) == (2, b"")
    message = result.stderr.decode()
    assert message.startswith(f"nftpolicy: {path}")
    assert message.endswith("\n") and "Traceback" not in message and "base 10" not in message
    assert all(line.startswith((f"nftpolicy: {path}:", "    ")) for line in message.splitlines())


def test_error_in_standard_input_names_standard_input():
    result = run("check", "-", stdin=b"a = ")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == (
        b"nftpolicy: standard input:1:5: not TOML: the value is missing; expected a value: a string in quotes, "
        b"a number, true, false, a list in [ ] or a table in { }\n    a = \n        ^\n"
    )


@pytest.mark.parametrize("kind", ["absent", "directory"])
def test_unreadable_policy_file_is_status_2(tmp_path, kind):
    result = run("check", tmp_path if kind == "directory" else tmp_path / "absent.toml")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.count(b"\n") == 1
    assert b"cannot be read" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["compile"], ["check", "a", "b"], ["compile", "x", "--to", "pdf"], ["chekc"], ["-x"]]
)
def test_bad_command_line_is_status_2(arguments):
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"Traceback" not in result.stderr
    assert result.stderr


@pytest.mark.parametrize("ports", ["br-wan", "br-wan=", "=eth1=", "x=y; flush ruleset", "br-wan=a/b", "nobridge=eth9"])
def test_bad_ports_option_is_status_2(file, ports):
    result = run("compile", file(GOOD), "--to", "nft", "--ports", ports)
    assert b"Traceback" not in result.stderr
    if result.returncode:
        assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1)
    else:
        assert b"flush" not in result.stdout


@pytest.mark.parametrize("form", ["json", "nft", "ip4", "ip6", "summary"])
def test_compile_writes_every_form(file, form):
    result = run("compile", file(GOOD), "--to", form)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.endswith(b"\n")


def test_check_of_good_policy_is_one_line(file):
    result = run("check", file(GOOD_ELSEWHERE))
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.endswith(b": p: good: 2 uplinks, 3 services, proved\n")


# --- help -----------------------------------------------------------------------------------------

WIDTH = 80  # columns of a terminal
MOST = 60  # characters of a command's first line, so that --help does not cut it


def modules():
    """Yield the name and the module of each command. A group counts as one command."""
    for name in COMMANDS:
        yield name, import_module(f"nftpolicy.cli.{name}{'_' if iskeyword(name) else ''}")


def help_of(*command):
    result = run_program(*command, "--help", env={**os.environ, "COLUMNS": str(WIDTH)})
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout.decode()


@pytest.mark.parametrize("command", [(), ("import",)], ids=["nftpolicy", "import"])
def test_help_lists_each_command_with_its_first_line(command):
    listed = help_of(*command).partition("Commands:\n")[2]
    assert listed and "..." not in listed
    if not command:
        lines = dict(line.split(maxsplit=1) for line in listed.splitlines())
        assert list(lines) == list(COMMANDS)
        for name, module in modules():
            if hasattr(module, "command"):
                assert lines[name] == inspect.getdoc(module.command).splitlines()[0], name


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_has_a_short_first_line(name):
    module = dict(modules())[name]
    if hasattr(module, "group"):
        found = [old_run.callback for old_run in module.group.registered_commands]
        first_lines = [module.group.info.help, *(inspect.getdoc(old_run).splitlines()[0] for old_run in found)]
    else:
        first_lines = [inspect.getdoc(module.command).splitlines()[0]]
    for line in first_lines:
        assert len(line) <= MOST, line
        assert line.endswith("."), line


@pytest.mark.parametrize("name", COMMANDS)
def test_option_help_is_not_truncated(name):
    listed = command_tree().commands[name]
    commands = list(getattr(listed, "commands", {}).values()) or [listed]
    for command in commands:
        words = (name,) if command is listed else (name, command.name)
        shown = " ".join(help_of(*words).split())
        for old_run in command.params:
            if old_run.name == "help" or getattr(old_run, "hidden", False):
                continue
            assert old_run.help and old_run.help.endswith((".", "..")), old_run.name
            assert " ".join(old_run.help.split()) in shown, old_run.name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["settings", "POLICY", "--for", "networkd"], ["netconfig", "POLICY", "--for", "networkd"]),
        (["apply", "--despite-others", "--help"], ["apply", "--ignore-foreign", "--help"]),
    ],
    ids=["settings", "--despite-others"],
)
def test_former_command_name_works_and_is_not_listed(file, old, new):
    path = str(file(GOOD))
    old, new = ([path if word == "POLICY" else word for word in words] for words in (old, new))
    old_run, other = run(*old), run(*new)
    assert (old_run.returncode, old_run.stdout) == (0, other.stdout)
    assert old_run.stdout
    assert "settings" not in help_of().partition("Commands:\n")[2]
    assert "--despite-others" not in help_of("apply")
