"""Statistics of real images as pytorch-fid keeps them: an .npz file of `mu` and `sigma`.

Legend: D feature size.

pytorch-fid reads the files written here. They also say which network they belong to and what they are of; a file
that does not is trusted as far as its shapes go.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gan.judging.evaluation import Moments
from gan.judging.features import FeatureNetwork
from shared_attn.runtime.arrays import list_arrays, load_arrays
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.messages import one_line

SAID = ("reference", "network", "identity")  # what a file of this project says of itself


@dataclass(frozen=True)
class Statistics:
    """Statistics of real images.

    Attributes:
        moments: mean (D,) and covariance (D, D), without features; count 0 where the file does not say.
        reference: what they are of, for a metric's name: `train`, `test10k`, or the file's name where it does not say.
        network, identity: of the features; empty where the file does not say.
    """

    moments: Moments
    reference: str
    network: str
    identity: str


def is_statistics(data: str) -> bool:
    """Whether `--data` names a file of statistics."""
    return data.lower().endswith(".npz") and not Path(data).is_dir()


def load_statistics(path: Path) -> Statistics:
    """Read and check a file; nothing in it is run.

    Raises:
        ValueError, FileNotFoundError: in one line that names `--data`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--data {path}: no such file of statistics")
    try:
        stored = load_arrays(path, ("mu", "sigma", *SAID, "count"))
        if "mu" not in stored or "sigma" not in stored:
            keys = ", ".join(list_arrays(path)[:5])
            raise ValueError(f"holds {keys or 'nothing'}, expected the mu and sigma of pytorch-fid")
        mean, covariance = (np.asarray(stored[key], dtype=np.float64) for key in ("mu", "sigma"))
        said = {key: str(stored[key]) for key in SAID if key in stored}
        count = int(stored["count"]) if "count" in stored else 0
    except (OSError, TypeError, OverflowError) as error:
        raise ValueError(f"--data {path}: not a readable .npz file of mu and sigma") from error
    except ValueError as error:
        raise ValueError(f"--data {path}: {one_line(error)}") from error
    _check(path, mean, covariance)
    moments = Moments(count, torch.from_numpy(mean), torch.from_numpy(covariance), torch.empty(0, len(mean)))
    reference = said.get("reference") or path.stem
    return Statistics(moments, reference, said.get("network", ""), said.get("identity", ""))


def _check(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Raise ValueError where these are no mean and covariance."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        shapes = f"mu {mean.shape} and sigma {covariance.shape}"
        raise ValueError(f"--data {path}: holds {shapes}, expected (D,) and (D, D) of one feature size D")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"--data {path}: mu or sigma holds a number that is not finite")
    scale = np.abs(covariance).max()
    if (np.diag(covariance) < -1e-6 * scale).any() or np.abs(covariance - covariance.T).max() > 1e-4 * scale:
        raise ValueError(
            f"--data {path}: sigma is no covariance, expected a symmetric matrix without negative variances"
        )


def check_statistics(path: str, statistics: Statistics, network: FeatureNetwork) -> None:
    """Raise ValueError where the statistics are those of another network."""
    found, expected = statistics.network or "an unnamed network", network.name
    dim = len(statistics.moments.mean)
    if dim != network.dim:
        raise ValueError(f"--data {path}: {dim} features of {found}, but {expected} has {network.dim}")
    if statistics.network not in ("", network.name):
        raise ValueError(f"--data {path}: statistics of {found}, expected those of {expected}")
    if statistics.identity not in ("", network.identity):
        raise ValueError(f"--data {path}: statistics of {found} with other weights than those at hand")


def save_statistics(path: Path, moments: Moments, network: FeatureNetwork, reference: str) -> None:
    """Write mean and covariance for `--data` and for pytorch-fid.

    Raises:
        OSError: the file cannot be written; what was there is untouched.
    """
    about = {"network": network.name, "identity": network.identity, "reference": reference, "count": moments.count}
    with atomic_write(path) as file:
        np.savez(file, mu=moments.mean.numpy(), sigma=moments.covariance.numpy(), **about)  # type: ignore[arg-type]
