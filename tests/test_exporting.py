"""Exports: they answer as their runs do, without torch too, and what loses too much is not written."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MINILM, ROOT, Answer, review_rows, tiny_recipe, write_jsonl
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from tl_nlp import Predictor, Recipe, Run, evaluate, train
from tl_nlp.attribution import explain
from tl_nlp.errors import RecipeError, RunError
from tl_nlp.evaluation import compare
from tl_nlp.heads import Classify, Multilabel, Ordinal, Select, pool
from tl_nlp.onnx import DOCUMENT, MODEL, TOKENIZER, Exported, by_sentence, described
from tl_nlp.onnx import pool as pool_of_numpy
from tl_nlp.pretrained import find, load_tokenizer
from tl_nlp.run import CERTIFICATE
from tl_nlp.smoothing import smooth
from tl_nlp.tokenization import FastTokenizer, as_json
from tl_nlp.types import Label, Labels, PassBudget, Scores

pytest.importorskip("onnxscript")
ABSENT = ("torch", "transformers", "accelerate", "peft", "captum", "sklearn", "evaluate", "scipy", "safetensors")
TEXTS = ["the film was lovely", "Ünïcode ☃ was 42 awful , it is ?", "good and dull with more story " * 12, "."]
WINDOWED = {"max_length": 16, "max_windows": 4}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "checkpoint": ({"kind": "classification", **WINDOWED}, "full"),
    "mean": ({"kind": "classification", "pooling": "mean", **WINDOWED}, "lora"),
    "attention": ({"kind": "classification", "pooling": "attention", **WINDOWED}, "full"),
    "transformer": ({"kind": "multilabel", "pooling": "transformer", **WINDOWED}, "full"),
    "multilabel": ({"kind": "multilabel", **WINDOWED}, "adapter"),
    "regress": ({"kind": "grading", **WINDOWED}, "full"),
    "ordinal": ({"kind": "grading", "loss": "ordinal", "pooling": "mean", **WINDOWED}, "full"),
    "surface": ({"kind": "grading", "pooling": "mean", "surface": ["length"], "dropout": 0.1, **WINDOWED}, "full"),
    "apart": ({"kind": "grading", "pooling": "mean", "reading": "apart", **WINDOWED}, "full"),
    "select": ({"kind": "highlights", "max_length": 32}, "full"),
}


def rows_for(kind: str) -> list[dict[str, Any]]:
    """Rows of every length that suit a kind of task; half of those with grades are of another group."""
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(review_rows(120)):
        is_good = row["target"] == "positive"
        if kind == "multilabel":
            rows.append({**row, "target": "good|film" if is_good else "film"})
        elif kind == "grading":
            more = {"pair": "is it good ? it is fine .", "group": "ab"[number // 2 % 2]}
            rows.append({**row, **more, "target": str(5 * is_good + number % 3 // 2)})
        elif kind == "highlights":
            text = f"The film was good. It is the plot {number % 97}. It was dull."
            rows.append({"text": text, "target": f"it is the plot {number % 97}"})
        else:
            rows.append(row)
    return rows


def recipe_for(case: str, checkpoint: Path, folder: Path) -> Recipe:
    task, method = CASES[case]
    data = write_jsonl(folder / f"{case}.jsonl", rows_for(task["kind"]))
    recipe = tiny_recipe(checkpoint, data, task, method=method, name=case)
    return recipe.override("training.epochs=2", "training.lr=3e-3")


def export(run: Any, to: Path, **options: Any) -> dict[str, Any]:
    from tl_nlp.exporting import export

    return export(run, to, **options)


@pytest.fixture(scope="module")
def run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of a classification that answers right."""
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_for("checkpoint", tiny_bert, folder).override("training.epochs=12", "data.test_share=0.4")
    return train(recipe, root=folder)


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("export") / "float32"
    export(run, to)
    return to


def numbers(prediction: Any) -> list[float]:
    if isinstance(prediction, Label | Labels):
        return list(prediction.probabilities.values())
    return list(prediction.scores.values()) if isinstance(prediction, Scores) else prediction.sentences


QUICK = ("mean", "apart", "select")  # the others share their parts


@pytest.mark.parametrize("case", [pytest.param(one, marks=[pytest.mark.slow] * (one not in QUICK)) for one in CASES])
def test_an_export_answers_as_its_run(case: str, tiny_bert: Path, tmp_path: Path) -> None:
    run = train(recipe_for(case, tiny_bert, tmp_path))
    found = export(run, tmp_path / "export")
    assert found["agreement"] == 1
    assert found["max_difference"]["relative"] < 1e-4
    before, after = Predictor.load(run, "float32"), Predictor.load(tmp_path / "export")
    assert isinstance(after.model, Exported)
    assert (tmp_path / "export" / DOCUMENT).exists() == (case in ("attention", "transformer", "surface", "apart"))
    pairs, columns = None, {}
    if CASES[case][0]["kind"] == "grading":
        pairs, columns = (
            ["was it ? " * 10, "is it good ? it is fine .", "more : story", "good"],
            {"group": list("abac")},
        )
    for one, other in zip(before(TEXTS, pairs, **columns), after(TEXTS, pairs, **columns), strict=True):
        assert numbers(other) == pytest.approx(numbers(one), abs=1e-4)
    alone = [after([text], pairs and [pair], **{name: [value] for name, value in zip(columns, group, strict=True)})[0]
             for text, pair, *group in zip(TEXTS, pairs or TEXTS, *columns.values(), strict=True)]  # fmt: skip
    for one, other in zip(alone, after(TEXTS, pairs, **columns), strict=True):
        assert numbers(other) == pytest.approx(numbers(one), abs=1e-4)
    for one, other in zip(side_by_side(after, TEXTS, pairs, **columns), alone, strict=True):
        assert numbers(other) == pytest.approx(numbers(one), abs=1e-4)


def side_by_side(predictor: Predictor, texts: list[str], pairs: Any = None, **columns: list[Any]) -> list[Any]:
    """What an export answers in passes of one text each, which go beside one another on two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        patch.setattr(Exported, "many", 1)
        patch.setattr(Exported, "pass_budget", PassBudget(1))
        answers = predictor(texts, pairs, **columns)
    assert "_on_one_core" in vars(predictor.model)  # made when first so many passes are asked for
    return answers


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_many_passes_go_beside_one_another(
    run: Run, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "openvino":
        pytest.importorskip("openvino")
    export(run, tmp_path / "export", format=format)
    texts = [" ".join(["good", "dull", "story"][n % 3] for n in range(1 + number % 14)) for number in range(1500)]
    plain = Predictor.load(tmp_path / "export")(texts)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    after = Predictor.load(tmp_path / "export")
    few, many = after(texts[:20]), after(texts)
    assert "_on_one_core" in vars(after.model)
    assert [numbers(one) for one in many] == [pytest.approx(numbers(one), abs=1e-6) for one in plain]
    assert [numbers(one) for one in few] == [pytest.approx(numbers(one), abs=1e-6) for one in plain[:20]]

    loaded = Predictor.load(tmp_path / "export")
    shutil.copy(tmp_path / "export" / MODEL, tmp_path / "again")
    (tmp_path / "again").replace(tmp_path / "export" / MODEL)
    with pytest.raises(RunError, match="has changed since it was loaded"):
        loaded(texts)
    assert loaded(texts[:20]) == few


TINY = {"vocab_size": 200, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 2},
    "albert": {"num_hidden_layers": 2, "embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "modernbert": {"num_hidden_layers": 2, "classifier_pooling": "cls", "pad_token_id": 0, "cls_token_id": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_head_does_not_read_is_not_computed(family: str, tmp_path: Path) -> None:
    import onnx_ir
    from onnxruntime import InferenceSession

    from tl_nlp.graphs import quietly, write_model

    config = AutoConfig.for_model(family, **TINY, **FAMILIES[family])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids, mask = torch.randint(5, 200, (5, 17)), torch.ones((5, 17), dtype=torch.long)
    mask[1, 9:], mask[3, 3:] = 0, 0
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits.numpy()
    with quietly():
        write_model(model, lambda texts: {"input_ids": texts, "attention_mask": texts}, None, tmp_path / MODEL)
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    assert InferenceSession(tmp_path / MODEL).run(["logits"], inputs)[0] == pytest.approx(plain, abs=1e-6)

    graph = onnx_ir.load(tmp_path / MODEL).graph
    products = [node.outputs[0].shape for node in graph if node.op_type == "MatMul"]
    n_tokens = [shape[1] for shape in products if len(shape) == 3]
    of_one = {"modernbert": 1}.get(family, 4)  # the product of queries and those after attention, of the last block
    assert n_tokens.count(1) == of_one and 1 not in n_tokens[:-6]


def writer_recipe(checkpoint: Path, folder: Path, *choices: str) -> Recipe:
    rows = [{**row, "target": " ".join(row["text"].split()[:5])} for row in review_rows(120)]
    task = {"kind": "summarization", "max_length": 32, "max_new_tokens": 8}
    recipe = tiny_recipe(checkpoint, write_jsonl(folder / "written.jsonl", rows), task, name="writer")
    return recipe.override("training.epochs=8", "training.lr=3e-3", "training.batch_size=8", *choices)


def louder(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with larger weights, so that what it writes depends on what it reads."""
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 5 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def signal_after_two(export: Path) -> None:
    """Of models in OpenVINO that have come and gone: with a core for each, it ended the process."""
    code = (
        "import gc, signal, sys; from tl_nlp import Predictor\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # who began the tests may have it ignored
        "first, second = (Predictor.load(sys.argv[1]) for _ in range(2))\n"
        "del first; gc.collect(); del second; gc.collect()\n"
        "try: signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt: print('as ever')"
    )
    done = subprocess.run([sys.executable, "-c", code, export], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "as ever\n"), done.stderr


WRITERS = {
    "t5": ("tiny_t5", []),
    "bart, beams": (
        "tiny_bart",
        ["task.beams=3", "task.no_repeat_ngrams=2", "task.min_new_tokens=3", "task.length_penalty=0.7"],
    ),
    "begun here, beams": ("tiny_bert", ["checkpoint.warm_start=true", "task.beams=2", "task.length_penalty=2"]),
    "drawn": ("tiny_t5", ["task.candidates=4", "task.temperature=0.8"]),
    "lora, in chunks": ("tiny_t5", ["method=lora", "training.lr=1e-2", "task.long_texts=chunks"]),
}


@pytest.mark.parametrize(
    "case", [pytest.param(one, marks=[pytest.mark.slow] * ("beams" not in one)) for one in WRITERS]
)
def test_an_export_writes_as_its_run(case: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name, choices = WRITERS[case]
    checkpoint = request.getfixturevalue(name)
    if name == "tiny_bart":  # which learns little of few rows, and writes the same for all
        checkpoint = louder(checkpoint, tmp_path / "louder")
    run = train(writer_recipe(checkpoint, tmp_path, *choices))
    found = export(run, tmp_path / "export")
    assert found["agreement"] == 1
    assert found["max_difference"]["of"] == "log-probability of a token"
    assert 0 < found["max_difference"]["value"] < 1e-3
    before, after = Predictor.load(run, "float32"), Predictor.load(tmp_path / "export")
    texts = [*TEXTS, *(row["text"] for row in review_rows(40))]
    told = [one.text for one in after(texts)]
    assert told == [one.text for one in before(texts)]
    assert len(set(told)) > 3
    assert told == [after([text])[0].text for text in texts]
    if "bart" in case:
        pytest.importorskip("openvino")
        export(run, tmp_path / "openvino", format="openvino")
        assert [one.text for one in Predictor.load(tmp_path / "openvino")(texts)] == told
        signal_after_two(tmp_path / "openvino")
    if "begun" in case:
        table = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
        alone = answers_of(sys.executable, tmp_path / "export", table, ABSENT)
        assert [one["text"] for one in alone] == [one.text for one in before(TEXTS)] * 2
        small = export(run, tmp_path / "int8", quantize="int8", tolerance=0.9)
        assert small["bytes"]["after"] < found["bytes"]["after"] / 2
        assert Predictor.load(tmp_path / "int8")(["the film"])[0].text


def test_the_certificate_tells_what_was_measured(run: Run, tmp_path: Path, command: Any) -> None:
    to = tmp_path / "int8"
    answer: Answer = command("export", run.folder, "--to", to, "--quantize", "int8", "--tolerance", "0.02")
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[-1] == str(to)
    assert answer.out.splitlines()[0].startswith("accuracy ")
    found = json.loads((to / CERTIFICATE).read_text())
    assert {path.name for path in to.iterdir()} == {MODEL, TOKENIZER, "recipe.json", CERTIFICATE, "README.md"}
    assert found["rows"] == 48 and found["split"] == "test" and found["quantized"] == "int8"
    metric = found["metric"]
    assert metric["name"] == "accuracy"
    reported = run.results()["splits"]["test"]["metrics"]["accuracy"]["value"]
    assert metric["before"] == pytest.approx(reported) and reported > 0.9
    assert metric["difference"]["value"] == pytest.approx(metric["after"] - metric["before"])
    assert metric["difference"]["low"] <= metric["difference"]["value"] <= metric["difference"]["high"]
    assert metric["after"] == evaluate(to)["metrics"]["accuracy"]["value"]
    assert 0.96 <= found["agreement"] <= 1 and 0 < found["max_difference"]["value"] < 0.5
    assert found["bytes"]["after"] == (to / MODEL).stat().st_size < found["bytes"]["before"]
    assert min(found["latency_ms"].values()) > 0
    assert found["files"] == {name: described(to / name) for name in found["files"]}
    assert found["versions"]["onnxruntime"]
    assert "of the answers are the same" in (to / "README.md").read_text()
    assert compare([run.folder, to])["differences"][0]["verdict"] == "undecided"


def test_what_loses_more_than_the_tolerance_is_not_written(run: Run, tmp_path: Path) -> None:
    """One state so great that eight bits for all of them leave nothing of the others, and that nothing reads."""
    (file,) = run.model_dir.glob("*.safetensors")
    kept = file.read_bytes()
    tensors = load_file(file)
    tensors["bert.encoder.layer.1.output.LayerNorm.weight"][0] = 1e5
    tensors["bert.pooler.dense.weight"][:, 0] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    try:
        to = tmp_path / "export"
        with pytest.raises(RunError, match=r"loses more than the tolerance of 0\.01.*accuracy is .* of the answers"):
            export(run, to, quantize="int8")
        assert not to.exists() and not list(tmp_path.iterdir())
        assert export(run, to)["agreement"] == 1
    finally:
        file.write_bytes(kept)


def with_outliers(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with one state great in front of its feed-forward layers, as in many of those pretrained, which
    they hardly read and take away again."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("attention.output.LayerNorm.bias")]:
        block = name.removesuffix("attention.output.LayerNorm.bias")
        tensors[name][0] += 200
        for layer in ("intermediate", "output"):  # drawn so small that they would hardly count
            tensors[f"{block}{layer}.dense.weight"] *= 20
        tensors[f"{block}intermediate.dense.weight"][:, 0] *= 0.01
        tensors[f"{block}intermediate.dense.bias"] -= 200 * tensors[f"{block}intermediate.dense.weight"][:, 0]
        tensors[f"{block}output.dense.bias"][0] -= 200
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_outliers_leave_room_for_the_rest_in_int8(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(recipe_for("regress", with_outliers(tiny_bert, tmp_path / "checkpoint"), tmp_path))
    gaps = []
    for rare in (2.0, float("inf")):
        monkeypatch.setattr("tl_nlp.smoothing._RARE", rare)
        found = export(run, tmp_path / f"{rare}", quantize="int8", tolerance=0.9)
        gaps.append(found["max_difference"]["value"])
    assert gaps[0] < gaps[1] / 2


def test_smoothing_changes_no_answer_and_few_channels(tiny_bert: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(with_outliers(tiny_bert, tmp_path / "checkpoint")).eval()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    linear = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    ids = torch.arange(5, 37).reshape(2, 16)
    with torch.no_grad():
        answer = model(ids).last_hidden_state
        smooth(model, lambda: model(ids))
        torch.testing.assert_close(model(ids).last_hidden_state, answer, rtol=1e-4, atol=1e-4)
    for name, weight in model.named_parameters():
        changed = (weight / before[name]).nan_to_num(1.0) != 1
        if "intermediate.dense.weight" in name:
            assert changed[:, 0].all()
        assert not changed.any() or (name in linear and "pooler" not in name), name
        if name in linear:
            assert changed.any(0).sum() <= 0.1 * weight.shape[1] + 1, name


def test_states_are_rounded_once_for_all_that_read_them(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries, keys and values, smoothed or not."""
    import onnx

    checkpoint = shutil.copytree(tiny_bert, tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] += 20
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    run = train(recipe_for("regress", checkpoint, tmp_path))
    counts = []
    for rare in (2.0, float("inf")):
        monkeypatch.setattr("tl_nlp.smoothing._RARE", rare)
        export(run, tmp_path / f"{rare}", quantize="int8", tolerance=0.9)
        counts.append(Counter(node.op_type for node in onnx.load(tmp_path / f"{rare}" / "model.onnx").graph.node))
    smoothed, plain = counts
    assert smoothed["DynamicQuantizeLinear"] == plain["DynamicQuantizeLinear"]
    assert smoothed["Mul"] > plain["Mul"]


def test_what_cannot_be_exported_is_told(run: Run, exported: Path, tiny_t5: Path, tmp_path: Path, command: Any) -> None:
    with pytest.raises(RunError, match="is an export already"):
        export(exported, tmp_path / "again")
    with pytest.raises(RunError, match="is there already"):
        export(run, exported)
    with pytest.raises(RecipeError, match=r"2 is no share"):
        export(run, tmp_path / "export", tolerance=2)
    writer = train(writer_recipe(tiny_t5, tmp_path))
    settings = json.loads((writer.artifact / "generation_config.json").read_text())
    (writer.artifact / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 2.0}))
    answer: Answer = command("export", writer.folder, "--to", tmp_path / "export")
    assert answer.status == 1 and "generation_config has repetition_penalty=2.0, which an export cannot" in answer.err
    with pytest.raises(RunError, match="an export gives answers and has no"):
        explain(Predictor.load(exported), "the film was lovely")
    answer = command("push", exported, "alice/film", "--dry-run")
    assert answer.status == 1 and "push the run that it was made from" in answer.err


def test_files_that_the_certificate_is_not_for_are_refused(exported: Path, tmp_path: Path) -> None:
    import onnx
    import onnx.external_data_helper

    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-100])
    with pytest.raises(RunError, match=r"model\.onnx is not the file that its certificate is for"):
        Predictor.load(folder)

    certificate = json.loads((exported / CERTIFICATE).read_text())

    def certify(name: str) -> None:
        certificate["files"][name] = described(folder / name)
        (folder / CERTIFICATE).write_text(json.dumps(certificate))

    certify(MODEL)
    with pytest.raises(RunError, match=r"model\.onnx cannot be read"):
        Predictor.load(folder)
    model = onnx.load(exported / MODEL)
    onnx.external_data_helper.convert_model_to_external_data(model, location="../weights", size_threshold=0)
    (folder / MODEL).write_bytes(model.SerializeToString())
    certify(MODEL)
    with pytest.raises(RunError, match="reads weights from another file"):
        Predictor.load(folder)
    (folder / MODEL).write_bytes((exported / MODEL).read_bytes())
    (folder / TOKENIZER).write_text("{}")
    certify(MODEL)
    certify(TOKENIZER)
    with pytest.raises(RunError, match="cannot be read as a tokenizer"):
        Predictor.load(folder)
    (folder / CERTIFICATE).write_text("{}")
    with pytest.raises(RunError, match="does not tell which files"):
        Predictor.load(folder)


def test_tokens_are_those_of_transformers(tiny_bert: Path) -> None:
    long = "Straße — naïve café ☃ 東京 e\u0301 " * 60
    texts = [*TEXTS, long, "[SEP] a [MASK] b", "\u200b\ufeff tab\tnew\nline"]
    pairs = ["is it good ?", "", long, "x", "a " * 9, "é", "[CLS]"]
    for folder in (tiny_bert, find(MINILM)):
        theirs = load_tokenizer(folder)
        from tokenizers import Tokenizer

        ours = FastTokenizer(Tokenizer.from_str(as_json(theirs)), has_types=True)
        assert ours.pad_token_id == theirs.pad_token_id
        for options in (
            {"truncation": True, "max_length": 16, "return_overflowing_tokens": True, "return_attention_mask": False},
            {"truncation": True, "max_length": 16, "return_overflowing_tokens": True, "return_offsets_mapping": True},
            {"add_special_tokens": False, "return_offsets_mapping": True},
            {"add_special_tokens": False},
        ):
            assert dict(ours(texts, **options)) == dict(theirs(texts, **options)), options
        options = {"truncation": "only_second", "max_length": 24, "return_offsets_mapping": True}
        for more in ({}, {"return_overflowing_tokens": True}):
            one, other = ours(pairs[3:], texts[3:], **options, **more), theirs(pairs[3:], texts[3:], **options, **more)
            assert dict(one) == dict(other)
            for place in range(len(one["input_ids"])):
                assert one.sequence_ids(place) == other.sequence_ids(place)


def test_the_twins_of_numpy_pool_and_answer_as_the_heads_do(draw: np.random.Generator) -> None:
    from tl_nlp.onnx import _answers
    from tl_nlp.tasks.classification import Classification
    from tl_nlp.tasks.grading import Grading
    from tl_nlp.tasks.multilabel import Multilabel as Tags

    values, rows = draw.normal(size=(7, 4)).astype(np.float32) * 50, np.array([0, 0, 1, 2, 2, 2, 4])
    weights = draw.integers(1, 9, 7)
    one = pool_of_numpy(values, rows, weights, 5)
    other = pool(torch.tensor(values), torch.tensor(rows), torch.tensor(weights), 5)
    assert one == pytest.approx(other.numpy(), abs=1e-4)

    class Given(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
            return type("Output", (), {"logits": torch.tensor(values)})

    batch = {
        "input_ids": torch.ones(7, 3, dtype=torch.long), "attention_mask": torch.ones(7, 3, dtype=torch.long),
        "rows": torch.tensor([0, 0, 1, 2, 2, 2, 3]), "lengths": torch.tensor(weights), "n_rows": 4,
    }  # fmt: skip
    logits = pool_of_numpy(values, batch["rows"].numpy(), weights, 4)
    for task, head in (
        (Classification(labels=tuple("abcd")), Classify()),
        (Tags(labels=tuple("abcd")), Multilabel()),
        (Grading(loss="ordinal", levels=3, low=0, high=2, traits=("x", "y")), Ordinal(n_levels=3)),
    ):
        assert _answers(task, logits) == pytest.approx(np.asarray(head.infer(Given(), batch)), abs=1e-5)

    values = draw.normal(size=(3, 5, 1)).astype(np.float32)
    sentences = np.array([[-1, 0, 0, 2, -1], [2, 2, 3, -1, -1], [-1, 0, 1, 1, -1]])
    batch = {"input_ids": torch.ones(3, 5), "rows": torch.tensor([0, 0, 1]), "n_rows": 2}
    batch["sentence_ids"] = torch.tensor(sentences)
    one = by_sentence(values[..., 0], sentences, np.array([0, 0, 1]), 2)
    assert one == pytest.approx(np.asarray(Select().infer(Given(), batch)), abs=1e-5)
    assert one[0, 1] == -np.inf


def without(names: tuple[str, ...]) -> str:
    """Lines of Python after which packages are not there, as far as the code behind them can tell."""
    return (
        "import sys\nfrom importlib.machinery import PathFinder\nfind = PathFinder.find_spec\n"
        f"PathFinder.find_spec = lambda name, *more: None if name in {names} else find(name, *more)\n"
    )


def answers_of(python: str, folder: Path, table: Path, blocked: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the command line of a fresh process answers, from texts and from a table, where some packages are not."""
    code = f"{without(blocked)}from tl_nlp.cli import main\nmain('predict')\n"
    found: list[dict[str, Any]] = []
    for words in ([str(folder), *TEXTS], [str(folder), "--input", str(table)]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [python, "-W", "error", "-c", code, *words], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        found += map(json.loads, done.stdout.splitlines())
    return found


def probabilities_here(exported: Path, table: Path) -> list[Any]:
    """What this process answers to the same, to be compared with."""
    from tl_nlp.tables import read_table

    predictor = Predictor.load(exported)
    expected = [one.probabilities for one in predictor(TEXTS)]
    expected += [one["probabilities"] for one in predictor.predict_table(read_table(table))]
    return [pytest.approx(one, abs=1e-6) for one in expected]


def test_an_export_answers_where_torch_is_not(exported: Path, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    answers = answers_of(sys.executable, exported, table, ABSENT)
    assert [one["probabilities"] for one in answers] == probabilities_here(exported, table)


def test_the_page_serves_an_export_where_torch_is_not(exported: Path) -> None:
    pytest.importorskip("gradio")
    code = (
        f"{without(ABSENT)}"
        "from pathlib import Path\n"
        "from tl_nlp.demo.guard import Rules\n"
        "from tl_nlp.demo.server import create_app\n"
        "from tl_nlp.serving import Row, Service\n"
        "service = Service([Path(sys.argv[1])])\n"
        "create_app(service, Rules())\n"
        "print(service.predict(None, Row('the film was lovely')).label, service.megabytes > 0)\n"
        "service.worker.close()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [Predictor.load(exported)(["the film was lovely"])[0].label, "True"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_extra_serve_is_all_that_an_export_needs(exported: Path, tmp_path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *extras["serve"]], check=True)
    for name in ("torch", "transformers", "accelerate"):
        done = subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False)
        assert done.returncode == 1, f"{name} comes with the extra serve"
    table = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    answers = answers_of(python, exported, table, ())
    assert [one["probabilities"] for one in answers] == probabilities_here(exported, table)
