# SPDX-License-Identifier: BSD-2-Clause
"""ELF header of a program: loader, machine, Go runtime (elf(5), System V ABI)."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from attrs import frozen

from ..regular_file import open_regular

_MAGIC = b"\x7fELF"
_EI_CLASS, _EI_DATA, _E_MACHINE, _E_ENTRY = 4, 5, 18, 24  # offsets
_PT_INTERP, _PT_NOTE = 3, 4
# EI_CLASS -> struct of the ELF header from e_entry on.
_HEADER = {1: "IIIIHHH", 2: "QQQIHHH"}
# EI_CLASS -> struct of a program header, and the positions of p_type, p_offset and p_filesz in it.
_PROGRAM_HEADER = {1: ("IIIIII", (0, 1, 4)), 2: ("IIQQQQ", (0, 2, 5))}
_BYTE_ORDER = {1: "<", 2: ">"}  # by EI_DATA
_GO_NOTE = b"Go\0\0"  # name of the note with the build ID (cmd/link)
_GO_BUILD_INFO = b"\xff Go buildinf:"  # magic of debug/buildinfo; also in stripped programs


@frozen
class ElfHeader:
    """ELF facts about a program or library.

    `abi`: class, byte order and machine; a library and its program have the same. `interpreter`:
    the loader that the program requests; None if it is linked statically. `is_go`: compiled by the Go
    compiler, which makes system calls without the C library.
    """

    abi: tuple[int, int, int]
    interpreter: str | None
    is_go: bool


def read_elf(path: Path) -> ElfHeader | None:
    """Return the ELF facts about a file; None if it is not ELF, or is damaged. Raises OSError."""
    with open_regular(path) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data)
            except (struct.error, KeyError, IndexError):
                return None


def _parse(data: mmap.mmap) -> ElfHeader:
    elf_class, data_encoding = data[_EI_CLASS], data[_EI_DATA]
    order = _BYTE_ORDER[data_encoding]
    (machine,) = struct.unpack_from(f"{order}H", data, _E_MACHINE)
    header = struct.unpack_from(f"{order}{_HEADER[elf_class]}", data, _E_ENTRY)
    _, table_offset, _, _, _, entry_size, count = header
    layout, positions = _PROGRAM_HEADER[elf_class]
    interpreter, go = None, data.find(_GO_BUILD_INFO) >= 0
    for index in range(count):
        fields = struct.unpack_from(f"{order}{layout}", data, table_offset + index * entry_size)
        segment_type, offset, size = (fields[position] for position in positions)
        if segment_type == _PT_INTERP:
            interpreter = data[offset : offset + size].rstrip(b"\0").decode(errors="replace")
        elif segment_type == _PT_NOTE:
            go = go or _GO_NOTE in data[offset : offset + size]
    return ElfHeader((elf_class, data_encoding, machine), interpreter, go)
