"""sentence-transformers models as their makers built them: our vectors are theirs, and training reaches every module."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Router,
    Transformer,
)
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

from dualview.errors import InputError
from dualview.models import SIDES, pooling_of, saved_settings
from dualview.retrieval.embeddings import EmbeddingSpec
from dualview.retrieval.encoder import as_read_with, encode, encoder_of, load_encoder, new_encoder
from dualview.training.export import finished_encoders
from dualview.training.model import encoder_to_train, learner_of, untouched_encoder

TEXTS = ["exports of chad", "what", "only in africa and not in asia and fiji " * 2]
DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
PROMPTS = {"query": "exports: ", "document": "in asia "}


def gemma() -> transformers.PreTrainedConfig:
    return transformers.Gemma3TextConfig(**DECODER, sliding_window=4, use_bidirectional_attention=True)


MODELS = {  # configuration, modules after the transformer, prompts, other settings
    "bert, dense and layer norm": (
        lambda: transformers.BertConfig(**SIZES),
        lambda: [Pooling(32, "mean"), Dense(32, 16), LayerNorm(16), Normalize()],
        {},
    ),
    "bert, weighted mean, dot product": (
        lambda: transformers.BertConfig(**SIZES),
        lambda: [Pooling(32, "weightedmean")],
        {},
    ),
    "bert, prompt not in the pooling": (
        lambda: transformers.BertConfig(**SIZES),
        lambda: [Pooling(32, "mean", include_prompt=False), Normalize()],
        PROMPTS,
    ),
    "xlm-roberta, prompts": (
        lambda: transformers.XLMRobertaConfig(**SIZES),
        lambda: [Pooling(32, "mean"), Normalize()],
        PROMPTS,
    ),
    "modernbert": (
        lambda: transformers.ModernBertConfig(**SIZES),
        lambda: [Pooling(32, "cls"), Normalize()],
        {},
    ),
    "gte, cosine without normalisation": (
        lambda: transformers.GteConfig(**SIZES),
        lambda: [Pooling(32, "cls")],
        {},
    ),
    "qwen3, last token, left padding": (
        lambda: transformers.Qwen3Config(**DECODER),
        lambda: [Pooling(32, "lasttoken"), Normalize()],
        {"query": "exports: ", "document": ""},
    ),
    "gemma3, mean and two dense": (
        gemma,
        lambda: [
            Pooling(32, "mean"),
            Dense(32, 64, bias=False, activation_function=torch.nn.Identity()),
            Dense(64, 32, bias=False, activation_function=torch.nn.Identity()),
            Normalize(),
        ],
        PROMPTS,
    ),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    make_config, make_modules, prompts = MODELS[request.param]
    bare = save_tiny_encoder(tmp_path / "bare")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(make_config()).save_pretrained(bare)
    transformer = Transformer(str(bare))
    transformer.tokenizer.padding_side = "left" if "left" in request.param else "right"
    similarity = "dot" if "dot" in request.param else "cosine"
    modules = [transformer, *make_modules()]
    saved = SentenceTransformer(modules=modules, prompts=prompts, similarity_fn_name=similarity, device="cpu")
    with torch.no_grad():  # also of modules that begin as the identity
        for weight in saved.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    saved.save(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def config_of(model, **changes):
    prompts = {"query": "", "document": ""} | saved_settings(model).prompts
    return train_config(encoder__model=model, encoder__pooling=None, encoder__prompts=prompts, **changes)


def theirs(model, side):
    encoder = SentenceTransformer(model, device="cpu")
    encoded = (encoder.encode_query if side == "query" else encoder.encode_document)(TEXTS)
    lengths = np.linalg.norm(encoded, axis=1, keepdims=True)
    return encoded / lengths if encoder.similarity_fn_name == "cosine" else encoded


@pytest.mark.parametrize("side", SIDES)
def test_our_vectors_are_the_models_own(model, side):
    saved = saved_settings(model)
    pooling = pooling_of(model, None)
    spec = EmbeddingSpec("any", side, pooling, saved.prompts[side], 64, "fp32")
    for encoder in (
        encoder_of(model, pooling, trust_remote_code=False),
        new_encoder(model, pooling=None, trust_remote_code=False),
    ):
        np.testing.assert_allclose(encode(encoder, spec, TEXTS).vectors_NE, theirs(model, side), atol=1e-6)


@pytest.mark.parametrize(
    "lora", [None, {"rank": 4, "alpha": 8.0, "target_modules": "all-linear"}], ids=["full", "lora"]
)
def test_a_gradient_reaches_every_trained_weight(model, lora, tmp_path):
    config = config_of(model, encoder__lora=lora, encoder__train_word_embeddings=True)
    learner = learner_of(config)
    if lora:
        with torch.no_grad():  # an adapter begins with a zero, behind which its other half gets no gradient
            for name, weight in learner.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
    prepared = prepared_of(random_groups(), config, learner.encoder, tmp_path)
    retained = retained_by(untouched_encoder(config), prepared)
    loss, gradients = learned(learner, config, prepared, retained)
    assert np.isfinite(loss)
    trained = {name for name, weight in learner.named_parameters() if weight.requires_grad}
    unused = {name for name in trained if "position_embeddings" in name or "pooler" in name}
    reached = {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}
    assert trained - unused <= reached
    assert any(".linear." in name for name in reached) == ("Dense" in saved_settings(model).modules)


def test_the_exported_document_side_is_the_models_own_bit_for_bit(model, tmp_path):
    config = config_of(model, train="query_encoder", weight_interpolation=0.0)
    trained = encoder_to_train(config)
    with torch.no_grad():
        for weight in trained.parameters():
            weight += 0.1
    for name, encoder in finished_encoders(config, trained.state_dict()).items():
        encoder.save(str(tmp_path / name))
    exported, query = (
        SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("encoder", "query")
    )
    own = SentenceTransformer(model, device="cpu")
    assert exported.similarity_fn_name == own.similarity_fn_name
    np.testing.assert_array_equal(exported.encode_document(TEXTS), own.encode_document(TEXTS))
    np.testing.assert_array_equal(exported.encode_query(TEXTS), own.encode_query(TEXTS))
    prompt = saved_settings(model).prompts["query"]
    instructed = exported.encode(TEXTS, task="instructed_query", prompt=prompt)
    np.testing.assert_allclose(query.encode_query(TEXTS), instructed, atol=1e-6)
    assert sum(weight.numel() for weight in query.parameters()) == sum(
        weight.numel() for weight in own.parameters()
    )
    assert np.abs(instructed - own.encode_query(TEXTS)).max() > 1e-3


def test_a_pooling_that_contradicts_the_models_own_is_refused(tmp_path):
    bare = str(save_tiny_encoder(tmp_path / "bare"))
    new_encoder(bare, pooling="cls", trust_remote_code=False).save(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"encoder\.pooling: mean, but .* was made with cls; expected null"):
        new_encoder(str(tmp_path / "saved"), pooling="mean", trust_remote_code=False)
    with pytest.raises(InputError, match=r"encoder\.pooling: null, but .* is a bare transformer"):
        new_encoder(bare, pooling=None, trust_remote_code=False)


def test_a_model_with_an_encoder_for_each_side_is_not_trained(tmp_path):
    bare = str(save_tiny_encoder(tmp_path / "bare"))
    sides = [list(new_encoder(bare, pooling="cls", trust_remote_code=False).children()) for _ in range(2)]
    router = Router.for_query_document(query_modules=sides[0], document_modules=sides[1])
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "both"))
    assert load_encoder(str(tmp_path / "both"), trust_remote_code=False)
    with pytest.raises(InputError, match=r"encoder\.model: .* begins with a Router"):
        new_encoder(str(tmp_path / "both"), pooling=None, trust_remote_code=False)


def test_a_last_token_that_is_not_the_end_of_the_text_is_told(tmp_path):
    bare = save_tiny_encoder(tmp_path / "bare")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bare)
    tokenizer.eos_token = "[SEP]"
    with_end, without = (
        tokenizer("exports of chad")["input_ids"],
        tokenizer("exports of chad")["input_ids"][:-1],
    )
    assert as_read_with(tokenizer, with_end, reads_last=True) == "[CLS] exports of chad [SEP]"
    assert "WARNING: the vector is that of the last token, which is not '[SEP]'" in as_read_with(
        tokenizer, without, reads_last=True
    )
    assert as_read_with(tokenizer, without, reads_last=False) == "[CLS] exports of chad"
    long = as_read_with(tokenizer, with_end[:-1] * 40 + with_end[-1:], reads_last=True)
    assert long.startswith("[CLS] exports")
    assert " ... " in long
    assert long.endswith("[SEP]")
