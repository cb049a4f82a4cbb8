"""Answers about very many files, by one process or by those that torchrun started, on any number of machines.

Process r of P takes files r, r + P, r + 2P, ... of the sorted list, and leaves out those that are answered already: by
an earlier start that was killed, of any number of processes. The first one merges what all of them wrote.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from pointcloud.files.answer_parts import (
    PartWriter,
    check_settings,
    count_errors,
    find_answered,
    merge_parts,
    open_parts,
    part_path,
    remove_parts,
    write_settings,
)
from pointcloud.files.streaming import thread_pool
from pointcloud.files.user_files import UserFile
from pointcloud.models import LoadedModel
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.messages import one_line
from shared_attn.runtime.processes import WHOLE, Share, outlive_the_others, wait_for_all
from shared_attn.runtime.records import hash_file

FREE = ("files", "weights", "json", "answers", "device")  # the first two are told more closely


class Work(Protocol):
    """Answers about files, in their order, each with `as_dict`; the error of one that cannot be read."""

    def __call__(
        self, files: Sequence[UserFile], /, *, pool: ThreadPoolExecutor | None
    ) -> Iterator[tuple[UserFile, Any]]: ...


def join_processes(device: str, answers: Path | None, *, as_json: bool) -> tuple[Share, str]:
    """This process's share of the files, and the name of its device; a single process has them all.

    Raises:
        ValueError: several processes without a file for their answers, or more of them than GPUs; or a list is to be
            printed, too.
    """
    if answers is not None and as_json:
        raise ValueError(f"--json: prints the answers, which --answers {answers} writes to a file; give one of the two")
    processes = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if processes == 1:
        return WHOLE, device
    if answers is None:
        raise ValueError(f"torchrun started {processes} processes, which share the files: give --answers FILE")
    fabric = create_fabric(device, "fp32", several=True)
    return Share(fabric.global_rank, fabric.world_size), fabric.device.type


@outlive_the_others
def answer_all(
    path: Path,
    files: Sequence[UserFile],
    settings: Mapping[str, Any],
    model: LoadedModel,
    work: Work,
    share: Share = WHOLE,
) -> int:
    """Writes an answer about each file to `path`, a JSON object a line in the files' order; goes on where it was
    stopped.

    Beside it lies a folder, `path` + ".parts", with what was answered so far and, at the end, with the settings alone:
    the same command does nothing then.

    Args:
        settings: the flags; the answers depend on all but `FREE`, and on the weights and the list of files.
        work: computes answers; gets the files that are left to this process.

    Returns:
        The exit status: 2 where files could not be read; 0 from several processes, which torchrun would start again.

    Raises:
        ValueError, OSError: the folder holds answers to another question, or cannot be written.
    """
    folder = path.with_name(path.name + ".parts")
    names = hashlib.sha256("\0".join(str(file.path) for file in files).encode(errors="surrogateescape"))
    asked = {name: value for name, value in settings.items() if name not in FREE}
    question = {**asked, "files": len(files), "list": names.hexdigest(), "weights": hash_file(model.path)}
    if share.rank == 0:
        if path.is_dir():
            raise ValueError(f"--answers {path}: a folder; expected a file")
        open_parts(folder, question)
    wait_for_all()
    complete = check_settings(folder, question)
    if complete and path.exists():
        if share.rank == 0:
            remove_parts(folder)  # which a kill may have left
            print(f"{path}: answers to all {len(files)} files are there", file=sys.stderr)
        return 2 if share.count == 1 and count_errors(path) else 0
    answered = find_answered(folder, len(files))
    left = [number for number in range(share.rank, len(files), share.count) if not answered[number]]
    _answer(part_path(folder, share.rank), files, left, work, tell=share.rank == 0)
    wait_for_all()
    errors = 0
    if share.rank == 0:
        errors = merge_parts(folder, path, len(files))
        write_settings(folder, question, complete=True)
        remove_parts(folder)
        unread = f", {errors} of them could not be read" if errors else ""
        print(f"{path}: answers to {len(files)} files{unread}", file=sys.stderr)
    wait_for_all()
    return 2 if share.count == 1 and errors else 0


def _tell(file: UserFile, error: Exception) -> dict[str, Any]:
    return {"file": str(file.path), "error": one_line(error)}


def _answer(part: Path, files: Sequence[UserFile], left: Sequence[int], work: Work, *, tell: bool) -> None:
    """The files `left`, into a part of their own."""
    from tqdm import tqdm

    mine = [files[number] for number in left]
    with PartWriter(part) as writer, thread_pool(len(mine)) as pool:
        bar = tqdm(
            work(mine, pool=pool), total=len(mine), unit="file", disable=not tell, dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10, file=sys.stderr,
        )  # fmt: skip
        done = 0
        with closing(bar):
            try:
                for number, (file, answer) in zip(left, bar, strict=True):
                    writer.add(number, _tell(file, answer) if isinstance(answer, Exception) else answer.as_dict())
                    done += 1
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(
                    f"interrupted after {done} of {len(mine)} files; run the same command again to go on"
                ) from error
