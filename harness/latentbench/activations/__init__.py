"""Hidden states of a causal language model: where they are, and how they are read and replaced.

blocks             the parts of a decoder, found by structure
residual           what a block's attention and MLP add to the residual stream, measured on the loaded model
capture            reading hidden states in a pass that runs no further than it must
chosen_logits      logits at some positions, without those of all others
fitting            how much runs at once: as much as memory is free for, and half of it where it runs out
resume             what the model says when one hidden state is replaced, without running the blocks before it
tokens             documents as rows of token ids, for training and for evaluation
token_boundaries   where a long text can be cut without changing the tokens before the cut
vocabulary         which ids and positions a model can read
model_config       what a model's config.json states, read without torch
"""
