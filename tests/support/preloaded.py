"""What the fork server of `tests.support.forked` imports once for all its children."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers.models.llama.modeling_llama

import harness.cli.app
import harness.cli.display
import harness.execute.group
import harness.execute.run
import harness.leaderboard
import harness.spec.reference

torch.set_num_threads(1)
__all__ = ["harness", "torch", "transformers"]
