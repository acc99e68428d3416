"""`compile --to openwisp`: netjsonconfig accepts the template, and renders the output of `compile --to openwrt`."""

import copy
import io
import json
import sys
import tarfile

import pytest
from hypothesis import given, settings
from netjsonconfig import OpenWrt
from netjsonconfig.exceptions import ValidationError

from nftpolicy.importers.openwrt.uci_parser import parse_uci
from nftpolicy.integration.openwrt import tree, uci
from nftpolicy.integration.openwrt.openwisp import template
from nftpolicy.policy.load import load
from tests import policy_strategies
from tests.openwrt.test_import import run
from tests.unit.test_policy_errors import GOOD


def options_of(sections):
    return {(one.type, one.name): {key: tuple(value.text for value in values) for key, values in one.options.items()}
            for one in sections}  # fmt: skip


def wanted(policy):
    held = {(one.type, one.name): dict(one.options) for one in uci.network_sections(policy)}
    return {key: {option: value if isinstance(value, tuple) else (value,) for option, value in one.items()}
            for key, one in held.items()}  # fmt: skip


@settings(max_examples=15)
@given(policy_strategies.policies(most_uplinks=3))
def test_netjsonconfig_renders_compiled_tree(policy):
    found = OpenWrt(copy.deepcopy(template(policy)))
    found.validate()
    sections = parse_uci(found.render(files=False).encode(), "rendered")
    assert {one.package for one in sections} == {"network"}
    assert options_of(sections) == wanted(policy)
    with tarfile.open(fileobj=io.BytesIO(found.generate().getvalue())) as archive:
        held = {one.name: (archive.extractfile(one).read().decode(), one.mode) for one in archive.getmembers()}
    files = {path: (one.text, 0o755 if one.executable else 0o644) for path, one in tree.build_tree(policy).items()}
    assert {path: one for path, one in held.items() if path != "etc/config/network"} == files


def test_control_netjsonconfig_schema_refuses_template():
    """Control: a template with a file that has no mode is refused."""
    policy, _ = load(GOOD.encode(), "p")
    broken = template(policy)
    del broken["files"][0]["mode"]
    with pytest.raises(ValidationError):
        OpenWrt(broken).validate()


def test_compile_to_openwisp_prints_template(tmp_path, monkeypatch):
    file = tmp_path / "p.toml"
    file.write_text(GOOD)
    done = run("compile", file, "--to", "openwisp")
    assert done.returncode == 0
    assert json.loads(done.stdout) == template(load(GOOD.encode(), "p")[0])
    assert "on each device: /etc/init.d/nftpolicy enable" in done.stderr
    assert run("compile", file, "--to", "openwisp").stdout == done.stdout
    refused = run("compile", file, "--to", "openwisp", "--ports", "a=b")
    assert (refused.returncode, refused.stdout) == (2, "")
    monkeypatch.setitem(sys.modules, "netjsonconfig", None)
    without = run("compile", file, "--to", "openwisp")
    assert (without.returncode, without.stdout) == (0, done.stdout)
    assert "install netjsonconfig (pip install nftpolicy[openwrt])" in without.stderr


def test_compile_to_openwisp_refused_template_is_not_printed(tmp_path, monkeypatch):
    file = tmp_path / "p.toml"
    file.write_text(GOOD)
    monkeypatch.setattr("nftpolicy.integration.openwrt.openwisp.template", lambda *_: {"files": [{}]})
    done = run("compile", file, "--to", "openwisp")
    assert (done.returncode, done.stdout) == (5, "")
    assert "netjsonconfig rejects the template" in done.stderr


def test_netjsonconfig_parser_loses_quotes_and_family():
    """netjsonconfig removes quotes from values, loses the family of a rule, and accepts an open quote."""
    config_text = "package network\n\nconfig rule6 'a'\n\toption mark '0x1\n\toption lookup '1'\n\tnonsense\n"
    assert OpenWrt(native=config_text).config == {"ip_rules": [{"name": "a", "mark": "0x1", "lookup": "1"}]}
