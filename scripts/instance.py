"""What the scripts that measure share: a private instance, a client, how a figure is told."""

import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

FORQ = Path(__file__).resolve().parent.parent / "target" / "release" / "forq"


class Daemon:
    """A `forq serve` on a folder of its own, which is gone afterwards unless it was given."""

    def __init__(
        self,
        config: str = "",
        folder: str | Path | None = None,
        program: Path = FORQ,
        workers: int | None = None,
    ):
        # A pool of so many workers is not to grow with the load.
        options = ["--min-workers", str(workers), "--max-workers", str(workers)]
        self.options = options if workers else []
        self.temporary = None if folder else tempfile.TemporaryDirectory(prefix="forq-figures-")
        self.folder = Path(folder or self.temporary.name)
        self.program = program
        (self.folder / "forq.toml").write_text(config)
        self.log = open(self.folder / "serve.log", "w")
        self.start()

    def command(self, *words) -> list:
        return [self.program, "--state-dir", self.folder, *words]

    def start(self):
        began = time.monotonic()
        self.process = subprocess.Popen(self.command("serve", *self.options), stderr=self.log)
        while True:
            info = self.ask("info")
            if info and info["phase"] == "running":
                break
            if self.process.poll() is not None:
                sys.exit((self.folder / "serve.log").read_text())
        self.boot_s = time.monotonic() - began

    def ask(self, *verb: str):
        done = subprocess.run(self.command("--json", *verb), capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else None

    def bench(self, *words: str) -> dict:
        return self.ask("bench", *words)

    def pids(self) -> list[int]:
        info = self.ask("info")
        workers = [worker["pid"] for worker in info["workers"]]
        return [info["master"]["pid"], info["broker"]["pid"], *workers]

    def pss_mb(self, pids: list[int]) -> float:
        total = 0
        for pid in pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Model:
    """A `forq sim-llm` on a free port."""

    def __init__(self, *options, program: Path = FORQ):
        command = [program, "sim-llm", "--listen", "127.0.0.1:0", *map(str, options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        # Where its API begins: http://…/v1
        self.url = self.process.stdout.readline().strip().removeprefix("listening on ")

    def stats(self) -> dict:
        """What it saw of its clients."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/sim/stats") as answer:
            return json.load(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def new_task(kind: str, task_input: dict) -> dict:
    return {"id": str(uuid.uuid4()), "kind": kind, "input": task_input}


class Client:
    """One connection to the control socket; ConnectionError when the broker is gone."""

    def __init__(self, folder: Path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(folder / "forq.sock"))
        self.receive()

    def receive(self) -> dict | str:
        length = struct.unpack("<I", self.exactly(4))[0]
        reply = json.loads(self.exactly(length))
        if "error" in reply:
            raise RuntimeError(reply["error"]["message"])
        return reply

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("the broker is gone")
            data += piece
        return data

    def send(self, request: dict):
        message = json.dumps(request).encode()
        self.socket.sendall(struct.pack("<I", len(message)) + message)

    def run(self, tasks: list[dict]):
        """Submits them and returns when all have ended."""
        self.send({"submit": {"tasks": tasks, "wait": True}})
        while self.receive() != "end":
            pass

    def run_noop(self):
        self.run([new_task("noop", {})])

    def all_tasks(self):
        """Every task that the instance knows, newest first."""
        after = None
        while True:
            self.send({"list": {"states": [], "limit": 1000, "after": after}})
            page = self.receive()["tasks"]["tasks"]
            yield from page
            if not page:
                return
            after = page[-1]["id"]


def percentile(sorted_values: list[float], share: float) -> float:
    return sorted_values[min(int(len(sorted_values) * share), len(sorted_values) - 1)]


def tell(what: str, figure: str, goal: str):
    print(f"{what:<58} {figure:>26}   goal {goal}", flush=True)


# The limits that did not hold.
broken = []


def limit(what: str, figure: str, allowed: str, holds: bool):
    """Tells a figure that must hold on every machine."""
    print(f"{what:<58} {figure:>26}   limit {allowed}{'' if holds else '  BROKEN'}", flush=True)
    if not holds:
        broken.append(what)
