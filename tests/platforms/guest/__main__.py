import json
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("NFTPOLICY_TEST_PATIENCE", "4")  # before the lab is imported; the processor is emulated


def main() -> None:
    """Run the tests; a line of JSON for the versions of the machine, and one for each test."""
    from . import kernel_tunnels, package, uplink_kinds, wireguard

    tests = {**package.TESTS, **uplink_kinds.TESTS, **kernel_tunnels.TESTS, **wireguard.TESTS}
    print(json.dumps({"versions": _versions()}), flush=True)
    for name in Path("names").read_text().splitlines():
        began = time.monotonic()
        answer = {"test": name, "result": "passed", "count": ""}
        try:
            answer["count"] = tests[name]()
        except BaseException as error:
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            answer["result"] = f"failed: {first[0][:200]}"
            answer["details"] = f"{traceback.format_exc()}\n{getattr(error, 'stderr', None) or ''}"[-4000:] + _log()
        print(json.dumps({**answer, "seconds": round(time.monotonic() - began)}), flush=True)


def _log() -> str:
    """Return the end of what the units of nftpolicy wrote since the start of the machine."""
    words = ["journalctl", "--boot", "--no-pager", "--output=short-monotonic", "--lines=40", "--unit=nftpolicy*"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def _versions() -> dict[str, str]:
    nft, systemd = (
        subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
        for words in (["nft", "--version"], ["systemctl", "--version"])
    )
    return {
        "debian": Path("/etc/debian_version").read_text().strip(),
        "kernel": platform.release(),
        "nft": nft[1].removeprefix("v"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "systemd": systemd[1],
    }


if __name__ == "__main__":
    main()
