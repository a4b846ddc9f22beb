"""An encoder's files and the config decide, not the defaults of the underlying libraries."""

from functools import partial
import json

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from tiny import WORDS, save_tiny_encoder, tiny_encoder
import torch
import transformers

from dualview.errors import InputError
from dualview.retrieval.encoder import (
    asymmetric,
    check_length,
    check_lengths,
    encode_texts,
    load_encoder,
    new_encoder,
)

HALVES = [torch.float16, torch.bfloat16]


def in_precision(folder, dtype):
    """The tiny encoder's files in another precision."""
    save_tiny_encoder(folder)
    transformers.AutoModel.from_pretrained(folder).to(dtype).save_pretrained(folder)
    return str(folder)


def precisions(encoder):
    return {weight.dtype for weight in encoder.parameters()}


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_are_float32_whatever_the_file_says(tmp_path, dtype):
    model = in_precision(tmp_path / "model", dtype)
    assert transformers.AutoModel.from_pretrained(model).dtype == dtype  # or nothing is shown
    encoder = new_encoder(model, pooling="mean", trust_remote_code=False)
    assert precisions(encoder) == {torch.float32}
    head = Dense(32, 8).to(dtype)
    published = SentenceTransformer(modules=[*encoder.to(dtype).children(), head, Normalize()], device="cpu")
    published.save(str(tmp_path / "published"))
    asymmetric(encoder.to(dtype), encoder.to(dtype)).save(str(tmp_path / "both"))
    for folder in (model, tmp_path / "published", tmp_path / "both"):
        assert precisions(load_encoder(str(folder), trust_remote_code=False)) == {torch.float32}


MAKERS_CODE = """
from transformers import BertConfig, BertModel

class TheirConfig(BertConfig):
    model_type = "theirs"

class TheirModel(BertModel):
    config_class = TheirConfig
"""


def with_code_of_its_makers(folder):
    save_tiny_encoder(folder)
    (folder / "makers_code.py").write_text(MAKERS_CODE)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "theirs"
    config["auto_map"] = {"AutoConfig": "makers_code.TheirConfig", "AutoModel": "makers_code.TheirModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("load", [load_encoder, partial(new_encoder, pooling="mean")])
def test_code_of_the_makers_runs_only_where_it_is_trusted(tmp_path, monkeypatch, load):
    model = with_code_of_its_makers(tmp_path / "model")

    def asked(*_):
        raise AssertionError("a question at the terminal")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(InputError, match="cannot be loaded as an encoder"):
        load(model, trust_remote_code=False)
    load(model, trust_remote_code=True)


def test_a_tokenizer_without_padding_pads_with_anything(tmp_path):
    encoder = tiny_encoder(tmp_path)
    texts = ["exports of chad", "what"]
    expected = encode_texts(encoder, texts, side="query", max_tokens=16, precision="fp32")
    encoder.tokenizer.pad_token = None
    found = encode_texts(encoder, texts, side="query", max_tokens=16, precision="fp32")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("made", "limit"), [(transformers.BertConfig, 40), (transformers.XLMRobertaConfig, 38)]
)
def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path, made, limit):
    sizes = {
        "vocab_size": 6 + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = made(**sizes, intermediate_size=64, max_position_embeddings=40, pad_token_id=1)
    save_tiny_encoder(tmp_path)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    encoder = new_encoder(str(tmp_path), pooling="mean", trust_remote_code=False)
    check_length(encoder, "max_passage_tokens", limit)
    encode_texts(encoder, ["chad " * 50], side="query", max_tokens=limit, precision="fp32")
    with pytest.raises(InputError, match=f"^max_passage_tokens: {limit + 1}, .* expected at most {limit}$"):
        check_length(encoder, "max_passage_tokens", limit + 1)
    check_lengths(str(tmp_path), {"a": limit}, trust_remote_code=False)
    with pytest.raises(InputError, match=f"^b: {limit + 1}, "):
        check_lengths(str(tmp_path), {"a": limit, "b": limit + 1}, trust_remote_code=False)
