"""Numbers about numbers: which things count once, intervals, paired and unpaired tests. Nothing here knows a record."""
