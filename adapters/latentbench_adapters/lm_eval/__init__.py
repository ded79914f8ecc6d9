"""lm-eval's tasks, and a steered model as one of its models.

`catalogue` and `task_file` know tasks without importing lm-eval; `tasks`, `model` and `scoring` need it.
"""
