"""What commands do with bad input: one line on stderr, status 2, nothing on stdout, and never a traceback."""

import inspect
import os
import subprocess
import sys
from importlib import import_module
from keyword import iskeyword

import pytest
import typer

from nftpolicy.cli.main import COMMANDS
from tests.unit.test_policy_errors import GOOD

MAIN = [sys.executable, "-c", "from nftpolicy.cli.main import main; main()"]


def run(*arguments, given=b""):
    return subprocess.run([*MAIN, *map(str, arguments)], input=given, capture_output=True, timeout=30, check=False)


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
def test_bad_policy_is_one_line_with_status_2(file, command, bad):
    path = file(BAD[bad])
    done = run(command[0], path, *command[1:])
    assert (done.returncode, done.stdout) == (2, b"")
    said = done.stderr.decode()
    assert said.startswith(f"nftpolicy: {path}")
    assert said.endswith("\n") and said.count("\n") == 1
    assert "Traceback" not in said


def test_error_in_standard_input_names_standard_input():
    done = run("check", "-", given=b"a = ")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"nftpolicy: standard input:1: not TOML: Invalid value\n"


@pytest.mark.parametrize("what", ["absent", "directory"])
def test_unreadable_policy_file_is_status_2(tmp_path, what):
    done = run("check", tmp_path if what == "directory" else tmp_path / "absent.toml")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"cannot be read" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["compile"], ["check", "a", "b"], ["compile", "x", "--to", "pdf"], ["chekc"], ["-x"]]
)
def test_bad_command_line_is_status_2(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert done.stderr


@pytest.mark.parametrize("ports", ["br-wan", "br-wan=", "=eth1=", "x=y; flush ruleset", "br-wan=a/b", "nobridge=eth9"])
def test_bad_ports_option_is_status_2(file, ports):
    done = run("compile", file(GOOD), "--to", "nft", "--ports", ports)
    assert b"Traceback" not in done.stderr
    if done.returncode:
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    else:
        assert b"flush" not in done.stdout


@pytest.mark.parametrize("form", ["json", "nft", "ip4", "ip6", "summary"])
def test_compile_writes_every_form(file, form):
    done = run("compile", file(GOOD), "--to", form)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\n")


def test_check_of_good_policy_is_one_line(file):
    done = run("check", file(GOOD))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b": p: good: 2 uplinks, 3 services, proved\n")


# --- help -----------------------------------------------------------------------------------------

WIDTH = 80  # columns of a terminal
MOST = 60  # characters of a command's first line, so that --help does not cut it


def modules():
    """Name and module of each command; a group counts as its commands."""
    for name in COMMANDS:
        yield name, import_module(f"nftpolicy.cli.{name}{'_' if iskeyword(name) else ''}")


def help_of(*command):
    done = subprocess.run(
        [*MAIN, *command, "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "COLUMNS": str(WIDTH)},
    )
    return done.stdout


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
        found = [one.callback for one in module.group.registered_commands]
        first_lines = [module.group.info.help, *(inspect.getdoc(one).splitlines()[0] for one in found)]
    else:
        first_lines = [inspect.getdoc(module.command).splitlines()[0]]
    for line in first_lines:
        assert len(line) <= MOST, line
        assert line.endswith("."), line


@pytest.mark.parametrize("name", COMMANDS)
def test_option_help_is_not_truncated(name):
    module = dict(modules())[name]
    app = typer.Typer(add_completion=False)
    if hasattr(module, "group"):
        commands = typer.main.get_group(module.group).commands.values()
    else:
        app.command(name)(module.command)
        commands = [typer.main.get_command(app)]
    for command in commands:
        words = (name, command.name) if hasattr(module, "group") else (name,)
        shown = " ".join(help_of(*words).split())
        for one in command.params:
            if one.name == "help" or getattr(one, "hidden", False):
                continue
            assert one.help and one.help.endswith((".", "..")), one.name
            assert " ".join(one.help.split()) in shown, one.name


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
    one, other = run(*old), run(*new)
    assert (one.returncode, one.stdout) == (0, other.stdout)
    assert one.stdout
    assert "settings" not in help_of().partition("Commands:\n")[2]
    assert "--despite-others" not in help_of("apply")
