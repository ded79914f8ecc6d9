"""What a cell leaves behind: one small file of numbers, and the statistics that they follow from beside it.

record      what a record says
results     records on disk
numbers     the numbers of a record as columns
integrity   whether a record still holds what was measured
reading     many records, each checked once
slim        a record without the parts that it shares
lineage     what an artifact was made from, and which records refer to it
"""
