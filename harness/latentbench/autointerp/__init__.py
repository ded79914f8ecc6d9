"""Autointerp: can somebody who reads a latent's explanation tell where it fires? With and without a language model as the judge.

    FiringCounter ──▶ sample latents ──▶ Collector ──▶ questions ──▶ judging ──▶ scores ──▶ study
    (passes, 1st)     (sampling)         (collection, 2nd pass; asked about disjoint texts)

What published implementations get wrong is ruled out by construction: explanations and questions come from disjoint
halves of the documents and share no text (checked, not hoped); "inactive" windows are windows whose activations were
looked at; classes are balanced, so a judge that always says the same scores 0.5; the number of true questions in a prompt
is random and never stated; a failed request costs its questions and is counted."""
