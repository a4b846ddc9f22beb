"""Vectors are the same by whichever library the products of a CPU are made."""

import pytest
from tiny import tiny_encoder
import torch

from dualview.retrieval import encoder as encoding
from dualview.retrieval.encoder import OneDnnProducts, encode_texts

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def with_library(function):
    """The function's result, and whether oneDNN computed a product in it."""
    with torch.profiler.profile() as profile:
        found = function()
    return found, any(event.key == "aten::mkldnn_linear" for event in profile.key_averages())


def test_vectors_by_onednn_equal_those_by_default(tmp_path, monkeypatch):
    encoder = tiny_encoder(tmp_path)
    texts = ["chad exports oil", "fiji exports gold and fish", "laos", "only mali in africa"] * 3

    def encode(is_slow, precision):
        monkeypatch.setattr(encoding, "_mkl_is_slow", lambda: is_slow)
        return with_library(
            lambda: encode_texts(encoder, texts, side="query", max_tokens=16, precision=precision)
        )

    by_default, is_onednn = encode(False, "fp32")
    assert not is_onednn
    by_onednn, is_onednn = encode(True, "fp32")
    assert is_onednn
    torch.testing.assert_close(by_default, by_onednn, rtol=0, atol=1e-6)
    _, is_onednn = encode(True, "bf16")
    assert not is_onednn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_only_float32_goes_to_onednn(bias, dtype):
    linear = torch.nn.Linear(8, 4, bias=bias, dtype=dtype)
    x = torch.randn(2, 3, 8, dtype=dtype)
    expected = linear(x)
    with torch.inference_mode(), OneDnnProducts():
        found, is_onednn = with_library(lambda: linear(x))
    torch.testing.assert_close(found, expected)
    assert is_onednn == (dtype == torch.float32)
