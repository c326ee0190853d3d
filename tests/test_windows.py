"""Windows: every token of a long text is in one, and none is lost uncounted."""

from pathlib import Path

from transformers import AutoTokenizer

from tl_nlp.windows import sentence_windows, shorten, text_windows


def test_a_long_text_becomes_windows_that_hold_all_of_it(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    text = " ".join(str(n % 100) for n in range(150))
    rows = text_windows([text, "fine film"], None, tokenizer, max_length=32, max_windows=8)
    windows = rows["input_ids"][0]
    assert [len(window) for window in windows] == [32, 32, 32, 32, 32]
    assert tokenizer.decode([token for window in windows for token in window[1:-1]]) == text
    assert len(rows["input_ids"][1]) == 1
    assert rows["cut"] == [0, 0]


def test_windows_beyond_the_most_are_counted(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = text_windows([" ".join(["film"] * 70)], None, tokenizer, max_length=32, max_windows=2)
    assert len(rows["input_ids"][0]) == 2
    assert rows["cut"] == [70 - 2 * 30 + 2]  # the lost window's special tokens count with it


def test_the_pair_leads_every_window(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = text_windows([" ".join(["film"] * 60)], ["is it good ?"], tokenizer, max_length=32, max_windows=8)
    assert len(rows["input_ids"][0]) == 3
    for ids, types in zip(rows["input_ids"][0], rows["token_type_ids"][0], strict=True):
        assert tokenizer.decode(ids).startswith("[CLS] is it good ? [SEP] film film")
        assert types == [0] * 6 + [1] * (len(ids) - 6)


def test_a_pair_is_held_to_half_a_window(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    assert shorten(["the plot with it", "film"], tokenizer, 2) == (["the plot", "film"], [2, 0])
    rows = text_windows(["film"], [" ".join(["plot"] * 40)], tokenizer, max_length=32, max_windows=8)
    assert rows["cut"] == [24]


def test_sentences_are_whole_in_windows_with_headings(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sentences = [" ".join([word] * 9) for word in ("good", "bad", "film", "plot", "story")]
    rows = sentence_windows([sentences], ["story"], [["the", "the", "and", "and", "and"]], tokenizer, 32, 8)
    decoded = [tokenizer.decode(ids) for ids in rows["input_ids"][0]]
    assert [text.split(" [SEP]")[0] for text in decoded] == [
        "[CLS] story the 1 of 3",
        "[CLS] story and 2 of 3",
        "[CLS] story and 3 of 3",
    ]
    owners = [owner for window in rows["sentence_ids"][0] for owner in window if owner >= 0]
    assert owners == [index for index in range(5) for _ in range(9)]
    for ids, owners in zip(rows["input_ids"][0], rows["sentence_ids"][0], strict=True):
        for token, owner in zip(tokenizer.convert_ids_to_tokens(ids), owners, strict=True):
            assert owner < 0 or token == sentences[owner].split()[0]


def test_a_sentence_longer_than_a_window_is_cut_and_counted(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = sentence_windows([[" ".join(["film"] * 60), "fine"]], [""], [None], tokenizer, 32, 8)
    room = 32 - 3 - 3  # special tokens and "99 of 99"
    assert rows["cut"] == [60 - room]
    assert [len(window) for window in rows["input_ids"][0]] == [32, 7]


def test_tokens_that_begin_with_their_space_belong_to_their_own_sentence() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "\u2581good",
        "\u2581film",
        "\u2581plot",
        "\u2581of",
        "\u25811",
        "\u258199",
    ]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")
    rows = sentence_windows([["good film", "plot", "good plot"]], [""], [None], tokenizer, 32, 8)
    assert [owner for owner in rows["sentence_ids"][0][0] if owner >= 0] == [0, 0, 1, 2, 2]
