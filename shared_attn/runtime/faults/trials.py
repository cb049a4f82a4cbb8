"""Faults tried on a training: each ends it, or should not, and then the same command must lead to the same bits."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from shared_attn.runtime import weights
from shared_attn.runtime.checkpoint import FRESH, NAME, PREVIOUS, load_checkpoint
from shared_attn.runtime.faults import injection
from shared_attn.runtime.faults.inspection import find_damage, find_differences
from shared_attn.runtime.faults.processes import Ended, Fault, Job, Training, run
from shared_attn.runtime.interrupt import PREEMPTED
from shared_attn.runtime.launch import import_fabric
from shared_attn.runtime.progress import METRICS

Problems = list[str]
FULL = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of what a whole run takes, at which its disk is full


def warm_up(*modules: str) -> None:
    """Imports what every training would import for itself, so that its process is forked with it. Runs nothing."""
    import_fabric()
    for module in (*modules, "torch.utils.tensorboard", "tqdm", "PIL.Image", "tyro"):
        importlib.import_module(module)


@dataclass
class Row:
    """One line of the table: how often a fault was tried on a training, how often nothing was lost, and what was."""

    training: str
    fault: str
    tried: int = 0
    survived: int = 0
    problems: Problems = field(default_factory=list)


class Trials:
    """Tries faults on one training.

    Args:
        name: of the training, for the table.
        job: trains in the folder it is given, with data from `data`, and ends as its script does.
        data: what it reads; a copy of it is lost and put back.
        folder: where the runs lie; each is removed when it has survived.
    """

    def __init__(self, name: str, job: Job, data: Path, folder: Path):
        self.name, self.job, self.data, self.folder = name, job, data, folder
        self.whole = folder / f"{name}-whole"
        ended = run(job, self.whole)
        if ended.status or not ended.saved:
            raise ValueError(f"{name}: the training fails without any fault: {ended.told[-2000:]}")
        self.seconds, self.saves = ended.seconds, len(ended.saved)
        self.rows: list[Row] = []

    @property
    def size(self) -> int:
        """Bytes of a whole run."""
        return sum(path.stat().st_size for path in self.whole.rglob("*") if path.is_file())

    def try_groups(self, groups: Sequence[str], *, kills: int, seed: int) -> None:
        """Tries groups of faults by name: random, worst, disk, loss, signals.

        Raises:
            ValueError: There is no such group.
        """
        known: dict[str, Callable[[], None]] = {
            "random": partial(self.kill_at_random, kills, seed),
            "worst": self.kill_at_worst,
            "disk": self.fill_disk,
            "loss": self.take_away,
            "signals": self.signal_and_disturb,
        }
        for group in groups:
            if group not in known:
                raise ValueError(f"--groups {group}: expected one of {', '.join(known)}")
        for group in groups:
            known[group]()

    def kill_at_random(self, count: int, seed: int) -> None:
        """SIGKILL at `count` moments from the start to the end."""
        moments = random.Random(seed)
        for number in range(count):
            after = moments.uniform(0, self.seconds)
            self._try("SIGKILL at a random moment", f"kill{number}", self._killed(None, kill_after=after))

    def kill(self, when: str, fault: Fault) -> None:
        """SIGKILL at a moment that `fault` chooses and `when` names."""
        self._try(f"SIGKILL {when}", "kill", self._killed(fault))

    def kill_at_worst(self) -> None:
        """SIGKILL at the moments that a writer of files must fear."""
        second = 2 if self.saves > 1 else 1
        for name, when in ((FRESH, "before a checkpoint appears"), (PREVIOUS, "before the renames of a checkpoint")):
            self.kill(when, injection.kill_at_rename(name, 1))
        self.kill("between the renames of a checkpoint", injection.kill_at_rename(NAME, second))
        self.kill("after the renames of a checkpoint", injection.kill_at_rename(NAME, second, after=True))
        sizes = {path.name: path.stat().st_size for path in self.whole.rglob("*") if path.is_file()}
        for part in (0.0, 0.5, 0.95):
            fault = injection.kill_while_writing(injection.CHECKPOINT, second, int(part * sizes[NAME]))
            self.kill("while a checkpoint is written", fault)
        for name in (weights.NAME, "record.json", "config.json", *self._pictures()):
            what = "a picture" if name.endswith(".png") else name
            fault = injection.kill_while_writing(f".{name}.*.tmp", 1, sizes[name] // 2)
            self.kill(f"while {what} is written", fault)
        for occurrence in (1, 3):
            self.kill("while a line of metrics is written", injection.kill_while_writing(METRICS, occurrence, 9))
        self._try("SIGKILL while metrics are cut on resuming", "cut", self._cut)

    def fill_disk(self) -> None:
        """A disk that is full at several points of the run."""
        for share in FULL:
            self._try("full disk", "full", partial(self._filled, share=share), finish=False)
        for share in (0.05, 0.6):
            fault = injection.limit_files(int(share * (self.whole / NAME).stat().st_size))
            self._try("a file that cannot grow", "limit", self._stopped(fault, names_file=True))

    def take_away(self) -> None:
        """A folder that becomes read-only, data that vanish, memory that is short."""
        for saves in (0, 1):
            self._try("read-only folder", "readonly", partial(self._refused, saves=saves))
        self._try("vanished data", "vanished", self._lost)
        fault = injection.run_out_of_memory(1)
        self._try("batch without memory", "memory", self._stopped(fault, said="--batch-size"))

    def signal_and_disturb(self) -> None:
        """Signals, a second training, a clock that is set back."""
        for number, status in ((signal.SIGTERM, PREEMPTED), (signal.SIGINT, 2)):
            self._try(f"{number.name} saves", "signal", partial(self._signalled, number=number, status=status))
        self._try("second training in the folder", "second", self._doubled)
        self._try("clock set back by a day", "clock", self._disturbed)

    # Each of the following tries one fault in a new folder, and says what was wrong before the run was started again.

    def _killed(self, fault: Fault | None, *, kill_after: float | None = None) -> Callable[[Path], Problems]:
        def attempt(folder: Path) -> Problems:
            ended = run(self.job, folder, fault, kill_after=kill_after)
            expected = ended.killed or (kill_after is not None and ended.status == 0)
            return [*([] if expected else [_describe("was not killed", ended)]), *find_damage(folder, ended.saved)]

        return attempt

    def _stopped(self, fault: Fault, *, said: str = "", names_file: bool = False) -> Callable[[Path], Problems]:
        def attempt(folder: Path) -> Problems:
            ended = run(self.job, folder, fault)
            return [*_check_told(ended, str(folder) if names_file else said), *find_damage(folder, ended.saved)]

        return attempt

    def _cut(self, folder: Path) -> Problems:
        ended = run(self.job, folder, injection.kill_at_rename(NAME, 1, after=True))
        again = run(self.job, folder, injection.kill_while_writing(f".{METRICS}.*.tmp", 1, 9))
        expected = [] if ended.killed and again.killed else [_describe("was not killed", again)]
        return [*expected, *find_damage(folder, ended.saved)]

    def _filled(self, folder: Path, share: float) -> Problems:
        try:
            with injection.Disk(folder, int(share * self.size)) as disk:
                ended = run(self.job, folder)
                found = [*_check_told(ended, str(folder)), *find_damage(folder, ended.saved)]
                disk.grow(4 * self.size)
                return [*found, *self._finish(folder)]
        except PermissionError:  # no disk of one's own here: a file's limit stands for it
            fault = injection.limit_files(int(share * self.size / 4))
            return [*self._stopped(fault, names_file=True)(folder), *self._finish(folder)]

    def _refused(self, folder: Path, saves: int) -> Problems:
        if saves == 0:
            folder.mkdir()
        return self._stopped(injection.refuse_writing(folder, saves), names_file=True)(folder)

    def _lost(self, folder: Path) -> Problems:
        with self._kept_data():
            return self._stopped(injection.lose(self.data, 1), said=str(self.data))(folder)

    def _signalled(self, folder: Path, number: signal.Signals, status: int) -> Problems:
        training = Training(self.job, folder)
        training.wait_for_saves(1)
        os.kill(training.pid, number)
        ended = training.wait()
        found = [] if ended.status == status else [_describe(f"did not end with {status}", ended)]
        found += (
            [] if any("saved" in line for line in ended.errors) else [_describe("did not say that it saved", ended)]
        )
        return [*found, *find_damage(folder, ended.saved)]

    def _doubled(self, folder: Path) -> Problems:
        first = Training(self.job, folder)
        first.wait_for_saves(1)
        second = run(self.job, folder)
        found = _check_told(second, f"process {first.pid} on")
        if load_checkpoint(folder) is None:
            found.append("the first one's checkpoint cannot be read")
        ended = first.wait()
        return [*found, *([_describe("the first one was harmed", ended)] if ended.status else [])]

    def _disturbed(self, folder: Path) -> Problems:
        ended = run(self.job, folder, injection.set_clock_back(1))
        return [_describe("did not go on", ended)] if ended.status else []

    def _finish(self, folder: Path) -> Problems:
        """Starts the run again, as nothing had happened, and compares."""
        ended = run(self.job, folder)
        return find_differences(folder, self.whole) if ended.status == 0 else [_describe("did not resume", ended)]

    def _try(self, fault: str, name: str, attempt: Callable[[Path], Problems], *, finish: bool = True) -> None:
        row = next((row for row in self.rows if row.fault == fault), None)
        if row is None:
            row = Row(self.name, fault)
            self.rows.append(row)
        folder = self.folder / f"{self.name}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        problems = attempt(folder)
        if finish:
            problems = [*problems, *self._finish(folder)]
        row.tried += 1
        row.survived += not problems
        row.problems += problems
        if not problems:
            shutil.rmtree(folder, ignore_errors=True)

    def _pictures(self) -> list[str]:
        return sorted(path.name for path in self.whole.rglob("*.png"))[:1]

    @contextlib.contextmanager
    def _kept_data(self) -> Iterator[None]:
        copy = self.folder / f"{self.name}-data-copy"
        if self.data.is_dir():
            shutil.copytree(self.data, copy)
        else:
            shutil.copy2(self.data, copy)
        try:
            yield
        finally:
            if not self.data.exists():
                copy.rename(self.data)


def _check_told(ended: Ended, said: str) -> Problems:
    """A mistake is told in one line that holds `said`, with status 2 and no traceback."""
    one = len(ended.errors) == 1 and said in ended.errors[0] and "Traceback" not in ended.told
    return [] if ended.status == 2 and one else [_describe(f"did not end with one line that names {said}", ended)]


def _describe(problem: str, ended: Ended) -> str:
    return f"{problem}: status {ended.status}, {ended.told[-1500:]!r}"
