"""Models that write: T5, BART, and one begun from an encoder; each learns to copy the start of its text."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FILLER, artifact, tiny_recipe, write_jsonl
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    ByT5Tokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
)

from tl_nlp import Predictor, Recipe, Run, generation, train
from tl_nlp.batches import Columns
from tl_nlp.errors import CheckpointError, RecipeError
from tl_nlp.generation import most_alike
from tl_nlp.heads import head_of
from tl_nlp.tasks.summarization import Summarization
from tl_nlp.types import IGNORED

N_COPIED = 2  # words
EPOCHS = {"t5": 12, "bart": 5, "warm": 2}
MARKS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 0}
LIKE_T5 = {"d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
LIKE_BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "forced_eos_token_id": 1,
}  # fmt: skip
LIKE_GEMMA = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 128, "sliding_window": 16, "vocab_size": 200, **MARKS,
}  # fmt: skip
WRITERS = {
    "led": {**LIKE_BART, "attention_window": [8, 8]},
    "marian": LIKE_BART,
    "mt5": LIKE_T5,
    "pegasus": LIKE_BART,
    "t5gemma": {"encoder": LIKE_GEMMA, "decoder": LIKE_GEMMA},
    "umt5": LIKE_T5,
}


@pytest.fixture(scope="module")
def leads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of filler, and as their summaries their first words."""
    draw = random.Random(0)
    words = sorted(set(FILLER))
    rows = []
    for _ in range(1500):
        text = [*draw.sample(words, N_COPIED), *draw.choices(words, k=draw.randint(1, 5))]
        rows.append({"text": " ".join(text), "target": " ".join(text[:N_COPIED])})
    return write_jsonl(tmp_path_factory.mktemp("leads") / "rows.jsonl", rows)


def copier(checkpoint: Path, leads: Path, **choices: object) -> Recipe:
    task = {"kind": "summarization", "max_length": 32, "max_new_tokens": 8, **choices}
    return tiny_recipe(checkpoint, leads, task).override("data.similarity=1", "data.overlap=keep")


@pytest.fixture(scope="module", params=["t5", "bart", "warm"])
def copied(request: pytest.FixtureRequest, leads: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run of each architecture."""
    name = request.param
    folder = request.getfixturevalue({"t5": "tiny_t5", "bart": "tiny_bart", "warm": "tiny_bert"}[name])
    recipe = copier(folder, leads).override(
        "training.lr=1e-3", "training.batch_size=8", f"training.epochs={EPOCHS[name]}"
    )
    if name == "warm":
        recipe = recipe.override("checkpoint.warm_start=true")
    return train(recipe, root=tmp_path_factory.mktemp("copiers"))


def test_each_learns_to_copy_and_writes_what_transformers_writes(copied: Run) -> None:
    """Sorted, padded and in batches here; by hand from the artifact, one text after another there."""
    metrics = copied.results()["splits"]["test"]["metrics"]
    assert metrics["rougeL"]["value"] > 90
    assert metrics["unfinished"]["value"] < 0.05
    assert metrics["coverage"]["value"] > 0.9
    predictor = Predictor.load(copied)
    texts = copied.recipe().data.load()["test"]["text"][:40]
    model = AutoModelForSeq2SeqLM.from_pretrained(copied.artifact, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(copied.artifact)
    for beams in (1, 3):
        task = predictor.task.model_copy(update={"beams": beams})
        ours = [p.text for p in Predictor(predictor.model, predictor.tokenizer, task, "float32")(texts)]
        theirs = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            written = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=beams)
            theirs.append(tokenizer.decode(written[0], skip_special_tokens=True))
        assert ours == theirs


SEARCHES = [
    {"max_new_tokens": 20},
    {"max_new_tokens": 20, "min_new_tokens": 6, "no_repeat_ngrams": 2},
    {"max_new_tokens": 20, "beams": 4},
    {"max_new_tokens": 20, "beams": 3, "length_penalty": 2.0, "min_new_tokens": 4, "no_repeat_ngrams": 3},
    {"max_new_tokens": 12, "beams": 5, "length_penalty": -1.0},
]


@pytest.mark.parametrize("searched", SEARCHES, ids=str)
@pytest.mark.parametrize("marks", [{}, {"early_stopping": True, "forced_bos_token_id": 7, "forced_eos_token_id": 1}])
def test_many_searched_at_once_are_as_each_by_transformers(
    searched: dict[str, Any], marks: dict[str, Any], tiny_t5: Path
) -> None:
    """Of a model that ends its texts anywhere, so that most of a batch is done before the last."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        AutoConfig.for_model("t5", vocab_size=200, **MARKS, **LIKE_T5, tie_word_embeddings=False)
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
        model.lm_head.weight[1] *= 2.5
    model.set_attn_implementation("eager")
    model.generation_config.update(**marks)
    tokenizer, task = AutoTokenizer.from_pretrained(tiny_t5), Summarization(max_length=32, **searched)
    head_of(task).install(model)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(FILLER, k=draw.randint(1, 20))) for _ in range(60)]
    ours = [one.text for one in Predictor(model, tokenizer, task, "float32")(texts)]
    theirs, lengths = [], set()
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        (ids,) = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"])
        theirs.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
        lengths.add(len(ids))
    assert ours == theirs
    assert len(lengths) > 4


def test_what_a_checkpoint_asks_beyond_a_recipe_is_done(tiny_t5: Path, leads: Path, tmp_path: Path) -> None:
    """By transformers, a text after another as all at once; what draws does not know it."""
    folder = shutil.copytree(tiny_t5, tmp_path / "t5")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps({**settings, "bad_words_ids": [[n] for n in range(5, 90)]})
    )
    recipe = copier(folder, leads, min_new_tokens=4).override("data.rows=60")
    predictor = Predictor.load(train(recipe))
    texts = [" ".join(FILLER[at : at + 6]) for at in range(8)]
    written = predictor.infer(Columns(predictor.task.encode({"text": texts}, predictor.tokenizer)))
    assert not any(np.isin(ids, range(5, 90)).any() for ids in written)
    with pytest.raises(RecipeError, match=r"task\.candidates: .*bad_words_ids"):
        train(recipe.override("task.candidates=4"))


def test_settings_are_kept_in_the_artifact(tiny_t5: Path, leads: Path) -> None:
    chosen = {"beams": 2, "length_penalty": 0.5, "no_repeat_ngrams": 2, "min_new_tokens": 2}
    run = train(copier(tiny_t5, leads, **chosen).override("data.rows=40"))
    kept = AutoModelForSeq2SeqLM.from_pretrained(run.artifact).generation_config
    assert (kept.num_beams, kept.length_penalty, kept.no_repeat_ngram_size) == (2, 0.5, 2)
    assert (kept.max_new_tokens, kept.min_new_tokens) == (8, 2)


def test_settings_change_what_is_written(tiny_t5: Path, leads: Path) -> None:
    predictor = Predictor.load(train(copier(tiny_t5, leads).override("data.rows=200", "training.epochs=3")))
    texts = [" ".join(FILLER[at : at + 6]) for at in range(len(FILLER) - 6)]

    def written(**choices: object) -> list[str]:
        task = predictor.task.model_copy(update={"max_new_tokens": 12, "min_new_tokens": 10, **choices})
        ours = Predictor(predictor.model, predictor.tokenizer, task, "float32")
        return [prediction.text for prediction in ours(texts)]

    def repeats(text: str) -> bool:
        return len(set(text.split())) < len(text.split())

    assert any(map(repeats, written()))
    assert not any(map(repeats, written(no_repeat_ngrams=1)))
    short, long = (written(beams=4, min_new_tokens=0, length_penalty=penalty) for penalty in (-5.0, 5.0))
    assert sum(map(len, short)) < sum(map(len, long))
    with pytest.raises(RecipeError, match="beams"):
        tiny_recipe(Path(), Path("x.csv"), {"kind": "summarization", "length_penalty": 2.0})


def test_of_many_drawn_texts_the_one_that_others_agree_with_is_kept(
    tiny_t5: Path, leads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(train(copier(tiny_t5, leads).override("data.rows=200", "training.epochs=3")))
    model, tokenizer = predictor.model, predictor.tokenizer
    texts = [" ".join(FILLER[at : at + 3 + at % 4]) for at in range(len(FILLER) - 6)]

    def writer(**choices: object) -> Predictor:
        return Predictor(model, tokenizer, predictor.task.model_copy(update=choices), "float32")

    greedy = [one.text for one in writer()(texts)]
    together = [one.text for one in writer(candidates=6)(texts)]
    assert [one.text for text in texts for one in writer(candidates=6)([text])] == together
    assert [one.text for one in writer(candidates=2, temperature=1e-4)(texts)] == greedy
    assert together != greedy
    drawn: list[np.ndarray] = []

    def noted(made: np.ndarray, special: list[int]) -> np.ndarray:
        drawn.append(made[0])
        return most_alike(made, special)

    monkeypatch.setattr(generation, "most_alike", noted)
    for temperature in (1.0, 3.0):
        writer(candidates=64, temperature=temperature)(texts[:1])
    cold, warm = (len(np.unique(made, axis=0)) for made in drawn)
    assert 1 < cold < warm <= 64
    for field, value in (("beams", 2), ("candidates", 1)):
        choices = {"candidates": 4, "temperature": 0.5, field: value}
        with pytest.raises(RecipeError, match=r"task\.(candidates|temperature)"):
            tiny_recipe(Path(), Path("x.csv"), {"kind": "summarization", **choices})


def test_the_text_that_is_most_like_the_others() -> None:
    drawn = np.array([[[0, 5, 6, 7, 1], [0, 5, 6, 1, 0], [0, 9, 9, 1, 0], [0, 5, 8, 7, 1]]])
    assert most_alike(drawn, special=[0, 1]).tolist() == [[0, 5, 6, 7, 1]]
    assert most_alike(drawn[:, 1:3], special=[0, 1]).tolist() == [[0, 5, 6, 1, 0]]


def test_many_unfinished_texts_are_told(tiny_t5: Path, leads: Path) -> None:
    """An untrained model goes on and on; texts that end in time get no such sentence."""
    run = train(copier(tiny_t5, leads, min_new_tokens=8).override("data.rows=40"))
    said = run.results()["splits"]["test"]["caution"]
    assert said.startswith("100% of what was written would have gone on at task.max_new_tokens=8")
    assert said in run.report_file.read_text()
    assert Summarization().caution({"unfinished": 0.03}) is None


def test_an_adapter_writes_the_same_from_disk(tiny_t5: Path, leads: Path) -> None:
    recipe = copier(tiny_t5, leads).override("method=lora", "training.lr=1e-2", "data.rows=200", "training.epochs=2")
    run = train(recipe)
    texts = run.recipe().data.load()["test"]["text"][:20]
    once, again = (Predictor.load(run)(texts) for _ in range(2))
    assert once == again
    assert GenerationConfig.from_pretrained(run.artifact).max_new_tokens == 8
    saved = [row["prediction"] for row in predictions_of(run)][:20]
    assert [prediction.text for prediction in once] == saved


@pytest.mark.parametrize("family", WRITERS)
def test_other_families_write_what_transformers_writes(family: str, tiny_t5: Path, leads: Path, tmp_path: Path) -> None:
    """With a LoRA in every attention, in batches here and one text after another there."""
    from peft import PeftModel

    folder = tmp_path / family
    shutil.copytree(tiny_t5, folder)
    (folder / "generation_config.json").unlink()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=200, **MARKS, **WRITERS[family])
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    recipe = copier(folder, leads, prefix="summarize : ", min_new_tokens=4).override("method=lora", "data.rows=200")
    run = train(recipe.override("training.lr=1e-2", "training.epochs=2"))
    n_attentions = 2 + 2 * 2  # of two blocks that read and two that write, with two each
    assert len({name.rpartition(".lora_")[0] for name in artifact(run)}) == 2 * n_attentions
    texts = run.recipe().data.load()["test"]["text"][:10]
    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(folder), run.artifact).eval()
    settings = GenerationConfig.from_pretrained(run.artifact)
    tokenizer = AutoTokenizer.from_pretrained(run.artifact)
    predictor = Predictor.load(run)
    for beams in (1, 3):
        theirs = []
        for text in texts:
            ids = tokenizer(f"summarize : {text}", return_tensors="pt").input_ids
            asked = {"attention_mask": torch.ones_like(ids), "generation_config": settings, "num_beams": beams}
            theirs.append(tokenizer.decode(model.generate(input_ids=ids, **asked)[0], skip_special_tokens=True))
        task = predictor.task.model_copy(update={"beams": beams})
        ours = Predictor(predictor.model, predictor.tokenizer, task, "float32")(texts)
        assert [prediction.text for prediction in ours] == theirs
        assert any(theirs)


def test_a_model_of_bytes_writes(tmp_path: Path, leads: Path) -> None:
    """ByT5, whose tokenizer has no vocabulary and does not tell where its tokens stand."""
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    config = AutoConfig.for_model("t5", vocab_size=384, **{**MARKS, "pad_token_id": 0}, **LIKE_T5)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "byt5")
    recipe = copier(tmp_path / "byt5", leads, min_new_tokens=4).override("data.rows=40")
    run = train(recipe)
    assert len(Predictor.load(run)(["the film", "a good plot of some actors, " * 20])) == 2
    encoded = run.recipe().task.encode({"id": ["r0"], "text": ["a fjord: få" * 4]}, ByT5Tokenizer())
    assert ByT5Tokenizer().decode(encoded["input_ids"][0][0]) == ("a fjord: få" * 4)[:29] + "</s>"
    assert encoded["cut"] == [4 * 12 - 31]
    with pytest.raises(CheckpointError, match="ByT5Tokenizer does not tell where its tokens stand"):
        train(recipe.override("task=classification"))


def predictions_of(run: Run) -> list[dict[str, object]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(run.predictions_file("test")).to_pylist()


def test_validation_while_training_is_bounded(tiny_t5: Path, leads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    infer = Predictor.infer

    def counted(predictor: Predictor, encoded: object, bar: object = None) -> list[np.ndarray]:
        seen.append((len(encoded), predictor.task.beams))  # type: ignore[arg-type]
        return infer(predictor, encoded, bar)

    monkeypatch.setattr(Predictor, "infer", counted)
    train(copier(tiny_t5, leads, beams=2, validation_rows=7).override("data.rows=200"))
    *probed, evaluated, answered = seen
    assert (evaluated, answered) == ((7, 1), (200, 2)) and all(n_rows <= 7 for n_rows, _ in probed)


def test_a_reader_begins_a_writer(tiny_bert: Path, leads: Path) -> None:
    """Encoder and decoder start from its weights; what looks at the encoder does not."""
    from safetensors.torch import load_file

    from tl_nlp.model import load_model

    model = load_model(copier(tiny_bert, leads).override("checkpoint.warm_start=true"), tiny_bert)
    theirs = load_file(tiny_bert / "model.safetensors")
    names = dict(model.named_parameters())
    for name, weight in theirs.items():
        assert torch.equal(names[f"encoder.{name}"], weight)
        if not name.startswith("pooler."):
            assert torch.equal(names[f"decoder.bert.{name}"], weight)
    block = "decoder.bert.encoder.layer.0."
    across, own = (names[f"{block}{kind}.self.query.weight"] for kind in ("crossattention", "attention"))
    assert not torch.equal(across, own)


def test_encoder_and_decoder_learn_one_set_of_blocks(tiny_bert: Path, leads: Path, tmp_path: Path) -> None:
    """Which is saved once for each, so that transformers alone opens it and writes the same."""
    from transformers import AutoModelForSeq2SeqLM

    recipe = copier(tiny_bert, leads).override(
        "checkpoint.warm_start=true", "training.epochs=1", "data.rows=64", "training.lr=1e-3"
    )
    for is_shared in (True, False):
        run = train(recipe.override(f"checkpoint.share_blocks={str(is_shared).lower()}"), root=tmp_path)
        model = AutoModelForSeq2SeqLM.from_pretrained(run.artifact)
        block, twin = model.encoder.encoder.layer[1], model.decoder.bert.encoder.layer[1]
        for name, weight in block.named_parameters():
            other = twin.get_parameter(name)
            assert other is not weight
            assert torch.equal(other, weight) == is_shared, name


def test_what_is_new_in_a_writer_begun_here_is_its_head(tiny_bert: Path, leads: Path) -> None:
    recipe = copier(tiny_bert, leads).override(
        "checkpoint.warm_start=true", "method.head_epochs=1", "training.epochs=1.3", "training.lr=1e-9", "data.rows=64"
    )
    kept = artifact(train(recipe.override("training.first_lr=1e-2")))
    before = artifact(train(recipe.override("training.first_lr=1e-9")))
    moved = {name for name in kept if not torch.allclose(kept[name], before[name], atol=1e-6)}
    assert {"crossattention" in name or name.startswith("decoder.cls.") for name in moved} == {True}
    held = recipe.override("method.head_epochs=0", "training.lr=1e-2", "method.embeddings=false")
    moved = {
        name for name, weight in artifact(train(held)).items() if not torch.allclose(weight, kept[name], atol=1e-4)
    }
    assert any(name.startswith("decoder.bert.embeddings.") for name in moved)
    assert not any(name.startswith("encoder.embeddings.") for name in moved)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["checkpoint.warm_start=true", "method=lora"], "must all learn"),
        (["checkpoint.share_blocks=true"], "that checkpoint.warm_start=true makes"),
        (["checkpoint.warm_start=true", "task=classification"], "tasks that write"),
        ([], "checkpoint.warm_start=true"),
        (["checkpoint={t5}", "checkpoint.warm_start=true"], "has one"),
        (["checkpoint={gpt2}"], "'gpt2' cannot do the task"),
        (["checkpoint={gpt2}", "checkpoint.warm_start=true"], "'gpt2' has no decoder to begin"),
        (["task.prefix=<summarize> "], "prefix"),
    ],
)
def test_what_cannot_write_is_refused(
    overrides: list[str], said: str, tiny_bert: Path, tiny_t5: Path, leads: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_t5, tmp_path / "gpt2")
    GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    told = [one.replace("{t5}", str(tiny_t5)).replace("{gpt2}", str(tmp_path / "gpt2")) for one in overrides]
    with pytest.raises((RecipeError, CheckpointError), match=said):
        train(copier(tiny_bert if said != "prefix" else tiny_t5, leads).override(*told))


def test_long_texts_are_read_in_chunks(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    sentences = ["The film is good .", "The plot was dull .", "It was fine .", "Some actors ."]
    rows = {
        "id": ["r0", "r1"],
        "text": [" ".join(sentences), "The film ."],
        "target": ["the plot dull . it fine .", "film"],
    }
    task = Summarization(max_length=11, long_texts="chunks", max_new_tokens=12, prefix="summarize: ")
    encoded = task.encode(rows, tokenizer)

    def words(ids: list[list[int]]) -> list[str]:
        return [tokenizer.decode([one for one in part if one != IGNORED], skip_special_tokens=True) for part in ids]

    assert words(encoded["input_ids"][0]) == [
        "summarize : the film is good .",
        "summarize : the plot was dull .",
        "summarize : it was fine . some actors .",
    ]
    assert words(encoded["labels"][0]) == ["", "the plot dull .", "it fine ."]
    assert words(encoded["input_ids"][1]) == ["summarize : the film ."]
    assert words(encoded["labels"][1]) == ["film"]
    assert encoded["cut"] == [0, 0]
    fewer = task.model_copy(update={"max_chunks": 2}).encode(rows, tokenizer)
    assert [len(fewer["input_ids"][0]), *fewer["cut"]] == [2, 7, 0]
    outputs = [np.array(_padded(encoded["labels"][0], tokenizer.pad_token_id)), np.array(encoded["labels"][1])]
    joined, short = task.decode(outputs, rows, tokenizer)
    assert (joined.text, short.text) == ("the plot dull . it fine .", "film")  # type: ignore[union-attr]


def _padded(parts: list[list[int]], pad_id: int) -> list[list[int]]:
    longest = max(map(len, parts))
    return [[pad_id if one == IGNORED else one for one in part] + [pad_id] * (longest - len(part)) for part in parts]


def test_what_chunks_say_again_is_left_out(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    task = Summarization(long_texts="chunks")
    parts = tokenizer(["the plot was dull .", "the plot was fine .", "it was good ."], padding=True)["input_ids"]
    (prediction,) = task.decode([np.array(parts)], {"id": ["r0"], "text": ["x"]}, tokenizer)
    assert prediction.text == "the plot was dull . it was good ."  # type: ignore[union-attr]


def test_long_texts_are_cut_to_their_likest_sentences(tiny_t5: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5)
    text = "Some scenes . The plot of the film was dull . More actors . The film and the plot ."
    task = Summarization(max_length=16, long_texts="extract")
    encoded = task.encode({"id": ["r0"], "text": [text]}, tokenizer)
    kept = tokenizer.decode(encoded["input_ids"][0][0], skip_special_tokens=True)
    assert kept == "the plot of the film was dull . the film and the plot ."
    assert encoded["cut"] == [6]
    assert len(encoded["input_ids"][0][0]) <= 16


@pytest.mark.parametrize("long_texts", ["cut", "chunks", "extract"])
def test_of_50000_words_something_is_written(long_texts: str, tiny_t5: Path, leads: Path) -> None:
    predictor = Predictor.load(train(copier(tiny_t5, leads).override("data.rows=40")))
    sentence = " ".join(["The", *FILLER[:8], "."])
    n_sentences = 50_000 // len(sentence.split())
    text = " ".join(f"{sentence[:-1]}{number} ." for number in range(n_sentences))
    task = predictor.task.model_copy(update={"long_texts": long_texts})
    encoded = task.encode({"id": ["r0"], "text": [text]}, predictor.tokenizer)
    assert encoded["cut"][0] > 40_000
    assert len(Predictor(predictor.model, predictor.tokenizer, task, "float32")([text])) == 1


@pytest.mark.parametrize("long_texts", ["chunks", "extract"])
def test_long_texts_are_trained_on_and_written_of(long_texts: str, tiny_t5: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        sentences = [" ".join(["The", *draw.choices(FILLER, k=6), "."]) for _ in range(draw.randint(1, 5))]
        rows.append({"text": " ".join(sentences), "target": f"{sentences[0]} {sentences[-1]}"})
    task = {"kind": "summarization", "max_length": 20, "max_new_tokens": 20, "long_texts": long_texts}
    recipe = tiny_recipe(tiny_t5, write_jsonl(tmp_path / "rows.jsonl", rows), task)
    run = train(recipe.override("data.similarity=1", "data.overlap=keep"))
    losses = [line["values"]["loss"] for line in run.history() if "loss" in line["values"]]
    assert losses
    assert np.isfinite(losses).all()
    assert run.results()["splits"]["test"]["rows"] > 0
    seen = "cut" in {finding["name"] for finding in run.data()["findings"]}
    assert seen == (long_texts == "extract")


def test_classes_may_be_words(tiny_t5: Path, tmp_path: Path) -> None:
    """Text-to-text classification: labels renamed to words, and exact_match beside ROUGE."""
    rows = [
        {"text": f"{word} film {number % 97}", "target": str(number % 2)}
        for number, word in enumerate(["good", "bad"] * 60)
    ]
    recipe = tiny_recipe(
        tiny_t5,
        write_jsonl(tmp_path / "rows.jsonl", rows),
        {"kind": "summarization", "max_length": 16, "max_new_tokens": 4},
    ).override('data.values={"0": "fine", "1": "dull"}', "data.similarity=1", "data.overlap=keep")
    metrics = train(recipe.override("training.epochs=10", "training.lr=1e-2")).results()["splits"]["test"]["metrics"]
    assert metrics["exact_match"]["value"] == 1
