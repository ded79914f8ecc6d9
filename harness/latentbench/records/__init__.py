"""What a cell leaves behind: one small file of numbers, and the statistics that they follow from beside it.

record      what a record says
results     records on disk
integrity   whether a record still holds what was measured
lineage     what an artifact was made from, and which records refer to it
"""
