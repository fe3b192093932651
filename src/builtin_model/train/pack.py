"""Writes an exported model as the worker ships it: weights in 8 bits, and the list of the words that it was taught.

  python pack.py --model export --out ../model      # `sd-worker models export builtin DIR` writes it for diffusers again

A weight with outputs becomes whole numbers from -127 to 127 and for every output a factor, `…weight_scale`, as in the int-quantized format of compressed-tensors.
Factors have four significant bits: seven bits times four is an f16 exactly, so that 8 bits, f16 and f32 are the same model.
"""
import argparse, glob, json, os, re, shutil
import torch
from safetensors.torch import load_file, save_file

import data


def quantize(weight):
    """Numbers of the weight's shape, and a factor for every output: of some of four bits, the one with the least error."""
    rows = weight.float().flatten(1); largest = rows.abs().amax(1).clamp(min=2 ** -14); best = None
    for least in range(88, 128, 4):   # what the largest number becomes, or 127 where that cuts it off
        wanted = largest / least; unit = torch.exp2(wanted.log2().floor() - 3); scale = ((wanted / unit).round().clamp(8, 15) * unit)[:, None]
        numbers = (rows / scale).round().clamp(-127, 127); error = (numbers * scale - rows).pow(2).sum(1, keepdim=True)
        better = error < best[2] if best else torch.ones_like(error, dtype=torch.bool)
        best = [torch.where(better, new, old) for new, old in zip((numbers, scale, error), best or (numbers, scale, error))]
    numbers, scale, _ = best; assert ((numbers * scale).half().float() == numbers * scale).all()
    return numbers.to(torch.int8).view(weight.shape), scale.half()


# Words that no caption has and people say all the same, by the taught word that they are taken for.
ALIKE = {"a": "the this that my your his her our their some another any its each every", "picture": "image photo drawing icon art artwork pic cartoon",
         "cute": "beautiful nice pretty lovely funny good great simple", "tiny": "mini", "on": "over onto", "beside": "near", "and": "plus", "background": "wall", "gray": "grey silver"}


def take_alike(embeddings, tokenizer, known):
    """Gives each of those words, which are a token each, the embedding of the word that it is taken for: for the text encoder they are the same."""
    token = lambda word: tokenizer(word, add_special_tokens=False).input_ids
    taught = {t for word in known for t in token(word)}
    for word, others in ALIKE.items():
        (of,) = token(word)
        for other in others.split():
            (to,) = token(other); assert to not in taught, other
            embeddings[to] = embeddings[of]


def pack(path, out, tokenizer, known):
    tensors = {}
    for name, tensor in load_file(path).items():
        if name.endswith("token_embedding.weight"): take_alike(tensor, tokenizer, known)
        if name.endswith(".weight") and tensor.ndim > 1: tensors[name], tensors[name + "_scale"] = quantize(tensor)
        else: tensors[name] = tensor
    save_file(tensors, out, metadata={"format": "pt"})


def known_words(concepts):
    """Every word of the concepts' names and of the captions around them."""
    names = data.read_concepts(concepts); scenes = data.Scenes("sprites.npz", names, seed=0)
    texts = [n for ns in names.values() for n in ns] + [scenes.scene()[0] for _ in range(20000)]
    return sorted({w for t in texts for w in re.findall(r"[^\W_]+", t.lower())})


if __name__ == "__main__":
    from transformers import CLIPTokenizer
    p = argparse.ArgumentParser(); p.add_argument("--model", default="export"); p.add_argument("--out", default="../model"); p.add_argument("--concepts", default="concepts.txt")
    o = p.parse_args(); model, out = os.path.abspath(o.model), os.path.abspath(o.out); os.chdir(data.HERE)
    tokenizer, known = CLIPTokenizer.from_pretrained(f"{model}/tokenizer"), known_words(o.concepts)
    for path in glob.glob("**/*", root_dir=model, recursive=True):
        if os.path.isfile(f"{model}/{path}"):
            os.makedirs(os.path.dirname(f"{out}/{path}"), exist_ok=True)
            if path.endswith(".safetensors"): pack(f"{model}/{path}", f"{out}/{path}", tokenizer, known)
            elif path == "text_encoder/config.json":
                # transformers loads a model in this type, and diffusers the other parts in f32, if nobody asks for another.
                config = json.load(open(f"{model}/{path}")) | {"dtype": "float32"}
                with open(f"{out}/{path}", "w") as f: f.write(json.dumps(config, indent=2) + "\n")
            else: shutil.copyfile(f"{model}/{path}", f"{out}/{path}")
    known = sorted({*known, *" ".join(ALIKE.values()).split()})
    with open(f"{out}/known_words.json", "w") as f: f.write("[\n" + ",\n".join(json.dumps(w, ensure_ascii=False) for w in known) + "\n]\n")
    print({path: os.path.getsize(f"{out}/{path}") for path in glob.glob("**/*.safetensors", root_dir=out, recursive=True)}, "bytes")
