"""Records: what a cell leaves behind, whether it still holds what was measured, and what it was made from."""
