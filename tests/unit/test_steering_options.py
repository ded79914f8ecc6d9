"""What `steering:` and its problems can say, read without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from latentbench.core.errors import InvalidInput, NotAvailable, RefusedFile
from latentbench.core.paths import Roots
from latentbench.core.plugins import Choice, implementation, plugins
from latentbench.core.protocols import Problem
from latentbench.core.token_rule import EVERY_TOKEN
from latentbench.steering.method import USED, SteeringMethod, makers_of
from latentbench_adapters.pocket.adapter import PocketProblems
from latentbench_adapters.problems import FileProblems

REAL = Path(__file__).parents[3] / "shared/real"
EXPERIMENT: Any = SimpleNamespace(dataset=SimpleNamespace(eval={}, train=None), sites=(), token_rule=EVERY_TOKEN)
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "prefix": {"text": " So"},
    "random": {"norm": 2.0},
    "contrastive": {"positive": ["good"], "negative": ["bad"]},
    "sae_latent": {"latent": 3},
    "sae_latents": {"latents": [3, 5], "clamp": 2.0},
    "ablate": {"directions": [{"method": "random", "norm": 1.0}]},
    "conditional": {"part": {"method": "random", "norm": 1.0}, "when": {"latent": 3, "above": 0.5}},
    "flow": {"latents": ["1:3"]},
    "rl": {"problems": {"adapter": "pocket"}},
    "lora": {"problems": {"adapter": "pocket"}, "rank": 4},
    "load": {"path": "v.gguf"},
    "transfer": {"vectors": {"method": "random", "norm": 1.0}},
    "stack": {"parts": [{"method": "prefix", "text": " So"}, {"method": "random", "like": 0.1}]},
}

OTHERWISE = ("ablate", "sae_latents", "random", "contrastive", "load", "sae_latent", "flow", "transfer")
"""Methods that can be used otherwise than at every token in scope alike."""


def section(method: str, **options: Any) -> SteeringMethod:
    choice = TypeAdapter[Any](Annotated[Any, Choice("methods", "method")])
    made: SteeringMethod = choice.validate_json(
        json.dumps({"method": method, **METHODS[method], **options}), strict=True
    )
    return made


def identity(method: str, roots: Roots, **options: Any) -> str:
    return json.dumps(section(method, **options).identity(EXPERIMENT, roots), sort_keys=True)


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    (tmp_path / "v.gguf").write_bytes(b"x")
    return Roots(tmp_path)


def test_every_registered_method_is_tried_here() -> None:
    assert METHODS.keys() >= {
        name for name, cls in plugins("methods").items() if cls.__module__.startswith("latentbench.")
    }


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_read_and_written_alike(method: str, roots: Roots) -> None:
    made = section(method)
    stated = {name: value for name, value in made.plain().items() if name in made.model_fields_set}
    choice = TypeAdapter[Any](Annotated[Any, Choice("methods", "method")])
    for written in (stated, made.plain()):  # as in a spec, and as in jobs and records
        assert choice.validate_json(json.dumps(written), strict=True) == made
    assert made.made_of(EXPERIMENT, roots)
    json.dumps(made.plain())


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("stack", "lora", "conditional", "ablate", "sae_latents")]
)
def test_scale_does_not_make_other_content(method: str, roots: Roots) -> None:
    assert identity(method, roots, scale=2.0, relative=True) == identity(method, roots)


@pytest.mark.parametrize("method", OTHERWISE)
def test_use_does_not_make_other_content(method: str, roots: Roots) -> None:
    use = {"scale": 2.0, "scope": "generated", "positions": {"first": 3}, "keep_norm": True}
    assert identity(method, roots, **use) == identity(method, roots)


def test_what_is_newer_than_records_is_written_where_it_is_asked_for(roots: Roots) -> None:
    assert not section("random").plain().keys() & USED
    asked = section("random", positions={"after": "x", "decay": 4}, keep_norm=True).plain()
    assert asked["positions"] == {"first": None, "listed": [], "after": "x", "decay": 4}
    assert asked["keep_norm"] is True


def test_a_dose_is_use_and_the_texts_that_tell_it_are_content(roots: Roots) -> None:
    for method in ("random", "contrastive", "flow"):
        assert identity(method, roots, dose=0.1) == identity(method, roots, dose=-2.0) != identity(method, roots)
        (problem,) = [said for said in section(method, dose=0.1).problems_in(EXPERIMENT, roots) if "dose" in said]
        assert "dataset.eval" in problem


def test_a_condition_is_content_and_its_threshold_is_use(roots: Roots) -> None:
    probe = {"probe": {"method": "random", "norm": 1.0, "layers": 1}, "above": 0.0}
    plain = identity("conditional", roots)
    assert identity("conditional", roots, when={"latent": 4, "below": 2.0}) == plain
    assert identity("conditional", roots, when=probe) != plain
    assert identity("conditional", roots, when={**probe, "above": 2.0}) == identity("conditional", roots, when=probe)
    assert identity("conditional", roots, part={"method": "random", "norm": 2.0}) != plain
    assert identity("conditional", roots, part={"method": "random", "norm": 1.0, "scale": 2.0}) == plain
    assert identity("ablate", roots, directions=[{"method": "random", "norm": 2.0}]) != identity("ablate", roots)
    assert identity("sae_latents", roots, latents=[4], clamp=None, times=0.0) == identity("sae_latents", roots)


def test_what_directions_and_conditions_are_made_from_is_found() -> None:
    """Whoever asks what the steering is made from (`reasoning_accuracy` does) is told of methods inside of others, too."""
    learned = {"method": "contrastive", "positive": [" a"], "negative": [" b"], "problems": {"adapter": "pocket"}}
    ablated = {"method": "ablate", "directions": [learned]}
    when = {"probe": {**learned, "layers": 0}, "above": 0.0}
    waiting = {"method": "conditional", "part": ablated, "when": when}
    names = [maker.method for maker in makers_of(section("stack", parts=[waiting, {"method": "none"}]))]
    assert names == ["conditional", "ablate", "contrastive", "contrastive", "none"]


def test_what_is_trained_with_another_scope_is_other_content(roots: Roots) -> None:
    assert identity("rl", roots, scope="generated") != identity("rl", roots)
    assert identity("random", roots, scope="generated") == identity("random", roots)
    assert identity("rl", roots, steps=3) != identity("rl", roots)
    assert identity("rl", roots, problems={"adapter": "pocket", "seed": 1}) != identity("rl", roots)


def test_a_loaded_vector_is_its_bytes_and_not_its_path(roots: Roots) -> None:
    before = identity("load", roots)
    (roots.project / "v.gguf").rename(roots.project / "w.gguf")
    assert identity("load", roots, path="w.gguf") == before
    (roots.project / "w.gguf").write_bytes(b"y")
    assert identity("load", roots, path="w.gguf") != before
    with pytest.raises(NotAvailable, match="no file"):
        identity("load", roots)
    with pytest.raises(InvalidInput, match="outside the project"):
        identity("load", roots, path="../v.gguf")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("random", {"like": 0.1}, "either norm or like"),
        ("random", {"norm": None}, "either norm or like"),
        ("contrastive", {"negative": []}, "same number of texts"),
        ("rl", {"layers": []}, "at least one"),
        ("rl", {"layers": [1, 1]}, "different numbers"),
        ("rl", {"samples": 1}, "greater than or equal to 2"),
        ("rl", {"micro_batch": 7}, "does not divide"),
        ("rl", {"reward": "vibes"}, "number"),
        ("lora", {"scope": "first"}, "absolute scale"),
        ("sae_latent", {"layers": 2}, "that of the SAE"),
        ("sae_latents", {"layers": 2}, "that of the SAE"),
        ("sae_latents", {"times": 0.0}, "either clamp or times"),
        ("sae_latents", {"clamp": None}, "either clamp or times"),
        ("sae_latents", {"clamp": [1.0]}, "1 values to clamp 2 latents"),
        ("sae_latents", {"latents": [3, 3]}, "must be different"),
        ("ablate", {"relative": True}, "cannot be relative"),
        ("ablate", {"directions": []}, "at least 1"),
        ("ablate", {"directions": [{"method": "prefix", "text": "x"}]}, "'prefix' makes no vector"),
        ("ablate", {"directions": [{"method": "random", "norm": 1.0, "scale": 2.0}]}, "`scale` has no meaning"),
        ("ablate", {"directions": [{"method": "stack", "parts": [{"method": "none"}]}]}, "'stack' makes no vector"),
        ("conditional", {"scale": 2.0}, "in its `part`"),
        ("conditional", {"part": {"method": "lora", "problems": {"adapter": "pocket"}}}, "cannot act at some tokens"),
        ("conditional", {"part": {"method": "prefix", "text": "x"}}, "cannot act at some tokens"),
        ("conditional", {"when": {"latent": 3}}, "either above or below"),
        ("conditional", {"when": {"above": 3.0}}, "either probe or latent"),
        ("conditional", {"when": {"above": 0.0, "probe": {"method": "none"}}}, "'none' makes no vector"),
        ("random", {"positions": {}}, "must state"),
        ("random", {"positions": {"first": 0}}, "greater than 0"),
        ("random", {"positions": {"first": 2, "listed": [1]}}, "either `first` or `listed`"),
        ("random", {"positions": {"listed": [1, 1]}}, "different numbers"),
        ("random", {"positions": {"listed": [7], "decay": 5}}, "nothing is left"),
        ("random", {"positions": {"first": 2}, "scope": "first"}, "one token"),
        ("random", {"dose": 0.0}, "takes the place of"),
        ("random", {"dose": 0.1, "scale": 2.0}, "takes the place of"),
        ("random", {"dose": 0.1, "relative": True}, "takes the place of"),
        ("ablate", {"dose": 0.1}, "that of a vector"),
        ("sae_latents", {"dose": 0.1}, "that of a vector"),
        ("conditional", {"dose": 0.1}, "that of a vector"),
        ("rl", {"positions": {"first": 2}}, "`positions` is not for the method 'rl'"),
        ("lora", {"keep_norm": True}, "`keep_norm` is not for the method 'lora'"),
        ("prefix", {"keep_norm": True}, "`keep_norm` is not for the method 'prefix'"),
        ("stack", {"keep_norm": True}, "in the parts"),
        ("flow", {"layers": 2}, "those of its paths"),
        ("flow", {"latents": ["three"]}, "match pattern"),
        ("flow", {"latents": ["3.foo:1"]}, "match pattern"),
        ("flow", {"latents": ["3:1"], "span": [2, 1]}, "comes after the last"),
        ("flow", {"latents": []}, "at least 1"),
        ("stack", {"scale": 2.0}, "in the parts"),
        ("stack", {"parts": [{"method": "nonsense"}]}, "nonsense"),
        ("transfer", {"vectors": {"method": "prefix", "text": "x"}}, "'prefix' makes no vectors"),
        ("transfer", {"vectors": {"method": "sae_latent", "latent": 1}}, "'sae_latent' makes no vectors"),
        ("transfer", {"vectors": {"method": "random", "norm": 1.0, "scale": 2.0}}, "`scale` has no meaning"),
        (
            "transfer",
            {"vectors": {"method": "random", "norm": 1.0, "layers": [0, 1]}, "layers": [0, 1, 2]},
            "2 vectors",
        ),
        (
            "transfer",
            {"vectors": {"method": "rl", "problems": {"adapter": "pocket"}, "scope": "first"}},
            "same `scope`",
        ),
        ("transfer", {"place": "mlp_out"}, "`place` is not for"),
        ("prefix", {"place": "mlp_out"}, "`place` is not for"),
        ("random", {"place": "mlp_in"}, "Input should be"),
        ("rl", {"scale": float("inf")}, "finite"),
    ],
)
def test_what_cannot_work_is_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(method, **options)


def test_layers_count_from_either_end() -> None:
    assert section("none").chosen(3) == (0, 1, 2)
    assert section("none", layers=-1).chosen(3) == (2,)
    assert section("none", layers=[-2, 0]).chosen(3) == (0, 1)
    for wrong in (3, -4, [0, -3]):
        with pytest.raises(InvalidInput, match="3 blocks"):
            section("none", layers=wrong).chosen(3)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_its_content_itself_or_names_what_does(method: str) -> None:
    made = type(section(method))
    if made.make is SteeringMethod.make:
        assert callable(implementation(made.implementation))
    else:
        assert not hasattr(made, "implementation")


def test_an_implementation_that_is_not_there_is_named() -> None:
    class Lost(SteeringMethod):
        implementation = "latentbench.steering.computed_vectors:nothing"
        method: str = "lost"

    with pytest.raises(NotAvailable, match="computed_vectors:nothing cannot be imported"):
        Lost().make(None)  # type: ignore[arg-type]


def test_no_torch_is_imported() -> None:
    steering = (
        "baselines",
        "contrastive",
        "optimised",
        "capability_cost",
        "grading",
        "ablation",
        "latents",
        "conditional",
        "transfer",
    )
    mechanism = ("ablations", "output_tokens", "paths", "propagation", "transfer")
    modules = [f"latentbench.steering.{name}" for name in steering]
    modules += [f"latentbench.mechanism.metrics.{name}" for name in mechanism]
    code = f"import sys, {', '.join(modules)}, latentbench_adapters.problems; "
    heavy = "{'torch', 'numpy', 'trl', 'peft', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}print({heavy})"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def problems(tmp_path: Path, text: str, **options: Any) -> list[Problem]:
    (tmp_path / "p.jsonl").write_text(text)
    return list(FileProblems(path="p.jsonl", **options).problems(Roots(tmp_path)))


def test_gsm8k_is_read_with_its_marks(tmp_path: Path) -> None:
    row = json.dumps({"question": "How {many}?", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,234"})
    found = problems(tmp_path, row + "\n\n", prompt="Q: {question}\nA:", answer_pattern=r"####\s*(.+)")
    assert found == [Problem("Q: How {many}?\nA:", "1,234")]


def test_numbers_are_answers_too(tmp_path: Path) -> None:
    assert problems(tmp_path, '{"question": "1+1", "answer": 2}')[0].answer == "2"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"question": "a"}', {}, "'answer'; it has question"),
        ('{"question": ["a"], "answer": "1"}', {}, "'question'"),
        ("[1]", {}, "no object"),
        ('{"question": "a", "answer": "1"}', {"answer_pattern": "#(.)"}, "matches nothing"),
    ],
)
def test_wrong_rows_say_where(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"p\.jsonl:1: .*{message}"):
        problems(tmp_path, text, **options)


def test_wrong_files_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedFile, match="not JSON"):
        problems(tmp_path, "{")
    (tmp_path / "p.txt").write_text("x")
    with pytest.raises(RefusedFile, match=r"\.jsonl"):
        list(FileProblems(path="p.txt").problems(Roots(tmp_path)))
    for options, message in (
        ({"prompt": "x"}, "question"),
        ({"answer_pattern": "("}, "regular"),
        ({"answer_pattern": "a"}, "one group"),
    ):
        with pytest.raises(ValidationError, match=message):
            FileProblems(path="p.jsonl", **options)


def test_problems_are_identified_by_content(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "a", "answer": "1"}')
    before = FileProblems(path="p.jsonl").identity(Roots(tmp_path))
    (tmp_path / "p.jsonl").rename(tmp_path / "q.jsonl")
    assert FileProblems(path="q.jsonl").identity(Roots(tmp_path)) == before
    assert FileProblems(path="q.jsonl", prompt="{question}!").identity(Roots(tmp_path)) != before
    assert FileProblems(path="q.jsonl", skip=1).identity(Roots(tmp_path)) != before


def test_pocket_problems_of_the_two_splits_differ() -> None:
    from itertools import islice

    train, held_out = (
        {p.prompt for p in islice(PocketProblems(split=split).problems(Roots(Path())), 300)}
        for split in ("train", "eval")
    )
    assert not train & held_out
    assert all(prompt.endswith("\nAnswer:") for prompt in train)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real problems are not here")
def test_gsm8k_itself_is_read_and_its_answers_grade_as_right() -> None:
    from latentbench.steering.grading import same_last_number

    prompt, pattern = "Question: {question}\nAnswer:", r"####\s*(.+)"
    section = FileProblems(path="gsm8k/test.jsonl", prompt=prompt, answer_pattern=pattern)
    rows = [json.loads(line) for line in (REAL / "gsm8k/test.jsonl").read_text("utf-8").splitlines()]
    found = list(section.problems(Roots(REAL)))
    assert len(found) == len(rows) == 1319
    for problem, row in zip(found, rows, strict=True):
        assert same_last_number(row["answer"], problem.answer)
        assert not same_last_number(row["answer"] + " 0.123", problem.answer)
