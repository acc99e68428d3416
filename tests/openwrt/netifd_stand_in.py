"""Commands for ip that netifd (of 2024-12 and 2026-07) makes of /etc/config/network."""

from collections.abc import Iterator, Mapping

from .fake_tools import Config

# Routes that are no such end of a table are left out.
_ACTIONS = ("unreachable", "prohibit", "blackhole", "throw")


def commands(config: Config, addresses: Mapping[str, Mapping[int, str]], indexes: Mapping[str, int]) -> Iterator[str]:
    """Return the commands. `addresses`: interface -> family -> ADDRESS/LENGTH. `indexes`: device -> ifindex."""
    number = {4: 0, 6: 0}
    for kind, options in config.values():
        family = 6 if kind.endswith("6") else 4
        if kind in ("rule", "rule6"):
            number[family] += 1
            yield f"-{family} rule add {_rule(options, number[family])}"
        elif kind in ("route", "route6") and options.get("type") in _ACTIONS:
            words = f"{options['type']} {options['target']} table {options['table']} metric {options['metric']}"
            yield f"-{family} route add {words} proto static"
    for name, (kind, options) in config.items():
        if kind == "interface":
            yield from _interface(options, addresses.get(name, {}), indexes.get(str(options.get("device")), 0))


def _rule(options: Mapping[str, object], number: int) -> str:
    words = [f"priority {options.get('priority', number)}"]
    words += [f"to {options['dest']}"] if "dest" in options else []
    words += [f"fwmark {options['mark']}"] if "mark" in options else []
    return " ".join([*words, f"lookup {options['lookup']}" if "lookup" in options else str(options["action"])])


def _interface(options: Mapping[str, object], addresses: Mapping[int, str], index: int) -> Iterator[str]:
    for family, address in addresses.items():
        table = options.get(f"ip{family}table")
        if table is None:
            continue
        yield f"-{family} rule add priority 10000 from {address.partition('/')[0]} lookup {table}"
        yield f"-{family} rule add priority 20000 to {address} lookup {table}"
        if family == 4:
            yield f"-4 rule add priority {90000 + index} iif lo lookup {table}"
