"""Artifacts by content key, made by one worker at a time and whole or absent.

store      the store: reading, writing and sharing artifacts
leases     who is making what, among processes that may die at any time
cleaning   what can leave: what nobody needs, what exceeds a quota, what the dead have left
state_cache  room for stored hidden states
depot      what travels between machines that share no disk
derived    what follows from files, kept by their content
files      files that are written whole
"""
