"""The documents of a catalog: a sample of the corpus, with metadata and vectors. Files under the output:

corpus.jsonl     the documents to learn from and to search; created once
embeddings/      their vectors, see retrieval/embeddings.py, unless `embeddings` names another place
"""

# D = documents, E = embedding size

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
import hashlib
import heapq
import json
import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import pyarrow.parquet as pq

from dualview.beir import read_rows
from dualview.catalog.attributes import Attribute, Unusable, attributes_of
from dualview.config.adapt import AdaptConfig
from dualview.distributed.embeddings import ensure_embeddings
from dualview.errors import InputError
from dualview.models import Side, model_fingerprint, pooling_of, saved_settings
from dualview.pipelines.index import Model, take_over
from dualview.records import Passage
from dualview.retrieval.embeddings import EmbeddingSpec, Wanted, gather, keys_of, locate
from dualview.storage import Store, arrow_filesystem, open_store

logger = logging.getLogger(__name__)

CORPUS_KEY = "corpus.jsonl"
MIN_DOCUMENTS = 200
_VECTORS = ("vector", "embedding", "embeddings", "values")  # as pipelines/index.py reads them
_OWN_COLUMNS = frozenset({"_id", "id", "title", "text", "metadata", *_VECTORS})


@dataclass(frozen=True)
class Documents:
    passages: Sequence[Passage]
    metadata: Sequence[Mapping[str, Any]]
    vectors_DE: NDArray[np.float32]

    @cached_property
    def attributes(self) -> tuple[list[Attribute], list[Unusable]]:
        return attributes_of(self.metadata)

    @property
    def texts(self) -> list[str]:
        return [passage.full_text for passage in self.passages]


def keep_sample(config: AdaptConfig, store: Store) -> None:
    """Puts corpus.jsonl: all usable documents, or a random sample of `config.sample` in their order.

    One pass over the corpus, in memory that does not grow with it. Leaves out documents without text and repeated ids, and
    says how many (repeated ids among the sample). Raises InputError if the corpus cannot be read
    or too few documents remain.
    """
    if store.list(CORPUS_KEY):
        return
    left_out = Counter[str]()
    kept: list[tuple[int, int, str]] = []  # a heap: minus the hash, the place in the corpus, the line
    draws: set[int] = set()  # of the kept ones
    total = 0
    for total, row in enumerate(_rows(config.corpus), start=1):
        document = _document(row)
        if document is None:
            left_out["without text"] += 1
            continue
        draw = _hash(f"{config.seed}:{document['_id']}")
        if draw in draws:
            left_out["with the id of an earlier one"] += 1
            continue
        if len(kept) == config.sample:
            if draw > -kept[0][0]:
                continue
            draws.remove(-heapq.heappop(kept)[0])
        draws.add(draw)
        heapq.heappush(kept, (-draw, total, json.dumps(document, ensure_ascii=False)))
    for reason, number in left_out.items():
        logger.warning(f"{config.corpus}: left out {number:,} documents {reason}")
    if len(kept) < MIN_DOCUMENTS:
        raise InputError(
            f"{config.corpus}: has {len(kept)} documents with a text; expected at least {MIN_DOCUMENTS}, because a tenth of"
            " them must suffice for a test"
        )
    if len(kept) < total - sum(left_out.values()):
        logger.info(f"{config.corpus}: a random sample of {len(kept):,} of {total:,} documents (`sample`)")
    lines = [line for _, _, line in sorted(kept, key=lambda item: item[1])]
    store.put_new(CORPUS_KEY, ("\n".join(lines) + "\n").encode(), attempt="driver")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def _rows(url: str) -> Iterator[Mapping[str, Any]]:
    if not url.endswith(".parquet"):
        yield from (row.columns for row in read_rows(url))
        return
    filesystem, path = arrow_filesystem(url)
    try:
        with filesystem.open_input_file(path) as file:
            content = pq.ParquetFile(file)
            columns = [name for name in content.schema_arrow.names if name not in _VECTORS]
            for batch in content.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{url}: cannot be read ({str(error).splitlines()[0]})") from None


def _document(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row as one of ours; None without an id or a text."""
    id, title, text = row.get("_id", row.get("id")), row.get("title"), row.get("text")
    if id in (None, "") or not isinstance(text, str) or not text.strip():
        return None
    metadata = {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
    nested = row.get("metadata")
    if isinstance(nested, str):  # as other tools write a column of several types
        try:
            nested = json.loads(nested)
        except ValueError:
            nested = None
    if isinstance(nested, Mapping):
        metadata |= nested
    title = title if isinstance(title, str) else ""
    return {"_id": str(id), "title": title, "text": text, "metadata": _plain(metadata)}


def _plain(value: Any) -> Any:
    """The value as JSON has it: dates and other objects of Parquet as texts, NaN and infinities as null."""
    match value:
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
    return str(value)


# --- vectors --------------------------------------------------------------------------------------


def spec_of(config: AdaptConfig, side: Side) -> EmbeddingSpec:
    encoder = config.encoder
    return EmbeddingSpec(
        model=model_fingerprint(encoder.model, side),
        side=side,
        pooling=pooling_of(encoder.model, encoder.pooling),
        prompt=saved_settings(encoder.model).prompts[side],
        max_tokens=encoder.max_passage_tokens if side == "document" else encoder.max_query_tokens,
        precision=encoder.precision,
    )


def vectors_store(config: AdaptConfig) -> Store:
    return open_store(config.embeddings or f"{config.output.rstrip('/')}/embeddings")


def encode_documents(config: AdaptConfig, store: Store) -> None:
    """Takes over the vectors of the index, if there is one, and encodes the documents that have none yet."""
    passages, _ = read_corpus(store)
    texts = [passage.full_text for passage in passages]
    if config.index is not None:
        by_id = config.index.vectors.endswith(".npy") and config.index.corpus is None
        index = (
            config.index.model_copy(update={"corpus": f"{store.url}/{CORPUS_KEY}"}) if by_id else config.index
        )
        keys = np.unique(keys_of(texts))
        model = Model(config.encoder.model, config.encoder.trust_remote_code, config.actors)
        take_over(
            index, model, vectors_store(config), spec_of(config, "document"), keys, np.zeros(len(keys), bool)
        )
    wanted = Wanted(
        config.encoder.model,
        spec_of(config, "document"),
        keys_of(texts),
        partial(_pick, texts),
        list,
        config.rows_per_shard,
    )
    ensure_embeddings(
        vectors_store(config), [wanted], config.actors, trust_remote_code=config.encoder.trust_remote_code
    )


def _pick(texts: Sequence[str], numbers: Sequence[int]) -> list[str]:
    return [texts[number] for number in numbers]


def read_documents(config: AdaptConfig, store: Store) -> Documents:
    """The documents and their vectors, after keep_sample and encode_documents."""
    passages, metadata = read_corpus(store)
    cache, spec = vectors_store(config), spec_of(config, "document")
    units = locate(cache, spec, keys_of([passage.full_text for passage in passages]))
    return Documents(passages, metadata, gather(cache, units))


def read_corpus(store: Store) -> tuple[list[Passage], list[Mapping[str, Any]]]:
    """The documents of corpus.jsonl, and their metadata."""
    text = store.get(CORPUS_KEY).decode()  # lines end only at \n: a text may contain U+2028
    rows = [json.loads(line) for line in text.split("\n") if line]
    return (
        [Passage(row["_id"], text=row["text"], title=row["title"]) for row in rows],
        [row["metadata"] for row in rows],
    )
