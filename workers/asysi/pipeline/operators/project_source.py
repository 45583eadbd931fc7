"""The source that an operator depends on: its module, and the project modules that it imports.

Modules of the standard library, of installed packages and of A-Sys-I itself are excluded: they change by an
upgrade, not by an edit. Comments, formatting, docstrings and the code under `if __name__ == "__main__":` are
ignored. Of a script, only the statements that the operator needs count; the rest runs the pipeline.
"""

import ast
import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_OURS = frozenset({"asysi", "asysi_operator", "asysi_ring", "llm_datagen"})
_SCRIPT = "__main__"
_Statements = list[ast.stmt]


def module_digests(module: str, needs: Sequence[str] = ()) -> dict[str, str]:
    """Return the digests of a module's source (under the name `.`) and of the project modules it imports.

    Args:
        module: name of an imported module; `__main__` is the running script.
        needs: names needed from the script.
    """
    found: dict[str, str] = {}
    waiting = [(module, ".")]
    while waiting:
        name, key = waiting.pop()
        file, package = _place(name)
        if key in found or file is None or not _is_project(name, file):
            continue
        statements = _statements(file)
        if statements is None:
            continue
        if name == _SCRIPT:
            statements = _needed(statements, set(needs))
        found[key] = digest(statements)
        waiting += [(other, other) for other in _imports(statements, package) if other not in {name, module}]
    return dict(sorted(found.items()))


def digest(statements: Iterable[ast.AST]) -> str:
    """Return a digest of source without comments, formatting and docstrings."""
    running = hashlib.sha256()
    for statement in statements:
        running.update(ast.dump(undocumented(statement)).encode())
    return running.hexdigest()[:16]


def undocumented(tree: ast.AST) -> ast.AST:
    """Remove docstrings from source in place, and return it."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return tree


def _place(name: str) -> tuple[Path | None, str]:
    """Return a module's source file (None if it has none) and its package."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return (Path(file) if file and file.endswith(".py") else None), getattr(
            module, "__package__", ""
        ) or ""
    spec = _spec(name)  # not imported yet, only inside a function
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None, ""
    return Path(spec.origin), spec.parent or ""


def _spec(name: str) -> ModuleSpec | None:
    """Return a module's spec without importing anything."""
    places: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        try:
            spec = PathFinder.find_spec(".".join(parts[:end]), places)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        places = spec.submodule_search_locations
        if places is None and end < len(parts):
            return None
    return spec


def _is_project(name: str, file: Path) -> bool:
    if name.partition(".")[0] in _OURS or {"site-packages", "dist-packages"} & set(file.parts):
        return False
    return not any(file.is_relative_to(folder) for folder in _installed())


@cache
def _installed() -> set[str]:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return {place for place in (*places, *site.getsitepackages(), site.getusersitepackages()) if place}


def _statements(file: Path) -> _Statements | None:
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        del body[0]
    return [statement for statement in body if not _is_guard(statement)]


def _is_guard(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Compare)
        and isinstance(statement.test.left, ast.Name)
        and statement.test.left.id == "__name__"
    )


def _imports(statements: _Statements, package: str) -> Iterator[str]:
    """Yield every module that source imports, including imports in functions, and parent packages."""
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*around, *([node.module] if node.module else [])])
            if base:
                yield from _with_packages(base)
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _needed(statements: _Statements, names: set[str]) -> _Statements:
    """Return the statements that bind these names, or names that those statements use."""
    kept: set[int] = set()
    growing = True
    while growing:
        growing = False
        for index, statement in enumerate(statements):
            if index not in kept and not names.isdisjoint(_bound(statement)):
                kept.add(index)
                names |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
                growing = True
    return [statements[index] for index in sorted(kept)]


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a module-level statement binds or assigns to."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            inner: ast.expr = node
            while isinstance(inner, ast.Subscript | ast.Attribute):
                inner = inner.value
            names |= {inner.id} if isinstance(inner, ast.Name) else set()
        elif isinstance(node, ast.stmt) and node is not statement:
            names |= _bound(node)
    return names
