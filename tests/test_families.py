"""Checkpoint families: methods find their places in each, and what is saved is what was trained."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_recipe
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tl_nlp import Predictor, evaluate, features, train
from tl_nlp.families import blocks
from tl_nlp.tasks.classification import Classification

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
FAMILIES = {
    "albert": {**SMALL, "embedding_size": 32},
    "bart": {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "pad_token_id": 0,
        "eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    },
    "deberta-v2": {**SMALL, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128},
    "electra": {**SMALL, "embedding_size": 32},
    "modernbert": {**SMALL, "global_attn_every_n_layers": 1, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 3},
    "mpnet": SMALL,
    "roberta": {**SMALL, "pad_token_id": 0},
}  # fmt: skip


ADDED = {"lora": ".lora_", "ia3": ".ia3_", "adapter": ".adapter."}
PLACES = {  # in two blocks; ALBERT uses one twice, BART has two that read and two that write, with six attentions
    "lora": {"bert": 4, "albert": 2, "bart": 12, "modernbert": 2},
    "ia3": {"bert": 6, "albert": 3, "bart": 16, "modernbert": 4},
    "adapter": {"bert": 4, "albert": 2, "bart": 10},
}


@pytest.fixture(params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path: Path) -> Path:
    """A tiny random checkpoint of the family, with the tokenizer of the tiny BERT."""
    folder = tmp_path / request.param
    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=200, max_position_embeddings=130, **FAMILIES[request.param])
    AutoModel.from_config(config, attn_implementation="eager").save_pretrained(folder)
    if request.param not in ("albert", "deberta-v2", "electra"):  # the others have no token types
        file = folder / "tokenizer_config.json"
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]})
        )
    return folder


@pytest.mark.parametrize("method", ["head", "lora", "ia3", "adapter", "gradual"])
def test_a_family_trains_and_predicts_what_it_trained(checkpoint: Path, method: str, reviews: Path) -> None:
    task = "summarization" if checkpoint.name == "bart" else "classification"
    if (task, method) == ("summarization", "head"):
        pytest.skip("a BART writes through its embeddings")
    recipe = tiny_recipe(checkpoint, reviews, task)
    if (task, method) == ("summarization", "gradual"):
        recipe = recipe.override("training.epochs=2", f"method={method}", "method.head_epochs=0")
    else:
        recipe = recipe.override("training.epochs=2", f"method={method}")
    if method == "adapter":
        recipe = recipe.override("method.placement=houlsby")
    run = train(recipe)
    if method in ADDED:
        (file,) = run.model_dir.glob("*.safetensors")
        places = {name.rpartition(ADDED[method])[0] for name in load_file(file) if ADDED[method] in name}
        assert len(places) == PLACES[method].get(checkpoint.name, PLACES[method]["bert"])
    losses = [line["values"]["loss"] for line in run.history() if line["split"] == "train"]
    assert all(loss == loss for loss in losses)
    if task == "classification":
        validation = [line["values"]["accuracy"] for line in run.history() if line["split"] == "validation"]
        assert evaluate(run, "validation")["metrics"]["accuracy"]["value"] == pytest.approx(max(validation))
    assert len(Predictor.load(run)(["the good film", "a bad plot"])) == 2


def test_the_top_blocks_of_a_family_learn_from_states(
    checkpoint: Path, reviews: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they do from tokens, with dropout above them."""
    if checkpoint.name == "albert":
        pytest.skip("ALBERT has one block that it uses again")
    task = "summarization" if checkpoint.name == "bart" else "classification"
    recipe = tiny_recipe(checkpoint, reviews, task).override(
        "method=top_layers", "method.n_blocks=1", "training.dropout=0.1", "task.max_length=16"
    )
    kept = train(recipe)
    assert len(computed) == 2
    monkeypatch.setattr(features, "MAX_BYTES", 0)
    anew = train(recipe)
    assert len(computed) == 2
    before = load_file(kept.model_dir / "model.safetensors")
    for name, tensor in load_file(anew.model_dir / "model.safetensors").items():
        torch.testing.assert_close(before[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("method", ["head", "full", "top_layers"])
def test_a_head_that_stands_on_a_decoder_learns_from_tokens(
    family: str, method: str, reviews: Path, computed: list[int], request: pytest.FixtureRequest
) -> None:
    recipe = tiny_recipe(request.getfixturevalue(f"tiny_{family}"), reviews).override(
        "training.epochs=2", f"method={method}", *(["method.head_epochs=1"] if method == "full" else [])
    )
    assert len(Predictor.load(train(recipe))(["the good film"])) == 1
    assert not computed


@pytest.mark.parametrize(
    "further",
    [
        {"conv_kernel_size": 3, "conv_act": "gelu"},  # the second block reads the embeddings too, through a convolution
        {"norm_rel_ebd": "layer_norm"},  # the norm of the relative positions learns, and all blocks read it
    ],
)
def test_blocks_that_look_further_down_learn_from_tokens(
    further: dict[str, object], tiny_bert: Path, tmp_path: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DeBERTa's do."""
    folder = tmp_path / "deberta-v2"
    shutil.copytree(tiny_bert, folder)
    shape = {**FAMILIES["deberta-v2"], "num_hidden_layers": 3, **further}
    config = AutoConfig.for_model("deberta-v2", vocab_size=200, max_position_embeddings=130, **shape)
    AutoModel.from_config(config, attn_implementation="eager").save_pretrained(folder)
    monkeypatch.setattr(features, "compute", lambda *values: pytest.fail("states were taken"))
    run = train(tiny_recipe(folder, reviews).override("method=top_layers", "method.n_blocks=1"))
    assert len(Predictor.load(run)(["the good film"])) == 1


def test_the_lowest_blocks_of_a_family_pool_windows(checkpoint: Path, reviews: Path) -> None:
    """Fewer blocks, and layers of ours in the place of the family's last one."""
    if checkpoint.name in ("albert", "bart"):
        pytest.skip("ALBERT has one block that it uses again, and a BART writes")
    recipe = tiny_recipe(checkpoint, reviews).override(
        "checkpoint.blocks=1",
        "task.pooling=attention",
        "task.dropout=0.3",
        "task.max_length=16",
        "method.head_epochs=0.5",
    )
    predictor = Predictor.load(train(recipe))
    assert len(blocks([name for name, _ in predictor.model.named_parameters()])) == 1
    alone = predictor(["the good film"])[0].probabilities
    among = predictor(["the good film", "a bad plot " * 20])[0].probabilities
    assert alone == pytest.approx(among, abs=1e-5)


def test_a_family_is_read_as_its_plain_attention_reads(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fused kernel, and the plain one is there again to train with."""
    if checkpoint.name == "bart":
        pytest.skip("a BART writes")
    monkeypatch.setenv("TL_NLP_CACHE", "")
    model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    rows = [[[2, 7, 8, 9, 3]], [[2, 11, 3], [2, 12, 13, 3]], [[2, *range(20, 60), 3]]]
    encoded = Dataset.from_dict({"input_ids": rows})
    read = features.embeddings(model, encoded, 0, "float32", "features")
    with torch.no_grad():
        for row, state in zip(rows, read, strict=True):
            plain = torch.cat([model(input_ids=torch.tensor([window])).last_hidden_state[0] for window in row])
            torch.testing.assert_close(torch.from_numpy(state).float(), plain.mean(0), atol=1e-4, rtol=1e-4)
    assert model.config._attn_implementation == "eager"


LIKE_BERT = ["bert", "camembert", "electra", "roberta", "xlm-roberta"]


def untrained(
    family: str, tiny_bert: Path, attention: str = "eager", precision: str = "float32", **more: Any
) -> Predictor:
    """Of a model of the family with the head of its checkpoints, as they are drawn."""
    shape = {**SMALL, "vocab_size": 200, "max_position_embeddings": 130, "num_labels": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **shape | FAMILIES.get(family, {}) | more)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()
    task = Classification(labels=("negative", "positive"))
    return Predictor(model, AutoTokenizer.from_pretrained(tiny_bert), task, precision)


def shares(predictor: Predictor, texts: list[str]) -> list[float]:
    return [answer.probabilities["positive"] for answer in predictor(texts)]


def plain_shares(predictor: Predictor, texts: list[str]) -> list[float]:
    """As transformers answers."""
    read = predictor.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return predictor.model(**read).logits.softmax(-1)[:, 1].tolist()


TEXTS = ["the good film", "a bad plot " * 20, "a film of a good cast " * 6]


@pytest.mark.parametrize(
    ("family", "attention"),
    [*product([*LIKE_BERT, "deberta", "deberta-v2"], ["eager"]), *product(LIKE_BERT, ["sdpa"])],
)
def test_of_the_top_block_what_the_head_does_not_read_is_not_computed(
    family: str, attention: str, tiny_bert: Path
) -> None:
    predictor = untrained(family, tiny_bert, attention)
    top, widths = predictor.model.base_model.encoder.layer[-1], set()
    asking = [top.attention.self.query] if family in LIKE_BERT else []
    for part in (top.attention.output, top.intermediate, *asking):
        part.register_forward_hook(lambda _, states, __: widths.add(states[0].shape[1]))
    answers = shares(predictor, TEXTS)
    assert widths == {16}

    widths.clear()
    assert answers == pytest.approx(plain_shares(predictor, TEXTS), abs=1e-6)
    assert widths == {62}


@pytest.mark.parametrize("more", [{"chunk_size_feed_forward": 32}, {"conv_kernel_size": 3, "conv_act": "gelu"}])
def test_a_top_block_that_reads_more_than_the_head_is_left_whole(more: dict[str, Any], tiny_bert: Path) -> None:
    family = "deberta-v2" if "conv_kernel_size" in more else "bert"
    predictor = untrained(family, tiny_bert, num_hidden_layers=1, **more)
    texts = ["a film of a good cast " * 5]  # of 32 tokens, which are a chunk
    assert shares(predictor, texts) == pytest.approx(plain_shares(predictor, texts), abs=1e-6)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no fast bfloat16")
@pytest.mark.parametrize("family", LIKE_BERT)
def test_answers_of_a_narrowed_top_block_are_the_same_bits_in_any_company(family: str, tiny_bert: Path) -> None:
    predictor = untrained(family, tiny_bert, precision="bfloat16", initializer_range=0.2)
    for name, weight in predictor.model.named_parameters():
        if name.endswith("bias"):  # which is drawn as 0
            torch.nn.init.normal_(weight)
    texts = [text * n for n in (1, 2, 3) for text in TEXTS[::2]] * 2
    assert shares(predictor, texts) == [share for text in texts for share in shares(predictor, [text])]


@pytest.mark.slow
def test_a_family_answers_the_same_as_an_export(checkpoint: Path, reviews: Path, tmp_path: Path) -> None:
    """Of texts longer and shorter than those that the graph was made with, several at once and alone."""
    pytest.importorskip("onnxscript")
    if checkpoint.name == "bart":
        pytest.skip("a BART writes")
    from tl_nlp.exporting import export

    run = train(tiny_recipe(checkpoint, reviews, method="lora"))
    found = export(run, tmp_path / "export")
    assert found["agreement"] == 1 and found["max_difference"]["relative"] < 1e-4
    before, after = Predictor.load(run, "float32"), Predictor.load(tmp_path / "export")
    texts = ["good", "the film is bad " * 15, "a bad plot"]
    for ask in (before(texts), [before([text])[0] for text in texts]):
        for one, other in zip(ask, after(texts), strict=True):
            assert other.probabilities == pytest.approx(one.probabilities, abs=1e-4)
