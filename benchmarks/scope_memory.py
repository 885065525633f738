"""What memory a frozen UNet needs in ComfyUI's gradient scope, beside its own weights.

    COMFYUI_PATH=... python benchmarks/scope_memory.py                    this checkout
    COMFYUI_PATH=... python benchmarks/scope_memory.py --pack FOLDER      another, such as an older

A UNet of 205 M parameters with XL's proportions and random weights, on the CPU, computing in
float32: one forward and backward pass of a 64 x 64 picture to the words, in a process for each
kind of weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from os import environ
from pathlib import Path
from typing import Any

import memory
import torch

KINDS = {"fp32": torch.float32, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
LAYOUT: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 8],
    "transformer_depth_output": [0, 0, 8, 8],
    "transformer_depth_middle": 1,
    "num_heads": 10,
    "context_dim": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}


def load_comfyui(base: str) -> None:
    """As tests/conftest.py: on the CPU, with folders of its own."""
    sys.argv = ["main.py", "--cpu", "--base-directory", base]
    sys.path.insert(0, environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing()
    for name in ("utils.extra_config", "utils.install_util", "nodes"):
        importlib.import_module(name)


def load_pack(folder: Path) -> Any:
    """The gradient scope of the pack in a folder."""
    spec = importlib.util.spec_from_file_location("measured_pack", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return importlib.import_module("measured_pack.nodes._comfy.scope")


@torch.inference_mode()
def make_model(dtype: torch.dtype) -> Any:
    """A MODEL as a loader returns it."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD20(LAYOUT)
    config.unet_config.pop("use_temporal_attention", None)
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    model = config.get_model({}, "", device=torch.device("cpu"))
    for parameter in model.parameters():
        parameter.copy_((torch.randn(parameter.shape) * 0.02).to(parameter.dtype))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def measure(kind: str, folder: Path) -> dict[str, float]:
    """MiB of the weights, and at the most above them; seconds of a second pass."""
    with tempfile.TemporaryDirectory() as base:
        load_comfyui(base)
    scope = load_pack(folder)
    model = make_model(KINDS[kind])
    network, cpu = model.model.diffusion_model, torch.device("cpu")
    weights = sum(p.nbytes for p in network.parameters()) / 2**20
    memory.forget_peak(cpu)
    before = memory.peak(cpu)
    with scope.gradients([scope.Part(model, network, torch.float32)]):
        context = torch.randn(1, 8, 64).requires_grad_()
        for _ in range(2):
            started = time.perf_counter()
            prediction = network(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), context)
            prediction.square().mean().backward()
            seconds = time.perf_counter() - started
    return {"weights": weights, "most": memory.peak(cpu) - before, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pack", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--kind", choices=KINDS, help="measure this one in this process")
    args = parser.parse_args()
    if args.kind:
        sys.stdout.write(json.dumps(measure(args.kind, args.pack)) + "\n")
        return
    sys.stdout.write("| weights | their MiB | most beside them, MiB | seconds a pass |\n")
    sys.stdout.write("|---|---|---|---|\n")
    for kind in KINDS:
        command = [sys.executable, __file__, "--pack", str(args.pack), "--kind", kind]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(out.splitlines()[-1])
        line = "| {} | {weights:.0f} | {most:.0f} | {seconds:.2f} |\n"
        sys.stdout.write(line.format(kind, **row))


if __name__ == "__main__":
    main()
