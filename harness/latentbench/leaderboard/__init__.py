"""From records to tables: the leaderboard, the HTML report and the comparison of two runs.

api          what the command line calls
load         records and their per-document statistics from disk
build        records → Board: rows over seeds, groups of rows that were measured alike, columns
board        what a leaderboard is: columns, values, rows, groups
inference    intervals, tests and ties of rows, from their statistics per unit
compare      two runs or sets of runs;  select: which records a reader means
row_details  what the report shows of a row beside its numbers
render       one module per format"""
