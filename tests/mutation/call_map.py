"""Which test calls which function of the product, and how long it takes; recorded once, kept in a file."""

import ast
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType

import pytest
from attrs import frozen

from tests.mutation.child_run import OPTIONS, PACKAGE, ROOT, TestSelection, run_forked
from tests.mutation.operators import Mutant

MAP_FILE = ROOT / ".mutation" / "calls.json"
# Tests that need no kernel and call what decides a proof, a plan or an order. Those of the style and of files that
# are installed are left out.
TEST_FILES = (
    "tests/unit/test_*.py",
    "tests/golden/test_golden.py",
    "tests/properties/test_planner.py",
    "tests/properties/test_box_operations.py",
    "tests/properties/test_leaking_states.py",
)
LEFT_OUT = ("test_style", "test_architecture", "test_install", "test_netconfig", "test_systemd_dropins", "test_watch")
FIRST_FILES, FIRST_SECONDS = 4, 1.0  # of the tests that run before all others
OWN_DISCOUNT = 0.05
PATIENCE = 900  # seconds of CPU time to record one file


@frozen
class RecordedTest:
    """A test: its seconds, and the functions of the product that it calls, as path:qualified name."""

    node_id: str
    seconds: float
    calls: frozenset[str]

    @property
    def file(self) -> str:
        """The test file."""
        return self.node_id.split("::")[0]

    @property
    def function(self) -> str:
        """The test without the case of its parameters."""
        return self.node_id.split("[")[0]


class Recorder:
    """Plugin of pytest that records the functions that each test calls."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[float, list[str]]] = {}
        self._passed: set[str] = set()
        self._codes: set[CodeType] = set()
        self._collected: set[CodeType] = set()

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self._codes.add(frame.f_code)

    def pytest_sessionstart(self) -> None:
        sys.setprofile(self._trace)

    def pytest_collection_finish(self) -> None:
        sys.setprofile(None)
        self._collected = set(self._codes)  # calls of the import count for every test of the file

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._codes.clear()
        begun = time.process_time()
        sys.setprofile(self._trace)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            names = sorted(set(filter(None, map(_name, self._codes | self._collected))))
            if item.nodeid in self._passed:  # a test that fails or is skipped says nothing about a mutant
                self.tests[item.nodeid] = (round(time.process_time() - begun, 3), names)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)
        elif report.failed:
            self._passed.discard(report.nodeid)


def _name(code: CodeType) -> str:
    """Return path:name of the outermost function of a code object of the product, "" for another one."""
    if not code.co_filename.startswith(f"{PACKAGE}/"):
        return ""
    return f"{code.co_filename[len(str(PACKAGE)) + 1 :]}:{code.co_qualname.split('.<locals>')[0]}"


def test_files() -> list[str]:
    """Return the test files that mutants run."""
    files = (file for pattern in TEST_FILES for file in sorted(ROOT.glob(pattern)) if file.stem not in LEFT_OUT)
    return [str(file.relative_to(ROOT)) for file in files]


test_files.__test__ = False  # type: ignore[attr-defined]


def load(is_fresh: bool = False) -> list[RecordedTest]:
    """Return the recorded tests; record the files that are not in the map or have changed."""
    stored = {} if is_fresh or not MAP_FILE.exists() else json.loads(MAP_FILE.read_text())
    digests = {file: _digest(file) for file in test_files()}
    stale = [file for file, digest in digests.items() if stored.get(file, {}).get("digest") != digest]
    if stale:
        print(f"recording the calls of {len(stale)} test files", flush=True)
        for file, tests in _record(stale):
            stored[file] = {"digest": digests[file], "tests": tests}
            MAP_FILE.write_text(json.dumps(stored))
    return [
        RecordedTest(node_id, seconds, frozenset(calls))
        for file in digests
        for node_id, (seconds, calls) in stored[file]["tests"].items()
    ]


def _digest(file: str) -> str:
    """Return a digest of a test file and of the modules of tests that it imports."""
    sources, waiting = dict[Path, bytes](), [ROOT / file]
    while waiting:
        path = waiting.pop()
        if path not in sources and path.exists():
            sources[path] = path.read_bytes()
            waiting += _imported_files(path, sources[path])
    return hashlib.sha256(b"".join(sources[path] for path in sorted(sources))).hexdigest()


def _imported_files(path: Path, source: bytes) -> Iterator[Path]:
    """Yield the files that the modules of tests in the imports of a file may be."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            directory = path.parents[node.level - 1] if node.level else ROOT
            module = directory.joinpath(*(node.module or "").split("."))
            if module.is_relative_to(ROOT / "tests"):
                yield from (module / "__init__.py", module.with_suffix(".py"))
                yield from (module / f"{alias.name}.py" for alias in node.names)


def _record(files: Sequence[str]) -> Iterator[tuple[str, dict[str, tuple[float, list[str]]]]]:
    running: dict[int, str] = {}
    waiting = list(files)
    MAP_FILE.parent.mkdir(exist_ok=True)
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            file = waiting.pop(0)
            running[run_forked(lambda file=file: _record_file(file), PATIENCE, _log(file))] = file  # type: ignore[misc]
        pid, status = os.wait()
        file = running.pop(pid)
        result = _part(file)
        if not result.exists():
            raise SystemExit(f"{file}: its calls could not be recorded (status {status}); see {_log(file)}")
        yield file, json.loads(result.read_text())
        result.unlink()
        _log(file).unlink(missing_ok=True)


def _log(file: str) -> Path:
    return _part(file).with_suffix(".log")


def _part(file: str) -> Path:
    return MAP_FILE.parent / f"{file.replace('/', '.')}.json"


def _record_file(file: str) -> int:
    recorder = Recorder()
    status = pytest.main([*OPTIONS[1:], file], plugins=[recorder])
    _part(file).write_text(json.dumps(recorder.tests))
    return int(status)


def select(tests: Sequence[RecordedTest], mutant: Mutant, budget: float) -> tuple[TestSelection, ...]:
    """Return tests that call the function of a mutant, of at most `budget` seconds but at least one, in two selections.

    First a few quick tests that call little else, which see most mutants; then the quickest of the others, where each
    further case of a parametrized test counts as a slower one, and a test of the module's own file as a quicker one.
    For a mutant outside of functions: the tests of all functions of its module.
    """
    name = f"{mutant.path}:{mutant.function}"
    calling = [
        test
        for test in tests
        if (name in test.calls if mutant.function else any(call.startswith(name) for call in test.calls))
    ]
    calling.sort(key=lambda test: (test.seconds + 0.01) * len(test.calls))
    first: list[RecordedTest] = []
    for test in calling:
        files = {each.file for each in (*first, test)}
        if first and (len(files) > FIRST_FILES or sum(each.seconds for each in first) + test.seconds > FIRST_SECONDS):
            break
        first.append(test)
    cases, own_file = Counter[str](), f"/test_{Path(mutant.path).stem}.py"
    price: dict[str, float] = {}
    for test in calling:
        cases[test.function] += 1
        is_own_test = test.file.endswith(own_file)
        price[test.node_id] = test.seconds * cases[test.function] * (OWN_DISCOUNT if is_own_test else 1)
    others, total = [], sum(test.seconds for test in first)
    for test in sorted(calling[len(first) :], key=lambda each: price[each.node_id]):
        total += test.seconds
        if total > budget:
            break
        others.append(test)
    return tuple(_selection(part) for part in (first, others) if part)


def _selection(tests: Sequence[RecordedTest]) -> TestSelection:
    seconds: dict[str, float] = {}
    for test in tests:
        seconds[test.file] = seconds.get(test.file, 0.0) + test.seconds
    files = tuple(sorted(seconds, key=lambda file: seconds[file]))
    return TestSelection(files, {test.node_id: test.seconds for test in tests})
