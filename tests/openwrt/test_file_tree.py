"""The tree of files: its content, its syntax for nft and sh, and the command that writes it."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from nftpolicy.integration.openwrt import tree
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from tests import policy_strategies
from tests.guarded_lab import GLUON, ROOT

SHIPPED = sorted((ROOT / "rulesets").glob("*.toml"))


def shipped(file: Path = GLUON) -> Policy:
    return load(file.read_bytes())[0]


def run(*words: str, **options) -> subprocess.CompletedProcess:  # type: ignore[no-untyped-def, type-arg]
    return subprocess.run(
        [sys.executable, "-m", "nftpolicy", *words], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


def compiled(folder: Path, *words: str, file: str = "rulesets/gluon-fastd.toml") -> subprocess.CompletedProcess:  # type: ignore[type-arg]
    return run("compile", file, "--to", "openwrt", str(folder), *words)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
        if path.is_file()
    }


def warned(text: str, tmp_path: Path) -> list[str]:
    policy = tmp_path / "policy.toml"
    policy.write_text(text)
    done = compiled(tmp_path / "files", file=str(policy))
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("nftpolicy: ").replace(str(policy), "P") for line in done.stderr.splitlines()]


# --- what is in it ------------------------------------------------------------------------


def test_tree_is_small_and_needs_no_other_language() -> None:
    found = tree.build_tree(shipped())
    assert sum(len(one.text.encode()) for one in found.values()) < 40 * 1024
    heads = {one.text.splitlines()[0] for one in found.values() if one.executable}
    assert heads == {"#!/bin/sh", "#!/bin/sh /etc/rc.common"}
    assert not any(re.search(r"\b(python|lua|ucode)\b", one.text) for one in found.values())


def test_tree_is_kept_by_sysupgrade() -> None:
    found = tree.build_tree(shipped())
    kept = found[tree.KEEP_PATH].text.splitlines()
    start = re.search(r"^START=(\d+)$", found["etc/init.d/nftpolicy"].text, re.MULTILINE)
    assert start
    assert kept == sorted([*(f"/{path}" for path in found), f"/etc/rc.d/S{start[1]}nftpolicy"])


def test_tree_has_no_placeholder() -> None:
    for path, one in tree.build_tree(shipped()).items():
        assert not re.findall(r"@[A-Z]+@", one.text), path


@settings(max_examples=10)
@given(policy_strategies.policies())
def test_tree_of_same_policy_is_equal(policy: Policy) -> None:
    assert tree.build_tree(policy) == tree.build_tree(policy)


def test_tree_guard_file_replaces_table_exactly() -> None:
    lines = [
        line
        for line in tree.build_tree(shipped())[tree.GUARD_PATH].text.splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[:3] == ["add table inet nftpolicy", "delete table inet nftpolicy", "table inet nftpolicy {"]


# What nft 1.0 or 1.1 alone understands, or what a file that fw4 includes must not have.
DIALECT = (r"\bdestroy\b", r"\btypeof\b", r"\bdefine\b", r"\$\w", r"\bflush ruleset\b", r"priority [a-z]", r"\bflags owner",
           r"\bflags persist", r"\bpersist\b", r"\breset\b", r"[^;{\s] *}$(?<!\{ })(?<=\t})")  # fmt: skip


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_tree_nft_files_avoid_version_specific_words(file: Path) -> None:
    for path, one in tree.build_tree(shipped(file)).items():
        if path.endswith(".nft"):
            text = re.sub(r'"[^"]*"|^#.*|counter \S+|with tcp reset', "", one.text, flags=re.MULTILINE)
            assert [word for word in DIALECT if re.search(word, text, re.MULTILINE)] == [], path


def test_tree_writes_no_firewall_section() -> None:
    assert not any("firewall" in path for path in tree.build_tree(shipped()))
    assert "firewall." not in tree.build_tree(shipped())[tree.DEFAULTS_PATH].text


def test_tree_init_script_starts_before_firewall_and_network() -> None:
    start = re.search(r"^START=(\d+)$", tree.build_tree(shipped())["etc/init.d/nftpolicy"].text, re.MULTILINE)
    assert start
    assert int(start[1]) < 19 < 20  # /etc/init.d/firewall, /etc/init.d/network
    assert "stop_service" not in tree.build_tree(shipped())["etc/init.d/nftpolicy"].text


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_tree_scripts_pass_shellcheck(file: Path, tmp_path: Path) -> None:
    assert shutil.which("shellcheck"), "apt-get install shellcheck"
    for path, one in tree.build_tree(shipped(file)).items():
        if one.executable:
            script = tmp_path / path.replace("/", "-")
            script.write_text(one.text)
            done = subprocess.run(["shellcheck", "-s", "sh", script], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (0, ""), path
            assert subprocess.run(["busybox", "ash", "-n", script], check=False).returncode == 0


def test_control_shellcheck_finds_fault(tmp_path: Path) -> None:
    script = tmp_path / "bad"
    script.write_text("#!/bin/sh\nrm -rf $1/*\n")
    assert subprocess.run(["shellcheck", "-s", "sh", script], capture_output=True, check=False).returncode == 1


@settings(max_examples=8)
@given(policy_strategies.policies())
def test_tree_names_of_any_policy_are_shell_words(policy: Policy) -> None:
    """No name ends a line of the plan, or a word of a script."""
    for path, one in tree.build_tree(policy).items():
        if one.executable:
            assert subprocess.run(["sh", "-n"], input=one.text, text=True, check=False).returncode == 0, path
    kinds = {
        "policy",
        "rule4",
        "rule6",
        "route4",
        "route6",
        "sysctl",
        "own",
        "port",
        "resolver",
        "servers",
        "uplink",
        "flush",
    }
    assert {line.split()[0] for line in tree.build_tree(policy)[tree.PLAN_PATH].text.splitlines()} <= kinds


def test_tree_checksums_are_checked_by_sha256sum(tmp_path: Path) -> None:
    compiled(tmp_path)
    done = subprocess.run(
        ["busybox", "sha256sum", "-c", tree.CHECKSUMS_PATH], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0
    (tmp_path / tree.PLAN_PATH).write_text("changed\n")
    done = subprocess.run(
        ["busybox", "sha256sum", "-c", tree.CHECKSUMS_PATH], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode != 0


# --- nftpolicy compile --to openwrt -------------------------------------------------------


def test_compile_writes_tree_once_with_modes(tmp_path: Path) -> None:
    done = compiled(tmp_path / "image")
    assert done.returncode == 0
    first = snapshot(tmp_path / "image")
    found = tree.build_tree(shipped())
    assert first == {path: (one.text.encode(), 0o755 if one.executable else 0o644) for path, one in found.items()}
    assert {line.removeprefix("wrote ") for line in done.stdout.splitlines()} == {
        str(tmp_path / "image" / path) for path in found
    }
    done = compiled(tmp_path / "image")
    assert (done.returncode, done.stdout) == (0, "all files are up to date already\n")
    assert snapshot(tmp_path / "image") == first


def test_compile_keeps_foreign_and_changed_files(tmp_path: Path) -> None:
    foreign = tmp_path / "etc/init.d/nftpolicy"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine\n")
    (tmp_path / "etc/banner").write_text("hello\n")
    done = compiled(tmp_path)
    assert done.returncode == 5
    assert f"{foreign}: not written by nftpolicy, or changed since" in done.stderr
    assert set(snapshot(tmp_path)) == {"etc/init.d/nftpolicy", "etc/banner"}
    assert compiled(tmp_path, "--force").returncode == 0
    assert (tmp_path / "etc/banner").read_text() == "hello\n"
    (tmp_path / tree.PLAN_PATH).write_text("edited\n")
    before = snapshot(tmp_path)
    done = compiled(tmp_path, file="rulesets/vpn-killswitch.toml")
    assert (done.returncode, snapshot(tmp_path)) == (5, before)


def test_compile_other_policy_replaces_tree(tmp_path: Path) -> None:
    assert compiled(tmp_path).returncode == 0
    done = compiled(tmp_path, "--no-link-guard", file="rulesets/vpn-killswitch.toml")
    assert done.returncode == 0
    assert f"removed {tmp_path / tree.LINK_PATH}" in done.stdout
    wanted = tree.build_tree(shipped(ROOT / "rulesets/vpn-killswitch.toml"), link_guard=False)
    assert {path: held.decode() for path, (held, _) in snapshot(tmp_path).items()} == {
        path: one.text for path, one in wanted.items()
    }


def test_compile_with_forged_checksums_removes_nothing_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    image = tmp_path / "image"
    (image / tree.CHECKSUMS_PATH).parent.mkdir(parents=True)
    digest = hashlib.sha256(victim.read_bytes()).hexdigest()
    (image / tree.CHECKSUMS_PATH).write_text(f"{digest}  ../victim\n{digest}  {victim}\nnonsense\n")
    assert compiled(image).returncode == 0
    assert victim.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compile", "rulesets/gluon-fastd.toml", "--to", "openwrt"), "name the directory"),
        (("compile", "rulesets/gluon-fastd.toml", "--to", "openwrt", "README.md"), "README.md is not a directory"),
        (("compile", "rulesets/gluon-fastd.toml", "--to", "nft", "somewhere"), "are for --to openwrt"),
        (("compile", "rulesets/gluon-fastd.toml", "--force"), "are for --to openwrt"),
        (("compile", "rulesets/gluon-fastd.toml", "--to", "openwrt", "x", "--ports", "a=b"), "finds the ports"),
    ],
)
def test_compile_invalid_arguments_are_refused(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert said in done.stderr
    assert not (ROOT / "x").exists()


def test_compile_warns_of_unsupported_keys_with_line(tmp_path: Path) -> None:
    text = GLUON.read_text().replace('mark    = "0x1/0x1"', 'mark    = "0x10/0x10"\nlearn = ["ra"]')
    said = warned(text.replace('marks  = "itself"', 'marks  = "cgroup"\nconfine = true'), tmp_path)
    row = {
        key: at for at, line in enumerate(text.splitlines(), 1) for key in ("learn", "lease", "marks") if key in line
    }
    assert [one.partition(": ")[0] for one in said] == [
        f"P:{row['marks']}", f"P:{row['marks'] + 1}", f"P:{row['learn']}", f"P:{row['lease']}"
    ]  # fmt: skip
    assert "LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK=16" in said[0]


def test_compile_of_servers_over_tls_starts_no_resolver(tmp_path: Path) -> None:
    lease = next(line for line in GLUON.read_text().splitlines() if line.startswith("lease"))
    (said,) = warned(GLUON.read_text().replace(lease, 'servers = ["tls://192.0.2.1#dns.example"]'), tmp_path)
    assert "no resolver runs on the router" in said
    assert "\nresolver " not in (tmp_path / "files" / tree.PLAN_PATH).read_text()


@pytest.mark.parametrize("sources", ['["auto"]', '["netifd"]'])
def test_compile_supported_keys_give_no_warning(tmp_path: Path, sources: str) -> None:
    lease = next(line for line in GLUON.read_text().splitlines() if line.startswith("lease"))
    assert warned(GLUON.read_text().replace(lease, f"sources = {sources}"), tmp_path) == []


def test_compile_to_unwritable_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where a folder must be\n")
    done = compiled(tmp_path)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert set(snapshot(tmp_path)) == {"etc"}
