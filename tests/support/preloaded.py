"""What the fork server of `tests.support.forked` imports once for all its children."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers.models.llama.modeling_llama

import latentbench.cli.app
import latentbench.execute.job_runner
import latentbench.execute.run
import latentbench.leaderboard
import latentbench.spec.reference

torch.set_num_threads(1)
__all__ = ["latentbench", "torch", "transformers"]
