"""What a steering vector does inside the model, as studies that a spec can ask for (see harness/latentbench/steering/mechanism)."""
