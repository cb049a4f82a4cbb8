"""External attention's operator on the CPU, what chooses its kernels, the kernels in Triton's interpreter, and their
compilation for a GPU that is not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_processes import interpret, run_python
from torch import Tensor

from shared_attn import kernels
from shared_attn.functional import external_attention, external_attention_residual
from shared_attn.kernels import takes_external_attention
from shared_attn.kernels.benchmark import SIZES, Size, time_kernels, tune
from shared_attn.kernels.external import external_attention as operator
from shared_attn.kernels.tiling import LARGE_SHARED_MEMORY, Tiling, candidates, overridden, padded_slots, tiling
from shared_attn.kernels.traffic import expected_bytes, keeps_logits

ROOT = Path(__file__).resolve().parents[1]
B, N, C, S = 2, 9, 24, 3
EVERYTHING = {"gate", "mask", "relu", "residual"}
EPILOGUES = [set(), {"mask"}, {"residual", "relu"}, {"residual", "gate"}, {"gate"}, {"relu", "mask"}, EVERYTHING]


def _in_words(epilogue: set[str]) -> str:
    """A test's name, the same in every process."""
    return " and ".join(sorted(epilogue)) or "nothing"


def _arguments(epilogue: set[str], dtype: torch.dtype = torch.float64, eps: float = 1e-3) -> list[Any]:
    """The operator's, on leaves that require gradients."""
    shapes = ((B, N, C), (S, C), (C, S), (S,), (C,), (1,))
    tensors: list[Any] = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    if "gate" not in epilogue:
        tensors[-1] = None
    mask = torch.tensor([[True] * 6 + [False] * 3, [False] * N]) if "mask" in epilogue else None
    return [*tensors, mask, eps, "residual" in epilogue, "relu" in epilogue, dtype]


def _composed(arguments: list[Any]) -> Tensor:
    """The same from the function for one step after the other, in autograd's hands."""
    x, keys, values, key_bias, value_bias, gate, mask, eps, residual, relu, _ = arguments
    y = external_attention(x, keys, values, key_bias, value_bias, mask=mask, eps=eps)
    y = y if gate is None else gate * y
    y = x + y if residual else y
    return y.relu() if relu else y


def _leaves(arguments: list[Any]) -> list[Tensor]:
    return [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=_in_words)
def test_operator_is_its_steps_to_the_second_derivative(epilogue: set[str]) -> None:
    arguments = _arguments(epilogue)
    leaves = _leaves(arguments)
    found: list[Any] = []
    for y in (operator(*arguments)[0], _composed(arguments)):
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        once = torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True)  # by the operator's own backward
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True)
        found.append([y, *first, *once, *(torch.zeros(()) if g is None else g for g in second)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected.expand_as(ours), rtol=0, atol=1e-10)


@pytest.mark.parametrize("epilogue", [set(), EVERYTHING], ids=_in_words)
@pytest.mark.parametrize("slots_kept", [True, False])
def test_operator_passes_pytorchs_checks(epilogue: set[str], slots_kept: bool) -> None:
    arguments = _arguments(epilogue, torch.float32)
    assert (operator(*arguments)[1].numel() > 0) == (not epilogue)
    if not slots_kept:  # as many slots as make reading x again cheaper
        arguments[1:4] = [torch.randn(shape, requires_grad=True) for shape in ((C, C), (C, C), (C,))]
        assert not operator(*arguments)[1].numel()
    torch.library.opcheck(operator, tuple(arguments))
    arguments[0] = torch.randn(B, C, N).mT.requires_grad_()  # channels first, as a convolution leaves it
    arguments[1], arguments[2] = arguments[2].detach().mT.requires_grad_(), arguments[1].detach().mT.requires_grad_()
    torch.library.opcheck(operator, tuple(arguments))


def _on_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared_attn.functional.takes_external_attention", lambda x, *_: x.dim() == 3)


@pytest.mark.parametrize("layout", ["tokens", "map"])
def test_residual_function_is_the_same_by_the_operator(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    x, keys, values, key_bias, value_bias, gate, mask, eps, *_ = _arguments(EVERYTHING)
    if layout == "map":  # channels first, as a convolution leaves it
        x = torch.randn(B, C, 3, 3, dtype=torch.float64).permute(0, 2, 3, 1).flatten(1, 2)

    def both() -> list[Tensor]:
        options = {"mask": mask, "eps": eps}
        plain = external_attention(x, keys, values, key_bias, value_bias, **options)
        gated = external_attention_residual(x, keys, values, key_bias, value_bias, gate=gate, **options)
        block = external_attention_residual(x, keys, values, key_bias, value_bias, relu=True, **options)
        return [plain, gated, block]

    expected = both()
    _on_the_operator(monkeypatch)
    for found, known in zip(both(), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=0, atol=1e-12)
        assert found.stride() == known.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_keeps_the_dtypes_of_autocast(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x, keys, values, _, value_bias, gate, *_ = _arguments({"gate"}, torch.float32)
    x = x.detach().to(dtype)

    def dtypes() -> list[torch.dtype]:
        with torch.autocast("cpu", torch.bfloat16):
            found = [external_attention(x, keys, values, None, value_bias)]
            found += [external_attention_residual(x, keys, values, gate=g) for g in (gate, None)]
        return [y.dtype for y in found]

    expected = dtypes()
    _on_the_operator(monkeypatch)
    assert dtypes() == expected


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_graph_holds_the_operator(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    x, keys, values, *_ = _arguments(set())
    _on_the_operator(monkeypatch)
    compiled = torch.compile(external_attention, fullgraph=True, backend=backend)
    grads = []
    for function in (compiled, external_attention):
        y = function(x, keys, values)
        grads.append([y, *torch.autograd.grad(y.square().sum(), (x, keys, values))])
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


def test_exported_program_holds_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared_attn.external import ExternalAttentionBlock

    _on_the_operator(monkeypatch)
    block, x = ExternalAttentionBlock(C, S).eval(), torch.randn(B, N, C)
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.export.export(block, (x,), dynamic_shapes=({1: tokens},))
    assert "shared_attn.external_attention" in program.graph_module.code
    longer = torch.randn(B, 31, C)
    torch.testing.assert_close(program.module()(longer), block(longer), rtol=0, atol=1e-6)


def test_program_with_the_operator_becomes_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("onnx", "onnxscript"):
        pytest.importorskip(needed)
    from shared_attn.external import ExternalAttentionBlock

    _on_the_operator(monkeypatch)
    program = torch.export.export(ExternalAttentionBlock(C, S).eval(), (torch.randn(B, N, C),))
    assert "shared_attn.external_attention" in program.graph_module.code
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    assert {node.domain for node in converted.model.graph} == {""}, "only ONNX's own operators"


def test_logits_are_kept_where_that_moves_fewer_bytes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for channels in (31, 64, 256, 512):
            for slots in (8, 64, 256):
                write_and_read, again = 2 * 4 * slots, channels * dtype.itemsize
                assert keeps_logits(channels, slots, dtype.itemsize, False) == (write_and_read <= again)
                assert not keeps_logits(channels, slots, dtype.itemsize, True), "a residual reads x in any case"


def test_bytes_at_the_sizes_of_the_benchmark() -> None:
    million = 1_000_000
    small = expected_bytes(64, 1024, 256, 64, torch.bfloat16)
    assert small.floor == 2 * 64 * 1024 * 256 * 2  # 67 MB: 15.6 us at 4.3 TB/s
    assert small.forward == small.floor + 2 * 64 * 1024 * 64 * 4
    large = expected_bytes(64, 16384, 512, 64, torch.bfloat16)
    assert (large.floor // million, large.forward // million) == (2147, 2684)
    block = expected_bytes(64, 1024, 256, 64, torch.bfloat16, residual=True, relu=True)
    assert block.forward == 3 * block.floor // 2  # x twice, the output once
    assert 2 * small.floor < small.backward < 3 * small.backward_floor


def test_kernel_benchmark_expects_bytes_without_a_gpu_and_measures_where_it_is_told_to() -> None:
    cpu = torch.device("cpu")
    rows = list(time_kernels(cpu))
    assert len(rows) == 5 * len(SIZES)
    assert "unmeasured" in str(rows[0]) and not rows[0].metrics
    assert (rows[0].floor_mb, rows[0].copy_gb_s, rows[0].measured_ms) == (2 * 64 * 1024 * 256 * 2 / 1e6, None, None)
    small = Size(2, 4, 16, 8)
    rows = list(time_kernels(cpu, sizes=[small], repeats=1, measure=True, compiler=lambda module: module))
    for row in rows:
        assert (row.paper_ms is None) == (row.speedup is None) == (row.what == "attention")
        assert row.measured_ms is not None and row.measured_ms > 0
        if row.mode != "training":
            assert row.floor_mb is not None and row.floor_fraction is not None and row.copy_gb_s is not None
            assert row.floor_fraction == pytest.approx(row.floor_mb / row.copy_gb_s / row.measured_ms)
    assert "kernels_block_training_16_speedup" in rows[-1].metrics
    assert next(tune(cpu, small, repeats=1))[:2] == ("forward", None)


@pytest.mark.parametrize("kernel", ["forward", "slot_gradients", "token_gradients"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_shape_has_a_tiling(kernel: str, dtype: torch.dtype) -> None:
    for slots in (1, 15, 16, 17, 64, 65, 200, 256):
        assert slots <= padded_slots(slots) < max(32, 2 * slots)
        for tokens, channels in ((1, 1), (5, 300), (100_000, 4096)):
            for memory in (LARGE_SHARED_MEMORY, 99 * 1024):
                chosen = tiling(kernel, tokens, channels, slots, dtype, memory)
                assert chosen.tokens >= 16 and chosen.channels >= 16, "tensor cores take no less"
                assert chosen.tokens & (chosen.tokens - 1) == chosen.channels & (chosen.channels - 1) == 0
        assert candidates(kernel, slots, dtype)
    with overridden(kernel, Tiling(16, 32, 4, 1)):
        assert tiling(kernel, 100, 100, 64, dtype) == Tiling(16, 32, 4, 1)
    assert tiling(kernel, 100, 100, 64, dtype) != Tiling(16, 32, 4, 1)


class _OnCuda:
    """A tensor as far as the choice of kernels looks."""

    device, is_cuda = torch.device("cuda"), True

    def __init__(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, strides: tuple[int, ...] | None = None
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.strides = torch.empty(shape, device="meta").stride() if strides is None else strides

    def dim(self) -> int:
        return len(self.shape)

    def stride(self, dim: int) -> int:
        return self.strides[dim]


@pytest.mark.parametrize(
    ("x", "slots", "major", "taken"),
    [
        (_OnCuda(2, 9, 24), 64, 9, True),
        (_OnCuda(2, 9, 24), 64, 7, False),  # before Ampere
        (_OnCuda(2, 9, 4, 24), 64, 9, False),  # heads
        (_OnCuda(2, 9, 24), 257, 9, False),
        (_OnCuda(2, 0, 24), 64, 9, False),
        (_OnCuda(1, 2**25, 64), 64, 9, False),  # offsets past 32 bits
        (_OnCuda(64, 2**14, 2**11, strides=(2**11, 2**17, 1)), 64, 9, False),  # by its layout, tokens before samples
        (_OnCuda(2, 9, 24, dtype=torch.float64), 64, 9, False),
        (torch.randn(2, 9, 24), 64, 9, False),  # on the CPU
    ],
)
def test_kernels_are_chosen_by_device_dtype_and_shape(
    monkeypatch: pytest.MonkeyPatch, x: Any, slots: int, major: int, taken: bool
) -> None:
    pytest.importorskip("triton")
    properties = type("Properties", (), {"major": major})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    keys, values = _OnCuda(slots, x.shape[-1]), _OnCuda(x.shape[-1], slots)
    assert takes_external_attention(x, keys, values) == taken  # type: ignore[arg-type]
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    assert not takes_external_attention(x, keys, values)  # type: ignore[arg-type]


def test_environment_variable_turns_the_kernels_off() -> None:
    pytest.importorskip("triton")
    code = "from shared_attn import kernels; print(kernels.AVAILABLE)"
    assert run_python("-c", code, CC="cc") == "True"
    assert run_python("-c", code, SHARED_ATTN_KERNELS="0") == "False"
    assert run_python("-c", code, PATH="", CC="") == "False", "Triton builds its launcher with a C compiler"


def test_import_neither_needs_triton_nor_loads_the_kernels() -> None:
    code = (
        "import sys, importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n"
        "import shared_attn.functional, torch\nfrom shared_attn import kernels\n"
        "x, k, v = torch.randn(1, 5, 4), torch.randn(3, 4), torch.randn(4, 3)\n"
        "torch.ops.shared_attn.external_attention(x, k, v, None, None, None, None, 0., True, True, x.dtype)\n"
        "print(kernels.AVAILABLE, 'shared_attn.kernels.external_triton' in sys.modules)"
    )
    assert run_python("-c", code) == "False False"


def test_kernels_equal_their_twin() -> None:
    interpret("kernel_comparison.py", 20)


@pytest.mark.slow
def test_kernels_equal_their_twin_in_many_cases() -> None:
    interpret("kernel_comparison.py", 100)


def _compile(*cases: int) -> set[str]:
    """Compiles and checks the cases of those numbers, or all; returns the names of the kernels."""
    pytest.importorskip("triton", "3.3", reason="before, Triton was told otherwise what to compile")
    rows: list[dict[str, Any]] = json.loads(run_python("tests/kernel_compilation.py", *map(str, cases)))
    for row in rows:
        assert row["cubin"] > 1000, row
        assert row["shared"] <= row["allowed"], row
        assert 0 <= row["stack"] <= 64, row  # bytes a thread that did not fit into registers
        assert row["tensor_cores"] == (row["dtype"] != "float32" and row["kernel"] != "combine_partials"), row
    return {row["kernel"] for row in rows}


def test_kernels_compile_for_a_hopper_gpu() -> None:
    assert {"column_partials", "attend", "slot_gradients", "token_gradients"} <= _compile(1)


@pytest.mark.slow
def test_every_kernel_compiles_for_every_gpu() -> None:
    assert "combine_partials" in _compile()
