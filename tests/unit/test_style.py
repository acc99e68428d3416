"""Names and English: the rules of docs/style.md that a program can check."""

import ast
import builtins
import io
import re
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.all_items import check_all

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "nftpolicy").rglob("*.py"))
PAGES = sorted(
    [
        *ROOT.glob("man/*"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*.md"),
        *ROOT.glob("rulesets/*"),
        *ROOT.glob("nftpolicy/**/*.sh"),
    ]
)
GLOSSARY = ROOT / "docs/style.md"  # names the forbidden words


def words(text: str) -> set[str]:
    return set(text.split())


# In prose: docstrings, comments, messages, pages. A word stands for its forms.
FORBIDDEN = re.compile(
    r"\b(?:wears?|worn|wearer|dressed|muffled?|ladder|errands?|somebody|nobody|everybody|whoever|whosever|told|folders?"
    r"|dead words?|can't|can not|without a word|of others|or nowhere|or not at all|not understood"
    r"|is (?:told|asked|said)|are (?:told|asked|said)|claims? of the policy)\b",
    re.IGNORECASE,
)
FORBIDDEN_IN_NAMES = {
    "wear",
    "wears",
    "worn",
    "wearer",
    "dressed",
    "told",
    "tell",
    "muffle",
    "muffled",
    "ladder",
    "errand",
    "aside",
    "doubts",
    "whose",
    "who",
}
# Pronouns, prepositions, and participles or adverbs that name no thing.
NOT_A_NAME = words(
    "of by one ones here there seen made told asked kept found mine whose who whom what which it they them these those"
    " held put given taken said from to at on in out into with within without after before behind beyond all none"
    " somebody nobody others rest same such also known sent meant shown led gone done worn lent borrowed"
)
ALLOWED_NAMES = {
    "all",  # a set of every member of an enumeration
    "known",
    "to",
    "after",
    "before",
    "within",
    "out",
    "into",
}
NOT_A_FIRST_WORD = words(
    "What Whether Who Whose Whom Where When Why How Which That This These Those There Here It Its They Them He One Ones"
    " All Both None Nothing Nobody Somebody Something Everything Everybody Some Any Each Every Other Others Same Such"
    " As At By For From In Of On To With Without Within"
)
NOT_A_FUNCTIONS_FIRST_WORD = NOT_A_FIRST_WORD | words("The A An")
# Names of programs, calls and objects that have no capital.
LOWER_CASE_NAMES = words(
    "nftpolicy nft nftables libnftables ip bpf(2) netifd dhclient dhcpcd dnsmasq ifupdown systemd-networkd"
    " systemd-resolved"
)
# Keys of stored files, by the module that stores them: a class of attrs has its fields as keys.
STORED_KEYS = {"nftpolicy/runtime/apply/history.py": {"who", "of"}}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def docstrings(file: Path):
    """(node, text) of each docstring."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node, text


def prose(file: Path):
    """(line, text) of what is written for a person in a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.start[0], token.string


@check_all(FILES, name_of)
def test_prose_has_no_forbidden_word(file):
    found = [f"{line}: {match[0]}" for line, text in prose(file) for match in FORBIDDEN.finditer(text)]
    assert found == []


@check_all(PAGES, name_of)
def test_page_has_no_forbidden_word(file):
    if file == GLOSSARY:
        return
    found = [
        f"{at}: {match[0]}"
        for at, line in enumerate(file.read_text().splitlines(), 1)
        for match in FORBIDDEN.finditer(line)
    ]
    assert found == []


def test_forbidden_words_are_found():
    assert [match[0] for match in FORBIDDEN.finditer("Nobody is told what the packet wears")] == [
        "Nobody",
        "is told",
        "wears",
    ]


def class_names(file: Path):
    """Names of the public classes of a module, and of its type aliases (not of type variables)."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for node in tree(file).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and "TypeVar(" not in ast.unparse(node.value or node.target):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if re.match("[A-Z][a-z]", ast.unparse(target)))


def test_class_names_are_unique():
    places = defaultdict(list)
    for file in FILES:
        for name in class_names(file):
            if not name.startswith("_"):
                places[name].append(name_of(file))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def definitions(file: Path):
    """(line, name) of each function, class, parameter, field and module constant, without stored keys."""
    stored = STORED_KEYS.get(name_of(file), ())
    yield from ((line, name) for line, name in all_definitions(file) if name not in stored)


def all_definitions(file: Path):
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


@check_all(FILES, name_of)
def test_name_is_no_pronoun_preposition_or_participle(file):
    refused = NOT_A_NAME - ALLOWED_NAMES
    assert [f"{line}: {name}" for line, name in definitions(file) if name.strip("_").lower() in refused] == []


@check_all(FILES, name_of)
def test_name_uses_no_forbidden_word(file):
    found = [
        f"{line}: {name}"
        for line, name in definitions(file)
        if FORBIDDEN_IN_NAMES & set(re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().split("_"))
    ]
    assert found == []


@check_all(FILES, name_of)
def test_docstring_begins_with_a_verb_or_a_noun(file):
    found = []
    for node, text in docstrings(file):
        words = text.split()
        refused = NOT_A_FIRST_WORD
        is_property = any("property" in ast.unparse(one) for one in getattr(node, "decorator_list", ()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property:
            refused = NOT_A_FUNCTIONS_FIRST_WORD
        first = words[0].strip(".,:;`")
        is_lower_case = text[0].islower() and first not in LOWER_CASE_NAMES
        if first in refused or is_lower_case:
            found.append(f"{getattr(node, 'lineno', 1)}: {' '.join(words[:6])}")
    assert found == []


def public_methods(node: ast.ClassDef) -> dict[str, bool]:
    """name -> whether it has a docstring, of the public methods and properties of a class."""
    return {
        item.name: ast.get_docstring(item) is not None
        for item in node.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and not item.name.startswith("_")
        if not any(ast.unparse(decorator).endswith((".setter", "overload")) for decorator in item.decorator_list)
    }


@cache
def documented_interfaces() -> list[frozenset[str]]:
    """Methods of each Protocol whose methods all have a docstring."""
    methods = [
        public_methods(node)
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in node.bases)
    ]
    return [frozenset(one) for one in methods if one and all(one.values())]


@check_all(FILES, name_of)
def test_public_function_has_a_docstring(file):
    """Exempt are the methods of a Protocol in a class that has all of them: the Protocol documents them."""
    missing = [
        node.name
        for node in tree(file).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        if ast.get_docstring(node) is None
    ]
    for node in tree(file).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = public_methods(node)
            exempt = {
                name for interface in documented_interfaces() if interface <= methods.keys() for name in interface
            }
            missing += [f"{node.name}.{name}" for name, has in methods.items() if not has and name not in exempt]
    assert missing == []


QUOTED = re.compile(r"`([a-z_][a-z_0-9]*)`")
# Quoted names that are not Python's: words of policy files, UCI and the shell, and options.
FOREIGN_NAMES = words("answer case interface with")


@check_all(FILES, name_of)
def test_docstring_quotes_names_that_exist(file):
    """A parameter or field that was renamed leaves its old name in a docstring."""
    text = file.read_text()
    code = text
    for _, docstring in ((node, ast.get_docstring(node, clean=False)) for node, _ in docstrings(file)):
        code = code.replace(docstring, "")
    quoted = (
        (node.name, name)
        for node, docstring in docstrings(file)
        if not isinstance(node, ast.Module)
        for name in QUOTED.findall(docstring)
    )
    assert [pair for pair in quoted if pair[1] not in FOREIGN_NAMES and not re.search(rf"\b{pair[1]}\b", code)] == []


RAISED = re.compile(r"^ +Raises:(?: +([A-Z]\w+)|\n((?: {8,}.*\n?)+))", re.MULTILINE)
LISTED = re.compile(r"^ +([A-Z]\w+):", re.MULTILINE)


@cache
def all_classes() -> set[str]:
    return {item.name for file in FILES for item in ast.walk(tree(file)) if isinstance(item, ast.ClassDef)}


@check_all(FILES, name_of)
def test_raised_exception_exists(file):
    raised = [name for each in RAISED.findall(file.read_text()) for name in (each[0], *LISTED.findall(each[1])) if name]
    assert [name for name in raised if name not in all_classes() and not hasattr(builtins, name)] == []


MODULE = re.compile(r"`((?:nftpolicy|[a-z_]+)(?:[./][a-z_0-9]+)+?(?:\.py)?)`")
PACKAGES = {path.name for path in (ROOT / "nftpolicy").iterdir() if path.is_dir()}


@check_all([*FILES, *ROOT.glob("docs/*.md")], name_of)
def test_named_module_exists(file):
    missing = []
    for found in MODULE.finditer(file.read_text()):
        if (ROOT / found[1]).is_file():  # of another language
            continue
        parts = found[1].removesuffix(".py").replace("/", ".").split(".")
        if parts[0] == "nftpolicy":
            parts = parts[1:]
        elif parts[0] not in PACKAGES:
            continue
        if not exists(parts):
            missing.append(found[1])
    assert missing == []


def exists(parts: list[str]) -> bool:
    """Return True if the parts name a module, or a name that a module defines."""
    for length in range(len(parts), 0, -1):
        path = ROOT / "nftpolicy" / Path(*parts[:length])
        if path.is_dir() or path.with_suffix(".py").is_file():
            if length == len(parts):
                return True
            module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            return length == len(parts) - 1 and re.search(rf"\b{parts[-1]}\b", module.read_text()) is not None
    return False


@check_all(sorted({file.parent for file in FILES}), name_of)
def test_directory_has_a_docstring(folder):
    text = ast.get_docstring(tree(folder / "__init__.py"))
    assert text
    assert len(text.split()) >= 5


# Names of tests. A directory stands for all modules below it, a file for itself.
TEST_PLACES = (
    "unit",
    "properties",
    "golden",
    "engines",
    "kernel",
    "leaks",
    "openwrt",
    "test_demo.py",
    "test_lab.py",
    "test_manual.py",
)
TEST_FILES = sorted(
    file
    for path in (ROOT / "tests" / place for place in TEST_PLACES)
    for file in (path.rglob("*.py") if path.is_dir() else [path])
)
MAX_TEST_NAME = 60
FORBIDDEN_IN_TEST_NAMES = FORBIDDEN_IN_NAMES | words(
    "what whom whoever it they them those nobody somebody everybody tells say says said ask asks asked"
    " walk walks ladders ground claim claims doubt errands folder folders hole holes understood others"
)


def functions_of_tests(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the test functions of a module."""
    nodes = [node for node in ast.walk(tree(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [node for node in nodes if node.name.startswith("test_")]


@check_all(TEST_FILES, name_of)
def test_test_name_is_short_plain_and_unique(file):
    tests = functions_of_tests(file)
    names = [node.name for node in tests]
    long = [f"{node.lineno}: {node.name}" for node in tests if len(node.name) > MAX_TEST_NAME]
    forbidden = [
        f"{node.lineno}: {node.name}" for node in tests if FORBIDDEN_IN_TEST_NAMES & set(node.name.lower().split("_"))
    ]
    assert (long, forbidden, sorted({name for name in names if names.count(name) > 1})) == ([], [], [])
