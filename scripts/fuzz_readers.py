"""Feed every reader of users' files with spoilt ones, guided by coverage, and tell what it does not refuse clearly."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from command_line import ROOT, check_positive, parse, run


@dataclass(frozen=True)
class Options:
    inputs: int | None = None
    """Files in all, shared out among the readers; without it and --seconds 100,000."""
    seconds: int | None = None
    """Time in all."""
    readers: tuple[str, ...] = ()
    """Only these, by the names in the table (of several words: in quotes)."""
    seed: int = 0
    out: Path = Path("runs/fuzzing")
    """Folder of the files that a reader crashed on, hung on, or took too much memory for."""
    json: Path | None = None
    """Where to write the counts as a result record."""


def main() -> None:
    options = parse(Options, description=__doc__ or "")
    check_positive(options, "inputs", "seconds")
    sys.path.insert(0, str(ROOT / "tests"))
    import fuzzing

    limits: dict[str, float] = {"inputs": options.inputs or (10**9 if options.seconds else 100_000)}
    limits |= {"seconds": options.seconds} if options.seconds else {}
    begun = time.monotonic()
    try:
        tallies = fuzzing.fuzz(
            options.readers, **limits, seed=options.seed, keep=options.out.resolve(), tell=fuzzing.print_tally
        )
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'eagan-eat[fuzz]'") from error
    if options.json is not None:
        write(options, tallies, time.monotonic() - begun)
    if found := {kind: path for tally in tallies for kind, path in tally.found.items()}:
        raise ValueError("; ".join(f"{kind} ({path})" for kind, path in found.items()))


def write(options: Options, tallies: list, seconds: float) -> None:
    from shared_attn.runtime.records import write_record

    rows = [
        {key: value for key, value in asdict(tally).items() if key not in ("found", "seconds")} for tally in tallies
    ]
    write_record(
        options.json or "",
        name="hostile files: inputs tried and refused",
        kind="fuzzing",
        config={key: str(value) for key, value in asdict(options).items() if key not in ("json", "out")},
        data={"name": "mutations of small valid files, guided by coverage (atheris)"},
        seeds=[options.seed],
        metrics={key: sum(row[key] for row in rows) for key in ("inputs", "refused", "accepted", "crashes", "hangs")},
        parameters=None,
        multiply_adds=None,
        seconds=seconds,
        device="cpu",
        tables={"readers": rows},
        note="A crash: anything but a return or a refusal in one line that names the file, or more than 1 GiB. A hang: "
        "more than 2 s of a processor.",
    )


if __name__ == "__main__":
    run(main)
