"""The torch side of the studies in harness/latentbench/metrics/flow."""
