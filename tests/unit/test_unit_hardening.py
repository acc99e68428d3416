"""What the systemd units take from their processes, and where the program imports from."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.integration import systemd_units
from nftpolicy.kernel import cgroup

ROOT = Path(__file__).parents[2]
UNITS = systemd_units.render_units("/usr/bin/nftpolicy", "/usr/sbin/nft")
HIGHEST = 30  # tenths of the exposure level of systemd-analyze(1), which ends at 10.0


def exposure(folder: Path, name: str, text: str) -> tuple[int, str]:
    """Return the status of systemd-analyze, which is not 0 above the limit, and its output."""
    name = name.replace("@.", "@wan.")
    (folder / name).write_text(text)
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={HIGHEST - 1}", f"./{name}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not re.search(r"exposure level for \S+: \d", done.stdout):
        pytest.skip(f"systemd-analyze cannot read a unit here: {done.stderr.strip()[:200]}")
    return done.returncode, done.stdout.strip().splitlines()[-1]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", UNITS)
def test_unit_exposure_is_below_three(tmp_path: Path, name: str) -> None:
    status, line = exposure(tmp_path, name, UNITS[name])
    assert status == 0, line


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_control_unit_without_sandbox_is_above_three(tmp_path: Path) -> None:
    name = "nftpolicy-watch.service"
    text = "\n".join(line for line in UNITS[name].split("\n") if not re.match(r"(Protect|SystemCall|Capab)", line))
    assert exposure(tmp_path, name, text)[0] != 0


@pytest.mark.parametrize("name", UNITS)
def test_unit_has_no_capability_beyond_its_work(name: str) -> None:
    lists = re.findall(r"^CapabilityBoundingSet=(.*)$", UNITS[name], re.MULTILINE)
    capabilities = {word for line in lists for word in line.split()}
    assert "CAP_NET_ADMIN" in capabilities
    assert capabilities.isdisjoint({"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_DAC_OVERRIDE"})


def test_resolver_unit_makes_cgroup_below_root_outside_sandbox() -> None:
    text = UNITS["nftpolicy-resolver@.service"]
    assert f"\nExecStartPre=-+mkdir -p /sys/fs/cgroup/{cgroup._PARENT}\nExecStart=" in text


def test_module_in_working_directory_is_not_imported(tmp_path: Path) -> None:
    """`python -m` looks for modules in the working directory first."""
    for name in ("json", "typer", "nftables", "attrs"):
        (tmp_path / f"{name}.py").write_text("print('HIJACKED')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def said(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout

    assert "HIJACKED" in said("-c", "import json"), "the control"
    ruleset = str(ROOT / "rulesets/gluon-fastd.toml")
    assert "HIJACKED" not in said("-m", "nftpolicy", "compile", ruleset, "--to", "json")
    assert "table" in said("-m", "nftpolicy", "compile", ruleset, "--to", "json")


def test_package_imports_no_module_of_a_user(tmp_path: Path) -> None:
    """Root may have the HOME of a user, as after `sudo -E`."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / ".local/lib" / version / "site-packages"
    site.mkdir(parents=True)
    (site / "usercustomize.py").write_text("print('HIJACKED')\n")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def said(*options: str) -> str:
        command = [getattr(sys, "_base_executable", sys.executable), *options, "-c", "print(1)"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert said() == "HIJACKED\n1\n", "the control"
    assert said("-sP") == "1\n"
    for recipe in ("debian/rules", "rpm/nftpolicy.spec", "arch/PKGBUILD"):
        assert " -sP" in (ROOT / "packaging" / recipe).read_text(), recipe


def test_checkout_as_working_directory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-m", "nftpolicy", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("nftpolicy ")
