"""Random input for a bounded time: recipes, files of rows, run directories. Whatever comes, a TLError or an answer."""

import gzip
import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import review_rows, tiny_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tl_nlp import Predictor, Recipe, Run, Training, train
from tl_nlp.errors import TLError
from tl_nlp.rejects import Rejects
from tl_nlp.run import all_runs, differences
from tl_nlp.tables import MAX_CHARACTERS, read_table

BOUNDED = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BASE = tiny_recipe(Path("checkpoint"), Path("rows.csv"))

trainings = st.builds(
    Training,
    epochs=st.floats(0.01, 1000),
    batch_size=st.integers(1, 10**6),
    lr=st.floats(1e-12, 0.99),
    schedule=st.sampled_from(["linear", "cosine", "constant", "one_cycle"]),
    warmup=st.floats(0, 0.99),
    max_grad_norm=st.none() | st.floats(1e-6, 1e6),
    skip_bad_steps=st.integers(0, 1000),
    class_weights=st.none() | st.dictionaries(st.text(min_size=1), st.floats(1e-3, 1e3), min_size=1, max_size=3),
    seed=st.integers(-(2**40), 2**40),
)


@BOUNDED
@given(training=trainings, note=st.none() | st.text())
def test_a_recipe_is_its_json(training: Training, note: str | None) -> None:
    recipe = BASE.model_copy(update={"training": training, "note": note})
    values = json.loads(recipe.model_dump_json())
    again = Recipe(**values)
    assert again == recipe
    assert differences(values, again.model_dump(mode="json")) == []
    assert recipe.override() == recipe


@BOUNDED
@given(training=trainings, field=st.sampled_from(["epochs", "batch_size", "lr", "schedule", "seed", "max_grad_norm"]))
def test_an_override_is_the_value_it_names(training: Training, field: str) -> None:
    value = getattr(training, field)
    recipe = BASE.override(f"training.{field}={'null' if value is None else value}")
    assert getattr(recipe.training, field) == value
    changed = differences(BASE.model_dump(mode="json"), recipe.model_dump(mode="json"))
    assert len(changed) == (value != getattr(BASE.training, field))


@BOUNDED
@given(st.lists(st.text(max_size=30) | st.from_regex(r"(training|data|task|method)\.[a-z_]+=.{0,10}", fullmatch=True)))
def test_any_override_is_taken_or_refused_in_a_sentence(words: list[str]) -> None:
    try:
        BASE.override(*words)
    except TLError as error:
        assert str(error)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


@BOUNDED
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20))
def test_rows_that_are_written_are_the_rows_that_are_read(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import csv

    folder = tmp_path_factory.mktemp("rows")
    wanted = [{"text": text, "target": target} for text, target in rows]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wanted), "utf-8")
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["text", "target"])
        writer.writerows(rows)
    for name in ("a.csv", "a.jsonl"):
        assert read_table(folder / name).to_pylist() == wanted


@BOUNDED
@given(
    content=st.binary(max_size=400)
    | st.lists(st.sampled_from(['"', ",", "\n", "a", "\r", "{", "}", ":", "\\u00"])).map(
        lambda parts: "".join(parts).encode()
    ),
    name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz", "a.jsonl.gz"]),
    packed=st.booleans(),
)
def test_any_bytes_are_rows_rejects_or_a_sentence(
    content: bytes, name: str, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(gzip.compress(content) if packed and name.endswith(".gz") else content)
    rejects = Rejects()
    try:
        table = read_table(path, rejects)
    except TLError as error:
        assert str(path) in str(error)
        return
    assert all(str(one).startswith(f"{path}, line ") for one in rejects)
    assert len(table) + len(rejects) <= max(1, content.count(b"\n") + 1, content.count(b"\r") + 1) * MAX_CHARACTERS


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_recipe(tiny_bert, reviews), root=tmp_path_factory.mktemp("fuzz") / "runs")


def refusals(run: Run) -> list[str]:
    """What is said by all that reads a run directory, a part of it after the other, where it cannot be read."""
    looks = [
        run.recipe, run.results, run.data, run.environment, run.history, run.curves, run.trained_hashes,
        lambda: all_runs(run.folder.parent.parent), lambda: Predictor.load(run)(["a good film"]),
    ]  # fmt: skip
    told = []
    for look in looks:
        try:
            look()
        except TLError as error:
            told.append(str(error).strip())
    return told


def damaged(run: Run, draw: random.Random) -> str:
    """Flips, cuts or fills a random file of a run; what it did."""
    path = draw.choice(sorted(path for path in run.folder.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "cut", "fill"])
    if kind == "cut":
        content = content[: draw.randrange(len(content) + 1)]
    for _ in range(draw.randint(1, 8) if content else 0):
        content[draw.randrange(len(content))] = draw.randrange(256) if kind == "fill" else 0xFF
    path.write_bytes(content)
    return f"{kind} {path.relative_to(run.folder)}"


@pytest.mark.parametrize("n_times", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_a_run_with_random_bytes_is_read_or_refused_in_a_sentence(n_times: int, finished: Run, tmp_path: Path) -> None:
    draw = random.Random(n_times)
    for number in range(n_times):
        run = Run(tmp_path / str(number) / "tiny" / "run")
        shutil.copytree(finished.folder, run.folder, ignore=shutil.ignore_patterns("checkpoints", "report.html"))
        told = [damaged(run, draw) for _ in range(draw.randint(1, 3))]
        try:
            said = refusals(run)
        except Exception as error:
            raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
        assert all(said), told
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.slow
def test_a_training_with_random_bytes_in_its_run_ends_as_it_would_or_says_why(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soak: what is damaged while a training is cut off is found, and never becomes other weights."""
    from conftest import write_jsonl
    from interruptions import assert_same, stopped_at

    rows = write_jsonl(tmp_path / "rows.jsonl", review_rows(60))
    recipe = tiny_recipe(tiny_bert, rows).override(
        "training.epochs=3", "training.save_every=0.5", "training.dropout=0.1"
    )
    whole, cut_off, draw = train(recipe), stopped_at(recipe, 7, monkeypatch), random.Random(1)
    n_same = 0
    for number in range(30):
        run = Run(tmp_path / str(number))
        shutil.copytree(cut_off.folder, run.folder)
        damaged(run, draw)
        try:
            train(run)
        except TLError as error:
            assert str(error).strip()
            continue
        for name in ("model.safetensors",):
            assert (run.model_dir / name).read_bytes() == (whole.model_dir / name).read_bytes()
        n_same += 1
        if run.history() == whole.history():
            assert_same(run, whole)
    assert n_same >= 10
