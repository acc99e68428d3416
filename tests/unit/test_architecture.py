"""Layers, size and imports: what may import what, and how large a file may be. import-linter holds the layers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.core

from tests.all_items import check_all
from tests.lab.limits import limit
from tests.unit.test_policy_errors import GOOD_ELSEWHERE

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "nftpolicy").rglob("*.py"))

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not here")

sys.meta_path.insert(0, Blocked())
sys.platform = {platform!r}
sys.argv = ["nftpolicy", *{arguments!r}]
from nftpolicy.cli.main import main
main()
"""
TRACED = """
import json, sys
sys.argv = ["nftpolicy", *{arguments!r}]
from nftpolicy.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})), file=sys.stderr)
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=limit(30), cwd=ROOT, check=False
    )


@pytest.fixture
def policy(tmp_path):
    (tmp_path / "policy.toml").write_text(GOOD_ELSEWHERE)
    return str(tmp_path / "policy.toml")


@pytest.mark.parametrize("platform", ["linux", "darwin", "freebsd14"])
@pytest.mark.parametrize("arguments", [["check"], ["compile", "--to", "nft"], ["compile", "--to", "json"]])
def test_check_and_compile_need_no_linux_modules(policy, platform, arguments):
    blocked = {"nftables", "pyroute2", "fcntl", "pwd", "grp"}
    arguments = [arguments[0], policy, *arguments[1:]]
    result = run(BLOCKED.format(blocked=blocked, platform=platform, arguments=arguments))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_apply_without_bindings_names_the_missing_modules(policy):
    result = run(BLOCKED.format(blocked={"nftables", "pyroute2"}, platform="linux", arguments=["apply", policy]))
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr.startswith("nftpolicy: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["check"], ["compile"]])
def test_quick_commands_import_no_slow_module(policy, arguments):
    result = run(TRACED.format(arguments=[*arguments, policy]))
    imported = set(json.loads(result.stderr))
    slow = {"pyroute2", "nftables", "rich", "pydantic", "hypothesis"}
    if not hasattr(typer.core, "HAS_RICH"):
        slow -= {"rich"}  # typer 0.7 imports it itself
    assert imported & slow == set()
    assert "nftpolicy" in imported


@check_all(FILES, lambda file: str(file.relative_to(ROOT)))
def test_source_file_is_short_with_licence_and_docstring(file):
    lines = file.read_text().splitlines()
    assert len(lines) <= 400
    assert lines[0] == "# SPDX-License-Identifier: BSD-2-Clause"
    assert lines[1].startswith('"""')
