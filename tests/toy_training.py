"""A training without a network, as quick as its files: careful or careless, for the tests of what trains faults find.

Run as a script it lets faults be tried on it and prints, as JSON, what did not survive.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from shared_attn.runtime.checkpoint import NAME, load_checkpoint, save_checkpoint
from shared_attn.runtime.faults import injection
from shared_attn.runtime.faults.trials import Trials
from shared_attn.runtime.folder_lock import one_in_a_folder
from shared_attn.runtime.progress import METRICS
from shared_attn.runtime.run_folder import open_run

STEPS, EVERY = 12, 3


@dataclass(frozen=True)
class Toy:
    """Adds up numbers, writes a line a step and a checkpoint every third.

    Args:
        careful: how checkpoints are written; else in place, so that a kill leaves half of one, and no previous one.
        forgets: part of the state that a checkpoint lacks, so that a resumed run ends in other bits.
    """

    careful: bool = True
    forgets: bool = False

    @one_in_a_folder
    def __call__(self, folder: Path) -> None:
        open_run(folder, self)
        state = load_checkpoint(folder) or {"shown": 0, "sum": torch.zeros(20_000), "momentum": torch.zeros(20_000)}
        if self.forgets:
            state["momentum"] = torch.zeros(20_000)
        lines = [json.dumps({"shown": n, "seconds": float(n)}) + "\n" for n in range(1, state["shown"] + 1)]
        (folder / METRICS).write_text("".join(lines))
        while state["shown"] < STEPS:
            state["shown"] += 1
            state["momentum"] = 0.9 * state["momentum"] + state["shown"]
            state["sum"] = state["sum"] + state["momentum"]
            with open(folder / METRICS, "a") as file:
                file.write(json.dumps({"shown": state["shown"], "seconds": float(state["shown"])}) + "\n")
            if state["shown"] % EVERY == 0 and self.careful:
                save_checkpoint(folder, state)
            elif state["shown"] % EVERY == 0:
                with open(folder / NAME, "wb") as file:
                    torch.save(state, file)
                os.replace(folder / NAME, folder / NAME)  # changes nothing; is noticed as the end of a save
        (folder / "record.json").write_text(json.dumps({"metrics": {"sum": float(state["sum"][0])}, "seconds": 1.0}))


if __name__ == "__main__":
    folder, found = Path(sys.argv[1]), {}
    for name, toy in (("careful", Toy()), ("careless", Toy(careful=False)), ("forgetful", Toy(forgets=True))):
        trials = Trials(name, toy, folder, folder)
        written = NAME if name == "careless" else injection.CHECKPOINT
        trials.kill("in the middle of a checkpoint", injection.kill_while_writing(written, 2, 1000))
        found[name] = [problem for row in trials.rows for problem in row.problems]
    print(json.dumps(found))
