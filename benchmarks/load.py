"""The server under load: 50 clients for a minute, then 200 at once, with and without answering together.

Command   python benchmarks/load.py RUN TEXTS.jsonl

RUN is a classification; TEXTS has a column text. Servers and clients share this machine's cores and speak over
127.0.0.1 alone. Every answer is compared with the offline prediction. Printed for each number format: requests a
second and times with the rows of many clients in a pass, and with one row a pass, three times by turns; what becomes
of 200 at once; memory before and after 2,000 requests; seconds from the command to the page, and to the first answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from tl_nlp import Predictor
from tl_nlp.hardware import device_name

N_CLIENTS, N_AT_ONCE, N_TEXTS = 50, 200, 400
LONG, SHORT = 60.0, 10.0  # seconds
CLOSE = {"float32": 1e-4, "auto": 2e-3}


class Told(NamedTuple):
    text: int
    status: int
    seconds: float
    body: bytes


def main(run: Path, texts: list[str]) -> None:
    print(device_name(torch.device("cpu")))
    for precision in ("float32", "auto"):
        predictor = Predictor.load(run, precision)
        wanted = [answer.probabilities for answer in predictor(texts)]
        print(f"\n{precision}")
        with Server(run, precision, 64) as together:
            print(f"  to the page {together.to_page:.1f} s, then to the first answer {together.to_answer:.2f} s")
            told = asyncio.run(clients(together.port, texts, N_CLIENTS, LONG))
            report("50 clients for a minute", told, wanted, CLOSE[precision], LONG)
            before = together.megabytes()
            asyncio.run(clients(together.port, texts, N_CLIENTS, None, 2000 // N_CLIENTS))
            print(f"  memory {before:.0f} MB, after 2,000 more requests {together.megabytes():.0f} MB")
            told = asyncio.run(clients(together.port, texts, N_AT_ONCE, None, 1))
            report("200 at once", told, wanted, CLOSE[precision], None)
            with Server(run, precision, 1) as alone:
                rates = {"together": [], "alone": []}
                for _ in range(3):
                    for name, server in {"together": together, "alone": alone}.items():
                        told = asyncio.run(clients(server.port, texts, N_CLIENTS, SHORT))
                        rates[name].append(sum(one.status == 200 for one in told) / SHORT)
                medians = {name: statistics.median(values) for name, values in rates.items()}
                print(
                    f"  requests a second: {medians['together']:.0f} together, {medians['alone']:.0f} alone, "
                    f"ratio {statistics.median(a / b for a, b in zip(*rates.values(), strict=True)):.2f}"
                )


def report(name: str, told: list[Told], wanted: list[dict[str, float]], close: float, seconds: float | None) -> None:
    """Prints counts and times; ends with an error for an answer that is wrong or another's."""
    good = [one for one in told if one.status == 200]
    worst = 0.0
    for one in good:
        given = json.loads(one.body)["probabilities"]
        worst = max(worst, *(abs(given[label] - share) for label, share in wanted[one.text].items()))
    refused = [one for one in told if one.status == 503]
    if worst > close or len(good) + len(refused) != len(told):
        sys.exit(f"{name}: an answer is {worst:.2g} off, or statuses are {sorted({one.status for one in told})}")
    times = sorted(one.seconds for one in good)
    p50, p95 = times[len(times) // 2], times[int(0.95 * len(times))]
    rate = f"{len(good) / seconds:.0f} a second, " if seconds else ""
    print(
        f"  {name}: {len(good)} answered, {rate}{len(refused)} refused (503), p50 {1000 * p50:.0f} ms, "
        f"p95 {1000 * p95:.0f} ms, {worst:.1e} off at most"
    )


async def clients(port: int, texts: list[str], n: int, seconds: float | None, each: int = 10**9) -> list[Told]:
    """What `n` clients are told that ask one text after another, for so many seconds or `each` so many times."""
    until = time.perf_counter() + seconds if seconds else float("inf")
    told = await asyncio.gather(*(client(port, texts, start, n, until, each) for start in range(n)))
    return [one for theirs in told for one in theirs]


async def client(port: int, texts: list[str], start: int, step: int, until: float, each: int) -> list[Told]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    told: list[Told] = []
    while len(told) < each and time.perf_counter() < until:
        number = (start + len(told) * step) % len(texts)
        body = json.dumps({"text": texts[number]}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        begun = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        told.append(Told(number, int(answer.split()[1]), time.perf_counter() - begun, content))
    writer.close()
    return told


class Server:
    """A server in a process of its own, until the block ends."""

    def __init__(self, run: Path, precision: str, most_together: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        begun = time.perf_counter()
        words = [sys.executable, __file__, "--serve", str(run), precision, str(most_together), str(self.port)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        self.to_page = time.perf_counter() - begun
        begun = time.perf_counter()
        asyncio.run(clients(self.port, ["a first text"], 1, None, 1))
        self.to_answer = time.perf_counter() - begun

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


def serve(run: str, precision: str, most_together: str, port: str) -> None:
    import uvicorn

    from tl_nlp.demo.guard import Rules
    from tl_nlp.demo.server import create_app
    from tl_nlp.serving import Service, Worker

    service = Service([Path(run)], Worker(int(most_together)))
    (one,) = service.served.values()
    service.served = {one.name: replace(one, predictor=Predictor.load(run, precision))}
    uvicorn.run(create_app(service, Rules()), port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
    else:
        lines = Path(sys.argv[2]).read_text("utf-8").splitlines()
        main(Path(sys.argv[1]), [json.loads(line)["text"] for line in lines][:N_TEXTS])
