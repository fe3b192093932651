#!/usr/bin/env bash
# In diffusers' ControlNetUnionModel, what the network makes of one control picture depends on those of the other samples in the batch. The
# small transformer that is to weigh the control pictures against each other gets (batch, pictures, channels), and torch's MultiheadAttention
# takes the first dimension for the sequence: it attends from sample to sample, and never from one control picture of a sample to another.
# With one control picture for all samples, as with guidance, all tokens of a kind are alike, and nobody sees it; with a picture for each
# sample, each comes out as something else than alone.
#
# Seen with diffusers 0.42.1 and torch 2.15.0, on a small network of random weights:
#   union: a sample changes with its neighbour's control picture, by 5.2 % of the largest value
#   union: the order of two control pictures changes nothing
#   plain: a sample does not change with its neighbour's control picture
#
# So whoever computes such a network for one picture lets each control picture's token see itself alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check diffusers==0.42.1 torch==2.15.0 transformers==5.24.0 numpy
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from diffusers import ControlNetModel, ControlNetUnionModel

shape = dict(block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=32, attention_head_dim=8,
             addition_embed_type="text_time", addition_time_embed_dim=32, projection_class_embeddings_input_dim=32 + 6 * 32)
union = dict(num_control_type=6, num_trans_channel=32, num_trans_head=8, num_trans_layer=1, num_proj_channel=32)

def make(kind, **more):
    torch.manual_seed(0)
    net = kind(**shape, **more).eval()
    for value in net.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=value[0].numel() ** -.5)
    return net

@torch.no_grad()
def residual(net, pictures, kinds):
    """The last residual of each sample; pictures are one or several for each."""
    many = len(pictures[0])
    text, added = torch.ones(many, 4, 32), dict(text_embeds=torch.ones(many, 32), time_ids=torch.ones(many, 6))
    latents = torch.ones(many, 4, 8, 8)
    if kinds is None:
        return net(latents, 500, text, pictures[0], added_cond_kwargs=added).mid_block_res_sample
    flags = torch.zeros(many, 6)
    flags[:, kinds] = 1
    return net(latents, 500, text, pictures, control_type=flags, control_type_idx=kinds, conditioning_scale=[1.] * len(kinds), added_cond_kwargs=added).mid_block_res_sample

torch.manual_seed(1)
a, b, c = torch.rand(3, 1, 3, 64, 64) * torch.tensor([.2, 1., 5.]).view(3, 1, 1, 1, 1)
for name, net, kinds in ("union", make(ControlNetUnionModel, **union), [1]), ("plain", make(ControlNetModel), None):
    beside_b, beside_c = (residual(net, [torch.cat([a, other])], kinds)[0] for other in (b, c))
    share = float((beside_b - beside_c).abs().max() / beside_b.abs().max())
    how = f"changes with its neighbour's control picture, by {100 * share:.1f} % of the largest value" if share > 1e-4 else "does not change with its neighbour's control picture"
    print(f"{name}: a sample {how}")
    if kinds:
        same = [residual(net, pictures, of)[0] for pictures, of in (([a, b], [1, 3]), ([b, a], [3, 1]))]
        share = float((same[0] - same[1]).abs().max() / same[0].abs().max())
        print("union: the order of two control pictures changes " + ("something" if share > 1e-5 else "nothing"))
PYTHON
)
printf '%s\n' "$seen"
[ "$(printf '%s\n' "$seen" | sed -E 's/by [0-9.]+ %/by some %/')" = "union: a sample changes with its neighbour's control picture, by some % of the largest value
union: the order of two control pictures changes nothing
plain: a sample does not change with its neighbour's control picture" ] || { echo "this has changed" >&2; exit 1; }
