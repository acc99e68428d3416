"""Machine for QEMU: a root directory of debootstrap with a stock kernel, the package of nftpolicy, a disk image."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.beside.debian_root import debian_root, run

ROOT = Path(__file__).parents[2]
RELEASES = {"6.1": "bookworm", "6.12": "trixie"}  # stock kernel -> release of Debian
_TOOLS = ("fastd", "busybox", "wireguard-tools", "ppp", "pppoe", "python3-pytest", "python3-hypothesis", "gcc")
_MACHINE = ("linux-image-amd64", "initramfs-tools", "udev", "dbus", "iputils-ping", *_TOOLS)
_BUILD = (
    "build-essential",
    "fakeroot",
    "debhelper",
    "dh-python",
    "pybuild-plugin-pyproject",
    "python3-all",
    "python3-hatchling",
)
_NEEDS = (
    "python3-attr",
    "python3-cattr",
    "python3-pyroute2",
    "python3-rich",
    "python3-typer",
    "git",
    "ca-certificates",
)
# The unit runs the disk of the run; its lines go to the second serial port. The network is networkd's.
_FILES = {
    "etc/systemd/system/vm-tests.service": """[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=HOME=/root LC_ALL=C.UTF-8
ExecStart=/bin/sh -c 'stty -F /dev/ttyS1 raw; rm -rf /opt/vm; mkdir /opt/vm; tar x -C /opt/vm -f /dev/vdb; cd /opt/vm; exec python3 -m tests.platforms.guest >/dev/ttyS1 2>&1'
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
""",
    "etc/systemd/system/early-sender.service": """[Unit]
DefaultDependencies=no
After=network-pre.target systemd-remount-fs.service
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/early_sender.py
[Install]
WantedBy=sysinit.target
""",
    "usr/local/lib/early_sender.py": Path(__file__).with_name("early_sender.py").read_text(),
    "etc/systemd/network/50-uplink.network": "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "etc/initramfs-tools/conf.d/vm": "MODULES=list\nCOMPRESS=gzip\n",
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n",
    "etc/resolv.conf": "",
}
_CONFIGURE = """
set -eu
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
rm -f "$root/usr/sbin/policy-rc.d" "$root/etc/resolv.conf"
cp -rT "$files" "$root"
chroot "$root" systemctl -q enable vm-tests early-sender systemd-networkd
chroot "$root" systemctl -q mask systemd-networkd-wait-online fastd getty@tty1 serial-getty@ttyS0 e2scrub_reap apt-daily.timer apt-daily-upgrade.timer man-db.timer dpkg-db-backup.timer
chroot "$root" update-initramfs -u
umount "$root/dev" "$root/proc"
rm -f "$image.new"
truncate -s 6G "$image.new"
mke2fs -q -F -t ext4 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard -d "$root" "$image.new"
mv "$image.new" "$image"
"""
_BUILD_PACKAGE = """
set -eu
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/mnt"
cp -r "$source" "$root/mnt/nftpolicy"
chroot "$root" sh -c 'cd /mnt/nftpolicy && script/package'
cp "$root"/mnt/nftpolicy/dist/nftpolicy_*.deb "$target"
"""


@dataclass(frozen=True)
class DebianImage:
    """Disk image with the kernel and initramfs that it was made for, and the package of nftpolicy for its release."""

    disk: Path
    kernel: Path
    initramfs: Path
    package: Path


def debian_image(kernel: str, cache: Path, work: Path, mirror: str | None) -> DebianImage:
    """Return the image of a stock kernel's release; what `cache` lacks is made. The package is built anew, in `work`.

    Raises subprocess.CalledProcessError; the output of the programs goes to standard error.
    """
    packages = {*_MACHINE, *_BUILD, *_NEEDS}
    root = debian_root(cache, packages, mirror, RELEASES[kernel])
    disk = cache / f"{root.name}.img"
    if not disk.exists() or disk.stat().st_mtime < max(
        path.stat().st_mtime for path in (root / ".packages", Path(__file__))
    ):
        with tempfile.TemporaryDirectory(dir=work) as files:
            _write(Path(files), _FILES)
            run(_CONFIGURE, {"root": str(root), "files": files, "image": str(disk)})
    return DebianImage(disk, *_boot_files(root), _package(root, work))


def _boot_files(root: Path) -> tuple[Path, Path]:
    kernel = max((root / "boot").glob("vmlinuz-*"))
    return kernel, kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img"))


def _package(root: Path, work: Path) -> Path:
    """Build the Debian package in the release's root directory."""
    source, target = work / "source", work / "package"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "dist", ".*_cache", "__pycache__", ".mutation")
    )
    target.mkdir()
    run(_BUILD_PACKAGE, {"root": str(root), "source": str(source), "target": str(target)})
    (package,) = target.iterdir()
    return package


def _write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
