"""The official Python client against a real worker: typed objects, typed errors. Usage: client.py PATH-TO-SD-WORKER"""

import base64
import json
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

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
        picture = base64.b64decode(w.client().images.generate(**SMALL).data[0].b64_json)
        edit = lambda: w.client().images.edit(image=("fox.png", picture), prompt="an owl")
        assert raises(openai.BadRequestError, edit).code == "unsupported_operation"
        assert raises(openai.NotFoundError, lambda: w.client().models.retrieve("gpt-image-1")).code == "model_not_found"
    with worker("--api-key", "right") as w:
        error = raises(openai.AuthenticationError, lambda: w.client(api_key="wrong").images.generate(**SMALL))
        assert error.code == "invalid_api_key", error
        assert w.client(api_key="right").images.generate(**SMALL).data


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
    errors_are_typed,
    a_full_queue_is_waited_for,
    streams_that_end_early_are_noticed,
    a_client_that_does_not_wait_costs_nothing,
]:
    check()
    print(f"python, openai {openai.__version__}: {check.__name__.replace('_', ' ')}", flush=True)
