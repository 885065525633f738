"""The files of DINO, which `magicapture.dino` runs: it looks at things, which have no face."""

from __future__ import annotations

import re

from .models import WEIGHTS, ModelFile, ModelKind

_NAMES = (
    (r"^(module\.|backbone\.|vit\.|dinov2\.)+", ""),
    (r"^embeddings\.", ""),
    (r"^patch_(embeddings\.projection|embed\.proj)\.", "patch."),
    (r"^(position_embeddings|pos_embed)$", "position"),
    (r"^(encoder\.layer|layers|blocks)\.", "block."),
    (r"\.(attention\.attention\.query|attention\.q_proj|attn\.q)\.", ".q."),
    (r"\.(attention\.attention\.key|attention\.k_proj|attn\.k)\.", ".k."),
    (r"\.(attention\.attention\.value|attention\.v_proj|attn\.v)\.", ".v."),
    (r"\.(attention\.output\.dense|attention\.o_proj|attn\.proj)\.", ".o."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".up."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".down."),
    (r"\.(layer_scale(\d)\.lambda1|ls(\d)\.gamma)$", r".scale\2\3"),
    (r"^(layernorm|norm)\.", "norm."),
)
"""From the names of torch hub's files and of transformers, 4 and 5, to one for each weight."""


def plain(name: str) -> str:
    """A weight's name in any of the files that a DINO comes in."""
    for pattern, short in _NAMES:
        name = re.sub(pattern, short, name)
    return name


def is_dino(names: frozenset[str]) -> bool:
    """Whether weights of these names are a DINO's, by what they begin with."""
    found = {plain(name) for name in names}
    first = {"cls_token", "position", "patch.weight", "block.0.norm1.weight", "norm.weight"}
    return found >= first and not any(name.startswith(("text", "decoder")) for name in found)


def _file(name: str, project: str, rank: int, *names: str) -> ModelFile:
    published = f"https://github.com/facebookresearch/{project}"
    return ModelFile(name, "dino", published, "Apache-2.0", rank, (name, *names))


DINOS = (
    ModelKind(
        "dino",
        "DINO, DINOv2 (transformers)",
        files=(
            _file("dino_vitbase8_pretrain.pth", "dino", 10, "dino*vitb*8*.safetensors"),
            _file("dino_deitsmall8_pretrain.pth", "dino", 20, "dino*vits*8*.safetensors"),
            _file("dino_vitbase16_pretrain.pth", "dino", 30, "dino*vitb*16*.safetensors"),
            _file("dino_deitsmall16_pretrain.pth", "dino", 40, "dino*vits*16*.safetensors"),
            _file("dinov2_vitb14_pretrain.pth", "dinov2", 50, "dinov2*base*.safetensors"),
            _file("dinov2_vits14_pretrain.pth", "dinov2", 60, "dinov2*small*.safetensors"),
        ),
        endings=WEIGHTS,
        recognises=lambda content: is_dino(content.names),
    ),
)
