"""The packages: the Makefile makes the tree, and the upgrade script removes the settings of Gluon."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.integration.openwrt.tree import build_tree
from nftpolicy.policy.load import load
from tests.lab.daemons import tool
from tests.lab.limits import limit

ROOT = Path(__file__).parents[2]
FEED = ROOT / "openwrt/feed"
FILES = FEED / "gluon-nftpolicy/files"
WRAPPER = FILES / "usr/sbin/wgpeerselector"
LUA = [FEED / "gluon-nftpolicy/check_site.lua", FEED / "gluon-nftpolicy/luasrc/lib/gluon/upgrade/600-nftpolicy"]
POLICY = ROOT / "rulesets/gluon-fastd.toml"

DIGGER = "/etc/init.d/tunneldigger"
RELOAD = "/lib/gluon/reload.d/760-gluon-wan-dnsmasq-start"

RULES = 'CP := cp -fpR\nqstrip = $(strip $(subst ",,$(1)))\n'
# What package.mk does with a package, as far as files go.
PACKAGE = """
define BuildPackage
all:
	@$$(call Build/Prepare)
	$$(call Build/Configure)
	$$(call Build/Compile)
	mkdir -p $$(DESTDIR)
	$$(call Package/$(1)/install,$$(DESTDIR))
info:
	@: $$(info $$(Package/$(1))) $$(info $$(Package/$(1)/config)) $$(info deps $$(PKG_CONFIG_DEPENDS))
endef
"""


def need(name):
    found = tool(name)
    assert found, f"{name} is missing; script/setup installs it"
    return found


@pytest.fixture
def build(tmp_path):
    """Minimal build system. Returns the result of `make` with these variables."""
    for name, text in {"rules.mk": RULES, "include/package.mk": PACKAGE}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "policy.toml").write_text(POLICY.read_text())

    def make(target, **variables):
        words = {"TOPDIR": tmp_path, "INCLUDE_DIR": tmp_path / "include", "PKG_BUILD_DIR": tmp_path / "build",
                 "DESTDIR": tmp_path / "root", "CONFIG_NFTPOLICY_POLICY": '"policy.toml"',
                 "CONFIG_NFTPOLICY_PROGRAM": f'"{sys.executable} -m nftpolicy"', **variables}  # fmt: skip
        done = subprocess.run([need("make"), "-s", "-C", FEED / "nftpolicy", target, *(f"{k}={v}" for k, v in words.items())],
                              capture_output=True, text=True, timeout=limit(120), check=False,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        return done, tmp_path / "root"

    return make


def test_package_contains_compiled_tree(build):
    done, root = build("all")
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    wanted = build_tree(load(POLICY.read_bytes(), "p")[0])
    assert {path: file.read_text() for path, file in files.items()} == {path: one.text for path, one in wanted.items()}
    assert {path for path, file in files.items() if os.access(file, os.X_OK)} == {
        path for path, one in wanted.items() if one.executable
    }
    again, _ = build("all")
    assert again.returncode == 0, again.stderr


def test_package_build_with_missing_policy_fails(build):
    done, root = build("all", CONFIG_NFTPOLICY_POLICY='"nosuch.toml"')
    assert done.returncode and "nosuch.toml: cannot be read" in done.stderr
    assert not root.exists()


def test_package_declares_dependencies(build):
    done, _ = build("info")
    assert done.returncode == 0, done.stderr
    for word in (
        "+nftables",
        "+ip-tiny",
        "+kmod-nft-netdev",
        "+jsonfilter",
        "NFTPOLICY_RESOLVER:libpacketmark",
        "FILTER:kmod-sched-bpf",
    ):
        assert word in done.stdout
    for name in re.findall(r"CONFIG_(\w+)", done.stdout):
        assert f"config {name}" in done.stdout


@pytest.mark.parametrize("file", LUA, ids=lambda file: file.name)
def test_package_lua_files_compile(file):
    subprocess.run([need("luac5.1"), "-p", file], check=True)


# simple-uci, gluon.site and the programs that the script calls. The state goes in and comes out as Lua and JSON.
STANDIN = r"""
local state = dofile(arg[1])
local enabled, ran = arg[2] == 'true', {}
package.preload['gluon.site'] = function() return { nftpolicy = { enabled = function() return enabled end } } end
local cursor = {}
function cursor:foreach(config, kind, visit)
	for name, section in pairs(state[config] or {}) do
		if section['.type'] == kind then section['.name'] = name; visit(section) end
	end
end
function cursor:delete(config, name, option)
	local sections = state[config] or {}
	if not option then sections[name] = nil elseif sections[name] then sections[name][option] = nil end
end
function cursor:get(config, name, option) return state[config][name] and state[config][name][option or '.type'] end
function cursor:set(config, name, option, value)
	state[config][name][option] = value
	print('set ' .. config .. '.' .. name .. '.' .. option .. '=' .. value)
end
function cursor:save() end
function cursor:commit() end
package.preload['simple-uci'] = function() return { cursor = function() return cursor end } end
local open = io.open
io.open = function(path) if path:match('^/etc/init.d/') or path:match('^/rom/') then return open('/dev/null') end end
os.remove = function(path) table.insert(ran, 'rm ' .. path) end
os.execute = function(command) table.insert(ran, command) end
dofile(arg[3])
for _, command in ipairs(ran) do print('ran ' .. command) end
for config, sections in pairs(state) do
	for name, section in pairs(sections) do
		print('section ' .. config .. '.' .. name)
		for key in pairs(section) do print('option ' .. config .. '.' .. name .. '.' .. key) end
	end
end
"""
NODE = {
    "network": {
        "wan": {".type": "interface", "proto": "dhcp", "ip4table": "1"},
        "wan6": {".type": "interface", "ip6table": "1"},
        "wan6_lookup": {".type": "rule6", "mark": "0x01/0x01"},
        "wan6_unreachable": {".type": "route6", "table": "1"},
        "nftpolicy_510_6": {".type": "rule6"},
        "nftpolicy_510_4": {".type": "rule"},
        "nftpolicy_table1_6": {".type": "route6"},
        "mine": {".type": "rule6"},
    },
    "firewall": {
        "mesh_vpn_dns": {".type": "include", "type": "restore", "path": "/lib/gluon/mesh-vpn/iptables.rules"},
        "other": {".type": "include", "path": "/etc/firewall.user"},
    },
}


@pytest.fixture
def upgraded(tmp_path):
    """Sections and options that the script leaves on a node, and the commands that it ran."""

    def lua(value):
        if isinstance(value, str):
            return json.dumps(value)
        return "{" + ",".join(f"[{json.dumps(key)}]={lua(one)}" for key, one in value.items()) + "}"

    def run(enabled, node=NODE):
        (tmp_path / "standin.lua").write_text(STANDIN)
        (tmp_path / "state.lua").write_text(f"return {lua(node)}")
        (tmp_path / "script.lua").write_text(LUA[1].read_text().removeprefix("#!/usr/bin/lua\n"))
        done = subprocess.run([need("lua5.1"), "standin.lua", "state.lua", str(enabled).lower(), "script.lua"],
                              cwd=tmp_path, capture_output=True, text=True, check=True)  # fmt: skip
        lines = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
        return {kind: [text for of, text in lines if of == kind] for kind in ("ran", "section", "option", "set")}

    return run


def test_upgrade_migrates_settings_of_gluon(upgraded):
    left = upgraded(True)
    gone = {"network.wan6_lookup", "network.wan6_unreachable", "firewall.mesh_vpn_dns"}
    every = {f"{config}.{name}" for config, sections in NODE.items() for name in sections}
    assert {*left["section"]} == every - gone
    assert left["ran"] == [
        "/etc/init.d/gluon-wan-dnsmasq disable",
        "/etc/init.d/gluon-wan-dnsmasq running && /etc/init.d/gluon-wan-dnsmasq stop",
        f"rm {RELOAD}",
        next(one for one in left["ran"] if DIGGER in one),
        "sh /rom/etc/uci-defaults/95-nftpolicy",
        "/etc/init.d/nftpolicy enable",
    ]


def test_upgrade_gives_wired_mesh_a_device_that_is_inside(upgraded):
    assert upgraded(True)["set"] == []
    node = NODE | {"network": NODE["network"] | {"mesh_other": {".type": "interface", "ifname": "lan1"}}}
    assert upgraded(True, node)["set"] == ["network.mesh_other.type=bridge"]
    assert upgraded(False, node)["set"] == []
    for file in sorted((ROOT / "rulesets").glob("gluon-*.toml")):
        assert "br-mesh*" in load(file.read_bytes())[0].inside


def test_wireguard_node_gets_port_of_the_policy(upgraded):
    policy = load((ROOT / "rulesets/gluon-wireguard.toml").read_bytes())[0]
    (port,) = policy.service["wireguard"].sport
    tunnel = {".type": "interface", "proto": "wireguard"}
    node = NODE | {"network": NODE["network"] | {"wg_mesh": tunnel}}
    assert upgraded(True, node)["set"] == [f"network.wg_mesh.listen_port={port.low}"]
    tunnel["listen_port"] = "51821"
    assert upgraded(True, node)["set"] == []


# PATH in /proc/PID/environ of netifd and wgpeerselector, below procd (EARLY_PATH of its init), and the one
# that the build writes into preinit, hotplug-call and the profile (TARGET_INIT_PATH).
PATHS = ("/usr/sbin:/sbin:/usr/bin:/bin", "/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.mark.parametrize("path", PATHS)
def test_wgpeerselector_starts_with_the_mark(tmp_path, path):
    """netifd calls it by its name; ntpd inherits the environment."""
    policy = load((ROOT / "rulesets/gluon-wireguard.toml").read_bytes())[0]
    program, wrapper = (tmp_path / place for place in ("usr/bin/wgpeerselector", WRAPPER.relative_to(FILES)))
    for place in (program, wrapper):
        place.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$LD_PRELOAD $LIBPACKETMARK_MARK $*"\n')
    wrapper.write_text(WRAPPER.read_text().replace("/usr/bin/wgpeerselector", str(program)))
    for place in (program, wrapper):
        place.chmod(0o755)
    found = ":".join(f"{tmp_path}{place}" for place in path.split(":"))
    argv = ["sh", "-c", "wgpeerselector -i wg_mesh --group gluon-mesh-vpn"]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": f"{found}:{os.environ['PATH']}"})
    mark = policy.uplink["wan"].mark.value
    assert done.stdout == f"libpacketmark.so {mark} -i wg_mesh --group gluon-mesh-vpn\n"
    assert os.access(WRAPPER, os.X_OK)


@pytest.mark.parametrize("path", ['"/usr/bin/tunneldigger"', "/usr/bin/tunneldigger -f"])
def test_upgrade_starts_tunneldigger_with_the_mark(upgraded, tmp_path, path):
    """The lines of its init script in OpenWrt's package feed; a second run changes nothing."""
    line = "\tprocd_set_param command {}\n\tprocd_append_param command -f\n"
    (script := tmp_path / "init").write_text(line.format(path))
    (command,) = (one for one in upgraded(True)["ran"] if DIGGER in one)
    for _ in range(2):
        subprocess.run(["sh", "-c", command.replace(DIGGER, str(script))], check=True)
        assert script.read_text() == line.format(f"env LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK=1 {path}")


def test_upgrade_of_disabled_node_keeps_gluon_settings(upgraded):
    left = upgraded(False)
    assert not any("nftpolicy_" in one for one in left["section"])
    assert {"network.wan6_lookup", "network.mine", "firewall.mesh_vpn_dns"} <= {*left["section"]}
    assert "network.wan.ip4table" not in left["option"] and "network.wan6.ip6table" in left["option"]
    restored = [f"cmp -s /rom{path} {path} || cp -p /rom{path} {path}" for path in (RELOAD, DIGGER)]
    assert left["ran"] == ["/etc/init.d/nftpolicy disable", "/etc/init.d/gluon-wan-dnsmasq enable", *restored]


# Scripts of Gluon's packages (main in August 2026) that write what ours deletes or reads.
BEFORE = ("110-network", "250-cellular", "300-gluon-client-bridge-network", "500-mesh-vpn")
AFTER = ("997-migrate-preserved", "998-commit")


def test_upgrade_runs_between_scripts_of_gluon():
    """gluon-reconfigure runs the scripts in the order of their names."""
    (ours,) = (FEED / "gluon-nftpolicy/luasrc/lib/gluon/upgrade").iterdir()
    assert sorted([*AFTER, ours.name, *BEFORE]) == [*BEFORE, ours.name, *AFTER]


def test_package_version_equals_program_version():
    from nftpolicy import __version__

    assert f"PKG_VERSION:={__version__}\n" in (FEED / "nftpolicy/Makefile").read_text()
