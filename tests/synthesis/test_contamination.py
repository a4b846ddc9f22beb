import json
from pathlib import Path
import random

import pytest

from dualview.config.generate import ContaminationTexts
from dualview.errors import InputError
from dualview.synthesis.contamination import benchmark_texts, load_benchmarks

ROWS = {
    "beir.jsonl": {"_id": "1", "text": "alpha beta gamma delta"},
    "flips.jsonl": {
        "_id": "1",
        "query": "ports",
        "instructions": {"yes": "one two three four", "no": "short one"},
    },
    "hub.jsonl": {"query-id": "1-og", "instruction": "A, relevant: document! must; mention"},
    "authors.jsonl": {
        "query": "q",
        "instruction_og": "five six seven eight",
        "instruction_changed": "nine ten eleven twelve",
    },
}


def load(*paths: Path | str, max_shared_words: int = 3):
    return load_benchmarks(
        ContaminationTexts(paths=tuple(map(str, paths)), max_shared_words=max_shared_words)
    )


def test_the_layouts_of_benchmarks_are_read(tmp_path):
    for name, row in ROWS.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n\n")
    (tmp_path / "plain.txt").write_text("plain lines of text\nof any kind there are\n")
    benchmarks = load(*(tmp_path / name for name in ROWS), tmp_path / "plain.txt")
    for held in (
        "x alpha beta gamma delta",
        "PORTS?",
        "one two three four five",
        "short one",
        "a relevant document must",
        "five six seven eight",
        "nine ten eleven twelve",
        "any kind there are",
    ):
        assert benchmarks.overlap(held), held
    for free in ("", "alpha beta gamma", "main ports", "one two three 4", "text of any kind", "1"):
        assert not benchmarks.overlap(free), free


def test_it_finds_what_comparing_all_runs_finds():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(40)]
    benchmarks = benchmark_texts(texts[:10], max_shared_words=4)

    def runs(text):
        words = text.split()
        long = {tuple(words[start : start + 5]) for start in range(len(words) - 4)}
        return long or {tuple(words)}

    held = {run for text in texts[:10] for run in runs(text)}
    expected = [bool(runs(text) & held) for text in texts]
    assert [benchmarks.overlap(text) for text in texts] == expected
    assert True in expected[10:]
    assert False in expected[10:]


def test_the_checksum_is_that_of_the_texts():
    texts = ["one two three four", "short", "five six seven eight"]
    assert benchmark_texts(texts, 3).checksum == benchmark_texts([*texts[::-1], "SHORT."], 3).checksum
    assert benchmark_texts(texts, 3).checksum != benchmark_texts(texts, 2).checksum
    assert benchmark_texts(texts, 3).checksum != benchmark_texts(texts[:2], 3).checksum


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl",
            b'{"text": "fine"}\n{"text": 1}',
            "a.jsonl line 2: expected .* text, query",
        ),
        ("a.jsonl", b'{"_id": "1"}', "a.jsonl line 1: expected .*instructions"),
        ("a.jsonl", b'["text"]', "a.jsonl line 1: expected .*instructions"),
        ("a.jsonl", b'{"query": "q", "instructions": {"yes": 1}}', "a.jsonl line 1: expected .*instructions"),
        ("a.jsonl", b"text", "a.jsonl line 1: is not valid JSON"),
        ("a.txt", b"fine\n\xff", "a.txt line 2: is not UTF-8"),
        ("a.csv", b"text", "a.csv does not end in .jsonl or .txt"),
    ],
)
def test_bad_files_are_errors(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        load(tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no file .*gone.jsonl"):
        load(tmp_path / "gone.jsonl")
