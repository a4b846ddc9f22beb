"""The encoders that people train: one step of learning, and an export that embeds alike."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import WORDS, learned, prepared_of, random_groups, retained_by, save_tiny_encoder, train_config
import torch
import transformers

from dualview.encoder import encode_texts, new_encoder
from dualview.training.step import Learner

SIZES = {
    "vocab_size": 6 + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
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
    learner = Learner(encoder, 0.05, learned=False).eval()
    prepared = prepared_of(random_groups(), config, encoder, tmp_path)
    loss, gradients = learned(learner, config, prepared, retained_by(encoder, prepared))
    assert np.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    with torch.no_grad():
        for weight_name, weight in learner.named_parameters():
            if weight_name in gradients:
                weight -= 0.1 * gradients[weight_name]
    assert learned(learner, config, prepared, retained_by(encoder, prepared))[0] < loss

    encoder.save(str(tmp_path / "export"))
    texts = ["exports of chad", "what", "only in africa and not in asia and fiji " * 2]
    ours = encode_texts(encoder, texts, side="query", max_tokens=64, precision="fp32")
    theirs = SentenceTransformer(str(tmp_path / "export"), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
