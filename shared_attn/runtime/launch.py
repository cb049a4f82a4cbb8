"""Device, precision and processes of a run, through Lightning Fabric."""

from __future__ import annotations

import atexit
import importlib
import inspect
import logging
import os
import platform
import sys
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision.precision import Precision
    from lightning_fabric.strategies import DDPStrategy

PRECISIONS = ("auto", "fp32", "bf16")
PATIENCE = timedelta(hours=12)  # of processes that wait for another one, which may be evaluating


def choose_device(device: str) -> torch.device:
    """The device of a name: "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        ValueError: An unknown device, or CUDA where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no usable CUDA device; expected auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(precision: str, device: torch.device | str) -> str:
    """The precision of a name: "fp32", "bf16", or for "auto" bf16 where the device multiplies bfloat16, else fp32.

    A processor that does not imitates it, in ten times the time of float32 and more.

    Raises:
        ValueError: An unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision}: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if precision == "auto":
        return "bf16" if multiplies_bfloat16(device) else "fp32"
    return precision


def list_precisions(precision: str, device: torch.device | str) -> tuple[str, ...]:
    """A precision as it is; for "both" fp32, and bf16 where the device multiplies bfloat16."""
    if precision != "both":
        return (precision,)
    return ("fp32", "bf16") if multiplies_bfloat16(device) else ("fp32",)


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for products of bfloat16 numbers."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN's own answer is yes for any AVX-512, where it converts to float32 and back.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def create_fabric(device: str, precision: str, *, several: bool = False) -> Fabric:
    """A launched Fabric: for one process, or for this one of those that torchrun started.

    Processes exchange gradients by DDP (nccl on CUDA, a device each; gloo on a CPU). Buffers stay each process's own.

    Args:
        device: See :func:`choose_device`.
        precision: See :func:`choose_precision`. bf16 is bfloat16 autocast over float32 weights and inputs.
        several: The caller's work may be shared by several processes.

    Raises:
        ValueError: An unknown device or precision, or CUDA where there is none; several processes for what runs in
            one, or more of them than CUDA devices.
    """
    accelerator = choose_device(device).type
    chosen = choose_precision(precision, accelerator)
    processes, here = _count_launched()
    if processes > 1 and not several:
        raise ValueError(f"torchrun started {processes} processes: this runs in one; start it with python alone")
    if processes > 1 and accelerator == "cuda" and here > torch.cuda.device_count():
        raise ValueError(
            f"torchrun started {here} processes on a machine with {torch.cuda.device_count()} usable CUDA devices; "
            "expected at most one a device, see its --nproc-per-node, or --device cpu"
        )
    import_fabric()
    from lightning_fabric import Fabric

    # It announces the precision on standard error, where a mistake is to be the only line.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    plugins: Any = [_create_autocast(accelerator)] if chosen == "bf16" else []
    if processes == 1:
        fabric = Fabric(accelerator=accelerator, devices=1, plugins=plugins)
    else:
        _join(accelerator)
        strategy = _create_strategy()
        nodes = processes // here
        fabric = Fabric(accelerator=accelerator, devices=here, num_nodes=nodes, strategy=strategy, plugins=plugins)
    fabric.launch()
    if chosen == "bf16" and fabric.is_global_zero and not multiplies_bfloat16(accelerator):
        print(
            f"warning: --precision bf16: this {accelerator} only imitates it, slowly; auto or fp32 is faster here",
            file=sys.stderr,
        )
    return fabric


def import_fabric() -> None:
    """Imports Lightning Fabric by a shorter road.

    It asks for the version of torchmetrics by importing all of it, and so torchvision and scipy.signal: seconds at each
    start, for a function that is not used here. It takes an import that fails for torchmetrics that is not there.
    """
    hides = "torchmetrics" not in sys.modules
    if hides:
        sys.modules["torchmetrics"] = None  # type: ignore[assignment]  # whose import then fails
    try:
        importlib.import_module("lightning_fabric")
    finally:
        if hides:
            del sys.modules["torchmetrics"]


def _count_launched() -> tuple[int, int]:
    """The processes that torchrun started, in all and on this machine; one and one without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1, 1
    return int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])


def _join(accelerator: str) -> None:
    """Makes the process group, in a corner of torchrun's store that is this start's own.

    Its --max-restarts keeps the store and what lies in it, where a process would find the addresses of those that have
    died. Fabric uses a group that is there.
    """
    if dist.is_initialized():
        return
    store, rank, world_size = next(dist.rendezvous("env://", timeout=PATIENCE))
    start = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {world_size}"
    backend = "nccl" if accelerator == "cuda" else "gloo"
    if accelerator == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        backend, store=dist.PrefixStore(start, store), rank=rank, world_size=world_size, timeout=PATIENCE
    )
    atexit.register(dist.destroy_process_group)  # joins its threads, which an exit may otherwise find running


def _create_strategy() -> DDPStrategy:
    """DDP that averages gradients and leaves buffers alone."""
    from lightning_fabric.strategies import DDPStrategy

    # About linear maps and 1x1 convolutions, whose gradients lie as their input does: they are copied.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    flag = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # from torch 2.13 on
    return DDPStrategy(timeout=PATIENCE, **{flag: False})  # type: ignore[arg-type]


def _create_autocast(device: str) -> Precision:
    """Autocast that leaves a network's inputs as they are, and needs no backward of its own.

    Lightning's own rounds the inputs to bfloat16 too. Coordinates must not be: neighbours and farthest points would be
    chosen among points moved by up to 1/512 of their size, and not be those that evaluation chooses. It also allows a
    network's output to be differentiated by `fabric.backward` alone, for float16's scaler, which bfloat16 does without;
    a gradient penalty differentiates before that.
    """
    from lightning_fabric.plugins.precision.precision import Precision

    class Autocast(Precision):
        precision = "bf16-mixed"

        def forward_context(self) -> Any:
            return torch.autocast(device, dtype=torch.bfloat16)

        def convert_output(self, data: Any) -> Any:
            return data.float() if isinstance(data, torch.Tensor) and data.is_floating_point() else data

    return Autocast()
