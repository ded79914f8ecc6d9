"""Import and export: result files of other tools become records that say so, our records become files that they read.

importing        import: files to records below results/records/imported/, all of them or none
foreign          a result of another tool, read strictly, before it becomes a record
saebench         import of SAEBench's evaluations, from its older layouts too; export of core results
sae_lens         import of sae-lens' evaluations (JSON and CSV)
sae_metrics      the numbers that SAEBench and sae-lens both report, under our names
lm_eval          import of results of the LM Evaluation Harness
every_eval_ever  export of logs in the Every Eval Ever schema
exporting        export: folders of such files, model cards, runs of an experiment tracker
sae_export       the SAE of a cell as a folder for sae-lens, for another spec, or for the hub
vector_export    the steering vectors of a cell as a file for other tools"""
