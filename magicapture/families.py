"""The families of base models, as data: what they are called, and how they differ.

A new family is a row here, and what its networks need beyond it is said by the backbones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FamilyName = Literal[
    "sd1",
    "sd2",
    "sdxl",
    "flux1",
    "chroma",
    "zimage",
    "qwen_image",
    "krea2",
    "flux2_klein_4b",
    "flux2_klein_9b",
    "doll_flux",
]
NetworkName = Literal["unet", "transformer"]
"""What diffusers calls the network that predicts; a transformer's attention is joint."""


OLDEST = "0.3.64"
"""The oldest ComfyUI that the nodes run in."""


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a family.

    key: of its vectors in embedding files. width: of its vectors. unused: how many of its last
    layers nothing reads. columns: whether the context holds its words; False where the network is
    told its pooled output alone. length: of its texts where its tokenizer names none. own_scale:
    whether its vectors are of another size than CLIP's, so that they learn at a rate in proportion.
    lora: whether a LoRA may be trained in it. learns: whether a token's vectors may; else a concept
    is spelled there by its phrase. template: of a language model, the words around a text.
    own_length: a text is read as long as it is, not filled up to `length`; fillings: how many the
    network sees behind it all the same, in diffusers. headless: whether the context begins with the
    text, without the template's words before it. layers: whose outputs the context has side by
    side, 0 being the vectors themselves; none: the last one's alone.
    """

    key: str
    width: int
    unused: int = 0
    columns: bool = True
    length: int | None = None
    own_scale: bool = False
    lora: bool = True
    learns: bool = True
    template: str | None = None
    own_length: bool = False
    fillings: int = 0
    headless: bool = False
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of base models whose adapters fit each other.

    title: for users. encoders: in the order of their LoRAs' numbers in kohya's files. resolution:
    of training pictures, in pixels a side, where a recipe names none. base_version, architecture:
    what kohya's tools and the model metadata standard call it. decoder: the tiny one's name.
    taesd: whether that is laid out as TAESD; else ComfyUI alone reads it. comfyui: the first
    version that has the family. clip_type: what Load CLIP there calls it. penultimate: the context
    is the encoders' last layer but one. pooled: the encoder whose pooled output is told beside it,
    with the picture's size.
    half_vae: whether the VAE may compute in float16. magicface: whether MagicFace works on it.
    network: what the network that predicts is called, in LoRA files as well. hidden: width of a
    transformer's tokens, by which LoRAs of other programs are told. guidance: while drawing, where
    none is named. distilled: guidance is told to the network, which sees no negative prompt;
    trained_guidance: what it is told in training. asked_guidance: what a network that asks for a
    guidance without being distilled is told, always. cell: pixels a side that pictures come in.
    mu: of a flow, the logarithm of its levels' shift, where diffusers' files do not have it.
    drawn_shift: of the levels that training draws, where it is another than sampling's.
    advice: for users, before they train.
    """

    title: str
    encoders: tuple[Encoder, ...]
    resolution: int
    base_version: str
    architecture: str
    decoder: str
    taesd: bool = True
    comfyui: str = OLDEST
    clip_type: str = ""
    penultimate: bool = False
    pooled: str | None = None
    half_vae: bool = True
    magicface: bool = True
    network: NetworkName = "unet"
    hidden: int | None = None
    guidance: float = 7.0
    distilled: bool = False
    trained_guidance: float = 1.0
    asked_guidance: float | None = None
    cell: int = 8
    mu: float | None = None
    drawn_shift: float | None = None
    advice: str = ""

    @property
    def network_title(self) -> str:
        """The network's name in messages."""
        return "UNet" if self.network == "unet" else self.network

    @property
    def is_drawn(self) -> bool:
        """Whether it is the drawn world's own, for the demo and the benchmarks."""
        return self.resolution < 512

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the text encoders."""
        return tuple(encoder.key for encoder in self.encoders)

    @property
    def learns(self) -> bool:
        """Whether tokens have vectors; else all concepts are said by phrases."""
        return any(encoder.learns for encoder in self.encoders)

    @property
    def context(self) -> int:
        """Width of what the network reads of the prompt: the encoders' outputs side by side."""
        return sum(e.width * max(1, len(e.layers)) for e in self.encoders if e.columns)

    @property
    def reads(self) -> tuple[str, ...]:
        """The keys of the text encoders whose words the context holds.

        Of several all cut a text into the same words, so that a token's columns are the same.
        """
        return tuple(encoder.key for encoder in self.encoders if encoder.columns)

    def encoder(self, key: str) -> Encoder:
        """One of the text encoders."""
        return next(encoder for encoder in self.encoders if encoder.key == key)


_DESCRIBE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""How Qwen-Image's and Krea 2's text encoders are asked; 34 tokens stand before the text."""


def _qwen3(key: str, width: int) -> Encoder:
    """Qwen3 in front of a klein, which is told not to think, and of which three layers are read."""
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    return Encoder(
        key, width, length=512, lora=False, learns=False, template=template, layers=(9, 18, 27)
    )


def _klein(size: str, encoder: Encoder, hidden: int) -> Family:
    """A Flux.2 klein of some size; adapters of one do not fit the other."""
    name = f"flux-2-klein-{size.lower()}"
    return Family(
        f"Flux.2 klein {size}",
        (encoder,),
        resolution=512,
        base_version=name.replace("-", "_"),
        architecture=name,
        decoder="taef2",
        taesd=False,
        comfyui="0.33.0",
        clip_type="flux2",
        magicface=False,
        network="transformer",
        hidden=hidden,
        guidance=4.0,
        cell=16,
        mu=2.02,
        drawn_shift=3.0,  # else the identity loss would act in one draw of sixteen
        advice="Train on klein base, draw with the distilled klein, in 4 steps.",
    )


FAMILIES: Mapping[str, Family] = {
    "sd1": Family(
        "Stable Diffusion 1.x",
        (Encoder("clip_l", 768),),
        resolution=512,
        base_version="sd_v1",
        architecture="stable-diffusion-v1",
        decoder="taesd",
    ),
    "sd2": Family(
        "Stable Diffusion 2.x",
        (Encoder("clip_l", 1024),),
        resolution=512,
        base_version="sd_v2",
        architecture="stable-diffusion-v2-512",
        decoder="taesd",
    ),
    "sdxl": Family(
        "Stable Diffusion XL",
        (Encoder("clip_l", 768, unused=1), Encoder("clip_g", 1280)),
        resolution=1024,
        base_version="sdxl_base_v1-0",
        architecture="stable-diffusion-xl-v1-base",
        decoder="taesdxl",
        penultimate=True,
        pooled="clip_g",
        half_vae=False,
    ),
    "flux1": Family(
        "Flux.1",
        (
            Encoder("clip_l", 768, columns=False),
            Encoder("t5xxl", 4096, length=256, own_scale=True, lora=False),
        ),
        resolution=512,
        base_version="flux1",
        architecture="flux-1-dev",
        decoder="taef1",
        pooled="clip_l",
        magicface=False,
        network="transformer",
        hidden=3072,
        guidance=3.5,
        distilled=True,
        cell=16,
        advice="Train on dev; the LoRA also draws with schnell, in 4 steps.",
    ),
    "chroma": Family(
        "Chroma",
        (
            Encoder(
                "t5xxl",
                4096,
                length=512,
                own_scale=True,
                lora=False,
                own_length=True,
                fillings=1,
            ),
        ),
        resolution=512,
        base_version="chroma",
        architecture="chroma",
        decoder="taef1",
        clip_type="chroma",
        magicface=False,
        network="transformer",
        hidden=3072,
        guidance=5.0,
        asked_guidance=0.0,
        cell=16,
        advice="Train on the base or HD, draw with Flash.",
    ),
    "zimage": Family(
        "Z-Image",
        (
            Encoder(
                "qwen3_4b",
                2560,
                length=512,
                lora=False,
                learns=False,
                template="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
                own_length=True,
            ),
        ),
        resolution=512,
        base_version="zimage",
        architecture="z-image",
        decoder="taef1",
        comfyui="0.33.0",
        clip_type="lumina2",
        penultimate=True,
        magicface=False,
        network="transformer",
        hidden=3840,
        guidance=4.0,
        cell=16,
        advice="Train on the base, draw with Turbo.",
    ),
    "qwen_image": Family(
        "Qwen-Image",
        (
            Encoder(
                "qwen25_7b",
                3584,
                length=1058,
                lora=False,
                learns=False,
                template=_DESCRIBE,
                own_length=True,
                headless=True,
            ),
        ),
        resolution=512,
        base_version="qwen_image",
        architecture="qwen-image",
        decoder="lighttaew2_1",
        taesd=False,
        clip_type="qwen_image",
        magicface=False,
        network="transformer",
        hidden=3072,
        guidance=4.0,
        cell=16,
        advice="Train on Qwen-Image itself, draw with a Lightning LoRA if you like.",
    ),
    "krea2": Family(
        "Krea 2",
        (
            Encoder(
                "qwen3vl_4b",
                2560,
                length=546,
                lora=False,
                learns=False,
                template=_DESCRIBE,
                own_length=True,
                headless=True,
                layers=(2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35),
            ),
        ),
        resolution=512,
        base_version="krea2",
        architecture="krea-2",
        decoder="lighttaew2_1",
        taesd=False,
        comfyui="0.33.0",
        clip_type="krea2",
        magicface=False,
        network="transformer",
        hidden=6144,
        guidance=5.5,
        cell=16,
        advice="Train on the base (Raw), draw with Turbo.",
    ),
    "flux2_klein_4b": _klein("4B", _qwen3("qwen3_4b", 2560), hidden=3072),
    "flux2_klein_9b": _klein("9B", _qwen3("qwen3_8b", 4096), hidden=4096),
    "doll_flux": Family(
        "the paperdoll transformer",
        (Encoder("clip_l", 128),),
        resolution=128,
        base_version="magicapture_doll_flux",
        architecture="magicapture-doll-flux",
        decoder="its own VAE",
        pooled="clip_l",
        magicface=False,
        network="transformer",
        hidden=256,
        cell=16,
    ),
}


def transformers(last: str = "or", comfyui: str | None = None) -> str:
    """The families of transformers by title, "Flux.1, Chroma or Z-Image".

    comfyui: those alone that ComfyUI has had from this version on.
    """
    titles = [
        family.title
        for family in FAMILIES.values()
        if family.network == "transformer"
        and not family.is_drawn
        and comfyui in (None, family.comfyui)
    ]
    *first, end = titles
    return f"{', '.join(first)} {last} {end}" if first else end


def table() -> str:
    """What works on which family of users' models, as rows of Markdown; `docs/families.md`."""
    head = (
        "base model",
        "how a token is learned",
        "pictures",
        "refocusing",
        "MagicFace",
        "tiny decoder",
        "ComfyUI",
    )
    lines = [head, ("---",) * len(head)]
    for family in FAMILIES.values():
        if family.is_drawn:
            continue
        vectors = " and ".join(f"`{e.key}` ({e.width})" for e in family.encoders if e.learns)
        lines.append(
            (
                family.title,
                f"vectors of {vectors}" if vectors else "a phrase",
                f"{family.resolution} px",
                "yes",
                "yes" if family.magicface else "no",
                family.decoder if family.taesd else f"{family.decoder} (ComfyUI)",
                f"{family.comfyui} and newer",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
