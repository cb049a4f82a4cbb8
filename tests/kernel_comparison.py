"""External attention's Triton kernels against their plain twin in float64, outputs and every gradient.

    TRITON_INTERPRET=1 python tests/kernel_comparison.py [number of examples]

runs them on a CPU in Triton's interpreter, over shapes, types, layouts, masks, epilogues and tiles that hypothesis
draws: in a process of its own, because Triton reads that variable once. A GPU runs `compare` on fixed cases
(tests/test_devices.py).

Legend: B batch, N tokens, C channels, W channels of the output, S memory slots.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from kernel_processes import compare_drawn
from torch import Tensor

from shared_attn.kernels import external_launch, external_plain
from shared_attn.kernels.tiling import Tiling, overridden

# Largest error beside the largest entry: float32 sums of hundreds of terms; half precision rounds operands once or
# twice on the way, and the gradients that pass through the double normalisation most of all.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
KERNELS = ("forward", "slot_gradients", "token_gradients")


class Case(NamedTuple):
    B: int = 2
    N: int = 50
    C: int = 24
    S: int = 8
    W: int | None = None  # None is C
    dtype: torch.dtype = torch.float32
    weights: torch.dtype | None = None  # None is dtype
    layout: str = "tokens"
    mask: str = "none"
    eps: float = 0.0
    gate: bool = False
    bias: bool = False
    residual: bool = False
    relu: bool = False
    scale: float = 1.0  # of the logits
    tile: int | None = None  # tokens and channels of all tiles; None is the table's


def tokens(case: Case, width: int, device: torch.device) -> Tensor:
    """(B, N, width) of unit variance, laid out as asked for."""
    B, N = case.B, case.N
    if case.layout == "map":  # channels first, as a convolution leaves it
        return torch.randn(B, width, N, device=device).to(case.dtype).mT
    if case.layout == "slice":  # of wider rows, from an address that no vector load likes
        return torch.randn(B, N, 2 * width + 1, device=device).to(case.dtype)[..., 1 : width + 1]
    if case.layout == "strided":  # neither rows nor columns lie together
        return torch.randn(B, 2 * N, 2 * width, device=device).to(case.dtype)[:, ::2, ::2]
    if case.layout == "expanded":  # one sample for all
        return torch.randn(1, N, width, device=device).to(case.dtype).expand(B, -1, -1)
    return torch.randn(B, N, width, device=device).to(case.dtype)


def mask_of(case: Case, device: torch.device) -> Tensor | None:
    if case.mask == "none":
        return None
    mask = torch.rand(case.B, case.N, device=device) < 0.6
    mask[:, 0] = True
    if case.mask == "empty":
        mask[-1] = False
    return mask


def compare(case: Case, device: torch.device | str = "cpu") -> None:
    """Raises AssertionError where the kernels are further from the twin than rounding explains."""
    device = torch.device(device)
    torch.manual_seed(case.B + case.N + case.C + case.S)
    W, weights = case.C if case.W is None or case.residual else case.W, case.weights or case.dtype
    x, grad = tokens(case, case.C, device), tokens(case, W, device)
    keys = (torch.randn(case.S, case.C, device=device) * case.scale * case.C**-0.5).to(weights)
    values = torch.randn(W, case.S, device=device).to(weights)
    bias = torch.randn(W, device=device).to(weights) if case.bias else None
    gate = torch.tensor([0.7], device=device) if case.gate else None
    mask, rest = mask_of(case, device), (case.eps, case.residual, case.relu)

    def both_ways(module: Any, active: Tensor | None, kind: torch.dtype | None) -> list[Tensor | None]:
        given = (x, keys, values, bias, gate)
        a, k, v, b, g = given if kind is None else (None if t is None else t.to(kind) for t in given)
        assert a is not None and k is not None and v is not None
        outputs = external_plain.empty_outputs(a, k, v, g, case.residual, a.dtype)
        module.forward(outputs, a, k, v, b, g, mask, *rest, a.dtype)
        y, logits, log_mass = outputs
        active = y if active is None else active.to(a.dtype)  # both backwards pass the same ReLU
        saved = (a, k, v, b, logits, log_mass, g, mask)
        gradients = module.backward(grad.to(a.dtype), active if case.relu else None, *saved, *rest)
        return [y, log_mass, *gradients]

    with ExitStack() as stack:
        for kernel in KERNELS if case.tile is not None else ():
            stack.enter_context(overridden(kernel, Tiling(case.tile, case.tile, 4, 1)))
        found = both_ways(external_launch, None, None)
    expected = both_ways(external_plain, found[0], torch.float64)
    assert found[0] is not None and found[2] is not None and found[2].dtype == x.dtype
    names = ("y", "L", "grad x", "grad keys", "grad values", "grad bias", "grad gate")
    if mask is not None:  # L of a sample without tokens has no meaning
        found[1], expected[1] = (pair[1][mask.any(dim=1)] for pair in (found, expected))  # type: ignore[index]
    for name, ours, theirs in zip(names, found, expected, strict=True):
        if ours is None or theirs is None:
            assert ours is theirs is None, name
        elif ours.numel():
            error, largest = (ours.double() - theirs).abs().max().item(), max(1.0, theirs.abs().max().item())
            # Errors of the logits are as large as the logits; a gate's gradient sums everything, with cancellation.
            # L comes from the logits alone, which nothing rounds: float32 weights neither.
            tolerance = 5e-5 if name == "L" else TOLERANCES[case.dtype] * (10 if name == "grad gate" else 1)
            allowed = tolerance * largest * max(1, case.scale / 5)
            assert error <= allowed, f"{name} is off by {error:.2g}, allowed are {allowed:.2g}: {case}"


def main(examples: int) -> None:
    from hypothesis import strategies as st

    cases = st.builds(
        Case,
        B=st.integers(1, 3),
        N=st.one_of(st.integers(1, 20), st.integers(1, 100)),
        C=st.one_of(st.integers(1, 40), st.integers(1, 140), st.just(512)),
        S=st.one_of(st.integers(1, 20), st.integers(1, 70), st.integers(1, 256)),
        W=st.one_of(st.none(), st.integers(1, 60)),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        weights=st.sampled_from([None, torch.float32]),
        layout=st.sampled_from(["tokens", "map", "slice", "strided", "expanded"]),
        mask=st.sampled_from(["none", "some", "empty"]),
        eps=st.sampled_from([0.0, 1e-9, 0.1]),
        gate=st.booleans(),
        bias=st.booleans(),
        residual=st.booleans(),
        relu=st.booleans(),
        scale=st.sampled_from([1.0, 30.0]),
        tile=st.sampled_from([None, 16]),
    )

    compare_drawn(compare, cases, examples)
    compare(Case(B=1, N=280, tile=16))  # more tiles than one program combines
    print("equal")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
