"""The pack loaded as ComfyUI does, and tiny models for both; skipped where there is no ComfyUI."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.nodes._families import CLIPS, KINDS, fill, make_flux2_vae, patched

ROOT = Path(__file__).resolve().parents[2]
PACK = "ComfyUI-MagiCapture_x_test"  # ComfyUI writes the "." of a folder's name as "_x_"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.comfyui)


@dataclass
class Pack:
    """The pack as ComfyUI imports it, under a name that no import statement could have."""

    root: ModuleType

    def __call__(self, name: str) -> Any:
        """A module of the pack: `pack("magicapture.tokens")`.

        The core must come from here: `import magicapture` would be a second copy, whose errors and
        classes are others.
        """
        return importlib.import_module(f"{PACK}.{name}")

    @property
    def comfy(self) -> Any:
        return self("nodes._comfy")


@pytest.fixture(scope="session")
def pack(comfyui: Path) -> Iterator[Pack]:
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    yield Pack(module)
    for name in [n for n in sys.modules if n.split(".")[0] == PACK]:
        del sys.modules[name]


@pytest.fixture
def nodes(pack: Pack) -> SimpleNamespace:
    """The nodes by the end of their class names: nodes.Train, nodes.DefineConcept."""
    return SimpleNamespace(
        **{node.__name__.removeprefix("MagiCapture"): node for node in pack("nodes").NODES}
    )


@pytest.fixture
def executor() -> Iterator[None]:
    """What the executor puts around every node."""
    with torch.inference_mode():
        yield


# -- tiny models ------------------------------------------------------------------------------

WIDTH = 32  # GroupNorm(32) allows no less
QWEN_WIDTH = 48
QWEN = {
    "hidden_size": QWEN_WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,  # of 128 each, which ComfyUI's config does not change
    "num_key_value_heads": 1,
}
QWEN_VL_WIDTH = 128  # one head's, which ComfyUI's config does not change
QWEN_VL = {
    "hidden_size": QWEN_VL_WIDTH,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
XL_WIDTH = 48  # of XL's second text encoder
T5_WIDTH = 48


@dataclass
class Tiny:
    """A MODEL, CLIP and VAE as ComfyUI's loaders return them, made in inference mode."""

    model: Any
    clip: Any
    vae: Any

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {
            "unet": self.model.model.diffusion_model,
            "clip": self.clip.cond_stage_model,
            "vae": self.vae.first_stage_model,
        }


def tiny_unet_config(**changes: Any) -> dict[str, Any]:
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": WIDTH,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "num_heads": 2,
        "context_dim": WIDTH,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "legacy": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        **changes,
    }


def make_model(
    family: str = "sd1",
    v_prediction: bool = False,
    dtype: torch.dtype = torch.float32,
    manual_cast: torch.dtype | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **unet: Any,
) -> Any:
    """A MODEL of one million parameters; settings: what a loader notes in its configuration."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    names = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL"}
    parent = getattr(comfy.supported_models, names[family])

    class TinySD(parent):  # not registered: ComfyUI must go on detecting models as it does
        unet_extra_config: ClassVar[dict[str, Any]] = {}

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            kinds = comfy.model_base.ModelType
            return kinds.V_PREDICTION if v_prediction else kinds.EPS

    config = TinySD(tiny_unet_config(**unet))
    config.set_inference_dtype(dtype, manual_cast)
    for name, value in settings.items():
        setattr(config, name, value)
    model = config.get_model({}, "", device=torch.device("cpu"))
    fill(model.diffusion_model)
    cpu = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def make_diffusers_unet(**changes: Any) -> nn.Module:
    """diffusers' UNet of `tiny_unet_config`'s shape, for weights that are moved over."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(WIDTH, 2 * WIDTH),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        **changes,
    )
    return unet.eval()


def make_diffusers_twin(model: Any) -> nn.Module:
    """diffusers' UNet with a MODEL's weights, by ComfyUI's own map of their names."""
    import comfy.utils

    theirs = make_diffusers_unet()
    weights = model.model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    theirs.load_state_dict({name: weights[names[name]].clone() for name in theirs.state_dict()})
    return theirs


FLUX = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": WIDTH,
    "context_in_dim": WIDTH,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
}


def make_flux(
    dtype: torch.dtype = torch.float32, manual_cast: torch.dtype | None = None, **changes: Any
) -> Any:
    """A MODEL of Flux's class over Stable Diffusion's latents, told of one text encoder."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models

    class TinyFlux(comfy.supported_models.FluxSchnell):
        unet_extra_config: ClassVar[dict[str, Any]] = {}
        latent_format = comfy.latent_formats.SD15

    newer = {"txt_ids_dims": []} if hasattr(comfy.model_base, "Flux2") else {}
    return patched(TinyFlux({**FLUX, **newer, **changes}), dtype=dtype, manual_cast=manual_cast)


def make_flux_twin(model: Any) -> nn.Module:
    """diffusers' Flux with a MODEL's weights, by ComfyUI's own map of their names."""
    import comfy.utils
    from diffusers import FluxTransformer2DModel

    config = model.model.model_config.unet_config
    width = config["hidden_size"] // config["num_heads"]
    theirs = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * config["in_channels"],
        num_layers=config["depth"],
        num_single_layers=config["depth_single_blocks"],
        attention_head_dim=width,
        num_attention_heads=config["num_heads"],
        joint_attention_dim=config["context_in_dim"],
        pooled_projection_dim=config["vec_in_dim"],
        axes_dims_rope=tuple(config["axes_dim"]),
        guidance_embeds=config["guidance_embed"],
    )
    weights, state = model.model.diffusion_model.state_dict(), {}
    names = theirs.state_dict().keys()
    for name, entry in comfy.utils.flux_to_diffusers(config).items():
        own, place, *change = (entry, None) if isinstance(entry, str) else entry
        if name in names:
            rows = slice(None) if place is None else slice(place[1], place[1] + place[2])
            value = weights[own][rows].clone()
            state[name] = change[0](value) if change else value
    theirs.load_state_dict(state)
    return theirs.eval()


ZIMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 4,
    "cap_feat_dim": QWEN_WIDTH,
    "dim": 256,  # no less has the 256 numbers that its layers are told of the level
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "axes_dims": [16, 24, 24],
    "axes_lens": [512, 64, 64],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "multiple_of": 2,
    "qk_norm": True,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}


def make_zimage(name: str = "ZImage", **changes: Any) -> Any:
    """A MODEL of Z-Image's class (or of another of Lumina's) over Stable Diffusion's latents."""
    import comfy.latent_formats
    import comfy.supported_models
    from comfy.ldm.lumina.model import NextDiT

    class TinyZImage(getattr(comfy.supported_models, name)):
        unet_extra_config: ClassVar[dict[str, Any]] = {}
        latent_format = comfy.latent_formats.SD15

    known = inspect.signature(NextDiT.__init__).parameters.keys() | {"image_model"}
    settings = {name: value for name, value in ZIMAGE.items() if name in known}  # 0.3.64 has fewer
    return patched(TinyZImage({**settings, **changes}), std=0.08)


def make_zimage_twin(model: Any) -> nn.Module:
    """diffusers' Z-Image with a MODEL's weights, by ComfyUI's own map of their names."""
    import comfy.utils
    from diffusers import ZImageTransformer2DModel
    from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

    config = model.model.model_config.unet_config
    same = ("in_channels", "dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads")
    same += ("cap_feat_dim", "rope_theta", "axes_dims", "axes_lens")
    theirs = ZImageTransformer2DModel(**{name: config[name] for name in same})
    theirs.t_embedder = TimestepEmbedder(256, mid_size=256)  # 1024, beside a width of 3840
    weights, state = model.model.diffusion_model.state_dict(), {}
    names = theirs.state_dict().keys()
    for name, entry in comfy.utils.z_image_to_diffusers(config).items():
        own, place = (entry, None) if isinstance(entry, str) else entry
        if name in names:
            rows = slice(None) if place is None else slice(place[1], place[1] + place[2])
            state[name] = weights[own][rows].clone()
    theirs.load_state_dict(state)
    return theirs.eval()


QWEN_IMAGE = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": QWEN_VL_WIDTH,
    "axes_dims_rope": (4, 6, 6),
}


def make_qwen_image(**changes: Any) -> Any:
    """A MODEL of Qwen-Image's class over its own latents, which are a film's."""
    import comfy.supported_models

    class TinyQwenImage(comfy.supported_models.QwenImage):
        pass

    return patched(TinyQwenImage({**QWEN_IMAGE, **changes}))


def make_qwen_image_twin(model: Any) -> nn.Module:
    """diffusers' Qwen-Image with a MODEL's weights, whose names are the same."""
    from diffusers import QwenImageTransformer2DModel

    config = {n: v for n, v in QWEN_IMAGE.items() if n != "image_model"}
    theirs = QwenImageTransformer2DModel(**config)
    weights = model.model.diffusion_model.state_dict()
    theirs.load_state_dict({name: weights[name].clone() for name in theirs.state_dict()})
    return theirs.eval()


KREA2_TEXT = {**QWEN, "intermediate_size": 48, "num_hidden_layers": 36}
KREA2 = {
    "image_model": "krea2",
    "features": 64,
    "heads": 4,
    "kvheads": 2,
    "layers": 3,
    "txtdim": QWEN_WIDTH,
    "txtheads": 2,
    "txtkvheads": 2,
}


def make_krea2(**changes: Any) -> Any:
    """A MODEL of Krea 2's class over its own latents, which are a film's."""
    import comfy.supported_models

    class TinyKrea2(comfy.supported_models.Krea2):
        pass

    return patched(TinyKrea2({**KREA2, **changes}))


def make_krea2_twin(model: Any) -> nn.Module:
    """diffusers' Krea 2 with a MODEL's weights, by ComfyUI's own map of its linear layers."""
    import comfy.utils
    from diffusers import Krea2Transformer2DModel

    config = model.model.model_config.unet_config
    theirs = Krea2Transformer2DModel(
        num_layers=config["layers"],
        attention_head_dim=config["features"] // config["heads"],
        num_attention_heads=config["heads"],
        num_key_value_heads=config["kvheads"],
        intermediate_size=256,
        text_hidden_dim=config["txtdim"],
        text_num_attention_heads=config["txtheads"],
        text_num_key_value_heads=config["txtkvheads"],
        text_intermediate_size=128,
        axes_dims_rope=(4, 6, 6),
    )
    own = model.model.diffusion_model.state_dict()
    linear = comfy.utils.krea2_to_diffusers(config)
    norms = {"attn.norm_q.weight": "attn.qknorm.qnorm.scale"}
    norms |= {"attn.norm_k.weight": "attn.qknorm.knorm.scale"}
    norms |= {"norm1.weight": "prenorm.scale", "norm2.weight": "postnorm.scale"}
    norms |= {"scale_shift_table": "mod.lin"}
    others = {"final_layer.norm.weight": "last.norm.scale", "txt_in.norm.weight": "txtmlp.0.scale"}
    others |= {"final_layer.scale_shift_table": "last.modulation.lin"}

    def named(name: str) -> str:
        layer, _, kind = name.rpartition(".")
        if f"{layer}.weight" in linear:
            return linear[f"{layer}.weight"].removesuffix("weight") + kind
        if name in others:
            return others[name]
        block, ending = next((name.removesuffix(e), e) for e in norms if name.endswith(f".{e}"))
        block = block.replace("transformer_blocks.", "blocks.").replace("text_fusion", "txtfusion")
        return block + norms[ending]

    theirs.load_state_dict(
        {n: own[named(n)].clone().view(v.shape) for n, v in theirs.state_dict().items()}
    )
    return theirs.eval()


def make_film_vae() -> Any:
    """A VAE in Wan's form, of a twelfth of its width."""
    import comfy.ldm.wan.vae as wan
    import comfy.sd

    size = {"dim": 8, "z_dim": 16, "temperal_downsample": [False, True, True]}
    state = fill(wan.WanVAE(**size)).state_dict()
    with pytest.MonkeyPatch.context() as patch:  # 0.3.64 does not read the width from the file
        patch.setattr(wan, "WanVAE", lambda kind=wan.WanVAE, **of: kind(**{**of, "dim": 8}))
        return comfy.sd.VAE(sd={name: value.clone() for name, value in state.items()})


def make_film_vae_twin(vae: Any) -> nn.Module:
    """diffusers' VAE of Qwen-Image with a VAE's weights, by diffusers' own map of their names."""
    from diffusers import AutoencoderKLQwenImage
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    theirs = AutoencoderKLQwenImage(base_dim=8)
    state = {name: value.clone() for name, value in vae.first_stage_model.state_dict().items()}
    theirs.load_state_dict(convert_wan_vae_to_diffusers(state))
    return theirs.eval()


@cache
def _tokenizer(kind: type, folder: Path) -> Any:
    return kind(embedding_directory=[str(folder)])


def _small_eyes(kind: Any, **of: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "num_layers": 1}
    return kind(**{**of, **sizes})


def make_clip(folder: Path, family: str = "sd1", dtype: torch.dtype = torch.float32) -> Any:
    """A CLIP with the real tokenizer and two narrow layers."""
    import comfy.sd
    import comfy.supported_models
    from comfy.text_encoders import qwen_vl

    names = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL", "flux1": "Flux", "zimage": "ZImage"}
    names |= {"qwen_image": "QwenImage", "krea2": "Krea2"}
    if family in CLIPS:
        target = CLIPS[family].target()
    else:
        kind = getattr(comfy.supported_models, names[family])
        target = kind({"image_model": "flux"} if family == "flux1" else {}).clip_target({})
    widths = {
        "sd1": {"clip_l": WIDTH},
        "sd2": {"clip_h": WIDTH},
        "sdxl": {"clip_l": WIDTH, "clip_g": XL_WIDTH},
        "flux1": {"clip_l": WIDTH, "t5xxl": T5_WIDTH},
        "zimage": {"qwen3_4b": QWEN_WIDTH},
        "qwen_image": {"qwen25_7b": QWEN_VL_WIDTH},
        "krea2": {"qwen3vl_4b": QWEN_WIDTH},
        **{name: dict.fromkeys(of.keys, 48) for name, of in CLIPS.items()},
    }[family]
    tokenizer, narrow = _tokenizer(target.tokenizer, folder), {}
    for name, width in widths.items():
        own = name if hasattr(tokenizer, name) else f"clip_{name}"
        getattr(tokenizer, own).embedding_size = width
        narrow[f"{name}_model_config"] = {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "projection_dim": width,
            # T5's words for the same
            "d_model": width,
            "d_kv": 8,
            "d_ff": 2 * width,
            "num_heads": 4,
            "num_layers": 2,
        }
    narrow |= {"qwen3_4b_model_config": QWEN, "qwen25_7b_model_config": QWEN_VL}
    narrow |= {"qwen3vl_4b_model_config": KREA2_TEXT}
    if family in CLIPS:
        narrow["qwen3_4b_model_config"] = {**QWEN, **CLIPS[family].qwen}
    target.tokenizer = lambda **_: tokenizer
    with pytest.MonkeyPatch.context() as patch:
        # A Qwen2.5-VL's eyes, which read no words: not a billion weights of them.
        patch.setattr(
            qwen_vl,
            "Qwen2VLVisionTransformer",
            partial(_small_eyes, qwen_vl.Qwen2VLVisionTransformer),
        )
        if family == "krea2":
            eyes = {"hidden_size": 64, "intermediate_size": 16, "depth": 1}
            known = importlib.import_module("comfy.text_encoders.qwen3vl").QWEN3VL_VISION
            patch.setitem(known, "qwen3vl_4b", {**eyes, "deepstack_visual_indexes": []})
        clip = comfy.sd.CLIP(
            target,
            embedding_directory=[str(folder)],
            model_options={**narrow, "dtype": dtype},
        )
    fill(clip.cond_stage_model)
    return clip


def make_taesd() -> Any:
    """A VAE in TAESD's form."""
    import comfy.sd
    import comfy.taesd.taesd

    network = fill(comfy.taesd.taesd.TAESD(), std=0.04)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    state["vae_scale"], state["vae_shift"] = torch.tensor(0.18215), torch.tensor(0.0)
    return comfy.sd.VAE(sd=state)


def make_kl() -> Any:
    """A VAE in Stable Diffusion's own form, with an eighth of the channels."""
    import comfy.sd

    layout = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": WIDTH,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": layout, "embed_dim": 4}
    vae = comfy.sd.VAE(sd={}, config={"params": params})
    fill(vae.first_stage_model)
    return vae


@pytest.fixture(scope="session")
def make(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Makers of tiny parts; ComfyUI's in inference mode, as inside a workflow."""
    embeddings = tmp_path_factory.mktemp("embeddings")

    def inferring(maker: Callable[..., Any]) -> Callable[..., Any]:
        return torch.inference_mode()(maker)

    return SimpleNamespace(
        model=inferring(make_model),
        clip=inferring(lambda *args, **kwargs: make_clip(embeddings, *args, **kwargs)),
        taesd=inferring(make_taesd),
        kl=inferring(make_kl),
        diffusers_unet=make_diffusers_unet,
        diffusers_twin=make_diffusers_twin,
        flux=inferring(make_flux),
        flux_twin=make_flux_twin,
        zimage=inferring(make_zimage),
        zimage_twin=make_zimage_twin,
        qwen_image=inferring(make_qwen_image),
        qwen_image_twin=make_qwen_image_twin,
        krea2=inferring(make_krea2),
        krea2_twin=make_krea2_twin,
        krea2_text=KREA2_TEXT,
        film_vae=inferring(make_film_vae),
        film_vae_twin=make_film_vae_twin,
        qwen=QWEN,
        qwen_vl=QWEN_VL,
        embeddings=embeddings,
    )


@pytest.fixture
def tiny(make: SimpleNamespace) -> Tiny:
    """A tiny Stable Diffusion 1.5."""
    return Tiny(make.model(), make.clip(), make.taesd())


@pytest.fixture
def tiny_sd2(make: SimpleNamespace) -> Tiny:
    """A tiny Stable Diffusion 2.1 with v-prediction."""
    model = make.model("sd2", v_prediction=True, use_linear_in_transformer=True)
    return Tiny(model, make.clip("sd2"), make.taesd())


@pytest.fixture
def tiny_xl(make: SimpleNamespace) -> Tiny:
    """A tiny Stable Diffusion XL: two text encoders, and a UNet that is told the size."""
    model = make.model(
        "sdxl",
        use_linear_in_transformer=True,
        context_dim=WIDTH + XL_WIDTH,
        num_classes="sequential",
        adm_in_channels=XL_WIDTH + 6 * 256,
        transformer_depth=[0, 2],
        transformer_depth_output=[0, 0, 2, 2],
        transformer_depth_middle=2,
    )
    return Tiny(model, make.clip("sdxl"), make.taesd())


@pytest.fixture
def tiny_flux(make: SimpleNamespace) -> Tiny:
    """A tiny transformer of Flux's class: words and picture attend to both, and it flows."""
    return Tiny(make.flux(), make.clip(), make.taesd())


@pytest.fixture
def tiny_flux1(make: SimpleNamespace) -> Tiny:
    """A tiny Flux.1 dev: T5 for the words, CLIP for the whole text, guidance told."""
    model = make.flux(context_in_dim=T5_WIDTH, guidance_embed=True)
    return Tiny(model, make.clip("flux1"), make.taesd())


@pytest.fixture
def tiny_zimage(make: SimpleNamespace) -> Tiny:
    """A tiny Z-Image: Qwen for the words, which stand before the picture; skipped where none is."""
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "ZImage"):
        pytest.skip("this ComfyUI has no Z-Image")
    return Tiny(make.zimage(), make.clip("zimage"), make.taesd())


@pytest.fixture(scope="module")
def tiny_qwen_image(make: SimpleNamespace) -> Tiny:
    """A tiny Qwen-Image: Qwen2.5-VL for the words, which stand before the picture; one a module."""
    return Tiny(make.qwen_image(), make.clip("qwen_image"), make.film_vae())


@pytest.fixture(scope="module")
def tiny_krea2(make: SimpleNamespace) -> Tiny:
    """A tiny Krea 2, which reads twelve layers of Qwen3-VL; skipped where none is."""
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "Krea2"):
        pytest.skip("this ComfyUI has no Krea 2")
    return Tiny(make.krea2(), make.clip("krea2"), make.film_vae())


@pytest.fixture
def tiny_kind(make: SimpleNamespace) -> Callable[[str], Tiny]:
    """The tiny parts of a family in `_families`; skipped where this ComfyUI has none."""
    import comfy.supported_models

    def made(name: str) -> Tiny:
        kind = KINDS[name]
        if not hasattr(comfy.supported_models, kind.needs):
            pytest.skip(f"this ComfyUI has no {kind.title}")
        with torch.inference_mode():
            vae = make_flux2_vae() if kind.cell == 1 else make_taesd()
            return Tiny(kind.model(), make.clip(name), vae)

    return made


@pytest.fixture
def ksample() -> Callable[..., Tensor]:
    """A latent (1,4,8,8) by the stock KSampler, CLIPTextEncode and EmptyLatentImage."""

    def sample(tiny: Tiny, text: str = "a photo of a person", steps: int = 3) -> Tensor:
        import nodes

        with torch.inference_mode():
            positive = nodes.CLIPTextEncode().encode(tiny.clip, text)[0]
            negative = nodes.CLIPTextEncode().encode(tiny.clip, "")[0]
            latent = nodes.EmptyLatentImage().generate(64, 64)[0]
            settings = (steps, 5.0, "euler", "normal")
            sampler = nodes.KSampler()
            return sampler.sample(tiny.model, 3, *settings, positive, negative, latent)[0][
                "samples"
            ]

    return sample


@pytest.fixture(params=[None, torch.device("cpu", 0)], ids=["cast", "moved"])
def scarce(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Makes a MODEL load as where memory is short: LoRAs are applied at every use of a weight.

    The second time the weights also seem to lie on another device than the one that computes.
    """
    import comfy.model_management as management

    def load(patchers: Any, **_: Any) -> None:
        for patcher in patchers:
            patcher.partially_load(patcher.load_device, 0.1)

    def shortage(model: Any) -> Any:
        management.unload_all_models()
        monkeypatch.setattr(management, "load_models_gpu", load)
        model = model.clone()
        model.load_device = request.param or model.load_device
        return model

    return shortage


@pytest.fixture(scope="session")
def checkpoint(comfyui: Path) -> str:
    """Name of the smallest checkpoint that CheckpointLoaderSimple takes for Stable Diffusion 1.5.

    fp16, random weights; its VAE is a TAESD. 0.3 GB, nearly all of it the text encoder.
    """
    import folder_paths
    from comfy.sd1_clip import SD1ClipModel
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    unet = make_model(channel_mult=[1, 1], model_channels=320, context_dim=768, num_heads=8)
    state = {f"model.{n}": v for n, v in unet.model.state_dict().items() if "diffusion" in n}
    text = fill(SD1ClipModel(dtype=torch.float16), std=0.02).clip_l.transformer.text_model
    prefix = "cond_stage_model.transformer.text_model"
    state |= {f"{prefix}.{name}": value for name, value in text.state_dict().items()}
    vae = fill(TAESD(), std=0.04).state_dict() | {"vae_scale": torch.tensor(0.18215)}
    state |= {f"first_stage_model.{name}": value for name, value in vae.items()}
    folder = Path(folder_paths.get_folder_paths("checkpoints")[0])
    save_file({n: v.half().contiguous() for n, v in state.items()}, folder / "small.safetensors")
    return "small.safetensors"


@pytest.fixture(scope="session")
def serve(
    comfyui: Path, checkpoint: str, serving: Callable[..., AbstractContextManager[Any]]
) -> Callable[[Path], AbstractContextManager[Any]]:
    """Starts a ComfyUI on the CPU that has the small checkpoint, in a folder of its own."""
    import folder_paths

    file = Path(folder_paths.get_full_path("checkpoints", checkpoint))
    return lambda base: serving(base, file)


@pytest.fixture(scope="module")
def server(
    serve: Callable[[Path], AbstractContextManager[Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A running ComfyUI on the CPU that has the small checkpoint."""
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running
