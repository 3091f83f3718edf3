"""The house as ARCHITECTURE.md draws it: imports only go down, and within a floor they form no cycle."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finetune"

FLOORS = {  # the longest prefix decides
    "finetune.__main__": 4,
    "finetune.jobs": 3,
    "finetune.config.build": 3,
    "finetune.config.allowed": 3,
    "finetune.config.compose": 3,
    "finetune.config.sweep": 3,
    "finetune.config.overrides": 3,
    "finetune.training": 2,
    "finetune.data.loading.module": 2,
    "finetune.explanations": 1,
    "finetune.network": 1,
    "finetune.extend": 1,
    "finetune.inference": 1,
    "finetune.model_header": 1,
    "finetune.model_file": 1,
    "finetune": 0,
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(module: str) -> int:
    return FLOORS[max((p for p in FLOORS if module == p or module.startswith(f"{p}.")), key=len)]


def imports(module: str, *, lazy: bool = True) -> set[str]:
    """Modules of the project that `module` imports; without `lazy`, only what importing it runs."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    found.add(whole if whole in MODULES else child.module)
            walk(child)

    walk(tree)
    return {name for name in found if name in MODULES and name != module}


def test_imports_only_go_down():
    wrong = [
        f"{module} (floor {floor(module)}) imports {other} (floor {floor(other)})"
        for module in MODULES
        for other in imports(module)
        if floor(other) > floor(module)
    ]
    assert not wrong


def test_imports_form_no_cycle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports(module, lazy=False)):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_hydra_stays_at_the_top_and_torch_out_of_evaluation():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        if floor(module) < 3:
            assert not roots & {"hydra", "omegaconf"}, module
        if floor(module) < 2:
            assert "lightning" not in roots, module
        if module.startswith("finetune.evaluation"):
            assert not roots & {"torch", "lightning", "sklearn"}, module


def test_files_stay_short():
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 450}
    assert not long
