"""The pocket model's word problems as lm-eval tasks."""
