"""The first stage: what instructions may ask for, and what the vectors know of it."""

from collections.abc import Iterator
from uuid import uuid4

from dualview.beir import read_lines
from dualview.catalog.probe import is_usable, probe
from dualview.catalog.vocabulary import draft, parse, to_yaml
from dualview.config.base import fingerprint, plain_json
from dualview.errors import InputError
from dualview.pipelines.adapt.state import PROBE_KEY, VOCABULARY_KEY, AdaptRun


def find_out(run: AdaptRun) -> Iterator[str]:
    """Puts vocabulary.yaml, unless there is one, and probe.json."""
    config, draft_settings = run.config, run.config.draft
    if not run.store.list(VOCABULARY_KEY):
        if config.vocabulary is None:
            drafted = draft(
                config.noun, run.attributes, draft_settings.min_documents, draft_settings.max_values
            )
            text = to_yaml(drafted)
        else:
            text = "\n".join(line for _, line in read_lines(config.vocabulary))
            parse(text, config.vocabulary, run.attributes)
        run.store.put_new(VOCABULARY_KEY, text.encode(), attempt=uuid4().hex)
    probes = probe(run.documents.vectors_DE, run.labels_DV, config.seed)
    num_known = sum(is_usable(found.auc, draft_settings.min_auc) for found in probes)
    report = {
        "num_documents": len(run.documents.passages),
        "unusable": {found.name: found.reason for found in run.documents.attributes[1]},
        "odd": {attribute.name: attribute.num_odd for attribute in run.attributes if attribute.num_odd},
        "known": {attribute.name: attribute.num_known for attribute in run.attributes},
        "vocabulary": fingerprint(run.vocabulary_text),
        "values": [
            {"attribute": value.attribute, "value": value.value, **found._asdict()}
            for value, found in zip(run.values, probes, strict=True)
        ],
    }
    if not num_known:
        best = max(probes, key=lambda found: (found.auc >= 0, found.auc))
        value = run.values[probes.index(best)]
        raise InputError(
            f"{config.corpus}: the vectors know no value of the metadata well enough; the best is {value.attribute} ="
            f" {value.value} with an AUC of {best.auc:.2f}, and draft.min_auc is {draft_settings.min_auc}. Instructions"
            " can work only on what the documents' texts say"
        )
    run.store.put_new(PROBE_KEY, plain_json(report, indent=1).encode(), attempt=uuid4().hex)
    yield f"the vectors know {num_known} of {len(probes)} values well enough for instructions"
