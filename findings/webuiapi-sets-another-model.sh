#!/usr/bin/env bash
# webuiapi's util_set_model, given the exact title of a model, may set another one. It compares the title in lower case with the titles as
# they are: a title with capitals is never found, and the fallback takes the most similar title, by the same comparison. Letters that differ
# in case alone count as different, so that a model whose title is in lower case wins over the one that was asked for.
#
# Seen with webuiapi 0.9.17, beside a server that lists two models:
#   asked for "ABC.safetensors [0011223344]", set to "abd.safetensors [0011223345]"
#   with find_closest=False: set to "ABC.safetensors [0011223344]"
#
# So whoever answers POST /sdapi/v1/options checks the title that arrives, and does not take it for the one that a person typed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check webuiapi==0.9.17
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import contextlib, http.server, io, json, threading

import webuiapi

TITLES = ["ABC.safetensors [0011223344]", "abd.safetensors [0011223345]"]
asked = []


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer([{"title": title} for title in TITLES] if self.path.endswith("/sd-models") else {"txt2img": [], "img2img": []})

    def do_POST(self):
        asked.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["sd_model_checkpoint"])
        self.answer(None)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
api = webuiapi.WebUIApi(port=server.server_address[1])
with contextlib.redirect_stdout(io.StringIO()):
    api.util_set_model(TITLES[0])
    api.util_set_model(TITLES[0], find_closest=False)
print(f'asked for "{TITLES[0]}", set to "{asked[0]}"')
print(f'with find_closest=False: set to "{asked[1]}"')
PYTHON
)
expected='asked for "ABC.safetensors [0011223344]", set to "abd.safetensors [0011223345]"
with find_closest=False: set to "ABC.safetensors [0011223344]"'
echo "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed" >&2; exit 1; }
