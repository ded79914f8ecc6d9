"""From records to tables: the leaderboard, the HTML report and the comparison of two runs.

    load        records and their per-document statistics from disk
    table       records → Board: rows over seeds, groups of rows that were measured alike, columns
    statistics  paired tests, Holm, seeds;  ties: who cannot be told from the best
    compare     two runs or sets of runs;  select: which records a name means
    render      Markdown, terminal, JSON, CSV and one offline HTML file

Everything shown is a pure function of the records.
"""

from harness.leaderboard.api import compare_records, leaderboard, write_leaderboard_md

__all__ = ["compare_records", "leaderboard", "write_leaderboard_md"]
