"""The embedding cache: which units are missing, and which hold the requested texts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import save_tiny_encoder

from dualview.errors import InputError
from dualview.models import saved_settings
from dualview.retrieval.embeddings import (
    Embedded,
    EmbeddingSpec,
    Tokenized,
    Wanted,
    gather,
    keys_of,
    locate,
    missing_units,
    num_cut,
    put_unit,
    unit_name,
)
from dualview.retrieval.encoder import encode, encoder_of, load_encoder, new_encoder, tokenize
from dualview.storage import Store, open_store

SPEC = EmbeddingSpec("model", "document", None, "", 16, "fp32")


def wanted(texts: Sequence[str], spec: EmbeddingSpec = SPEC, rows_per_unit: int = 4) -> Wanted:
    return Wanted(
        "model", spec, keys_of(texts), lambda numbers: [texts[n] for n in numbers], list, rows_per_unit
    )


def vector_of(text: str) -> list[float]:
    return [float(len(text)), float(sum(map(ord, text)))]


def make(store: Store, asked: Sequence[Wanted], stop_after: int | None = None) -> list[int]:
    """Encode the missing units, as actors do. Returns the sizes of the new units."""
    missing = missing_units(store, asked)[:stop_after]
    for place, keys_D, numbers_D in missing:
        texts = asked[place].read(asked[place].payload(numbers_D.tolist()))
        vectors = np.array([vector_of(text) for text in texts], np.float32)
        cut = np.array([len(text) > 3 for text in texts])
        put_unit(store, unit_name(keys_D), asked[place].spec, keys_D, Embedded(vectors, cut), "test")
    return [len(unit.keys_D) for unit in missing]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


TEXTS = ["one", "two", "three", "four", "five", "six", "seven", "one", "eight", "nine", "two", "one"]


def test_each_text_is_made_once_and_found_wherever_it_is_asked_for(store: Store) -> None:
    assert make(store, [wanted(TEXTS)]) == [4, 4, 1]
    for texts in (TEXTS, TEXTS[::-1], ["seven", "seven", "one"]):
        assert make(store, [wanted(texts)]) == []
        units = locate(store, SPEC, keys_of(texts))
        np.testing.assert_array_equal(gather(store, units), [vector_of(text) for text in texts])
        assert num_cut(store, units) == len({text for text in texts if len(text) > 3})


def test_only_what_no_other_run_has_kept_is_made(store: Store) -> None:
    make(store, [wanted(TEXTS[:5])])
    assert sum(make(store, [wanted([*TEXTS, "ten"]), wanted(["ten", "eleven"])])) == 9 - 5 + 2
    units = locate(store, SPEC, keys_of([*TEXTS, "eleven"]))
    np.testing.assert_array_equal(gather(store, units), [vector_of(text) for text in [*TEXTS, "eleven"]])


def test_an_interrupted_run_goes_on_with_the_units_of_an_uninterrupted_one(
    store: Store, tmp_path: Path
) -> None:
    make(store, [wanted(TEXTS)], stop_after=1)
    make(store, [wanted(TEXTS)])
    whole = open_store(str(tmp_path / "whole"))
    make(whole, [wanted(TEXTS)])
    names = {entry.key for entry in whole.list()}
    assert names == {entry.key for entry in store.list() if not entry.key.startswith("whole/")}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"side": "query"},
        {"pooling": "mean"},
        {"prompt": "passage: "},
        {"max_tokens": 17},
        {"precision": "bf16"},
    ],
)
def test_whatever_decides_a_vector_has_its_own_place(store: Store, change: dict[str, str | int]) -> None:
    make(store, [wanted(TEXTS)])
    other = replace(SPEC, **change)  # type: ignore[arg-type]
    assert sum(make(store, [wanted(TEXTS, other)])) == 9


def test_what_is_missing_or_broken_is_told(store: Store) -> None:
    make(store, [wanted(TEXTS)])
    with pytest.raises(InputError, match=r"the vectors of 2 of 3 texts are missing"):
        locate(store, SPEC, keys_of(["one", "ten", "eleven"]))
    store.put_new(f"{SPEC.folder}/broken.arrow", b"ARROW1", attempt="test")
    with pytest.raises(InputError, match=r"broken\.arrow: is not a complete Arrow file"):
        missing_units(store, [wanted(TEXTS)])


def test_an_encoder_to_train_and_the_saved_one_share_a_spec_and_vectors(tmp_path: Path) -> None:
    """Otherwise evaluation could not reuse the passage vectors of query-side training."""
    model = str(tmp_path / "model")
    new_encoder(str(save_tiny_encoder(tmp_path / "base")), pooling="cls", trust_remote_code=False).save(model)
    saved = saved_settings(model)
    modules = ("Transformer", "Pooling", "Normalize")
    assert saved == ("cls", {"query": "", "document": ""}, ("query", "document"), modules, {"cls"})
    texts = ["main exports of chad", "asia " * 40]
    spec = replace(SPEC, pooling=saved.pooling, max_tokens=12)
    as_saved = encode(load_encoder(model, trust_remote_code=False), replace(spec, pooling=None), texts)
    encoder = encoder_of(model, spec.pooling, trust_remote_code=False)
    ours = encode(encoder, spec, texts)
    np.testing.assert_array_equal(ours.vectors_NE, as_saved.vectors_NE)
    assert ours.cut_N.tolist() == [False, True]
    tokens = [np.array(ids, np.int32) for ids in tokenize(encoder, texts, 12)]
    np.testing.assert_array_equal(
        encode(encoder, spec, Tokenized(tokens, [False, True])).vectors_NE, ours.vectors_NE
    )
