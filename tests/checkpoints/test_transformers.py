"""transformers' GPT-2: names and shapes as published, outputs by their formulas, exact round trips; the package where
it is."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from smalti.checkpoints.transformers import read, write
from smalti.cli.main import main
from smalti.conditions.base import Condition, constant_prefix
from smalti.conditions.labels import Labels, Unconditional
from smalti.core.errors import SmaltiError
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.model_loading import read_models
from smalti.pipeline import Pipeline
from smalti.prior import GPT, GPTSettings, PixelSNAIL, PixelSNAILSettings, Transformer, TransformerSettings
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import VQSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

LABELS = Labels(["dusk", "dawn"])


def gpt(*, seed: int = 0, **changes: Any) -> GPT:
    """A small GPT with large weights, so that all that it reads shows in its logits."""
    torch.manual_seed(seed)
    values = {
        "vocab_size": 14,
        "codebook_size": 11,
        "prefix_length": 1,
        "grid": (3, 4),
        "block_size": 14,
        "layers": 2,
        "embed_dim": 16,
        "heads": 2,
    }
    prior = GPT(GPTSettings(**{**values, **changes})).requires_grad_(False)
    for weight in prior.parameters():
        weight.normal_(0, 0.4)
    return prior.eval()


def tokenizer() -> VQGAN:
    torch.manual_seed(1)
    autoencoder = AutoencoderSettings(base_channels=8, channel_multipliers=(1, 1), res_blocks=1, latent_channels=8)
    return VQGAN(VQGANSettings(autoencoder=autoencoder, quantizer=VQSettings(codebook_size=11, codebook_dim=4))).eval()


def published(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The state dict of `GPT2LMHeadModel`, by its config: their Conv1D keeps its weights (in, out)."""
    D, V = config["n_embd"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (V, D), "lm_head.weight": (V, D)}
    shapes["transformer.wpe.weight"] = (config["n_positions"], D)
    for home in ("transformer.ln_f", *(f"transformer.h.{n}.ln_{i}" for n in range(config["n_layer"]) for i in (1, 2))):
        shapes |= {f"{home}.weight": (D,), f"{home}.bias": (D,)}
    for n in range(config["n_layer"]):
        for name, made in (("attn.c_attn", 3 * D), ("attn.c_proj", D), ("mlp.c_fc", 4 * D), ("mlp.c_proj", D)):
            read = 4 * D if name == "mlp.c_proj" else D
            shapes |= {f"transformer.h.{n}.{name}.weight": (read, made), f"transformer.h.{n}.{name}.bias": (made,)}
    return shapes


def forward(weights: dict[str, Tensor], config: dict[str, Any], codes: Tensor) -> Tensor:
    """GPT-2 by its formulas, in their names: codes (B,T) -> logits (B,T,V)."""
    D, T = config["n_embd"], codes.shape[1]

    def w(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"transformer.{name}.weight"], weights[f"transformer.{name}.bias"]

    def conv(x: Tensor, name: str) -> Tensor:
        weight, bias = w(name)
        return x @ weight + bias

    x = weights["transformer.wte.weight"][codes] + weights["transformer.wpe.weight"][:T]
    unseen = torch.ones(T, T).triu(1).bool()
    for n in range(config["n_layer"]):
        read = F.layer_norm(x, (D,), *w(f"h.{n}.ln_1"), config["layer_norm_epsilon"])
        q, k, v = (
            part.view(*codes.shape, config["n_head"], -1).transpose(1, 2)
            for part in conv(read, f"h.{n}.attn.c_attn").chunk(3, -1)
        )
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(unseen, -torch.inf)
        x = x + conv((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"h.{n}.attn.c_proj")
        read = F.layer_norm(x, (D,), *w(f"h.{n}.ln_2"), config["layer_norm_epsilon"])
        x = x + conv(F.gelu(conv(read, f"h.{n}.mlp.c_fc")), f"h.{n}.mlp.c_proj")
    return F.layer_norm(x, (D,), *w("ln_f"), config["layer_norm_epsilon"]) @ weights["lm_head.weight"].T


def some_codes(prior: GPT) -> Tensor:
    count = prior.prefix_length + prior.grid[0] * prior.grid[1] - 1
    return torch.randint(prior.settings.vocab_size, (2, count), generator=torch.Generator().manual_seed(1))


def test_names_and_outputs_are_theirs(tmp_path: Path) -> None:
    prior = gpt()
    write(None, prior, LABELS, tmp_path / "gpt2", about={})
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    weights = load_file(tmp_path / "gpt2" / "model.safetensors")
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == published(config)
    assert (config["model_type"], config["activation_function"]) == ("gpt2", "gelu")
    assert not config["tie_word_embeddings"]
    codes = some_codes(prior)
    torch.testing.assert_close(prior(codes), forward(weights, config, codes), rtol=1e-4, atol=1e-4)


def test_their_generate_generates_a_grid_of_image_codes(tmp_path: Path) -> None:
    write(None, gpt(start_code=13), LABELS, tmp_path / "some", about={})
    values = json.loads((tmp_path / "some" / "generation_config.json").read_text())
    assert values == {"max_new_tokens": 12, "bos_token_id": 13, "suppress_tokens": [11, 12, 13]}
    write(None, gpt(vocab_size=11), LABELS, tmp_path / "all", about={})
    assert "suppress_tokens" not in json.loads((tmp_path / "all" / "generation_config.json").read_text())


@given(layers=st.integers(1, 3), heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99), unmasked=st.integers(0, 1))
@settings(max_examples=6, deadline=None)
def test_the_round_trip_is_exact(
    layers: int, heads: int, seed: int, unmasked: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trip") / "gpt2"
    prior = gpt(seed=seed, layers=layers, heads=heads, unmasked=unmasked, order="spiral_in")
    write(None, prior, LABELS, folder, about={"prior": {"codes_seen": seed}})
    again = read(folder)
    assert again is not None
    assert isinstance(again.prior, GPT)
    assert again.prior.settings == prior.settings
    state = again.prior.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in prior.state_dict().items())
    assert isinstance(again.condition, Labels)
    assert again.condition.names == LABELS.names
    assert again.about == {"prior": {"codes_seen": seed}}


def test_a_pipeline_comes_back_with_its_tokenizer(tmp_path: Path) -> None:
    pipe = Pipeline(tokenizer(), gpt(), LABELS)
    pipe.save_pretrained(tmp_path / "ours", about={"data": "photos"})
    models = read_models(tmp_path / "ours")
    write(models.tokenizer, models.prior, models.condition, tmp_path / "theirs", about=models.about)
    again = Pipeline.from_pretrained(tmp_path / "theirs")
    assert torch.equal(again.sample(2, label="dawn", seed=3), pipe.sample(2, label="dawn", seed=3))
    assert read_models(tmp_path / "theirs").about["data"] == "photos"


def test_the_command_goes_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(tokenizer(), gpt(), LABELS)
    pipe.save_pretrained(tmp_path / "ours", about={})
    for arguments in ("ours theirs --to transformers", "theirs again"):
        source, destination, *rest = arguments.split()
        command = ["smalti", "convert", str(tmp_path / source), str(tmp_path / destination), *rest]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    again = Pipeline.from_pretrained(tmp_path / "again")
    assert torch.equal(again.sample(label="dusk", seed=3), pipe.sample(label="dusk", seed=3))


REFUSED: dict[str, tuple[Any, Condition, str]] = {
    "nothing": (None, Unconditional(), "this is a tokenizer alone"),
    "two axes": (
        Transformer(TransformerSettings(codebook_size=4, condition_size=2, embed_dim=16, heads=2, layers=1)),
        LABELS,
        "its Llama turns queries and keys by one place in the sequence, this prior by row and column",
    ),
    "convolutions": (
        PixelSNAIL(PixelSNAILSettings(codebook_size=4, condition_size=2)),
        LABELS,
        "has no network like this prior",
    ),
    "unmasked": (gpt(prefix_length=3, unmasked=2), LABELS, r"no place for network\.unmasked = 2"),
}


@pytest.mark.parametrize(("prior", "condition", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_priors_that_are_no_gpt2_are_refused(prior: Any, condition: Condition, message: str, tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=message):
        write(None, prior, condition, tmp_path / "out", about={})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_not_written_here_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert read(tmp_path) is None
    assert read(tmp_path / "config.json") is None
    assert read(tmp_path / "gone") is None


def test_damage_is_reported_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    write(None, gpt(), LABELS, folder, about={})
    weights = load_file(folder / "model.safetensors")
    for name, tensor, message in (
        ("transformer.h.1.attn.c_attn.weight", torch.zeros(16, 47), r"c_attn\.weight has the shape \(16, 47\)"),
        (
            "transformer.h.1.attn.c_attn.bias",
            torch.zeros(51),
            r"c_attn\.0\.bias has the shape \(17,\).*require \(16,\)",
        ),
        ("lm_head.weight", torch.zeros(15, 16), r"lm_head\.weight has the shape \(15, 16\)"),
        ("more", torch.zeros(1), "more is not known"),
    ):
        save_file({**weights, name: tensor}, folder / "model.safetensors")
        with pytest.raises(SmaltiError, match=message):
            read(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["smalti_prior"]["condition"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SmaltiError, match="smalti_prior holds no condition"):
        read(folder)


def package() -> Any:
    try:
        return importlib.import_module("transformers")
    except Exception as error:  # a package that is half installed can raise anything
        pytest.skip(f"transformers cannot be imported: {error}".split("\n")[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("changes", [{}, {"vocab_size": 11, "prefix_length": 3}, {"order": "spiral_in", "unmasked": 1}])
@torch.no_grad()
def test_the_numbers_and_the_codes_are_those_of_the_package(changes: dict[str, Any], tmp_path: Path) -> None:
    prior = gpt(**changes)
    write(None, prior, LABELS, tmp_path / "gpt2", about={})
    model, info = package().GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", output_loading_info=True)
    assert not any(info.values())
    codes = some_codes(prior)
    torch.testing.assert_close(model.eval()(codes).logits, prior(codes), rtol=1e-4, atol=1e-4)
    prefix = torch.randint(11, (2, prior.prefix_length), generator=torch.Generator().manual_seed(2))
    theirs = model.generate(prefix, do_sample=False)[:, prior.prefix_length :]
    greedy, seeds = Sampler(top_k=1), torch.arange(2)
    ours = final_codes(
        generate(
            prior,
            GenerationRequest(constant_prefix(prefix), sampler=greedy, seeds=seeds, known=unknown_codes(2, prior.grid)),
        )
    )
    generated = ours.flatten(1)[:, prior.sequence_order(prior.grid, device=ours.device)]
    assert torch.equal(theirs, generated)
