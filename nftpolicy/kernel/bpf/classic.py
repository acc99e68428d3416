# SPDX-License-Identifier: BSD-2-Clause
"""Classic BPF filters of sockets and system calls (include/uapi/linux/bpf_common.h, filter.h)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

# BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K, BPF_RET|BPF_K
LOAD_WORD, AND, JUMP_IF_EQUAL, JUMP_IF_NOT_LESS, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_SOCK_FILTER = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand

Instruction = tuple[int, int, int, int]


class ClassicFilter:
    """A filter in memory.

    `program` is its struct sock_fprog, valid as long as this object exists.
    """

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        code = b"".join(_SOCK_FILTER.pack(*instruction) for instruction in instructions)
        self._code = ctypes.create_string_buffer(code, len(code))
        self.program = struct.pack("@HP", len(instructions), ctypes.addressof(self._code))
