"""From records to tables: the leaderboard, the HTML report and the comparison of two runs.

api          what the command line calls
load         records and their per-document statistics from disk, and which record is the current one
board        what a leaderboard is: columns, values, rows, groups
build        records → Board: rows over seeds, groups of rows that were measured alike, columns
ahead        rows of many new records, worked out by other processes
evidence     the statistics per unit behind a row's numbers, and its intervals
inference    tests and ties of rows
pairs        tests by which a page judges ties among the rows that its reader keeps
select       which records a reader means
compare      two runs or sets of runs
row_details  what the report shows of a row beside its numbers
render       one module per format, and `text` for what they share"""
