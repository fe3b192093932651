"""Measures sd-worker on a GPU beside diffusers on the same one and prints the tables.

  pip install torch diffusers transformers accelerate      # for CUDA 13; sd-worker finds the libraries that come with torch
  python benches/peers/gpu.py --worker sd-worker-cuda.xz --work DIR
  python benches/peers/gpu.py --worker sd-worker-cuda.xz --work DIR --parts latency --models sd15 --sizes 512,768    # one piece at a time
  python benches/peers/gpu.py --worker target/release/sd-worker --work DIR --device cpu --tiny                       # does it run at all?

The worker is what .ci/cuda leaves. DIR keeps Stable Diffusion 1.5 and SDXL of random weights in f16 (2 GB and 7 GB) and every figure
(results.jsonl): the tables are of all that was ever measured there, the latest of each kind, so a run may be cut into pieces.

selfcheck    `sd-worker selfcheck`
latency      pictures one after the other, each of another prompt and seed, all with guidance; the first, which warms up, is not counted
  seconds    the median: text, steps and decode, without making a PNG
  service    what else the client of sd-worker waits for, and of that the PNG, next to those seconds
  memory     the largest amount of the GPU's memory in use so far, with what libraries keep (on a CPU: the process's peak)
  ready      from starting the process to being ready: a picture of one step for sd-worker, a loaded pipeline for diffusers
throughput   pictures a second through HTTP, PNG and all, with so many clients that each ask for the next when they have one, with
             --max-batch; beside diffusers making one at a time, by the seconds above

diffusers    the pipeline as it comes, in the same type, with torch's own choice of attention (flash attention where it can)
compiled     the same in channels_last with torch.compile for UNet and VAE decoder
"""
import argparse, json, lzma, math, os, pathlib, re, statistics, subprocess, sys, threading, time, urllib.request

START = time.time()
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
ROOT = pathlib.Path(__file__).parents[2]
PROMPT = "a fox on a blue background, number"
ENGINES = ["sd-worker", "diffusers", "compiled"]


# ---- models -----------------------------------------------------------------------------------------------------------

def make_models(o):
    sys.path.insert(0, str(ROOT / "tests/parity"))
    missing = [name for name in o.models if not (o.work / name / "model_index.json").exists()]
    if not missing: return
    import torch, full_size
    shapes = tiny_shapes() if o.tiny else full_size.SHAPES
    def there(make):  # where random numbers are quick
        with torch.device(o.device): return make().cpu()
    for name in missing:
        full_size.SHAPES[name] = {part: lambda make=make: there(make) for part, make in shapes[name].items()}
        full_size.write(name, o.work / name)
    if o.device == "cuda": torch.cuda.empty_cache()


def tiny_shapes():
    from make_family_goldens import CLIPTextModel, CLIPTextModelWithProjection, text, unet, vae
    xl = dict(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], transformer_layers_per_block=[1, 2], use_linear_projection=True, addition_embed_type="text_time",
              addition_time_embed_dim=32, projection_class_embeddings_input_dim=128 + 6 * 32)
    return {"sd15": dict(text_encoder=lambda: text(CLIPTextModel, 64, "quick_gelu"), unet=lambda: unet((32, 64, 64), 8, 64), vae=lambda: vae(.18215)),
            "sdxl": dict(text_encoder=lambda: text(CLIPTextModel, 64, "quick_gelu"), text_encoder_2=lambda: text(CLIPTextModelWithProjection, 128, "gelu", projection_dim=128),
                         unet=lambda: unet((64, 128), (1, 2), 192, **xl), vae=lambda: vae(.13025))}


# ---- engines: each in a process of its own, which says how long it took to get ready and then makes pictures ------------

class Worker:
    def __init__(self, o, max_batch=1):
        command = [o.worker, "serve", "--port", "0", "--model", o.work / o.model, "--device", o.device, "--dtype", o.dtype, "--max-batch", str(max_batch), "--queue-capacity", "512", "--log-level", "warn"]
        self.log = open(o.work / "worker.log", "w+")
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=os.environ | dict(LD_LIBRARY_PATH=libraries()))
        events = [self.process.stdout.readline() for _ in range(2)]
        if '"ready"' not in events[1]: sys.exit(f"sd-worker did not get ready: {pathlib.Path(self.log.name).read_text()}")
        self.ready, self.pid, self.url = time.perf_counter() - start, self.process.pid, f"http://127.0.0.1:{json.loads(events[0])['port']}"

    def get(self, path, body=None):
        return urllib.request.urlopen(urllib.request.Request(self.url + path, body and json.dumps(body).encode(), {"content-type": "application/json"}), timeout=3600).read()

    def picture(self, o, size, i, steps=None):
        start = time.perf_counter()
        answer = self.get("/v1/images/generations", dict(prompt=f"{PROMPT} {i}", size=f"{size}x{size}", steps=steps or o.steps, guidance_scale=o.guidance, sampler="euler", seed=i))
        wall, t = time.perf_counter() - start, {k.removesuffix("_ms"): v / 1000 for k, v in json.loads(answer)["timings"].items()}
        work = t["text"] + t["denoise"] + t["decode"]
        return dict(seconds=work, service=(wall - work) / work, png=t["encode"] / work)

    def batch(self):
        return {part: float(value) for part, value in re.findall(r"^sdw_batch_size_(sum|count) (\S+)", self.get("/metrics").decode(), re.M)}

    def stop(self):
        self.process.terminate(); self.process.wait()
        again = pathlib.Path(self.log.name).read_text().count("again in f32")
        if again: print(f"sd-worker decoded {again} pictures again in f32", file=sys.stderr)


class Diffusers:
    def __init__(self, o):
        import torch
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
        self.torch, self.pid = torch, os.getpid()
        kind = StableDiffusionXLPipeline if o.model == "sdxl" else StableDiffusionPipeline
        self.pipe = kind.from_pretrained(o.work / o.model, torch_dtype={"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[o.dtype]).to(o.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.vae.register_to_config(force_upcast=False)  # SDXL's decoder in f32 is for weights that overflow: these do not
        if o.only == "compiled":
            self.pipe.unet.to(memory_format=torch.channels_last); self.pipe.vae.to(memory_format=torch.channels_last)
            self.pipe.unet.compile(mode=o.compile_mode, fullgraph=True, dynamic=False)
            self.pipe.vae.decode = torch.compile(self.pipe.vae.decode, mode=o.compile_mode, fullgraph=True, dynamic=False)
        self.ready = time.time() - START

    def picture(self, o, size, i):
        wait = self.torch.cuda.synchronize if o.device == "cuda" else lambda: None
        start = time.perf_counter()
        self.pipe(f"{PROMPT} {i}", num_inference_steps=o.steps, guidance_scale=o.guidance, width=size, height=size, generator=self.torch.Generator().manual_seed(i), output_type="pt"); wait()
        return dict(seconds=time.perf_counter() - start)

    def stop(self): pass


def libraries():
    """Where pip puts CUDA's, beside what LD_LIBRARY_PATH says already."""
    found = [pathlib.Path(site) / "nvidia" / part / "lib" for site in sys.path for part in ("cu13", "cudnn")]
    return ":".join([str(path) for path in found if path.is_dir()] + [os.environ.get("LD_LIBRARY_PATH", "")]).strip(":")


def say(engine, **record):
    status = pathlib.Path(f"/proc/{engine.pid}/status").read_text()
    print(json.dumps(record | dict(memory=int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20)), flush=True)


def latency(o):
    engine = Worker(o) if o.only == "sd-worker" else Diffusers(o)
    for size in o.sizes:
        first, *pictures = [engine.picture(o, size, i) for i in range(1 + o.pictures)]
        medians = {key: statistics.median(picture[key] for picture in pictures) for key in first}
        say(engine, part="latency", name=o.only, size=size, ready=engine.ready, first=first["seconds"], **medians)
    engine.stop()


def throughput(o):
    engine, numbers = Worker(o, o.max_batch), iter(range(10**9))

    def together(size, clients, pictures, steps=None):
        """How long so many clients take for so many pictures."""
        left, failed = list(range(pictures)), []
        def client():
            while left:
                try: left.pop(); engine.picture(o, size, next(numbers), steps)
                except Exception as error: return failed.append(error)
        threads = [threading.Thread(target=client) for _ in range(clients)]
        start = time.perf_counter()
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        if failed: sys.exit(f"{len(failed)} of {clients} clients failed: {failed[0]}")
        return time.perf_counter() - start
    for size in o.throughput_sizes:
        for clients in o.clients:
            together(size, clients, clients, 2)
            before, pictures = engine.batch(), max(clients, o.images)
            seconds = together(size, clients, pictures)
            after = engine.batch()
            batch = (after["sum"] - before["sum"]) / (after["count"] - before["count"]) if after else math.nan
            say(engine, part="throughput", name=o.only, size=size, clients=clients, max_batch=o.max_batch, rate=pictures / seconds, batch=batch)
    engine.stop()


# ---- the whole --------------------------------------------------------------------------------------------------------

class Meter:
    """The most of the GPU's memory in use since this was made, in GiB, less what was in use then."""
    def __init__(self):
        self.most, self.before = 0, self.used()
        threading.Thread(target=self.watch, daemon=True).start()

    def used(self):
        import torch
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30

    def watch(self):
        while True:
            self.most = max(self.most, self.used() - self.before)
            time.sleep(.02)


def measure(o, part, model, engine):
    """Runs one engine in a process of its own and keeps what it says."""
    meter = Meter() if o.device == "cuda" else None
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--worker", str(o.worker), "--only", engine, "--model", model, "--part", part], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if not line.startswith("{"): continue
        record = json.loads(line) | (dict(memory=meter.most) if meter else {})
        record |= dict(model=model, steps=o.steps, dtype=o.dtype, device=device_name(o), compile=o.compile_mode)
        with open(o.work / "results.jsonl", "a") as results: results.write(json.dumps(record) + "\n")
        print(record, file=sys.stderr)
    if child.wait(): print(f"{part} of {engine} on {model} failed", file=sys.stderr)


def device_name(o):
    if o.device == "cpu": return "cpu"
    import torch
    return torch.cuda.get_device_name()


def tables(o):
    lines = map(json.loads, (o.work / "results.jsonl").read_text().splitlines())
    latest = {(r["part"], r["model"], r["size"], r["name"], r.get("clients", 0)): r for r in lines}
    rows = [latest[key] for key in sorted(latest, key=lambda key: (*key[:3], ENGINES.index(key[3]), key[4]))]
    table = lambda head, rows: print("\n" + "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows]))
    print("\n" + "; ".join(sorted({f"{r['device']}, {r['steps']} steps, {r['dtype']}, compiled with {r['compile']}" for r in rows})))
    alone = lambda r, engine: latest.get(("latency", r["model"], r["size"], engine, 0), {}).get("seconds", math.nan)
    table(["model", "size", "engine", "seconds", "sd-worker / it", "memory GiB", "ready s", "first s", "service", "PNG"],
          [[r["model"], r["size"], r["name"], f"{r['seconds']:.3f}", f"{alone(r, 'sd-worker') / r['seconds']:.2f}", f"{r['memory']:.1f}", f"{r['ready']:.1f}", f"{r['first']:.2f}",
            *([f"{r['service']:.1%}", f"{r['png']:.1%}"] if "service" in r else ["", ""])] for r in rows if r["part"] == "latency"])
    table(["model", "size", "clients", "max batch", "mean batch", "pictures / s", "/ diffusers one at a time", "/ compiled one at a time", "memory GiB"],
          [[r["model"], r["size"], r["clients"], r["max_batch"], f"{r['batch']:.1f}", f"{r['rate']:.2f}", f"{r['rate'] * alone(r, 'diffusers'):.2f}", f"{r['rate'] * alone(r, 'compiled'):.2f}",
            f"{r['memory']:.1f}"] for r in rows if r["part"] == "throughput"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, sizes = lambda text: text.split(","), lambda text: [int(size) for size in text.split(",")]
    p.add_argument("--worker", type=pathlib.Path, required=True, help="the binary, or its .xz"); p.add_argument("--work", type=pathlib.Path, required=True, help="keeps models and figures")
    p.add_argument("--parts", type=names, default=["selfcheck", "latency", "throughput", "tables"], help="selfcheck,latency,throughput,tables"); p.add_argument("--models", type=names, default=["sd15", "sdxl"], help="sd15,sdxl")
    p.add_argument("--engines", type=names, default=ENGINES, help=",".join(ENGINES)); p.add_argument("--device", default="cuda", help="cuda (default) or cpu"); p.add_argument("--dtype", help="f16 (on a CPU f32), bf16, f32")
    p.add_argument("--sizes", type=sizes, help="512,768,1024"); p.add_argument("--throughput-sizes", type=sizes, help="512"); p.add_argument("--clients", type=sizes, help="1,4,16,64")
    p.add_argument("--max-batch", type=int, help="16"); p.add_argument("--images", type=int, help="at least so many for each number of clients (16)")
    p.add_argument("--steps", type=int, help="20"); p.add_argument("--pictures", type=int, help="5"); p.add_argument("--guidance", type=float, default=5.)
    p.add_argument("--compile-mode", default="reduce-overhead", help="reduce-overhead (default); max-autotune takes many minutes more"); p.add_argument("--tiny", action="store_true", help="tiny models and little work")
    for hidden in "--only", "--model", "--part": p.add_argument(hidden, help=argparse.SUPPRESS)
    o = p.parse_args()
    little = dict(sizes=[64], throughput_sizes=[64], clients=[1, 4], max_batch=4, images=4, steps=2, pictures=2)
    for name, usual in dict(sizes=[512, 768, 1024], throughput_sizes=[512], clients=[1, 4, 16, 64], max_batch=16, images=16, steps=20, pictures=5).items():
        if getattr(o, name) is None: setattr(o, name, little[name] if o.tiny else usual)
    o.dtype = o.dtype or ("f32" if o.device == "cpu" else "f16")
    if o.only: return dict(latency=latency, throughput=throughput)[o.part](o)

    o.work.mkdir(parents=True, exist_ok=True)
    if o.worker.suffix == ".xz":
        packed, o.worker = o.worker, o.work.absolute() / "sd-worker"
        o.worker.write_bytes(lzma.decompress(packed.read_bytes())); o.worker.chmod(0o755)
    o.worker = o.worker.absolute()
    if "selfcheck" in o.parts: subprocess.run([o.worker, "selfcheck", "--device", o.device], env=os.environ | dict(LD_LIBRARY_PATH=libraries()))
    if {"latency", "throughput"} & set(o.parts): make_models(o)
    for model in o.models:
        for engine in o.engines if "latency" in o.parts else []: measure(o, "latency", model, engine)
        if "throughput" in o.parts: measure(o, "throughput", model, "sd-worker")
    if "tables" in o.parts and (o.work / "results.jsonl").exists(): tables(o)


if __name__ == "__main__":
    main()
