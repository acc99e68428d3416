# SPDX-License-Identifier: BSD-2-Clause
"""Registers of nf_tables as symbols: which expression each of the sixteen words holds.

Sources: include/uapi/linux/netfilter/nf_tables.h (enum nft_registers), net/netfilter/nf_tables_api.c
(nft_parse_register).
"""

from __future__ import annotations

from attrs import evolve, field, frozen, mutable

from ... import nft
from .attributes import UnsupportedBytecode
from .datatypes import Column
from .values import Kind

VERDICT_REGISTER = 0
_WORDS, _WORD_SIZE = 16, 4  # bytes
_FIRST_WORD = 8  # NFT_REG32_00
_WORDS_PER_REGISTER = 4  # of NFT_REG_1 to NFT_REG_4


@frozen
class Constant:
    """Bytes that the rule itself contains."""

    raw: bytes

    @property
    def length(self) -> int:
        """Return the number of bytes."""
        return len(self.raw)


@frozen(eq=False)
class MapData:
    """The data that a lookup of `key` in a map gives; `columns` are those of the key.

    The kernel ends the rule where the map does not have the key.
    """

    key: nft.Expression
    columns: tuple[Column, ...]
    map_name: str
    length: int
    uses: list[None] = field(factory=list)  # as of Content


@frozen(eq=False)
class Content:
    """An expression in a register, as a number of `length` bytes in byte order `order`.

    The number is (`source` & `mask`) ^ `flip`; `mask` None keeps all bits. `may_break`: the kernel
    ends the rule where it cannot load the expression. `is_padded`: the rest of its last word is zero,
    as behind every load.
    """

    source: nft.Expression
    kind: Kind
    length: int
    order: str
    mask: int | None = None
    flip: int = 0
    may_break: bool = True
    is_padded: bool = True
    uses: list[None] = field(
        factory=list
    )  # one for each use in a test or a write; shared with what is computed from it

    def masked(self, mask: int, flip: int) -> Content:
        """Return the content after a further (number & mask) ^ flip."""
        old = (1 << 8 * self.length) - 1 if self.mask is None else self.mask
        return evolve(self, mask=old & mask, flip=self.flip & mask ^ flip, is_padded=True)

    def fits(self, length: int, order: str) -> bool:
        """Return True if the number is the same in `length` bytes of a register in byte order `order`."""
        if self.length == length:
            return self.order == order or length == 1
        # The rest of the word: higher digits of a number whose lowest byte comes first.
        is_little = order == "little" and (self.order == order or self.length == 1)
        return is_little and self.is_padded and self.length < length <= self.length + -self.length % _WORD_SIZE

    def widened(self, length: int, order: str) -> Content:
        """Return the content as a number of `length` bytes. Raises UnsupportedBytecode."""
        if length == self.length:
            return self
        if not self.fits(length, order):
            raise UnsupportedBytecode("an operation on more bytes than a value has")
        return evolve(self, length=length, order=order)


RegisterValue = Content | Constant | MapData


def word_of(register: int) -> int:
    """Return the first word of a register. Raises UnsupportedBytecode for one that holds no data."""
    if _FIRST_WORD <= register < _FIRST_WORD + _WORDS:
        return register - _FIRST_WORD
    if 1 <= register <= _WORDS // _WORDS_PER_REGISTER:
        return (register - 1) * _WORDS_PER_REGISTER
    raise UnsupportedBytecode(f"register {register}")


@mutable
class Registers:
    """The words: what each holds, and which word of it."""

    _words: dict[int, tuple[RegisterValue, int]] = field(factory=dict)

    def store(self, register: int, stored: RegisterValue) -> None:
        """Store in a register and the ones behind it. Raises UnsupportedBytecode."""
        first = word_of(register)
        count = -(-stored.length // _WORD_SIZE)
        if first + count > _WORDS:
            raise UnsupportedBytecode("a value behind the last register")
        for index in range(count):
            self._words[first + index] = (stored, index)

    def load(self, register: int, length: int) -> list[tuple[RegisterValue, int]]:
        """Return the values in `length` bytes from a register on, and how many bytes of each.

        Each begins at a word. Only of the last one the end may be missing.

        Raises:
            UnsupportedBytecode: a register holds nothing, or another part of a value.
        """
        word, remaining = word_of(register), length
        entries: list[tuple[RegisterValue, int]] = []
        while remaining > 0:
            stored, index = self._words.get(word, (None, 0))
            if stored is None or index:
                raise UnsupportedBytecode(f"register word {word} holds no whole value")
            count = -(-min(stored.length, remaining) // _WORD_SIZE)
            for offset in range(1, count):
                other, index = self._words.get(word + offset, (None, 0))
                if other is not stored or index != offset:
                    raise UnsupportedBytecode("a value of which a part is overwritten")
            entries.append((stored, min(stored.length, remaining)))
            word += count
            remaining -= count * _WORD_SIZE
        return entries

    def offset(self, register: int) -> tuple[RegisterValue | None, int]:
        """Return the value that a register is in, and the number of its bytes before the register."""
        stored, index = self._words.get(word_of(register), (None, 0))
        return stored, index * _WORD_SIZE

    def first(self, register: int) -> RegisterValue | None:
        """Return the value that begins in a register, or None."""
        stored, index = self.offset(register)
        return None if index else stored

    def clear(self) -> None:
        """Forget all values."""
        self._words.clear()

    def forget(self) -> None:
        """Forget all values but constants: the packet has changed since they were loaded."""
        self._words = {word: stored for word, stored in self._words.items() if isinstance(stored[0], Constant)}
