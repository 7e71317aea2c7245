"""LlamaGen's tokenizers and GPTs: the numbers of independent forward passes, names both ways, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from smalti.checkpoints.llamagen import REFERENCE_GPT, SIZES, read, write
from smalti.conditions.base import constant_prefix
from smalti.core.errors import SmaltiError
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


class Tokenizer(NamedTuple):  # the sizes of one of theirs
    widths: tuple[int, ...] = (32, 64)
    blocks: int = 1
    latent: int = 6
    size: int = 24
    dimension: int = 4


class Net(NamedTuple):  # the sizes of one of their GPTs
    size: int = 24
    classes: int = 5
    layers: int = 2
    width: int = 32
    heads: int = 2
    hidden: int = 48
    side: int = 4


TOKENIZERS = [Tokenizer(), Tokenizer((32,), 2), Tokenizer((32, 32, 96), 2, latent=5, size=40, dimension=8)]
NETS = [Net(), Net(classes=1, layers=1, heads=1, side=3), Net(width=48, heads=4, hidden=20, side=5, layers=3)]


def tokenizer_shapes(model: Tokenizer) -> Shapes:
    """The names and shapes in the state dict of their tokenizer."""
    shapes: Shapes = {"quantize.embedding.weight": (model.size, model.dimension), "quantize.codebook_used": (65536,)}

    def layer(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    def residual(name: str, ins: int, out: int) -> None:
        layer(f"{name}.norm1", ins)
        layer(f"{name}.conv1", out, ins, 3, 3)
        layer(f"{name}.norm2", out)
        layer(f"{name}.conv2", out, out, 3, 3)
        if ins != out:
            layer(f"{name}.nin_shortcut", out, ins, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    lowest = len(model.widths) - 1
    for half, blocks, resample in (("encoder", model.blocks, "downsample"), ("decoder", model.blocks + 1, "upsample")):
        levels = list(range(lowest + 1))[:: 1 if half == "encoder" else -1]
        ins = model.widths[levels[0]]
        for place, level in enumerate(levels):
            out = model.widths[level]
            for block in range(blocks):
                residual(f"{half}.conv_blocks.{place}.res.{block}", ins if block == 0 else out, out)
                if level == lowest:
                    attention(f"{half}.conv_blocks.{place}.attn.{block}", out)
            if place < lowest:
                layer(f"{half}.conv_blocks.{place}.{resample}.conv", out, out, 3, 3)
            ins = out
        residual(f"{half}.mid.0", model.widths[-1], model.widths[-1])
        attention(f"{half}.mid.1", model.widths[-1])
        residual(f"{half}.mid.2", model.widths[-1], model.widths[-1])
        first, last = (3, model.latent) if half == "encoder" else (model.latent, 3)
        layer(f"{half}.conv_in", model.widths[levels[0]], first, 3, 3)
        layer(f"{half}.norm_out", model.widths[levels[-1]])
        layer(f"{half}.conv_out", last, model.widths[levels[-1]], 3, 3)
    layer("quant_conv", model.dimension, model.latent, 1, 1)
    layer("post_quant_conv", model.latent, model.dimension, 1, 1)
    return shapes


def gpt_shapes(net: Net) -> Shapes:
    """The names and shapes in the state dict of their GPT, with the table of rotations that the serving one keeps."""
    D, H = net.width, net.hidden
    shapes: Shapes = {
        "cls_embedding.embedding_table.weight": (net.classes + 1, D),
        "tok_embeddings.weight": (net.size, D),
        "norm.weight": (D,),
        "output.weight": (net.size, D),
        "freqs_cis": (1 + net.side**2, D // net.heads // 2, 2),
    }
    for layer in range(net.layers):
        parts: Shapes = {"attention.wqkv": (3 * D, D), "attention.wo": (D, D), "attention_norm": (D,), "ffn_norm": (D,)}
        parts |= {"feed_forward.w1": (H, D), "feed_forward.w3": (H, D), "feed_forward.w2": (D, H)}
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return shapes


def random_weights(shapes: Shapes, *, seed: int = 0) -> Weights:
    """Weights of a size at which nothing vanishes, norms and biases with values of their own."""
    chance = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=chance)
        if len(shape) == 1:
            return 0.1 * values + ("norm" in name and name.endswith("weight"))
        return values if "embedding" in name else values / math.sqrt(math.prod(shape[1:]))

    return {name: draw(name, shape) for name, shape in shapes.items()}


def convolve(weights: Weights, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)


def their_half(weights: Weights, half: str, x: Tensor) -> Tensor:
    """Encoder or decoder of their tokenizer in plain functions: what each name means, and nothing of ours."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def block(name: str, x: Tensor) -> Tensor:
        h = convolve(weights, f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)), padding=1)
        h = convolve(weights, f"{name}.conv2", F.silu(norm(f"{name}.norm2", h)), padding=1)
        return h + (convolve(weights, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)

    def attention(name: str, x: Tensor) -> Tensor:
        if f"{name}.norm.weight" not in weights:
            return x
        query, key, value = (convolve(weights, f"{name}.{part}", norm(f"{name}.norm", x)).flatten(2) for part in "qkv")
        chances = (query.transpose(1, 2) @ key / math.sqrt(x.shape[1])).softmax(2)  # (B,HW,HW)
        return x + convolve(weights, f"{name}.proj_out", (value @ chances.transpose(1, 2)).view(x.shape))

    def middle(x: Tensor) -> Tensor:
        return block(f"{half}.mid.2", attention(f"{half}.mid.1", block(f"{half}.mid.0", x)))

    x = convolve(weights, f"{half}.conv_in", x, padding=1)
    x = middle(x) if half == "decoder" else x
    level = 0
    while f"{half}.conv_blocks.{level}.res.0.norm1.weight" in weights:
        name, place = f"{half}.conv_blocks.{level}", 0
        while f"{name}.res.{place}.norm1.weight" in weights:
            x = attention(f"{name}.attn.{place}", block(f"{name}.res.{place}", x))
            place += 1
        if f"{name}.downsample.conv.weight" in weights:
            x = convolve(weights, f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        if f"{name}.upsample.conv.weight" in weights:
            x = convolve(weights, f"{name}.upsample.conv", F.interpolate(x, scale_factor=2.0), padding=1)
        level += 1
    x = middle(x) if half == "encoder" else x
    return convolve(weights, f"{half}.conv_out", F.silu(norm(f"{half}.norm_out", x)), padding=1)


def their_rotations(net: Net) -> Tensor:
    """(1 + side^2, d / 2) complex: zero for the class, then a turn for each pair of numbers, by the row and by the
    column."""
    pairs, places = net.width // net.heads // 4, torch.arange(net.side**2)[:, None]
    speeds = 10000.0 ** (-torch.arange(pairs) / pairs)
    angles = torch.cat((places // net.side * speeds, places % net.side * speeds), dim=1)
    return torch.cat((torch.zeros(1, 2 * pairs), torch.exp(1j * angles)))


def their_logits(weights: Weights, net: Net, classes: Tensor, codes: Tensor) -> Tensor:
    """Classes (B,) and codes (B,n) -> logits (B,1+n,K), one place at a time and without a mask."""

    def rms(name: str, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weights[f"{name}.weight"]

    table, B = their_rotations(net), len(classes)
    embedded = weights["cls_embedding.embedding_table.weight"][classes].unsqueeze(1)
    x = torch.cat((embedded, weights["tok_embeddings.weight"][codes]), 1)  # (B,T,D)
    for layer in range(net.layers):
        name = f"layers.{layer}"
        fused = rms(f"{name}.attention_norm", x) @ weights[f"{name}.attention.wqkv.weight"].T
        query, key, value = (part.view(B, x.shape[1], net.heads, -1) for part in fused.chunk(3, dim=2))
        query, key = (  # neighbors are the two parts of a complex number
            torch.view_as_real(
                torch.view_as_complex(part.reshape(*part.shape[:3], -1, 2)) * table[: x.shape[1], None]
            ).flatten(3)
            for part in (query, key)
        )
        seen = []
        for place in range(x.shape[1]):
            scores = torch.einsum("bnd,btnd->bnt", query[:, place], key[:, : place + 1]) / math.sqrt(query.shape[3])
            seen.append(torch.einsum("bnt,btnd->bnd", scores.softmax(2), value[:, : place + 1]).flatten(1))
        x = x + torch.stack(seen, 1) @ weights[f"{name}.attention.wo.weight"].T
        h = rms(f"{name}.ffn_norm", x)
        gate, linear = (h @ weights[f"{name}.feed_forward.{part}.weight"].T for part in ("w1", "w3"))
        x = x + (gate * gate.sigmoid() * linear) @ weights[f"{name}.feed_forward.w2.weight"].T
    return rms("norm", x) @ weights["output.weight"].T


def save(path: Path, weights: Weights, **others: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, **others}, path)
    return path


def imported(path: Path) -> Any:
    """What is read, of any type: each test knows which parts there are."""
    result = read(path)
    assert result is not None
    return result


@pytest.mark.parametrize("model", TOKENIZERS)
@torch.no_grad()
def test_the_tokenizers_numbers_are_those_of_an_independent_forward_pass(model: Tokenizer, tmp_path: Path) -> None:
    weights = random_weights(tokenizer_shapes(model))
    tokenizer = imported(save(tmp_path / "vq.pt", weights)).tokenizer
    side = 2 ** (len(model.widths) - 1)
    images = torch.rand(2, 3, 4 * side, 6 * side, generator=torch.Generator().manual_seed(3)) * 2 - 1
    features = F.normalize(convolve(weights, "quant_conv", their_half(weights, "encoder", images)), dim=1)
    codebook = F.normalize(weights["quantize.embedding.weight"], dim=1)
    codes = torch.einsum("bdhw,kd->bhwk", features, codebook).argmax(-1)  # the smallest angle
    torch.testing.assert_close(F.normalize(tokenizer.features(images), dim=1), features, rtol=1e-5, atol=1e-5)
    assert torch.equal(tokenizer.encode(images).codes, codes)
    assert len(set(codes.flatten().tolist())) > 3
    decoded = their_half(weights, "decoder", convolve(weights, "post_quant_conv", codebook[codes].permute(0, 3, 1, 2)))
    torch.testing.assert_close(tokenizer.decode_codes(codes), decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
@torch.no_grad()
def test_the_priors_numbers_are_those_of_an_independent_forward_pass(net: Net, tmp_path: Path) -> None:
    weights = random_weights(gpt_shapes(net))
    prior = imported(save(tmp_path / "gpt.pt", weights)).prior
    assert prior.grid == (net.side, net.side)
    chance = torch.Generator().manual_seed(4)
    codes = torch.randint(net.size, (3, net.side**2 - 1), generator=chance)
    classes = torch.tensor([0, net.classes - 1, net.classes])  # the last is "nothing"
    wanted = their_logits(weights, net, classes, codes)
    sequence = prior.join(torch.cat((classes[:2, None], prior.null_prefix(1))), codes)
    torch.testing.assert_close(prior(sequence), wanted, rtol=1e-5, atol=1e-5)
    cache = prior.empty_cache()
    stepwise = torch.cat([prior(sequence[:, [t]], cache=cache) for t in range(sequence.shape[1])], 1)
    torch.testing.assert_close(stepwise, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_guided_codes_are_those_that_their_logits_choose(guidance: float, tmp_path: Path) -> None:
    net = Net()
    weights = random_weights(gpt_shapes(net), seed=1)
    prior = imported(save(tmp_path / "gpt.pt", weights)).prior
    told, empty = torch.tensor([3, 1]), torch.tensor([net.classes] * 2)
    codes = torch.zeros(2, 0, dtype=torch.int64)
    for _ in range(net.side**2):
        with_class, without = (their_logits(weights, net, classes, codes)[:, -1] for classes in (told, empty))
        best = (without + (with_class - without) * guidance).argmax(1, keepdim=True)
        codes = torch.cat((codes, best), 1)
    sampler, grid = Sampler(temperature=0, guidance=guidance), (net.side, net.side)
    laid = final_codes(
        generate(
            prior,
            GenerationRequest(
                constant_prefix(told[:, None]), sampler=sampler, seeds=torch.arange(2), known=unknown_codes(2, grid)
            ),
        )
    )
    assert torch.equal(laid.flatten(1), codes)


@pytest.mark.parametrize("place", ["model", "module", "state_dict", "top", "safetensors", "half", "ema"])
def test_all_their_ways_to_keep_weights_are_read(place: str, tmp_path: Path) -> None:
    weights, path = random_weights(gpt_shapes(Net())), tmp_path / "gpt.pt"
    if place == "safetensors":
        path = tmp_path / "gpt.safetensors"
        save_file(weights, path)
    elif place == "half":
        weights = {name: weight.bfloat16() for name, weight in weights.items()}
        save(path, weights)
    elif place == "ema":  # averaged ones are preferred
        save(path, {name: weight + 1 for name, weight in weights.items()}, ema=weights)
    else:
        torch.save(weights if place == "top" else {"steps": 3, place: weights}, path)
    assert torch.equal(imported(path).prior.head.weight, weights["output.weight"].float())


@pytest.mark.parametrize("model", TOKENIZERS)
@pytest.mark.parametrize("net", NETS[:2])
def test_the_round_trip_is_exact(model: Tokenizer, net: Net, tmp_path: Path) -> None:
    net = net._replace(size=model.size)
    vq, gpt = random_weights(tokenizer_shapes(model)), random_weights(gpt_shapes(net))
    save(tmp_path / "theirs" / "vq.pt", vq)
    save(tmp_path / "theirs" / "gpt.pt", gpt)
    first = imported(tmp_path / "theirs")
    write(first.tokenizer, first.prior, first.condition, tmp_path / "again", about=first.about)
    factor = 2 ** (len(model.widths) - 1)
    names = (f"vq_ds{factor}_c2i.pt", f"c2i_{net.layers}x{net.width}_{net.side * factor}.pt")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(names)
    vq["quantize.codebook_used"].zero_()
    del gpt["freqs_cis"]
    for weights, name in zip((vq, gpt), names, strict=True):
        again = torch.load(tmp_path / "again" / name, weights_only=True)["model"]
        assert again.keys() == weights.keys()
        assert all(torch.equal(again[key], weights[key]) for key in weights)
        numbers = sum(weight.numel() for weight in weights.values())
        assert (tmp_path / "again" / name).stat().st_size < 4 * numbers + 300 * len(weights) + 4096
    second = imported(tmp_path / "again")
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert second.prior.settings == first.prior.settings
    state = first.prior.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in second.prior.state_dict().items())


def test_a_folder_with_both_is_a_pipeline(tmp_path: Path) -> None:
    model, net = TOKENIZERS[0], Net(size=TOKENIZERS[0].size)
    save(tmp_path / "vq.pt", random_weights(tokenizer_shapes(model)))
    save(tmp_path / "gpt.pt", random_weights(gpt_shapes(net)))
    pipeline = Pipeline.from_pretrained(tmp_path)
    images = pipeline.sample(2, label="3", guidance=2.0, top_k=5)
    assert images.shape == (2, 3, 8, 8)
    assert images.isfinite().all()
    assert imported(tmp_path).about["size"] == [8, 8]
    with pytest.raises(SmaltiError, match="no label '5'"):
        pipeline.sample(label="5")
    save(tmp_path / "gpt.pt", random_weights(gpt_shapes(Net(size=23))))
    with pytest.raises(SmaltiError, match=r"gpt\.pt is of 23 codes and .*vq\.pt has 24; they do not belong together"):
        read(tmp_path)
    save(tmp_path / "copy.pt", random_weights(gpt_shapes(net)))
    with pytest.raises(SmaltiError, match=r"more than one GPT of LlamaGen \(copy\.pt and gpt\.pt\)"):
        read(tmp_path)


NAMES = [
    ("c2i_X_384L.pt", 128, 2, 24, "the file's name"),
    ("c2i_B_256.pt", 768, 12, 16, "the file's name"),
    ("0300000.pt", 64, 1, 16, "nothing; 16x16 was taken"),
]


@pytest.mark.parametrize(("name", "width", "heads", "side", "source"), NAMES)
def test_the_rest_is_known_from_elsewhere(
    name: str, width: int, heads: int, side: int, source: str, tmp_path: Path
) -> None:
    shapes = gpt_shapes(Net(size=3, classes=2, layers=1, width=width, heads=heads, hidden=4))
    del shapes["freqs_cis"]
    path = save(tmp_path / name, random_weights(shapes))
    prior, about = imported(path).prior, imported(path).about
    assert (prior.settings.heads, prior.grid, about["prior"]["grid_from"]) == (heads, (side, side), source)
    assert (about["prior"]["heads_from"] == "the published sizes") == (width == 768)


@pytest.mark.parametrize(("name", "millions"), [("B", 111), ("L", 343), ("XXL", 1400), ("3B", 3100)])
def test_the_sizes_are_the_published_ones(name: str, millions: int) -> None:
    layers, heads, width = SIZES[name]
    hidden = -(-(8 * width // 3) // 256) * 256
    theirs: dict[str, Any] = {"layers": layers, "heads": heads, "embed_dim": width, "mlp_dim": hidden, **REFERENCE_GPT}
    with torch.device("meta"):
        prior = Transformer(TransformerSettings(codebook_size=16384, condition_size=1000, **theirs))
    count = sum(parameter.numel() for parameter in prior.parameters()) - width  # theirs has no position for the class
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
