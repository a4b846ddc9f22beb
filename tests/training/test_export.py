"""Which parts of an encoder are trained, and what is exported."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import (
    learned,
    prepared_of,
    random_groups,
    retained_by,
    save_tiny_encoder,
    tiny_encoder,
    train_config,
)
import torch
import transformers

from dualview.training.export import finished_encoders, interpolate_weights, model_card
from dualview.training.model import encoder_to_train, learner_of

TEXTS = ["exports of chad", "only in asia", "gold and tin of fiji"]
LORA = {"rank": 4, "alpha": 8.0, "target_modules": "all-linear"}


@pytest.fixture
def config_of(tmp_path):
    model = str(save_tiny_encoder(tmp_path / "model"))
    return lambda **changes: train_config(encoder__model=model, **changes)


def moved(encoder):
    """As if it had learned something."""
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return encoder.eval()


def trainable(encoder):
    return {name for name, weight in encoder.named_parameters() if weight.requires_grad}


def test_adapters_are_all_that_learns_and_are_merged_on_export(config_of, tmp_path):
    config = config_of(encoder__lora=LORA, weight_interpolation=0.0)
    encoder = moved(encoder_to_train(config))
    assert trainable(encoder)
    assert all("lora_" in name for name in trainable(encoder))
    exported = finished_encoders(config, encoder.state_dict())["encoder"]
    exported.save(str(tmp_path / "export"))
    plain = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    assert not any("lora" in name for name, _ in plain.named_parameters())
    np.testing.assert_allclose(plain.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    untouched = encoder_to_train(config_of())
    assert np.abs(plain.encode(TEXTS) - untouched.encode(TEXTS)).max() > 1e-2


def test_embeddings_of_words_learn_only_if_asked(config_of):
    words = {name for name in trainable(encoder_to_train(config_of())) if "word_embeddings" in name}
    assert words
    assert not words & trainable(encoder_to_train(config_of(encoder__train_word_embeddings=False)))


@pytest.mark.parametrize("lora", [None, LORA])
def test_with_frozen_documents_the_document_side_stays_and_prompts_are_saved(config_of, tmp_path, lora):
    config = config_of(
        train="query_encoder", encoder__lora=lora, encoder__prompts={"query": "what ", "document": "exports "}
    )
    encoder = moved(encoder_to_train(config))
    finished_encoders(config, encoder.state_dict())["encoder"].save(str(tmp_path / "export"))
    both = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    untouched = encoder_to_train(config_of())
    prompted = [f"exports {text}" for text in TEXTS]
    np.testing.assert_allclose(both.encode_document(TEXTS), untouched.encode(prompted), atol=1e-6)
    prompted = [f"what {text}" for text in TEXTS]
    np.testing.assert_allclose(both.encode_query(TEXTS), untouched.encode(prompted), atol=1e-6)
    instructed = both.encode(TEXTS, task="instructed_query", prompt_name="query")
    np.testing.assert_allclose(instructed, encoder.encode(prompted), atol=1e-5)


def test_moved_back_all_the_way_it_is_the_untouched_one(config_of):
    config = config_of(weight_interpolation=1.0)
    encoder = moved(encoder_to_train(config))
    back = finished_encoders(config, encoder.state_dict())["encoder"]
    np.testing.assert_allclose(back.encode(TEXTS), encoder_to_train(config).encode(TEXTS), atol=1e-6)


def test_the_card_says_what_decided_the_encoder(config_of):
    result = {"instances": 1200, "steps": 75, "losses": [0.5], "evaluations": []}
    card = model_card(config_of(), result)
    for part in (
        "s3://dualview/facets",
        "views: both, 8 instances",
        "1,200 instances in 75 steps",
        "fingerprint",
    ):
        assert part in card


SIZES = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
DROPPING = {
    "bert": transformers.BertConfig(**SIZES, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5),
    "gte": transformers.GteConfig(
        **SIZES, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, pad_token_id=0
    ),
    "modernbert": transformers.ModernBertConfig(
        **SIZES, embedding_dropout=0.5, mlp_dropout=0.5, attention_dropout=0.5, pad_token_id=0
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, attention_dropout=0.5, num_key_value_heads=2, head_dim=16),
    "xlm-roberta": transformers.XLMRobertaConfig(
        **SIZES, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5
    ),
}


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_the_configs_and_the_export_keeps_the_makers_rates(tmp_path, name, dropout):
    folder = save_tiny_encoder(tmp_path / "model")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(DROPPING[name]).save_pretrained(folder)
    config = train_config(encoder__model=str(folder), encoder__dropout=dropout)
    learner = learner_of(config)
    assert learner.encoder.training
    features = {"input_ids": torch.tensor([[2, 7, 8, 9, 3]]), "attention_mask": torch.ones(1, 5)}
    with torch.no_grad():
        once, twice = (learner(dict(features), "query") for _ in range(2))
    assert torch.equal(once, twice) != dropout
    exported = finished_encoders(config, learner.encoder.state_dict())["encoder"]
    assert rates_of(exported[0].model.config) == rates_of(DROPPING[name])


def rates_of(config):
    return {key: value for key, value in config.to_dict().items() if "drop" in key}


@pytest.mark.parametrize("dropout", [False, True])
def test_checkpointed_activations_are_computed_again(config_of, tmp_path, dropout):
    """Seen at the first linear layer of the transformer; the loss and its gradients are the same."""
    passes, gradients = {}, {}
    for checkpointing in (False, True):
        config = config_of(encoder__activation_checkpointing=checkpointing, encoder__dropout=dropout)
        learner = learner_of(config)
        prepared = prepared_of(random_groups(), config, learner.encoder, tmp_path)
        retained = retained_by(encoder_to_train(config), prepared)
        layer = next(module for module in learner.encoder.modules() if isinstance(module, torch.nn.Linear))
        seen: list[int] = []
        layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        _, gradients[checkpointing] = learned(learner, config, prepared, retained)
        passes[checkpointing] = len(seen)
    assert passes[True] == 2 * passes[False]
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient)


def test_moving_back_is_a_share_of_the_way(tmp_path):
    encoder = tiny_encoder(tmp_path)
    untouched = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(4.0)
    interpolate_weights(encoder, untouched, 0.25)
    for name, weight in encoder.named_parameters():
        torch.testing.assert_close(weight.detach(), untouched[name] + 3.0)
