"""QEMU without KVM: one boot of an image, its second serial port as lines, and all frames of its network card."""

import os
import struct
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab import syscalls

from .debian_image import ROOT, DebianImage

_TESTS = ("tests", "rulesets", "man", "pyproject.toml")  # nftpolicy itself is the installed package
_PCAP_HEADER, _PCAP_FRAME = 24, 16  # bytes


class VirtualMachine:
    """Machine with its own disk in `work`, which keeps what a boot writes."""

    def __init__(self, image: DebianImage, work: Path) -> None:
        self._image, self._work = image, work
        self._disk = work / "disk.img"
        # The image has holes, and where the file system can, the copy shares its blocks.
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", image.disk, self._disk], check=True)

    def boot(self, names: Sequence[str], seconds: float) -> Iterator[str]:
        """Boot, run these tests (`tests.platforms.guest`), and yield its lines until it powers off.

        Raises TimeoutError after `seconds`, with the end of the console; the machine is gone then.
        """
        parent = os.pidfd_open(os.getpid())
        console, lines, data = (self._work / name for name in ("console", "lines", "data.tar"))
        lines.write_text("")
        self._pack(data, names)
        with console.open("w") as output:
            process = subprocess.Popen(
                self._command(lines, data),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: syscalls.die_with(parent),
            )
        os.close(parent)
        try:
            with lines.open(errors="replace") as file:
                yield from _follow(file.fileno(), process, time.monotonic() + seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {' / '.join(self.console()[-5:])}") from None
        finally:
            process.kill()
            process.wait()

    def console(self) -> list[str]:
        """Return the lines of the console of the last boot."""
        return (self._work / "console").read_text(errors="replace").splitlines()

    def frames(self) -> Iterator[bytes]:
        """Yield the frames of the last boot that the machine sent or received, as QEMU recorded them."""
        data = (self._work / "frames").read_bytes()
        place = _PCAP_HEADER
        while place + _PCAP_FRAME <= len(data):
            (length,) = struct.unpack_from("=I", data, place + 8)
            place += _PCAP_FRAME
            yield data[place : place + length]
            place += length

    def _pack(self, data: Path, names: Sequence[str]) -> None:
        (self._work / "names").write_text("\n".join(names))
        with tarfile.open(data, "w") as archive:
            for name in _TESTS:
                archive.add(ROOT / name, name, filter=lambda one: None if "__pycache__" in one.name else one)
            archive.add(self._image.package, "nftpolicy.deb")
            archive.add(self._work / "names", "names")

    def _command(self, lines: Path, data: Path) -> list[str]:
        return [
            *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1536"),
            # The clock goes on by 2 ns with each instruction, so that time limits inside do not depend on the load here.
            *("-icount", "shift=1"),
            *("-display", "none", "-monitor", "none", "-no-reboot", "-serial", "stdio", "-serial", f"file:{lines}"),
            # QEMU's own DHCP server, and nothing behind it.
            *("-netdev", "user,id=net,restrict=on,net=192.0.2.0/24,dhcpstart=192.0.2.15"),
            *("-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci"),
            *("-object", f"filter-dump,id=dump,netdev=net,file={self._work / 'frames'}"),
            *("-drive", f"file={self._disk},if=virtio,format=raw,cache=unsafe"),
            *("-drive", f"file={data},if=virtio,format=raw,readonly=on"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initramfs)),
            "-append",
            "console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on net.ifnames=0 root=/dev/vda rw",
        ]


def _follow(descriptor: int, process: "subprocess.Popen[bytes]", end: float) -> Iterator[str]:
    """Yield the lines that are written to a file until the process ends."""
    rest = b""
    while True:
        ended = process.poll() is not None
        rest += os.read(descriptor, 1 << 20)
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")
        if ended and not whole:
            return
        if time.monotonic() > end:
            raise TimeoutError("the machine was not done in time")
        time.sleep(0 if whole else 0.2)
