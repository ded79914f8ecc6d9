"""Doors to other tools: their result files become records that say so, our records become files that they read.

    importing    files → records below results/records/imported/, all of them or none
    saebench     core results of SAEBench, both ways; its other evaluations in, and its older layouts (`saebench_layouts`)
    sae_lens     evaluations of sae-lens (JSON and CSV) in
    lm_eval      results of the LM Evaluation Harness in
    every_eval   logs in the Every Eval Ever schema out
    writing      folders of such files
    model_card   a Hugging Face model folder out
    sinks        runs of an experiment tracker out

An imported number keeps its tool's meaning: where a definition is ours it gets our name, where it is not it gets one of
its own and no direction, so that it is never ranked. Rows are ranked with measured ones only when all facts agree.
"""
