"""The page of `batch_scale.py`, docs/benchmarks/batch.md, from its scale.json.

python benchmarks/batch_table.py build/batch_scale/scale.json
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paperdoll_table import markdown

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "batch.md"

JOBS, MINUTES, STATE_MB = 1000, 25, 120
"""What the arithmetic for GPUs assumes: jobs, a training's minutes, the size of a saved state."""

Found = Mapping[str, Any]


def page(found: Found) -> Iterator[str]:
    """The parts of the page; a stage that has not run is said to be missing."""
    yield (
        "# Batches: what they stand, and what they cost\n\n"
        "`python benchmarks/batch_scale.py --out build/batch_scale`, then `python "
        "benchmarks/batch_table.py build/batch_scale/scale.json`. Jobs of 6 steps on drawn faces "
        "at 64 px, each with one core and a state saved after every step, so that costs which a "
        "real training spreads over an hour fall on seconds. "
        f"{os.cpu_count()} cores, shared with other work; Python {platform.python_version()}."
    )
    parts = ("killed", killed), ("steady", steady), ("shared", shared), ("words", words)
    for stage, part in (*parts, ("steady", gpus)):
        missing = {stage, *(("plain",) if stage == "steady" else ())} - found.keys()
        yield f"{part.__doc__}\n\nNot run yet." if missing else part(found)


def killed(found: Found) -> str:
    """## Workers killed, a full disk, a bad job"""
    run = found["killed"]
    lines = [
        ["jobs, of which one has photos of noise", run["jobs"]],
        ["workers killed at random (SIGKILL)", run["kills"]],
        ["tries that met a disk filled to its last byte", run["full_disk_failures"]],
        ["finished", run["finished"]],
        ["of these, equal to a training alone, bit for bit", run["equal"]],
        ["of these, went on from a saved state", run["went_on"]],
        ["tries of the job that had most", run["most_tries"]],
        ["refused before training", ", ".join(run["refused"]) or "none"],
        ["given up", ", ".join(run["failed"]) or "none"],
        [
            "files that are half-written, or left over",
            run["half_written"] + len(run["other_files"]),
        ],
        ["minutes", run["minutes"]],
    ]
    told = [[str(cell) for cell in line] for line in lines]
    return f"{killed.__doc__}\n\nTwo workers.\n\n{markdown(['', 'count'], told)}"


def steady(found: Found) -> str:
    """## Cost of a job, and memory"""
    alone, batch = found["plain"], found["steady"]
    extra = batch["worker_cpu_seconds"]["mean"] - alone["cpu_seconds"]["mean"]
    around = batch["cpu_seconds"]["mean"] - batch["worker_cpu_seconds"]["mean"]
    rows = [
        ["plain loop", _with_error(alone["cpu_seconds"]), _with_error(alone["seconds"])],
        ["worker of a batch", _with_error(batch["worker_cpu_seconds"]), ""],
        ["the batch's other processes", f"{around:.2f}", ""],
        ["batch, whole", _with_error(batch["cpu_seconds"]), _with_error(batch["seconds"])],
    ]
    memory = batch["memory_mb"]
    grown = {int(n): mb for n, mb in memory.items()}
    last = max(grown)
    first = min((n for n in grown if n >= 5), default=min(grown))
    parts = [[part, _with_error(told)] for part, told in batch["parts"].items()]
    return "\n\n".join(
        [
            steady.__doc__ or "",
            f"{batch['jobs']} jobs in one worker, beside a loop that trains the same jobs with one "
            "base model. Seconds a job, mean and standard error; other work on the machine moves "
            "CPU seconds less. What the worker does beyond the loop is its record, and telling of "
            "each step; the other processes look twice a second, whatever a job takes.",
            markdown(["", "CPU seconds", "seconds"], rows),
            f"A worker's job takes {extra / alone['cpu_seconds']['mean']:+.1%} beside the loop's. "
            f"Ray and a worker, with its libraries, take {batch['start_seconds']:.0f} s to start.",
            f"All {batch['equal']} of {batch['finished']} adapters are those of the loop, bit for "
            f"bit. One process did them all ({batch['processes']}).",
            "Memory of that process, MB after so many jobs: "
            + ", ".join(f"{n}: {mb}" for n, mb in grown.items())
            + f". From job {first} to {last} it grew by {grown[last] - grown[first]} MB.",
            markdown(["part of a job", "seconds"], parts),
        ]
    )


def shared(found: Found) -> str:
    """## Photos that jobs share"""
    told = found["shared"]
    rows = []
    for name, of in told.items():
        if name.startswith("alone"):
            before = of
        ratio = f"{of['mean'] / before['mean']:.2f}"
        rows.append([name, str(of["batches"]), _with_error(of), ratio])
    return "\n\n".join(
        [
            shared.__doc__ or "",
            "Preparing a job, from its models to step 1: 10 photos and 10 portraits at 128 px, the "
            "default recipe with 4 variants a picture. The worker has prepared nothing before "
            "(alone), or a job of the same person in another style, or of the same photos with "
            "another rank. Most of what is encoded are pseudo-labels, up to six of each portrait, "
            "which are of a pair. Interleaved, one process.",
            markdown(["", "batches encoded", "CPU seconds", "ratio"], rows),
        ]
    )


def words(found: Found) -> str:
    """## Prompts whose beginning is the same"""
    told = found["words"]
    rows = []
    for name, (flops, tasks) in told["phases"].items():
        share = tasks * told["prompt"] / flops
        prefix = share * told["prefix"] / told["length"]
        rows.append([name, f"{flops / 1e12:.2f}", f"{share:.2%}", f"{prefix:.3%}"])
    head = ["phase", "TFLOPs of a step", "text encoder, forward", "before the first token"]
    return "\n\n".join(
        [
            words.__doc__ or "",
            "What the text encoder says of the words before a token does not change while it is "
            "frozen, and could be kept. Operations, as the planner counts them, of the default "
            f"recipe at Stable Diffusion 1.5's shapes and 512 px; {told['prefix']} of "
            f"{told['length']} columns come before the first token. It is not worth it, and not "
            "done; where the LoRA is in the text encoder too, it could not be.",
            markdown(head, rows),
        ]
    )


def gpus(found: Found) -> str:
    """## On 8 and 64 GPUs, on paper"""
    alone, batch = found["plain"], found["steady"]
    extra = max(0.0, batch["worker_cpu_seconds"]["mean"] - alone["cpu_seconds"]["mean"])
    around = batch["cpu_seconds"]["mean"] - batch["worker_cpu_seconds"]["mean"]
    start = batch["start_seconds"]
    rows = []
    for count in (1, 8, 64):
        rounds = math.ceil(JOBS / count)
        hours = (start + rounds * (60 * MINUTES + extra)) / 3600
        ideal = JOBS * MINUTES / 60 / count
        rows.append(
            [
                str(count),
                f"{hours:.1f}",
                f"{ideal / hours:.1%}",
                f"{count * around / (60 * MINUTES):.2%}",
                f"{count * STATE_MB / 60:.0f}",
            ]
        )
    head = ["GPUs", "hours", "of the ideal", "driver, of a core", "states, MB/s"]
    return "\n\n".join(
        [
            gpus.__doc__ or "",
            f"Arithmetic, not a measurement: {JOBS} jobs of {MINUTES} minutes (assumed), with the "
            f"start ({start:.0f} s) and the cost beyond the loop ({extra:.2f} s a job) from above. "
            "What is lost is the last round, in which some GPUs have no job left. The driver's "
            f"share is {around:.2f} s a job. A state of {STATE_MB} MB (assumed: a LoRA of 40 MB, "
            "Adam's two moments) is written every minute, which a shared folder must take.",
            markdown(head, rows),
        ]
    )


def _with_error(told: Mapping[str, float]) -> str:
    return f"{told['mean']:.2f} ± {told['error']:.2f}"


def main() -> None:
    """Write the page."""
    PAGE.write_text("\n\n".join(page(json.loads(Path(sys.argv[1]).read_text()))) + "\n", "utf-8")


if __name__ == "__main__":
    main()
