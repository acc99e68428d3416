"""Stand-ins of uci, ubus and jsonfilter: python fake_tools.py PROGRAM DIRECTORY ARGUMENT...

DIRECTORY has network.uci, dhcp.uci and the like in the form of /etc/config, and ubus.json: path -> method -> answer.
"""

import json
import re
import shlex
import sys
from pathlib import Path

# --- uci -------------------------------------------------------------------------------------

Config = dict[str, tuple[str, dict[str, str | list[str]]]]  # section -> its type and its options


def read_config(text: str) -> Config:
    """Read a file of /etc/config. Sections without a name are named as `uci show` names them."""
    found: Config = {}
    counts: dict[str, int] = {}
    options: dict[str, str | list[str]] = {}
    for words in filter(None, (shlex.split(line, comments=True) for line in text.splitlines())):
        if words[0] == "config":
            number = counts[words[1]] = counts.get(words[1], -1) + 1
            name = words[2] if len(words) > 2 else f"@{words[1]}[{number}]"
            options = {}
            found[name] = (words[1], options)
        elif words[0] == "list":
            held = options.setdefault(words[1], [])
            assert isinstance(held, list)
            held.append(words[2])
        else:
            options[words[1]] = words[2]
    return found


def write_config(config: Config) -> str:
    lines = []
    for name, (kind, options) in config.items():
        lines.append(f"config {kind}" + ("" if name.startswith("@") else f" '{name}'"))
        for key, held in options.items():
            if isinstance(held, list):
                lines += [f"\tlist {key} '{one}'" for one in held]
            else:
                lines.append(f"\toption {key} '{held}'")
    return "".join(f"{line}\n" for line in lines)


class Uci:
    """Configuration of one directory; changes are written at once, as if each was committed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def config(self, name: str) -> Config:
        return read_config((self._folder / f"{name}.uci").read_text())

    def run(self, words: list[str]) -> int:
        words = [word for word in words if word != "-q"]
        if words == ["batch"]:
            return max([0, *(self.run(shlex.split(line)) for line in sys.stdin if line.strip())])
        verb, rest = words[0], words[1]
        place, _, value = rest.partition("=")
        name, *path = re.split(r"\.(?![^\[]*\])", place)
        config = self.config(name)
        if verb == "commit":
            return 0
        if verb == "show":
            print(shown(name, config), end="")
            return 0
        if path[0] not in config and not (verb == "set" and len(path) == 1):
            return 1
        if verb == "get":
            held = config[path[0]][1].get(path[1])
            print("" if held is None else " ".join([held] if isinstance(held, str) else held))
            return int(held is None)
        if verb == "delete":
            config.pop(path[0])
        elif len(path) == 1:
            config[path[0]] = (value, config[path[0]][1] if path[0] in config else {})
        else:
            config[path[0]][1][path[1]] = value
        (self._folder / f"{name}.uci").write_text(write_config(config))
        return 0


def shown(name: str, config: Config) -> str:
    lines = []
    for section, (kind, options) in config.items():
        lines.append(f"{name}.{section}={kind}")
        for key, held in options.items():
            values = " ".join(f"'{one}'" for one in ([held] if isinstance(held, str) else held))
            lines.append(f"{name}.{section}.{key}={values}")
    return "".join(f"{line}\n" for line in lines)


# --- ubus, jsonfilter ------------------------------------------------------------------------


def ubus(folder: Path, words: list[str]) -> int:
    _, path, method = words
    answer = json.loads((folder / "ubus.json").read_text()).get(path, {}).get(method)
    if answer is None:
        return 4
    print(json.dumps(answer))
    return 0


_STEP = re.compile(r'\.(\w+)|\["([\w-]+)"\]|\[(\*)\]|\[@\.(\w+)="([^"]*)"\]')


def jsonfilter(words: list[str]) -> int:
    """Print the matches of -e EXPRESSION, with the steps of _STEP only."""
    document, count = json.load(sys.stdin), 0
    for expression in words[1::2]:
        found, at = [document], 1
        while at < len(expression):
            step = _STEP.match(expression, at)
            assert step, expression[at:]
            at = step.end()
            found = [one for held in found for one in _stepped(held, step)]
        count += len(found)
        for one in found:
            print(one if isinstance(one, str) else json.dumps(one))
    return int(count == 0)


def _stepped(held, step) -> list:  # type: ignore[no-untyped-def, type-arg]
    key = step[1] or step[2]
    if key:
        return [held[key]] if isinstance(held, dict) and key in held else []
    if step[3]:
        return list(held) if isinstance(held, list) else []
    return [one for one in held if one.get(step[4]) == step[5]] if isinstance(held, list) else []


if __name__ == "__main__":
    program, folder, *rest = sys.argv[1:]
    sys.exit({"uci": lambda: Uci(Path(folder)).run(rest), "ubus": lambda: ubus(Path(folder), rest),
              "jsonfilter": lambda: jsonfilter(rest)}[program]())  # fmt: skip
