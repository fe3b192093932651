#!/usr/bin/env bash
# A LoHa module of LyCORIS 4.1.3 that is in a network multiplies its difference by alpha / rank when it runs, and by (alpha / rank) squared
# when it is merged into the layer's weight: `get_weight` has the factor in it already, and `merge_to` applies it again. With alpha equal to
# the rank, nobody sees it.
#
# Seen with lycoris-lora 4.1.3 and torch 2.15.0, rank 4 and alpha 1: the merged layer has a quarter of the change of the trained one.
#   trained 0.2500, merged 0.0625
#
# So whoever checks a reader of such files against LyCORIS compares with what its modules do when they run, and not with what they merge.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check lycoris-lora==4.1.3 torch==2.15.0 numpy
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from lycoris.modules.loha import LohaModule

torch.manual_seed(0)
layer, x = torch.nn.Linear(12, 20), torch.randn(5, 12)
module = LohaModule("layer", layer, 1.0, 4, 1)
for value in module.parameters():
    torch.nn.init.normal_(value)
whole = (module.hada_w1_a @ module.hada_w1_b) * (module.hada_w2_a @ module.hada_w2_b)
plain = layer(x)
with torch.no_grad():
    right = x @ whole.T
    module.apply_to()
    trained = layer(x) - plain
    module.restore()
    module.merge_to(1.0)
    merged = layer(x) - plain
share = lambda change: float((change * right).sum() / (right * right).sum())
print(f"trained {share(trained):.4f}, merged {share(merged):.4f}")
PYTHON
)
printf '%s\n' "$seen"
[ "$seen" = "trained 0.2500, merged 0.0625" ] || { echo "this has changed" >&2; exit 1; }
