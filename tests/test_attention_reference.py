"""Published weights: the original implementations' numbers, the paper's form at other sizes, and bad checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared_attn.head_to_head import PaperBlock
from shared_attn.reference import list_references, load_reference

GOLDEN = {
    "eanet.external": "ea_eanet_a",
    "eanet.multi_head": "mea_eanet_a",
    "studiogan.self_attention": "sagan_studiogan_a",
    "pct.offset": "offset_pct_a",
    "litv2.hilo": "hilo_litv2_a",
}
# No file of numbers: compared with the library itself, in tests of their own.
LIVE = {"timm.xca", "timm.spatial_reduction", "timm.window"}
NOT_CONSTRUCTOR = ("source", "layout", "mode", "grid")


def test_every_source_is_compared_with_its_original() -> None:
    assert set(list_references()) == {*GOLDEN, *LIVE}


def _to_tokens(x: Tensor, layout: str) -> Tensor:
    return {"BCHW": lambda: x.flatten(2).transpose(1, 2), "BCN": lambda: x.transpose(1, 2), "BNC": lambda: x}[layout]()


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize("source", GOLDEN)
def test_originals_numbers_are_reproduced(golden: Callable[..., Any], source: str, as_numpy: bool) -> None:
    meta, state, inputs, output = golden(GOLDEN[source])
    if as_numpy:
        state = {name: value.numpy() for name, value in state.items()}
    arguments = {key: value for key, value in meta.items() if key not in NOT_CONSTRUCTOR}
    module = load_reference(source, state, **arguments)
    assert not module.training
    x = inputs["x"]
    grid = tuple(x.shape[2:]) if meta["layout"] == "BCHW" else meta.get("grid")
    with torch.no_grad():
        y = module(_to_tokens(x, meta["layout"]), grid=grid)
    torch.testing.assert_close(y, _to_tokens(output, meta["layout"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "memory_size", "grid"), [(6, 3, (2, 5)), (24, 16, (7, 3))])
def test_other_sizes_of_the_papers_block(channels: int, memory_size: int, grid: tuple[int, int]) -> None:
    paper = PaperBlock(channels, memory_size)
    for name, statistic in paper.state_dict().items():
        if "conv2.1" in name and "num" not in name:
            statistic.copy_(torch.rand_like(statistic) + 0.5)
    state = {name: value.clone() for name, value in paper.state_dict().items()}
    module = load_reference("eanet.external", state, channels=channels, memory_size=memory_size)
    x = torch.randn(3, channels, *grid)
    y = module(_to_tokens(x, "BCHW"), grid=grid)
    torch.testing.assert_close(y, _to_tokens(paper.eval()(x), "BCHW"), rtol=0, atol=1e-5)
    module.train()(_to_tokens(x, "BCHW"))
    paper.train()(x)
    torch.testing.assert_close(module.get_submodule("norm").running_var, paper.conv2[1].running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("source", GOLDEN)
def test_loaded_weights_are_copies(golden: Callable[..., Any], source: str) -> None:
    meta, state, _, _ = golden(GOLDEN[source])
    module = load_reference(source, state, **{k: v for k, v in meta.items() if k not in NOT_CONSTRUCTOR})
    before = {name: value.clone() for name, value in state.items()}
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    assert all(torch.equal(state[name], before[name]) for name in state)


def _papers_state() -> dict[str, Any]:
    return dict(PaperBlock(8, 4).state_dict())


def test_bad_checkpoints_are_told_which_weights() -> None:
    def load(state: dict[str, Any]) -> nn.Module:
        return load_reference("eanet.external", state, channels=8, memory_size=4)

    state = _papers_state()
    del state["linear_0.weight"], state["conv2.1.running_var"]
    with pytest.raises(ValueError, match=r"missing linear_0\.weight, conv2\.1\.running_var"):
        load(state)
    with pytest.raises(ValueError, match="unexpected head"):
        load({**_papers_state(), "head": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"linear_1\.weight has shape \(4, 8, 1\), expected \(8, 4, 1\)"):
        load({**_papers_state(), "linear_1.weight": torch.zeros(4, 8, 1)})
    with pytest.raises(ValueError, match=r"conv1\.weight is not a tensor or array of numbers"):
        load({**_papers_state(), "conv1.weight": "a path"})
    old = _papers_state()
    del old["conv2.1.num_batches_tracked"]  # as before PyTorch 0.4.1
    load(old)


def test_weights_that_the_original_shares_must_agree() -> None:
    sizes = {"q_conv.weight": (2, 8, 1), "k_conv.weight": (2, 8, 1), "v_conv.weight": (8, 8, 1), "v_conv.bias": (8,)}
    sizes |= {"trans_conv.weight": (8, 8, 1), "trans_conv.bias": (8,)}
    sizes |= {f"after_norm.{name}": (8,) for name in ("weight", "bias", "running_mean", "running_var")}
    state = {name: np.ones(size, dtype=np.float32) for name, size in sizes.items()}
    load_reference("pct.offset", state, channels=8)
    state["k_conv.weight"] = 2 * state["k_conv.weight"]
    with pytest.raises(ValueError, match=r"k_conv\.weight differs"):
        load_reference("pct.offset", state, channels=8)


def test_unknown_sources_and_arguments_are_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'eanet'; there are: eanet\.external, eanet\.multi_head"):
        load_reference("eanet", {})
    with pytest.raises(ValueError, match="no option 'dim'; its options: channels, memory_size"):
        load_reference("eanet.external", {}, dim=8)
    with pytest.raises(ValueError, match="needs 'channels'"):
        load_reference("eanet.external", {})
