"""What moved an answer: words and sentences with their effects, how far to trust them, and examples like the text."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import BAD, FILLER, GOOD, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Predictor, train
from tl_nlp.attribution import METHODS, MOST_SENTENCES, MOST_WORDS, Deletion, Part, explain, sentence_effects
from tl_nlp.errors import CheckpointError, DataError, HardwareError, RecipeError
from tl_nlp.neighbours import nearest
from tl_nlp.rows import resolved
from tl_nlp.run import read_recipe
from tl_nlp.saliency import token_spans, word_spans
from tl_nlp.tasks.summarization import Summarization
from tl_nlp.windows import text_windows

LEARNS = ("training.epochs=6", "training.lr=3e-3")
TEXT = "The film was lovely, and it is the plot with some actors."
LONG = " ".join(["it was the plot with some scenes more ."] * 6 + ["a lovely film ."] + ["and the actors is ."] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attribution")


def trained(folder: Path, checkpoint: Path, rows: list[dict[str, Any]], task: object, *choices: str) -> Predictor:
    name = f"rows-{len(list(folder.iterdir()))}.jsonl"
    recipe = tiny_recipe(checkpoint, write_jsonl(folder / name, rows), task).override(*choices)
    return Predictor.load(train(recipe, root=folder))


@pytest.fixture(scope="module")
def classifier(tiny_bert: Path, folder: Path) -> Predictor:
    """Tells good words from bad ones, in windows of 24 tokens."""
    return trained(folder, tiny_bert, review_rows(240), {"kind": "classification", "max_length": 24}, *LEARNS)


@pytest.fixture(scope="module")
def grader(tiny_bert: Path, folder: Path) -> Predictor:
    """Five points for a good word, one for a bad one, in texts of two prompts."""
    rows = [
        {**row, "target": "5" if row["target"] == "positive" else "1", "group": "pq"[number % 2], "pair": "is it ?"}
        for number, row in enumerate(review_rows(240))
    ]
    return trained(folder, tiny_bert, rows, "grading", *LEARNS, "task.pooling=mean", 'task.surface=["length"]')


@pytest.fixture(scope="module")
def writer(tiny_t5: Path, folder: Path) -> Predictor:
    """Writes four words, of which the last tells whether a good one was there."""
    last = {"positive": "good", "negative": "bad"}
    rows = [{**row, "target": f"the story is {last[row['target']]}"} for row in review_rows(240)]
    task = {"kind": "summarization", "max_length": 64, "max_new_tokens": 8, "prefix": "summarize: "}
    return trained(folder, tiny_t5, rows, task, "training.epochs=8", "training.lr=5e-3")


def effects(parts: list[Part]) -> dict[str, float]:
    return {part.text: part.effect for part in parts if part.effect is not None}


def joined(parts: list[Part]) -> str:
    return "".join(part.text for part in parts)


def log_odds(predictor: Predictor, text: str, label: str, pair: str | None = None) -> float:
    share = predictor([text], None if pair is None else [pair])[0].probabilities[label]
    return math.log(share / (1 - share))


# ---- words


@pytest.mark.parametrize("method", METHODS)
def test_the_word_that_tells_the_label_has_the_largest_effect(classifier: Predictor, method: str) -> None:
    for text, word in ((TEXT, "lovely"), (TEXT.replace("lovely", "dull"), "dull")):
        told = explain(classifier, text, method=method)
        assert told.answer == classifier([text])[0]
        assert (told.target, told.unit, told.method) == (told.answer.label, "log-odds", method)
        assert joined(told.parts) == joined(told.sentences) == text
        assert told.top(1)[0].text == word and told.top(1)[0].effect > 0
    other = explain(classifier, TEXT, method=method, target="negative")
    assert effects(other.parts)["lovely"] < 0
    assert other.deletion is None or other.deletion.fall < 0.1


def test_effects_add_up_to_the_number_less_that_of_unknown_words(classifier: Predictor) -> None:
    """Marks between words stay, so they have no effect."""
    told = explain(classifier, TEXT)
    masked = "[MASK] [MASK] [MASK] [MASK], [MASK] [MASK] [MASK] [MASK] [MASK] [MASK] [MASK] [MASK]."
    expected = log_odds(classifier, TEXT, "positive") - log_odds(classifier, masked, "positive")
    assert sum(effects(told.parts).values()) == pytest.approx(expected, abs=0.02)
    assert abs(told.lacking) < 0.02
    assert Part(", ") in told.parts


def test_an_occluded_word_is_a_masked_one(classifier: Predictor) -> None:
    told = effects(explain(classifier, TEXT, method="occlusion").parts)
    masked = log_odds(classifier, TEXT.replace("lovely", "[MASK]"), "positive")
    assert told["lovely"] == pytest.approx(log_odds(classifier, TEXT, "positive") - masked, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_all_windows_of_a_text_are_read_at_once(classifier: Predictor, method: str) -> None:
    told = explain(classifier, LONG, method=method)
    assert joined(told.parts) == LONG and told.note is None
    assert len([part for part in told.parts if part.effect is not None]) == len(word_spans(LONG))
    word = max((part for part in told.parts if part.effect is not None), key=lambda part: abs(part.effect))
    assert word.text == "lovely"
    assert told.top(3)[0].text == "lovely"
    short = Predictor(classifier.model, classifier.tokenizer, classifier.task.model_copy(update={"max_windows": 1}))
    cut = explain(short, LONG, method=method)
    assert joined(cut.parts) == LONG and "lovely" not in effects(cut.parts)
    assert "words are in no window" in cut.note


def test_parts_are_the_text_whatever_signs_are_in_it(classifier: Predictor) -> None:
    text = "  Café naïve 😀👍🏽 it isn't «lovely» 电影 at 3.5% — well-made!\n\n\tहिन्दी the end…  "
    told = explain(classifier, text)
    assert joined(told.parts) == joined(told.sentences) == text
    assert list(effects(told.parts)) == [
        "Café", "naïve", "😀👍🏽", "it", "isn't", "lovely", "电影", "at",
        "3.5", "well-made", "हिन्दी", "the", "end",
    ]  # fmt: skip
    assert told.note is None
    json.dumps(told.as_json())


def test_a_repeated_word_is_named_once(classifier: Predictor) -> None:
    told = explain(classifier, "Lovely film, a lovely plot and it is LOVELY .")
    (lovely,) = [part for part in told.top() if part.text.lower() == "lovely"]
    assert lovely.text == "Lovely"
    assert lovely.effect == pytest.approx(sum(p.effect for p in told.parts if p.text.lower() == "lovely"))
    assert len(told.top(2)) == 2


def test_adapted_models_are_explained(classifier: Predictor, folder: Path) -> None:
    (run,) = (one for one in folder.glob("*/*/model/recipe.json") if read_recipe(one.parent) == classifier.recipe)
    predictor = trained(folder, run.parent.parent, review_rows(60), "classification", "method=lora")
    assert hasattr(predictor.model, "peft_config")
    for method in METHODS:
        assert explain(predictor, TEXT, method=method).top(1)[0].text == "lovely"


def test_each_label_of_many_is_explained_by_itself(tiny_bert: Path, folder: Path) -> None:
    rows = [
        {**row, "target": [row["target"], *(["numbered"] if number % 3 == 0 else [])]}
        for number, row in enumerate(review_rows(240))
    ]
    predictor = trained(folder, tiny_bert, rows, "multilabel", *LEARNS)
    told = explain(predictor, TEXT, target="negative")
    assert (told.target, told.unit) == ("negative", "log-odds")
    assert effects(told.parts)["lovely"] == min(effects(told.parts).values()) < 0
    assert explain(predictor, TEXT).target == "positive"
    with pytest.raises(RecipeError, match="target: 'neutral' is none of the labels negative, numbered, positive"):
        explain(predictor, TEXT, target="neutral")


# ---- grades


def test_a_score_is_explained_in_points_and_its_pair_has_no_part(grader: Predictor) -> None:
    text = "The film was lovely and it is the plot."
    told = explain(grader, text, "was it the film ?", group="p")
    assert (told.target, told.unit) == ("score", "points")
    assert joined(told.parts) == text
    first, second = told.top(2)
    assert first.text == "lovely" and first.effect > 2 * abs(second.effect)
    texts = [text, text.replace("lovely", "[MASK]"), " ".join(["[MASK]"] * 9) + "."]
    whole, without, unknown = (grader([one], ["was it the film ?"], group=["p"])[0].scores["score"] for one in texts)
    assert sum(effects(told.parts).values()) == pytest.approx(whole - unknown, abs=0.02)
    occluded = explain(grader, text, "was it the film ?", method="occlusion", group="p")
    assert effects(occluded.parts)["lovely"] == pytest.approx(whole - without, abs=0.02)
    with pytest.raises(RecipeError, match="'style' is none of the traits score"):
        explain(grader, text, target="style")


@pytest.mark.parametrize("choice", ["task.loss=ordinal", "task.reading=apart", "task.pooling=attention"])
def test_every_head_of_a_grader_is_explained(tiny_bert: Path, folder: Path, choice: str) -> None:
    rows = [
        {**row, "target": {"form": 1 + number % 3, "content": 2 + number % 2}, "pair": "it is the plot"}
        for number, row in enumerate(review_rows(60))
    ]
    task = {"kind": "grading", "max_length": 24, "traits": ["form", "content"], "pooling": "mean"}
    predictor = trained(folder, tiny_bert, rows, task, choice)
    text = "it is the plot . " * 6
    told = explain(predictor, text, "it is the plot", target="content")
    assert told.target == "content" and joined(told.parts) == text
    assert len([part for part in told.parts if part.effect is not None]) == 24
    assert abs(told.lacking) < 0.01
    if choice != "task.reading=apart":  # whose score is at the end of its scale, which effects do not know
        masked, whole = predictor(["[MASK] [MASK] [MASK] [MASK] . " * 6, text], ["it is the plot"] * 2)
        expected = whole.scores["content"] - masked.scores["content"]
        assert sum(part.effect or 0 for part in told.parts) == pytest.approx(expected, abs=0.01)


# ---- sentences


def test_an_effect_is_the_score_less_the_score_without(grader: Predictor) -> None:
    text = "The film was lovely.  It is the plot. \n\nWith some scenes more."
    parts = sentence_effects(grader, text, "is it ?", group="p")
    assert joined(parts) == text
    told = effects(parts)
    assert list(told) == ["The film was lovely.", "It is the plot.", "With some scenes more."]
    assert max(told, key=lambda sentence: told[sentence]) == "The film was lovely."
    whole, without = grader([text, text.replace("It is the plot.", "")], ["is it ?"] * 2, group=["p", "p"])
    assert told["It is the plot."] == pytest.approx(whole.scores["score"] - without.scores["score"], abs=1e-4)
    assert explain(grader, text, "is it ?", group="p").sentences == parts


def test_one_sentence_moved_everything_and_many_are_joined(grader: Predictor) -> None:
    assert sentence_effects(grader, "The film was lovely.") == [Part("The film was lovely.")]
    text = "It was the plot. " * (3 * MOST_SENTENCES)
    parts = [part for part in sentence_effects(grader, text) if part.effect is not None]
    assert len(parts) <= MOST_SENTENCES
    assert {part.text.count("plot") for part in parts} == {3}
    with pytest.raises(DataError, match="the text is empty"):
        sentence_effects(grader, "  ")


def test_a_text_too_long_is_explained_by_sentences(classifier: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOST_WORDS, "occlusion", 5)
    text = "The film was lovely. It is the plot."
    told = explain(classifier, text, method="occlusion")
    assert told.parts == [Part(text)] and told.deletion is None
    assert told.note == "The text has 8 words; up to 5 are shown one by one."
    assert effects(told.sentences)["The film was lovely."] > effects(told.sentences)["It is the plot."]


# ---- what was written


@pytest.mark.parametrize("method", METHODS)
def test_a_written_text_is_explained(writer: Predictor, method: str) -> None:
    text = "It was a lovely film and the actors. The plot is more."
    told = explain(writer, text, method=method)
    assert told.target == told.answer.text == writer([text])[0].text == "the story is good"
    assert told.unit == told.deletion.unit == "log-probability"
    assert joined(told.parts) == joined(told.sentences) == text
    assert told.top(1)[0].text == "lovely"
    assert told.deletion.fall > told.deletion.random_fall
    assert effects(told.sentences)["It was a lovely film and the actors."] > 0
    word = explain(writer, text, method=method, target="good")
    assert word.target == "good" and word.top(1)[0].text == "lovely"
    dull = explain(writer, text, method=method, target="story")
    assert abs(effects(dull.parts)["lovely"]) < effects(word.parts)["lovely"]
    with pytest.raises(RecipeError, match="'bad' is no word of what was written: the story is good"):
        explain(writer, text, target="bad")


def test_chunks_are_explained_together(tiny_bart: Path, folder: Path) -> None:
    rows = [{**row, "target": "the film ."} for row in review_rows(32)]
    task = {"kind": "summarization", "max_length": 16, "max_new_tokens": 6, "long_texts": "chunks"}
    predictor = trained(folder, tiny_bart, rows, task, "training.epochs=6", "training.lr=1e-2")
    text = "It was the plot with some scenes.  The actors is very good.\nAnd it is the story with more."
    for method in METHODS:
        told = explain(predictor, text, method=method)
        assert joined(told.parts) == joined(told.sentences) == text
        assert len([part for part in told.parts if part.effect is not None]) == len(word_spans(text))
        assert told.deletion is None and "read in chunks" in told.note
        assert len(effects(told.sentences)) == 3


# ---- how far to trust it


@pytest.mark.parametrize("method", METHODS)
def test_without_the_words_it_names_the_answer_falls(classifier: Predictor, method: str) -> None:
    told = explain(classifier, TEXT, method=method)
    assert told.deletion.n_words == 2 and told.deletion.unit == "probability"
    assert told.deletion.fall > 0.3 > told.deletion.random_fall
    assert explain(classifier, TEXT, method=method) == told  # draws are the same each time
    assert told.as_json()["deletion"]["told"] == told.deletion.told
    assert explain(classifier, "a lovely film .").deletion is None


def test_a_deletion_test_is_told_in_a_sentence() -> None:
    assert Deletion(6, 0.61, 0.05, "probability").told == (
        "Without the 6 words it names the probability falls by 0.61; without 6 others it falls by 0.05 on average."
    )
    assert Deletion(1, 1.2, -0.1, "points").told == (
        "Without the word it names the score falls by 1.20 points; without another it rises by 0.10 points on average."
    )


# ---- examples like the text


def test_a_training_row_is_nearest_to_itself(classifier: Predictor, grader: Predictor, writer: Predictor) -> None:
    for predictor in (classifier, grader, writer):
        rows = resolved(predictor.recipe)[1]["train"]
        row = rows[7]
        found = nearest(predictor, row["text"], row.get("pair"), rows, n=3)
        assert (found[0].id, found[0].text, found[0].target) == (row["id"], row["text"], row["target"])
        assert found[0].similarity == pytest.approx(1, abs=1e-3)
        assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)
    assert len(nearest(classifier, TEXT, None, resolved(classifier.recipe)[1]["train"].select(range(2)))) == 2
    with pytest.raises(DataError, match="the text is empty"):
        nearest(classifier, " ", None, rows)


# ---- what cannot be explained


def test_what_cannot_be_explained_says_why(
    classifier: Predictor, writer: Predictor, tiny_bert: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="method: no 'lime'; there are: integrated_gradients, occlusion"):
        explain(classifier, TEXT, method="lime")
    with pytest.raises(RecipeError, match="target: 'neutral' is none of the labels negative, positive"):
        explain(classifier, TEXT, target="neutral")
    with pytest.raises(DataError, match="the text is empty"):
        explain(classifier, " \n")
    rows = [{"text": "the film is good . the plot is bad . it was .", "target": "good film"}, *review_rows(12)]
    picker = trained(folder, tiny_bert, rows, "highlights")
    for call in (explain, sentence_effects):
        with pytest.raises(DataError, match="task highlights shows itself what it picked"):
            call(picker, TEXT)
    with monkeypatch.context() as patched:
        patched.setattr(type(writer.tokenizer), "is_fast", False)
        with pytest.raises(CheckpointError, match="does not tell where its tokens stand"):
            explain(writer, TEXT)
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(HardwareError, match=r"pip install 'tl-nlp\[demo\]'"):
        explain(classifier, TEXT)


# ---- where tokens stand


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def subwords(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of pieces of words, with spaces in them: by bytes as RoBERTa's, or by signs as T5's."""
    from tokenizers import SentencePieceUnigramTokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    texts = [" ".join([*GOOD, *BAD, *FILLER]), *(row["text"] for row in review_rows(50)), LONG, TEXT]
    marks = ["<pad>", "<s>", "</s>", "<unk>"]
    if request.param == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(texts, trainer)
    else:
        sentencepiece = SentencePieceUnigramTokenizer()
        sentencepiece.train_from_iterator(
            texts, vocab_size=80, special_tokens=marks, unk_token="<unk>", show_progress=False
        )
        made = sentencepiece._tokenizer
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def assert_found(windows: list[list[int]], text: str, front: str, tokenizer: Any) -> None:
    """Each token stands where its signs are, and every word has its tokens."""
    spans = token_spans(windows, text, front, tokenizer)
    assert [len(window) for window in spans] == [len(window) for window in windows]
    covered = set()
    for ids, found in zip(windows, spans, strict=True):
        for token, span in zip(ids, found, strict=True):
            told = tokenizer.decode([token]).strip()
            if span is not None and told and told.isascii() and token > 3:
                assert text[slice(*span)].strip() == told
            covered.update(range(*span) if span else ())
    assert {at for word in word_spans(text) for at in range(*word)} <= covered


@pytest.mark.parametrize("pair", [None, "it was the plot", TEXT])
@pytest.mark.parametrize("text", [TEXT, LONG, "it was the plot " * 9, "😀 the é film", "plot"])
def test_tokens_are_found_in_every_window(subwords: Any, text: str, pair: str | None) -> None:
    pairs = None if pair is None else [pair]
    windows = text_windows([text], pairs, subwords, 60, 99)["input_ids"][0]
    front = "" if pair is None else subwords.decode(subwords(pair, add_special_tokens=False)["input_ids"][:30])
    assert_found(windows, text, front, subwords)


@pytest.mark.parametrize("long_texts", ["cut", "chunks"])
def test_tokens_are_found_behind_a_prefix(subwords: Any, long_texts: str) -> None:
    text = "The film was lovely.\n\nIt is the plot, with some actors.  It was the plot. And more scenes. " * 2
    task = Summarization(
        max_length=400 if long_texts == "cut" else 44, prefix="plot with more: ", long_texts=long_texts, max_chunks=9
    )
    windows = task.encode({"id": ["0"], "text": [text], "pair": ["the story"]}, subwords)["input_ids"][0]
    assert len(windows) > 1 or long_texts == "cut"
    assert_found(windows, text, "plot with more: the story", subwords)
