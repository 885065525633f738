"""Drawn people and styles, and a tiny CLIP model whose weights are random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from magicapture.clip import Clip
from magicapture.evaluation import AestheticHead, Given, Models
from magicapture.paperdoll.faces import doll_analyzer
from magicapture.paperdoll.pairs import Pair, make_pair

FIRST = 1_000_000  # of the development seeds
WIDTH = 16


@pytest.fixture(scope="session")
def pair() -> Pair:
    """A person and a style, and pictures that have both, one or neither."""
    return make_pair(FIRST, FIRST + 99, poses=4)


@pytest.fixture(scope="session")
def clip(tokenizer: CLIPTokenizer) -> Clip:
    torch.manual_seed(3)
    small = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = CLIPConfig(
        text_config={**small, **ids, "vocab_size": 49408},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=WIDTH,
    )
    return Clip(CLIPModel(config).eval().requires_grad_(False), tokenizer)


@pytest.fixture(scope="session")
def head() -> AestheticHead:
    return AestheticHead(torch.linspace(-1, 1, WIDTH), 5.0, "head.safetensors")


@pytest.fixture(scope="session")
def models(clip: Clip, head: AestheticHead) -> Models:
    return Models(doll_analyzer(), clip, clip, head)


@pytest.fixture
def bare(models: Models) -> Models:
    """Nothing but what finds faces."""
    return Models(replace(models.analyzer, parser=None, embedder=None))


@pytest.fixture(scope="session")
def given() -> Callable[..., list[Given]]:
    """Pictures in memory: given(images, prompt)."""

    def make(images: Sequence[Tensor], prompt: str | None = None) -> list[Given]:
        return [
            Given(f"{i}.png", lambda image=image: image, prompt)
            for i, image in enumerate(images, 1)
        ]

    return make
