"""Files as people have them become columns of texts, or an error that names the remedy."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from aggregator.rehearsal.tables import DataRefused, read_table

ROWS = [["name", "town", "note"], ["Zoë", "Köln", "a, b"], ["Ana", "Málaga", 'said "no"']]


def read(path: Path, most_rows: int = 1000):
    return read_table(path, most_rows=most_rows, rng=np.random.default_rng(0))


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encoding_and_delimiter_are_found(tmp_path, encoding, delimiter):
    lines = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in ROWS]
    table = read(written(tmp_path / "a.csv", "\r\n".join(lines), encoding))
    assert table.columns == {name: [row[place] for row in ROWS[1:]] for place, name in enumerate(ROWS[0])}


def test_chinese_in_gb18030_is_chinese(tmp_path):
    table = read(written(tmp_path / "a.csv", "评论,门店\n服务态度很好,门店一\n再也不来了,门店二\n", "gb18030"))
    assert table.columns == {"评论": ["服务态度很好", "再也不来了"], "门店": ["门店一", "门店二"]}
    assert any("gb18030" in note for note in table.notes)


def test_a_gzipped_file_reads_as_the_plain_one(tmp_path):
    plain = written(tmp_path / "a.csv", "x,y\n1,2\n")
    zipped = tmp_path / "a.csv.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(zipped) == read(plain)


def test_parquet_reads_as_the_same_csv(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [1, 2, None], "s": ["a", None, "c"], "b": [True, False, True], "f": [0.5, 1.5, 2.0]})
    frame["d"] = pandas.to_datetime(["2024-01-02", "2024-03-04", None])
    frame["l"] = [[1], [2], [3]]
    frame.to_parquet(tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet")
    assert table.columns["n"] == ["1", "2", ""]
    assert table.columns["s"] == ["a", "", "c"]
    assert table.columns["b"] == ["True", "False", "True"]
    assert table.columns["f"] == ["0.5", "1.5", "2"]
    assert table.columns["d"] == ["2024-01-02T00:00:00", "2024-03-04T00:00:00", ""]
    assert "l" not in table.columns
    assert any("'l'" in note for note in table.notes)


def test_columns_of_one_name_are_told_apart_and_bare_ones_named(tmp_path):
    table = read(written(tmp_path / "a.csv", "x,x,\n1,2,3\n"))
    assert list(table.columns) == ["x", "x (2)", "column 3"]


def test_ragged_rows_are_cut_or_filled_and_counted(tmp_path):
    table = read(written(tmp_path / "a.csv", "x,y\n1,2\n3\n4,5,6\n7,8\n\n"))
    assert table.columns == {"x": ["1", "3", "4", "7"], "y": ["2", "", "5", "8"]}
    assert "1 rows had more cells than the header and 1 fewer" in table.notes[-1]


def test_what_programs_write_for_nothing_is_nothing(tmp_path):
    table = read(written(tmp_path / "a.csv", "x,y\nNA,1\nnull,2\nN/A,3\nnone,4\n"))
    assert table.columns["x"] == ["", "", "", "none"]


def test_of_too_many_rows_some_are_drawn_in_order(tmp_path):
    table = read(written(tmp_path / "a.csv", "x\n" + "\n".join(map(str, range(500)))), most_rows=50)
    numbers = [int(cell) for cell in table.columns["x"]]
    assert len(numbers) == 50
    assert numbers == sorted(set(numbers))
    assert max(numbers) > 400


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.csv", b"", "empty"),
        ("a.csv", b"\n \n", "empty"),
        ("a.csv", b"x,y\n", "no rows"),
        ("a.xlsx", b"PK\x03\x04rest", "workbook"),
        ("a.bin", b"\x00\x01\x02\x03", "neither text nor Parquet"),
        ("a.parquet", b"PAR1nothing", "not readable"),
        ("a.gz", b"\x1f\x8bbroken", "cannot read"),
    ],
)
def test_what_is_no_table_is_refused_with_a_remedy(tmp_path, name, data, word):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataRefused, match=word) as refused:
        read(tmp_path / name)
    assert refused.value.hint


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataRefused):
            read(path)
