"""Runs LyCORIS, PEFT and diffusers on a few small layers and writes the adapter files that they save, with the weights that the layers
then have: tests/parity/adapters/.

  pip install torch diffusers transformers accelerate lycoris-lora==4.1.3 peft==0.21.2 && python tests/parity/make_adapter_goldens.py

The weights are measured at the layers' outputs, in f64: so they are what the adapter was trained with, whatever the library's own merge
does. (LyCORIS 4.1.3 merges LoHa and LoKr with the square of alpha / rank, and trains them with alpha / rank.)
"""
import pathlib, shutil, tempfile

import torch
from diffusers import StableDiffusionPipeline
from lycoris import LycorisNetwork, create_lycoris
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

FOLDER = pathlib.Path(__file__).parent / "adapters"
LINEAR, CONV, SHORTCUT = "attentions.0.proj_in", "resnets.0.conv1", "resnets.0.conv_shortcut"
GROUP_NORM, LAYER_NORM = "resnets.0.norm1", "attentions.0.transformer_blocks.0.norm1"


class Block(nn.Module):
    """A few layers with the names of a UNet's."""

    def __init__(self):
        super().__init__()
        self.attentions, self.resnets = nn.ModuleList([nn.Module()]), nn.ModuleList([nn.Module()])
        attention, resnet = self.attentions[0], self.resnets[0]
        attention.proj_in = nn.Linear(12, 20)
        attention.transformer_blocks = nn.ModuleList([nn.Module()])
        attention.transformer_blocks[0].norm1 = nn.LayerNorm(12)
        resnet.norm1, resnet.conv1, resnet.conv_shortcut = nn.GroupNorm(4, 8), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1)


def model():
    torch.manual_seed(0)
    block = Block()
    for parameter in block.parameters():
        parameter.data.normal_(std=.3)
    return block.double()


def numbers(module, seed):
    """Numbers in place of what training would leave, exact in f32."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        if any(part in name for part in ("dora_scale", "lora_magnitude_vector")):
            values = torch.rand(parameter.shape, generator=generator) + .5
        elif "base_layer" in name or not parameter.requires_grad:
            continue
        else:
            values = torch.randn(parameter.shape, generator=generator) * .4
        parameter.data.copy_(values)


@torch.no_grad()
def weights(layer, shape):
    """The weight and the bias that a layer works with, by what it makes of unit vectors."""
    if len(shape) == 1:
        plain = lambda x: nn.functional.group_norm(x, 4) if shape[0] == 8 else nn.functional.layer_norm(x, shape)
        one, other = torch.randn(2, 1, shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        weight = (layer(one) - layer(other)) / (plain(one) - plain(other))
        return weight[0], (layer(one) - weight * plain(one))[0]
    inputs = torch.eye(shape[1], dtype=torch.float64)
    if len(shape) == 2:
        bias = layer(0 * inputs)
        return (layer(inputs) - bias).T, bias[0]
    side = shape[2]
    impulses = torch.zeros(shape[1], shape[1], side, side, dtype=torch.float64)
    impulses[:, :, side // 2, side // 2] = inputs
    bias = layer(0 * impulses)
    return (layer(impulses) - bias).flip(2, 3).transpose(0, 1), bias[0, :, side // 2, side // 2]


def measure(block, case, strength, tensors):
    """Keeps what differs from the layers' own tensors."""
    for name, shape in SHAPES.items():
        weight, bias = weights(block.get_submodule(name), shape)
        for end, now in ("weight", weight), ("bias", bias):
            if (now - tensors[f"base/{name}.{end}"]).abs().max() > 1e-6:
                tensors[f"{case}/{strength}/{name}.{end}"] = now


SHAPES = {name: tuple(model().get_submodule(name).weight.shape) for name in (LINEAR, CONV, SHORTCUT, GROUP_NORM, LAYER_NORM)}

LYCORIS = {
    "lora": dict(algo="lora", conv_dim=3, conv_alpha=2., train_norm=True),
    "lora-tucker": dict(algo="lora", conv_dim=3, conv_alpha=2., use_tucker=True),
    "lora-scalar-rs": dict(algo="lora", conv_dim=3, conv_alpha=2., use_scalar=True, rs_lora=True),
    "dora": dict(algo="lora", conv_dim=3, conv_alpha=2., dora_wd=True, wd_on_output=True),
    "dora-inputs": dict(algo="lora", conv_dim=3, conv_alpha=2., dora_wd=True, wd_on_output=False),
    "loha": dict(algo="loha", conv_dim=3, conv_alpha=2.),
    "loha-tucker": dict(algo="loha", conv_dim=3, conv_alpha=2., use_tucker=True),
    "loha-dora-inputs": dict(algo="loha", conv_dim=3, conv_alpha=2., dora_wd=True, wd_on_output=False),
    "lokr": dict(algo="lokr", linear_dim=2, linear_alpha=1., conv_dim=1, conv_alpha=.5, factor=2),
    "lokr-both": dict(algo="lokr", linear_dim=1, linear_alpha=.5, conv_dim=1, conv_alpha=.5, factor=4, decompose_both=True),
    "lokr-whole": dict(algo="lokr", conv_dim=4, conv_alpha=1., full_matrix=True),
    "lokr-tucker": dict(algo="lokr", linear_dim=1, conv_dim=1, conv_alpha=.5, factor=2, use_tucker=True),
    "lokr-dora": dict(algo="lokr", linear_dim=2, linear_alpha=1., conv_dim=1, conv_alpha=.5, factor=2, dora_wd=True, wd_on_output=True),
    "full": dict(algo="full"),
}


def lycoris(tensors):
    for seed, (case, options) in enumerate(LYCORIS.items()):
        block = model()
        network = create_lycoris(block, 1., **dict(dict(linear_dim=4, linear_alpha=3.), **options))
        for lora in network.loras:
            lora.double().eval()
        if case == "full":
            network.apply_to()
        for lora in network.loras:
            numbers(lora, seed)
            if case == "full":
                # It trains the weight itself.
                lora.weight.data.add_(lora.org_weight)
                lora.bias.data.add_(lora.org_bias[0])
        if case != "full":
            network.apply_to()
        for strength in (1., .625) if "dora" not in case else (1.,):
            network.set_multiplier(strength)
            measure(block, case, strength, tensors)
        network.save_weights(FOLDER / f"{case}.safetensors", torch.float32, {"ss_network_module": "lycoris.kohya"})


PEFT = {
    "peft-lora": LoraConfig(r=4, lora_alpha=4, lora_bias=True, target_modules=[LINEAR, CONV, SHORTCUT]),
    "peft-dora": LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=[LINEAR, CONV, SHORTCUT]),
    "peft-loha": LoHaConfig(r=3, alpha=3, target_modules=[LINEAR, CONV], use_effective_conv2d=True),
    "peft-lokr": LoKrConfig(r=2, alpha=2, target_modules=[LINEAR, CONV], decompose_factor=2, decompose_both=True, use_effective_conv2d=True),
    # diffusers keeps the alphas in the header.
    "diffusers": LoraConfig(r=4, lora_alpha=3, alpha_pattern={CONV: 2}, rank_pattern={SHORTCUT: 2}, target_modules=[LINEAR, CONV, SHORTCUT]),
    "diffusers-rs": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=[LINEAR, CONV]),
}


def peft(tensors):
    for seed, (case, config) in enumerate(PEFT.items()):
        block = get_peft_model(model(), config).double().eval()
        numbers(block, 100 + seed)
        measure(block.base_model.model, case, 1., tensors)
        if case.startswith("diffusers"):
            state = {name.removeprefix("base_model.model."): tensor.float() for name, tensor in get_peft_model_state_dict(block).items()}
            folder = dict(save_directory=FOLDER, weight_name=f"{case}.safetensors")
            StableDiffusionPipeline.save_lora_weights(unet_lora_layers=state, unet_lora_adapter_metadata=config.to_dict(), **folder)
            continue
        with tempfile.TemporaryDirectory() as work:
            block.float().save_pretrained(work)
            shutil.copy(pathlib.Path(work) / "adapter_model.safetensors", FOLDER / f"{case}.safetensors")


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    block = model()
    tensors = {f"base/{name}.{end}": getattr(block.get_submodule(name), end).data.clone() for name in SHAPES for end in ("weight", "bias")}
    lycoris(tensors)
    peft(tensors)
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, FOLDER / "merged.safetensors")
    print(*sorted(name for name in tensors), sep="\n")


if __name__ == "__main__":
    main()
