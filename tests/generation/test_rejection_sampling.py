"""The best of several tries: seeds of candidates, the slow truth of the choice, what is compared, and classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from smalti.conditions.labels import Labels, Unconditional
from smalti.core.errors import SmaltiError
from smalti.evaluation.imagenet_classifier import by_class, imagenet_classes, read_classifier
from smalti.evaluation.rejection_sampling import (
    by_images,
    by_likelihood,
    candidate_seeds,
    rejection_sample,
    scored_positions,
    zero_score,
)
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.images.io import read_image, read_settings, to_tensor
from smalti.images.resizing import center_crop, resize_to_cover
from smalti.losses.logits import LogitDistance
from smalti.losses.resnet50 import ResNet50
from smalti.pipeline import Pipeline
from smalti.prior import Middle, Window, after_middle, before_middle, placement
from tests import reference
from tests.cli.test_cli import Runner, pixels, smalti  # noqa: F401, the last is a fixture
from tests.generation.test_code_sampler import small
from tests.small_pipeline import LABELS, noise, pipeline

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def mean_code(codes: Tensor) -> Tensor:
    """A score that depends on the codes alone."""
    return codes.double().flatten(1).mean(1)


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_the_first_candidate_has_the_images_own_seed() -> None:
    seeds = torch.tensor([0, 7, 2**63 - 1])
    assert torch.equal(candidate_seeds(seeds, 0), seeds)


def test_candidates_have_seeds_of_their_own() -> None:
    seeds = torch.arange(200)
    every = torch.stack([candidate_seeds(seeds, candidate) for candidate in range(50)])
    assert len(set(every.flatten().tolist())) == every.numel()
    assert every.min() == 0
    assert every[1:].min() > 2**40, "no image of a series that began at a small seed"
    assert every.max() < 2**62
    assert candidate_seeds(seeds[5:6], 3)[0] == every[3, 5], "whatever batch it is in"


def test_candidates_are_the_same_for_ever() -> None:
    """Images that people keep by their seed would otherwise change with the version."""
    words = reference.philox([1, 0, 0, 1], [5, 1])
    assert candidate_seeds(torch.tensor([2**32 + 5]), 1).item() == (words[0] % 2**30) * 2**32 + words[1]
    assert candidate_seeds(torch.tensor([0]), 7).item() == 4231536371044118500


# --- choosing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 16), (16, 20)])
def test_the_best_is_that_of_the_slow_truth(size: tuple[int, int]) -> None:
    pipe, labels, sampler = pipeline(), ["dusk", None, "dawn"], Sampler(top_k=12)
    known, seeds = unknown_codes(3, pipe.grid(size)), pipe.seeds(4, 3)
    request = pipe.request_for(labels, known, sampler=sampler, seeds=seeds)
    chosen = rejection_sample(pipe, request, num_candidates=5, score=mean_code)
    for place, label in enumerate(labels):
        alone = []
        for candidate in range(5):
            seed = candidate_seeds(seeds[place : place + 1], candidate)
            alone.append(
                final_codes(generate(pipe.prior, pipe.request_for([label], known[:1], sampler=sampler, seeds=seed)))[0]
            )
        scores = [float(codes.double().mean()) for codes in alone]
        best = max(range(5), key=lambda k: scores[k])
        assert torch.equal(chosen.codes[place], alone[best])
        assert chosen.scores[place].tolist() == scores
        assert int(chosen.candidates[place]) == best
        assert int(chosen.seeds[place]) == int(candidate_seeds(seeds[place : place + 1], best))
    assert len(set(chosen.candidates.tolist())) > 1, "else nothing was chosen"


def test_one_try_is_what_is_generated_today() -> None:
    pipe, known = pipeline(), unknown_codes(4, (3, 4))
    request = pipe.request(known, conditions={"label": "night"}, seed=9)
    chosen = rejection_sample(pipe, request, num_candidates=1, score=zero_score)
    assert torch.equal(pipe.decode(chosen.codes), pipe.sample(4, label="night", seed=9))
    assert chosen.seeds.tolist() == [9, 10, 11, 12]


def test_an_image_hangs_on_its_seed_alone() -> None:
    pipe = pipeline()

    def of(first: int, count: int) -> Tensor:
        request = pipe.request(unknown_codes(count, (3, 4)), conditions={"label": "dusk"}, seed=first)
        return rejection_sample(pipe, request, num_candidates=4, score=by_likelihood(pipe, request)).codes

    together = of(20, 5)
    for place in range(5):
        assert torch.equal(of(20 + place, 1)[0], together[place])


def test_the_first_of_equals_is_kept() -> None:
    pipe, reported = pipeline(), []
    chosen = rejection_sample(
        pipe,
        pipe.request(unknown_codes(2, (3, 4))),
        num_candidates=3,
        score=zero_score,
        progress=lambda done, total: reported.append((done, total)),
    )
    assert chosen.candidates.tolist() == [0, 0]
    assert reported == [(8 * row, 72) for row in range(1, 10)]  # two images, four codes per row


@pytest.mark.parametrize(
    ("num_candidates", "score", "sentence"),
    [
        (0, mean_code, "num_candidates is 0; use 1 or more"),
        (2, lambda codes: codes.double().mean(), r"one number for each of the 3 images"),
        (2, lambda codes: torch.full((3,), math.nan), r"not \[nan, nan, nan\]; .* without NaN"),
    ],
)
def test_invalid_scores_are_refused(num_candidates: int, score: Callable[[Tensor], Tensor], sentence: str) -> None:
    pipe = pipeline()
    with pytest.raises(SmaltiError, match=sentence):
        rejection_sample(pipe, pipe.request(unknown_codes(3, (3, 4))), num_candidates=num_candidates, score=score)


def test_anything_that_looks_at_images_can_choose() -> None:
    pipe, seen = pipeline(), []

    def brightness(images: Tensor) -> Tensor:
        seen.append(images)
        return images.mean((1, 2, 3))

    request = pipe.request(unknown_codes(3, (3, 4)))
    chosen = rejection_sample(pipe, request, num_candidates=6, score=by_images(pipe, brightness))
    every = torch.stack(seen)  # (N,B,C,H,W)
    assert every.shape == (6, 3, 3, 12, 16)
    brightest = every.mean((2, 3, 4)).max(0).values
    torch.testing.assert_close(pipe.decode(chosen.codes).mean((1, 2, 3)), brightest)


# --- likelihood ----------------------------------------------------------------------------------------------------


def slow_nats(pipe: Pipeline, codes: Tensor, label: str | None, *, middle: Middle = after_middle) -> Tensor:
    """One image's codes (h,w) -> nats of each, a pass for each code over those that its window would see."""
    height, width = codes.shape
    shape = (min(pipe.prior.grid[0], height), min(pipe.prior.grid[1], width))
    prefix = pipe.window_prefix([label], grid=(height, width))(Window(0, 0, *shape))
    found = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            down = placement(row, height, shape[0], middle=middle)
            right = placement(column, width, shape[1], middle=middle)
            top, left = row - down, column - right
            within = codes[top : top + shape[0], left : left + shape[1]].flatten()[: down * shape[1] + right]
            sequence = pipe.prior.join(prefix, within[None])
            logits = pipe.prior(sequence, cache=pipe.prior.empty_cache(window=shape))[0, -1, : pipe.prior.size]
            found[row, column] = -logits.log_softmax(0)[codes[row, column]]
    return found


@pytest.mark.parametrize("grid", [(3, 4), (2, 3), (5, 4), (3, 7), (6, 6)])
def test_likelihood_is_that_under_the_window_that_would_generate_the_code(grid: tuple[int, int]) -> None:
    pipe = pipeline()
    codes = torch.randint(16, (2, *grid), generator=torch.Generator().manual_seed(3))
    found = pipe.nll(codes, values=["dusk", None])
    with torch.no_grad():
        for place, label in enumerate(("dusk", None)):
            torch.testing.assert_close(found[place], slow_nats(pipe, codes[place], label), rtol=1e-4, atol=1e-5)


def test_windows_of_layouts_stand_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, codes = pipeline(), torch.randint(16, (1, 6, 7), generator=torch.Generator().manual_seed(3))
    plain = pipe.nll(codes, values=["dusk"])
    monkeypatch.setattr(pipe.condition, "middle", before_middle)
    found = pipe.nll(codes, values=["dusk"])
    with torch.no_grad():
        expected = slow_nats(pipe, codes[0], "dusk", middle=before_middle)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_what_candidates_are_scored_by() -> None:
    """Known codes after the first laid one in the order; where there are none, those that are laid. Image by image."""
    known = torch.full((5, 4, 4), 3)
    known[0, 1, 2] = known[0, 2, 1] = -1  # a hole in the middle
    known[1, 2:] = -1  # the lower half
    known[2] = -1  # all
    known[3, :, 2:] = -1  # the right half
    of = scored_positions(small(), known).int()
    assert of[0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    assert of[1].tolist() == [[0] * 4] * 2 + [[1] * 4] * 2
    assert of[2].tolist() == [[1] * 4] * 4
    assert of[3].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert of[4].tolist() == [[0] * 4] * 4, "nothing is laid, and nothing to judge"
    inward = scored_positions(small(order="spiral_in"), known[:1]).int()[0]  # which ends with (1, 2), (1, 1) and (2, 1)
    assert inward.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_score_is_the_mean_of_the_scored_codes() -> None:
    pipe = pipeline()
    known = pipe.encode(noise(2, 3, 16, 20))
    known[0, 1, 1:3] = -1
    known[1] = -1
    values = ["dawn", "night"]
    request = pipe.request_for(values, known, sampler=Sampler(guidance=2.0), seeds=pipe.seeds(0, 2))
    codes = final_codes(generate(pipe.prior, request))
    scores = by_likelihood(pipe, request)(codes)
    with torch.no_grad():
        losses = torch.stack([slow_nats(pipe, codes[place], value) for place, value in enumerate(values)])
    hole = torch.ones(4, 5, dtype=torch.bool)
    hole[0] = hole[1, :3] = False
    torch.testing.assert_close(scores, -torch.stack([losses[0][hole].mean(), losses[1].mean()]), rtol=1e-4, atol=1e-5)


def test_tries_make_holes_fit() -> None:
    """Several tries draw from nearer to what the prior finds likely of a hole, given the codes behind it too.

    One row of codes with the last known: the chance of a candidate is known exactly, and with it that of the code
    behind.
    """
    pipe = pipeline(Unconditional())
    whole = final_codes(
        generate(
            pipe.prior, pipe.request_for([None], unknown_codes(1, (1, 4)), sampler=Sampler(), seeds=pipe.seeds(3, 1))
        )
    )
    known = whole.repeat(40, 1, 1)
    known[:, 0, 2] = -1
    request = pipe.request(known, seed=100)
    score = by_likelihood(pipe, request)
    one, many = (
        rejection_sample(pipe, request, num_candidates=num_candidates, score=score).codes for num_candidates in (1, 12)
    )
    likely = [float(pipe.nll(codes, values=[None] * 40)[:, 0, 3].mean()) for codes in (one, many)]
    assert likely[1] < likely[0] - 0.3


# --- classifiers ---------------------------------------------------------------------------------------------------


def test_labels_of_imagenet() -> None:
    synsets = [f"n{number:08d}" for number in range(3, 4003, 4)]
    named = [f"{synset}_thing {place}" for place, synset in enumerate(synsets)]
    assert imagenet_classes(named[::-1]) == {label: place for place, label in enumerate(named)}
    assert imagenet_classes(["7", "007", "999"]) == {"7": 7, "007": 7, "999": 999}
    for labels in (["dawn", "7"], synsets[:999], [*synsets[:999], f"{synsets[0]}_again"], ["1000"], [], ["7", "-7"]):
        with pytest.raises(SmaltiError, match=r"numbers 0 to 999, or the synsets .* of all 1000 classes"):
            imagenet_classes(labels)
    with pytest.raises(SmaltiError, match="the label 'dawn'"):
        imagenet_classes(["7", "dawn"])


class Colors(nn.Module):
    """(B,3,H,W) -> logits of two times three classes: how much there is of each color, and how little."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return torch.cat((means, -means), dim=1)


def test_the_class_that_was_requested_decides() -> None:
    images = torch.stack([torch.tensor(color).view(3, 1, 1).expand(3, 8, 8) for color in ((1.0, -1, 0), (0, 0, 1))])
    found = by_class(LogitDistance(Colors()), [4, 2])(images)
    logits = LogitDistance(Colors()).logits(images)
    assert found.tolist() == pytest.approx(logits.softmax(1)[[0, 1], [4, 2]].log().tolist(), rel=1e-5)
    with pytest.raises(SmaltiError, match="images of 1 or 3 channels, these have 4"):
        by_class(LogitDistance(Colors()), [0])(torch.zeros(1, 4, 8, 8))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet-50 as torchvision writes it, in half precision."""
    torch.manual_seed(0)
    tensors = {name: tensor.half() for name, tensor in ResNet50().state_dict().items()}
    norms = [name.removesuffix("running_var") for name in tensors if name.endswith("running_var")]
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pth"
    torch.save({**tensors, **{f"{norm}num_batches_tracked": torch.tensor(5) for norm in norms}}, path)
    return path


def test_a_resnet_is_read_from_its_file(resnet: Path) -> None:
    images = noise(1, 3, 40, 40)
    torch.manual_seed(0)
    network = ResNet50().half().float()
    with torch.no_grad():
        torch.testing.assert_close(
            read_classifier(str(resnet)).logits(images), LogitDistance(network).logits(images), rtol=1e-3, atol=1e-3
        )


def test_files_that_hold_no_resnet_raise_errors(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(10, 2048), "extra": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(SmaltiError, match=r"other.safetensors \(a ResNet-50\) do not fit: conv1.weight is missing"):
        read_classifier(str(tmp_path / "other.safetensors"))
    with pytest.raises(SmaltiError, match="no classifier of that name; did you mean 'resnet50'"):
        read_classifier("resnet5")
    (tmp_path / "cut.pth").write_bytes(b"cut")
    with pytest.raises(SmaltiError, match=r"cut\.pth is damaged, truncated or no checkpoint"):
        read_classifier(str(tmp_path / "cut.pth"))


def test_published_weights_know_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers in front of these files' names are the classes: so the order of the classes is right."""
    files = sorted((SHARED / "imagenet_sample").glob("*.jpg"))[::40]
    if not files or not (SHARED / "weights" / "squeezenet1_1_torchvision_fp16.safetensors").is_file():
        pytest.skip("no images of ImageNet, or no weights of SqueezeNet, on this machine")
    monkeypatch.setenv("SMALTI_WEIGHTS", str(SHARED / "weights"))
    arrays = [read_image(file, channels=3, name=file.name) for file in files]
    images = torch.stack([to_tensor(center_crop(resize_to_cover(each, (224, 224)), (224, 224))) for each in arrays])
    classifier, requested = read_classifier("squeezenet"), [int(file.name[:3]) for file in files]
    own = by_class(classifier, requested)(images).exp().mean()
    others = by_class(classifier, [(number + 1) % 1000 for number in requested])(images).exp().mean()
    assert own > 0.3
    assert own > 5 * others


def test_the_command_keeps_the_candidate_of_the_highest_class_score(
    smalti: Runner,  # noqa: F811
    resnet: Path,
    tmp_path: Path,
) -> None:
    pipe = pipeline(Labels(["3", "12", "999"]))
    pipe.save_pretrained(tmp_path / "model", about={})
    command: tuple[object, ...] = ("sample", tmp_path / "model", "--label", "12", "-n", 2, "--seed", 5)
    done = smalti(*command, "--classifier", resnet, "--best-of", 3, "--out", tmp_path / "best")
    assert done.status == 0, done.err
    discriminator = by_class(read_classifier(str(resnet)), [12])
    for seed in (5, 6):
        seeds = [int(candidate_seeds(torch.tensor([seed]), k)) for k in range(3)]
        every = [pipe.sample(1, label="12", seed=each) for each in seeds]
        scores = [float(discriminator(each)) for each in every]
        best = max(range(3), key=lambda k: scores[k])
        kept = tmp_path / "best" / f"12-{seed:06d}.png"
        reported = read_settings(kept)
        assert reported is not None
        assert (reported["best_of"], reported["selected_by"]) == (3, resnet.name)
        assert (reported["seed"], reported["candidate_seed"]) == (seed, seeds[best])
        assert reported["score"] == pytest.approx(scores[best], abs=1e-3)
        displayed = to_tensor(pixels(kept).copy())
        assert (displayed - every[best][0]).abs().max() <= 1 / 127
    for options, sentence, status in (
        (("--label", "12", "--best-of", 1), "needs --best-of 2", 2),
        ((), "give --label", 1),
        (("--label", "13"), "there is no label '13'", 1),
    ):
        smalti.fails(
            *command[:2], *options, "--classifier", resnet, "--out", tmp_path / "o", sentence=sentence, status=status
        )
    pipeline(LABELS).save_pretrained(tmp_path / "times", about={})
    times = ("sample", tmp_path / "times", "--label", "dusk", "--classifier", resnet, "--out", tmp_path / "o")
    smalti.fails(*times, sentence="cannot map the label 'dawn'")
    pipeline(Unconditional()).save_pretrained(tmp_path / "nothing", about={})
    smalti.fails(
        "sample",
        tmp_path / "nothing",
        "--classifier",
        resnet,
        "--out",
        tmp_path / "o",
        sentence="needs a model conditioned on labels",
    )
    assert not (tmp_path / "o").exists()
