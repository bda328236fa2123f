#!/usr/bin/env python3
"""The same graph (../novel.json) and ten steps that do nothing, in Restate: its server with all
defaults, and a service of its TypeScript SDK. Something durable to compare forq with.

usage: scripts/bench/restate/serve.py --model URL [--kills]

URL is where the API of an OpenAI-compatible server begins (http://…/v1). Prints where runs are posted
to (…/Novel/run with {"outline": "…"}, …/Noop/ten with {}), and serves until INT or TERM. With --kills
it kills the service, the server, or both, in the middle of 20 runs instead, starts them again half a
second later, and tells how many calls were made twice; URL must then be a `forq sim-llm`.

It installs what package.json names, Node 22 with it, into target/bench/restate on first use (npm has
to be there; some 300 MB).
"""

import argparse
import contextlib
import filecmp
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOVEL = HERE.parent / "novel.json"
FOLDER = HERE.parent.parent.parent / "target" / "bench" / "restate"
MODULES = FOLDER / "node_modules"
READY_WITHIN_S = 60
ANSWER_WITHIN_S = 120
KILL_AT_S = (0.06, 0.13, 0.20)
DOWN_S = 0.5
RUNS = 20
CALLS_OF_RUN = 7


def ensure_installed():
    """Node and npm look for packages beside the program: it is copied to where they are."""
    wanted, marker = HERE / "package.json", FOLDER / "installed.json"
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "svc.mjs", FOLDER)
    # The marker comes last: an installation that was interrupted is made again.
    if marker.exists() and filecmp.cmp(wanted, marker, shallow=False):
        return
    print("restate: installing into", FOLDER, file=sys.stderr)
    shutil.copy(wanted, FOLDER)
    subprocess.run(["npm", "install", "--silent"], cwd=FOLDER, check=True, stdout=sys.stderr)
    shutil.copy(wanted, marker)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(url: str, body: dict, timeout_s: float = ANSWER_WITHIN_S) -> dict:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)


class Restate:
    """A server and a service, with data of its own that is gone afterwards."""

    def __init__(self, models: dict[str, str]):
        ensure_installed()
        arch = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
        server = MODULES / "@restatedev" / f"restate-server-linux-{arch}" / "bin" / "restate-server"
        node = MODULES / f"node-linux-{arch}" / "bin" / "node"
        self.temporary = tempfile.TemporaryDirectory(prefix="forq-restate-")
        self.folder = Path(self.temporary.name)
        self.service_port, self.ingress, self.admin, fabric = (free_port() for _ in range(4))
        self.url = f"http://127.0.0.1:{self.ingress}"
        self.commands = {
            "service": [node, FOLDER / "svc.mjs", str(self.service_port), json.dumps(models)],
            "server": [server, "--base-dir", self.folder / "data"],
        }
        self.environment = os.environ | {
            "NODE_ENV": "production",
            "NOVEL_JSON": str(NOVEL),
            "RESTATE_LOGGING": "ERROR",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{fabric}",
            "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{fabric}",
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self.ingress}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self.admin}",
        }
        self.processes = {}
        self.log = open(self.folder / "log", "w")
        for name in self.commands:
            self.start(name)
        self.register()

    def start(self, name: str):
        command, log = self.commands[name], self.log
        self.processes[name] = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=log, stderr=log
        )

    def register(self):
        """Says to the server where the service is, as soon as both are there."""
        deployment = {"uri": f"http://127.0.0.1:{self.service_port}"}
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                return post(f"http://127.0.0.1:{self.admin}/deployments", deployment)
            except OSError as error:
                if time.monotonic() > deadline:
                    self.stop()
                    sys.exit(f"restate does not start: {error}")
                time.sleep(0.1)

    def kill(self, *names: str):
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes[name].wait()

    def stop(self):
        self.kill(*self.processes)
        self.temporary.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def requests_at(model_url: str) -> int:
    with urllib.request.urlopen(model_url.removesuffix("/v1") + "/sim/stats") as answer:
        return json.load(answer)["requests"]


def kill_trial(restate: Restate, model_url: str, names: tuple[str, ...], at_s: float) -> dict:
    """Sends 20 runs, kills at that time, starts again: how many came to an end, and how many calls
    more than theirs were made."""
    inputs = json.loads(NOVEL.read_text())["inputs"]
    before, key = requests_at(model_url), time.monotonic_ns()
    began = time.monotonic()
    for index in range(RUNS):
        # Accepted at once; its key is what its result is asked for by.
        headers = {"content-type": "application/json", "idempotency-key": f"{key}-{index}"}
        url = f"{restate.url}/Novel/run/send"
        request = urllib.request.Request(url, json.dumps(inputs).encode(), headers)
        urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S).close()
    time.sleep(max(0.0, began + at_s - time.monotonic()))
    killed_s = time.monotonic() - began
    restate.kill(*names)
    calls_at_kill = requests_at(model_url) - before
    time.sleep(DOWN_S)
    for name in names:
        restate.start(name)
    again = time.monotonic()
    done = [False] * RUNS

    def attach(index: int):
        url = f"{restate.url}/restate/invocation/Novel/run/{key}-{index}/attach"
        while time.monotonic() < again + ANSWER_WITHIN_S and not done[index]:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
                done[index] = "text" in json.load(answer)
            time.sleep(0 if done[index] else 0.05)

    waits = [threading.Thread(target=attach, args=[index]) for index in range(RUNS)]
    for wait in waits:
        wait.start()
    for wait in waits:
        wait.join()
    calls = requests_at(model_url) - before
    return {
        "killed": "+".join(names),
        "at_ms": round(killed_s * 1000),
        "calls_at_kill": calls_at_kill,
        "succeeded": sum(done),
        "last_done_s": round(time.monotonic() - again, 2),
        "repeated": calls - CALLS_OF_RUN * RUNS,
    }


def kill_trials(restate: Restate, model_url: str):
    post(f"{restate.url}/Novel/run", json.loads(NOVEL.read_text())["inputs"])
    for at_s in KILL_AT_S:
        for names in (("service",), ("server",), ("service", "server")):
            yield kill_trial(restate, model_url, names, at_s)


def main():
    words = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    words.add_argument("--model", required=True)
    words.add_argument("--kills", action="store_true")
    asked = words.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    steps = json.loads(NOVEL.read_text())["steps"]
    with Restate(dict.fromkeys(steps, asked.model)) as restate:
        if asked.kills:
            for trial in kill_trials(restate, asked.model):
                print(json.dumps(trial), flush=True)
            return
        print(restate.url, flush=True)
        restate.processes["server"].wait()
        sys.exit("restate ended")


if __name__ == "__main__":
    main()
