"""lm-eval: its tasks, and a steered model as one of its models; `suite` is the way in.

Of the modules here only `steered_model` imports lm-eval, and torch, when it is loaded; `tasks` does when it loads a task.
"""
