"""The public Python API: its names, its exceptions, its start-up time, and the examples of the pages."""

import ast
import inspect
import io
import pkgutil
import re
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import nftpolicy
from nftpolicy import exceptions
from nftpolicy.cli.common import resolve_account
from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.exceptions import NftpolicyError
from nftpolicy.policy import objects
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load as decode
from tests.lab.limits import limit
from tests.unit.test_policy_errors import GOOD

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))

FUNCTIONS = {"compile", "describe_packet", "ip_batch", "load", "loads", "nft_text", "plan", "plan_lines", "prove"}
CONSTANTS = {"PROVED": "proved", "REFUTED": "refuted", "UNKNOWN": "unknown", "__version__": nftpolicy.__version__}
CLASSES = {
    "Account",
    "Answer",
    "Clat",
    "Counterexample",
    "Finding",
    "Forward",
    "Lan",
    "HostFacts",
    "Listen",
    "Mark",
    "NetState",
    "NftpolicyError",
    "Plan",
    "Policy",
    "PolicyError",
    "Port",
    "Proof",
    "Publish",
    "Resolver",
    "Server",
    "Service",
    "StepRejected",
    "Uplink",
}

# Exceptions that never leave the module that raises them.
CONTROL_FLOW = {
    "nftpolicy.policy.load._Faults": "a ValueError with key paths, which cattrs passes on to the decoder",
    "nftpolicy.policy.toml_positions._NotToml": "ends the scan of the positions",
    "nftpolicy.kernel.netlink.route_mover._NoFamily": "ends the decoding of a route of another family",
    "nftpolicy.netstate.formats.xt_struct.UnsupportedXt": "ends the decoding of an xt struct, which is unsupported then",
    "nftpolicy.importers.openwrt.netifd_sections.IgnoredSection": "ends the reading of a section that netifd drops",
}


# --- names --------------------------------------------------------------------------------


def test_all_is_exactly_the_public_names():
    assert set(nftpolicy.__all__) == FUNCTIONS | CLASSES | set(CONSTANTS)
    assert len(nftpolicy.__all__) == len(set(nftpolicy.__all__))


def test_public_names_have_their_kind():
    assert {name for name in nftpolicy.__all__ if inspect.isclass(getattr(nftpolicy, name))} == CLASSES
    assert {name for name in nftpolicy.__all__ if inspect.isfunction(getattr(nftpolicy, name))} == FUNCTIONS
    assert {name: getattr(nftpolicy, name) for name in CONSTANTS} == CONSTANTS


@pytest.mark.parametrize("name", sorted(FUNCTIONS | CLASSES))
def test_public_name_has_a_docstring(name):
    item = getattr(nftpolicy, name)
    # attrs and classes without a text of their own would show the signature or the text of a base.
    assert item.__doc__
    assert len(item.__doc__.split()) >= 4
    if inspect.isclass(item):
        assert item.__doc__ not in [base.__doc__ for base in item.__mro__[1:]]


def test_dir_lists_the_public_names():
    assert set(nftpolicy.__all__) <= set(dir(nftpolicy))


def test_every_class_of_a_policy_is_public():
    defined = {
        name
        for name, item in vars(objects).items()
        if inspect.isclass(item) and item.__module__ == objects.__name__ and not name.startswith("_")
    }
    assert defined <= CLASSES


def test_lazy_table_has_each_name_once():
    names = [name for group in nftpolicy._EXPORTS.values() for name in group]
    assert len(names) == len(set(names))
    own = {"compile", "ip_batch", "load", "loads", "nft_text", "prove", "__version__"}
    assert {*names, *own} == set(nftpolicy.__all__)


def test_type_checkers_see_the_lazy_names():
    module = ast.parse((ROOT / "nftpolicy/__init__.py").read_text())
    [block] = [
        node for node in module.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    typed = {
        (statement.module, alias.name)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.level
        for alias in statement.names
    }
    assert typed == {(module, name) for module, names in nftpolicy._EXPORTS.items() for name in names}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'compiler_of'"):
        _ = nftpolicy.compiler_of


def test_package_is_marked_as_typed():
    assert (ROOT / "nftpolicy/py.typed").read_bytes() == b""


# --- start-up -----------------------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    """Return the modules that the code loads, beyond those of the bare interpreter."""
    script = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}"],
        capture_output=True,
        text=True,
        timeout=limit(30),
        check=True,
    )
    return set(done.stdout.split())


def test_import_loads_nothing_else():
    assert modules_after("import __future__; import nftpolicy") <= {"nftpolicy", "__future__"}


def test_policy_class_does_not_import_the_proof():
    loaded = modules_after("from nftpolicy import Policy")
    assert "nftpolicy.policy.objects" in loaded
    assert {name for name in loaded if name.startswith(("nftpolicy.proof", "nftpolicy.model", "typer"))} == set()


# --- functions ----------------------------------------------------------------------------


@pytest.fixture
def policy():
    return nftpolicy.loads(GOOD)


def test_load_reads_a_file_as_the_command_does(tmp_path, policy):
    file = tmp_path / "policy.toml"
    file.write_text(GOOD)
    assert nftpolicy.load(file) == nftpolicy.load(str(file)) == policy == decode(GOOD.encode(), "p")[0]


def test_load_error_names_the_file(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(GOOD.replace('["bat0", "mesh*"]', "3"))
    with pytest.raises(nftpolicy.PolicyError, match=rf"^{re.escape(str(file))}:2:10: inside: expected a list"):
        nftpolicy.load(file)
    with pytest.raises(FileNotFoundError):
        nftpolicy.load(tmp_path / "absent.toml")


def test_loads_takes_text_and_bytes(policy):
    assert nftpolicy.loads(GOOD.encode()) == policy
    with pytest.raises(PolicyError, match="UTF-8"):
        nftpolicy.loads(b"\xff")
    with pytest.raises(PolicyError, match="UTF-8"):
        nftpolicy.loads('name = "\udcff"')


@pytest.mark.parametrize("item", ["root", "0", 0, 800])
def test_loads_resolves_accounts_as_the_command_does(item):
    assert nftpolicy._host_account("user", item) == resolve_account("user", item)


def test_loads_refuses_an_unknown_account():
    with pytest.raises(PolicyError, match=r"there is no group 'no-such-group' on this machine"):
        nftpolicy.loads(GOOD.replace("group = 800", 'group = "no-such-group"'))


def test_loads_uses_the_given_accounts():
    def account(kind: str, item: object) -> nftpolicy.Account:
        return nftpolicy.Account(f"{kind} {item}", item if isinstance(item, int) else 5)

    policy = nftpolicy.loads(GOOD.replace("group = 800", 'group = "vpn"'), accounts=account)
    assert policy.service["vpn"].group == nftpolicy.Account("group vpn", 5)


def test_compile_equals_the_compiler(policy):
    host = HostFacts({"eth0": ["lan1"]}, False)
    assert nftpolicy.compile(policy) == compile_policy(policy)
    assert nftpolicy.compile(policy, host) == compile_policy(policy, host)


def test_prove_covers_the_facts_of_the_host(policy):
    host = nftpolicy.HostFacts(has_egress_hook=False)
    state = nftpolicy.compile(policy, host)
    proof = nftpolicy.prove(state, policy, host)
    assert proof.verdict == nftpolicy.PROVED
    assert any("AF_PACKET sockets" in assumption for assumption in proof.assumptions)
    assert nftpolicy.prove(state, policy, usability=False).verdict == nftpolicy.REFUTED


def test_prove_without_usability_leaves_out_p3(policy):
    proof = nftpolicy.prove(nftpolicy.compile(policy), policy, usability=False)
    assert {finding.property for finding in proof.findings} == {"P1", "P2", "P5"}


def test_texts_equal_the_compile_command(policy, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(GOOD)
    state = nftpolicy.compile(policy)
    texts = {"nft": nftpolicy.nft_text(state), "ip4": nftpolicy.ip_batch(state, 4), "ip6": nftpolicy.ip_batch(state, 6)}
    for form, text in texts.items():
        command = [sys.executable, "-m", "nftpolicy", "compile", str(file), "--to", form]
        assert text == subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


# --- exceptions ---------------------------------------------------------------------------


def modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(nftpolicy.__path__, "nftpolicy.")]
    return [import_module(name) for name in names if name != "nftpolicy.__main__"]


def exception_classes() -> list[type[BaseException]]:
    """Return the exception classes that nftpolicy defines."""
    return [
        item
        for module in modules()
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, BaseException) and item.__module__ == module.__name__
    ]


def qualified(item: type) -> str:
    return f"{item.__module__}.{item.__qualname__}"


def test_every_exception_derives_from_the_base_class():
    others = {qualified(item) for item in exception_classes() if not issubclass(item, NftpolicyError)}
    assert others == set(CONTROL_FLOW)


def tree_in(text: str) -> str:
    """Return the lines of the tree: from the base class up to the end or the next line that is not indented."""
    found = re.search(r"^NftpolicyError\n(?: +.*\n?)+", text, re.MULTILINE)
    assert found
    return found[0].strip()


def test_documented_exceptions_are_the_defined_ones():
    tree, parents = {}, ["NftpolicyError"]
    for line in tree_in(exceptions.__doc__).splitlines()[1:]:
        name, module, _ = line.split(maxsplit=2)
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        tree[f"nftpolicy.{module}.{name}"] = parents[depth - 1]
    defined = [
        item for item in exception_classes() if item is not NftpolicyError and qualified(item) not in CONTROL_FLOW
    ]
    assert tree == {qualified(item): item.__bases__[0].__name__ for item in defined}


def test_exceptions_with_a_second_base_are_documented():
    second = {
        (item.__name__, base.__name__)
        for item in exception_classes()
        if issubclass(item, NftpolicyError)
        for base in item.__bases__[1:]
    }
    assert second == {("Unwritable", "ValueError"), ("UciLintError", "ValueError"), ("DumpInterrupted", "OSError")}


def test_page_has_the_same_tree():
    assert tree_in((ROOT / "docs/api.md").read_text()) == tree_in(exceptions.__doc__)


# --- pages --------------------------------------------------------------------------------

EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["api.md", "architecture.md", "engine.md"])
def test_example_of_the_page_prints_its_output(page):
    blocks = EXAMPLE.findall((ROOT / "docs" / page).read_text())
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for code, expected in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert printed.getvalue() == expected


def test_page_names_every_public_name():
    page = (ROOT / "docs/api.md").read_text()
    assert {name for name in nftpolicy.__all__ if f"`{name}`" not in page} == {"__version__"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    missing = []
    for target in re.findall(r"\]\(([^)]*)\)", text):
        file, _, anchor = target.partition("#")
        if file.startswith("https:"):
            continue
        if (file and not (page.parent / file).exists()) or (anchor and not file and anchor not in anchors):
            missing.append(target)
    assert missing == []
