"""Art, words and pictures: builds the sprite sheet and the tokenizer, and composes captioned training images.

  python data.py sprites   --npm DIR      # DIR holds the unpacked npm packages; writes sprites.npz, and sprites-256.npz with `--size 256`
  python data.py tokenizer --bpe bpe_simple_vocab_16e6.txt.gz
"""
import argparse, glob, gzip, json, os, random, re
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import torch.nn.functional as F

from networks import LENGTH, SIZE

HERE = os.path.dirname(os.path.abspath(__file__))
COLORS = {"white": (250, 250, 250), "black": (18, 18, 20), "gray": (140, 142, 146), "red": (214, 48, 49), "orange": (240, 140, 40), "yellow": (248, 214, 72),
          "green": (60, 160, 80), "blue": (50, 100, 210), "light blue": (150, 200, 245), "purple": (120, 70, 180), "pink": (246, 160, 196), "brown": (120, 80, 50),
          "teal": (24, 148, 150), "dark blue": (22, 36, 92), "light green": (168, 226, 150), "beige": (238, 222, 192)}
HOLDOUT = 7  # colour number c is never shown behind concept i if (c + HOLDOUT * i) % len(COLORS) == 0


def held_out(concept):
    return list(COLORS)[-HOLDOUT * concept % len(COLORS)]


# ---- files ------------------------------------------------------------------------------------------------------------

def key_of(emoji):
    return "-".join(f"{ord(c):x}" for c in emoji)


def build_sprites(npm, out, size=SIZE):
    """Matches art to names and stores premultiplied RGBA, area-averaged to the training size or another (its own is 256). Flags are left out."""
    from PIL import Image
    names = json.load(open(glob.glob(f"{npm}/**/data-by-emoji.json", recursive=True)[0]))
    files = {os.path.basename(p)[:-5]: p for p in glob.glob(f"{npm}/**/assets/*.webp", recursive=True)}
    rows = []
    for emoji, info in names.items():
        key = key_of(emoji)
        path = files.get(key) or files.get(key.replace("-fe0f", ""))
        if path is None or info["group"] == "Flags": continue
        rgba = np.asarray(Image.open(path).convert("RGBA")).astype(np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        planes = [np.asarray(Image.fromarray(rgba[..., c]).resize((size, size), Image.BOX)) for c in range(4)]
        rows.append((info["name"], np.stack(planes).clip(0, 255).round().astype(np.uint8)))
    np.savez_compressed(out, names=[r[0] for r in rows], sprites=np.stack([r[1] for r in rows]))
    print(len(rows), "sprites of", size, "px")


# ---- pictures ---------------------------------------------------------------------------------------------------------

def place(sprites, scale, cx, cy):
    """Sprites drawn at a scale (1 fills the picture) around a centre in [-1, 1]; premultiplied RGBA in [0, 1]."""
    n = len(sprites); theta = torch.zeros(n, 2, 3)
    scale, cx, cy = (torch.as_tensor(v, dtype=torch.float32) for v in (scale, cx, cy))
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale; theta[:, 0, 2] = -cx / scale; theta[:, 1, 2] = -cy / scale
    fine, out = sprites.float() / 255, torch.zeros(n, 4, SIZE, SIZE)
    for level, rows in ((0, scale > .6), (1, (scale <= .6) & (scale > .3)), (2, scale <= .3)):  # smaller copies of the art, so that shrinking does not alias
        if rows.any():
            grid = F.affine_grid(theta[rows], (int(rows.sum()), 4, SIZE, SIZE), align_corners=False)
            out[rows] = F.grid_sample(F.avg_pool2d(fine[rows], 2 ** level) if level else fine[rows], grid, mode="bilinear", align_corners=False)
    return out


def fill(top, bottom, angle=0., size=SIZE):
    """Backgrounds: a ramp between two colours each ((n, 3) in [0, 255]); equal colours make a plain one."""
    top, bottom = (torch.as_tensor(c, dtype=torch.float32)[:, :, None, None] / 255 for c in (top, bottom))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij"); angle = torch.as_tensor(angle, dtype=torch.float32).reshape(-1, 1, 1)
    t = ((torch.cos(angle) * y + torch.sin(angle) * x + 1) / 2).clamp(0, 1)[:, None]
    return top + (bottom - top) * t


def over(layer, image):
    return layer[:, :3] + (1 - layer[:, 3:]) * image


class Art:
    """Pictures for the autoencoder: any art, anywhere, on anything."""

    def __init__(self, path, seed=None):
        self.sprites, self.rng = torch.from_numpy(np.load(path)["sprites"]), random.Random(seed)

    def batch(self, n):
        r = self.rng; color = lambda: r.choice(list(COLORS.values())) if r.random() < .5 else tuple(r.uniform(0, 255) for _ in range(3))
        top = [color() for _ in range(n)]; bottom = [color() if r.random() < .3 else c for c in top]
        image = fill(top, bottom, [r.uniform(-.5, .5) * (r.random() < .3) for _ in range(n)])
        layouts = [[(r.uniform(.72, .98), r.uniform(-.08, .08), r.uniform(-.08, .08))] if q < .5 else
                   [(s := r.uniform(.42, .52), -.5, y := r.uniform(-.1, .1)), (s, .5, y)] if q < .75 else
                   [(r.uniform(.35, .9), r.uniform(-.7, .7), r.uniform(-.7, .7)) for _ in range(3)] for q in (r.random() for _ in range(n))]
        for k in range(3):
            rows = [i for i, l in enumerate(layouts) if len(l) > k]
            if rows: image[rows] = over(place(self.sprites[[r.randrange(len(self.sprites)) for _ in rows]], *zip(*[layouts[i][k] for i in rows])), image[rows])
        return image * 2 - 1


def article(name):
    return name if name.endswith("s") and not name.endswith(("ss", "us", "bus")) else ("an " if name[0] in "aeiou" else "a ") + name


def read_concepts(path):
    """Lines of "art = name, other name": the art's Unicode name, and what people call it."""
    rows = [l.strip().partition(" = ") for l in open(path) if l.strip()]
    return {art: [n.strip() for n in names.split(",")] if names else [art.lower()] for art, _, names in rows}


class Scenes:
    """Captioned pictures: one thing, or two in order, on a plain or a gradient background."""

    def __init__(self, path, concepts, seed=None, two=.3, known=None, favour=1.):
        """known: how many concepts, from the first, are known already; each of the others is drawn `favour` times as often."""
        z = np.load(path); index = {str(n): i for i, n in enumerate(z["names"])}
        self.names, self.rng, self.two = list(concepts.values()), random.Random(seed), two
        self.sprites = torch.from_numpy(z["sprites"][[index[a] for a in concepts]])
        self.odds = [1. if known is None or i < known else favour for i in range(len(concepts))]

    def name(self, i):
        r = self.rng; names = self.names[i]
        return names[0] if r.random() < .5 else r.choice(names)

    def color(self, *things):
        while True:
            c = self.rng.choice(list(COLORS))
            if all(c != held_out(i) for i in things): return c

    def scene(self):
        r = self.rng; a, b = r.choices(range(len(self.names)), self.odds, k=2); j = lambda s: r.uniform(-s, s)
        if r.random() < self.two:
            s, y, things = r.uniform(.45, .49), j(.05), (a, b)
            layout = [(a, s, -.49 + j(.02), y), (b, s, .49 + j(.02), y)]
            text = f"{article(self.name(a))} {r.choice(['and', 'and', 'and', 'and', 'next to', 'with', 'beside'])} {article(self.name(b))}"
        else:
            q, n, things = r.random(), self.name(a), (a,)
            if q < .1: text, s = f"a {r.choice(['small', 'small', 'tiny', 'little'])} {n}", r.uniform(.42, .48)
            elif q < .17: text, s = f"a {r.choice(['big', 'large', 'huge'])} {n}", r.uniform(.93, .98)
            else: text, s = n if q < .3 else f"a cute {n}" if q < .33 else f"a picture of {article(n)}" if q < .36 else f"a 3d {n}" if q < .38 else f"{n} emoji" if q < .4 else article(n), r.uniform(.76, .84)
            layout = [(a, s, j(.04), j(.04))]
        q = r.random()
        if q < .12: top = bottom = COLORS["white"]
        elif q < .24:
            c, d = self.color(*things), self.color(*things); top, bottom = COLORS[c], COLORS[d]
            if r.random() < .4 or c == d: text += f" on a {c} gradient background" if r.random() < .5 else f" on a {c} gradient"; bottom = tuple(.45 * v + .55 * 255 for v in COLORS[c])
            else: text += f" on a {c} to {d} gradient" if r.random() < .5 else f" on a gradient from {c} to {d}"
        else:
            c = self.color(*things); top = bottom = COLORS[c]; an = article(c); q = r.random()
            text += f" on {an} background" if q < .55 else f" on {c}" if q < .8 else f", {c} background" if q < .9 else f" in front of {an} background" if q < .95 else f" against {an} background"
        return text, top, bottom, layout

    def draw(self, scenes):
        """Pictures in [-1, 1] of scenes, and their captions."""
        texts, top, bottom, layouts = zip(*scenes); image = fill(top, bottom)
        for k in range(2):
            rows = [i for i, l in enumerate(layouts) if len(l) > k]
            if rows: what, *where = zip(*[layouts[i][k] for i in rows]); image[rows] = over(place(self.sprites[list(what)], *where), image[rows])
        return image * 2 - 1, list(texts)

    def batch(self, n): return self.draw([self.scene() for _ in range(n)])


# ---- words ------------------------------------------------------------------------------------------------------------

def build_tokenizer(bpe, words, out, merges=4096):
    """CLIP's byte-level BPE: its first merges, and of the others those that CLIP itself would use for our words."""
    os.makedirs(out, exist_ok=True)
    pairs = [tuple(l.split()) for l in gzip.open(bpe).read().decode().split("\n")[1:49152 - 256 - 2 + 1]]; rank = {p: i for i, p in enumerate(pairs)}; used = set(range(merges))
    for word in words:
        parts = list(word[:-1]) + [word[-1] + "</w>"]
        while len(parts) > 1:
            best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), 1e9)); pair = parts[best], parts[best + 1]
            if pair not in rank: break
            used.add(rank[pair]); i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == pair: parts[i:i + 2] = ["".join(pair)]
                i += 1
    pairs = [pairs[i] for i in sorted(used)]
    b = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256)); chars = [chr(c) for c in b] + [chr(256 + i) for i in range(256 - len(b))]
    vocab = chars + [c + "</w>" for c in chars] + ["".join(p) for p in pairs] + ["<|startoftext|>", "<|endoftext|>"]
    json.dump({t: i for i, t in enumerate(vocab)}, open(f"{out}/vocab.json", "w"), ensure_ascii=False)
    open(f"{out}/merges.txt", "w").write("#version: 0.2\n" + "\n".join(map(" ".join, pairs)) + "\n")
    from transformers import CLIPTokenizer
    CLIPTokenizer.from_pretrained(out, model_max_length=LENGTH, pad_token="<|endoftext|>").save_pretrained(out)
    print(len(vocab), "tokens,", len(pairs) - merges, "merges beyond the first", merges)


def vocabulary():
    """Every word of the concepts (also of those kept for later), of all art, and of the captions' frames."""
    frames = "a an the and next to with beside small tiny little big large huge cute picture of 3d emoji on in front against background gradient from photo icon image cartoon left right above below two three bright dark light shiny happy sad golden silver " + " ".join(COLORS)
    texts = [frames] + [n for f in ("concepts.txt", "concepts-later.txt") for ns in read_concepts(f).values() for n in ns] + [str(n).lower() for n in np.load("sprites.npz")["names"]]
    return sorted({w for t in texts for w in re.findall("[a-z]+", t)})


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("what", choices=["sprites", "tokenizer"]); p.add_argument("--npm"); p.add_argument("--bpe"); p.add_argument("--size", type=int, default=SIZE, help="sprites: of the art, in pixels")
    o = p.parse_args(); os.chdir(HERE)
    build_sprites(o.npm, "sprites.npz" if o.size == SIZE else f"sprites-{o.size}.npz", o.size) if o.what == "sprites" else build_tokenizer(o.bpe, vocabulary(), "tokenizer")
