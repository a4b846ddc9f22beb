"""The objects that a generate run keeps in its store; GenerateRun in run.py reads them.

    plan.json                     what the run is; created once
    code/HASH.json                which code and libraries worked on it; one for each
    exam.json                     how the LLM judges did on gold pairs; created once
    plan-0001.json                inputs that came later; each extension is created once
    bad_rows.jsonl                input rows that are not valid examples, and why (bad_rows-0001.jsonl: of later inputs)
    data/shard-000017.parquet     one finished shard; created once, never changed
    near_duplicates.parquet       rows that repeat an earlier one, listed once all shards exist; created once
                                  (near_duplicates-0001.parquet: again of all rows, after the first extension)
    README.md                     the data set card, if one was asked for (README-0001.md: of all rows, after
                                  the first extension)
    attempts/000017/3             the third attempt at shard 17 began
    lost/000017/ATTEMPT           an attempt at shard 17 finished after another one; what it spent
    marks/000017/3/000005         a breadcrumb: the third attempt at shard 17 was about to run row 5 in isolation

A shard is finished if its object exists and to do otherwise, so there is nothing to merge, to mark as done or to
lock: if two attempts overlap, the first put wins and the other is dropped.
"""
