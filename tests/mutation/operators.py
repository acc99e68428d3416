"""Small changes of a Python module, each at one node of its syntax tree."""

import ast
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
}
TWINS = {"any": "all", "all": "any", "min": "max", "max": "min"}
COLLECTIONS = ("tuple", "list", "set", "dict", "frozenset", "Sequence", "Mapping", "Iterable")
EMPTY = ast.parse("()").body[0].value  # type: ignore[attr-defined]


@frozen
class Mutant:
    """One change of a module of the package; `number` counts the changes of the module."""

    path: str  # below the package
    line: int
    function: str  # qualified name, "" outside of functions
    change: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function or 'module'}: {self.change}"


@frozen
class Place:
    """A field of a node, or an element of a list in it, in the tree of one module."""

    parent: ast.AST
    field: str
    index: int | None
    function: str  # with () if it is one, with a dot after a class

    @property
    def qualified_name(self) -> str:
        """Return the function as code objects name it; "" outside of functions."""
        return self.function.removesuffix("()") if self.function.endswith("()") else ""

    def put(self, node: object) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
            return
        nodes = getattr(self.parent, self.field)
        nodes[self.index : self.index + 1] = [node] if node is not None else []


@frozen
class Change:
    """A replacement of the node at a place."""

    place: Place
    node: ast.AST
    kind: str
    replacement: ast.AST | None

    @property
    def line(self) -> int:
        return int(getattr(self.node, "lineno", 0) or getattr(self.place.parent, "lineno", 0))

    def describe(self) -> str:
        before = " ".join(ast.unparse(self.node).split())
        after = "" if self.replacement is None else " ".join(ast.unparse(self.replacement).split())
        if isinstance(self.node, ast.stmt) and len(before) > 100:
            before = before[:100] + " ..."
        if isinstance(self.replacement, ast.If | ast.While | ast.For | ast.FunctionDef):
            after = after[:100] + " ..."
        return f"{self.kind}: {before}" + (f" -> {after}" if after else "")

    def apply(self) -> None:
        self.place.put(self.replacement)


def changes(tree: ast.Module) -> Iterator[Change]:
    """Yield every change of a module, always in the same order."""
    yield from _below(tree, "")


def _below(node: ast.AST, function: str) -> Iterator[Change]:
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment", "type_params", "bases"):
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if isinstance(child, ast.AST) and not _is_skipped(child):
                inner = _inner_name(child, function)
                place = Place(node, field, index, inner if isinstance(child, ast.FunctionDef) else function)
                for kind, replacement in _replacements(child, place):
                    if replacement is not None:
                        ast.fix_missing_locations(ast.copy_location(replacement, child))
                    yield Change(place, child, kind, replacement)
                yield from _below(child, inner)


def _inner_name(node: ast.AST, function: str) -> str:
    """Return the qualified name of the outermost function or method that holds the children of a node."""
    if isinstance(node, ast.ClassDef) and "()" not in function:
        return f"{function}{node.name}."
    if isinstance(node, ast.FunctionDef) and "()" not in function:
        return f"{function}{node.name}()"
    return function


def _is_skipped(node: ast.AST) -> bool:
    """Return True for imports, docstrings, assertions, messages, types and names of exported objects."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr | ast.Raise):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
        return True
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def _replacements(node: ast.AST, place: Place) -> Iterator[tuple[str, ast.AST | None]]:
    for kind in type(node).__mro__:
        if kind in _MUTATORS:
            yield from _MUTATORS[kind](node, place)  # type: ignore[index]


def _compare(node: ast.Compare, place: Place) -> Iterator[tuple[str, ast.AST]]:
    for index, operator in enumerate(node.ops):
        for twin in COMPARISONS[type(operator)]:
            changed = copy.deepcopy(node)
            changed.ops[index] = twin()
            yield "comparison", changed


def _boolean(node: ast.BoolOp, place: Place) -> Iterator[tuple[str, ast.AST]]:
    yield "and/or", ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    for index in range(len(node.values)):
        values = [*node.values[:index], *node.values[index + 1 :]]
        yield "operand gone", values[0] if len(values) == 1 else ast.BoolOp(node.op, values)


def _unary(node: ast.UnaryOp, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.op, ast.Not | ast.Invert | ast.USub):
        yield "sign gone", node.operand


def _binary(node: ast.BinOp, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if type(node.op) in OPERATORS:
        yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)


def _constant(node: ast.Constant, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield "constant", ast.Constant(node.value + 1)
        yield "constant", ast.Constant(node.value - 1)


def _condition(node: ast.If | ast.While | ast.IfExp, place: Place) -> Iterator[tuple[str, ast.AST]]:
    variants: list[tuple[str, ast.expr]] = [("condition negated", ast.UnaryOp(ast.Not(), node.test))]
    if not isinstance(node, ast.While):
        variants += [("condition true", ast.Constant(True)), ("condition false", ast.Constant(False))]
    for kind, test in variants:
        changed = copy.copy(node)
        changed.test = test
        yield kind, changed


def _comprehension(node: ast.comprehension, place: Place) -> Iterator[tuple[str, ast.AST]]:
    for index in range(len(node.ifs)):
        yield (
            "condition gone",
            ast.comprehension(node.target, node.iter, [*node.ifs[:index], *node.ifs[index + 1 :]], node.is_async),
        )


def _return(node: ast.Return, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if node.value is None:
        yield "statement gone", ast.Pass()
        return
    text = ast.unparse(node.value)
    for value in (ast.Constant(None), ast.Constant(True), ast.Constant(False), EMPTY):
        if ast.unparse(value) != text and (text in ("True", "False")) == isinstance(
            getattr(value, "value", None), bool
        ):
            yield "result", ast.Return(value)


def _expression_statement(node: ast.Expr, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, ast.Yield | ast.YieldFrom):
        yield "statement gone", ast.Expr(ast.YieldFrom(EMPTY))  # the function stays a generator
    else:
        yield "statement gone", ast.Pass()


def _write(node: ast.Assign | ast.AugAssign, place: Place) -> Iterator[tuple[str, ast.AST]]:
    """Yield the removal of a write that does not define a name."""
    if isinstance(node, ast.AugAssign):
        yield "statement gone", ast.Pass()
        if isinstance(node.op, ast.BitOr | ast.Add):
            yield "assigned, not added", ast.Assign([node.target], node.value)
    elif not any(isinstance(target, ast.Name | ast.Tuple) for target in node.targets) and place.function.endswith(")"):
        yield "statement gone", ast.Pass()


def _loop_exit(node: ast.Continue | ast.Break, place: Place) -> Iterator[tuple[str, ast.AST]]:
    yield "loop exit", ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
    yield "statement gone", ast.Pass()


def _elements(node: ast.Tuple | ast.List | ast.Set, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load) or place.field in ("slice", "target"):
        return
    if len(node.elts) < 2 and isinstance(node, ast.Set):
        return
    for index in range(len(node.elts)):
        changed = copy.copy(node)
        changed.elts = [*node.elts[:index], *node.elts[index + 1 :]]
        yield "element gone", changed


def _entries(node: ast.Dict, place: Place) -> Iterator[tuple[str, ast.AST]]:
    for index in range(len(node.keys)):
        keys = [*node.keys[:index], *node.keys[index + 1 :]]
        yield "entry gone", ast.Dict(keys, [*node.values[:index], *node.values[index + 1 :]])


def _call(node: ast.Call, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.func, ast.Name) and node.func.id in TWINS:
        yield "twin", ast.Call(ast.Name(TWINS[node.func.id], ast.Load()), node.args, node.keywords)
    if len(node.args) >= 2 and not any(isinstance(each, ast.Starred) for each in node.args[:2]):
        first, second, *others = node.args
        is_symmetric = isinstance(node.func, ast.Name) and node.func.id in ("max", "min")
        if not is_symmetric and ast.dump(first) != ast.dump(second):
            yield "arguments swapped", ast.Call(node.func, [second, first, *others], node.keywords)
    for index in range(len(node.keywords)):
        keywords = [*node.keywords[:index], *node.keywords[index + 1 :]]
        yield "keyword gone", ast.Call(node.func, node.args, keywords)


def _slice(node: ast.Slice, place: Place) -> Iterator[tuple[str, ast.AST]]:
    if node.lower is not None:
        yield "bound gone", ast.Slice(None, node.upper, node.step)
    if node.upper is not None:
        yield "bound gone", ast.Slice(node.lower, None, node.step)


def _function(node: ast.FunctionDef, place: Place) -> Iterator[tuple[str, ast.AST]]:
    """Yield the function with a body that only returns: True and False, an empty value, or no value."""
    if _is_trivial(node):
        return
    hint = "" if node.returns is None else ast.unparse(node.returns)
    values: tuple[str, ...] = ("return None",)
    if hint == "bool":
        values = ("return True", "return False")
    elif hint.startswith("Iterator"):
        values = ("yield from ()",)
    elif hint.startswith(COLLECTIONS):
        values = (
            f"return {'{}' if hint.startswith(('dict', 'Mapping')) else '[]' if hint.startswith('list') else '()'}",
        )
    for value in values:
        changed = copy.copy(node)
        changed.body = ast.parse(value if value.startswith("return") else f"def _(): {value}").body
        if isinstance(changed.body[0], ast.FunctionDef):
            changed.body = changed.body[0].body
        yield f"body: {value}", changed


def _is_trivial(node: ast.FunctionDef) -> bool:
    statements = [
        each for each in node.body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
    ]
    return len(statements) == 0 or (len(statements) == 1 and isinstance(statements[0], ast.Return | ast.Pass))


_MUTATORS: dict[type, Callable[..., Iterator[tuple[str, ast.AST]]]] = {
    ast.Compare: _compare,
    ast.BoolOp: _boolean,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Constant: _constant,
    ast.If: _condition,
    ast.While: _condition,
    ast.IfExp: _condition,
    ast.comprehension: _comprehension,
    ast.Return: _return,
    ast.Expr: _expression_statement,
    ast.Assign: _write,
    ast.AugAssign: _write,
    ast.Continue: _loop_exit,
    ast.Break: _loop_exit,
    ast.Tuple: _elements,
    ast.List: _elements,
    ast.Set: _elements,
    ast.Dict: _entries,
    ast.Call: _call,
    ast.Slice: _slice,
    ast.FunctionDef: _function,
}


def mutants(path: str, source: str) -> list[Mutant]:
    """Return the mutants of a module of the package."""
    return [
        Mutant(path, change.line, change.place.qualified_name, change.describe(), number)
        for number, change in enumerate(changes(ast.parse(source)))
    ]


def mutate(source: str, number: int) -> ast.Module:
    """Return the tree of a module with one change."""
    tree = ast.parse(source)
    change = next(change for at, change in enumerate(changes(tree)) if at == number)
    change.apply()
    return ast.fix_missing_locations(tree)


def package_files(root: Path, parts: list[str]) -> list[str]:
    """Return the modules below each part, a package, or a module or pattern of modules, as paths below the root."""
    files = set()
    for part in parts:
        path = root / part
        files |= set(path.rglob("*.py") if path.is_dir() else root.glob(part))
    return sorted(str(file.relative_to(root)) for file in files)
