"""What a run would do, before anything runs: `stages` names content by key, `plan` says which of it is there already."""
