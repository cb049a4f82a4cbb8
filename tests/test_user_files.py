"""Many files: what arguments mean, bounded streaming, text of any size, answers that survive an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import write_box, write_small_models

from pointcloud.files.answers import Answers, tell_axes
from pointcloud.files.meshes import Shape
from pointcloud.files.prediction import Answer, classify_file, classify_files
from pointcloud.files.streaming import map_in_order, thread_pool
from pointcloud.files.user_files import UserFile, find_files
from pointcloud.models import load_model
from pointcloud.releases.text_clouds import read_text_cloud

Script = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_models(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder like those people have."""
    for name in ("a/one.off", "a/deep/two.PLY", "b/one.obj", "b/one.stl", "b/.hidden.off", ".git/x.off", "b/model.fbx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "b" / "README.txt").write_text("chairs and tables\nof a house\n")
    (tmp_path / "b" / "scan.txt").write_text("x,y,z\n0,0,0\n1,2,3\n")
    return tmp_path


def names(files: list[UserFile], folder: Path) -> list[str]:
    return [file.path.relative_to(folder).as_posix() for file in files]


def test_folders_are_searched_to_any_depth(tree: Path) -> None:
    files = find_files([tree])
    assert names(files, tree) == ["a/deep/two.PLY", "a/one.off", "b/one.obj", "b/one.stl", "b/scan.txt"]
    assert [file.name for file in files] == ["a/deep/two", "a/one", "b/one", "b/one-stl", "b/scan"]
    assert names(find_files([tree], leave_out=tree / "a"), tree) == ["b/one.obj", "b/one.stl", "b/scan.txt"]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("b/one.*", ["b/one.obj", "b/one.stl"]),
        ("**/one.o*", ["a/one.off", "b/one.obj"]),
        ("?/*.[os]*", ["a/one.off", "b/one.obj", "b/one.stl"]),
        ("a*", ["a/deep/two.PLY", "a/one.off"]),
    ],
)
def test_patterns_that_no_shell_expanded(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_files([str(tree / pattern)]), tree) == expected


def test_arguments_keep_their_order_and_files_come_once(tree: Path) -> None:
    arguments = [tree / "b" / "one.stl", tree / "a", tree / "a" / "one.off", tree / "b" / ".." / "b" / "one.stl"]
    assert names(find_files(arguments), tree) == ["b/one.stl", "a/deep/two.PLY", "a/one.off"]


def test_names_of_outputs_differ_whatever_is_given(tree: Path) -> None:
    (tree / "a" / "ONE.xyz").write_text("x")
    given_files = [tree / "a" / "one.off", tree / "b" / "one.obj", tree / "b" / "one.stl", tree / "a" / "ONE.xyz"]
    given_files += [tree / "a", tree / "b"]
    found = [file.name.lower() for file in find_files(given_files)]
    assert len(found) == len(set(found)) and found[:4] == ["one", "one-obj", "one-stl", "one-xyz"]


def test_a_file_named_like_a_pattern_is_that_file(tree: Path) -> None:
    (tree / "a[1].off").write_text("x")
    (tree / "a1.off").write_text("x")
    assert names(find_files([tree / "a[1].off"]), tree) == ["a[1].off"]


def test_arguments_without_files_are_mistakes(tree: Path) -> None:
    (tree / "empty").mkdir()
    files = find_files([tree / "empty", tree / "*.glb", tree / "absent.off", tree / "b" / "model.fbx"])
    assert ["holds no mesh" in files[0].mistake, "matches no mesh" in files[1].mistake] == [True, True]
    assert [file.mistake for file in files[2:]] == ["", ""]  # told when they are read


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.integers(0, 10), max_size=30),
    ahead=st.integers(1, 5),
    limit=st.integers(0, 12),
    threads=st.integers(0, 3),
)
def test_streams_keep_order_and_bounds(weights: list[int], ahead: int, limit: int, threads: int) -> None:
    """Whatever the sizes: results in order, an error for each odd item, and no more in flight than is allowed."""
    taken: list[int] = []
    handed = 0
    most = 0

    def items() -> Iterator[int]:
        for place in range(len(weights)):
            taken.append(place)
            flying = taken[handed:-1]  # the new one waits until there is room
            assert len(flying) <= ahead
            assert len(flying) <= 1 or sum(weights[i] for i in flying) <= limit
            yield place

    def double(place: int) -> int:
        if place % 5 == 3:
            raise ValueError(f"item {place}")
        return 2 * place

    with ThreadPoolExecutor(threads) if threads else thread_pool(1) as pool:
        stream = map_in_order(double, items(), pool=pool, ahead=ahead, weigh=weights.__getitem__, limit=limit)
        for place, result in stream:
            assert place == handed
            assert str(result) == f"item {place}" if place % 5 == 3 else result == 2 * place
            most = max(most, len(taken) - handed)
            handed += 1
    assert handed == len(weights) and most <= ahead + 1


def test_other_errors_end_a_stream_and_nothing_is_left_running() -> None:
    started = threading.active_count()

    def fail(place: int) -> int:
        return 1 // (place - 3)

    with pytest.raises(ZeroDivisionError), thread_pool(10) as pool:
        list(map_in_order(fail, range(10), pool=pool))
    assert threading.active_count() == started


TEXT = st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 3), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(
    points=TEXT,
    separator=st.sampled_from([" ", ",", ";", "\t", ", "]),
    end=st.sampled_from(["\n", "\r\n"]),
    heading=st.sampled_from(["", "12\n", "x y z\n", "# made by hand\n", "\ufeff"]),
    more=st.sampled_from(["", "7", "7 8 9"]),
    block=st.integers(1, 200),
)
def test_text_in_blocks_of_any_size_equals_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory,
    points: list[tuple[float, float, float]],
    separator: str,
    end: str,
    heading: str,
    more: str,
    block: int,
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.xyz"
    lines = [separator.join([*(repr(c) for c in point), *more.split()]) for point in points]
    path.write_bytes((heading + end.join(lines)).encode())
    if block < len(heading) + 40:
        block += 240  # the heading is looked for in the first block
    np.testing.assert_array_equal(read_text_cloud(path, block), np.array(points))


def test_a_bad_line_is_named_by_its_number_in_any_block(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    lines = ["1 2 3"] * 100
    lines[76] = "1 2 three"
    path.write_text("\n".join(lines))
    for block in (50, 10_000):
        with pytest.raises(ValueError, match="line 77: expected x y z, got '1 2 three'"):
            read_text_cloud(path, block)


def test_samples_of_large_clouds_are_distinct_points() -> None:
    points = np.arange(300_000.0).reshape(-1, 3)
    sample = Shape(points, None).sample(1000, seed=3)
    assert len(np.unique(sample, axis=0)) == 1000 and np.isin(sample[:, 0], points[:, 0]).all()
    np.testing.assert_allclose(sample.mean(0), points.mean(0), rtol=0.1)


def test_answers_do_not_depend_on_what_else_is_classified(tmp_path: Path, weights: Path) -> None:
    model = load_model(weights / "classifier.safetensors")
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).normal(size=(100 + number, 3)))
    (tmp_path / "3b.xyz").write_text("no")
    files = find_files([tmp_path])
    with thread_pool(len(files)) as pool:
        answers = dict(classify_files(model, files, up="auto", pool=pool))
    assert list(answers) == files and isinstance(answers[files[4]], ValueError)
    for file, answer in answers.items():
        if isinstance(answer, Answer):
            assert answer.as_dict() == classify_file(model, file.path, up="auto")


def test_classifying_imports_nothing_that_it_does_not_need(tmp_path: Path, weights: Path) -> None:
    """Half of a short run is imports: what pictures, trainings and compilers want stays out."""
    box = write_box(tmp_path / "box.off")
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        f"sys.argv = ['classify.py', {str(box)!r}, '--weights', {str(weights / 'classifier.safetensors')!r}]\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'classify.py')!r}, run_name='__main__')\n"
        "unwanted = 'lightning_fabric matplotlib plotly tensorboard torch_geometric torchvision torchmetrics'\n"
        "unwanted += ' torch._dynamo'\n"
        "print([name for name in unwanted.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_gltf_is_y_up_by_its_own_standard(tmp_path: Path, weights: Path) -> None:
    model, path = load_model(weights / "classifier.safetensors"), write_box(tmp_path / "box.glb")
    assert classify_file(model, path, up="auto") == classify_file(model, path, up="y")
    assert "y in 1 files (b.glb)" in tell_axes([("a.off", "z"), ("b.glb", "y")])


def test_an_interrupted_list_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    files = [UserFile(Path(f"{number}.off")) for number in range(3)]
    with pytest.raises(KeyboardInterrupt, match="interrupted after 2 of 3"), Answers(files, {}, as_json=True) as said:
        said.row(files[0], [], {"file": "0.off", "class": "chair"})
        said.skip(files[1], ValueError("1.off: is\n empty"))
        raise KeyboardInterrupt
    printed = capsys.readouterr()
    first, second = json.loads(printed.out)
    assert first == {"file": "0.off", "class": "chair"} and second == {"file": "1.off", "error": "1.off: is empty"}
    assert printed.err == "error: 1.off: is empty\n"


def test_no_files_at_all_are_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    with Answers([], {}, as_json=True):
        pass
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_while_an_object_is_cleared_away_is_not_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cleared:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: dropped.append(error.exc_type))
    files = [UserFile(Path(f"{name}.off"), name) for name in "abc"]
    with pytest.raises(KeyboardInterrupt, match="interrupted after 1 of 3"), Answers(files, {}, as_json=True) as said:
        Cleared()
        said.row(files[0], [], {"file": "a.off"})
    assert dropped == [KeyboardInterrupt]
    assert json.loads(capsys.readouterr().out) == [{"file": "a.off"}]


def test_a_batch_shows_progress_and_lists_what_it_skipped(tmp_path: Path, weights: Path, run_script: Script) -> None:
    for number in range(12):
        np.save(tmp_path / f"{number:02}.npy", np.random.default_rng(number).normal(size=(100, 3)))
    (tmp_path / "03.npy").write_bytes(b"no")
    (tmp_path / "05.npy").write_bytes(b"")
    arguments = (tmp_path, "--weights", weights / "classifier.safetensors", "--up", "auto")
    done = run_script("classify.py", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    *_, bar, first, second, last = done.stderr.replace("\r", "\n").strip().splitlines()
    assert "12/12" in bar and "file/s" in bar
    assert first.startswith(f"error: {tmp_path}/03.npy: ") and second.startswith(f"error: {tmp_path}/05.npy: ")
    assert last == "2 of 12 files could not be read"
    rows = done.stdout.splitlines()
    assert len(rows) == 11 and rows[0].split() == ["file", "class", "probability", "up", "next"]
    done = run_script("classify.py", *arguments, "--json")
    answers = json.loads(done.stdout)
    assert len(answers) == 12 and "up axis: z in " in done.stderr
    assert all(set(a) in ({"file", "error"}, {"file", "class", "probability", "top5"}) for a in answers)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, weights: Path) -> None:
    box = write_box(tmp_path / "box.off")
    command = [sys.executable, ROOT / "scripts" / "classify.py", box, "--weights", weights / "classifier.safetensors"]
    for flags in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*command, *flags], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines() == ["error: standard output: cannot be written (No space left on device)"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_what_was_written(tmp_path: Path, weights: Path) -> None:
    for number in range(400):
        np.save(tmp_path / f"{number:03}.npy", np.random.default_rng(number).normal(size=(100, 3)))
    out = tmp_path / "out"
    command = [sys.executable, ROOT / "scripts" / "segment.py", tmp_path, "--out", out, "--formats", "ply", "--json"]
    command += ["--weights", weights / "segmenter.safetensors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.ply"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in told
    assert told.replace("\r", "\n").splitlines()[-1].startswith("error: interrupted after ")
    answers = json.loads(said)
    assert len(answers) < 400 and not list(out.glob("*.tmp"))
    assert all(Path(path).exists() for answer in answers for path in answer["written"])
