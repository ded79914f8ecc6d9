"""Files of steering vectors: what is written is read back, what is wrong or unsafe is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentbench.core.errors import InvalidInput, RefusedFile
from latentbench.interventions.vectors import SteeringVectors, model_tag, read_vectors, write_vectors

TAG = {"hub": "owner/model", "revision": "a" * 40}


@pytest.fixture
def vectors() -> SteeringVectors:
    generator = torch.Generator().manual_seed(0)
    made = {layer: torch.randn(8, generator=generator) for layer in (3, 1)}
    return SteeringVectors(made, TAG, {1: 2.5, 3: 4.0})


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".pt"])
def test_every_format_comes_back_bit_for_bit(tmp_path: Path, vectors: SteeringVectors, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    write_vectors(vectors, path)
    back = read_vectors(path)
    assert back.layers == (1, 3)
    assert back.digest == vectors.digest
    assert (back.model == TAG) == (suffix == ".safetensors")
    assert list(tmp_path.iterdir()) == [path]


def test_the_safetensors_file_says_what_it_is_for(tmp_path: Path, vectors: SteeringVectors) -> None:
    vectors.save(tmp_path / "v.safetensors")
    back = SteeringVectors.load(tmp_path / "v.safetensors")
    assert (back.model, back.residual_norms) == (TAG, {1: 2.5, 3: 4.0})
    assert back.made_for(TAG, "v") is back
    for other in ({**TAG, "hub": "owner/other"}, {**TAG, "revision": "b" * 40}):
        with pytest.raises(RefusedFile, match="another model or revision"):
            back.made_for(other, "v.safetensors")


def test_the_data_type_a_model_runs_in_is_no_other_model() -> None:
    assert model_tag({**TAG, "dtype": "float32"}) == model_tag({**TAG, "dtype": "bfloat16"}) == TAG


def test_a_changed_safetensors_file_is_refused(tmp_path: Path, vectors: SteeringVectors) -> None:
    path = tmp_path / "v.safetensors"
    vectors.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusedFile, match="damaged"):
        SteeringVectors.load(path)
    save_file({"layer.0": torch.ones(4)}, path)
    with pytest.raises(RefusedFile, match="no steering vectors"):
        SteeringVectors.load(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".pt"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"GGUF" + b"\xff" * 60, b'{"a": 1}', bytes(range(256)) * 8])
def test_garbage_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(RefusedFile, match="x"):
        read_vectors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".pt"])
def test_a_truncated_file_is_refused(tmp_path: Path, vectors: SteeringVectors, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_vectors(vectors, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RefusedFile, match="x"):
        read_vectors(path)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, how: str) -> None:
    trace, path = tmp_path / "executed", tmp_path / "evil.pt"
    entry = {"layers.1": {"steering_vector": torch.ones(4), "steering_coefficient": Malicious(trace), "action": "add"}}
    if how == "torch":
        torch.save(entry, path)
    else:
        path.write_bytes(pickle.dumps(entry))
    with pytest.raises(RefusedFile, match="not unpickled"):
        read_vectors(path)
    assert not trace.exists()


def entry(**changes: Any) -> dict[str, Any]:
    plain = {"steering_vector": torch.ones(4), "steering_coefficient": 2.0, "action": "add"}
    return {**plain, "bias": None, "head_index": None, **changes}


@pytest.mark.parametrize("hookpoint", ["layers.2", "model.layers.2", "h.2", "transformer.h.2", "gpt_neox.layers.2"])
def test_lm_evals_coefficient_is_applied(tmp_path: Path, hookpoint: str) -> None:
    torch.save({hookpoint: entry()}, tmp_path / "v.pt")
    assert torch.equal(read_vectors(tmp_path / "v.pt").vectors[2], torch.full((4,), 2.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers.2": entry(action="clamp")}, "only vectors that are added"),
        ({"layers.2": entry(head_index=1)}, "only vectors that are added"),
        ({"layers.2": entry(bias=torch.ones(4))}, "only vectors that are added"),
        ({"layers.2.mlp": entry()}, "no decoder block"),
        ({"layers.2": entry(), "model.layers.2": entry()}, "two steering vectors"),
        ({"layers.2": entry(steering_vector=torch.ones(1).expand(1 << 20))}, "more numbers than the file"),
        ({"layers.2": entry(steering_vector=torch.ones(4, dtype=torch.long))}, "floating-point"),
        ({"layers.2": entry(steering_vector=torch.tensor([1.0, float("nan")]))}, "NaN"),
        ({"layers.2": entry(), "layers.3": entry(steering_vector=torch.ones(5))}, "one width"),
        ({"layers.2": torch.ones(4)}, "holds no steering_vector"),
        ({}, "no map"),
    ],
)
def test_what_lm_eval_means_differently_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(RefusedFile, match=message):
        read_vectors(tmp_path / "v.pt")


def test_the_gguf_file_has_repengs_layout(tmp_path: Path, vectors: SteeringVectors) -> None:
    """Read with the gguf package alone: names, types and metadata as repeng's import asks for them."""
    from gguf import GGUFReader

    write_vectors(vectors, tmp_path / "v.gguf")
    reader = GGUFReader(tmp_path / "v.gguf")
    fields = {name: reader.get_field(name) for name in ("general.architecture", "controlvector.layer_count")}
    assert [field and field.contents() for field in fields.values()] == ["controlvector", 2]
    assert {tensor.name for tensor in reader.tensors} == {"direction.1", "direction.3"}
    assert all(tensor.data.dtype == np.float32 for tensor in reader.tensors)


def test_other_gguf_files_are_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RefusedFile, match="no control vector"):
        read_vectors(tmp_path / "m.gguf")


def test_other_endings_are_refused(tmp_path: Path, vectors: SteeringVectors) -> None:
    (tmp_path / "v.bin").write_bytes(b"x")
    with pytest.raises(RefusedFile, match=r"\.bin"):
        read_vectors(tmp_path / "v.bin")
    with pytest.raises(InvalidInput, match=r"\.bin"):
        write_vectors(vectors, tmp_path / "v.bin")
    with pytest.raises(InvalidInput, match="no steering vector for layers"):
        vectors.only(2)
