"""A batch on a cluster by its address, of two machines: the one that trains is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from magicapture.batch import At, BatchSettings, Record, carry_out, read_jobs
from magicapture.cli import main
from magicapture.cli.batch_jobs import JobReader, TrainLoader

from .conftest import Write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, KEPT = 16, 6


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without a core, so that no job is there, and two machines of one core each.

    Each is a raylet of its own, with its own workers; all run on this computer.
    """
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


class Unplugged:
    """Ends the machine on which the job is, once it has done some steps."""

    def __init__(self, cluster: Any) -> None:
        self.cluster, self.lost = cluster, None
        self.seen: list[At] = []

    def begin(self, stage: str, jobs: int) -> None:
        pass

    def at(self, at: At) -> None:
        self.seen.append(at)
        if self.lost is None and KEPT + 2 <= at.step < STEPS - 3:
            raylet = psutil.Process(at.process).ppid()
            (self.lost,) = (
                node
                for node in self.cluster.worker_nodes
                if node.all_processes["raylet"][0].process.pid == raylet
            )
            self.step = at.step
            self.cluster.remove_node(self.lost, allow_graceful=False)

    def done(self, record: Record) -> None:
        pass


def test_a_job_of_a_lost_machine_goes_on_on_another(
    cluster: Any, write_jobs: Write, tmp_path: Path
) -> None:
    """The checkpoint that is its result was kept on the machine that is lost."""
    keep = {"keep-every": KEPT, "keep-seeds": 1, "choose": "last", "take": KEPT}
    file = write_jobs({"out": "ada", "seed": 1, **keep}, steps=STEPS, save_every=1)
    (job,) = read_jobs(file, JobReader(file.parent))
    show = Unplugged(cluster)
    settings = BatchSettings(str(tmp_path / "results"), address=cluster.address, gpus=0, workers=1)
    (record,) = carry_out([job], TrainLoader, settings, show)

    assert show.lost is not None and len(cluster.worker_nodes) == 1
    assert (record.outcome, record.steps, record.tries) == ("finished", STEPS, 2)
    assert record.resumed[0] >= show.step - 1 and record.chosen == KEPT
    assert len({at.process for at in show.seen}) == 2
    alone = tmp_path / "alone"
    assert main(["train", *job.words, "--device=cpu", f"--out-dir={alone}"]) == 0
    for name in ("ada.safetensors", "embeddings/my-person.safetensors"):
        one, other = load_file(tmp_path / "results/ada" / name), load_file(alone / name)
        assert one.keys() == other.keys() and all(v.equal(other[k]) for k, v in one.items())
    for name in ("ada-checkpoints.json", "ada-checkpoints.png"):
        assert (tmp_path / "results/ada" / name).read_bytes() == (alone / name).read_bytes()
