"""The encoders that people train: one step of learning, and an export that embeds alike."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import (
    SIZES,
    learned,
    prepared_of,
    random_groups,
    retained_by,
    save_tiny_encoder,
    train_config,
)
import torch
import transformers

from dualview.retrieval import attention
from dualview.retrieval.attention import can_skip_padding, skip_padding
from dualview.retrieval.encoder import embed, encode_texts, inputs_of, new_encoder, tokenize
from dualview.training.model import Learner

ARCHITECTURES = {
    "bert": transformers.BertConfig,
    "gte": transformers.GteConfig,
    "modernbert": transformers.ModernBertConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_learns_and_its_export_embeds_alike(tmp_path, name, pooling):
    folder = save_tiny_encoder(tmp_path / "model")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(ARCHITECTURES[name](**SIZES)).save_pretrained(folder)
    config = train_config(encoder__pooling=pooling, batch__gradient_cache=True)
    encoder = new_encoder(str(folder), pooling=pooling, trust_remote_code=False).eval()
    learner = Learner(encoder, 0.05, learned=False, precision="fp32").eval()
    prepared = prepared_of(random_groups(), config, encoder, tmp_path)
    retained = retained_by(encoder, prepared)
    loss, gradients = learned(learner, config, prepared, retained)
    assert np.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    with torch.no_grad():
        for weight_name, weight in learner.named_parameters():
            if weight_name in gradients:
                weight -= 0.01 * gradients[weight_name]
    assert learned(learner, config, prepared, retained)[0] < loss

    encoder.save(str(tmp_path / "export"))
    texts = ["exports of chad", "what", "only in africa and not in asia and fiji " * 2]
    ours = encode_texts(encoder, texts, side="query", max_tokens=64, precision="fp32")
    theirs = SentenceTransformer(str(tmp_path / "export"), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_transformer_of_the_models_makers_is_asked_as_it_is(tmp_path):
    encoder = new_encoder(str(save_tiny_encoder(tmp_path)), pooling="mean", trust_remote_code=False).eval()

    class Theirs(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.tokenizer = encoder.tokenizer

        def forward(self, features, **_):
            asked = {name: features[name] for name in ("input_ids", "attention_mask")}
            return {**features, "token_embeddings": self.model(**asked).last_hidden_state}

    theirs = SentenceTransformer(
        modules=[Theirs(encoder[0].model), *list(encoder.children())[1:]], device="cpu"
    )
    tokens = tokenize(encoder, ["exports of chad", "what"], 64)
    found = [embed(each, tokens, side="query", chunk_tokens=1000) for each in (theirs, encoder)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm-roberta"])
def test_without_padding_vectors_and_gradients_are_the_same(tmp_path, name, pooling):
    """The kernel itself needs a GPU (tests/gpu): here plain attention takes its place, and all around it is real."""
    folder = save_tiny_encoder(tmp_path / "model")
    torch.manual_seed(0)
    sizes = SIZES | ({"local_attention": 128} if name == "modernbert" else {})
    transformers.AutoModel.from_config(ARCHITECTURES[name](**sizes)).save_pretrained(folder)
    texts = ["exports of chad", "what", "only in africa and not in asia and fiji " * 2]
    config = train_config(encoder__pooling=pooling)

    found = []
    for flat in (False, True):
        encoder = new_encoder(str(folder), pooling=pooling, trust_remote_code=False).eval()
        if flat:
            assert can_skip_padding(encoder[0])
            skip_padding(encoder[0])
        with torch.no_grad():
            vectors = embed(encoder, tokenize(encoder, texts, 64), side="query", chunk_tokens=1000)
        asked: list[int] = []
        hook = encoder.register_forward_pre_hook(
            lambda _, features, asked=asked: asked.append(len(features[0]["input_ids"]))
        )
        learner = Learner(encoder, 0.05, learned=False, precision="fp32").eval()
        prepared = prepared_of(random_groups(), config, encoder, tmp_path)
        loss, gradients = learned(learner, config, prepared, retained_by(encoder, prepared))
        hook.remove()
        assert {rows == 1 for rows in asked} == {flat}  # all texts of a chunk are one row
        found.append(({"vectors": vectors, "loss": torch.tensor(loss)}, gradients))
    (padded, of_padded), (flat, of_flat) = found
    torch.testing.assert_close(flat, padded)
    assert of_flat.keys() == of_padded.keys()
    for weight in of_padded:
        torch.testing.assert_close(of_flat[weight], of_padded[weight], atol=1e-4, rtol=1e-4)


def test_attention_without_padding_is_computed_in_bf16_under_autocast(tmp_path, monkeypatch):
    """ZeRO 3 computes under autocast, where rotary positions leave queries and keys in float32."""
    folder = save_tiny_encoder(tmp_path / "model")
    transformers.AutoModel.from_config(ARCHITECTURES["gte"](**SIZES)).save_pretrained(folder)
    encoder = new_encoder(str(folder), pooling="mean", trust_remote_code=False).eval()
    skip_padding(encoder[0])
    seen = set()
    plain = attention._one_text_after_the_other

    def note(query, key, value, *others):
        seen.update(states.dtype for states in (query, key, value))
        return plain(query, key, value, *others)

    monkeypatch.setattr(attention, "_one_text_after_the_other", note)
    Learner(encoder, 0.05, learned=False, precision="bf16")(inputs_of(encoder, [[2, 7, 3], [2, 3]]), "query")
    assert seen == {torch.bfloat16}


def test_attention_that_is_not_computed_without_padding_is_an_error():
    states = torch.zeros(1, 2, 3, 8)
    starts = {"cu_seq_lens_q": torch.tensor([0, 3], dtype=torch.int32), "max_length_q": 3}
    attention._attention(torch.nn.Module(), states, states, states, None, softcap=None, **starts)
    with pytest.raises(ValueError, match="does not compute softcap"):
        attention._attention(torch.nn.Module(), states, states, states, None, softcap=50.0, **starts)
