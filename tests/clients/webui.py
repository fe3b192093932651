"""webuiapi, a client of A1111's web UI, against a real worker. Usage: webui.py PATH-TO-SD-WORKER"""

import json
import subprocess
import sys
import threading
import time

import webuiapi
from PIL import Image, ImageChops

process = subprocess.Popen(
    [sys.argv[1], "serve", "--port", "0", "--api-key", "s3cret", "--loras", "builtin"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
)
PORT = json.loads(process.stdout.readline())["port"]
assert json.loads(process.stdout.readline())["event"] == "ready"
SMALL = {"width": 64, "height": 64, "steps": 4, "seed": 1, "cfg_scale": 4}


def client(password="s3cret"):
    return webuiapi.WebUIApi(port=PORT, username="anyone", password=password, sampler="Euler a", steps=4)


def raises(call):
    try:
        call()
    except RuntimeError as error:
        return error.args
    raise AssertionError("no error")


try:
    api = client()
    assert client("wrong").session.get(api.baseurl + "/options", auth=("anyone", "wrong")).status_code == 401

    # What it fills menus with.
    assert api.util_get_model_names() == ["builtin"] and api.util_get_current_model() == "builtin"
    api.util_set_model("builtin")
    assert {"Euler", "Euler a", "DPM++ 2M", "DDIM", "UniPC"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras", "exponential", "sgm_uniform"} <= set(api.util_get_scheduler_names())
    assert [lora["name"] for lora in api.get_loras()] == ["ink"]
    assert [upscaler["name"] for upscaler in api.get_upscalers()] == ["None", "Lanczos", "Nearest", "crisp"]
    for empty in api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers, api.get_realesrgan_models, api.get_prompt_styles:
        assert empty() == []
    assert api.refresh_checkpoints() == {} and api.get_cmd_flags() == {} and set(api.get_memory()) == {"ram", "cuda"}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}} and set(api.get_scripts()) == {"txt2img", "img2img"}
    assert api.controlnet_version() > 0 and api.controlnet_model_list() == [] and "canny" in api.controlnet_module_list()

    # Pictures, all of its fields sent along.
    result = api.txt2img(prompt="a fox <lora:ink:0.8>", negative_prompt="an owl", batch_size=2, **SMALL)
    assert [image.size for image in result.images] == [(64, 64)] * 2 and result.info["all_seeds"] == [1, 2], result.info
    assert result.info["ignored"] == [] and result.parameters["steps"] == 4, result.info
    assert result.image.info["parameters"] == result.info["infotexts"][0]
    assert api.txt2img(prompt="a fox <lora:ink:0.8>", negative_prompt="an owl", **SMALL).image.tobytes() == result.image.tobytes()
    read = api.png_info(result.image)
    assert read.info.startswith("a fox <lora:ink:0.8>\nNegative prompt: an owl\nSteps: 4, Sampler: Euler a, "), read.info
    assert read.parameters["Seed"] == "1" and read.parameters["Size-1"] == "64", read.parameters

    assert api.extra_single_image(result.image, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=3).image.size == (192, 192)

    # The hires fix, by every upscaler of the client's own that there is.
    known = {mode["name"] for mode in api.get_latent_upscale_modes()} | {upscaler["name"] for upscaler in api.get_upscalers()}
    for upscaler in [upscaler for upscaler in webuiapi.HiResUpscaler if upscaler.value in known]:
        large = api.txt2img(prompt="a fox", enable_hr=True, hr_upscaler=upscaler, hr_second_pass_steps=2, denoising_strength=0.5, **SMALL)
        assert large.image.size == (128, 128) and large.info["ignored"] == [], large.info
        name = "Lanczos" if upscaler is webuiapi.HiResUpscaler.none else upscaler.value  # A1111 scales so where no upscaler does
        assert f"Hires steps: 2, Hires upscaler: {name}, " in large.info["infotexts"][0], large.info
    assert len(known & {upscaler.value for upscaler in webuiapi.HiResUpscaler}) >= 8, known

    # From a picture, with a mask: what is around it stays.
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    for whole in False, True:
        edit = api.img2img(
            images=[result.image], mask_image=mask, prompt="an owl", inpaint_full_res=not whole, mask_blur=0, denoising_strength=0.9, **SMALL
        )
        difference = ImageChops.difference(edit.image.convert("RGB"), result.image.convert("RGB")).getbbox()
        assert edit.image.size == (64, 64) and difference and difference[0] >= 16 and difference[2] <= 48, difference
        assert edit.info["ignored"] == [], edit.info
    status, text = raises(lambda: api.txt2img(prompt="a fox", sampler_name="Nope"))
    assert status == 400 and "sampler_name must be one of" in text, text

    # A request that takes long, watched and interrupted.
    results = []
    thread = threading.Thread(target=lambda: results.append(api.txt2img(prompt="a fox", **{**SMALL, "steps": 1000}, n_iter=3)))
    thread.start()
    other = client()
    while not (progress := other.get_progress())["current_image"]:
        time.sleep(0.01)
    assert 0 < progress["progress"] < 1 and progress["state"]["job_count"] == 3 and progress["eta_relative"] > 0, progress
    assert other.interrupt() == {} and other.skip() == {}
    thread.join()
    assert results[0].info["interrupted"] and len(results[0].images) == 1, results[0].info
    other.util_wait_for_ready(check_interval=0.01)
finally:
    process.kill()
    process.wait()
print("webuiapi draws, reads, watches and interrupts")
