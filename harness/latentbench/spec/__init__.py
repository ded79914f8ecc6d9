"""The spec language: from YAML files to cells, and everything that is wrong with them, at its line.

project      the project folder, and which files the names on a command line mean
merge        `extends`: specs on top of others
experiment   what a spec can say
cells        a file becomes cells: cases, matrix, seeds
resolve      what is worked out before planning: layers counted from the end, training budgets
checks       rules between the parts of an experiment
fit          whether what an experiment names is there and fits together
reference    the JSON Schema and the reference page, generated from the parts themselves
"""
