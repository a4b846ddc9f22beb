"""The plan of a generate run, and the commit of its shards.

On the store of a run:

    plan.json                     what the run is; created once
    code/HASH.json                which code and libraries worked on it; one for each
    exam.json                     how the LLM judges did on gold pairs; created once
    plan-0001.json                inputs that came later; each extension is created once
    bad_rows.jsonl                rows of the inputs that are no seeds, and why (bad_rows-0001.jsonl: of the later)
    data/shard-000017.parquet     one finished shard; created once, never touched again
    near_duplicates.parquet       rows that repeat an earlier one, found when all shards stand; created once
                                  (near_duplicates-0001.parquet: again of all rows, after the first extension)
    README.md                     the data set card, where one was asked for (README-0001.md: of all rows, after
                                  the first extension)
    attempts/000017/3             the third attempt at shard 17 has begun
    lost/000017/ATTEMPT           ... and another was first; what this one spent
    marks/000017/3/000005         ... and was about to do row 5 alone

An object that exists is finished and a shard without one is to do, so there is nothing to merge, to mark
done or to lock: where two attempts overlap, the first put wins and the other is dropped.
"""
