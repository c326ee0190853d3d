"""Trainings over real HTTP: queued, watched, stopped, gone on with, and then they answer."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ask, review_rows, running, tiny_recipe, write_jsonl

from tl_nlp.data.files import Files
from tl_nlp.jobs import Jobs
from tl_nlp.serving import Service


@pytest.fixture(scope="module")
def url(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a folder with one recipe."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "recipes").mkdir()
    data = Files(path=write_jsonl(folder / "reviews.jsonl", review_rows(80)))
    recipe = tiny_recipe(tiny_bert, data).override("training.lr=3e-3")
    text = f"from tl_nlp import Recipe\n\nrecipe = Recipe.model_validate_json({recipe.model_dump_json()!r})\n"
    (folder / "recipes" / "mine.py").write_text(text)
    jobs = Jobs(folder / "runs", max_waiting=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with running(Service([]), jobs) as url:
            yield url


def post(url: str, file: tuple[str, bytes] | None = None, **fields: str | list[str]):
    """A form, with a file where one is given."""
    mark, parts = "----mark", []
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    if file is not None:
        name, content = file
        parts.append(f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content)
    body = b"".join(f"--{mark}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{mark}--\r\n".encode()
    return ask(f"{url}/v1/runs", body, Content_Type=f"multipart/form-data; boundary={mark}")


def ended(url: str, job: str, status: str) -> dict:
    """What is told of a job once it has that status."""
    until = time.time() + 120
    while (told := ask(f"{url}/v1/runs/{job}").body)["status"] != status:
        assert time.time() < until and told["status"] in ("queued", "running", status), told
        time.sleep(0.1)
    return told


def test_a_training_is_told_as_it_goes_and_then_answers(url: str) -> None:
    rows = "".join(json.dumps({"review": r["text"], "stars": r["target"]}) + "\n" for r in review_rows(60, seed=2))
    overrides = ["data.text=review", "data.target=stars", "training.epochs=2"]
    answer = post(url, ("../../my table.jsonl", rows.encode()), recipe="mine", overrides=overrides)
    assert answer.status == 202 and answer.body["status"] in ("queued", "running")
    job = answer.body["id"]
    assert ask(f"{url}/v1/runs/{job}/result").status == 409
    events = []
    with urllib.request.urlopen(f"{url}/v1/runs/{job}/events", timeout=120) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream:
            if line.startswith(b"data: "):
                events.append(json.loads(line[6:]))
    assert events[-1]["status"] == "finished" and events[-1]["losses"] and events[-1]["scores"]
    assert events[-1]["main_metric"] == "accuracy" and len(events) > 1
    result = ask(f"{url}/v1/runs/{job}/result").body
    assert result["splits"]["test"]["metrics"]["accuracy"]["value"] >= 0 and result["verdict"]
    name = ask(f"{url}/v1/runs/{job}/serve", b"").body["run"]
    assert ask(f"{url}/v1/predict", {"text": "a good film", "run": name}).body["label"] in ("negative", "positive")
    assert job in [one["id"] for one in ask(f"{url}/v1/runs").body["runs"]]
    assert "/" not in ask(f"{url}/v1/runs/{job}").body["run"].replace("tiny/", "")  # no path of this machine


def test_stopped_and_gone_on_with(url: str) -> None:
    job = post(url, recipe="mine", overrides=["training.epochs=40", "training.eval_every=5"]).body["id"]
    while not ask(f"{url}/v1/runs/{job}").body["losses"]:
        time.sleep(0.1)
    assert ask(f"{url}/v1/runs/{job}/cancel", b"").status == 200
    ended(url, job, "cancelled")
    assert ask(f"{url}/v1/runs/{job}/cancel", b"").status == 409
    assert ask(f"{url}/v1/runs/{job}/serve", b"").status == 409
    before = ask(f"{url}/v1/runs/{job}").body["losses"][-1][0]
    assert ask(f"{url}/v1/runs/{job}/resume", b"").body["status"] == "queued"
    assert ended(url, job, "finished")["losses"][-1][0] > before


def test_one_that_fails_says_why(url: str) -> None:
    job = post(url, ("table.csv", b"text,target\ngood,yes\n"), recipe="mine").body["id"]
    assert "the targets are all" in ended(url, job, "failed")["error"] or "rows" in ended(url, job, "failed")["error"]


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"recipe": "../../etc/passwd"}, 400, "no recipe '../../etc/passwd'; there are: mine"),
        ({"recipe": "mine.py"}, 400, "no recipe 'mine.py'"),
        ({"recipe": "mine", "overrides": ["data.path=/etc/passwd"]}, 400, "data.path: comes with the recipe"),
        ({"recipe": "mine", "overrides": ["data=files"]}, 400, "data: comes with"),
        ({"recipe": "mine", "overrides": ['data={"kind": "files"}']}, 400, "data: comes with"),
        ({"recipe": "mine", "overrides": ["checkpoint=/etc"]}, 400, "'/etc' is no name of the Hub"),
        ({"recipe": "mine", "overrides": ["checkpoint.name=../x"]}, 400, "no name of the Hub"),
        ({"recipe": "mine", "overrides": ["method=lorra"]}, 400, "no 'lorra'"),
        ({}, 422, "recipe: Field required"),
    ],
)
def test_what_a_client_may_not_say(url: str, fields: dict, status: int, told: str) -> None:
    answer = post(url, **fields)
    assert answer.status == status and told in answer.body["error"]


def test_only_tables_and_known_ids(url: str) -> None:
    answer = post(url, ("model.pkl", b"x"), recipe="mine")
    assert answer.status == 400 and "a table ends in .csv, .tsv, .jsonl, .parquet, not '.pkl'" in answer.body["error"]
    for path in ("nosuch", "nosuch/events", "nosuch/result", "..%2f..%2fetc"):
        assert ask(f"{url}/v1/runs/{path}").status == 404


def test_only_so_many_wait(url: str) -> None:
    answers = []
    while len(answers) < 12 and (not answers or answers[-1].status == 202):  # one may end meanwhile
        answers.append(post(url, recipe="mine", overrides=["training.epochs=200"]))
    assert answers[-1].status == 503 and "2 trainings wait" in answers[-1].body["error"]
    for one in answers[:-1]:
        ask(f"{url}/v1/runs/{one.body['id']}/cancel", b"")
