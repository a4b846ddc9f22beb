"""Searches an adapted index for one query, before and after an instruction."""

from collections.abc import Sequence

import numpy as np

from dualview.catalog.attributes import UNKNOWN, YES
from dualview.catalog.reading import obeying, read
from dualview.errors import InputError
from dualview.evaluation.side_by_side import Found, Hit
from dualview.pipelines.adapt.documents import read_documents
from dualview.pipelines.adapt.run import read_config, read_strength
from dualview.pipelines.adapt.state import AdaptRun
from dualview.retrieval.encoder import load_encoder
from dualview.storage import check_reachable, open_store
from dualview.training.instruction_encoder import encode_instructions


def search_adapted(
    url: str, query: str, instructions: Sequence[str], strength: float | None, num_hits: int = 10
) -> list[Found]:
    """The best documents for the query alone, and with each instruction at this strength (None: the run's own).

    Documents are marked by whether they obey the instruction, as far as it can be read as requirements on the metadata.
    Raises InputError if there is no trained run at `url`.
    """
    store = open_store(url)
    check_reachable(store)
    config = read_config(store)
    chosen = read_strength(store) if strength is None else strength
    if not instructions:
        raise InputError('--instruction: expected one or several, for example --instruction "No comedies."')
    documents = read_documents(config, store)
    encoder = load_encoder(f"{store.url}/encoder", trust_remote_code=config.encoder.trust_remote_code)
    [query_E] = AdaptRun(config, store).encode_queries([query])
    added = encode_instructions(encoder, list(instructions))
    found = []
    for instruction, added_E in zip(instructions, added, strict=True):
        obeys_D = obeying(read(instruction, documents.attributes[0]))
        columns = {
            "query alone": query_E,
            f"with the instruction, strength {chosen:g}": query_E + chosen * added_E,
        }
        hits = {}
        for name, vector_E in columns.items():
            best = np.argsort(-(documents.vectors_DE @ vector_E), kind="stable")[:num_hits].tolist()
            hits[name] = [
                Hit(
                    documents.passages[place],
                    None if obeys_D is None or obeys_D[place] == UNKNOWN else bool(obeys_D[place] == YES),
                )
                for place in best
            ]
        found.append(Found(query, instruction, hits))
    return found
