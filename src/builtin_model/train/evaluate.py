"""Measures an exported model: is it the right thing, on the right colour, in the right order? Prompts and seeds are fixed.

  python evaluate.py --model export                  # everything
  python evaluate.py --model export --only things
  python evaluate.py --model export --worker http://127.0.0.1:8080   # pictures of a running sd-worker, whatever its --compute and --dtype

things   every concept by its first name on the colour that training never showed behind it; right if, of all concepts' art drawn
         on that colour at a few places and sizes, the nearest (mean squared difference at 32 x 32) is the right one
words    the same for every other name of every concept
color    the mean of the same pictures' outer frame lies within 12/255 of the colour asked for, in every channel
pairs    two things on a colour: the left half is nearest to the first one's art and the right half to the second one's
"""
import argparse, base64, io, json, os, random, time, urllib.request
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import torch.nn.functional as F

import data
from export import generate, sheet


def generate_by(url):
    """As `generate`, by a worker."""
    from PIL import Image

    def picture(prompt, steps, guidance, seed):
        body = json.dumps(dict(prompt=prompt, steps=steps, guidance_scale=guidance, seed=seed)).encode()
        answer = json.load(urllib.request.urlopen(urllib.request.Request(f"{url}/v1/images/generations", body, {"content-type": "application/json"})))
        return Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).convert("RGB")
    return lambda pipe, prompts, steps=12, guidance=3., seed=1: [picture(p, steps, guidance, seed * 100003 + i) for i, p in enumerate(prompts)]


def small(x, half=None):
    x = F.avg_pool2d(x, 4)
    return (x if half is None else x[..., 16 * half:16 * half + 16]).flatten(1)


class Judge:
    def __init__(self, scenes): self.scenes, self.n = scenes, len(scenes.names); self.seen = {}

    def references(self, color, half=None):
        """The art of all concepts on a colour, at several places and sizes, one row each."""
        if (color, half) not in self.seen:
            spots = [(s, x, y) for s in (.77, .8, .83) for x in (-.025, 0, .025) for y in (-.025, 0, .025)] if half is None else [(s, .49 if half else -.49, y) for s in (.455, .485) for y in (-.04, 0, .04)]
            back, rows = data.COLORS[color], []
            for spot in spots:
                rows.append(torch.cat([small(data.over(data.place(self.scenes.sprites[k:k + 64], *[[v] * len(self.scenes.sprites[k:k + 64]) for v in spot]), data.fill([back], [back])), half) for k in range(0, self.n, 64)]))
            self.seen = {(color, half): torch.stack(rows)} if half is None else {**self.seen, (color, half): torch.stack(rows)}
        return self.seen[color, half]

    def ranking(self, images, color, half=None):
        """For each picture, all concepts from the nearest to the farthest."""
        x = small(images, half); d = torch.stack([torch.cdist(x, r) for r in self.references(color, half)]).amin(0)
        return d.argsort(1)


def tensor(images): return torch.stack([torch.from_numpy(np.asarray(im)).permute(2, 0, 1).float() / 255 for im in images])


def frame_error(image, color):
    """The greatest channel's difference between the mean of the outer frame and a colour, in 255ths."""
    mask = torch.ones(image.shape[-2:], dtype=torch.bool); mask[7:-7, 7:-7] = False
    return (image[:, mask].mean(1) * 255 - torch.tensor(data.COLORS[color])).abs().max().item()


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("--model", default="export"); p.add_argument("--concepts", default="concepts.txt"); p.add_argument("--steps", type=int, default=12); p.add_argument("--guidance", type=float, default=3.)
    p.add_argument("--only", choices=["things", "words", "pairs"]); p.add_argument("--pairs", type=int, default=100); p.add_argument("--every", type=int, default=1, help="take every so manieth concept"); p.add_argument("--sheets", help="a folder for pictures of what was drawn"); p.add_argument("--worker", metavar="URL", help="a running sd-worker draws, in place of diffusers")
    o = p.parse_args(); model = os.path.abspath(o.model); os.chdir(data.HERE); torch.set_flush_denormal(True)
    if o.worker: pipe, generate = None, generate_by(o.worker)
    else:
        from diffusers import StableDiffusionPipeline
        pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, local_files_only=True)
    scenes = data.Scenes("sprites.npz", data.read_concepts(o.concepts), seed=0); judge, names, report, start = Judge(scenes), scenes.names, {}, time.time()

    def things(asked, label):
        """asked: (concept, word). Pictures are judged colour by colour."""
        images = generate(pipe, [f"{data.article(w)} on {data.article(data.held_out(i))} background" for i, w in asked], o.steps, o.guidance); x = tensor(images)
        right, five, wrong = 0, 0, []
        for color in data.COLORS:
            k = [j for j, (i, _) in enumerate(asked) if data.held_out(i) == color]
            if not k: continue
            for j, order in zip(k, judge.ranking(x[k], color)):
                i = asked[j][0]; right += int(order[0] == i); five += int(i in order[:5])
                if order[0] != i: wrong.append(f"{asked[j][1]} -> {names[order[0]][0]}")
        report[label] = dict(of=len(asked), right=round(right / len(asked), 4), in_first_five=round(five / len(asked), 4), wrong=wrong)
        errors = [frame_error(im, data.held_out(i)) for im, (i, _) in zip(x, asked)]
        report[label + "_color"] = dict(within_12=round(sum(e <= 12 for e in errors) / len(errors), 4), median=round(sorted(errors)[len(errors) // 2], 1))
        if o.sheets: os.makedirs(o.sheets, exist_ok=True); sheet(images, f"{o.sheets}/{label}.png", 20)

    if o.only in (None, "things"): things([(i, ns[0]) for i, ns in enumerate(names)][::o.every], "things")
    if o.only == "words": things([(i, w) for i, ns in enumerate(names) for w in ns[1:]][::o.every], "words")
    if o.only in (None, "pairs"):
        r = random.Random(4); asked = []
        for _ in range(o.pairs): a, b = r.sample(range(len(names)), 2); asked.append((a, b, r.choice([c for c in data.COLORS if c not in (data.held_out(a), data.held_out(b))])))
        images = generate(pipe, [f"{data.article(names[a][0])} and {data.article(names[b][0])} on {data.article(c)} background" for a, b, c in asked], o.steps, o.guidance); x = tensor(images); both = one = 0
        for color in data.COLORS:
            k = [j for j, t in enumerate(asked) if t[2] == color]
            if not k: continue
            hits = [[int(order[0]) == asked[j][h] for j, order in zip(k, judge.ranking(x[k], color, h))] for h in (0, 1)]; judge.seen.clear()
            both += sum(l and m for l, m in zip(*hits)); one += sum(map(sum, hits))
        report["pairs"] = dict(of=len(asked), both=round(both / len(asked), 4), each=round(one / len(asked) / 2, 4), color=round(sum(frame_error(im, t[2]) <= 12 for im, t in zip(x, asked)) / len(asked), 4))
        if o.sheets: os.makedirs(o.sheets, exist_ok=True); sheet(images, f"{o.sheets}/pairs.png", 10)
    report["seconds"] = round(time.time() - start)
    print(json.dumps(report, indent=1, ensure_ascii=False))
