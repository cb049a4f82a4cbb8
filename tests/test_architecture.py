"""The house's rules: imports run one way, importing a model stays light, files and functions stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared_attn", "gan", "pointcloud")
HEAVY = (
    "PIL",
    "scipy",
    "matplotlib",
    "plotly",
    "trimesh",
    "torch_geometric",
    "torchmetrics",
    "lightning_fabric",
    "tensorboard",
    "gradio",
)
FORBIDDEN_NAMES = {"utils", "misc", "helpers", "common"}

# A package (left) never imports those on the right.
FORBIDDEN_IMPORTS = {
    "shared_attn": ("gan", "pointcloud", "scripts"),
    "gan": ("pointcloud", "scripts"),
    "pointcloud": ("gan", "scripts"),
}


def _python_files() -> list[Path]:
    return [path for package in (*PACKAGES, "scripts", "tests") for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(path: Path, *, module_level_only: bool = False) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = list(ast.walk(tree))
    if module_level_only:
        nodes, waiting = [], list(tree.body)
        while waiting:
            node = waiting.pop()
            nodes.append(node)
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not typing_only:
                waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: relative import; write the whole name"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _area(path: Path) -> str:
    """attention, runtime or shapes for a file of shared_attn."""
    relative = path.relative_to(ROOT / "shared_attn").parts
    return relative[0] if relative[0] in ("runtime", "shapes") else "attention"


def test_imports_run_one_way() -> None:
    wrong = []
    for path in _python_files():
        package = path.relative_to(ROOT).parts[0]
        for line, module in _imports(path):
            wrong += [
                f"{path.relative_to(ROOT)}:{line}: {package} imports {module}"
                for other in FORBIDDEN_IMPORTS.get(package, ())
                if _is_within(module, other)
            ]
    assert not wrong, "\n".join(wrong)


def test_attention_runtime_and_shapes_know_nothing_of_each_other() -> None:
    wrong = []
    for path in sorted((ROOT / "shared_attn").rglob("*.py")):
        area = _area(path)
        for line, module in _imports(path):
            if not _is_within(module, "shared_attn"):
                continue
            second = module.split(".")[1] if "." in module else ""
            target = second if second in ("runtime", "shapes") else "attention"
            if target != area:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {area} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_shared_attn_imports_torch_only() -> None:
    allowed = {"torch", "triton", "shared_attn", *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in sorted((ROOT / "shared_attn").rglob("*.py"))
        for line, module in _imports(path, module_level_only=True)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_the_import_walk_sees_a_forbidden_import(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import torch\nif True:\n    import gan.presets\ndef f():\n    from pointcloud import x\n")
    assert (3, "gan.presets") in _imports(path) and (5, "pointcloud.x") in _imports(path)
    assert (5, "pointcloud.x") not in _imports(path, module_level_only=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_every_model_loads_nothing_heavy(package: str) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    code = (
        f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        f"print([h for h in {HEAVY!r} if h in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_touches_cuda_at_import() -> None:
    code = f"import torch\nfor p in {PACKAGES!r}: __import__(p)\nprint(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_files_and_functions_stay_short() -> None:
    wrong = []
    for path in _python_files():
        name = path.relative_to(ROOT)
        text = path.read_text(encoding="utf-8")
        limit = 80 if name.parts[0] == "scripts" and path.stem != "command_line" else 400
        if len(text.splitlines()) > limit:
            wrong.append(f"{name}: {len(text.splitlines())} lines, {limit} allowed")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                longest = 200 if path.stem == "training" else 60
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > longest:
                    wrong.append(f"{name}:{node.lineno}: {node.name} has {length} lines, {longest} allowed")
    assert not wrong, "\n".join(wrong)


def test_no_file_is_a_drawer_for_everything() -> None:
    assert not [path for path in _python_files() if path.stem in FORBIDDEN_NAMES]
