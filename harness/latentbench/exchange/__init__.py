"""Import and export: result files of other tools become records that say so, our records become files that they read.

importing        files → records below results/records/imported/, all of them or none
foreign          a result of another tool, read strictly, before it becomes a record
saebench         core results of SAEBench, both ways; its other evaluations in, also from its older layouts
sae_lens         evaluations of sae-lens (JSON and CSV) in
sae_metrics      the numbers that both report, under our names
lm_eval          results of the LM Evaluation Harness in
every_eval_ever  logs in the Every Eval Ever schema out
exporting        folders of such files, model cards, runs of an experiment tracker
sae_export       the SAE of a cell as a folder for sae-lens, for another spec, or for the hub
vector_export    the steering vectors of a cell as a file for other tools"""
