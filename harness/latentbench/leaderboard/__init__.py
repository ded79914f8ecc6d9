"""From records to tables: the leaderboard, the HTML report and the comparison of two runs.

    load        records and their per-document statistics from disk
    table       records → Board: rows over seeds, groups of rows that were measured alike, columns
    grouping    which rows were measured alike;  evidence  their statistics per unit
    statistics  paired tests, Holm, seeds;  unpaired  tests where rows have units of their own
    inference   which of both a row's evidence asks for;  ties  who cannot be told from the best
    compare     two runs or sets of runs;  select: which records a name means
    curves      training curves from the store;  pages  what lies beside the report
    render      Markdown, terminal, JSON, CSV, Parquet, LaTeX and offline HTML files

Everything shown is a pure function of the records (and, for training curves, of the store they name).
"""

from latentbench.leaderboard.api import compare_records, leaderboard, leaderboard_parquet, write_leaderboard_md

__all__ = ["compare_records", "leaderboard", "leaderboard_parquet", "write_leaderboard_md"]
