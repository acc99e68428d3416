"""Runs of pytest in forked processes that import one module of the product from another syntax tree."""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType

import pytest
from attrs import frozen

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nftpolicy"
CACHE = ROOT / ".mutation" / "bytecode"  # of the tests, whose assertions pytest rewrites, and of unchanged modules
OPTIONS = (
    *("-x", "-q", "-m", "not kernel and not alone", "--hypothesis-profile", "first"),
    *("-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),  # Hypothesis, before the fork
)
MEMORY = 4 << 30  # bytes of a child
NO_TEST_RAN = int(pytest.ExitCode.NO_TESTS_COLLECTED)
CPU_LIMIT = 60  # seconds of a test without a measured time

KILLED, SURVIVED, TIMEOUT, UNTESTED = "killed", "survived", "time limit", "no test"


class ChangedModuleFinder(importlib.abc.MetaPathFinder):
    """Finder of one module, compiled from another tree. Writes no file."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        parts = path.relative_to(ROOT).with_suffix("").parts
        self._is_package = parts[-1] == "__init__"
        self._name = ".".join(parts[:-1] if self._is_package else parts)
        self._path, self._tree = path, tree

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        locations = [str(self._path.parent)] if self._is_package else None
        loader = _TreeLoader(fullname, str(self._path), self._tree)
        return importlib.util.spec_from_file_location(
            fullname, self._path, loader=loader, submodule_search_locations=locations
        )


class _TreeLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, self.path, "exec")


class Selection:
    """Plugin of pytest that keeps some tests; those of a file stay together, in the order of `files`.

    It ends the process with SIGVTALRM in a test that needs far more CPU time than `node_ids` has for it.
    """

    def __init__(self, files: Sequence[str], node_ids: Mapping[str, float]) -> None:
        self._files, self._node_ids = files, node_ids

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._is_wanted(item.nodeid)]
        items.sort(key=lambda item: self._files.index(item.nodeid.split("::")[0]))

    def _is_wanted(self, node_id: str) -> bool:
        return node_id in self._node_ids or node_id.split("[")[0] in self._node_ids

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_VIRTUAL, 3 + 10 * self._node_ids.get(item.nodeid, CPU_LIMIT / 10))
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@frozen
class TestSelection:
    """Test files in the order in which they run, and the tests to run in them with their seconds of CPU time."""

    __test__ = False

    files: tuple[str, ...]
    node_ids: Mapping[str, float]


def run_forked(work: Callable[[], int], cpu_limit: int, log: Path | None = None) -> int:
    """Start a process that exits with the result of `work`; return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit, cpu_limit + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.pycache_prefix, sys.dont_write_bytecode = str(CACHE), False
        os.chdir(ROOT)
        status = work()
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    finally:
        os._exit(status)


def run_tests(selections: Iterable[TestSelection], path: Path, tree: ast.Module) -> int:
    """Return pytest's exit status for the tests with the changed module; later selections only if all earlier pass."""
    sys.meta_path.insert(0, ChangedModuleFinder(path, tree))
    result = NO_TEST_RAN
    for selection in selections:
        plugin = Selection(selection.files, selection.node_ids)
        status = int(pytest.main([*OPTIONS, *selection.files], plugins=[plugin]))
        if status not in (0, NO_TEST_RAN):
            return status
        result = min(result, status)
    return result


def outcome(status: int) -> str:
    """Return the outcome of a mutant from the wait status of its process."""
    if os.WIFSIGNALED(status):
        is_limit = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL, signal.SIGVTALRM)
        return TIMEOUT if is_limit else KILLED
    code = os.WEXITSTATUS(status)
    return {0: SURVIVED, NO_TEST_RAN: UNTESTED}.get(code, KILLED)
