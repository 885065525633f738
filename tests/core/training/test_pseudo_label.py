"""The composed task is shown the portraits, or the portraits with the person's face laid in."""

from __future__ import annotations

import torch

from magicapture.config import LabelSettings
from magicapture.older import snr_between
from magicapture.training import Trainer


def rows_of(job, backbone, embedder, count=1):
    """The rows of some batches of the last phase, by task."""
    with Trainer.open(job, backbone, embedder=embedder) as trainer:
        phase, generator = job.recipe.phases[-1], torch.Generator().manual_seed(3)
        drawn = [trainer.materials.batches.rows(phase, generator) for _ in range(count)]
        return [{row.task: row for row in rows} for rows in drawn], trainer.materials.batches


def test_the_portrait_is_supervised_outside_its_face(make_job, backbone, embedder):
    (rows,), _ = rows_of(make_job(), backbone, embedder)
    assert torch.equal(rows["composed"].latents, rows["style"].latents)
    torch.testing.assert_close(rows["composed"].supervised, 1 - rows["composed"].face)


def test_with_the_face_laid_in_all_but_its_seam_is_supervised(make_job, backbone, embedder):
    near = LabelSettings(nearness=10)
    (rows,), batches = rows_of(
        make_job(pseudo_label="face_laid_in", labels=near), backbone, embedder
    )
    composed = rows["composed"]
    assert 0 < float(composed.face.mean()) < 0.5
    left_out = 1 - composed.supervised
    edge = (composed.face > 0.02) & (composed.face < 0.98)
    assert float(left_out[edge].mean()) > 0.5
    inside = composed.face * composed.supervised
    assert 0.3 < float(inside.sum() / composed.face.sum()) < 1, "its middle is taught"
    assert float(left_out.mean()) < 0.3
    portraits = [v.latents for variants in batches.reference._variants for v in variants]
    assert not any(torch.equal(composed.latents, latents) for latents in portraits)


def test_the_epoch_of_the_labels_is_kept(make_job, make_backbone, embedder):
    job = make_job(pseudo_label="face_laid_in")
    _, batches = rows_of(job, make_backbone(), embedder)
    state, generator = batches.state_dict(), torch.Generator().manual_seed(9)
    phase, before = job.recipe.phases[-1], generator.get_state()
    first = batches.rows(phase, generator)
    batches.rows(phase, generator)
    batches.load_state_dict(state)
    generator.set_state(before)
    again = batches.rows(phase, generator)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, again, strict=True))


def test_the_labels_face_is_taught_where_noise_hides_it(make_job, backbone, embedder):
    labels = LabelSettings(max_snr=snr_between(600) / 16)
    drawn, _ = rows_of(
        make_job(pseudo_label="face_laid_in", labels=labels), backbone, embedder, count=40
    )
    everywhere, _ = rows_of(make_job(pseudo_label="face_laid_in"), backbone, embedder, count=40)
    below = [rows["composed"].timestep < 600 for rows in drawn]
    assert 10 < sum(below) < 35
    for rows, whole, hidden in zip(drawn, everywhere, below, strict=True):
        composed = rows["composed"]
        taught = whole["composed"].supervised
        wanted = taught * (1 - composed.face) if hidden else taught
        torch.testing.assert_close(composed.supervised, wanted)
