"""Runs that answer many at once: nothing is crossed, nobody suffers for another's text, adapters share their base."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from conftest import GOOD, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Predictor, Run, train
from tl_nlp.errors import BusyError, DataError, NoRunError
from tl_nlp.serving import Row, Service, Worker

QUICK = ("training.lr=3e-3", "training.epochs=2")


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two LoRAs of unlike ranks, whole weights, and a grader that needs a pair."""
    root = tmp_path_factory.mktemp("runs")
    data = write_jsonl(root / "reviews.jsonl", review_rows(120))
    plain = tiny_recipe(tiny_bert, data)
    wanted = {
        "lora": plain.override("method=lora", *QUICK),
        "lora_high": plain.override("method=lora", "method.rank=16", "training.seed=7", *QUICK),
        "full": plain.override(*QUICK),
        "other_head": plain.override("method=lora", "task.pooling=mean", *QUICK),
    }
    grades = [
        {**row, "target": "5" if row["target"] == "positive" else "1", "pair": "is it ?"} for row in review_rows(60)
    ]
    task = {"kind": "grading", "max_length": 64, "pooling": "mean", "reading": "apart"}
    wanted["apart"] = tiny_recipe(tiny_bert, write_jsonl(root / "grades.jsonl", grades), task)
    return {name: train(recipe.model_copy(update={"name": name}), root=root) for name, recipe in wanted.items()}


def close(ours, theirs) -> bool:
    return ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)


def blocked(worker: Worker) -> threading.Event:
    """Keeps the worker at work until the event is set."""
    free, begun = threading.Event(), threading.Event()
    worker.do(lambda: (begun.set(), free.wait(60)))
    assert begun.wait(60)
    return free


def test_what_waits_together_is_answered_in_one_pass_and_in_order(runs: dict[str, Run]) -> None:
    service = Service([runs["full"].folder])
    predictor = service[None].predictor
    texts = [row["text"] for row in review_rows(50, seed=3)]
    alone = [predictor([text])[0] for text in texts]
    free = blocked(service.worker)
    asked = [service.worker.predict(predictor, [Row(text)]) for text in texts]
    assert service.worker.n_waiting == 50
    free.set()
    answers = [future.result(60)[0] for future in asked]
    assert all(close(ours, theirs) for ours, theirs in zip(answers, alone, strict=True))
    assert service.worker.counts.passes == 1 and service.worker.counts.rows == 50
    service.worker.close()


def test_threads_get_their_own_answers(runs: dict[str, Run]) -> None:
    """Several runs are asked by many threads at once, the adapters on one model among them."""
    names = ["lora", "lora_high", "full"]
    alone = {name: Predictor.load(runs[name]) for name in names}
    texts = [row["text"] for row in review_rows(12, seed=5)]
    wanted = {(name, text): alone[name]([text])[0] for name in names for text in texts}
    service = Service([runs[name].folder for name in names])
    wrong = []

    def ask(name: str) -> None:
        wrong.extend((name, text) for text in texts if not close(service.predict(name, Row(text)), wanted[name, text]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in names * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    service.worker.close()


def test_adapters_of_one_checkpoint_share_it(runs: dict[str, Run]) -> None:
    service = Service([runs[name].folder for name in ("lora", "lora_high", "other_head", "full")])
    models = [one.predictor.model for one in service.served.values()]
    assert models[0] is models[1] and len({id(model) for model in models}) == 3  # another head, another model
    text = Row(f"the film is {GOOD[0]}")
    for name in ("lora", "lora_high", "lora", "other_head", "full"):
        (wanted,) = Predictor.load(runs[name])([text.text])
        assert close(service.predict(name, text), wanted), name
    assert service.megabytes < 0.8 * service.megabytes_apart
    service.worker.close()


def test_nobody_suffers_for_a_text_of_another(runs: dict[str, Run]) -> None:
    service = Service([runs["apart"].folder])
    predictor = service[None].predictor
    free = blocked(service.worker)
    good = [service.worker.predict(predictor, [Row("a good film", "is it good ?")]) for _ in range(3)]
    bad = service.worker.predict(predictor, [Row("a good film", " ")])
    free.set()
    with pytest.raises(DataError, match="has no pair"):
        bad.result(60)
    assert len({future.result(60)[0].scores["score"] for future in good}) == 1
    service.worker.close()


def test_those_too_many_are_told(runs: dict[str, Run]) -> None:
    service = Service([runs["full"].folder], Worker(most_together=4, most_waiting=3))
    predictor = service[None].predictor
    free = blocked(service.worker)
    accepted: list[Future] = [service.worker.predict(predictor, [Row("a good film")]) for _ in range(3)]
    with pytest.raises(BusyError, match="3 texts wait already"):
        service.worker.predict(predictor, [Row("a good film")])
    assert service.worker.counts.refused == 1
    free.set()
    assert all(future.result(60) for future in accepted)
    many = list(service.worker.stream(predictor, [Row(f"a good film {number}") for number in range(11)]))
    assert len(many) == 11  # more than may wait, a part at a time
    service.worker.close()
    with pytest.raises(BusyError):
        service.worker.predict(predictor, [Row("a good film")])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (("",), "the text is empty"),
        ((" \n\t",), "the text is empty"),
        (("a\0b",), "NUL"),
        (("a" * 100_001,), "100,001 characters; at most 100,000"),
        (("a", "b" * 100_001), "the pair has 100,001"),
    ],
)
def test_what_cannot_be_read_is_refused(row: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=told):
        Row(*row)


def test_names(runs: dict[str, Run]) -> None:
    service = Service([runs["full"].folder, runs["lora"].folder])
    assert list(service.served) == ["full", "lora"] and service[None].name == "full"
    with pytest.raises(NoRunError, match="no run 'nosuch' is served here; there are: full, lora"):
        service["nosuch"]
    assert service.add(runs["full"].folder).name == "full" and len(service.served) == 2
    assert service.add(runs["lora_high"].folder).name == "lora_high"
    service.worker.close()
    empty = Service([])
    with pytest.raises(NoRunError, match="train one first"):
        empty[None]
    empty.worker.close()
