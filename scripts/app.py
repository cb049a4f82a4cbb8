"""An interactive page: draw samples by class and seed; drop a mesh, get its class, its parts and a view to turn."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from command_line import parse, quick_imports, run


@dataclass(frozen=True)
class Options:
    gan: str = "eagan-cifar10-small"
    """Draws the samples: a run's folder, a .safetensors file, or the name of shipped weights."""
    classifier: str = "eat-small-modelnet40"
    """Names the meshes' classes: likewise."""
    segmenter: str = "eat-shapes-parts"
    """Finds the meshes' parts: likewise."""
    address: str = "127.0.0.1"
    """Where the page is served: by default to this machine alone; 0.0.0.0: to all who can reach it."""
    port: int | None = None
    """The first free one from 7860 by default."""
    max_upload: int = 50
    """Megabytes that an uploaded file may have."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run."""


INTRODUCTION = "Samples of a GAN, and the classes and parts of your own meshes and scans. Nothing leaves the server."


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    with quick_imports():
        from shared_attn.runtime import page

    page.check_gradio()
    page.check_place(options.address, options.port, options.max_upload)
    with quick_imports():
        from gan.page import fill_sample_tab
        from gan.sampling import load_generator
        from pointcloud.models import CLASSIFIER, SEGMENTER, load_model
        from pointcloud.page import fill_classify_tab, fill_segment_tab
        from shared_attn.runtime.launch import choose_device

    generator = load_generator(options.gan, choose_device(options.device))
    classifier = load_model(options.classifier, CLASSIFIER, device=options.device)
    segmenter = load_model(options.segmenter, SEGMENTER, device=options.device)
    tabs = {
        "Sample": lambda: fill_sample_tab(generator),
        "Classify": lambda: fill_classify_tab(classifier),
        "Segment": lambda: fill_segment_tab(segmenter),
    }
    if not page.is_local(options.address):
        warning = "all who can reach this machine can use the page, without a password"
        print(f"warning: --address {options.address}: {warning}", file=sys.stderr)
    place = {"address": options.address, "port": options.port, "max_upload": options.max_upload}
    with page.own_uploads(), page.served(page.create_page("EAGAN and EAT", INTRODUCTION, tabs), **place) as url:
        print(f"the page is at {url} (Ctrl-C closes it)", flush=True)
        page.wait_for_the_end()


if __name__ == "__main__":
    run(main)
