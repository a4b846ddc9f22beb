"""The parts of vLLM's GPU path that can be tested without a GPU."""

import os
import subprocess
import sys

# On a GPU and with FlashInfer installed, vLLM 0.32 takes its sampler without asking whether it can be compiled.
ASKS_FOR_THE_SAMPLER = """
import dualview.engines.vllm
from vllm.platforms import current_platform
type(current_platform).is_cuda = lambda self: True
from vllm.v1.sample.ops.topk_topp_sampler import flashinfer_sampler_supported
print("FlashInfer's sampler:", flashinfer_sampler_supported())
"""


def test_an_engine_needs_no_cuda_compiler_to_start():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    process = subprocess.run(
        [sys.executable, "-c", ASKS_FOR_THE_SAMPLER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert "FlashInfer's sampler: False" in process.stdout
