"""The torch side of the studies in harness/metrics/flow."""
