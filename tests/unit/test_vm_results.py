"""script/vm passes nothing that has no control, and nothing that gave no answer."""

import json
from collections.abc import Iterator, Sequence

import pytest

from tests.platforms import vm
from tests.platforms.early_sender import FRAME_SOURCE, GUARDED, MARKED, REMOVED, UNMARKED

FRAME = b"\xff" * 6 + FRAME_SOURCE + UNMARKED  # of a packet socket
CONTROL = [UNMARKED, UNMARKED, FRAME]
GOOD = [CONTROL, [MARKED, REMOVED]]


class Machine:
    """Answers all tests but `silent`; `frames` are those of each boot."""

    def __init__(self, frames: Sequence[Sequence[bytes]], silent: str = "") -> None:
        self._frames, self._silent, self._boots = frames, silent, -1

    def boot(self, names: Sequence[str], seconds: float) -> Iterator[str]:
        self._boots += 1
        for name in names:
            if name != self._silent:
                yield json.dumps({"test": name, "result": "passed", "count": "", "seconds": 1})
        yield "a line of another program"

    def frames(self) -> Iterator[bytes]:
        return iter(self._frames[self._boots])

    def console(self) -> list[str]:
        return ["the last words"]


def results(machine: Machine, *names: str) -> dict[str, str]:
    return {answer["test"]: answer["result"] for answer in vm._run(machine, names)}  # type: ignore[arg-type]


def test_frames_of_both_boots_decide_about_the_guard() -> None:
    found = results(Machine(GOOD), "boot", "removal")
    assert found == dict.fromkeys(("package", "install", "boot", "removal"), "passed")


@pytest.mark.parametrize(
    ("first", "second", "test"),
    [
        ([], [MARKED, REMOVED], "boot"),
        ([UNMARKED], [MARKED, REMOVED], "boot"),
        (CONTROL, [MARKED, UNMARKED, REMOVED], "boot"),
        (CONTROL, [FRAME, MARKED, REMOVED], "boot"),
        (CONTROL, [MARKED, GUARDED, REMOVED], "boot"),
        (CONTROL, [REMOVED], "boot"),
        (CONTROL, [MARKED], "removal"),
    ],
    ids=[
        "no control",
        "no control frame",
        "leak",
        "leak of an early frame",
        "leak of a frame",
        "no marked packet",
        "closed after the removal",
    ],
)
def test_wrong_frames_fail(first: list[bytes], second: list[bytes], test: str) -> None:
    found = results(Machine([first, second]), "boot", "removal")
    assert [name for name, result in found.items() if result != "passed"] == [test]


def test_missing_answer_fails() -> None:
    assert results(Machine(GOOD, silent="demo"), "demo") == {"package": "passed", "demo": "failed: no answer"}
