"""What a measurement with a stage of its own is, and what it is given to work with."""
