"""Run inside a ComfyUI checkout by test_comfyui.py: what stock code makes of our files.

Arguments: ComfyUI's folder and a JSON list of requests. Prints their answers as JSON on the last
line. A process of its own, since ComfyUI takes over sys.path, sys.argv and the logging.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COMFYUI, REQUESTS = sys.argv[1], json.loads(sys.argv[2])
sys.argv = ["main.py", "--cpu"]
sys.path[:0] = [COMFYUI, str(ROOT)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.flux.model  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.sd2_clip  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

from magicapture.adapters import load_adapter, save_adapter  # noqa: E402
from magicapture.adapters.adapter import Adapter  # noqa: E402
from magicapture.lora import LoraWeights, applied, target_names  # noqa: E402
from magicapture.parts import Part  # noqa: E402

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "legacy": False,
    "dtype": torch.float32,
}
SD = {
    **COMMON,
    "model_channels": 320,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
}
_NEWER = "txt_ids_dims" in inspect.signature(comfy.ldm.flux.model.FluxParams).parameters
FAMILIES = {
    "sd1": (
        comfy.supported_models.SD15,
        comfy.sd1_clip.SD1ClipModel,
        {**SD, "num_heads": 8, "num_head_channels": -1, "context_dim": 768},
    ),
    "sd2": (
        comfy.supported_models.SD20,
        comfy.text_encoders.sd2_clip.SD2ClipModel,
        {**SD, "use_linear_in_transformer": True, "context_dim": 1024},
    ),
    "sdxl": (
        comfy.supported_models.SDXL,
        comfy.sdxl_clip.SDXLClipModel,
        {
            **COMMON,
            "model_channels": 320,
            "num_res_blocks": [2] * 3,
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
            "use_linear_in_transformer": True,
            "context_dim": 2048,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
    ),
    "doll_flux": (
        comfy.supported_models.Flux,
        comfy.sd1_clip.SD1ClipModel,
        {
            "image_model": "flux",
            "in_channels": 8,
            "out_channels": 8,
            "vec_in_dim": 128,
            "context_in_dim": 128,
            "hidden_size": 256,
            "mlp_ratio": 4.0,
            "num_heads": 4,
            "depth": 3,
            "depth_single_blocks": 6,
            "axes_dim": [16, 24, 24],
            **({"txt_ids_dims": []} if _NEWER else {}),
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": False,
            "dtype": torch.float32,
        },
    ),
    "tiny": (
        comfy.supported_models.SD15,
        comfy.sd1_clip.SD1ClipModel,
        {
            **COMMON,
            "num_head_channels": 8,
            "model_channels": 32,
            "num_res_blocks": [2, 2],
            "channel_mult": [1, 2],
            "transformer_depth": [1] * 4,
            "transformer_depth_output": [1] * 6,
            "transformer_depth_middle": 1,
            "context_dim": 64,
        },
    ),
}


def unet_of(family: str, device: str) -> comfy.model_base.BaseModel:
    """ComfyUI's model with a UNet of this family."""
    config_type, _, unet_config = FAMILIES[family]
    config = config_type(dict(unet_config))
    config.set_inference_dtype(torch.float32, None)
    kind = comfy.model_base.Flux if family == "doll_flux" else comfy.model_base.BaseModel
    return kind(config, device=device)


def unloaded(family: str, file: str) -> dict[str, object]:
    """Load a file with stock code into models of full size without weights."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    model = unet_of(family, "meta")
    text = FAMILIES[family][1](device="meta", dtype=torch.float32)
    names = comfy.lora.model_lora_keys_unet(model, {})
    names = comfy.lora.model_lora_keys_clip(text, names)
    tensors = comfy.utils.load_torch_file(file)
    messages.clear()
    loaded = comfy.lora.load_lora(tensors, names)
    return {"messages": messages, "layers": len(loaded), "tensors": len(tensors)}


def difference(folder: str) -> dict[str, float]:
    """Our LoRA inside ComfyUI's UNet against the saved file through stock patching."""
    torch.manual_seed(0)
    model = unet_of("tiny", "cpu")
    unet = model.diffusion_model
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 7, 64)
    keys = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    canonical = {own[: -len(".weight")]: name[: -len(".weight")] for name, own in keys.items()}
    state = {}
    for name in target_names(unet, "all_linear"):
        rows, columns = unet.get_submodule(name).weight.shape
        state[name] = LoraWeights(torch.randn(4, columns) / 8, torch.randn(rows, 4) / 8, 2.0)
    with torch.inference_mode():
        plain = unet(*inputs)
        with applied(unet, state):
            ours = unet(*inputs)
        assert torch.equal(unet(*inputs), plain)
        lora = {f"unet.{canonical[name]}": weights for name, weights in state.items()}
        path = save_adapter(Adapter(lora, {}, "sd1"), Path(folder), Path(folder), "tiny").lora
        parts = {name: (Part(theirs),) for name, theirs in canonical.items()}
        again = load_adapter(path).state_for("unet", unet, parts)
        with applied(unet, again):
            assert torch.equal(unet(*inputs), ours)
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        tensors = comfy.utils.load_torch_file(str(path))
        patched, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 1.0)
        patched.patch_model()
        stock = unet(*inputs)
    return {
        "stock": (stock - ours).abs().max().item(),
        "effect": (ours - plain).abs().max().item(),
        "size": plain.abs().max().item(),
    }


def embedding(folder: str, name: str, width: int, key: str) -> dict[str, object]:
    """What ComfyUI's tokenizer finds for `embedding:name`."""
    found = comfy.sd1_clip.load_embed(name, folder, width, key)
    return {"shape": list(found.shape), "sum": found.double().sum().item()}


QUESTIONS = {"unloaded": unloaded, "difference": difference, "embedding": embedding}
answers = [QUESTIONS[request.pop("what")](**request) for request in REQUESTS]
sys.stdout.write(f"\n{json.dumps(answers)}\n")
