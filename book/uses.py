"""Which kernels a notebook uses, found in the syntax of its code cells."""

import ast
from collections.abc import Mapping
from pathlib import Path

import nbformat


def public_names(stub: Path) -> tuple[list[str], dict[str, str]]:
    """From the package's stub: its modules, and the full names of what it re-exports ("claim": "claims.claim")."""
    modules, exported = [], {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if node.module is None:
                    modules.append(alias.name)
                else:
                    exported[alias.name] = f"{node.module}.{alias.name}"
    return modules, exported


def imported_names(cells: list[nbformat.NotebookNode]) -> dict[str, str]:
    """What of the package the code calls by which name: {"ck": "coursekit", "optim": "coursekit.optim"}."""
    names = {}
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "coursekit":
                        names[alias.asname or "coursekit"] = alias.name if alias.asname else "coursekit"
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "coursekit":
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(dotted: str, names: Mapping[str, str], exported: Mapping[str, str]) -> str | None:
    """The documented name of ``transport.wasserstein_1d`` or ``ck.claim`` in a notebook; None if it is not ours."""
    first, _, rest = dotted.partition(".")
    if first not in names:
        return None
    package, *parts = f"{names[first]}.{rest}".rstrip(".").split(".")
    if parts and parts[0] in exported:
        parts[:1] = exported[parts[0]].split(".")
    return ".".join((package, *parts))


def used_kernels(notebook: nbformat.NotebookNode, exported: Mapping[str, str]) -> dict[str, int]:
    """Full names ("coursekit.linalg.svd") of what the notebook uses, with the cell where each is first used."""
    names = imported_names([cell for cell in notebook.cells if cell.cell_type == "code"])
    found: dict[str, int] = {}
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if (dotted := _dotted(node)) and (name := full_name(dotted, names, exported)):
                    parts = name.split(".")[:3]
                    if len(parts) == 3:
                        found.setdefault(".".join(parts), index)
    return found


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return None
