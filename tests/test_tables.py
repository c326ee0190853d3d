"""Files of rows: text stays text, and a fault is named with file, line and reason."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tl_nlp.errors import DataError
from tl_nlp.rejects import Rejects
from tl_nlp.tables import NUMBER, read_table
from tl_nlp.writing import write_rows


def test_fault_14_csv_text_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefftext,target\nNA,007\n"null, ""quoted""",3.0\n"two\nlines",nan\n'.encode())
    assert read_table(path).to_pydict() == {
        "text": ["NA", 'null, "quoted"', "two\nlines"],
        "target": ["007", "3.0", "nan"],
    }


def test_the_same_rows_from_every_format(tmp_path: Path) -> None:
    rows = {"text": ["a b", "c"], "target": ["1", "0"]}
    (tmp_path / "a.csv").write_text("text,target\na b,1\nc,0\n")
    (tmp_path / "a.tsv").write_text("text\ttarget\na b\t1\nc\t0\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a b", "target": "1"}\n\n{"text": "c", "target": "0"}\n')
    pa.parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        assert read_table(tmp_path / f"a.{suffix}").to_pydict() == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"text,target\nfine,1\na,b,c\n",
            "a.csv, line 3, column 'target': 3 fields where the first line names 2 columns",
        ),
        (
            "a.csv",
            b"text,target\ncaf\xe9,1\n",
            "a.csv, line 2, column 4: byte 0xe9 is not UTF-8; save the file as UTF-8",
        ),
        ("a.csv", b"te\xe9xt,target\nx,1\n", "a.csv, line 1: byte 0xe9 is not UTF-8"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text,target\n", "a.csv holds no rows"),
        ("a.csv", b"text,text\na,b\n", "two columns are named 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2, column 10: no JSON object"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl, line 2: no JSON object but list"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "a.jsonl, line 1, column 14: byte 0xe9 is not UTF-8"),
        ("a.parquet", b"nonsense", "a.parquet is no parquet file"),
        ("a.csv", b"text,target\rfine,1\rmore,2\r", "line 1: new-line character seen in unquoted field"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: it holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ["b"]}\n', "line 2: 'text' is a list or an object there"),
        (
            "a.csv.gz",
            gzip.compress(b"text,target\n" + b"some words,1\n" * 5000)[:-9] + b"\xff" * 9,
            "no whole .gz file",
        ),
        ("a.xlsx", b"", "files of rows end in .csv, .tsv, .jsonl, .parquet, not '.xlsx'"),
    ],
)
def test_fault_13_15_faults_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert message in str(caught.value)


def test_a_missing_file_says_where_paths_count_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file 'nosuch\.csv'; paths count from"):
        read_table(Path("nosuch.csv"))


def test_predictions_as_csv_are_flat_and_run_no_formula(tmp_path: Path) -> None:
    rows = [{"id": "=1+1", "labels": ["a", "b"], "probabilities": {"a": 0.9, "b": 0.8}, "text": "@cmd"}]
    write_rows(tmp_path / "p.csv", rows)
    assert read_table(tmp_path / "p.csv").to_pylist() == [
        {"id": "'=1+1", "labels": "a|b", "probabilities.a": "0.9", "probabilities.b": "0.8", "text": "'@cmd"}
    ]
    write_rows(tmp_path / "p.jsonl", rows)
    assert read_table(tmp_path / "p.jsonl").to_pylist() == rows
    with pytest.raises(DataError, match=r"written as \.jsonl, \.csv, \.parquet"):
        write_rows(tmp_path / "p.txt", rows)


def test_texts_that_look_like_dates_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "2020-01-01", "target": "2020-01-01T10:00:00"}\n')
    assert read_table(tmp_path / "a.jsonl").to_pylist() == [{"text": "2020-01-01", "target": "2020-01-01T10:00:00"}]


GOOD = "".join(f"text {n},{n % 2}\n" for n in range(300))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("a.csv", b"a,b,c\n", "line 302, column 'target': 3 fields where the first line names 2 columns"),
        ("a.csv", b"caf\xe9,1\n", "line 302, column 4: byte 0xe9 is not UTF-8"),
        ("a.csv", b'"open,1\n', "line 302: a quote opens here and does not close"),
        ("a.csv", b'"a"b,1\n', "line 302: ',' expected after '\"'"),
        ("a.csv", b"x" * 3_000_000 + b",1\n", "line 302: the line has over 1,000,000 bytes"),
    ],
)
def test_fault_13_good_rows_of_a_csv_are_kept(tmp_path: Path, name: str, line: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(b"text,target\n" + GOOD.encode() + line + GOOD.replace("text", "more").encode())
    rejects = Rejects()
    table = read_table(tmp_path / name, rejects)
    assert table["text"].to_pylist() == [f"{word} {n}" for word in ("text", "more") for n in range(300)]
    assert [str(one).startswith(f"{tmp_path / name}, {message}") for one in rejects] == [True]
    with pytest.raises(DataError, match="line 302"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("line", [b'{"text": "cut of', b"[1]", b'{"text": "caf\xe9"}', b"[" * 100_000])
def test_fault_15_good_lines_of_a_jsonl_are_kept(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "NA"}\n')
    rejects = Rejects()
    assert read_table(tmp_path / "a.jsonl", rejects)["text"].to_pylist() == ["a", "NA"]
    assert [one.place.split(",")[0] for one in rejects] == ["line 2"]


def test_fault_17_packed_files_are_read_and_bombs_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,target\nNA,1\n"))
    assert read_table(tmp_path / "a.csv.gz").to_pylist() == [{"text": "NA", "target": "1"}]
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"text,target\n" + b"x" * 60_000_000))
    with pytest.raises(DataError, match=r"bomb\.csv\.gz unpacks to over 50 MB"):
        read_table(tmp_path / "bomb.csv.gz")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100)[:40])
    with pytest.raises(DataError, match=r"no whole \.gz file"):
        read_table(tmp_path / "cut.jsonl.gz")


def test_a_csv_that_is_none_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,target\n" + b'"x" y "z\n' * 500)
    rejects = Rejects()
    assert not len(read_table(tmp_path / "a.csv", rejects))
    assert len(rejects) == 500


def test_lines_with_further_keys_keep_them_beside_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "c", "target": "x", "n": 1}\n{bad\n{"n": "one"}\n')
    rejects = Rejects()
    table = read_table(tmp_path / "a.jsonl", rejects, numbered=True)
    assert table.to_pydict() == {
        "text": ["a", "c", None],
        "target": [None, "x", None],
        "n": [None, "1", "one"],
        NUMBER: [1, 3, 5],
    }
    assert [one.place for one in rejects] == ["line 4, column 2"]


def test_numbers_and_dates_of_a_jsonl_stay_what_they_are(tmp_path: Path) -> None:
    large = 2**63 + 1
    (tmp_path / "a.jsonl").write_text(f'{{"id": {large}, "on": ["2020-01-01"]}}\n{{"id": {large + 2}, "on": []}}\n')
    assert read_table(tmp_path / "a.jsonl").to_pydict() == {
        "id": [str(large), str(large + 2)],
        "on": [["2020-01-01"], []],
    }


def test_a_quoted_field_may_be_long(tmp_path: Path) -> None:
    lines, wide = "\n".join(f'a "{n}" line'.replace('"', '""') for n in range(1500)), "w" * 200_000
    (tmp_path / "a.csv").write_text(f'text,target\n"{lines}",1\n{wide},2\nlast,3\n')
    table = read_table(tmp_path / "a.csv", numbered=True)
    assert table["text"].to_pylist() == [lines.replace('""', '"'), wide, "last"]
    assert table[NUMBER].to_pylist() == [2, 1502, 1503]


def test_fault_17_parquet_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"text": ["x" * 100_000] * 1000}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 200_000
    with pytest.raises(DataError, match=r"bomb\.parquet unpacks to over 50 MB"):
        read_table(tmp_path / "bomb.parquet")
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pa.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="two columns are named 'text'"):
        read_table(tmp_path / "twice.parquet")
