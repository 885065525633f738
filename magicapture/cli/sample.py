"""`magicapture sample`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from .. import sampling
from ..adapter import Adapter
from ..checkpoint import load_adapter
from ..config import PromptTemplates
from ..prompts import PromptKind, prompt_for
from ..sampling import SamplingSettings
from .images import free_path, save_image
from .model import backbone_from, precision_from

logger = logging.getLogger(__name__)


def sample(arguments: argparse.Namespace) -> None:
    """Draw pictures with a trained adapter."""
    settings = SamplingSettings(
        **{
            name: value
            for name in ("sampler", "steps", "guidance", "negative", "width", "height")
            if (value := getattr(arguments, name)) is not None
        }
    )
    file: Path = arguments.adapter
    adapter = load_adapter(file, [file.parent / "embeddings", file.parent])
    prompt = arguments.prompt or _trained_prompt(adapter, arguments.prompt_kind)
    backbone = backbone_from(arguments, precision_from(arguments))
    vectors = adapter.vectors().to(backbone.device)
    with sampling.adapted(backbone, adapter, arguments.strength):
        for index in range(arguments.count):
            seed = arguments.seed + index
            image = sampling.sample(backbone, prompt, vectors, settings, seed=seed)[0]
            path = free_path(arguments.out, file.stem)
            save_image(image, path, prompt, seed)
            logger.info("Wrote %s", path)


def _trained_prompt(adapter: Adapter, kind: PromptKind) -> str:
    templates = adapter.recipe.prompts if adapter.recipe else PromptTemplates()
    return prompt_for(adapter.concepts, templates, kind)
