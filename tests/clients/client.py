"""The official Python client against a real worker: typed objects, typed errors. Usage: client.py PATH-TO-SD-WORKER"""

import base64
import json
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zlib
from contextlib import chdir, contextmanager
from pathlib import Path

import openai

BINARY = sys.argv[1]
SMALL = {"size": "64x64", "prompt": "a fox", "extra_body": {"steps": 2, "seed": 1}}
LONG = {"size": "64x64", "prompt": "a fox", "extra_body": {"steps": 1000}}


class Worker:
    def __init__(self, *args):
        command = [BINARY, "serve", "--port", "0", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{json.loads(self.process.stdout.readline())['port']}"
        assert json.loads(self.process.stdout.readline())["event"] == "ready"

    def client(self, **options):
        return openai.OpenAI(base_url=self.url + "/v1", **{"api_key": "any", "max_retries": 0, **options})

    def metric(self, name):
        lines = urllib.request.urlopen(self.url + "/metrics").read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def wait_for(self, name, will_do):
        while not will_do(self.metric(name)):
            pass

    def ask(self, method, path, body=None):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"}, method=method)
        return json.load(urllib.request.urlopen(request))


@contextmanager
def worker(*args):
    worker = Worker(*args)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def is_png(text):
    return base64.b64decode(text)[1:4] == b"PNG"


def generates_and_streams():
    with worker() as w:
        answer = w.client().images.generate(**SMALL)
        assert is_png(answer.data[0].b64_json) and answer.size == "64x64" and answer.output_format == "png", answer
        assert answer.usage.total_tokens == 0 and answer.created > 1_700_000_000
        assert len(w.client().images.generate(n=3, **SMALL).data) == 3

        events = list(w.client().images.generate(stream=True, partial_images=2, size="64x64", prompt="a fox", extra_body={"steps": 6}))
        assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
        assert [event.partial_image_index for event in events[:2]] == [0, 1]
        assert all(is_png(event.b64_json) for event in events) and events[-1].usage.total_tokens == 0

        models = list(w.client().models.list())
        assert models[0].id == "builtin" and w.client().models.retrieve("builtin").owned_by == "sd-worker"


def errors_are_typed():
    with worker() as w:
        error = raises(openai.BadRequestError, lambda: w.client().images.generate(prompt="a fox", size="100x100"))
        assert (error.param, error.code, error.type) == ("size", "invalid_size", "invalid_request_error") and error.request_id, error
        edit = lambda: w.client().images.edit(image=("fox.gif", b"GIF89a\x01\0\x01\0"), prompt="an owl")
        error = raises(openai.BadRequestError, edit)
        assert (error.param, error.code) == ("image", "invalid_image") and "PNG, JPEG or WebP" in error.message, error
        assert raises(openai.NotFoundError, lambda: w.client().models.retrieve("gpt-image-1")).code == "model_not_found"
    with worker("--api-key", "right") as w:
        error = raises(openai.AuthenticationError, lambda: w.client(api_key="wrong").images.generate(**SMALL))
        assert error.code == "invalid_api_key", error
        assert w.client(api_key="right").images.generate(**SMALL).data


def pictures_are_changed():
    with worker() as w:
        picture = base64.b64decode(w.client().images.generate(**SMALL).data[0].b64_json)
        small = {"image": ("fox.png", picture), "prompt": "an owl", "extra_body": {"steps": 6, "seed": 1}}
        answer = w.client().images.edit(n=2, **small)
        assert len(answer.data) == 2 and all(is_png(data.b64_json) for data in answer.data) and answer.size == "64x64", answer
        assert answer.parameters["strength"] == 0.8, answer.parameters
        assert w.client().images.edit(**{**small, "image": [picture]}).data == answer.data[:1]

        # White above, black below: the upper half is painted anew.
        def mask():
            row = lambda value: b"\0" + bytes([value]) * 64
            part = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
            header = (64).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
            return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(row(255) * 32 + row(0) * 32)) + part(b"IEND", b"")

        masked = w.client().images.edit(mask=mask(), **small)
        assert masked.parameters["mask"] == "white" and masked.data != answer.data[:1], masked.parameters

        events = list(w.client().images.edit(stream=True, partial_images=1, mask=mask(), **small))
        assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
        assert events[-1].b64_json == masked.data[0].b64_json and events[-1].usage.total_tokens == 0


def a_full_queue_is_waited_for():
    with worker("--queue-capacity", "1") as w:
        w.client().images.generate(**SMALL)
        busy = {"operation": "image_generation", "prompt": "a fox", "steps": 1000, "width": 64, "height": 64}
        job = w.ask("POST", "/v1/jobs", busy)["job_id"]
        error = raises(openai.RateLimitError, lambda: w.client().images.generate(**SMALL))
        assert error.code == "queue_full" and int(error.response.headers["retry-after"]) >= 1, error

        def make_room():
            w.wait_for('sdw_rejected_total{reason="queue_full"}', lambda count: count >= 2)
            w.ask("DELETE", f"/v1/jobs/{job}")

        room = threading.Thread(target=make_room)
        room.start()
        assert w.client(max_retries=5).images.generate(**SMALL).data
        room.join()


def what_the_readme_shows_works():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [shown] = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    with worker() as w, tempfile.TemporaryDirectory() as here, chdir(here):
        exec(shown.replace("http://127.0.0.1:8080", w.url))
        assert Path("fox.png").read_bytes().startswith(b"\x89PNG")


def streams_that_end_early_are_noticed():
    with worker("--drain-timeout", "0") as w:
        stream = w.client().images.generate(stream=True, partial_images=1, **LONG)
        w.wait_for("sdw_requests_running", lambda count: count > 0)
        w.process.terminate()
        error = raises(openai.APIError, lambda: list(stream))
        assert error.code == "shutting_down" and "shutting down" in error.message, error
        assert w.process.wait() == 0
    with worker() as w:
        stream = w.client().images.generate(stream=True, partial_images=1, **LONG)
        w.wait_for("sdw_requests_running", lambda count: count > 0)
        w.process.kill()
        raises(Exception, lambda: list(stream))


def a_client_that_does_not_wait_costs_nothing():
    with worker() as w:
        raises(openai.APITimeoutError, lambda: w.client(timeout=0.3).images.generate(**LONG))
        w.wait_for("sdw_cancelled_total", lambda count: count == 1)
        # By now a step has been measured: that the wait is in vain is known before it begins.
        assert raises(openai.RateLimitError, lambda: w.client(timeout=0.01).images.generate(**LONG)).code == "would_time_out"


for check in [
    generates_and_streams,
    pictures_are_changed,
    errors_are_typed,
    a_full_queue_is_waited_for,
    what_the_readme_shows_works,
    streams_that_end_early_are_noticed,
    a_client_that_does_not_wait_costs_nothing,
]:
    check()
    print(f"python, openai {openai.__version__}: {check.__name__.replace('_', ' ')}", flush=True)
