"""Times sd-worker beside other engines on a CPU and prints the ratios.

  python3 -m venv VENV && . VENV/bin/activate
  pip install torch diffusers transformers accelerate    # always: diffusers makes the model
  pip install openvino nncf                              # for openvino, and openvino-int8
  pip install stable-diffusion-cpp-python                # for sdcpp-f16 and sdcpp-f32; builds C++ for this very processor
  cargo build --release && python benches/peers/peers.py --work DIR
  python benches/peers/peers.py --work DIR --builtin     # the built-in model instead, many pictures in each process
  python benches/peers/peers.py --work DIR --lora        # what a LoRA costs, in the engines that take one by request
  python benches/peers/peers.py --work DIR --as-it-comes # no types demanded: each engine computes in what it takes by itself
  python benches/peers/peers.py --work DIR --as-it-comes --tiny --steps 1 --guidance 1   # pictures of one step, as Turbo models draw them

The model is a Stable Diffusion 1.5 of random weights: DIR keeps it (4 GB), and its forms for openvino (4 GB) and sdcpp (0.5 GB), for the next time.
Rounds alternate between the engines, since timings drift with the machine. In a round, every engine has a process of its own, with as
many threads, which makes a picture of one step to warm up, and then those that count. All make pictures with guidance, or without where --guidance is 1:
text    both prompts through the text encoder
step    the mean of all steps, each with the UNet for both prompts and the sampler
decode  latents to pixels
total   the whole picture, without making a PNG
rss     the process's peak memory, in GiB; Python, torch and the like are part of it where an engine is used from Python

sd-worker   `sd-worker serve`, by the timings in its answers; f32, both prompts in one batch
diffusers   StableDiffusionPipeline as it comes; f32, both prompts in one batch
openvino    the modules of diffusers, converted for the one size, f32 demanded, both prompts in one batch; the loop around them is here
openvino-int8   the same with the UNet's weights in 8 bits (NNCF), and no type demanded; not among the default engines
sdcpp-f16   stable-diffusion.cpp with 16-bit weights and flash attention; it runs the UNet for one prompt after the other
sdcpp-f32   the same with 32-bit weights asked for and plain attention
With --as-it-comes, sd-worker has --compute auto, and OpenVINO computes in what it chooses (bf16 where the processor has tile units).
With --tiny, a tiny autoencoder of random weights decodes in all of them but sdcpp.
With --lora, each process makes a second picture with a LoRA of rank 16 on all attention and feed-forward layers, and there are two more columns:
with    a step with the LoRA
first   what its first picture takes beside its steps and decoding, more than one without: reading the file, and applying or merging it
On two cores a round of stable-diffusion.cpp at 512 takes 10 minutes or more; --engines leaves it out.
"""
import argparse, importlib.util, json, os, pathlib, re, statistics, subprocess, sys, time, urllib.request, warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
ROOT = pathlib.Path(__file__).parents[2]
WORKER, TOKENIZER = ROOT / "target/release/sd-worker", ROOT / "src/builtin_model/model/tokenizer"
PROMPT = "a fox on a blue background"
COLUMNS, LORA_COLUMNS = ["text", "step", "decode", "total", "rss"], ["step", "with", "first", "total", "rss"]
TORCH = {"torch": "torch", "diffusers": "diffusers", "transformers": "transformers", "accelerate": "accelerate"}
NEEDS = {"sd-worker": {}, "diffusers": TORCH, "openvino": TORCH | {"openvino": "openvino"}, "openvino-int8": TORCH | {"openvino": "openvino", "nncf": "nncf"},
         "sdcpp-f16": {"stable_diffusion_cpp": "stable-diffusion-cpp-python"}, "sdcpp-f32": {"stable_diffusion_cpp": "stable-diffusion-cpp-python"}}


# ---- models -----------------------------------------------------------------------------------------------------------

def make_model(path):
    """Stable Diffusion 1.5's architecture, with its default initialisation and the built-in model's tokenizer filled up."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
                        layers_per_block=2, latent_channels=4, sample_size=512, scaling_factor=.18215)
    scheduler = DDIMScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    StableDiffusionPipeline(vae=vae, unet=unet, text_encoder=text, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None,
                            requires_safety_checker=False).save_pretrained(path)


def export_builtin(path):
    subprocess.run([WORKER, "models", "export", "builtin", path], check=True)


def make_lora(path):
    """A LoRA of random weights by kohya's names: rank 16, alpha 8, f16."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    with torch.device("meta"): unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    random, tensors = torch.Generator().manual_seed(0), {}
    for name, layer in unet.named_modules():
        if not (isinstance(layer, torch.nn.Linear) and ("attn" in name or ".ff." in name)): continue
        (outputs, inputs), name = layer.weight.shape, "lora_unet_" + name.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = (torch.randn(16, inputs, generator=random) / inputs ** .5).half()
        tensors[f"{name}.lora_up.weight"] = (torch.randn(outputs, 16, generator=random) * .05).half()
        tensors[f"{name}.alpha"] = torch.tensor(8.)
    save_file(tensors, path / "lora.safetensors")


def make_tiny_vae(path):
    import torch
    from diffusers import AutoencoderTiny
    torch.manual_seed(0)
    AutoencoderTiny().save_pretrained(path)


def traced(module, function, inputs):
    """A module as OpenVINO's graph, for any size."""
    import openvino, torch
    warnings.simplefilter("ignore")   # tracing has much to say

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return function(*inputs)
    with torch.no_grad():
        return openvino.convert_model(Call().eval(), example_input=inputs)


def convert_for_openvino(model, path):
    """Every module, in f32."""
    import openvino, torch
    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(model).to(torch.float32)
    unet, vae, text, size = pipe.unet, pipe.vae, pipe.text_encoder, pipe.unet.config.sample_size
    ids, latents = torch.ones(2, 77, dtype=torch.long), torch.randn(2, 4, size, size)
    calls = {"text": (text, lambda ids: text(ids, return_dict=False)[0], (ids,)),
             "unet": (unet, lambda x, t, c: unet(x, t, c, return_dict=False)[0], (latents, torch.tensor(1), torch.randn(2, 77, text.config.hidden_size))),
             "decode": (vae, lambda x: vae.decode(x / vae.config.scaling_factor, return_dict=False)[0], (latents[:1],))}
    for name, call in calls.items():
        openvino.save_model(traced(*call), path / f"{name}.xml", compress_to_fp16=False)


def convert_tiny_vae(model, path):
    import openvino, torch
    from diffusers import AutoencoderTiny
    vae = AutoencoderTiny.from_pretrained(model)
    openvino.save_model(traced(vae, lambda x: vae.decode(x, return_dict=False)[0], (torch.randn(1, 4, 64, 64),)), path / "decode.xml", compress_to_fp16=False)


def compress_unet(converted, path):
    """Weights in 8 bits, with a factor and a zero for each output."""
    import nncf, openvino
    openvino.save_model(nncf.compress_weights(openvino.Core().read_model(converted / "unet.xml"), mode=nncf.CompressWeightsMode.INT8_ASYM), path / "unet.xml", compress_to_fp16=False)


def rename_for_sdcpp(model, path):
    """The same model by links, but the text encoder's tensors with the prefix that transformers wrote before its version 5."""
    from safetensors.torch import load_file, save_file
    (path / "text_encoder").mkdir(exist_ok=True)
    weights = load_file(model / "text_encoder/model.safetensors")
    save_file({f"text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}, path / "text_encoder/model.safetensors", {"format": "pt"})
    for part in "unet", "vae":
        if not (path / part).is_symlink(): (path / part).symlink_to((model / part).absolute())


def made(path, make):
    """The path, after it was made if it was not there. What was interrupted does not count."""
    if not path.exists():
        new = path.with_suffix(".new")
        new.mkdir(parents=True, exist_ok=True)
        make(new)
        new.rename(path)
    return path


# ---- engines: each returns a function that makes a picture of so many steps and says how long its parts took, and its process, if it has one ---

def sd_worker(o):
    command = [WORKER, "serve", "--port", "0", "--model", "builtin" if o.builtin else o.model, "--log-level", "error"]
    if "--threads" in subprocess.run([WORKER, "serve", "--help"], capture_output=True, text=True).stdout:
        command += ["--threads", str(o.threads)]
    if o.lora: command += ["--loras", o.work / "lora"]
    if o.tiny: command += ["--tiny-vae", o.work / "tiny-vae"]
    if o.as_it_comes: command += ["--compute", "auto"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = json.loads(server.stdout.readline())["port"]
    if '"ready"' not in server.stdout.readline():
        sys.exit("sd-worker did not get ready")

    def picture(steps, lora=False):
        body = dict(prompt=PROMPT, size=f"{o.size}x{o.size}", steps=steps, guidance_scale=o.guidance, sampler="ddim", seed=1)
        if lora: body["loras"] = ["lora"]
        if o.tiny: body["decoder"] = "tiny"
        answer = urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}))
        t = {k.removesuffix("_ms"): v / 1000 for k, v in json.load(answer)["timings"].items()}
        return dict(text=t["text"], step=t["denoise"] / steps, decode=t["decode"], total=t["total"] - t["encode"])

    return picture, server


def diffusers(o):
    import torch
    from diffusers import AutoencoderTiny, StableDiffusionPipeline
    torch.set_num_threads(o.threads)
    pipe = StableDiffusionPipeline.from_pretrained(o.model).to(torch.float32)
    if o.tiny: pipe.vae = AutoencoderTiny.from_pretrained(o.work / "tiny-vae")
    pipe.set_progress_bar_config(disable=True)
    marks = []   # when the text encoder began and ended, twice, and when the decoder began

    def marked(module, method):
        original = getattr(module, method)
        def wrapper(*args, **kw):
            marks.append(time.perf_counter())
            result = original(*args, **kw)
            marks.append(time.perf_counter())
            return result
        setattr(module, method, wrapper)
    marked(pipe.text_encoder, "forward"); marked(pipe.vae, "decode")

    def picture(steps, lora=False):
        marks.clear()
        start = time.perf_counter()
        if lora: pipe.load_lora_weights(o.work / "lora/lora.safetensors")
        pipe(PROMPT, num_inference_steps=steps, guidance_scale=o.guidance, width=o.size, height=o.size, generator=torch.Generator().manual_seed(1), output_type="pt")
        total, (first, *_, text, decode, decoded) = time.perf_counter() - start, marks
        return dict(text=text - first, step=(decode - text) / steps, decode=decoded - decode, total=total)
    return picture, None


def openvino(o):
    import numpy, openvino, torch
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer
    tokenizer, scheduler = CLIPTokenizer.from_pretrained(o.model / "tokenizer"), DDIMScheduler.from_pretrained(o.model / "scheduler")
    core, side, batch = openvino.Core(), o.size // 8, 2 if o.guidance > 1 else 1
    is_int8 = o.only == "openvino-int8"

    def compiled(path, *shapes):
        graph = core.read_model(path)
        graph.reshape({port: shape for port, shape in zip(graph.inputs, shapes)})
        options = {} if o.as_it_comes or is_int8 else {"INFERENCE_PRECISION_HINT": "f32"}
        options |= {"INFERENCE_NUM_THREADS": o.threads, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        run = core.compile_model(graph, "CPU", options)
        return lambda *inputs: torch.from_numpy(run(inputs)[0].copy())
    width = json.loads((o.model / "unet/config.json").read_text())["cross_attention_dim"]
    text_encoder = compiled(o.converted / "text.xml", (batch, 77))
    unet = compiled((o.work / "sd15-openvino-int8" if is_int8 else o.converted) / "unet.xml", (batch, 4, side, side), (), (batch, 77, width))
    decoder = compiled((o.work / "tiny-vae-openvino" if o.tiny else o.converted) / "decode.xml", (1, 4, side, side))

    def picture(steps):
        start = time.perf_counter()
        text = text_encoder(tokenizer(["", PROMPT][-batch:], padding="max_length", max_length=77, return_tensors="np").input_ids.astype(numpy.int64))
        encoded = time.perf_counter()
        x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            *without, having = unet(scheduler.scale_model_input(torch.cat([x] * batch), t), t, text).chunk(batch)
            x = scheduler.step(without[0] + o.guidance * (having - without[0]) if without else having, t, x).prev_sample
        denoised = time.perf_counter()
        decoder(x)
        end = time.perf_counter()
        return dict(text=encoded - start, step=(denoised - encoded) / steps, decode=end - denoised, total=end - start)
    return picture, None


def stable_diffusion_cpp(o):
    import ctypes, stable_diffusion_cpp as cpp
    log = []
    cpp.sd_set_log_callback(keep := cpp.sd_log_callback(lambda level, text, data: log.append(text.decode(errors="replace"))), ctypes.c_void_p(0))
    flash = o.only == "sdcpp-f16"
    model = cpp.StableDiffusion(model_path=str(o.work / "sd15-sdcpp"), wtype=o.only[-3:], flash_attn=flash, diffusion_flash_attn=flash, n_threads=o.threads, vae_decode_only=True,
                                 lora_model_dir=str(o.work / "lora"), verbose=False)

    def picture(steps, lora=False, keep=keep):
        log.clear()
        start = time.perf_counter()
        model.generate_image(PROMPT + "<lora:lora:1>" * lora, width=o.size, height=o.size, cfg_scale=o.guidance, sample_steps=steps, sample_method="euler", seed=1)
        total, took = time.perf_counter() - start, dict(re.findall(r"(get_learned_condition|sampling|decode_first_stage) completed, taking ([\d.]+)s", "".join(log)))
        return dict(text=float(took["get_learned_condition"]), step=float(took["sampling"]) / steps, decode=float(took["decode_first_stage"]), total=total)
    return picture, None


ENGINES = {"sd-worker": sd_worker, "diffusers": diffusers, "openvino": openvino, "openvino-int8": openvino, "sdcpp-f16": stable_diffusion_cpp, "sdcpp-f32": stable_diffusion_cpp}


def one_round(o):
    """What a process of its own does for one engine: the median of every column."""
    picture, process = ENGINES[o.only](o)
    picture(1)
    pictures = [picture(o.steps) for _ in range(o.pictures)]
    result = {c: statistics.median(p[c] for p in pictures) for c in COLUMNS[:-1]}
    if o.lora:
        having, rest = picture(o.steps, lora=True), lambda p: p["total"] - o.steps * p["step"] - p["decode"]
        result |= {"with": having["step"], "first": rest(having) - rest(result), "total": having["total"]}
    status = pathlib.Path(f"/proc/{process.pid if process else 'self'}/status").read_text()   # getrusage would begin from the parent's peak
    print(json.dumps(result | dict(rss=int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20)))
    if process: process.terminate()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=pathlib.Path, required=True, help="keeps the models")
    p.add_argument("--engines", default=",".join(e for e in ENGINES if e != "openvino-int8"), help="which, separated by commas")
    p.add_argument("--builtin", action="store_true", help="the built-in model, at 128, 15 steps, guidance 3 and 20 pictures unless told otherwise; stable-diffusion.cpp cannot run it")
    p.add_argument("--size", type=int, help="256, 512 (default) or 768"); p.add_argument("--steps", type=int, help="default: 4"); p.add_argument("--guidance", type=float, help="default: 7.5")
    p.add_argument("--pictures", type=int, help="in each process (default: 1)"); p.add_argument("--rounds", type=int, default=3); p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--lora", action="store_true", help="what a LoRA costs; openvino is left out"); p.add_argument("--tiny", action="store_true", help="with a tiny autoencoder; sdcpp is left out")
    p.add_argument("--as-it-comes", action="store_true", help="no types demanded"); p.add_argument("--only", help=argparse.SUPPRESS)
    o = p.parse_args()
    for name, stable, builtin in ("size", 512, 128), ("steps", 4, 15), ("guidance", 7.5, 3.), ("pictures", 1, 20):
        if getattr(o, name) is None: setattr(o, name, builtin if o.builtin else stable)
    o.model, o.converted = o.work / ("builtin" if o.builtin else "sd15"), o.work / ("builtin-openvino" if o.builtin else "sd15-openvino")
    if o.only: return one_round(o)

    engines = [e for e in o.engines.split(",") if not (o.builtin and e.startswith("sdcpp") or o.lora and e.startswith("openvino") or o.tiny and e.startswith("sdcpp"))]
    columns = LORA_COLUMNS if o.lora else COLUMNS
    for engine in engines:
        missing = [package for module, package in (NEEDS[engine] | ({} if o.builtin or o.model.exists() else TORCH)).items() if not importlib.util.find_spec(module)]
        if missing: sys.exit(f"{engine} needs: {sys.executable} -m pip install {' '.join(missing)}   (or leave it out with --engines)")
    made(o.model, export_builtin if o.builtin else make_model)
    if o.lora: made(o.work / "lora", make_lora)
    if o.tiny: made(o.work / "tiny-vae", make_tiny_vae)
    if any(e.startswith("openvino") for e in engines):
        made(o.converted, lambda path: convert_for_openvino(o.model, path))
        if o.tiny: made(o.work / "tiny-vae-openvino", lambda path: convert_tiny_vae(o.work / "tiny-vae", path))
    if "openvino-int8" in engines: made(o.work / "sd15-openvino-int8", lambda path: compress_unet(o.converted, path))
    if any(e.startswith("sdcpp") for e in engines): made(o.work / "sd15-sdcpp", lambda path: rename_for_sdcpp(o.model, path))
    rounds, environment = {e: [] for e in engines}, dict(os.environ, OMP_NUM_THREADS=str(o.threads), RAYON_NUM_THREADS=str(o.threads))
    for _ in range(o.rounds):
        for engine in engines:
            done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", engine], env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"{engine} failed and is left out:\n{done.stdout}{done.stderr}", file=sys.stderr)
                continue
            rounds[engine].append(json.loads(done.stdout.splitlines()[-1]))
            print(engine, rounds[engine][-1], file=sys.stderr)

    rounds = {e: runs for e, runs in rounds.items() if len(runs) == o.rounds}
    print(f"{'the built-in model' if o.builtin else 'Stable Diffusion 1.5'}, {o.size} x {o.size}, {o.steps} steps {'with' if o.guidance > 1 else 'without'} guidance, {o.threads} threads, medians of {o.rounds} rounds; seconds, GiB\n")
    table = lambda head, rows: print("\n".join(f"| {' | '.join(row)} |" for row in [[head] + columns, ["---"] * (1 + len(columns)), *rows]) + "\n")
    table("engine", [[e] + [f"{statistics.median(r[c] for r in runs):.{3 if o.builtin else 2}f}" for c in columns] for e, runs in rounds.items()])
    if o.lora: print("with / step:", ", ".join(f"{e} {statistics.median(r['with'] / r['step'] for r in runs):.3f}" for e, runs in rounds.items()) + "\n")
    if "sd-worker" in rounds:
        ratio = lambda e, c: statistics.median(a[c] / b[c] for a, b in zip(rounds["sd-worker"], rounds[e]))
        table("sd-worker /", [[e] + [f"{ratio(e, c):.2f}" for c in columns] for e in rounds if e != "sd-worker"])


if __name__ == "__main__":
    main()
