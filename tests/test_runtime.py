"""Runtime: seeds, atomic files, checkpoints, refused changes, progress, interrupts, weights, records."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from shared_attn.runtime import launch
from shared_attn.runtime.checkpoint import load_checkpoint, save_checkpoint
from shared_attn.runtime.denormals import flush_denormals
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.interrupt import Interrupt
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.progress import Progress, read_metrics
from shared_attn.runtime.records import hash_file, write_record
from shared_attn.runtime.run_folder import open_run, read_config
from shared_attn.runtime.seeding import create_generator, mix_seed, seed_step
from shared_attn.runtime.weights import find_weights, load_weights, save_weights


@dataclass(frozen=True)
class _Config:
    data: str = "shapes"
    steps: int = 3
    device: str = "auto"


def test_seeds_are_stable_and_separate() -> None:
    assert mix_seed(0, "order", 3) == mix_seed(0, "order", 3) == 9164351724757818504
    different = {mix_seed(0, "order", 3), mix_seed(0, "order", 4), mix_seed(1, "order", 3), mix_seed(0, "orde", "r", 3)}
    assert len(different | {mix_seed("0", "order", 3), mix_seed(0, "order", "3")}) == 6
    assert all(0 <= seed < 2**63 for seed in different)


def test_generators_do_not_depend_on_history() -> None:
    first = torch.rand(4, generator=create_generator(7, "noise", 5))
    torch.rand(100)
    assert torch.equal(first, torch.rand(4, generator=create_generator(7, "noise", 5)))
    seed_step(7, 1)
    draws = torch.rand(3)
    torch.rand(9)
    seed_step(7, 1)
    assert torch.equal(draws, torch.rand(3))


def test_atomic_write_names_the_path_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "folder" / "a", tmp_path / ("long" * 80)):
        with pytest.raises(OSError, match=r"cannot be written \(\w") as caught, atomic_write(path):
            pass
        assert str(caught.value).startswith(str(path))


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_write(path, "w") as file:
        file.write("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_checkpoint_round_trip_and_previous(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step, "nested": {"w": torch.full((3,), float(step))}})
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 2 and torch.equal(state["nested"]["w"], torch.full((3,), 2.0))
    torn = (tmp_path / "checkpoint.pt").read_bytes()[:100]
    (tmp_path / "checkpoint.pt").write_bytes(torn)
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 1
    (tmp_path / "checkpoint.previous.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_checkpoint(tmp_path)


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    save_checkpoint(tmp_path, {"step": 2})
    os.replace(tmp_path / "checkpoint.pt", tmp_path / "checkpoint.new.pt")  # as a kill after the first rename leaves it
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 2
    save_checkpoint(tmp_path, {"step": 3})
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 3
    assert not (tmp_path / "checkpoint.new.pt").exists()


def test_checkpoint_never_runs_code(tmp_path: Path) -> None:
    torch.save({"evil": Path}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load_checkpoint(tmp_path)


def test_changed_configuration_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path, _Config(), free=("device",))
    open_run(tmp_path, _Config(device="cpu"), free=("device",))
    with pytest.raises(ValueError, match=r"steps was 3, is 4.*--fresh"):
        open_run(tmp_path, _Config(steps=4), free=("device",))
    assert read_config(tmp_path)["steps"] == 3
    save_checkpoint(tmp_path, {"step": 1})
    open_run(tmp_path, _Config(steps=4), fresh=True)
    assert read_config(tmp_path)["steps"] == 4 and load_checkpoint(tmp_path) is None


def test_a_run_older_than_a_field_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"data": "shapes", "device": "auto"}')
    with pytest.raises(ValueError, match="steps was 3, is 4"):
        open_run(tmp_path, _Config(steps=4))
    open_run(tmp_path, _Config())
    assert read_config(tmp_path)["steps"] == 3


def test_run_folder_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        open_run(tmp_path / "f", _Config())


def test_progress_logs_and_cuts_on_resume(tmp_path: Path) -> None:
    with Progress(tmp_path, total=30) as progress:
        for _ in range(3):
            progress.advance(10, loss=1.0)
            progress.log(loss=float(progress.shown))
    assert [line["shown"] for line in read_metrics(tmp_path)] == [10, 20, 30]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"shown": 40, "lo')  # a kill tears the last line
    with Progress(tmp_path, total=30, done=20) as progress:
        progress.advance(10)
        progress.log(loss=float("nan"))
    lines = read_metrics(tmp_path)
    assert [line["shown"] for line in lines] == [10, 20, 30]
    assert lines[-1]["loss"] is None and lines[-1]["seconds"] >= lines[1]["seconds"]


def test_interrupt_asks_then_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt, match="twice"):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="128 images; saved"):
            interrupt.stop("128 images")
    assert signal.getsignal(signal.SIGINT) is before


def test_weights_describe_themselves(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    base = torch.arange(6.0).reshape(2, 3)
    save_weights(path, {"w": base.t(), "shared": base}, {"kind": "gan.generator", "class_names": ["cat"]})
    state, header = load_weights(path, "gan.generator")
    assert torch.equal(state["w"], base.t()) and torch.equal(state["shared"], base) and header["class_names"] == ["cat"]
    with pytest.raises(ValueError, match=r"holds a gan.generator, expected a pointcloud.classifier"):
        load_weights(path, "pointcloud.classifier")
    assert find_weights(tmp_path) == path and find_weights(path) == path


def test_strange_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="not written by this suite"):
        load_weights(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="not a readable"):
        load_weights(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_weights(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"shipped weights: "):
        find_weights("no-such-name")
    with pytest.raises(ValueError, match="holds no weights"):
        find_weights(tmp_path)


def test_record_holds_what_a_reader_needs(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    (tmp_path / "data").write_bytes(b"abc")
    write_record(
        path, name="n", kind="gan", config={"seed": 1}, data={"sha256": hash_file(tmp_path / "data")}, seeds=[1],
        metrics={"fd_lite0_2k_train": 3.0}, parameters=10, multiply_adds=None, seconds=1.26, device="cpu",
    )  # fmt: skip
    record = json.loads(path.read_text())
    assert record["data"]["sha256"].startswith("ba7816bf") and record["seconds"] == 1.3
    assert {"command", "commit", "machine", "versions", "date", "curves", "note"} <= record.keys()
    assert record["machine"]["device"] == "cpu" and torch.__version__.startswith(record["versions"]["torch"])


def test_launch_refuses_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="expected auto, cpu or cuda"):
        create_fabric("tpu", "fp32")
    with pytest.raises(ValueError, match="expected auto, fp32 or bf16"):
        create_fabric("cpu", "fp8")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no usable CUDA"):
            create_fabric("cuda", "fp32")
    assert create_fabric("cpu", "fp32").device.type == "cpu"


@pytest.mark.parametrize("able", [True, False])
def test_auto_takes_bfloat16_only_where_the_device_multiplies_it(
    able: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "multiplies_bfloat16", lambda _: able)
    for precision, expected in (("auto", able), ("bf16", True), ("fp32", False)):
        with create_fabric("cpu", precision).autocast():
            assert torch.is_autocast_enabled("cpu") == expected
        assert launch.list_precisions(precision, "cpu") == (precision,)
        warned = "warning: --precision bf16" in capsys.readouterr().err
        assert warned == (precision == "bf16" and not able), "who asks for what is slow is told, others are not"
    assert launch.list_precisions("both", "cpu") == (("fp32", "bf16") if able else ("fp32",))


def test_mixed_precision_multiplies_in_bfloat16_but_leaves_inputs_whole() -> None:
    """Neighbours are chosen by coordinates, which rounding would move."""
    seen: list[torch.Tensor] = []

    class Network(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            seen.extend((x, y))
            return y

    network, x = Network(3, 2), torch.rand(5, 3)
    result = create_fabric("cpu", "bf16").setup(network)(x)
    assert torch.equal(seen[0], x) and seen[1].dtype == torch.bfloat16 and result.dtype == torch.float32
    assert network.weight.dtype == torch.float32


def test_denormals_are_zero_only_while_a_training_runs() -> None:
    def tiny() -> float:
        return (torch.tensor(1e-39) * 1).item()

    before = tiny()
    with pytest.raises(KeyboardInterrupt), flush_denormals():
        assert tiny() == 0 and (torch.tensor(1e-37) * 1).item() > 0
        with flush_denormals():
            pass
        assert tiny() == 0, "the inner one puts back what it found"
        raise KeyboardInterrupt
    assert tiny() == before
