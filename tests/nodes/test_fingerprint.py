"""The name of a run with ComfyUI's models: all that changes the result, and nothing else."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("executor")


def fingerprint(pack, model, clip, vae, decoder=None) -> str:
    return pack.comfy.ComfyBackbone(model, clip, vae, decoder).fingerprint()


def lora(model, clip=None, value: float = 0.1) -> dict[str, torch.Tensor]:
    """A LoRA file of rank 1 over one layer of the UNet, and one of the text encoder."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    state = {f"{name}.lora_up.weight": torch.full((32, 1), value)}
    state[f"{name}.lora_down.weight"] = torch.ones(1, 32)
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    state[f"{name}.lora_up.weight"] = torch.full((32, 1), value)
    state[f"{name}.lora_down.weight"] = torch.ones(1, 32)
    return state


def patched(tiny, strength: float = 1.0, clip_strength: float = 0.0, value: float = 0.1):
    """MODEL and CLIP behind the stock Load LoRA."""
    import comfy.sd

    state = lora(tiny.model, value=value)
    return comfy.sd.load_lora_for_models(tiny.model, tiny.clip, state, strength, clip_strength)


def last_weight(network: torch.nn.Module) -> None:
    """One bit of the last weight of a network."""
    weight = list(network.parameters())[-1].data
    weight.view(torch.int32).view(-1)[-1] ^= 1


@pytest.mark.parametrize("part", ["unet", "clip", "vae"])
def test_a_bit_of_a_weight_counts(pack, tiny, part):
    before = fingerprint(pack, tiny.model, tiny.clip, tiny.vae)
    last_weight(tiny.networks[part])
    assert fingerprint(pack, tiny.model, tiny.clip, tiny.vae) != before


def test_every_node_that_changes_the_training_counts(pack, make, tiny):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    import nodes

    model, clip, vae = tiny.model, tiny.clip, tiny.vae
    sampling, merge = ModelSamplingDiscrete(), ModelMergeSimple()
    other = make.model()
    last_weight(other.model.diffusion_model)
    small = make.taesd()
    last_weight(small.first_stage_model)
    names = {
        "plain": fingerprint(pack, model, clip, vae),
        "clip skip": fingerprint(
            pack, model, nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0], vae
        ),
        "v": fingerprint(pack, sampling.patch(model, "v_prediction", False)[0], clip, vae),
        "zero SNR": fingerprint(pack, sampling.patch(model, "eps", True)[0], clip, vae),
        "decoder": fingerprint(pack, model, clip, vae, make.taesd()),
        "another decoder": fingerprint(pack, model, clip, vae, small),
        "another VAE": fingerprint(pack, model, clip, small),
        "KL": fingerprint(pack, model, clip, make.kl()),
        "merge": fingerprint(pack, merge.merge(model, other, 0.5)[0], clip, vae),
        "another merge": fingerprint(pack, merge.merge(model, other, 0.6)[0], clip, vae),
    }
    for strength in (1.0, 0.5):
        for value in (0.1, 0.2):
            with_lora, _ = patched(tiny, strength, value=value)
            names[f"LoRA {value} x {strength}"] = fingerprint(pack, with_lora, clip, vae)
        _, with_lora = patched(tiny, 0.0, strength)
        names[f"text LoRA x {strength}"] = fingerprint(pack, model, with_lora, vae)
    twins = [(a, b) for a in names for b in names if a < b and names[a] == names[b]]
    assert not twins


def test_the_same_models_read_again_have_the_same_name(pack, make, tiny):
    before = fingerprint(pack, *patched(tiny), tiny.vae)
    again = type(tiny)(make.model(), make.clip(), make.taesd())
    assert fingerprint(pack, *patched(again), again.vae) == before


def test_neither_use_nor_place_of_the_weights_counts(pack, tiny, ksample):
    """Sampled with or without a LoRA, unloaded, behind FreeU, trained: the same models."""
    import comfy.model_management as management
    from comfy_extras.nodes_freelunch import FreeU_V2

    model, clip = patched(tiny, 1.0, 1.0)
    with_lora = type(tiny)(model, clip, tiny.vae)
    plain = fingerprint(pack, tiny.model, tiny.clip, tiny.vae)
    lora = fingerprint(pack, model, clip, tiny.vae)
    assert plain != lora

    def check() -> None:
        assert fingerprint(pack, tiny.model, tiny.clip, tiny.vae) == plain
        assert fingerprint(pack, model, clip, tiny.vae) == lora

    for used in (tiny, with_lora, tiny):
        ksample(used, steps=1)
        check()
    management.unload_all_models()
    check()
    free = getattr(FreeU_V2, "execute", None) or FreeU_V2().patch
    assert fingerprint(pack, free(model, 1.3, 1.4, 0.9, 0.2)[0], clip, tiny.vae) == lora
    backbone = pack.comfy.ComfyBackbone(model, clip, tiny.vae)
    with backbone.training(torch.bfloat16):
        pass
    assert backbone.fingerprint() == lora
    check()


def test_nor_does_short_memory(pack, tiny, ksample, scarce):
    model, clip = patched(tiny, 1.0, 1.0)
    lora = fingerprint(pack, model, clip, tiny.vae)
    model = scarce(model)
    assert fingerprint(pack, model, clip, tiny.vae) == lora
    with pack.comfy.ComfyBackbone(model, clip, tiny.vae).training(None):
        pass
    assert fingerprint(pack, model, clip, tiny.vae) == lora
