# SPDX-License-Identifier: BSD-2-Clause
"""Classic BPF filters of sockets and system calls (include/uapi/linux/bpf_common.h, filter.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

# BPF_LD|BPF_ABS with BPF_W, BPF_H, BPF_B; BPF_ALU|BPF_AND|BPF_K; BPF_JMP|BPF_K with BPF_JEQ, BPF_JGE, BPF_JSET;
# BPF_RET|BPF_K
LOAD_WORD, LOAD_HALF, LOAD_BYTE, AND = 0x20, 0x28, 0x30, 0x54
JUMP_IF_EQUAL, JUMP_IF_NOT_LESS, JUMP_IF_SET, RETURN = 0x15, 0x35, 0x45, 0x06
_SOCK_FILTER = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand

Instruction = tuple[int, int, int, int]


def skip_if_any(values: Sequence[int]) -> tuple[Instruction, ...]:
    """Return jumps over the next instruction if the loaded number is one of the values."""
    return tuple((JUMP_IF_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values))


class ClassicFilter:
    """A filter in memory.

    `program` is its struct sock_fprog, valid as long as this object exists.
    """

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        code = b"".join(_SOCK_FILTER.pack(*instruction) for instruction in instructions)
        self._code = ctypes.create_string_buffer(code, len(code))
        self.program = struct.pack("@HP", len(instructions), ctypes.addressof(self._code))
