"""The prior beside the original's: logits, gradients, cached decoding, orders, filters, sliding windows,
optimizer groups."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.checkpoints.taming_parts import GPTS, MASKS, Part, gpt_names, gpt_settings
from smalti.checkpoints.taming_parts import ORDERS as ORDERS_THERE
from smalti.conditions.base import constant_prefix
from smalti.generation.code_sampler import Sampler, filter_logits
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.prior import GPT, ORDERS, Order, Window, nll, parameter_groups
from tests.golden import Golden, fixtures, known_codes, number_of

pytestmark = pytest.mark.golden

GREEDY = Sampler(temperature=0)


def order_of(permuter: str) -> Order:
    return ORDERS_THERE[f"taming.modules.transformer.permuter.{permuter}"]


def gpt(
    params: dict[str, Any], weights: dict[str, Tensor], *, prefix: int, grid: tuple[int, int], **others: Any
) -> GPT:
    """A GPT with the original's sizes and weights, in evaluation mode. What the sizes do not say is in `others`."""
    known = {"codes": params["vocab_size"], "start": None, "order": "raster", **others}
    settings = gpt_settings(Part(GPTS[0], params), prefix=prefix, grid=grid, where="the golden numbers", **known)
    prior = GPT(settings)
    gpt_names(prior).read_into(prior, weights, where="the golden numbers", ignored=MASKS)
    return prior.eval()


def alone(golden: Golden) -> GPT:
    """The GPT of a fixture that is nothing but a GPT. Its sequences have no grid: one row takes the whole block."""
    params = golden.facts["params"]
    prefix = max(1, params.get("n_unmasked", 0))
    return gpt(params, golden.weights(), prefix=prefix, grid=(1, params["block_size"] - prefix + 1))


def conditional(golden: Golden, *, prefix: int, grid: tuple[int, int], order: Order = "raster") -> GPT:
    """The GPT of a fixture with a first stage, whose codes are the image codes."""
    params = golden.facts["params"]
    sizes = params["transformer_config"]["params"]
    size = min(params["first_stage_config"]["params"]["n_embed"], sizes["vocab_size"])
    return gpt(sizes, golden.weights("transformer."), prefix=prefix, grid=grid, codes=size, order=order)


def by_their_name(prior: GPT, golden: Golden, start: str) -> dict[str, Tensor]:
    """The gradients of the weights whose names come after `start` among the fixture's keys, by key, in their layout."""
    found = {}
    for ours, (theirs, rule) in gpt_names(prior).pairs.items():
        if f"{start}{theirs}" in golden:
            gradient = prior.get_parameter(ours).grad
            assert gradient is not None
            found[f"{start}{theirs}"] = rule.write(gradient)
    assert len(found) == sum(key.startswith(start) for key in golden.tensors) > 0
    return found


# The transformer alone


@pytest.mark.parametrize("path", fixtures("08_"))
def test_logits_loss_and_gradients(path: Path) -> None:
    golden = Golden.read(path)
    prior, codes = alone(golden), golden["in.idx"]
    logits = prior(codes)
    loss = F.cross_entropy(logits.flatten(0, 1), golden["in.targets"].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    golden.check("out.logits", logits)
    golden.check("out.loss", loss)
    golden.check("out.logits_short", prior(codes[:, : golden["out.logits_short"].shape[1]]))
    for key, gradient in by_their_name(prior, golden, "out.grad.").items():
        golden.check(key, gradient)


@pytest.mark.parametrize("path", fixtures("08_"))
@torch.no_grad()
def test_vectors_can_stand_before_the_codes(path: Path) -> None:
    golden = Golden.read(path)
    prior, vectors = alone(golden), golden["in.embeddings"]

    def joined(count: int) -> Tensor:
        return torch.cat((vectors, prior.embedding(golden["in.idx"][:, : count - vectors.shape[1]])), dim=1)

    whole = joined(golden["out.prefix.logits"].shape[1])
    first, cache = joined(golden["out.past_embeddings.logits"].shape[1]), prior.empty_cache()
    prior.embedding = nn.Identity()  # type: ignore[assignment]
    logits = prior(whole)
    golden.check("out.prefix.logits", logits)
    golden.check("out.prefix.loss", F.cross_entropy(logits.flatten(0, 1), golden["in.targets"].flatten()))
    golden.check("out.past_embeddings.logits", prior(first, cache=cache))
    assert cache.length == first.shape[1]


@pytest.mark.parametrize("path", fixtures("08_"))
@torch.no_grad()
def test_cached_decoding(path: Path) -> None:
    golden = Golden.read(path)
    prior, codes = alone(golden), golden["in.idx"]
    cache = prior.empty_cache()
    golden.check("out.past1.logits", torch.cat([prior(code[:, None], cache=cache) for code in codes.unbind(1)], dim=1))
    cache, first = prior.empty_cache(), golden.facts["past_prefix_first"]
    pieces = [prior(codes[:, :first], cache=cache)]
    pieces += [prior(code[:, None], cache=cache) for code in codes[:, first:].unbind(1)]
    golden.check("out.past_prefix.logits", torch.cat(pieces, dim=1))
    kept = [[cache.buffers[f"{layer}.{part}"] for part in ("keys", "values")] for layer in range(prior.settings.layers)]
    presents = torch.stack([torch.stack(pair) for pair in kept])[..., : cache.length, :]
    golden.check("out.past_prefix.presents", presents)


# With a condition


def codes_of(golden: Golden) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """The condition's codes (B, P), the image codes (B, h, w) and the grid (h, w) of a fixture."""
    height, width = golden.facts["latent_grid"]
    return golden["out.c_indices"], golden["out.z_indices"].view(-1, height, width), (height, width)


@pytest.mark.parametrize("path", fixtures("09?_"))
def test_conditional_logits_loss_and_gradients(path: Path) -> None:
    golden = Golden.read(path)
    prefix, codes, grid = codes_of(golden)
    prior = conditional(golden, prefix=prefix.shape[1], grid=grid)
    losses = nll(prior, prefix, codes)
    losses.mean().backward()  # type: ignore[no-untyped-call]
    golden.check("out.logits", prior(prior.join(prefix, codes.flatten(1)[:, :-1]))[:, prior.prefix_length - 1 :])
    golden.check("out.target", codes.flatten(1))
    golden.check("out.loss", losses.mean())
    for key, gradient in by_their_name(prior, golden, "out.grad.transformer.").items():
        golden.check(key, gradient)


@pytest.mark.parametrize("path", fixtures("09a_"))
def test_some_codes_are_corrupted_and_the_right_ones_requested(path: Path) -> None:
    golden = Golden.read(path)
    prefix, codes, grid = codes_of(golden)
    prior = conditional(golden, prefix=prefix.shape[1], grid=grid).train()
    given_inputs = golden["in.pkeep_random"].where(golden["in.pkeep_mask"] == 0, codes.flatten(1))
    golden.check("out.pkeep.target", codes.flatten(1))
    golden.check("out.pkeep.logits", prior(prior.join(prefix, given_inputs[:, :-1]))[:, prior.prefix_length - 1 :])
    golden.check("out.pkeep.loss", nll(prior, prefix, codes, inputs=given_inputs.view_as(codes)).mean())


@pytest.mark.parametrize("path", fixtures("09a_"))
def test_a_prior_reads_in_its_order(path: Path) -> None:
    golden = Golden.read(path)
    prefix, codes, grid = codes_of(golden)
    names = [key.split(".")[2] for key in golden.tensors if re.fullmatch(r"out\.perm\.\w+\.logits", key)]
    assert names
    for name in names:
        prior = conditional(golden, prefix=prefix.shape[1], grid=grid, order=order_of(name))
        target = codes.flatten(1)[:, prior.sequence_order(grid, device=codes.device)]
        logits = prior(prior.join(prefix, target[:, :-1]))[:, prior.prefix_length - 1 :]
        golden.check(f"out.perm.{name}.target", target)
        golden.check(f"out.perm.{name}.logits", logits)
        expected = F.cross_entropy(golden[f"out.perm.{name}.logits"].flatten(0, 1), target.flatten())
        torch.testing.assert_close(nll(prior, prefix, codes).mean(), expected)


@pytest.mark.parametrize("path", fixtures("09b_"))
def test_greedy_samples_of_classes(path: Path) -> None:
    golden = Golden.read(path)
    prefix, codes, grid = codes_of(golden)
    prior = conditional(golden, prefix=prefix.shape[1], grid=grid)
    half = unknown_codes(len(codes), grid)
    half.flatten(1)[:, : codes[0].numel() // 2] = codes.flatten(1)[:, : codes[0].numel() // 2]
    listed = torch.tensor(golden.facts["swp_classes"])[:, None]
    for key, labels, known, sampler in (
        ("out.swp.tokens", listed, unknown_codes(len(listed), grid), GREEDY),
        ("out.sample_full_greedy", prefix, unknown_codes(len(codes), grid), GREEDY),
        ("out.sample_half_greedy", prefix, half, GREEDY),
        ("out.sample_full_topk1", prefix, unknown_codes(len(codes), grid), Sampler(top_k=1)),
    ):
        seeds = torch.arange(len(labels))
        golden.check(
            key,
            final_codes(
                generate(prior, GenerationRequest(constant_prefix(labels), sampler=sampler, seeds=seeds, known=known))
            ).flatten(1),
        )


@pytest.mark.parametrize("path", fixtures("09c_"))
@torch.no_grad()
def test_greedy_samples_of_a_segmentation(path: Path) -> None:
    golden = Golden.read(path)
    prefix, codes, grid = codes_of(golden)
    prior = conditional(golden, prefix=prefix.shape[1], grid=grid)
    seeds, known = torch.arange(len(codes)), unknown_codes(len(codes), grid)
    generated = final_codes(
        generate(prior, GenerationRequest(constant_prefix(prefix), sampler=GREEDY, seeds=seeds, known=known))
    )
    golden.check("out.sample_full_greedy", generated.flatten(1))
    # A prior that was told nothing but wrong codes needs one pass: the condition's codes stand for them.
    at_once = prior(prior.join(prefix, prefix[:, :-1]))[:, prior.prefix_length - 1 :].argmax(dim=2, keepdim=True)
    golden.check("out.sample_pkeep0_greedy", at_once)


# Orders, filters, windows


@pytest.mark.parametrize("path", fixtures("10_"))
def test_orders(path: Path) -> None:
    golden = Golden.read(path)
    for case in golden.facts["supported"]:
        name, shape = case.split(".")
        rows, columns = (int(side) for side in shape.split("x"))
        order = ORDERS[order_of(name)](rows, columns)
        for key, expected in (
            (f"{case}.applied_forward", order),
            (f"{case}.applied_reverse", order.argsort()),
            (f"{case}.forward_shuffle_idx", order),
            (f"{case}.backward_shuffle_idx", order.argsort()),
        ):
            if key in golden or "applied" in key:  # a permuter without buffers has no such keys
                golden.check(key, expected)


@pytest.mark.parametrize("path", fixtures("11_filters"))
def test_filters(path: Path) -> None:
    golden = Golden.read(path)
    logits = golden["in.logits"]
    keys = [key for key in golden.tensors if key.startswith("out.keep.")]
    assert keys
    for key in keys:
        top_k, top_p = int(re.findall(r"(?:model\.|\.k)(\d+)", key)[0]), 1.0
        if found := re.search(r"_p([\d.]+)$", key):
            top_p = float(found[1])
        kept = filter_logits(logits, temperature=1, top_k=top_k, top_p=top_p).isfinite()
        # Which of the tied codes of rows 2 and 3 a nucleus keeps hangs on how they were sorted.
        exact = slice(0, 2) if top_p < 1 else slice(None)
        assert torch.equal(kept[exact], golden[key][exact]), key
        assert torch.equal(kept.sum(dim=1), golden[key].sum(dim=1)), key


@pytest.mark.parametrize("path", fixtures("11_sliding"))
def test_sliding_windows(path: Path) -> None:
    golden = Golden.read(path)
    height, width = golden.facts["latent_grid"]
    window, known = golden.facts["window"], known_codes(golden)
    condition = golden["in.c_indices"].view(1, height, width)

    def prefix_at(place: Window) -> Tensor:
        return condition[:, place.top : place.top + place.rows, place.left : place.left + place.columns].flatten(1)

    prior = conditional(golden, prefix=window * window, grid=(window, window))
    generated = final_codes(
        generate(prior, GenerationRequest(prefix_at, sampler=GREEDY, seeds=torch.tensor([0]), known=known))
    )
    golden.check("out.grid", generated)


# The optimizer


@pytest.mark.parametrize("path", fixtures("12_"))
def test_groups_and_trajectory_of_the_optimizer(path: Path) -> None:
    golden = Golden.read(path)
    begin = Golden.read(number_of(golden.facts["weights_from"].split("_")[0]))
    prefix, codes, grid = codes_of(begin)
    prior = conditional(begin, prefix=prefix.shape[1], grid=grid).double()
    pairs = gpt_names(prior).pairs
    names = {id(weight): pairs[name][0] for name, weight in prior.named_parameters()}
    decay = golden.facts["groups"][0]["weight_decay"]
    groups = parameter_groups(prior, weight_decay=decay)
    for group, expected in zip(groups, golden.facts["groups"], strict=True):
        assert group["weight_decay"] == expected["weight_decay"]
        assert sorted(names[id(weight)] for weight in group["params"]) == expected["names"]
    first = golden.facts["groups"][0]
    optimizer = torch.optim.AdamW(groups, lr=golden.facts["lr"], betas=tuple(first["betas"]), eps=first["eps"])
    losses = []
    for _ in range(golden.facts["steps"]):
        optimizer.zero_grad()
        loss = nll(prior, prefix, codes).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(golden.facts["losses_float64"], rel=1e-9)
    weights = gpt_names(prior).written_from(prior)
    checked = [key for key in golden.tensors if key.startswith("final64.transformer.")]
    assert checked
    for key in checked:
        weight = weights[key.removeprefix("final64.transformer.")]
        torch.testing.assert_close(weight.view_as(golden[key]), golden[key], rtol=1e-9, atol=1e-9, msg=key)
