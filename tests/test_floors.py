"""The house as ARCHITECTURE.md draws it: every folder stands on a floor and imports only from the floors below."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finetune"

FLOORS = (  # folders of finetune/ and files beside them, from the ground up
    {"errors"},
    {"placement"},
    {
        "drawing",
        "files",
        "strict_json",
        "c_extensions",
        "statistics",
        "plan",
        "preprocessing",
        "losses",
        "heads",
        "views",
        "tiles",
    },
    {"backbones", "data", "evaluation"},
    {"weights"},
    {"network"},
    {"model_record", "timm_config"},
    {"inference", "image_batches", "extend", "model_header"},
    {"prediction_stream"},
    {"model_file"},
    {"training", "explanations", "tuning", "deploy"},
    {"runs"},
    {"config"},
    {"pages"},
    {"steps", "serving"},
    {"tasks"},
    {"jobs"},
    {"python"},
    {"__main__"},
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def folder(module: str) -> str:
    """The folder of finetune/ that a module is in, or its own name if it stands beside them."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return next(i for i, folders in enumerate(FLOORS) if folder(module) in folders)


def imports(module: str, *, lazy: bool = True) -> set[str]:
    """Modules of the project that `module` imports; without `lazy`, only what importing it runs."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    names.add(whole if whole in MODULES else child.module)
            walk(child)

    walk(tree)
    return {name for name in names if name in MODULES and name != module}


def test_every_folder_stands_on_a_floor():
    assert {folder(module) for module in MODULES} - {""} == set().union(*FLOORS)


def test_folders_import_only_from_floors_below():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports(module)
        if "" not in (folder(module), folder(other)) and folder(module) != folder(other)
        if floor(other) >= floor(module)
    ]
    assert not wrong, "\n".join(wrong)


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


def test_no_job_imports_another():
    jobs = {module for module in MODULES if module.startswith("finetune.jobs.")}
    assert not {(job, other) for job in jobs for other in imports(job) & jobs}


def test_hydra_and_lightning_stay_high_and_torch_out_of_scores():
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        if folder(module) not in ("config", ""):
            assert not roots & {"hydra", "omegaconf"}, module
        if (
            folder(module) not in ("training", "config", "steps", "jobs", "tasks")
            and module != "finetune.data.loading.module"
        ):
            assert "lightning" not in roots, module
        if folder(module) in ("evaluation", "statistics", "pages"):
            assert not roots & {"torch", "lightning", "sklearn"}, module


def test_files_stay_short():
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 350}
    assert not long
