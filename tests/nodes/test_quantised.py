"""Models whose weights are fp8, scaled fp8 or quantised train as what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("executor")

FP8 = torch.float8_e4m3fn
TEXT = "a photo of <ada> person"


class Packed(Tensor):
    """Whole numbers with a scale, laid out as GGUF's loader lays out its own tensors."""

    scale: float

    @staticmethod
    def of(weight: Tensor) -> Packed:
        scale = float(weight.abs().max()) / 127
        packed = (weight / scale).round().to(torch.int8).as_subclass(Packed)
        packed.scale = scale
        return packed

    def detach(self) -> Packed:  # type: ignore[override]
        return self

    def to(self, *args: Any, **kwargs: Any) -> Packed:
        moved = super().to(*args, **kwargs)
        moved.scale = self.scale
        return moved

    def dequantize(self) -> Tensor:
        return self.as_subclass(Tensor).float() * self.scale


def packing(own_cast: bool) -> Any:
    """Operations that dequantise in a cast of their own, as GGUF's, or in the `forward` alone."""
    import comfy.ops

    class Packing(comfy.ops.manual_cast):  # type: ignore[misc, name-defined]
        class Linear(comfy.ops.manual_cast.Linear):  # type: ignore[misc, name-defined]
            def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
                return nn.functional.linear(input, *self.unpacked(input))

            def unpacked(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
                whole = self.weight.dequantize() if own_cast else self.weight * self.scale
                return whole.to(like), None if self.bias is None else self.bias.to(like)

    if own_cast:
        Packing.Linear.cast_bias_weight = Packing.Linear.unpacked
    return Packing


def linears(network: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in network.named_modules() if hasattr(m, "in_features")}


def fp8(make: Any) -> Any:
    return make.model(dtype=FP8, manual_cast=torch.float32), {}


def scaled_fp8(make: Any) -> Any:
    """As 0.3.64 reads such a file."""
    model = make.model(manual_cast=torch.float32, settings={"scaled_fp8": FP8})
    whole = {}
    for name, layer in linears(model.model.diffusion_model).items():
        layer.scale_weight.fill_(0.01 + len(whole) / 1e4)
        layer.weight.copy_((100 * layer.weight.float()).to(FP8))
        whole[f"{name}.weight"] = layer.weight.float() * layer.scale_weight
    return model, whole


def quantised(form: str) -> Callable[[Any], Any]:
    """As 0.33 reads a file with layers in a form that it calls by this name."""

    def maker(make: Any) -> Any:
        from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

        plain = make.model().model.diffusion_model
        model = make.model(manual_cast=torch.float32, settings={"quant_config": {"mixed": True}})
        state, whole = plain.state_dict(), {}
        for name in linears(plain):
            weight = state.pop(f"{name}.weight")
            packed = QuantizedTensor.from_float(weight, QUANT_ALGOS[form]["comfy_tensor_layout"])
            whole[f"{name}.weight"] = packed.dequantize()
            state |= packed.state_dict(f"{name}.weight")
            note = json.dumps({"format": form}).encode()
            state[f"{name}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
        model.model.diffusion_model.load_state_dict(state, strict=False)
        return model, whole

    return maker


def gguf(make: Any) -> Any:
    model = make.model(settings={"custom_operations": packing(own_cast=True)})
    whole = {}
    for name, layer in linears(model.model.diffusion_model).items():
        layer.weight = nn.Parameter(Packed.of(layer.weight), requires_grad=False)
        whole[f"{name}.weight"] = layer.weight.dequantize()
    return model, whole


def of_another_pack(make: Any) -> Any:
    model = make.model(settings={"custom_operations": packing(own_cast=False)})
    whole = {}
    for name, layer in linears(model.model.diffusion_model).items():
        packed = Packed.of(layer.weight)
        codes = packed.as_subclass(Tensor)
        layer.weight, layer.scale = nn.Parameter(codes, requires_grad=False), packed.scale
        whole[f"{name}.weight"] = packed.dequantize()
    return model, whole


KINDS = {
    "fp8": fp8,
    "scaled fp8": scaled_fp8,
    **{form: quantised(form) for form in ("float8_e4m3fn", "int8_tensorwise", "nvfp4")},
    "gguf": gguf,
    "another pack's": of_another_pack,
}
EVERYWHERE = ("fp8", "gguf", "another pack's")


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, make: Any) -> tuple[Any, Any]:
    """A quantised MODEL, and the plain float32 one that it stands for."""
    import comfy.ops

    kind = request.param
    newer = hasattr(comfy.ops, "mixed_precision_ops")
    if kind not in EVERYWHERE and (kind == "scaled fp8") is newer:
        pytest.skip("this ComfyUI reads no such weights")
    model, whole = KINDS[kind](make)
    plain, own = make.model(), model.model.diffusion_model.state_dict()
    network = plain.model.diffusion_model
    network.load_state_dict(
        {n: whole[n] if n in whole else own[n].float() for n in network.state_dict()}
    )
    return model, plain


def gradients(pack: Any, model: Any, tiny: Any, checkpointing: bool) -> tuple[Tensor, int]:
    """Of the tokens and a LoRA, as one vector; and how many bytes autograd kept."""
    backbone = pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
    lora, tokens = pack("magicapture.lora"), pack("magicapture.tokens")
    random = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        values = torch.randn(2, 32, generator=random) * 0.1
        vectors = tokens.TokenVectors({"ada": {"clip_l": values}})
        noisy = torch.randn(2, 4, 8, 8, generator=random)
    names = lora.target_names(backbone.unet, "all_linear")
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # which keeps its address from another
        return tensor

    blocks = backbone.checkpointed_modules() if checkpointing else ()
    with (
        backbone.training(torch.float32),
        lora.injected(backbone.unet, names, 2) as injected,
        pack("magicapture.checkpointing").checkpointed(blocks),
    ):
        for parameter in injected.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=random)
        conditioning = backbone.encode_prompts([tokens.Prompt(TEXT)] * 2, vectors)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction = backbone.predict(noisy, torch.tensor([10, 700]), conditioning)
        wanted = [vectors.get("ada", "clip_l"), *injected.parameters()]
        grads = torch.autograd.grad(prediction.square().mean(), wanted)
    return torch.cat([grad.flatten() for grad in grads]), sum(s.nbytes() for s in kept.values())


def whole(parameter: nn.Parameter) -> Tensor:
    """The numbers that it stands for."""
    plain = type(parameter) is nn.Parameter
    return (parameter.data if plain else parameter.dequantize()).float()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_gradient_is_that_of_the_dequantised_model(pack, pair, tiny, checkpointing):
    """And nothing more is kept for it than for that one."""
    import comfy.model_management

    model, plain = pair
    comfy.model_management.load_models_gpu([model])
    before = dict(model.model.diffusion_model.named_parameters())
    values = [whole(p).clone() for p in before.values()]
    found, kept = gradients(pack, model, tiny, checkpointing)
    expected, most = gradients(pack, plain, tiny, checkpointing)
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert kept <= 1.01 * most  # another pack's layers keep what they were given
    after = dict(model.model.diffusion_model.named_parameters())
    assert before.keys() == after.keys() and all(before[n] is after[n] for n in before)
    assert all(torch.equal(was, whole(p)) for was, p in zip(values, after.values(), strict=True))


def test_a_fingerprint_is_the_same_once_loaded(pack, pair, tiny):
    import comfy.model_management

    model, _ = pair
    prints = []
    for _ in range(2):
        prints.append(pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae).fingerprint())
        comfy.model_management.load_models_gpu([model])
    assert prints[0] == prints[1]
    bias = model.model.diffusion_model.time_embed[0].bias
    bias.copy_(1 + bias.float())
    assert pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae).fingerprint() != prints[0]
