"""latentbench: a spec in YAML becomes one row of numbers about a language model's hidden states that can be trusted.

A spec names a model, a layer, a sparse autoencoder (SAE) or steering vector, texts and metrics. It becomes cells, cells
become stages with content keys, stages are computed once and stored, and what a cell measured is one small record.

These are the rooms, from the bottom to the top. A module imports from its own room and from rooms that are listed before it,
never from one that comes after; imports inside of functions and for types alone count as well, and nothing goes round in
circles. `tests/unit/test_structure.py` reads this list and sees to it.

    core             what everything stands on: base of spec parts, errors, hashing, paths, plug-ins, interfaces of adapters
    statistics       numbers about numbers: what counts once, intervals, paired and unpaired tests
    store            artifacts by content key, files that are whole or absent, leases between workers
    distributed      work that several processes share: starting, watching and talking to each other
    activations      hidden states: where they are in a model, reading and replacing them, texts as tokens
    metrics          what a metric is: formulas over sums, and the values they give
    records          what a cell leaves behind, whether it still holds what was measured, and what it was made from
    sae              sparse autoencoders: options, variants, kernels, training, folders, sources
    interventions    what is done to a model while it runs: vectors, adapters, and writing text under them
    study            a measurement with a stage of its own, and what it is given to work with
    reconstruction   how well an SAE reconstructs hidden states: one pass over the documents, and its metrics
    latents          what can be said of single latents without explaining them
    autointerp       whether somebody who reads a latent's explanation can tell where it fires
    steering         ways to a steering vector, and what steering costs on neutral text
    concepts         what texts with a concept have that others have not: ways to write about it and to find it
    mechanism        how a steering vector works inside of the model
    flow             latents of neighbouring layers matched to each other, and what the matches are good for
    reasoning        reasoning accuracy under steering, against the unsteered model
    spec             the spec language: files, inheritance, cells, and what is wrong with them
    plan             which stages a cell needs, what is there already, and why the rest is made
    execute          computing the cells of a plan: executors, workers, stages, and the record at the end
    leaderboard      from records to tables and comparisons
    report           pages about what is inside of a cell's artifacts
    exchange         results of other tools in, ours out
    bench            measurements of the harness itself
    doctor           proof that this installation measures right
    cli              the command `latentbench`

`latentbench_adapters` stands beside them: it may import the rooms listed before `spec`, and no room imports it. What it
provides is found by name (`latentbench.core.plugins`).
"""
