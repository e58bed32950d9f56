"""A stand-in for vLLM, for tests of everything around it. It is no model, and says so in its answers.

Speaks the part of vLLM's interface that Quench builds on: `vllm serve --config FILE`, health, completions and
chat with streaming, some of the routes that vLLM leaves open, and a stop that finishes what has begun.
Standard library only: it is installed on the lab's hosts as a package of its own.
"""

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = ["I", "am", "the", "stand-in", "engine", "and", "not", "a", "model", ".", ""]
SECONDS_A_WORD = 0.02
OPEN_ROUTES = ["/version", "/metrics", "/load", "/ping", "/openapi.json", "/v1/load_lora_adapter", "/tokenize"]


def settings(path):
    """The flat part of the configuration file: a line `key: value` each."""
    with open(path) as file:
        pairs = [line.rstrip("\n").split(": ", 1) for line in file if ": " in line and line[0] not in "# "]
    return {key: value.strip("'\"") for key, value in pairs}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/health":
            self.answer(200, {})
        elif self.path == "/v1/models":
            self.answer(
                200,
                {
                    "object": "list",
                    "data": [{"id": self.server.model, "object": "model", "created": 0, "owned_by": "stand-in"}],
                },
            )
        elif self.path == "/openapi.json":
            paths = {
                route: {"get": {}, "post": {}}
                for route in [*OPEN_ROUTES, "/health", "/v1/models", "/v1/chat/completions"]
            }
            self.answer(200, {"openapi": "3.1.0", "paths": paths})
        elif self.path in OPEN_ROUTES:
            self.answer(200, {"route": self.path})
        else:
            self.answer(404, {"error": {"message": "Not Found"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path not in ("/v1/chat/completions", "/v1/completions"):
            self.answer(200 if self.path in OPEN_ROUTES else 404, {"route": self.path})
            return
        with self.server.counting:
            self.server.in_flight += 1
        try:
            self.complete(body)
        finally:
            with self.server.counting:
                self.server.in_flight -= 1

    def complete(self, body):
        chat = self.path == "/v1/chat/completions"
        count = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
        words = [WORDS[i % len(WORDS)] + " " for i in range(count)]
        base = {
            "id": "stand-in",
            "created": 0,
            "model": body.get("model"),
            "object": "chat.completion" if chat else "text_completion",
        }
        if not body.get("stream"):
            time.sleep(SECONDS_A_WORD * count)
            text = "".join(words)
            choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
            # Shows a test what reached the engine of the client's own headers.
            seen = {"headers": sorted(name.lower() for name in self.headers)}
            self.answer(
                200,
                {
                    **base,
                    "choices": [{"index": 0, "finish_reason": "stop", **choice}],
                    "usage": usage,
                    "stand_in": seen,
                },
            )
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, word in enumerate(words):
            last = number == len(words) - 1
            part = {"delta": {"content": word}} if chat else {"text": word}
            event = {
                **base,
                "object": f"{base['object']}.chunk" if chat else base["object"],
                "choices": [{"index": 0, "finish_reason": "stop" if last else None, **part}],
            }
            self.chunk(f"data: {json.dumps(event)}\n\n")
            time.sleep(SECONDS_A_WORD)
        self.chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text):
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def answer(self, status, data):
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


def drain(server, seconds):
    """Wait for the answers that have begun, and end."""
    end = time.monotonic() + seconds
    while server.in_flight and time.monotonic() < end:
        time.sleep(0.05)
    server.shutdown()


def main():
    """`vllm serve --config FILE` and `vllm --version`."""
    if "--version" in sys.argv:
        print("0.0.0+standin")
        return
    config = settings(sys.argv[sys.argv.index("--config") + 1])
    server = ThreadingHTTPServer((config["host"], int(config["port"])), Handler)
    server.daemon_threads = True
    server.model, server.in_flight, server.counting = config["served-model-name"], 0, threading.Lock()
    seconds = float(config.get("shutdown-timeout", 0))
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=drain, args=(server, seconds)).start())
    server.serve_forever()


if __name__ == "__main__":
    main()
