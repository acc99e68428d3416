# SPDX-License-Identifier: BSD-2-Clause
"""A small assembler for eBPF, so that no compiler is needed.

Opcodes are composed of the macros of include/uapi/linux/bpf.h and bpf_common.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from attrs import frozen

# Classes of instructions, their operations, sizes and sources.
_BPF_LD, _BPF_LDX, _BPF_STX, _BPF_ALU, _BPF_JMP, _BPF_JMP32, _BPF_ALU64 = 0x00, 0x01, 0x03, 0x04, 0x05, 0x06, 0x07
_BPF_W, _BPF_DW, _BPF_IMM, _BPF_MEM = 0x00, 0x18, 0x00, 0x60
_BPF_K, _BPF_X = 0x00, 0x08
_BPF_ADD, _BPF_OR, _BPF_AND, _BPF_MOV = 0x00, 0x40, 0x50, 0xB0
_BPF_JA, _BPF_JEQ, _BPF_JGT, _BPF_JNE, _BPF_CALL, _BPF_EXIT, _BPF_JLE = 0x00, 0x10, 0x20, 0x50, 0x80, 0x90, 0xB0

MOVE = _BPF_ALU64 | _BPF_MOV | _BPF_K
COPY = _BPF_ALU64 | _BPF_MOV | _BPF_X
ADD = _BPF_ALU64 | _BPF_ADD | _BPF_K
AND_REGISTER = _BPF_ALU64 | _BPF_AND | _BPF_X
AND32 = _BPF_ALU | _BPF_AND | _BPF_K
OR32 = _BPF_ALU | _BPF_OR | _BPF_K
LOAD32 = _BPF_LDX | _BPF_MEM | _BPF_W
LOAD64 = _BPF_LDX | _BPF_MEM | _BPF_DW
STORE32 = _BPF_STX | _BPF_MEM | _BPF_W
LOAD_IMMEDIATE64 = _BPF_LD | _BPF_IMM | _BPF_DW
GOTO = _BPF_JMP | _BPF_JA
CALL = _BPF_JMP | _BPF_CALL
EXIT = _BPF_JMP | _BPF_EXIT
IF_EQUAL32 = _BPF_JMP32 | _BPF_JEQ | _BPF_K
IF_NOT_EQUAL32 = _BPF_JMP32 | _BPF_JNE | _BPF_K
IF_GREATER32 = _BPF_JMP32 | _BPF_JGT | _BPF_K
IF_AT_MOST32 = _BPF_JMP32 | _BPF_JLE | _BPF_K
IF_NOT_EQUAL_REGISTER = _BPF_JMP | _BPF_JNE | _BPF_X
IF_GREATER_REGISTER = _BPF_JMP | _BPF_JGT | _BPF_X

_INSN = struct.Struct("=BBhI")  # struct bpf_insn: code, registers, offset, immediate
_U32 = 0xFFFFFFFF


@frozen
class Op:
    """An instruction.

    A jump goes to `label`. LOAD_IMMEDIATE64 has a `value` of 64 bits and takes two slots.
    """

    code: int
    target: int = 0
    source: int = 0
    offset: int = 0
    value: int = 0
    label: str | None = None

    @property
    def slots(self) -> int:
        """Return the number of struct bpf_insn that the instruction takes."""
        return 2 if self.code == LOAD_IMMEDIATE64 else 1


def assemble(parts: Iterable[Op | str]) -> bytes:
    """Return the code of instructions. A string is a label of the instruction behind it."""
    operations: list[Op] = []
    labels: dict[str, int] = {}
    position = 0
    for part in parts:
        if isinstance(part, str):
            labels[part] = position
        else:
            operations.append(part)
            position += part.slots
    code, position = b"", 0
    for operation in operations:
        position += operation.slots
        offset = operation.offset if operation.label is None else labels[operation.label] - position
        registers = operation.source << 4 | operation.target
        code += _INSN.pack(operation.code, registers, offset, operation.value & _U32)
        if operation.code == LOAD_IMMEDIATE64:
            code += _INSN.pack(0, 0, 0, operation.value >> 32)
    return code
