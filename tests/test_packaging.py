"""What an installation holds and needs: extras, bounds, wheel and sdist, types, and imports without a network."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan.data.hdf5 import Hdf5Images
from gan.data.parquet import _open
from gan.judging.features import load_features, load_lite0
from gan.samples.animation import check_film
from pointcloud.files.meshes import read_shape
from shared_attn.runtime.extras import EXTRAS, MissingExtra, explain, importing
from shared_attn.runtime.figures import new_figure

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared_attn", "gan", "pointcloud")
# Modules whose distribution has another name, or comes with another.
DISTRIBUTIONS = {"PIL": "pillow", "starlette": "gradio"}
# Imported where they are there, from the tests, or from a checkout of the originals: no requirement.
OPTIONAL = {"triton", "timm", "model", "utils", "models", "fuzzing", "atheris"}
# torch-geometric by users, whose data sets and batches are taken.
IMPORTED_BY_LIBRARIES = {"networkx", "tensorboard", "torch-fidelity", "onnxscript", "torchvision", "torch-geometric"}


def requirements() -> dict[str, Any]:
    """The arguments that setup.py calls `setup` with."""
    called: dict[str, Any] = {}
    stand_in: Any = types.ModuleType("setuptools")
    stand_in.setup, stand_in.find_packages = called.update, lambda **_: []
    before = sys.modules.get("setuptools")
    sys.modules["setuptools"] = stand_in
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        sys.modules.pop("setuptools")
        if before is not None:
            sys.modules["setuptools"] = before
    return called


def split(requirement: str) -> tuple[str, str, str]:
    """Name, lowest version and what stands above it; every requirement has a lower bound."""
    match = re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+)((?:,<[0-9.]+)?)(?:; .+)?", requirement)
    assert match, f"{requirement}: expected name>=lowest or name>=lowest,<next"
    return match[1], match[2], match[3]


def feature_extras() -> dict[str, list[str]]:
    """The extras of users; `fuzz` is for whoever tests the readers."""
    others = ("all", "dev", "fuzz")
    return {name: found for name, found in requirements()["extras_require"].items() if name not in others}


def test_every_requirement_is_bounded_and_the_extras_are_complete() -> None:
    found = requirements()
    extras = found["extras_require"]
    assert {"eval", "points", "viz", "film", "parquet", "export", "dev", "all"} <= set(extras)
    for requirement in (*found["install_requires"], *(r for extra in extras.values() for r in extra)):
        split(requirement)
    together = {requirement for extra in feature_extras().values() for requirement in extra}
    assert set(extras["all"]) == together
    assert together <= set(extras["dev"]), "make demo and make test install .[dev]"
    assert "--editable '.[dev]'" in (ROOT / "Makefile").read_text()
    bounds: dict[str, set[str]] = {}
    for requirement in (*found["install_requires"], *together):
        bounds.setdefault(split(requirement)[0], set()).add(requirement)
    assert all(len(each) == 1 for each in bounds.values()), "one bound a package"


def test_the_lowest_versions_are_those_of_setup() -> None:
    """Regenerate a line by hand: name==lowest."""
    found = requirements()
    expected = {
        f"{name}=={low}" for name, low, _ in map(split, found["install_requires"] + found["extras_require"]["all"])
    }
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == expected
    assert "--constraint tests/lowest.txt" in (ROOT / "Makefile").read_text()


def test_what_is_installed_is_within_the_bounds() -> None:
    """The newest versions that the bounds allow are those that a fresh installation has."""

    def numbers(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", version)[:3])

    found = requirements()
    for name, low, above in map(split, found["install_requires"] + found["extras_require"]["all"]):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert numbers(low) <= numbers(version), (name, version)
        assert not above or numbers(version) < numbers(above), (name, version)


def test_the_table_of_extras_is_that_of_setup() -> None:
    extras = {name: {split(requirement)[0] for requirement in found} for name, found in feature_extras().items()}
    for module, extra in EXTRAS.items():
        assert DISTRIBUTIONS.get(module, module).replace("_", "-") in extras[extra], (module, extra)
    told = {DISTRIBUTIONS.get(module, module).replace("_", "-") for module in EXTRAS}
    assert {name for names in extras.values() for name in names} == told


def test_nothing_is_imported_that_is_not_required() -> None:
    """Every import in the packages and scripts is of a requirement, and every requirement of a feature is imported."""
    found = requirements()
    known = {split(requirement)[0] for requirement in (*found["install_requires"], *found["extras_require"]["all"])}
    own = {*PACKAGES, *(path.stem for path in (ROOT / "scripts").glob("*.py")), *sys.stdlib_module_names, *OPTIONAL}
    imported = set()
    for folder in (*PACKAGES, "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for name in names:
                    top = str(name).partition(".")[0]
                    if top not in own:
                        distribution = DISTRIBUTIONS.get(top, top).replace("_", "-")
                        assert distribution in known, (
                            f"{path.relative_to(ROOT)}:{node.lineno}: {name} is no requirement"
                        )
                        imported.add(distribution)
    assert known - imported <= IMPORTED_BY_LIBRARIES


def block(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Makes modules, and what lies in them, as good as not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in modules:
            monkeypatch.delitem(sys.modules, name)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


def read_hdf5_clouds(path: Path) -> None:
    from pointcloud.releases import hdf5_clouds

    source: Any = types.SimpleNamespace(describe=lambda _: f"--data {path}", read=lambda _: b"")
    hdf5_clouds._read(source, path, ("data",))  # type: ignore[arg-type]


CPU = torch.device("cpu")
NEEDS: list[tuple[str, str, str, Callable[[Path], Any]]] = [
    ("trimesh", "points", r"reading and writing meshes", lambda folder: read_shape(write_mesh(folder / "a.off"))),
    ("h5py", "points", r"--data .*a\.h5", lambda folder: Hdf5Images(folder / "a.h5")),
    ("h5py", "points", r"--data .*a\.h5", lambda folder: read_hdf5_clouds(folder / "a.h5")),
    ("matplotlib", "viz", r"a figure", lambda _: new_figure(1, 1)),
    ("efficientnet_lite_pytorch", "eval", r"--features lite0 .none leaves distances out.", lambda _: load_lite0(CPU)),
    ("av", "film", r"--out .*a\.mp4", lambda folder: check_film(folder / "a.mp4")),
    ("pyarrow", "parquet", r"--data ", lambda folder: _open(folder, folder / "a.parquet")),
]


def write_mesh(path: Path) -> Path:
    path.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    return path


@pytest.mark.parametrize(("module", "extra", "purpose", "use"), NEEDS)
def test_what_is_missing_is_told_with_its_command(
    module: str, extra: str, purpose: str, use: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    block(monkeypatch, module)
    with pytest.raises((MissingExtra, ValueError), match=rf"^{purpose}.*pip install 'eagan-eat\[{extra}\]'") as error:
        use(tmp_path)
    assert "\n" not in str(error.value)


def test_inceptions_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    monkeypatch.setattr("gan.judging.features.read_inception_weights", lambda _: ({}, "hash"))
    for module, name in (
        ("torchmetrics", "inception"),
        ("torch_fidelity", "inception"),
        ("pytorch_fid", "pytorch_fid"),
    ):
        with monkeypatch.context() as patch:
            block(patch, module)
            with pytest.raises(
                MissingExtra, match=rf"--features {name}: needs {module}, .*pip install 'eagan-eat\[eval\]'"
            ):
                load_features(name, CPU, weights)


def test_other_missing_modules_stay_errors_of_their_own() -> None:
    assert explain(ModuleNotFoundError("no", name="shared_attn.nothing")) is None
    with pytest.raises(ModuleNotFoundError) as error, importing("anything"):
        raise ModuleNotFoundError("no", name="nothing")
    assert not isinstance(error.value, MissingExtra)
    assert explain(ModuleNotFoundError("no", name="scipy.spatial")) == (
        "needs scipy, which is not installed: pip install 'eagan-eat[points]'"
    )


BLOCKING = """
import os
from importlib import metadata
from importlib.machinery import PathFinder

find_spec, from_name, blocked = PathFinder.find_spec, metadata.Distribution.from_name, os.environ["BLOCKED"].split()

def find_unblocked(name, *given):
    return None if name.partition(".")[0] in blocked else find_spec(name, *given)

def describe_unblocked(name):
    if name.replace("-", "_").lower() in blocked:
        raise metadata.PackageNotFoundError(name)
    return from_name(name)

PathFinder.find_spec = staticmethod(find_unblocked)
metadata.Distribution.from_name = staticmethod(describe_unblocked)
"""


def blocking(folder: Path, *modules: str) -> dict[str, str]:
    """Environment in which these modules cannot be imported."""
    (folder / "sitecustomize.py").write_text(BLOCKING)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "BLOCKED": " ".join(modules)}


@pytest.mark.parametrize(
    ("module", "script", "flags", "told"),
    [
        ("trimesh", "classify.py", ("MESH",), r"reading and writing meshes: needs trimesh, .*\[points\]'"),
        (
            "scipy",
            "segment.py",
            ("MESH", "--weights", "eat-shapes-parts", "--out", "OUT"),
            r"needs scipy, .*\[points\]'",
        ),
    ],
)
def test_a_script_tells_it_in_one_line(
    module: str, script: str, flags: tuple[str, ...], told: str, tmp_path: Path, run_script: Any
) -> None:
    given = {"MESH": write_mesh(tmp_path / "a.off"), "OUT": tmp_path / "out"}
    done = run_script(script, *(given.get(flag, flag) for flag in flags), **blocking(tmp_path, module))
    assert done.returncode == 2, done.stderr
    assert re.search(rf"(?m)^error: {told}$", done.stderr) and "Traceback" not in done.stderr


CORE_ONLY = """
import sys
from pathlib import Path
from gan.presets import GanConfig
from gan.training import train as train_gan
from pointcloud.presets import Config
from pointcloud.training import train as train_points
out = Path(sys.argv[1])
train_gan(GanConfig(images=16, batch_size=8, discriminator_steps=1, generator_width=2, discriminator_width=4,
                    features="none", evaluate_every=16, checkpoint_every=16, out=out / "gan", device="cpu"))
train_points(Config(epochs=1, batch_size=256, num_points=32, embed_channels=(8,), neighbour_channels=(), num_centres=(),
                    stem_layers=0, num_layers=1, fuse_channels=16, head_channels=(8,), norm_clouds=0,
                    out=out / "points", device="cpu"))
print("trained")
"""


def test_the_core_trains_without_any_extra(tmp_path: Path) -> None:
    """And a figure at the end of a training is left out, told with its command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **blocking(tmp_path, *EXTRAS)}
    done = subprocess.run(
        [sys.executable, "-c", CORE_ONLY, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("trained"), done.stderr
    assert "left out: a figure: needs matplotlib, which is not installed: pip install 'eagan-eat[viz]'" in (
        done.stdout + done.stderr
    )
    assert (tmp_path / "gan" / "weights.safetensors").exists() and (tmp_path / "points" / "record.json").exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built as `python -m build` builds them; what was said is said.txt."""
    pytest.importorskip("setuptools", "69", reason="setuptools is too old to build")
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "scripts", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    code = "from setuptools import build_meta as b; b.build_sdist({0!r}); b.build_wheel({0!r})".format(str(out))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=copy, check=False)
    (out / "said.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    return out


def names_in(built: Path, kind: str) -> set[str]:
    if kind == "wheel":
        with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
            return set(wheel.namelist())
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        return {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_wheel_and_sdist_hold_the_packages_and_no_tests(built: Path, kind: str) -> None:
    names = names_in(built, kind)
    data = {"gan/gallery.html", "pointcloud/files/viewer.html", *(f"{package}/py.typed" for package in PACKAGES)}
    sources = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert data | sources <= names
    folders = {name.split("/")[0] for name in names}
    assert not folders & {"tests", "results", "scripts"}
    assert any("LICENSE" in name for name in names)


def test_building_warns_of_nothing(built: Path) -> None:
    said = (built / "said.txt").read_text().splitlines()
    # What MANIFEST.in leaves out need not be there, and an environment may want no bytecode.
    expected = ("no previously-included", "byte-compiling is disabled")
    told = [line for line in said if "eprecat" in line or "warning" in line.lower()]
    assert not [line for line in told if not any(words in line for words in expected)]


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installation without its requirements."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


IMPORTING = """
import importlib, pkgutil, socket, sys
from pathlib import Path

def refuse(*_, **__):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
for package in {packages!r}:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith(("_triton", "_launch")):
            importlib.import_module(found.name)
own = [module for name, module in sys.modules.items() if name.partition(".")[0] in {packages!r}]
for module in own:  # and not from a checkout that is installed too
    assert Path(module.__file__).is_relative_to({site!r}), module.__file__
print(len(own))
"""


def test_everything_imports_from_the_wheel_in_another_folder_without_a_network(installed: Path, tmp_path: Path) -> None:
    code = IMPORTING.format(packages=PACKAGES, site=str(installed))
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert int(done.stdout) >= len([path for path in modules if not path.stem.endswith(("_triton", "_launch"))])


@pytest.mark.slow
def test_a_type_checker_sees_the_types_of_the_installation(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(
        "from gan import load_generator\n"
        "from pointcloud import load_model\n"
        "from shared_attn import create_attention\n"
        "reveal_type(create_attention('external', dim=8))\n"
        "create_attention('external', dim='eight')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"), "user.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": "", "PYTHONPATH": str(installed)},
        check=False,
    )
    assert "py.typed" not in done.stdout and "import-untyped" not in done.stdout, done.stdout
    assert re.search(r'user.py:4: note: Revealed type is "shared_attn.attention.Attention"', done.stdout), done.stdout
    assert re.search(r'user.py:5: error: .*incompatible type "str"; expected "int"', done.stdout), done.stdout
