"""Times sd-worker and diffusers side by side on a Stable Diffusion 1.5 of random weights, and prints the ratios.

  pip install torch diffusers transformers accelerate && cargo build --release && python benches/peers/peers.py --work DIR

Rounds alternate between the two, each in a process of its own with as many threads, since timings drift with the machine.
DIR keeps the model (4 GB) for the next time.
"""
import argparse, json, os, pathlib, re, statistics, subprocess, sys, time

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = pathlib.Path(__file__).parents[2]
PROMPT = "a fox on a blue background"


def make_model(path):
    """Stable Diffusion 1.5's architecture, with its default initialisation and the built-in model's tokenizer filled up."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "src/builtin_model/model/tokenizer")
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
                        layers_per_block=2, latent_channels=4, sample_size=512, scaling_factor=.18215)
    scheduler = DDIMScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    StableDiffusionPipeline(vae=vae, unet=unet, text_encoder=text, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None,
                            requires_safety_checker=False).save_pretrained(path)


def diffusers_round(path, size, steps, threads):
    """Seconds of the text encoder, of a step, of the decoder and of all, and peak memory. The first run of each warms up."""
    import resource, torch
    from diffusers import StableDiffusionPipeline
    torch.set_num_threads(threads)
    pipe = StableDiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    seconds = {}

    def timed(name, module, method):
        original = getattr(module, method)
        def wrapper(*args, **kw):
            start = time.perf_counter()
            result = original(*args, **kw)
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            return result
        setattr(module, method, wrapper)
    timed("text", pipe.text_encoder, "forward"); timed("step", pipe.unet, "forward"); timed("decode", pipe.vae, "decode")
    start = time.perf_counter()
    pipe(PROMPT, num_inference_steps=steps, guidance_scale=7.5, width=size, height=size, generator=torch.Generator("cpu").manual_seed(1), output_type="pt")
    total = time.perf_counter() - start
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(dict(text=sum(seconds["text"]), step=min(seconds["step"]), decode=seconds["decode"][0], total=total, rss=rss)))


def worker_round(path, size, steps, threads, work):
    command = [ROOT / "target/release/sd-worker", "generate", PROMPT, "--model", path, "--steps", str(steps), "--guidance-scale", "7.5", "--seed", "1", "--width", str(size),
               "--height", str(size), "-o", work / "x.png"]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    output = subprocess.run(["/usr/bin/env", "python3", "-c", "import resource,subprocess,sys; r=subprocess.run(sys.argv[1:],capture_output=True,text=True); "
                             "print(r.stderr); print('rss', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20)", *map(str, command)],
                            env=environment, capture_output=True, text=True).stdout
    found = {k: float(v) for k, v in re.findall(r"(load|text|denoise|decode) ([\d.]+) s", output)}
    if len(found) < 4:
        sys.exit(output)
    return dict(text=found["text"], step=found["denoise"] / steps, decode=found["decode"], total=found["text"] + found["denoise"] + found["decode"],
                rss=float(re.search(r"rss ([\d.]+)", output)[1]))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--work", type=pathlib.Path, required=True); p.add_argument("--size", type=int, default=512); p.add_argument("--steps", type=int, default=4)
    p.add_argument("--rounds", type=int, default=3); p.add_argument("--threads", type=int, default=os.cpu_count()); p.add_argument("--only", help=argparse.SUPPRESS)
    o = p.parse_args()
    model = o.work / "sd15"
    if o.only:
        return diffusers_round(model, o.size, o.steps, o.threads)
    if not model.exists():
        o.work.mkdir(parents=True, exist_ok=True)
        make_model(model)
    rounds = {"sd-worker": [], "diffusers": []}
    for _ in range(o.rounds):
        rounds["sd-worker"].append(worker_round(model, o.size, o.steps, o.threads, o.work))
        command = [sys.executable, __file__, *sys.argv[1:], "--only", "diffusers"]
        rounds["diffusers"].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
    columns = ["text", "step", "decode", "total", "rss"]
    print(f"{o.size} x {o.size}, {o.steps} steps with guidance, {o.threads} threads, median of {o.rounds} rounds; seconds, GiB")
    print("| engine | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for engine, runs in rounds.items():
        print(f"| {engine} | " + " | ".join(f"{statistics.median(r[c] for r in runs):.2f}" for c in columns) + " |")
    ratio = lambda c: statistics.median(a[c] / b[c] for a, b in zip(rounds["sd-worker"], rounds["diffusers"]))
    print("| ratio | " + " | ".join(f"{ratio(c):.2f}" for c in columns) + " |")


main()
