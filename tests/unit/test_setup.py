"""script/setup on a distribution without apt-get: one line that says what to install."""

import os
import shutil
import subprocess

import pytest

from tests.guarded_lab import ROOT


@pytest.mark.parametrize(
    ("manager", "wanted"),
    [
        ("dnf", "sudo dnf install nftables iproute python3-nftables python3-attrs python3-cattrs python3-pyroute2"),
        ("pacman", "sudo pacman -S --needed nftables iproute2 python python-attrs python-cattrs python-pyroute2"),
        ("", "install, under the names of this distribution: an-absent-package"),
    ],
)
def test_setup_without_apt_names_packages(tmp_path, manager, wanted):
    (tmp_path / "script").mkdir()
    (tmp_path / "bin").mkdir()
    text = (ROOT / "script/setup").read_text()
    script = tmp_path / "script/setup"
    script.write_text(text.replace("all busybox /bin/busybox\n", "all an-absent-package /nonexistent\n", 1))
    for name in ("dirname", "id", "cat", "sed"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    if manager:
        (tmp_path / "bin" / manager).symlink_to("/bin/true")
    environment = {**os.environ, "PATH": str(tmp_path / "bin")}
    done = subprocess.run(["/bin/sh", script, "demo"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert wanted in done.stderr
    assert done.stderr.startswith("nftpolicy: ") and done.stderr.count("\n") == 1
