"""Runs the built-in model's text encoder on prompts as they are to be read and writes what comes out: tests/parity/prompts.{json,safetensors}.

  pip install torch transformers && sd-worker models export builtin DIR && python tests/parity/make_prompt_goldens.py DIR

Each prompt is spelled out as chunks of text with their stress, so that nothing of the syntax is read here, nor of where chunks end. Stress is applied as in
A1111: tokens are multiplied, then the chunk gets the mean back that it had (which is next to nothing in models with random weights).
"""
import json, pathlib, sys

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).parent
MODEL = pathlib.Path(sys.argv[1])
TOKENIZER = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
ENCODER = CLIPTextModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32)
WORDS = "a red fox and an owl on the moon, "  # each is one token, and the comma is one
PROMPTS = [  # prompt, clip_skip, parts of chunks of (text, stress)
    ("a fox", None, [[[("a fox", 1)]]]),
    ("a fox", 2, [[[("a fox", 1)]]]),
    ("a (red:1.3) fox [on] the moon", None, [[[("a ", 1), ("red", 1.3), (" fox ", 1), ("on", 1 / 1.1), (" the moon", 1)]]]),
    ("((owl)) (sun:0)", 2, [[[("owl", 1.21), (" ", 1), ("sun", 0)]]]),
    ("a fox BREAK an owl", None, [[[("a fox ", 1)], [(" an owl", 1)]]]),
    ("a fox AND an owl BREAK blue", None, [[[("a fox ", 1)], []], [[(" an owl ", 1)], [(" blue", 1)]]]),
    ("🦊 ünder \u200b 狐 \\(sky\\)", None, [[[("🦊 ünder \u200b 狐 (sky)", 1)]]]),
    # 75 tokens are full 5 tokens after a comma, and go on after it in the next chunk.
    (WORDS * 12, None, [[[(WORDS * 7, 1)], [(WORDS * 5, 1)]]]),
    (WORDS * 7 + "(red fox and an owl on:1.3) the moon", None, [[[(WORDS * 7, 1)], [("red fox and an owl on", 1.3), (" the moon", 1)]]]),
    # The comma is too far away.
    ("a fox, " + "owl " * 80, None, [[[("a fox, " + "owl " * 72, 1)], [("owl " * 8, 1)]]]),
    ("a fox BREAK", None, [[[("a fox ", 1)]]]),
    ("BREAK a fox", None, [[[], [(" a fox", 1)]]]),
    ("a \\fox\\", None, [[[("a fox", 1)]]]),
    ("a fox <lora:owl:0.8>", None, [[[("a fox ", 1)]]]),
]


@torch.no_grad()
def encode(chunk, clip_skip):
    ids, weights = [TOKENIZER.bos_token_id], [1.]
    for text, weight in chunk:
        new = TOKENIZER(text, add_special_tokens=False).input_ids
        ids, weights = ids + new, weights + [weight] * len(new)
    ids.append(TOKENIZER.eos_token_id)
    assert len(ids) <= 77
    ids += [TOKENIZER.pad_token_id] * (77 - len(ids))
    weights = torch.tensor(weights + [1.] * (77 - len(weights)))
    out = ENCODER(torch.tensor([ids]), output_hidden_states=True)
    model = getattr(ENCODER, "text_model", ENCODER)
    z = model.final_layer_norm(out.hidden_states[-(clip_skip or 1)])
    weighted = z * weights[None, :, None]
    return weighted * (z.mean() / weighted.mean()) if (weights != 1).any() else z


def main():
    cases, tensors = [], {}
    for i, (prompt, clip_skip, parts) in enumerate(PROMPTS):
        tensors[f"{i}"] = torch.cat([torch.cat([encode(chunk, clip_skip) for chunk in part], dim=1) for part in parts])
        cases.append(dict(prompt=prompt, clip_skip=clip_skip))
    HERE.joinpath("prompts.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    save_file(tensors, HERE / "prompts.safetensors")


main()
