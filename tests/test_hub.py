"""To the Hub and back, against a loopback server with the Hub's HTTP contract; every client is a process of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import CHROMIUM, ROOT, opened_page, recipe_file, review_rows, tiny_recipe, tl_nlp, write_jsonl
from loopback_hub import CUT, READS, WRITES, LoopbackHub
from safetensors.torch import load_file, save_file

from tl_nlp import Recipe, Run
from tl_nlp.recipe import Licence

OWN = Licence(data="own", base="apache-2.0", source="its authors say so")


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub().serving() as server:
        yield server


@pytest.fixture(scope="module")
def world(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a process must find in its environment to take the loopback server for the Hub, as a user who may write."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_TOKEN": WRITES,
    }


def python(script: str, *words: str, cwd: Path | None = None, **environment: str) -> list[str]:
    """The lines that a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TRAIN = """
import sys
from pathlib import Path
from tl_nlp import Recipe, train
for text in sys.argv[2:]:
    print(train(Recipe.model_validate_json(text), root=Path(sys.argv[1])).folder)
"""
KINDS = {
    "classification": {"kind": "classification", "max_length": 64},
    "grading": {"kind": "grading", "max_length": 64, "low": 0, "high": 5},
    "summarization": {"kind": "summarization", "max_length": 32, "max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def runs(
    hub: LoopbackHub, world: dict[str, str], tiny_bert: Path, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """A run of each task and method, on checkpoints of the Hub; the key is TASK METHOD."""
    hub.add("team/bert", tiny_bert)
    hub.add("team/t5", tiny_t5)
    folder = tmp_path_factory.mktemp("runs")
    targets = {"classification": ("bad", "good"), "grading": ("1", "4"), "summarization": ("the film", "a plot")}
    recipes: dict[str, Recipe] = {}
    for task, words in targets.items():
        rows = [{**row, "target": words[number % 2]} for number, row in enumerate(review_rows(40))]
        data = write_jsonl(folder / f"{task}.jsonl", rows)
        for method in ("full", "lora", "adapter"):
            name = "team/t5" if task == "summarization" else "team/bert"
            recipe = tiny_recipe(Path(name), data, KINDS[task], method=method, name=f"{task}-{method}", licence=OWN)
            recipes[f"{task} {method}"] = recipe
    for load_in in ("int8", "nf4"):
        recipe = recipes["classification lora"].override(f"checkpoint.load_in={load_in}")
        recipes[f"classification lora {load_in}"] = recipe
    made = python(TRAIN, str(folder), *(recipe.model_dump_json() for recipe in recipes.values()), **world)
    return dict(zip(recipes, (Run(Path(line)) for line in made[-len(recipes) :]), strict=True))


@pytest.fixture(scope="module")
def lora(runs: dict[str, Run]) -> Run:
    return runs["classification lora"]


def changed(run: Run, folder: Path, *overrides: str, **values: Any) -> Run:
    """A copy of a run as if its recipe had been another in what does not touch its weights."""
    shutil.copytree(run.folder, folder)
    for path in (folder / "recipe.json", folder / "model" / "recipe.json"):
        recipe = Recipe.model_validate_json(path.read_text()).model_copy(update=values).override(*overrides)
        path.write_text(recipe.model_dump_json())
    return Run(folder)


# ---- checkpoints

LOCATE = """
import json, sys
from tl_nlp import Checkpoint
from tl_nlp.errors import TLError
from tl_nlp.artifact import locate
from tl_nlp.pretrained import file_hash
for name, revision in json.loads(sys.argv[1]):
    try:
        print(file_hash(locate(Checkpoint(name=name, revision=revision)) / "model.safetensors"))
    except TLError as error:
        print(type(error).__name__, error)
"""


def test_a_hub_checkpoint_is_fetched_at_its_revision_and_then_cached(
    world: dict[str, str], tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    old, main = tmp_path / "old", tmp_path / "main"
    shutil.copytree(tiny_bert, old)
    tensors = {name: tensor * 0.5 for name, tensor in load_file(old / "model.safetensors").items()}
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(tiny_bert, main)
    (main / "pytorch_model.bin").write_bytes(b"never fetched")

    def located(*checkpoints: tuple[str, str | None]) -> list[str]:
        return python(LOCATE, json.dumps(checkpoints), **environment)

    with LoopbackHub().serving() as hub:
        environment = {**world, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        hub.add("team/tiny", old, "v1")
        commit = hub.add("team/tiny", main)
        unfit = tiny_recipe(Path("team/tiny"), reviews).override("method=top_layers", "method.n_blocks=9")
        refused = tl_nlp("train", str(recipe_file(unfit, tmp_path)), **environment)
        assert refused.returncode == 2
        assert "the checkpoint has 2 blocks, not 9" in refused.stderr
        fetched = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET"}
        assert "config.json" in fetched
        assert "model.safetensors" not in fetched
        shas = [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in (main, old)]
        found = located(("team/tiny", None), ("team/tiny", "v1"), ("team/none", None), ("team/tiny", "v9"))
        assert found[:2] == shas
        assert found[2].startswith("HubError checkpoint 'team/none': the Hub has no such repository, or it is private")
        assert found[3].startswith("HubError checkpoint 'team/tiny': the Hub has no revision 'v9' of it")
        assert not any("pytorch_model.bin" in path for method, path in hub.asked)
    found = located(("team/tiny", "v1"), ("team/other", None))
    assert found[0] == shas[1]
    assert "neither cached here nor reachable" in found[1]
    recipe = recipe_file(tiny_recipe(Path("team/tiny"), reviews, method="lora"), tmp_path)
    done = tl_nlp("train", str(recipe), **environment)
    assert done.returncode == 0, done.stderr
    run = Run.open(done.stdout.splitlines()[-1])
    assert json.loads((run.model_dir / "adapter_config.json").read_text())["base_model_name_or_path"] == "team/tiny"
    assert run.recipe().checkpoint.revision == commit


# ---- there and back

PUSH = """
import sys
from tl_nlp.publication import push
for word in sys.argv[1:]:
    folder, repo_id, merge = word.split("|")
    print(*push(folder, repo_id, merge=merge == "merge"))
"""
BACK = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, "tests")
from read_artifacts import logits
from tl_nlp import Predictor
from tl_nlp.artifact import save_merged
for word in sys.argv[1:]:
    name, merge = word.split("|")
    with tempfile.TemporaryDirectory() as folder:
        if merge:
            save_merged(Path(name) / "model", Path(folder))
        predictor = Predictor.load(folder if merge else name)
        print(json.dumps(logits(predictor.model, predictor.tokenizer)))
"""


def test_what_comes_back_answers_as_what_went(hub: LoopbackHub, world: dict[str, str], runs: dict[str, Run]) -> None:
    """Logits of whole, adapter and merged artifacts in float32, and of adapters of int8 and nf4: no difference."""
    went = {name: (run, "") for name, run in runs.items()}
    went |= {f"{name} merged": (run, "merge") for name, run in runs.items() if "lora" in name}
    ids = {name: f"alice/{name.replace(' ', '-')}" for name in went}
    urls = python(PUSH, *(f"{run.folder}|{ids[name]}|{merge}" for name, (run, merge) in went.items()), **world)
    assert urls == [f"{hub.address}/{ids[name]}" for name in went]
    here = python(BACK, *(f"{run.folder}|{merge}" for run, merge in went.values()), cwd=ROOT, **world)
    there = python(BACK, *(f"{name}|" for name in ids.values()), cwd=ROOT, **world)
    answers = {}
    for name, one, other in zip(went, here, there, strict=True):
        assert one == other, name
        answers[name] = json.loads(other)
    assert "BitsAndBytesConfig" in hub.files("alice/classification-lora-int8")["README.md"].decode()
    for name in ("classification lora", "grading lora", "classification lora int8"):
        assert answers[f"{name} merged"] == pytest.approx(answers[name], abs=0.05), name


def push(run: Run, repo_id: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return tl_nlp("push", str(run.folder), repo_id, *words, **environment)


def test_a_second_push_sends_nothing(hub: LoopbackHub, world: dict[str, str], lora: Run) -> None:
    listed = push(lora, "alice/twice", "--dry-run", **{**world, "HF_TOKEN": ""})
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0].removeprefix("model/") for line in listed.stdout.splitlines()}
    assert ("models", "alice/twice") not in hub.repositories
    first = push(lora, "alice/twice", **world)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{hub.address}/alice/twice\n"
    assert "sending" in first.stderr
    assert set(hub.files("alice/twice")) - {".gitattributes"} == names
    assert names == {
        "README.md", "recipe.json", "results.json", "adapter_config.json", "adapter_model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    before = len(hub.asked)
    again = push(lora, "alice/twice", **world)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "sending" not in again.stderr
    assert not [one for one in hub.asked[before:] if one[0] == "PUT" or "commit" in one[1] or "lfs" in one[1]]
    assert len(hub.repositories["models", "alice/twice"].commits) == 2


def test_another_method_takes_the_place_of_what_was_there(
    hub: LoopbackHub, world: dict[str, str], runs: dict[str, Run], lora: Run
) -> None:
    branch = push(lora, "alice/changing", "--revision", "small", **world)
    assert branch.stdout == f"{hub.address}/alice/changing/tree/small\n"
    assert set(hub.files("alice/changing")) == {".gitattributes"}
    push(lora, "alice/changing", **world)
    assert "adapter_model.safetensors" in hub.files("alice/changing")
    push(runs["classification full"], "alice/changing", **world)
    assert "model.safetensors" in hub.files("alice/changing")
    assert "adapter_model.safetensors" not in hub.files("alice/changing")
    assert "adapter_model.safetensors" in hub.files("alice/changing", branch="small")


ASK = """
import sys
from tl_nlp import Predictor
for name in sys.argv[1:]:
    print(Predictor.load(name)(["the good film"])[0])
"""


def test_verbs_take_names_of_the_hub(hub: LoopbackHub, world: dict[str, str], lora: Run, tmp_path: Path) -> None:
    assert push(lora, "alice/verbs", "--private", **world).returncode == 0
    assert hub.repositories["models", "alice/verbs"].private
    stranger = tl_nlp("pull", "alice/verbs", **{**world, "HF_TOKEN": "", "HF_HOME": str(tmp_path)})
    assert stranger.returncode == 2
    assert "a private one that the token may not read" in stranger.stderr
    pulled = tl_nlp("pull", "alice/verbs", **world)
    assert Path(pulled.stdout.strip()).name == hub.repositories["models", "alice/verbs"].branches["main"]
    here, there, at = python(ASK, str(lora.folder), "alice/verbs", "alice/verbs@main", **world)
    assert here == there == at
    report = tl_nlp("report", "alice/verbs", **world)
    assert "is an artifact and no run" in report.stderr
    missing = tl_nlp("predict", "alice/none", "x", **world)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "no run 'alice/none': neither here nor on the Hub" in missing.stderr
    offline = {**world, "HF_ENDPOINT": "http://127.0.0.1:9"}
    asked = tl_nlp("predict", "alice/verbs", "the good film", **offline)
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["label"] in here


SCORE = """
import json, sys
from tl_nlp import evaluate
from tl_nlp.evaluation import compare
print(json.dumps(evaluate("alice/scored")))
print(json.dumps(compare(["alice/scored", sys.argv[1]])))
"""


def test_published_runs_are_scored_and_compared(
    hub: LoopbackHub, world: dict[str, str], runs: dict[str, Run], lora: Run, tmp_path: Path
) -> None:
    """On the data that the recipe names, where it is there; its fingerprint went along."""
    assert push(lora, "alice/scored", **world).returncode == 0
    data = Path(str(lora.recipe().data.path))  # type: ignore[attr-defined]
    assert str(data.parent) not in hub.files("alice/scored")["recipe.json"].decode()
    shutil.copy(data, tmp_path / data.name)
    full = runs["classification full"]
    scores, compared = python(SCORE, str(full.folder), cwd=tmp_path, **world)
    name = lora.results()["main_metric"]
    ours = lora.results()["splits"]["test"]["metrics"][name]
    assert json.loads(scores)["metrics"][name] == ours
    assert json.loads(compared)["runs"][0] == {"run": "alice/scored", name: ours}
    copied = tl_nlp("push", "alice/scored", "alice/copied", **world)
    assert copied.returncode == 0, copied.stderr
    assert hub.files("alice/copied")["results.json"] == hub.files("alice/scored")["results.json"]
    code = hub.files("alice/copied")["README.md"].decode().split("```python")[1].split("```")[0]
    assert code.count('"alice/copied"') == 2
    assert "alice/scored" not in code
    write_jsonl(tmp_path / data.name, [{**row, "target": "good"} for row in review_rows(40, 3)])
    other = tl_nlp("evaluate", "alice/scored", cwd=tmp_path, **world)
    assert other.returncode == 2
    assert "are not those" in other.stderr


def pushing(hub: LoopbackHub, run: Run, repo_id: str, **environment: str) -> subprocess.Popen[str]:
    """A push to a server of its own that goes on beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "tl_nlp", "push", str(run.folder), repo_id, "--private"],
        env={**os.environ, **environment, "HF_ENDPOINT": hub.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ---- what goes wrong


@pytest.mark.parametrize(
    ("token", "repo_id", "said"),
    [
        ("", "alice/x", "there is no token for the Hub: hf auth login"),
        ("hf_" + "x" * 34, "alice/x", "the Hub does not know the token"),
        (READS, "alice/x", "the token may not write to alice/x"),
        (WRITES, "bob/x", "the token may not write to bob/x"),
        (WRITES, "x", "'x' is no name of a repository"),
        (WRITES, "alice/../x", "is no name of a repository"),
        (WRITES, "alice/-x", "is no name of a repository"),
    ],
)
def test_who_may_not_push_is_told(token: str, repo_id: str, said: str, world: dict[str, str], lora: Run) -> None:
    done = push(lora, repo_id, **{**world, "HF_TOKEN": token})
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


STEPS = {
    "create": "POST /api/repos/create",
    "preupload": "preupload",
    "upload": "PUT /_lfs",
    "commit": "POST .*/commit/",
}
CELLS = [(step, status, times) for step in STEPS for status in (500, 429, CUT) for times in (2, 999)]


@pytest.mark.slow
def test_faults_are_survived_where_they_pass_and_told_where_they_stay(
    world: dict[str, str], lora: Run, tmp_path: Path
) -> None:
    """FAULTS 22: each step failing twice, and for ever; a server for each, all at once. Then the same command again."""

    def started(server: LoopbackHub) -> subprocess.Popen[str]:
        return pushing(server, lora, "alice/faults", **{**world, "HF_HOME": str(tmp_path / server.address[-5:])})

    with ExitStack() as stack:
        servers = [stack.enter_context(LoopbackHub().serving()) for _ in CELLS]
        for server, (step, status, times) in zip(servers, CELLS, strict=True):
            server.fail(STEPS[step], status, times)
        pushes = [started(server) for server in servers]
        for server, cell, process in zip(servers, CELLS, pushes, strict=True):
            out, err = process.communicate(timeout=200)
            if cell[2] == 2:
                assert (process.returncode, out) == (0, f"{server.address}/alice/faults\n"), (cell, err)
            else:
                assert (process.returncode, out) == (1, ""), (cell, err)
                assert "nothing was lost, and the same command goes on later" in err, (cell, err)
                assert "Traceback" not in err, (cell, err)
                server.faults.clear()
        again = [started(server) for server in servers]
        for server, cell, process in zip(servers, CELLS, again, strict=True):
            out, err = process.communicate(timeout=200)
            assert (process.returncode, out) == (0, f"{server.address}/alice/faults\n"), (cell, err)
            assert len(server.repositories["models", "alice/faults"].commits) == 2, cell


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_told(world: dict[str, str], lora: Run) -> None:
    done = push(lora, "alice/nowhere", **{**world, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "could not be reached" in done.stderr.splitlines()[-1]
    assert "the same command goes on later" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def begun(hub: LoopbackHub, run: Run, repo_id: str, **environment: str) -> subprocess.Popen[str]:
    """A push that has got as far as sending its weights."""
    process = pushing(hub, run, repo_id, **environment)
    while not any(method == "PUT" for method, _ in hub.asked):
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_a_push_that_was_killed_goes_on(world: dict[str, str], runs: dict[str, Run]) -> None:
    """FAULTS 22: kill -9 in the middle of an upload."""
    with LoopbackHub().serving() as hub:
        hub.slow_uploads = 3.0
        process = begun(hub, runs["grading full"], "alice/killed", **world)
        process.kill()
        process.communicate()
        hub.slow_uploads = 0.0
        assert set(hub.files("alice/killed")) == {".gitattributes"}
        done = push(runs["grading full"], "alice/killed", "--private", **{**world, "HF_ENDPOINT": hub.address})
        assert done.returncode == 0, done.stderr
        assert len(hub.repositories["models", "alice/killed"].commits) == 2
        assert "model.safetensors" in hub.files("alice/killed")


def test_of_two_pushes_at_once_one_is_told(world: dict[str, str], runs: dict[str, Run], lora: Run) -> None:
    """FAULTS 23."""
    with LoopbackHub().serving() as hub:
        hub.slow_uploads = 6.0
        slow = begun(hub, runs["grading adapter"], "alice/race", **world)
        hub.slow_uploads = 0.0
        quick = push(lora, "alice/race", "--private", **{**world, "HF_ENDPOINT": hub.address})
        assert quick.returncode == 0, quick.stderr
        out, err = slow.communicate(timeout=60)
        assert (slow.returncode, out) == (1, "")
        assert "was changed by somebody else meanwhile" in err
        assert "adapter_model.safetensors" in hub.files("alice/race")


def test_a_lost_answer_makes_no_second_commit(world: dict[str, str], lora: Run) -> None:
    """The commit is made and its answer lost: what is there is looked at before it is tried again."""
    with LoopbackHub().serving() as hub:
        hub.lose_answers = 1
        done = push(lora, "alice/lost", **{**world, "HF_ENDPOINT": hub.address})
        assert done.returncode == 0, done.stderr
        assert len(hub.repositories["models", "alice/lost"].commits) == 2


def test_files_go_by_xet_where_the_hub_has_it(
    hub: LoopbackHub, world: dict[str, str], lora: Run, tmp_path: Path
) -> None:
    """huggingface_hub has no way back from xet where the server has none, so that is told."""
    by_xet = {**world, "HF_HUB_DISABLE_XET": "0"}
    refused = push(lora, "alice/xet", **by_xet)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].endswith("HF_HUB_DISABLE_XET=1 sends them without")
    hub.xet = f"local://{tmp_path}"
    done = push(lora, "alice/xet", **by_xet)
    hub.xet = None
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in hub.files("alice/xet")
    assert any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_repository_that_reaches_out_is_not_followed(
    hub: LoopbackHub, world: dict[str, str], lora: Run, tmp_path: Path
) -> None:
    assert push(lora, "alice/escape", **world).returncode == 0
    outside = ("../../../escaped.safetensors", "../../../recipe.json", f"{tmp_path}/escaped.safetensors")
    files = {**hub.files("alice/escape"), **dict.fromkeys(outside, b"{}")}
    hub.repositories["models", "alice/escape"].commit(files)
    done = tl_nlp("pull", "alice/escape", **{**world, "HF_HOME": str(tmp_path / "deep" / "home")})
    assert not list(tmp_path.rglob("escaped.safetensors"))
    assert not list((tmp_path / "deep").glob("*.json"))
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert "'alice/escape'" in done.stderr.splitlines()[-1]


def test_what_is_no_run_is_not_pulled(hub: LoopbackHub, world: dict[str, str], lora: Run) -> None:
    plain = tl_nlp("pull", "team/bert", **world)
    assert plain.returncode == 2
    assert "team/bert holds no recipe.json" in plain.stderr
    assert push(lora, "alice/outward", **world).returncode == 0
    recipe = json.loads(hub.files("alice/outward")["recipe.json"])
    recipe["checkpoint"]["name"] = "/etc"
    hub.repositories["models", "alice/outward"].commit(
        {**hub.files("alice/outward"), "recipe.json": json.dumps(recipe).encode()}
    )
    told = tl_nlp("pull", "alice/outward", **world)
    assert told.returncode == 2
    assert "an adapter for '/etc', which is no name on the Hub" in told.stderr


def test_the_token_is_nowhere(world: dict[str, str], tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    """FAULTS 21: a token in the environment and in the home of the client, while training, pushing and pulling."""
    home = tmp_path / "home"
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text(WRITES)
    recipe = tiny_recipe(tiny_bert, reviews, name="canary", licence=OWN)
    with LoopbackHub().serving() as hub:
        environment = {**world, "HF_ENDPOINT": hub.address, "HF_HOME": str(home / "hf"), "HOME": str(home)}
        said = [tl_nlp("train", str(recipe_file(recipe, tmp_path)), **environment)]
        run = Run.open(said[0].stdout.splitlines()[-1])
        hub.fail("POST /api/repos/create", 500, 1)
        hub.fail("POST .*/commit/", 429, 1)
        said.append(push(run, "alice/canary", "--debug", **environment))
        said.append(push(run, "bob/canary", "--debug", **environment))
        said.append(tl_nlp("pull", "alice/canary", **environment))
        assert [one.returncode for one in said] == [0, 0, 1, 0]
        token = WRITES.encode()
        assert token not in hub.everything()
    for one in said:
        assert WRITES not in one.stdout + one.stderr
    (home / "hf" / "token").unlink()
    for root in (run.folder, home):
        for path in root.rglob("*"):
            assert not path.is_file() or token not in path.read_bytes(), path
    leaky = changed(run, tmp_path / "leaky", note=f"made with {WRITES}")
    refused = push(leaky, "alice/leaky", "--dry-run", **world)
    assert refused.returncode == 1
    assert "would hold a token of the Hub" in refused.stderr
    assert WRITES not in refused.stderr


@pytest.mark.slow
def test_paths_of_this_machine_stay_here(world: dict[str, str], tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    local = tiny_recipe(tiny_bert, reviews, method="lora", licence=OWN)
    made = python(
        TRAIN, str(tmp_path), local.model_dump_json(), local.override("method=full").model_dump_json(), **world
    )
    adapter, whole = (Run(Path(line)) for line in made[-2:])
    refused = push(adapter, "alice/local", "--dry-run", **world)
    assert refused.returncode == 1
    assert f"an adapter for {tiny_bert.name}, a checkpoint that only this machine has; --merge" in refused.stderr
    assert push(adapter, "alice/local", "--merge", "--dry-run", **world).returncode == 0
    refused = push(whole, "alice/local", "--merge", "--dry-run", **world)
    assert "holds whole weights already" in refused.stderr
    with LoopbackHub().serving() as hub:
        done = push(whole, "alice/local", **{**world, "HF_ENDPOINT": hub.address})
        assert done.returncode == 0, done.stderr
        assert str(tmp_path).encode() not in hub.everything()
        assert str(tiny_bert.parent).encode() not in hub.everything()


# ---- cards


def card_of(hub: LoopbackHub, repo_id: str, kind: str = "models") -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(hub.files(repo_id, kind)["README.md"].decode())


def test_the_card_says_what_it_is_and_opens_it(
    hub: LoopbackHub, world: dict[str, str], lora: Run, tmp_path: Path
) -> None:
    assert push(lora, "alice/card", **world).returncode == 0
    card = card_of(hub, "alice/card")
    about = card.data
    assert (about.base_model, about.license, about.library_name) == ("team/bert", "apache-2.0", "peft")
    assert (about.pipeline_tag, about.model_name) == ("text-classification", "classification-lora")
    results = lora.results()
    name = results["main_metric"]
    mine = [one for one in about.eval_results if one.metric_name.startswith(f"{name} (95 %")]
    assert [one.metric_value for one in mine] == [pytest.approx(results["splits"]["test"]["metrics"][name]["value"])]
    assert {
        one.metric_name.split(" of the baseline ")[1].split()[0]
        for one in about.eval_results
        if "baseline" in one.metric_name
    } == set(results["baselines"])
    assert about.to_dict()["co2_eq_emissions"]["hardware_used"].endswith(", threads: 1")
    text = card.content
    for word in (
        results["verdict"][1:],
        lora.data()["splits"]["train"]["fingerprint"],
        "apache-2.0",
        "@misc",
        "## Notes",
    ):
        assert word in text, word
    assert "review" not in text
    code = text.split("```python\n")[1].split("```")[0]
    script = f"{code}\nprint(model(**tokenizer('the film', return_tensors='pt')).logits.shape)"
    assert python(script, **world) == ["torch.Size([1, 2])"]
    with_notes = hub.files("alice/card")["README.md"].replace(b"None yet.", b"Ask **Ada** first.")
    hub.repositories["models", "alice/card"].commit({**hub.files("alice/card"), "README.md": with_notes})
    assert push(lora, "alice/card", "--licence", "model=cc-by-nc-4.0", **world).returncode == 0
    again = card_of(hub, "alice/card")
    assert again.data.license == "cc-by-nc-4.0"
    assert "Ask **Ada** first." in again.content


@pytest.mark.parametrize("name", ["grading full", "summarization lora", "classification adapter"])
def test_cards_of_other_tasks(name: str, hub: LoopbackHub, world: dict[str, str], runs: dict[str, Run]) -> None:
    repo_id = f"alice/card-{name.replace(' ', '-')}"
    assert push(runs[name], repo_id, **world).returncode == 0
    about = card_of(hub, repo_id).data
    library = {"grading full": "transformers", "summarization lora": "peft", "classification adapter": "tl_nlp"}
    assert about.library_name == library[name]
    assert about.to_dict()["base_model_relation"] == ("finetune" if name == "grading full" else "adapter")


def test_what_nobody_licenses_stays_private(hub: LoopbackHub, world: dict[str, str], lora: Run, tmp_path: Path) -> None:
    run = changed(lora, tmp_path / "run", licence=Licence())
    refused = push(run, "alice/unlicensed", **world)
    assert refused.returncode == 1
    assert "it may not be public: the base team/bert is under a licence that nobody states" in refused.stderr
    assert ("models", "alice/unlicensed") not in hub.repositories
    said = ("--licence", "data=own", "--licence", "base=mit", "--licence", "source=my own")
    assert push(run, "alice/licensed", *said, **world).returncode == 0
    assert card_of(hub, "alice/licensed").data.license == "mit"
    assert push(run, "alice/unlicensed", "--private", **world).returncode == 0
    assert hub.repositories["models", "alice/unlicensed"].private
    assert "for private use only" in card_of(hub, "alice/unlicensed").content
    assert "is there and public" in push(run, "alice/licensed", "--private", **world).stderr
    for wrong, told in (("data=nonsense", "no licence 'nonsense' is known"), ("data=mit", "where a licence is stated")):
        refused = push(run, "alice/other", "--licence", wrong, **world)
        assert refused.returncode == 2
        assert told in refused.stderr


def test_licences_of_cards_are_read(
    hub: LoopbackHub, world: dict[str, str], lora: Run, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "licensed"
    shutil.copytree(tiny_bert, folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n")
    commit = hub.add("team/licensed", folder)
    said = Licence(data="own", source="me")
    run = changed(
        lora, tmp_path / "run", "checkpoint.name=team/licensed", f"checkpoint.revision={commit}", licence=said
    )
    assert push(run, "alice/of-cards", **world).returncode == 0
    card = card_of(hub, "alice/of-cards")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert "no commercial use" in card.content


def test_what_taught_a_student_has_a_licence_too(
    hub: LoopbackHub, world: dict[str, str], lora: Run, tmp_path: Path
) -> None:
    said = Licence(base="mit", data="cc-by-nc-4.0", source="its author")
    teacher = changed(lora, tmp_path / "teacher", licence=said)
    student = changed(lora, tmp_path / "run", f"training.distillation.teacher={teacher.folder}")
    assert push(student, "alice/taught", **world).returncode == 0
    assert card_of(hub, "alice/taught").data.license == "cc-by-nc-4.0"
    silent = changed(lora, tmp_path / "silent", licence=Licence())
    of_silent = changed(lora, tmp_path / "other", f"training.distillation.teacher={silent.folder}")
    assert push(of_silent, "alice/of-silent", **world).returncode == 0  # of the same works, which the student's are
    shutil.rmtree(teacher.folder)
    refused = push(student, "alice/orphan", **world)
    assert refused.returncode == 1
    assert "the teacher teacher is under a licence that nobody states" in refused.stderr


# ---- data and pages


def test_data_is_published_only_when_asked(
    hub: LoopbackHub, world: dict[str, str], tiny_bert: Path, tmp_path: Path
) -> None:
    rows = [{**row, "text": f"{row['text']} ask ada{number}@example.org"} for number, row in enumerate(review_rows(60))]
    recipe = tiny_recipe(tiny_bert, write_jsonl(tmp_path / "mine.jsonl", rows), name="rows")
    path = str(recipe_file(recipe, tmp_path))
    refused = tl_nlp("push-data", path, "alice/rows", **world)
    assert refused.returncode == 1
    assert "it may not be public" in refused.stderr
    words = ("licence.data=own", "licence.source=mine")
    listed = tl_nlp("push-data", "--dry-run", path, "alice/rows", *words, **world)
    assert ("datasets", "alice/rows") not in hub.repositories
    assert "train.jsonl" in listed.stdout
    done = tl_nlp("push-data", path, "alice/rows", *words, **world)
    assert done.stdout == f"{hub.address}/datasets/alice/rows\n", done.stderr
    files = hub.files("alice/rows", "datasets")
    assert set(files) == {".gitattributes", "README.md", "data/train.jsonl", "data/validation.jsonl", "data/test.jsonl"}
    assert b"@example.org" not in files["data/train.jsonl"]
    with_notes = files["README.md"].replace(b"None yet.", b"Collected by **Ada**.")
    hub.repositories["datasets", "alice/rows"].commit({**files, "README.md": with_notes})
    assert tl_nlp("push-data", path, "alice/rows", *words, **world).returncode == 0
    card = card_of(hub, "alice/rows", "datasets")
    assert "Collected by **Ada**." in card.content
    assert [one["split"] for one in card.data.to_dict()["configs"][0]["data_files"]] == ["train", "validation", "test"]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium here; .ci/run installs it")
def test_a_space_serves_the_model(hub: LoopbackHub, world: dict[str, str], lora: Run, tmp_path: Path) -> None:
    """Its files alone, in a folder of their own, in a browser; that what it requires is enough is tried by hand."""
    done = push(lora, "alice/paged", "--space", **world)
    assert done.stdout == f"{hub.address}/alice/paged\n{hub.address}/spaces/alice/paged\n", done.stderr
    files = hub.files("alice/paged", "spaces")
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    about = card_of(hub, "alice/paged", "spaces").data.to_dict()
    assert (about["sdk"], about["app_file"], about["models"]) == ("gradio", "app.py", ["alice/paged"])
    assert {line.partition("==")[0] for line in files["requirements.txt"].decode().split()} >= {
        "gradio",
        "peft",
        "torch",
    }
    assert not any(name.endswith((".jsonl", ".pyc")) for name in files)
    with opened_page(tmp_path / "app.py", **world, GRADIO_SERVER_NAME="0.0.0.0") as page:
        page.get_by_label("Text", exact=True).fill("the good film")
        page.get_by_role("button", name="Predict", exact=True).click()
        page.get_by_test_id("label").wait_for()
        assert page.get_by_test_id("label").inner_text() in ("good", "bad")
        tabs = {tab.inner_text() for tab in page.get_by_role("tab").locator("visible=true").all()}
        assert "Try" in tabs and not tabs & {"Train", "Label"}  # nobody trains on what is shown to everybody


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium here; .ci/run installs it")
def test_the_page_shows_several_of_the_hub(world: dict[str, str], runs: dict[str, Run]) -> None:
    names = []
    for name in ("grading lora", "summarization full"):
        names.append(f"alice/shown-{name.replace(' ', '-')}")
        assert push(runs[name], names[-1], **world).returncode == 0
    with opened_page(ROOT / "app.py", *names, **world) as page:
        page.get_by_role("tab", name="Train", exact=True).locator("visible=true").wait_for()
        tabs = page.get_by_role("tablist").locator("visible=true").first.get_by_role("tab").locator("visible=true")
        assert [tab.inner_text() for tab in tabs.all()][:2] == ["grading-lora", "summarization-full"]
