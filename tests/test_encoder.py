"""Vectors are the same by whichever library the products of a CPU are made."""

import pytest
from tiny import tiny_encoder
import torch

from dualview import encoder as encoding
from dualview.encoder import OneDnnProducts, encode_texts

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@needs_onednn
def test_vectors_by_onednn_equal_those_by_default(tmp_path, monkeypatch):
    encoder = tiny_encoder(tmp_path)
    texts = ["chad exports oil", "fiji exports gold and fish", "laos", "only mali in africa"] * 3
    vectors = {}
    for is_slow in (False, True):
        monkeypatch.setattr(encoding, "_mkl_is_slow", lambda is_slow=is_slow: is_slow)
        vectors[is_slow] = encode_texts(encoder, texts, side="query", max_tokens=16, precision="fp32")
    torch.testing.assert_close(vectors[False], vectors[True], rtol=0, atol=1e-6)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_only_float32_goes_to_onednn(bias):
    seen = []
    linear = torch.nn.Linear(8, 4, bias=bias)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(2, 3, 8, dtype=dtype)
        expected = linear.to(dtype)(x)
        with torch.inference_mode(), torch.profiler.profile() as profile, OneDnnProducts():
            found = linear(x)
        assert found.dtype == dtype
        assert not found.is_mkldnn
        torch.testing.assert_close(found, expected)
        if any(event.key == "aten::mkldnn_linear" for event in profile.key_averages()):
            seen.append(dtype)
    assert seen == [torch.float32]
