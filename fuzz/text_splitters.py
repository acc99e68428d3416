"""Splitters of text into the words that a program sees: ip, nft, sh, systemd, UCI, logs.

A line end is a word of its own. A word with a character that has a meaning for the program, and is not quoted, begins
with SPECIAL, so it equals no value.
"""

import re

from nftpolicy.importers.openwrt.uci_parser import parse_uci

SPECIAL = "\0special:"
_SH_OPERATORS = ";|&<>()"
_SH_SPECIAL = set("$`*?[]{}~!")
_UNIT_SPECIAL = set("%\"'\\$;")
_NFT_WORD = re.compile(r'"[^"\n]*"|[\w./\\*%@:!<>=&|^+-]+|\n|\S')
_HERE_DOCUMENT = re.compile(r"^(?!#|echo )[^\n]*<<-?'?(\w+)'?[^\n]*\n", re.MULTILINE)
_PAIR = re.compile(r'([a-z]+)=("(?:[^"\\]|\\.)*"|\S+)( |\Z)')


def split_lines(text):
    """Return the words between blanks, and the line ends; other line ends of Unicode count."""
    words = []
    for line in re.split("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", text):
        words += [*line.split(), "\n"]
    return words


def split_path(text):
    """Return the parts of a path."""
    return ["/" if part == "" else part for part in text.split("/")]


def split_nft(text):
    """Return nft's tokens."""
    without_comments = "\n".join(line if '"' in line else line.partition("#")[0] for line in text.split("\n"))
    return [_without_quotes(word) for word in _NFT_WORD.findall(without_comments)]


def _without_quotes(word):
    return word[1:-1] if word.startswith('"') and word.endswith('"') and len(word) > 1 else word


def split_ip(text):
    """Return the arguments of each line, as `ip -batch` does; it knows quotes and comments."""
    words = []
    for line in text.split("\n"):
        words += [SPECIAL + word if set(word) & set("\"'\\#") else word for word in line.split()]
        words.append("\n")
    return words


def split_sh(text):
    """Return the words of commands without comments; quoted text is part of its word."""
    words, word, special, quote, at = [], None, False, "", 0

    def end():
        nonlocal word, special
        if word is not None:
            words.append(SPECIAL + word if special else word)
        word, special = None, False

    while at < len(text):
        char = text[at]
        at += 1
        if quote == "'":
            quote, word = ("", word) if char == "'" else (quote, word + char)
        elif quote == '"':
            if char == '"':
                quote = ""
                continue
            special |= char in "$`\\"
            word += char
        elif char in "'\"":
            quote, word = char, word or ""
        elif char == "#" and word is None:
            line_end = text.find("\n", at)
            at = len(text) if line_end < 0 else line_end
        elif char in " \t":
            end()
        elif char == "\n" or char in _SH_OPERATORS:
            end()
            words.append(char)
        else:
            special |= char in _SH_SPECIAL or char == "\\" or not char.isprintable()
            word = (word or "") + char
    end()
    return words + (["unfinished quote"] if quote else [])


def split_script(text):
    """Return the words of a script: those of its commands, and those of its here-documents by lines.

    A here-document that SCRIPT ends is a script itself.
    """
    words, at = [], 0
    while match := _HERE_DOCUMENT.search(text, at):
        words += split_sh(text[at : match.end()])
        end = text.find(f"\n{match[1]}\n", match.end() - 1)
        assert end >= 0, "a here-document without end"
        document = text[match.end() : end + 1]
        is_script = match[1] == "SCRIPT"
        words += split_script(document) if is_script else [f"in document: {word}" for word in split_lines(document)]
        at = end + len(match[1]) + 2
    return words + split_sh(text[at:])


def split_unit(text):
    """Return the keys and words of a unit or key file, without comments."""
    words = []
    for line in text.split("\n"):
        if line.lstrip().startswith(("#", ";")):
            words.append("\\" if line.endswith("\\") else "\n")
            continue
        key, equals, value = (line, "", "") if line.startswith("[") else line.partition("=")
        parts = value.split() if equals else key.split()
        words += [key + equals] if equals else []
        words += [SPECIAL + part if set(part) & _UNIT_SPECIAL else part for part in parts]
        words.append("\n")
    return words


def split_uci(text):
    """Return the sections and options of a UCI file, by the importer's parser."""
    words = []
    for section in parse_uci(text.encode("utf-8", "surrogatepass"), "file", "file"):
        words += [section.type, section.name or "", "\n"]
        for name, values in section.options.items():
            words += [name, *(value.text for value in values), "\n"]
    return words


def split_log(text):
    """Return the keys and values of a line of key=value."""
    words, at = [], 0
    while match := _PAIR.match(text, at):
        value = match[2]
        if value.startswith('"'):
            value = re.sub(r"\\(u[0-9a-f]{4}|U[0-9a-f]{8}|.)", lambda escape: _unescaped(escape[1]), value[1:-1])
        words += [match[1], value, "\n"]
        at = match.end()
    assert at == len(text), (text, at)
    assert text.isprintable(), text
    return words


def _unescaped(escape):
    return chr(int(escape[1:], 16)) if len(escape) > 1 else escape


SPLITTERS = {
    "lines": split_lines, "words": split_lines, "path": split_path, "nft": split_nft, "ip": split_ip, "sh": split_sh,
    "script": split_script, "unit": split_unit, "uci": split_uci, "log": split_log,
}  # fmt: skip
