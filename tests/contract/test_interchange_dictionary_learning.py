"""SAEs that dictionary_learning saved are read as it computes them; pickles are refused, not executed."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.core.paths import Roots
from latentbench.sae.linear import ConcatenatedSAE
from latentbench.sae.sources.base import SaeFacts
from latentbench_adapters.dictionary_learning import DictionaryLearningSource
from tests.support.saes import Weights, hidden_states, random, strongest

D, F, K = 12, 40, 4
Latents = Callable[[Weights, Tensor], Tensor]


def agree(source: DictionaryLearningSource, folder: Path, latents: Tensor, reconstruction: Tensor) -> None:
    sae = source.load(Roots(folder))
    assert (sae.d_in, sae.width) == (D, F)
    assert (latents != 0).any(1).all()
    torch.testing.assert_close(sae.encode(hidden_states()).dense(F), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(hidden_states()), reconstruction, rtol=1e-4, atol=1e-5)


LINEAR: dict[str, tuple[int, ...]] = {"encoder__weight": (F, D), "encoder__bias": (F,), "decoder__weight": (D, F)}
RIGHT: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
GATED: dict[str, tuple[int, ...]] = {
    "encoder__weight": (F, D),
    "decoder__weight": (D, F),
    "r_mag": (F,),
    "gate_bias": (F,),
    "mag_bias": (F,),
    "decoder_bias": (D,),
}


def gated(w: Weights, x: Tensor) -> Tensor:
    rows = (x - w["decoder_bias"]) @ w["encoder.weight"].T
    magnitude = (w["r_mag"].exp() * rows + w["mag_bias"]).relu()
    return (rows + w["gate_bias"] > 0) * magnitude * w["decoder.weight"].norm(dim=0)


def jump(w: Weights, x: Tensor) -> Tensor:
    pre = x @ w["W_enc"] + w["b_enc"]
    return (pre * (pre > w["threshold"])).relu() * w["W_dec"].norm(dim=1)


def centred(w: Weights, x: Tensor, bias: str = "b_dec") -> Tensor:
    rows = w["W_enc"].T if "W_enc" in w else w["encoder.weight"]
    return ((x - w[bias]) @ rows.T + w.get("b_enc", w.get("encoder.bias", torch.zeros(F)))).relu()


def above(w: Weights, x: Tensor) -> Tensor:
    found = centred(w, x)
    return found * (found > w["threshold"])


ONE = torch.tensor(1.5)
SAVED: dict[str, tuple[Weights, Latents, str]] = {
    "AutoEncoder": (random(**LINEAR, bias=(D,)), lambda w, x: centred(w, x, "bias"), "bias"),
    "AutoEncoderNew": (
        random(**LINEAR, decoder__bias=(D,)),
        lambda w, x: (x @ w["encoder.weight"].T + w["encoder.bias"]).relu(),
        "decoder.bias",
    ),
    "AutoEncoderTopK": (
        {**random(**LINEAR, b_dec=(D,)), "k": torch.tensor(K, dtype=torch.int), "threshold": ONE},
        lambda w, x: strongest(centred(w, x), K),
        "b_dec",
    ),
    "BatchTopKSAE": ({**random(**LINEAR, b_dec=(D,)), "k": torch.tensor(K), "threshold": ONE}, above, "b_dec"),
    "MatryoshkaBatchTopKSAE": (
        {**random(**RIGHT), "k": torch.tensor(K), "threshold": ONE, "group_sizes": torch.tensor([10, 30])},
        above,
        "b_dec",
    ),
    "JumpReluAutoEncoder": (random(**RIGHT, threshold=(F,)), jump, "b_dec"),
    "GatedAutoEncoder": (random(**GATED), gated, "decoder_bias"),
}
"""Class: weights, how the library computes latents from them, and the name of the bias that its decoder adds."""


def dictionary_learning(root: Path, kind: str, weights: Any = None, file: str = "ae.pt", **trainer: Any) -> None:
    """Writes a folder as dictionary_learning does."""
    folder, content = root / "ae", SAVED[kind][0] if weights is None else weights
    folder.mkdir(exist_ok=True)
    sizes = {"activation_dim": D, "dict_size": F, "k": K, "layer": 3, "submodule_name": "resid_post_layer_3"}
    config = {"trainer": {"dict_class": kind, "lm_name": "owner/model", **sizes, **trainer}, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(content, folder / file) if file.endswith("safetensors") else torch.save(content, folder / file)


@pytest.mark.parametrize("file", ["ae.pt", "ae.safetensors"])
@pytest.mark.parametrize("kind", SAVED)
def test_dictionary_learning(tmp_path: Path, kind: str, file: str) -> None:
    weights, latents_of, bias = SAVED[kind]
    dictionary_learning(tmp_path, kind, file=file)
    source, latents = DictionaryLearningSource(path="ae"), latents_of(weights, hidden_states())
    decoder = weights["W_dec"] if "W_dec" in weights else weights["decoder.weight"].T
    # These two multiply their latents by the decoder norms and divide by them again to decode.
    scale = decoder.norm(dim=1) if kind in ("JumpReluAutoEncoder", "GatedAutoEncoder") else 1
    agree(source, tmp_path, latents, (latents / scale) @ decoder + weights[bias])
    assert source.facts(Roots(tmp_path)) == SaeFacts(D, F, 3, "resid_post", "owner/model")
    assert set(source.identity(Roots(tmp_path))) == {file, "config.json"}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("AutoEncoderTopK", {"k": K + 1}, "configuration says"),
        ("AutoEncoderTopK", {"k": None, "dict_size": 2}, "do not fit"),
        ("BatchTopKSAE", {"dict_size": 10**9}, "asks for"),
        ("AutoEncoder", {"activation_dim": D + 1}, "asks for"),
        ("AutoEncoder", {"dict_class": "CrossCoder"}, "not one of"),
        ("AutoEncoder", {"dict_class": "GatedAutoEncoder"}, "missing tensors"),
    ],
)
def test_dictionary_learning_configurations_that_lie_are_refused(
    tmp_path: Path, kind: str, change: dict[str, Any], said: str
) -> None:
    dictionary_learning(tmp_path, kind, **change)
    with pytest.raises(RefusedFile, match=said):
        DictionaryLearningSource(path="ae").load(Roots(tmp_path))


class Trap:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.place,)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    sprung, source = tmp_path / "sprung", DictionaryLearningSource(path="ae")
    evil = {**SAVED["AutoEncoder"][0], "extra": Trap(sprung)}
    torch.save(evil, tmp_path / "control.pt")
    torch.load(tmp_path / "control.pt", weights_only=False)
    sprung.rmdir()  # the trap works: rmdir fails unless unpickling has made the folder
    dictionary_learning(tmp_path, "AutoEncoder", weights=evil)
    with pytest.raises(RefusedFile, match="was not unpickled"):
        source.load(Roots(tmp_path))
    (tmp_path / "ae/ae.pt").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(RefusedFile, match="was not read"):
        source.load(Roots(tmp_path))
    assert not sprung.exists()


def test_damaged_and_exploding_torch_files_are_refused(tmp_path: Path) -> None:
    source, path = DictionaryLearningSource(path="ae"), tmp_path / "ae/ae.pt"
    weights = SAVED["AutoEncoder"][0]
    huge = {**weights, "encoder.weight": torch.ones(1).expand(F, D)}
    for content in (huge, [1, 2], {"encoder.weight": 1}, torch.ones(3)):
        dictionary_learning(tmp_path, "AutoEncoder", weights=content)
        with pytest.raises(RefusedFile):
            source.load(Roots(tmp_path))
    dictionary_learning(tmp_path, "AutoEncoder")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-40], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(RefusedFile):
            source.load(Roots(tmp_path))
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    with pytest.raises(RefusedFile, match="was not read"):
        source.load(Roots(tmp_path))


def test_one_flipped_byte_gives_an_sae_or_a_refusal_but_nothing_else(tmp_path: Path) -> None:
    dictionary_learning(tmp_path, "AutoEncoder")
    path, source = tmp_path / "ae/ae.pt", DictionaryLearningSource(path="ae")
    whole, refused = path.read_bytes(), 0
    for place in range(0, min(len(whole), 2400), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            source.load(Roots(tmp_path))
        except InvalidInput:
            refused += 1
    assert refused > 20


def test_thresholds_go_where_the_weights_go(tmp_path: Path) -> None:
    dictionary_learning(tmp_path, "BatchTopKSAE")
    sae = DictionaryLearningSource(path="ae").load(Roots(tmp_path))
    x, before = hidden_states(), sae(hidden_states())
    torch.testing.assert_close(sae.double()(x.double()).float(), before)
    assert isinstance(sae, ConcatenatedSAE)
    threshold = sae.thresholds()
    assert threshold is not None
    assert threshold.dtype == torch.float64
