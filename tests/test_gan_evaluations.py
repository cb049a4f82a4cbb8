"""Evaluations within a training: what a kill takes while one is made is the evaluation alone."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gan_training import blobs, lines, tiny  # noqa: F401, blobs is a fixture

from gan import reporting
from gan.training import train


def die(shown: int, out: Path, whole: Any, *arguments: Any) -> Any:
    """Stands in for a function of an evaluation, and ends the one at so many images."""
    if lines(out)[-1]["shown"] == shown:
        raise RuntimeError("killed")
    return whole(*arguments)


def test_a_run_killed_while_it_is_evaluated_loses_no_step_and_is_evaluated_again(
    blobs: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything of it is written and after all but the weights, in the midst of the run and at its end."""
    config = tiny(blobs, tmp_path / "killed")
    train(dataclasses.replace(config, out=tmp_path / "whole"))
    for shown, name in ((40, "finish_generator"), (40, "save_weights"), (80, "save_weights")):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            patch.setattr(reporting, name, partial(die, shown, config.out, getattr(reporting, name)))
            train(config)
        state = torch.load(config.out / "checkpoint.pt", weights_only=True)
        assert state["shown"] == shown and state["due"]
    train(config)
    assert not torch.load(config.out / "checkpoint.pt", weights_only=True)["due"]
    whole, killed = ([{**line, "seconds": 0} for line in lines(tmp_path / name)] for name in ("whole", "killed"))
    assert killed == whole
    for written in ("samples/0000000040.png", "samples/0000000080.png", "weights.safetensors"):
        assert (tmp_path / "killed" / written).read_bytes() == (tmp_path / "whole" / written).read_bytes()
