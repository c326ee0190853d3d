"""The command line: results on stdout, one sentence for a fault, and the right exit status."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Answer, recipe_file, review_rows, tiny_recipe, tl_nlp, write_jsonl

from tl_nlp import Run, train


@pytest.fixture(scope="module")
def trained(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    return train(tiny_recipe(tiny_bert, write_jsonl(folder / "rows.jsonl", review_rows(60))), root=folder / "runs")


@pytest.fixture(scope="module")
def recipe(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return recipe_file(tiny_recipe(tiny_bert, write_jsonl(folder / "rows.jsonl", review_rows(60))), folder)


@pytest.mark.parametrize("verb", ["--help", "list", "show sentiment", "runs"])
def test_light_verbs_do_not_import_torch(verb: str) -> None:
    code = (
        "import sys; from tl_nlp.cli import main\n"
        f"sys.argv = ['tl-nlp', *{verb.split()!r}]\n"
        "try: main()\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'gradio', 'peft', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'{status} {heavy}' if heavy or status else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_show_and_runs_print_what_there_is(trained: Run) -> None:
    listed = tl_nlp("list", cwd=ROOT).stdout
    for path in (ROOT / "recipes").glob("*.py"):
        assert path.stem in listed
    assert "lora" in listed
    shown = json.loads(tl_nlp("show", "sentiment", "training.lr=1e-5", "method=lora", cwd=ROOT).stdout)
    assert (shown["training"]["lr"], shown["method"]["kind"]) == (1e-5, "lora")
    runs = tl_nlp("runs", TL_NLP_RUNS=str(trained.folder.parent.parent)).stdout
    assert runs.startswith(f"{trained.folder}  finished  full  test accuracy 0.")


def test_train_ends_with_the_run_and_a_recipe_is_a_script(recipe: Path, own_runs: Path) -> None:
    done = tl_nlp("train", str(recipe), "training.lr=1e-4", "name=renamed")
    assert done.returncode == 0, done.stderr
    *scores, folder = done.stdout.splitlines()
    assert folder.startswith(str(own_runs / "renamed"))
    assert scores[0].startswith("test  9 rows  accuracy 0.")
    assert Run.open(folder).recipe().training.lr == 1e-4
    assert "Traceback" not in done.stderr
    assert "training: 100%" in done.stderr


def test_predict_prints_a_json_line_for_each_text(trained: Run, tmp_path: Path, command: Callable[..., Answer]) -> None:
    answer = command("predict", trained.folder, "a good film", "=1+1")
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [list(line) for line in lines] == [["id", "label", "probabilities"]] * 2
    assert [line["id"] for line in lines] == ["0", "1"]
    piped = subprocess.run(
        [sys.executable, "-m", "tl_nlp", "predict", str(trained.folder)],
        input="a good film\n=1+1\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert piped.stdout == answer.out
    table = tmp_path / "in.csv"
    table.write_text("id,text\n=a,a good film\n")
    written = command("predict", trained.folder, "--input", table, "--output", tmp_path / "out.csv")
    assert (written.status, written.out) == (0, ""), written.err
    header, row = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "id,label,probabilities.negative,probabilities.positive"
    assert row.startswith("'=a,")


def test_evaluate_prints_the_split_of_the_results(trained: Run, command: Callable[..., Answer]) -> None:
    assert json.loads(command("evaluate", trained.folder).out) == trained.results()["splits"]["test"]


LABELS = 'task.labels=["negative", "positive"]'


def test_explain_prints_what_moved_the_answer(trained: Run, command: Callable[..., Answer]) -> None:
    text = "the film was lovely and it is more"
    answer = command("explain", trained.folder, text, "--nearest", "2", "--method", "occlusion")
    assert answer.status == 0, answer.err
    told = json.loads(answer.out)
    assert "".join(part["text"] for part in told["parts"]) == text and told["method"] == "occlusion"
    assert told["target"] == told["answer"]["label"] and told["unit"] == "log-odds"
    assert len(told["nearest"]) == 2 and told["nearest"][0]["similarity"] >= told["nearest"][1]["similarity"]
    assert "nearest" not in json.loads(command("explain", trained.folder, text).out)


def test_predictions_as_parquet(trained: Run, command: Callable[..., Answer], tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "predictions.parquet"
    assert command("predict", trained.folder, "a good film", "a dull film", "--output", path).status == 0
    table = pyarrow.parquet.read_table(path)
    assert table["id"].to_pylist() == ["0", "1"] and set(table["label"].to_pylist()) <= {"negative", "positive"}


CASES = {
    "unknown recipe": (["train", "nosuch"], 2, "no recipe 'nosuch'"),
    "unknown key": (["train", "RECIPE", "training.epoch=1"], 2, "training.epoch: no such key; there are: epochs"),
    "unknown kind": (["show", "RECIPE", "task=tagging"], 2, "task: no 'tagging' in tl_nlp.tasks; there are: class"),
    "unknown value": (["train", "RECIPE", "training.schedule=wavy"], 2, "training.schedule: 'wavy' does not fit"),
    "missing file": (["train", "RECIPE", "data.path=nosuch.csv"], 2, "no file 'nosuch.csv'"),
    "missing column": (["train", "RECIPE", "data.text=body"], 2, "no column 'body' in split train; there are: text"),
    "undeclared label": (
        ["train", "RECIPE", 'task.labels=["negative", "neutral"]'], 2, "'positive' is none of the labels negative,"
    ),
    "undeclared label in the test file": (
        ["train", "RECIPE", "data.path=null", "data.train=ROWS", "data.test=OTHER", LABELS],
        2, "'neutral' is none of the labels",
    ),
    "empty text in data": (["train", "RECIPE", "data.path=EMPTY"], 2, "line 21: the text is empty; at most"),
    "split without rows": (["train", "RECIPE", "data.keep_together=target"], 2, "60 rows make 2 groups"),
    "not UTF-8": (["train", "RECIPE", "data.path=LATIN"], 2, "line 2, column 4: byte 0xe9 is not UTF-8"),
    "impossible pair": (["train", "RECIPE", "checkpoint.load_in=int8"], 2, "int8 is for weights that stay as they are"),
    "unreachable hub": (["train", "RECIPE", "checkpoint=google-bert/bert-base-uncased"], 1, "neither cached here nor"),
    "hub data": (["train", "RECIPE", "data=hub", "data.name=no/such"], 1, "'no/such' is neither cached here nor"),
    "missing run": (["predict", "runs/nosuch", "x"], 2, "no run 'runs/nosuch'"),
    "corrupt run": (["predict", "CORRUPT", "x"], 1, "recipe.json cannot be read"),
    "corrupt weights": (["predict", "TRUNCATED", "x"], 2, "cannot be loaded"),
    "overrides of a run": (["train", "RUN", "training.lr=1"], 2, "a run goes on with the recipe it began with"),
    "empty text": (["predict", "RUN", " "], 2, "row 0: the text is empty"),
    "no texts": (["predict", "RUN"], 2, "no texts"),
    "unknown split": (["evaluate", "RUN", "--split", "dev"], 2, "no split 'dev'; there are: train"),
    "no output folder": (["predict", "RUN", "x", "--output", "nosuch/out.csv"], 2, "there is no folder 'nosuch'"),
    "report an artifact": (["report", "ARTIFACT"], 2, "is an artifact and no run"),
    "no output format": (["predict", "RUN", "x", "--output", "out.xls"], 2, "written as .jsonl, .csv, .parquet"),
    "no such method": (["explain", "RUN", "x", "--method", "guessing"], 2, "no 'guessing'; there are: integrated"),
    "no such label": (["explain", "RUN", "x", "--target", "neutral"], 2, "'neutral'"),
    "nearest of an artifact": (["explain", "ARTIFACT", "x", "--nearest", "1"], 2, "is an artifact and no run"),
    "open to the network": (["demo", "RUN"], 2, "GRADIO_SERVER_NAME=0.0.0.0 opens the page to the network"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_sentence(
    case: str,
    recipe: Path,
    trained: Run,
    tmp_path: Path,
    command: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, status, message = CASES[case]
    (tmp_path / "latin.csv").write_bytes(b"text,target\ncaf\xe9,positive\n")
    write_jsonl(tmp_path / "empty.jsonl", [*review_rows(20), {"text": "", "target": "negative"}])
    corrupt, truncated = tmp_path / "corrupt", tmp_path / "truncated"
    shutil.copytree(trained.folder, corrupt)
    (corrupt / "model" / "recipe.json").write_text('{"name"')
    shutil.copytree(trained.folder, truncated)
    weights = truncated / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    places = {
        "RECIPE": recipe, "RUN": trained.folder, "ARTIFACT": trained.model_dir,
        "CORRUPT": corrupt, "TRUNCATED": truncated,
        "data.train=ROWS": f"data.train={write_jsonl(tmp_path / 'rows.jsonl', review_rows(40))}",
        "data.test=OTHER": f"data.test={write_jsonl(tmp_path / 'other.jsonl', [{'text': 'x', 'target': 'neutral'}])}",
        "data.path=EMPTY": f"data.path={tmp_path / 'empty.jsonl'}",
        "data.path=LATIN": f"data.path={tmp_path / 'latin.csv'}",
    }  # fmt: skip
    if case == "open to the network":
        monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    answer = command(*(places.get(word, word) for word in words))
    assert answer.status == status, answer.err
    assert answer.out == ""
    (complaint,) = [line for line in answer.err.splitlines() if line.startswith("tl-nlp: ")]
    assert answer.err.splitlines()[-1] == complaint
    assert message in complaint
    assert "Traceback" not in answer.err


def test_a_damaged_run_or_recipe_does_not_hide_the_others(
    trained: Run, tmp_path: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.folder.parent.parent, tmp_path / "all")
    bad = tmp_path / "all" / "bad" / "2026"
    bad.mkdir(parents=True)
    (bad / "recipe.json").write_text("{")
    monkeypatch.setenv("TL_NLP_RUNS", str(tmp_path / "all"))
    lines = command("runs").out.splitlines()
    assert len(lines) == 2
    assert any("finished" in line for line in lines)
    assert any("damaged" in line for line in lines)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "broken.py").write_text("def")
    (tmp_path / "recipes" / "whole.py").write_text('"""Summary."""')
    monkeypatch.chdir(tmp_path)
    listed = command("list").out
    assert "cannot be read" in listed
    assert "Summary." in listed


def test_debug_shows_the_traceback(command: Callable[..., Answer]) -> None:
    assert "Traceback" in command("train", "nosuch", "--debug").err


def test_a_fault_in_a_process_of_its_own_has_its_status() -> None:
    done = tl_nlp("train", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tl-nlp: no recipe 'nosuch'")
