"""The fast stand-in engine: its files, and what this machine's nginx makes of them, if it has njs."""

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from quench.lab import fast_engine
from tests.load import Load, running

MODULE = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_unit_takes_the_engines_place():
    files = fast_engine.files("llama", port=8001, seconds_a_word=0.5)
    unit = files["/run/systemd/system/vllm@llama.service.d/fast-engine.conf"]
    assert "\nExecStart=\nExecStart=/usr/sbin/nginx -e stderr -c /run/fast-engine-files/nginx.conf " in unit
    assert "listen 127.0.0.1:8001 " in files["/run/fast-engine-files/nginx.conf"]
    assert "= 500;" in files["/run/fast-engine-files/engine.js"]
    assert not [text for text in files.values() if "@m" in text or "@port" in text or "@folder" in text]


@pytest.mark.skipif(not MODULE.exists() or not shutil.which("nginx"), reason="nginx with njs is not installed here")
def test_it_answers_plain_requests_at_once_and_streams_at_its_pace_to_their_end(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for path, text in fast_engine.files("tiny-llama", port=port, seconds_a_word=0.05).items():
        text = text.replace("/run/fast-engine-files", str(tmp_path)).replace("/run/fast-engine", str(tmp_path))
        (tmp_path / Path(path).name).write_text(text)
    command = ["nginx", "-e", "stderr", "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as engine:
        try:
            end = time.monotonic() + 5
            while not listens(port) and time.monotonic() < end:
                time.sleep(0.02)
            load = Load("127.0.0.1", port, plain=1, plain_words=2, plain_rate=50, streams=3, stream_words=4)
            with running(load) as tally:
                tally.wait(lambda tally: tally.summary().streams.ok >= 3 and tally.summary().plain.ok >= 5, 10)
            body = json.dumps({"model": "tiny-llama", "prompt": "1", "max_tokens": 2}).encode()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/completions", body, timeout=5) as answer:
                assert json.load(answer)["choices"][0]["text"] == "word word ", "as a balancer asks for its health"
            summary = tally.summary()
            assert set(tally.count()) == {"ok"}, summary.text()
            assert summary.streams.latency_p50 > 0.2
            assert summary.plain.latency_p50 < summary.streams.latency_p50
            with running(Load("127.0.0.1", port, streams=3, stream_words=20, limit=3)) as tally:
                tally.wait(lambda tally: tally.flowing == 3, 10)
                engine.send_signal(signal.SIGQUIT)
            assert tally.count() == {"ok": 3}, "a stop lets what has begun come to its end"
            assert engine.wait(5) == 0
        finally:
            engine.terminate()
