"""The studies of a steering vector's mechanism that a spec can ask for. Importing them imports no torch."""
