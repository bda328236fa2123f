#!/usr/bin/env python3
"""The graph of a novel's chapter (novel.json: seven calls) as one writes it in Python: FastAPI and
httpx under gunicorn, two uvicorn workers, nothing durable. Something to compare forq with.

usage: scripts/bench/novel_fastapi.py --model URL [--port PORT] [--workers N]

URL is where the API of an OpenAI-compatible server begins (http://…/v1); of one whose latency
differs by step, give `--model` as a JSON object of URLs by step. Prints its own address when it is
ready, and serves until INT or TERM. A POST to /run with {"outline": "…"} answers with the chapter.

It installs what it needs, in the versions below, into target/bench/fastapi on first use.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "target" / "bench" / "fastapi"
PACKAGES = [
    "fastapi==0.165.0",
    "gunicorn==27.0.1",
    "httpx==0.28.1",
    "uvicorn[standard]==0.54.0",
    "uvicorn-worker==0.4.0",
]
READY_WITHIN_S = 60


def application():
    """What a worker of gunicorn serves."""
    import fastapi
    import httpx

    graph = json.loads((HERE / "novel.json").read_text())["steps"]
    models = json.loads(os.environ["BENCH_MODELS"])
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    client = httpx.AsyncClient(limits=limits, timeout=300)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        await client.aclose()

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.post("/run")
    async def run(inputs: dict[str, str]) -> dict[str, str]:
        texts = dict(inputs)

        async def step(name: str):
            message = {"role": "user", "content": graph[name]["prompt"].format_map(texts)}
            response = await client.post(
                f"{models[name]}/chat/completions", json={"model": "sim-1", "messages": [message]}
            )
            response.raise_for_status()
            texts[name] = response.json()["choices"][0]["message"]["content"]

        await step("director")
        await step("plot")
        await asyncio.gather(step("character"), step("scene"))
        await step("synthesis")
        await asyncio.gather(step("optimise"), step("check"))
        return {"text": texts["optimise"], "check": texts["check"]}

    return app


def ensure_installed():
    # The marker comes last: an installation that was interrupted is made again.
    marker = FOLDER / "installed.json"
    if marker.exists() and json.loads(marker.read_text()) == PACKAGES:
        return
    print("novel_fastapi: installing", *PACKAGES, file=sys.stderr)
    venv.create(FOLDER / "venv", with_pip=True, clear=True)
    pip = [FOLDER / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES]
    subprocess.run(pip, check=True, stdout=sys.stderr)
    marker.write_text(json.dumps(PACKAGES))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def main():
    words = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    words.add_argument("--model", required=True)
    words.add_argument("--port", type=int, default=0)
    words.add_argument("--workers", type=int, default=2)
    asked = words.parse_args()
    ensure_installed()
    steps = json.loads((HERE / "novel.json").read_text())["steps"]
    by_step = asked.model.startswith("{")
    models = asked.model if by_step else json.dumps(dict.fromkeys(steps, asked.model))
    port = asked.port or free_port()
    command = [FOLDER / "venv" / "bin" / "gunicorn", "novel_fastapi:application()"]
    command += ["--worker-class", "uvicorn_worker.UvicornWorker", "--workers", str(asked.workers)]
    # A run of minutes is no worker that hangs: its loop runs on, and tells gunicorn so.
    command += ["--bind", f"127.0.0.1:{port}", "--backlog", "2048", "--log-level", "warning"]
    server = subprocess.Popen(command, cwd=HERE, env=os.environ | {"BENCH_MODELS": models})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("novel_fastapi: gunicorn does not answer")
            time.sleep(0.05)
        print(f"http://127.0.0.1:{port}", flush=True)
        sys.exit(f"novel_fastapi: gunicorn ended with {server.wait()}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
