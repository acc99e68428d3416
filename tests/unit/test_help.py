"""Help of every command: in groups, not cut, within the width of the terminal."""

import re

import pytest

from nftpolicy.cli.main import COMMANDS
from tests.unit.command_line import run_here

NAMES = ["", *COMMANDS, "import openwrt", "history show", "history diff"]


def help_lines(name, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, output, errors = run_here(*name.split(), "--help")
    assert (status, errors) == (0, "")
    return output.splitlines()


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("name", NAMES)
def test_help_fits_the_terminal_and_is_not_cut(name, columns, monkeypatch):
    lines = help_lines(name, monkeypatch, columns)
    # The values of an option are one word.
    assert not [
        line for line in lines if len(line) >= columns and not re.match(r"\s+--\w+ [<\[][a-z0-9|-]+[>\]]$", line)
    ]
    assert not [line for line in lines if line.endswith("...") and "]..." not in line and "program..." not in line]


def test_narrow_help_has_texts_below_the_options(monkeypatch):
    lines = help_lines("verify", monkeypatch, 40)
    assert lines[lines.index("  --live") + 1] == "        Verify the state of this"


def test_options_are_in_groups(monkeypatch):
    lines = help_lines("explain", monkeypatch, 80)
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Arguments:", "Packet:", "Socket that sends it:", "State:", "Options:"]
    options = [line.split()[0] for line in lines[lines.index("State:") :] if line.startswith("  --")]
    assert options == ["--compiled", "--ruleset", "--chain-device", "--rules", "--routes", "--json"]
