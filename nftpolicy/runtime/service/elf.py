# SPDX-License-Identifier: BSD-2-Clause
"""What the head of a program says of how it is started (elf(5), System V ABI)."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from attrs import frozen

_MAGIC = b"\x7fELF"
_PT_INTERP, _PT_NOTE = 3, 4
# Class -> struct of the header from e_entry on, and of a program header: type, offset, size in the file.
_HEADER = {1: "IIIIHHH", 2: "QQQIHHH"}
_PROGRAM = {1: ("IIIIII", (0, 1, 4)), 2: ("IIQQQQ", (0, 2, 5))}
_ORDER = {1: "<", 2: ">"}
_GO_NOTE = b"Go\0\0"  # the name of the note that holds the build id (cmd/link)
_GO_INFO = b"\xff Go buildinf:"  # what debug/buildinfo looks for, also where the sections are stripped


@frozen
class Elf:
    """A program or library. `kind`: what another one must have in common to be loaded with it (class, byte
    order, machine). `interpreter`: the loader that it asks for, None if it is linked statically. `go`: it is made by
    the Go compiler, whose runtime makes system calls itself."""

    kind: tuple[int, int, int]
    interpreter: str | None
    go: bool


def read(path: Path) -> Elf | None:
    """The facts about a file; None if it is not ELF, or is damaged. Raises OSError."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _of(data)
            except (struct.error, KeyError, IndexError):
                return None


def _of(data: mmap.mmap) -> Elf:
    size, order = data[4], data[5]
    (machine,) = struct.unpack_from(f"{_ORDER[order]}H", data, 18)
    _, start, _, _, _, length, count = struct.unpack_from(f"{_ORDER[order]}{_HEADER[size]}", data, 24)
    shape, places = _PROGRAM[size]
    interpreter, go = None, data.find(_GO_INFO) >= 0
    for index in range(count):
        fields = struct.unpack_from(f"{_ORDER[order]}{shape}", data, start + index * length)
        kind, offset, extent = (fields[place] for place in places)
        if kind == _PT_INTERP:
            interpreter = data[offset : offset + extent].rstrip(b"\0").decode(errors="replace")
        elif kind == _PT_NOTE:
            go = go or _GO_NOTE in data[offset : offset + extent]
    return Elf((size, order, machine), interpreter, go)
