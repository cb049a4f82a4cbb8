"""Inception's weights: the published file, another one, a damaged one, and one that carries code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gan.judging import inception_weights
from gan.judging.features import load_features

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EAGAN_EAT_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def test_weights_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag, then the variable, then the cache."""
    files = [tmp_path / name for name in ("flag.pth", "variable.pth")]
    cached = tmp_path / "hub" / "checkpoints" / inception_weights.INCEPTION_FILES[1]
    cached.parent.mkdir(parents=True)
    for file in (*files, cached):
        file.touch()
    assert inception_weights.find_inception_weights(None) == cached
    monkeypatch.setenv("EAGAN_EAT_INCEPTION_WEIGHTS", str(files[1]))
    assert inception_weights.find_inception_weights(None) == files[1]
    assert inception_weights.find_inception_weights(files[0]) == files[0]


def test_weights_in_the_cache_must_be_the_published_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached = tmp_path / "hub" / "checkpoints" / inception_weights.INCEPTION_FILES[0]
    cached.parent.mkdir(parents=True)
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, cached)
    with pytest.raises(ValueError, match="its SHA-256 begins with .*; remove it"):
        load_features("inception", CPU)
    named = tmp_path / "mine.pth"
    named.write_bytes(cached.read_bytes())
    with pytest.raises(ValueError, match="other layers"):
        load_features("pytorch_fid", CPU, named)
    assert "warning: --inception-weights" in capsys.readouterr().err
    torch.save([1, 2], named)
    with pytest.raises(ValueError, match="not Inception's weights, expected"):
        load_features("inception", CPU, named)


class Burglar:
    """What a pickle can do."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("burgled"),))


@pytest.mark.parametrize("network", ["inception", "pytorch_fid"])
def test_weights_that_carry_code_do_not_run_it(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"Conv2d_1a_3x3.conv.weight": Burglar()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not Inception's weights"):
        load_features(network, CPU, tmp_path / "w.pth")
    assert not (tmp_path / "burgled").exists()
