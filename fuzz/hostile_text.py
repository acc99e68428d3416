"""Hostile text, and the places of a value where a document or a process can put it."""

import random
from ipaddress import IPv6Address

import attrs
from hypothesis import strategies as st

SEEDS = st.binary(min_size=8, max_size=8)  # one seed per example, as it costs less than a draw per character

# Pieces that end a line, a quote, a word, a comment or a here-document, or that a terminal obeys.
PIECES = (
    "\n", "\r", "\r\n", "\t", " ", "\0", "\x0b", "\x0c", "\x1b[2J", "\x1b[30m", "\x1b[31m", "\x1b]0;t\x07", "\x07",
    "\x08", "\x7f", "\x85", "\x9b1m", "\xa0", "\xad", "\u061c", "\u200b", "\u200e", "\u2028", "\u2029", "\u202e",
    "\u2066", "\ufeff", "\ud800", "\udcff", "\udfff", "\U000e0041", "\U0010ffff", "é", "日本", "'", '"', "`", "$(id)",
    "${x}", "$x", ";", "|", "&", "&&", "<", ">", "#", "\\", "\\\n", "%", "%%", "%n", "%i", "%h", "{", "}", "{{",
    "{x}", "{0}", "(", ")", "[", "]", "*", "?", "!", "~", "=", ",", ".", "..", "/", "../", "/etc/passwd", ":", "@",
    "@NFT@", "@POLICY@", "@BATCH@", "+", "-", "--", "-rf", "_", "END", "\nEND\n", "EOF", "\nEOF\n", "id", "touch x",
    "onlink", "drop", "accept", "table", "add", "flush ruleset", "ExecStart=/bin/sh", "\n[Service]\n",
    "set network.x.y=z", "nameserver", "0", "1", "0x1", "-1", "192.0.2.1", "fe80::1", "fe80::1%", "wan", "eth0",
    "lo", "all", "default", "None", "true", "a" * 16, "b" * 200,
)  # fmt: skip
MARKER = "z9q"
HEAVY = ("c" * 5000, "\ud800" * 300, "(" * 3000)


def draw_text(choices: random.Random) -> str:
    """Return hostile text: pieces in a row, or any characters; mostly with MARKER in it.

    A text that becomes several words has at least one without the marker.
    """
    kind = choices.randrange(32)
    if kind == 0:
        return choices.choice(HEAVY)
    if kind < 6:
        parts = [chr(choices.randrange(choices.choice((0x250, 0x110000)))) for _ in range(choices.randrange(1, 9))]
    else:
        parts = choices.choices(PIECES, k=choices.choice((1, 1, 2, 2, 3, 4)))
    if kind < 28:
        parts.insert(choices.randrange(len(parts) + 1), MARKER)
    return "".join(parts)


# --- places of text in a value ---------------------------------------------------------------------


def text_places(value, path=()):
    """Yield (path, text) for each text of an attrs value; an IPv6 address has the text of its zone."""
    match value:
        case str():
            yield path, value
        case IPv6Address():
            yield path, ""
        case tuple() | list():
            for index, item in enumerate(value):
                yield from text_places(item, (*path, index))
        case frozenset():
            for index, item in enumerate(sorted(value, key=repr)):
                yield from text_places(item, (*path, index))
        case dict():
            for key, item in value.items():
                if isinstance(key, str):
                    yield (*path, ("key", key)), key
                yield from text_places(item, (*path, key))
        case _ if attrs.has(type(value)):
            for field in attrs.fields(type(value)):
                yield from text_places(getattr(value, field.name), (*path, field.name))


def with_text(value, path, text):
    """Return the value with another text at a path of `text_places`."""
    if not path:
        return IPv6Address(f"{value}%{text}") if isinstance(value, IPv6Address) else text
    first, *rest = path
    match value:
        case tuple() | list():
            return type(value)(with_text(item, rest, text) if at == first else item for at, item in enumerate(value))
        case frozenset():
            items = sorted(value, key=repr)
            return frozenset(with_text(item, rest, text) if at == first else item for at, item in enumerate(items))
        case dict() if isinstance(first, tuple):
            return {text if key == first[1] else key: item for key, item in value.items()}
        case dict():
            return {key: with_text(item, rest, text) if key == first else item for key, item in value.items()}
    return attrs.evolve(value, **{first.lstrip("_"): with_text(getattr(value, first), rest, text)})
