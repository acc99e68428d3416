"""Stand-in of procd: python procd_stand_in.py DIRECTORY set SERVICE FILE | delete SERVICE | list | event TYPE [PACKAGE]

Keeps instances running and restarts them when they end. An instance with an unchanged command and, with `file`,
unchanged content stays. DIRECTORY is its state directory.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE = 10  # seconds from SIGTERM to SIGKILL


def read(text: str) -> tuple[dict[str, dict[str, list[str]]], list[list[str]]]:
    """Return instances with their parameters, and triggers: a type, a package or "", then the words of the script."""
    instances: dict[str, dict[str, list[str]]] = {}
    triggers = []
    last: dict[str, list[str]] = {}
    for kind, *words in (line.split("\t")[:-1] for line in text.splitlines()):
        if kind == "instance":
            last = instances[words[0]] = {}
        elif kind == "set":
            last[words[0]] = words[1:]
        else:
            triggers.append(words)
    return instances, triggers


def identity(wanted: dict[str, list[str]]) -> str:
    """Return the text that is equal for equal instances."""
    files = [hashlib.sha256(Path(one).read_bytes()).hexdigest() for one in wanted.get("file", [])]
    return json.dumps([wanted["command"], files])


class Procd:
    """State in `folder`: a file NAME.json for each service, and SERVICE:INSTANCE with the ids of its two processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def set(self, service: str, text: str) -> None:
        wanted, triggers = read(text)
        running = self._running(service)
        for name in running:
            if name not in wanted or identity(wanted[name]) != running[name]:
                self._end(service, name)
        for name, one in wanted.items():
            if running.get(name) != identity(one):
                self._start(service, name, one)
        kept = {"instances": {name: identity(one) for name, one in wanted.items()}, "triggers": triggers}
        self._file(service).write_text(json.dumps(kept))

    def delete(self, service: str) -> None:
        for name in self._running(service):
            self._end(service, name)
        self._file(service).unlink(missing_ok=True)

    def list(self) -> dict[str, int]:
        """Return INSTANCE -> its process id, for all services; 0 between two starts."""
        return {place.name.partition(":")[2]: self._ids(place)[1] for place in sorted(self._folder.glob("*:*"))}

    def event(self, kind: str, package: str = "") -> None:
        for file in self._folder.glob("*.json"):
            for pattern, of, *words in json.loads(file.read_text())["triggers"]:
                if fnmatch.fnmatch(kind, pattern) and of == package:
                    subprocess.run(words[2:], check=False)

    def _file(self, service: str) -> Path:
        return self._folder / f"{service}.json"

    def _running(self, service: str) -> dict[str, str]:
        file = self._file(service)
        return json.loads(file.read_text())["instances"] if file.exists() else {}

    def _ids(self, place: Path) -> list[int]:
        with contextlib.suppress(OSError, ValueError):
            return [int(word) for word in place.read_text().split()]
        return [0, 0]

    def _start(self, service: str, name: str, wanted: dict[str, list[str]]) -> None:
        place = self._folder / f"{service}:{name}"
        place.write_text("0 0")
        if os.fork() == 0:
            os.setsid()
            try:
                keep(place, wanted)
            finally:
                os._exit(1)
        while not any(self._ids(place)):
            time.sleep(0.01)

    def _end(self, service: str, name: str) -> None:
        place = self._folder / f"{service}:{name}"
        keeper, process = self._ids(place)
        for pid, one in ((keeper, signal.SIGKILL), (process, signal.SIGTERM)):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, one)
        end = time.monotonic() + PATIENCE
        while process and Path(f"/proc/{process}").exists():
            if time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        place.unlink(missing_ok=True)


def keep(place: Path, wanted: dict[str, list[str]]) -> None:
    """Run the command, and again after its respawn timeout, without end."""
    log = os.open(place.parent.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0), os.dup2(log, 1), os.dup2(log, 2)
    while True:
        place.write_text(f"{os.getpid()} 0")
        with contextlib.suppress(OSError):  # no such program
            process = subprocess.Popen(wanted["command"])
            fresh = place.with_name(f".{place.name}")
            fresh.write_text(f"{os.getpid()} {process.pid}")
            fresh.replace(place)
            process.wait()
        place.write_text(f"{os.getpid()} 0")
        time.sleep(float(wanted["respawn"][1]))


def main() -> None:
    folder, verb, *words = sys.argv[1:]
    procd = Procd(Path(folder))
    if verb == "set":
        procd.set(words[0], Path(words[1]).read_text())
    elif verb == "list":
        print(json.dumps(procd.list()))
    else:
        found: Any = {"delete": procd.delete, "event": procd.event}[verb]
        found(*words)


if __name__ == "__main__":
    main()
