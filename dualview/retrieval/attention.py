"""Attention without padding: all texts of a chunk in one row, each attending only to itself."""

# T = tokens of all texts, A = attention heads, K = heads of keys and values, E = size of a head

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Transformer
import torch
from transformers import AttentionInterface, AttentionMaskInterface

UNPADDED = "dualview_unpadded"
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias")
# What the models hand on to their attention, beside what they do with padding.
_FEATURES = ("position_ids", "cu_seq_lens_q", "max_length_q")


def can_skip_padding(transformer: Transformer) -> bool:
    """Whether the model hands on to its attention where each text begins, and the attention is one we compute."""
    model = transformer.model
    text = transformer.modality_config.get("text", {})
    return bool(
        text.get("method") == "forward"
        and getattr(model, "is_backend_compatible", lambda: False)()
        and not getattr(model.config, "attn_logit_softcapping", None)
        and not any(
            isinstance(value, float) and value > 0 and model.training
            for name, value in vars(model.config).items()
            if "attention" in name and "drop" in name
        )
    )


def skip_padding(transformer: Transformer) -> None:
    """Makes the model compute its attention without padding; its inputs are then those of `unpadded`."""
    transformer.model.set_attn_implementation(UNPADDED)
    if transformer.model_forward_params is not None:
        transformer.model_forward_params |= set(_FEATURES)


def unpadded(transformer: Transformer, tokens: Sequence[Sequence[int] | NDArray[np.int32]]) -> dict[str, Any]:
    """The inputs of texts in one row, (1, T). sentence-transformers' pooling knows `cu_seq_lens_q` and `seq_idx`."""
    lengths = np.array([len(ids) for ids in tokens])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    # RoBERTa and its descendants count positions from an offset.
    positions = (
        np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + transformer._infer_flatten_position_offset()
    )
    return {
        "input_ids": torch.from_numpy(np.concatenate(tokens).astype(np.int64)[None]),
        "position_ids": torch.from_numpy(positions[None]),
        "seq_idx": torch.from_numpy(np.repeat(np.arange(len(tokens)), lengths)[None]),
        "cu_seq_lens_q": torch.from_numpy(starts.astype(np.int32)),
        "max_length_q": int(lengths.max()),
    }


def _attention(
    module: torch.nn.Module,
    query_1ATE: torch.Tensor,
    key_1KTE: torch.Tensor,
    value_1KTE: torch.Tensor,
    _attention_mask: None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls an attention; returns (1, T, A, E).

    Raises ValueError if the model asks for what would change the scores and is not computed here.
    """
    if asked := [name for name in _NOT_COMPUTED if others.get(name) is not None]:
        raise ValueError(f"attention without padding does not compute {', '.join(asked)}; this is a bug")
    repeats = query_1ATE.shape[1] // key_1KTE.shape[1]
    query, key, value = (
        states.squeeze(0).transpose(0, 1) for states in (query_1ATE, key_1KTE, value_1KTE)
    )  # (T, heads, E)
    # Autocast casts no inputs of an operator that it does not know.
    if torch.is_autocast_enabled(query.device.type):
        lower = torch.get_autocast_dtype(query.device.type)
        query, key, value = (states.to(lower) for states in (query, key, value))
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # As transformers counts: a token sees sliding_window - 1 tokens before it, and after it unless causal.
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if is_causal else reach)
    if not query.is_cuda:
        plain = _one_text_after_the_other(query, key, value, cu_seq_lens_q, max_length_q, scaling, window)
        return plain.unsqueeze(0), None
    from torch.nn.attention.varlen import varlen_attn  # needs CUDA and bf16

    starts, longest = cu_seq_lens_q, max_length_q
    attended = varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=window
    )
    assert isinstance(attended, torch.Tensor)
    return attended.unsqueeze(0), None


def _one_text_after_the_other(
    query_TAE: torch.Tensor,
    key_TAE: torch.Tensor,
    value_TAE: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    """The same in plain operations, for the CPU, where only tests call it."""
    distances = torch.arange(longest) - torch.arange(longest)[:, None]  # key - query
    before, after = (longest if reach < 0 else reach for reach in window)
    visible = (distances >= -before) & (distances <= after)
    attended = []
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        query, key, value = (states[start:stop].transpose(0, 1) for states in (query_TAE, key_TAE, value_TAE))
        mask = visible[: stop - start, : stop - start]
        of_text = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling
        )
        attended.append(of_text.transpose(0, 1))
    return torch.cat(attended)


AttentionInterface.register(UNPADDED, _attention)
AttentionMaskInterface.register(UNPADDED, lambda *_, **__: None)
