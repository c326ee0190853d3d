"""The API over real HTTP: what it answers, whom it refuses, and what it makes of bad input."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Response, answers_at, ask, free_port, review_rows, running, tiny_recipe, write_jsonl

from tl_nlp import Predictor, Run, train
from tl_nlp.demo.server import MAX_FILE
from tl_nlp.serving import Service, Worker
from tl_nlp.types import as_json


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    rows = review_rows(120)
    grades = [
        {**row, "target": "5" if row["target"] == "positive" else "1", "pair": "is it good ?", "group": "film"}
        for row in rows
    ]
    made = []
    for name, task, theirs in (("labels", "classification", rows), ("grades", "grading", grades)):
        recipe = tiny_recipe(tiny_bert, write_jsonl(root / f"{name}.jsonl", theirs), task, name=name)
        made.append(train(recipe.override("training.epochs=2", "training.lr=3e-3"), root=root))
    return made


@pytest.fixture(scope="module")
def url(runs: list[Run]) -> Iterator[str]:
    with running(Service([run.folder for run in runs])) as url:
        yield url


def test_an_answer_is_a_line_of_predict(url: str, runs: list[Run]) -> None:
    text = "the film is lovely"
    (wanted,) = Predictor.load(runs[0])([text])
    status, body, _ = ask(f"{url}/v1/predict", {"text": text})
    assert status == 200 and list(body) == list(as_json(wanted, "0")) and body["label"] == wanted.label
    assert body["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    (wanted,) = Predictor.load(runs[1])([text], ["is it good ?"], group=["film"])
    asked = {"text": text, "pair": "is it good ?", "group": "film", "run": "grades", "id": "mine"}
    status, body, _ = ask(f"{url}/v1/predict", asked)
    assert status == 200 and body["id"] == "mine" and body["scores"] == pytest.approx(wanted.scores, abs=1e-4)


def test_a_batch_keeps_its_order(url: str, runs: list[Run]) -> None:
    texts = [row["text"] for row in review_rows(150, seed=9)]
    wanted = Predictor.load(runs[0])(texts)
    status, body, _ = ask(f"{url}/v1/batch", {"rows": [{"text": text, "id": str(n)} for n, text in enumerate(texts)]})
    assert status == 200 and [line["id"] for line in body["predictions"]] == [str(n) for n in range(150)]
    for line, theirs in zip(body["predictions"], wanted, strict=True):
        assert line["probabilities"] == pytest.approx(theirs.probabilities, abs=1e-5)


def test_what_is_served(url: str) -> None:
    status, body, _ = ask(f"{url}/v1/served")
    assert status == 200 and [one["run"] for one in body["runs"]] == ["labels", "grades"]
    assert body["runs"][0]["outputs"] == ["negative", "positive"] and body["runs"][1]["task"] == "grading"


BAD = {
    "empty": ({"text": "  "}, 400, "the text is empty"),
    "nul": ({"text": "a\0b"}, 400, "NUL"),
    "no text": ({}, 422, "text: Field required"),
    "no string": ({"text": 5}, 422, "text: Input should be a valid string"),
    "extra": ({"text": "a", "path": "/etc/passwd"}, 422, "path: Extra inputs"),
    "long": ({"text": "a" * 100_001}, 422, "at most 100000"),
    "no such run": ({"text": "a", "run": "../labels"}, 404, "no run '../labels' is served here; there are: labels"),
    "no json": (b"{text", 422, "JSON"),
    "a list": ([], 422, "valid dictionary"),
    "half a pair of surrogates": (b'{"text": "\\ud800"}', 422, "text"),
    "too large": (b'{"text": "' + b"a" * 5_000_000 + b'"}', 413, "larger than the 4,000,000 bytes"),
}


@pytest.mark.parametrize("kind", BAD)
def test_fault_25_bad_input_is_told_in_a_sentence(url: str, kind: str) -> None:
    body, status, told = BAD[kind]
    answer = ask(f"{url}/v1/predict", body)
    assert (answer.status, list(answer.body)) == (status, ["error"])
    assert told in answer.body["error"] and "Traceback" not in answer.body["error"]
    assert ask(f"{url}/health").status == 200


@pytest.mark.parametrize(
    "text",
    [
        "a" * 50_000,
        "good 👍🏽 \u200d film",
        "فيلم رائع جدا",
        "=HYPERLINK(1)",
        "<script>alert(1)</script>",
        "\ufeff good",
    ],
)
def test_fault_25_odd_texts_are_answered(url: str, text: str) -> None:
    assert ask(f"{url}/v1/predict", {"text": text}).body["label"] in ("negative", "positive")


def test_a_batch_names_the_row_that_is_wrong(url: str) -> None:
    answer = ask(f"{url}/v1/batch", {"rows": [{"text": "good"}, {"text": " "}]})
    assert answer.status == 400 and answer.body["error"].startswith("row 1: the text is empty")
    assert ask(f"{url}/v1/batch", {"rows": []}).status == 422
    assert ask(f"{url}/v1/batch", {"rows": [{"text": "a"}] * 1001}).status == 422


def test_fault_25_another_sites_page_is_refused(url: str) -> None:
    host = url.removeprefix("http://")
    for path in ("/v1/predict", "/gradio_api/queue/join"):
        answer = ask(f"{url}{path}", {"text": "good"}, Origin="https://evil.example")
        assert answer.status == 403 and "https://evil.example may not" in answer.body["error"]
    assert ask(f"{url}/v1/predict", {"text": "good"}, Origin=url).status == 200
    assert ask(f"{url}/v1/predict", {"text": "good"}, Origin="null").status == 403
    assert ask(f"{url}/").headers["content-security-policy"] == "frame-ancestors 'self'"
    # a name that was bent to this machine's address
    answer = ask(f"{url}/v1/predict", {"text": "good"}, Host=f"evil.example:{host.rpartition(':')[2]}")
    assert answer.status == 403 and "this machine alone" in answer.body["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../etc/passwd", "/file=/etc/passwd", "/file/etc/passwd",
        "/static/..%2f..%2f..%2fetc/passwd", "/assets/../../etc/passwd", "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/monitoring", "/monitoring",
    ],
)  # fmt: skip
def test_fault_25_no_file_can_be_read(url: str, path: str) -> None:
    answer = ask(f"{url}{path}")
    assert answer.status in (400, 403, 404, 422) and "root:" not in str(answer.body)


def upload(url: str, name: str, content: bytes) -> Response:
    mark = "----mark"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    return ask(f"{url}/gradio_api/upload", body, Content_Type=f"multipart/form-data; boundary={mark}")


def test_fault_25_uploads(url: str) -> None:
    assert upload(url, "big.csv", b"a" * (MAX_FILE + 100)).status == 413
    answer = upload(url, "../../../evil.csv", b"text\ngood\n")
    assert answer.status == 200 and Path(answer.body[0]).name == "evil.csv" and ".." not in answer.body[0]


def test_fault_24_two_hundred_at_once(runs: list[Run]) -> None:
    """What is answered is right, the rest is told in plain words, and then it serves again."""
    service = Service([runs[0].folder], Worker(most_waiting=16))
    texts = [row["text"] for row in review_rows(200, seed=11)]
    wanted = Predictor.load(runs[0])(texts)
    with running(service) as url:
        busy = threading.Event()
        service.worker.do(lambda: busy.wait(5))  # a pass that takes long, so that they do meet
        answers: list[Response] = [Response(0, None, {})] * 200

        def one(number: int) -> None:
            answers[number] = ask(f"{url}/v1/predict", {"text": texts[number]})

        threads = [threading.Thread(target=one, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads[:200]:
            thread.join(0.01)
        assert ask(f"{url}/ready").status == 503
        busy.set()
        for thread in threads:
            thread.join(60)
        counts = {status: sum(one.status == status for one in answers) for status in (200, 503)}
        assert sum(counts.values()) == 200 and counts[200] >= 16 and counts[503] > 0
        for answer, theirs in zip(answers, wanted, strict=True):
            if answer.status == 200:
                assert answer.body["probabilities"] == pytest.approx(theirs.probabilities, abs=1e-4)
            else:
                assert "texts wait already" in answer.body["error"] and answer.headers["retry-after"] == "1"
        assert ask(f"{url}/ready").body == {"status": "ready", "waiting": 0}
        assert ask(f"{url}/v1/predict", {"text": texts[0]}).status == 200


def test_keys(runs: list[Run]) -> None:
    with running(Service([runs[0].folder]), password="secret", key="key-1") as url:
        question = {"text": "good"}
        answer = ask(f"{url}/v1/predict", question)
        assert answer.status == 401 and "a key is missing or wrong" in answer.body["error"]
        assert ask(f"{url}/v1/predict", question, Authorization="Bearer key-2").status == 401
        assert ask(f"{url}/v1/predict", question, Authorization="Bearer key-1").status == 200
        basic = base64.b64encode(b"tl-nlp:secret").decode()
        assert ask(f"{url}/v1/predict", question, Authorization=f"Basic {basic}").status == 200
        assert ask(f"{url}/v1/served").status == 401 and ask(f"{url}/metrics").status == 401
        assert ask(f"{url}/health").status == 200  # for whoever watches the server
        assert ask(f"{url}/gradio_api/info").status == 401  # the page asks for a login
        assert ask(f"{url}/config").status == 401


def test_guesses_of_the_password_are_few(runs: list[Run]) -> None:
    with running(Service([runs[0].folder]), password="secret") as url:
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        answers = [ask(f"{url}/login", b"username=tl-nlp&password=guess", **form).status for _ in range(12)]
        assert answers[:10] == [400] * 10 and answers[10:] == [429, 429]
        assert ask(f"{url}/login", b"username=tl-nlp&password=secret", **form).status == 429


def test_a_client_that_asks_too_often_is_told(runs: list[Run]) -> None:
    with running(Service([runs[0].folder]), rate=3) as url:
        answers = [ask(f"{url}/v1/predict", {"text": "good"}) for _ in range(5)]
        assert [one.status for one in answers] == [200, 200, 200, 429, 429]
        assert "over 3 requests within a minute" in answers[-1].body["error"] and answers[-1].headers["retry-after"]
        assert ask(f"{url}/health").status == 200


def test_metrics(runs: list[Run]) -> None:
    with running(Service([runs[0].folder])) as url:
        for text in ("good", "bad", " "):
            ask(f"{url}/v1/predict", {"text": text})
        body = ask(f"{url}/metrics").body
        assert 'tl_nlp_requests_total{path="/v1/predict",status="200"} 2.0' in body
        assert 'tl_nlp_requests_total{path="/v1/predict",status="400"} 1.0' in body
        assert re.search(r'tl_nlp_request_seconds_count\{path="/v1/predict"\} 3.0', body)
        assert "tl_nlp_rows 2.0" in body and "tl_nlp_waiting 0.0" in body and "tl_nlp_weights_megabytes 0." in body


def test_the_description(url: str) -> None:
    schema = ask(f"{url}/v1/openapi.json").body
    assert {"/v1/predict", "/v1/batch", "/v1/served", "/health", "/ready", "/metrics"} <= set(schema["paths"])
    page = ask(f"{url}/v1/docs").body
    assert "swagger" in page.lower()
    for address in re.findall(r'(?:src|href)="(http[^"]+)"', page):
        assert address.startswith(url), address


def test_gradios_own_api(url: str) -> None:
    from gradio_client import Client

    client = Client(url, verbose=False)
    assert client.predict("the film is lovely", api_name="/predict")["label"] in ("negative", "positive")
    assert list(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == ["/predict"]


def test_no_shape_of_request_makes_it_fail(url: str) -> None:
    """Schemathesis reads the description and tries what goes with it and what does not."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", f"{url}/v1/openapi.json",
            "--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--max-examples", "15",
            "--seed", "0", "--no-color", "--generation-database", "none",
        ],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert ask(f"{url}/health").status == 200


def test_fault_24_killed_and_started_again_it_serves_again(runs: list[Run]) -> None:
    port = free_port()
    canary = "nobody shall read this 7141"
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "tl_nlp", "demo", str(runs[0].folder)],
            cwd=ROOT, env={**os.environ, "GRADIO_SERVER_PORT": str(port)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        while not answers_at(f"{url}/health"):
            assert process.poll() is None
            time.sleep(0.1)
        assert ask(f"{url}/v1/predict", {"text": canary}).status == 200
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        assert url in out and canary not in out


def test_a_port_that_is_taken(command, monkeypatch: pytest.MonkeyPatch, runs: list[Run]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(taken.getsockname()[1]))
        answer = command("demo", runs[0].folder)
        assert answer.status == 1 and "cannot be had" in answer.err and "GRADIO_SERVER_PORT=PORT" in answer.err


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"GRADIO_SERVER_NAME": "0.0.0.0"}, "set TL_NLP_PASSWORD"),
        ({"TL_NLP_RATE_LIMIT": "many"}, "no number of requests"),
        ({"GRADIO_SERVER_PORT": "many"}, "is no port"),
    ],
)
def test_settings_that_make_no_sense(command, monkeypatch, runs: list[Run], variables, told: str) -> None:
    monkeypatch.delenv("TL_NLP_PASSWORD", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    answer = command("demo", runs[0].folder)
    assert answer.status == 2 and told in answer.err
