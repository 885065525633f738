"""A training whose identity loss sees faces as dlib's network does."""

from __future__ import annotations

import torch

from magicapture.faces.dlib_resnet import DLIB_ALIGNMENT, DlibResNet
from magicapture.faces.embed import NORMALISATIONS, FaceEmbeddingNetwork
from magicapture.training import Stepped, Trainer


def test_a_step_with_the_identity_loss_by_dlibs_network(make_job, backbone, recipe) -> None:
    embedder = FaceEmbeddingNetwork(
        DlibResNet(), NORMALISATIONS["arcface"], alignment=DLIB_ALIGNMENT
    )
    steps: list[Stepped] = []

    def listen(event: object) -> None:
        if isinstance(event, Stepped):
            steps.append(event)

    with Trainer.open(make_job(), backbone, embedder=embedder, listener=listen) as trainer:
        adapter = trainer.run()
    losses = [step.losses["identity"] for step in steps if "identity" in step.losses]
    assert losses and all(0 < loss < 2 for loss in losses)
    assert any(bool(weights.up.any()) for weights in adapter.lora.values())
    assert all(torch.isfinite(weights.up).all() for weights in adapter.lora.values())
