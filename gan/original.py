"""StudioGAN's own networks from a checkout at the user's path, to time and to compare with this package's.

Nothing of it is part of this package: its models/resnet.py and utils/ops.py are imported from where they lie, as they
are. Of utils/misc.py, which imports plotting and metrics, the networks want one context manager that does nothing; a
stand-in has it.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

from torch import nn

from gan.discriminator import ATTENTION_AFTER_BLOCK, Discriminator
from gan.generator import Generator
from gan.reference import studiogan_names
from shared_attn.checkout import importable
from shared_attn.runtime.messages import one_line

FILES = ("src/models/resnet.py", "src/utils/ops.py")
PACKAGES = ("models", "utils")


def load_original(path: str | Path, generator: Generator, discriminator: Discriminator) -> tuple[nn.Module, nn.Module]:
    """The checkout's generator and discriminator with the weights of this package's, both with SAGAN's attention.

    Args:
        path: folder of a checkout of POSTECH-CVLab/PyTorch-StudioGAN. Its Python code is run.
        generator, discriminator: of one image size, number of classes and any widths, with spectral norm.

    Returns:
        Both in training mode. The discriminator answers with a dictionary, whose adv_output are the logits.

    Raises:
        FileNotFoundError, ValueError: no such checkout, or one whose networks are others.
    """
    check_checkout(path)
    folder = Path(path)
    try:
        stand_in = ModuleType("utils.misc")
        stand_in.dummy_context_mgr = contextlib.nullcontext  # type: ignore[attr-defined]
        with importable(folder / "src", PACKAGES, {"utils.misc": stand_in}):
            networks = _build(generator, discriminator)
        for theirs, ours in zip(networks, (generator, discriminator), strict=True):
            names, state = studiogan_names(ours), ours.state_dict()
            theirs.load_state_dict(
                {name: state[names[name]].reshape(value.shape) for name, value in theirs.state_dict().items()}
            )
    except (ImportError, AttributeError, KeyError, RuntimeError, TypeError, SyntaxError) as error:
        raise ValueError(f"--studiogan {folder}: not StudioGAN's networks as published ({one_line(error)})") from error
    return networks


def check_checkout(path: str | Path | None) -> None:
    """Raises FileNotFoundError for a folder that is no checkout of PyTorch-StudioGAN; None is no folder."""
    missing = [] if path is None else [name for name in FILES if not (Path(path) / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"--studiogan {path}: no {' and no '.join(missing)}, expected a PyTorch-StudioGAN checkout"
        )


def _build(generator: Generator, discriminator: Discriminator) -> tuple[nn.Module, nn.Module]:
    """The networks as its configuration of SAGAN says, in the sizes of ours."""
    resnet, ops = importlib.import_module("models.resnet"), importlib.import_module("utils.ops")
    layers = SimpleNamespace(g_bn=ops.ConditionalBatchNorm2d)
    for side in "gd":
        for kind, make in (("conv2d", ops.snconv2d), ("linear", ops.snlinear), ("embedding", ops.sn_embedding)):
            setattr(layers, f"{side}_{kind}", make)
        setattr(layers, f"{side}_act_fn", nn.ReLU(inplace=True))
    model = SimpleNamespace(info_type="N/A", g_info_injection="N/A")
    size = generator.image_size
    first = discriminator.get_submodule("blocks.0.conv1")
    assert isinstance(first, nn.Conv2d)
    theirs = resnet.Generator(
        z_dim=generator.latent_dim,
        g_shared_dim="N/A",
        img_size=size,
        g_conv_dim=generator.conv.in_channels // (4 if size == 32 else 1),
        apply_attn=True,
        attn_g_loc=[generator.attention_after],
        g_cond_mtd="cBN",
        num_classes=generator.num_classes,
        g_init="N/A",
        g_depth="N/A",
        mixed_precision=False,
        MODULES=layers,
        MODEL=model,
    )
    judge = resnet.Discriminator(
        img_size=size,
        d_conv_dim=first.out_channels // (2 if size == 32 else 1),
        apply_d_sn=True,
        apply_attn=True,
        attn_d_loc=[ATTENTION_AFTER_BLOCK],
        d_cond_mtd="PD",
        aux_cls_type="W/O",
        d_embed_dim="N/A",
        normalize_d_embed=False,
        num_classes=generator.num_classes,
        d_init="N/A",
        d_depth="N/A",
        mixed_precision=False,
        MODULES=layers,
        MODEL=model,
    )
    return theirs, judge
