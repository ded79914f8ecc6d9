"""lm-eval: its tasks, and a steered model as one of its models. `catalogue`, `task_file` and `task_schema` know tasks without importing it."""
