import re

from finished_run import finish_run, row

from dualview.config.generate import NearDuplicates
from dualview.distributed.cluster import map_in_order
from dualview.storage import open_store
from dualview.synthesis.card import put_card
from dualview.synthesis.duplicates import mark_near_duplicates

NEAR = NearDuplicates(threshold=0.9, num_perm=64, ngram=2)


def test_ray_data_reads_the_rows_as_the_card_says(cluster, tmp_path):
    store = open_store(str(tmp_path))
    shards = [[row("a"), row("b", trainable=False)], [row("c"), row("d", new_instruction="Only islands.")]]
    run = finish_run(store, shards, {"near_duplicates": NEAR.model_dump(mode="json")})
    mark_near_duplicates(run, NEAR, each=map_in_order)
    assert run.near_duplicates()["seed_id"].to_pylist() == ["c"]
    put_card(run)
    card = (tmp_path / "README.md").read_text()
    [code] = re.findall(r"^Ray Data:\n\n```python\n(.*?)```", card, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code.replace("DATA", str(tmp_path)), names)
    expected = {each["id"]: each for table in run.trainable_tables() for each in table.to_pylist()}
    assert expected.keys() == {"a", "d"}
    read = {each["id"]: each for each in names["rows"].take_all()}
    assert read.keys() == expected.keys()
    for id, there in read.items():
        assert str(there["instruction_negatives"]) == str(expected[id]["instruction_negatives"])
        assert there["new_instruction"] == expected[id]["new_instruction"]
