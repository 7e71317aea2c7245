"""The frame of experiments: what is done stays done, what was stopped continues, what has changed is done again; and
the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smalti.core.errors import SmaltiError
from smalti.core.settings import settings
from smalti.data.code_shards import open_codes
from smalti.experiments import steps
from smalti.experiments.base import (
    Experiment,
    ExperimentRequest,
    Step,
    StepContext,
    StepResult,
    read_scales,
    run_experiment,
)
from smalti.experiments.experiment_registry import EXPERIMENTS
from smalti.experiments.steps import ImageSource
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.run_folder import read_metrics
from smalti.training.runs import encode_images, train_prior
from tests.small import RECIPE, write_images, write_recipe

StepWork = Callable[[StepContext], Mapping[str, Any]]


@settings
class Numbers:
    """Settings of an experiment that reckons."""

    first: int
    second: int = 10


class Reckoning:
    """An experiment of three steps: two numbers and their sum. It notes what is done, and breaks where it is told
    to."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.breaks: dict[str, BaseException] = {}

    def work(self, name: str, value: Callable[[StepContext], int]) -> StepWork:
        def work(context: StepContext) -> dict[str, Any]:
            self.did.append(name)
            begun = context.folder / "begun.txt"
            begun.write_text(begun.read_text() + "again" if begun.is_file() else "once")
            if name in self.breaks:
                raise self.breaks.pop(name)
            return {"value": value(context)}

        return work

    def plan(self, chosen: Numbers, request: ExperimentRequest) -> list[Step]:
        first, second = chosen.first, chosen.second
        return [
            Step(name="one", settings={"a": {"value": first}}, work=self.work("one", lambda context: first)),
            Step(name="two", settings={"value": second}, work=self.work("two", lambda context: second)),
            Step(name="sum", settings={}, work=self.work("sum", _sum), after=("one", "two")),
        ]

    @property
    def experiment(self) -> Experiment[Numbers]:
        return Experiment(
            name="reckoning",
            about="how much is one and ten",
            takes_models=False,
            settings=Numbers,
            scales_file=Path(__file__).with_name("reckoning.yaml"),
            plan=self.plan,
            findings=lambda chosen, request, done: {
                "title": "Sum",
                "lead": f"It is {done['sum'].outcome['value']}.",
            },
            page="reports/report.html",
        )


def _sum(context: StepContext) -> int:
    return sum(int(each.outcome["value"]) for each in context.before.values())


QUIET = Console(quiet=True)


def go(reckoning: Reckoning, out: Path, *overrides: str, console: Console = QUIET) -> int:
    """Run it and return the sum that the page tells."""
    page = run_experiment(reckoning.experiment, out, request=ExperimentRequest(overrides=overrides), console=console)
    value: int = json.loads((out / "result.json").read_text())["steps"]["sum"]["outcome"]["value"]
    assert f"It is {value}." in page.read_text()
    return value


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    reckoning = Reckoning()
    assert go(reckoning, tmp_path / "out") == 11
    assert go(reckoning, tmp_path / "out") == 11
    assert reckoning.did == ["one", "two", "sum"]


def test_a_changed_setting_does_its_step_and_those_after_it_anew_and_keeps_the_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reckoning = Reckoning()
    go(reckoning, tmp_path)
    reckoning.did.clear()
    assert go(reckoning, tmp_path, "first=5", console=Console(width=200)) == 15
    assert reckoning.did == ["one", "sum"]
    message = capsys.readouterr().out
    assert "one: a.value was 1 and is 5; it is run again; earlier results are kept" in message
    assert "two: already done" in message
    assert "sum: an earlier step has changed" in message
    assert go(reckoning, tmp_path) == 11
    assert reckoning.did == ["one", "sum"], "going back finds what was there"


def test_a_stopped_step_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    reckoning = Reckoning()
    reckoning.breaks["two"] = KeyboardInterrupt()
    with pytest.raises(SmaltiError, match="step 2 of 3, two: interrupted; run the same command again to resume"):
        go(reckoning, tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert go(reckoning, tmp_path) == 11
    assert reckoning.did == ["one", "two", "two", "sum"]
    (begun,) = (tmp_path / "steps" / "two").glob("*/begun.txt")
    assert begun.read_text() == "onceagain"


def test_a_killed_step_is_taken_up_again(tmp_path: Path) -> None:
    """A kill runs no handler: the marker of the step that was begun says that it is not finished."""

    class Killed(BaseException):
        pass

    reckoning = Reckoning()
    reckoning.breaks["sum"] = Killed()
    with pytest.raises(Killed):
        go(reckoning, tmp_path)
    (marker,) = (tmp_path / "steps" / "sum").glob("*.json")
    assert json.loads(marker.read_text())["finished"] is False
    assert go(reckoning, tmp_path) == 11
    assert reckoning.did == ["one", "two", "sum", "sum"]


def test_a_failing_step_is_named(tmp_path: Path) -> None:
    reckoning = Reckoning()
    reckoning.breaks["one"] = SmaltiError("there are no stones; bring some")
    with pytest.raises(SmaltiError, match="step 1 of 3, one: there are no stones; bring some"):
        go(reckoning, tmp_path)


def test_seconds_add_up_over_stops(tmp_path: Path) -> None:
    reckoning = Reckoning()
    go(reckoning, tmp_path)
    (marker,) = (tmp_path / "steps" / "two").glob("*.json")
    noted = json.loads(marker.read_text())
    marker.write_text(json.dumps({**noted, "finished": False, "seconds": 1000.0}))
    go(reckoning, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert 1000 <= result["steps"]["two"]["seconds"] < 1100
    assert result["seconds"] >= 1000


def test_the_result_says_what_was_requested(tmp_path: Path) -> None:
    go(Reckoning(), tmp_path, "second=3")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["experiment"], result["scale"], result["overrides"]) == ("reckoning", "tiny", ["second=3"])
    assert result["settings"] == {"first": 1, "second": 3}
    assert all((tmp_path / step["folder"]).is_dir() for step in result["steps"].values())


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (ExperimentRequest(scale="tny"), "unknown scale 'tny'; did you mean 'tiny'"),
        (ExperimentRequest(overrides=("frist=2",)), "unknown key 'frist'; did you mean 'first'"),
        (ExperimentRequest(overrides=("first=many",)), "first = 'many'"),
        (ExperimentRequest(overrides=("first",)), "'first' is not of the form key=value"),
        (ExperimentRequest(overrides=("first=[",)), "the value is not YAML"),
        (ExperimentRequest(scale="small"), "needs a folder of stones; give the images with --data"),
        (ExperimentRequest(models=(Path("stone"),)), "trains its own models; omit stone"),
    ],
)
def test_mistakes_are_sentences_before_anything_is_written(
    tmp_path: Path, wanted: ExperimentRequest, sentence: str
) -> None:
    with pytest.raises(SmaltiError, match=sentence.replace("(", r"\(")):
        run_experiment(Reckoning().experiment, tmp_path / "out", request=wanted, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    go(Reckoning(), tmp_path / "done")
    for out, sentence in (("file", "is a file"), ("full", "is not empty and holds no experiment")):
        with pytest.raises(SmaltiError, match=sentence):
            go(Reckoning(), tmp_path / out)
    counting = replace(Reckoning().experiment, name="counting")
    with pytest.raises(SmaltiError, match="holds the experiment 'reckoning', not 'counting'; choose another --out"):
        run_experiment(counting, tmp_path / "done", request=ExperimentRequest(), console=QUIET)


def trainings(chosen: Numbers, request: ExperimentRequest) -> list[Step]:
    """As the experiments to come: a tokenizer, its codes, then priors, the last trained as long as the one before
    took."""
    assert request.data is not None
    images, recipe = ImageSource.of(request.data), str(request.data.parent / "small.yaml")
    tokenizer = steps.varied_tokenizer(recipe, shared=["run.images=16"], overrides=request.of("tokenizer"), changes=[])

    def encode(context: StepContext) -> dict[str, Any]:
        copies = resolve(PriorTraining, stage="prior", recipe=recipe, overrides=[]).encode
        run, shards = context.before["tokenizer"].folder, context.folder / "codes"
        encode_images(run, images.path(context), shards, settings=copies, seed=0, progress=lambda done, total: None)
        return {"images": len(open_codes(shards).training)}

    def prior(layers: int) -> StepWork:
        def work(context: StepContext) -> dict[str, Any]:
            seen = context.before["prior-1"].outcome["seen"] if layers > 1 else 640
            changes = [f"network.layers={layers}", f"run.codes={seen}"]
            training = resolve(PriorTraining, stage="prior", recipe=recipe, overrides=[*request.of("prior"), *changes])
            run, shards = context.before["tokenizer"].folder, context.before["codes"].folder / "codes"
            train_prior(open_codes(shards), run, context.folder, settings=training, console=context.console)
            return {"seen": read_metrics(context.folder)[-1]["seen"], "nats": read_metrics(context.folder)[-1]["nats"]}

        return work

    return [
        steps.tokenizer("tokenizer", images=images, training=tokenizer),
        Step(name="codes", settings={}, work=encode, after=("tokenizer",)),
        Step(name="prior-1", settings={"layers": 1}, work=prior(1), after=("tokenizer", "codes")),
        Step(name="prior-2", settings={"layers": 2}, work=prior(2), after=("tokenizer", "codes", "prior-1")),
    ]


def test_studies_of_priors_fit(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    write_recipe(tmp_path / "small.yaml")
    found: dict[str, StepResult] = {}

    def findings(chosen: Numbers, request: ExperimentRequest, done: Mapping[str, StepResult]) -> dict[str, str]:
        found.update(done)
        return {"title": "Priors", "lead": "Compared."}

    experiment = replace(Reckoning().experiment, plan=trainings, findings=findings)
    request = ExperimentRequest(data=data, overrides=("prior.network.embed_dim=32",))
    run_experiment(experiment, tmp_path / "out", request=request, console=QUIET)
    assert [found[name].outcome["seen"] for name in ("prior-1", "prior-2")] == [640, 640]
    widths = (found["prior-2"].folder / "config.yaml").read_text()
    assert "embed_dim: 32" in widths
    assert "layers: 2" in widths


def test_a_tokenizer_of_other_workers_goes_on_and_of_other_length_is_another(tmp_path: Path) -> None:
    images = ImageSource.of(write_images(tmp_path / "images"))
    write_recipe(tmp_path / "small.yaml")

    def described(*overrides: str) -> Mapping[str, Any]:
        training = steps.varied_tokenizer(str(tmp_path / "small.yaml"), shared=[], overrides=overrides, changes=[])
        return steps.tokenizer("one", images=images, training=training).settings

    assert described("run.workers=2") == described() != described("run.images=60")
    assert (
        described()["training"]["model"]["quantizer"]["codebook_size"]
        == RECIPE["tokenizer"]["model"]["quantizer"]["codebook_size"]
    )


def test_what_a_study_varies_is_not_set_over_its_head(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path / "small.yaml"))
    training = steps.varied_tokenizer(recipe, shared=["run.batch=2"], overrides=["run.batch=8"], changes=["run.seed=3"])
    assert (training.run.batch, training.run.seed) == (8, 3)
    with pytest.raises(SmaltiError, match=r"--set tokenizer\.run\.seed=1: the experiment decides run\.seed itself"):
        steps.varied_tokenizer(recipe, shared=[], overrides=["run.seed=1"], changes=["run.seed=3"])


def test_other_images_in_the_same_folder_are_other_settings(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    before = ImageSource.of(data).described
    assert ImageSource.of(data).described == before
    next(data.rglob("*.png")).unlink()
    assert ImageSource.of(data).described != before


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_study_can_be_planned_at_every_scale(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_OFFLINE", "1")
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path))
    experiment, data = EXPERIMENTS[name], write_images(tmp_path / "images")
    assert set(experiment.scales) == {"tiny", "small", "full"}
    assert experiment.scales["tiny"].renders_scenes
    assert "\n" not in experiment.about
    for scale in experiment.scales:
        request = ExperimentRequest(scale=scale, data=None if name in ("conditions", "window") else data)
        planned = experiment.plan(experiment.resolved(request), request)
        names = [step.name for step in planned]
        assert len(set(names)) == len(names)
        assert all(set(step.after) <= set(names[:index]) for index, step in enumerate(planned))
        json.dumps([step.settings for step in planned])


def test_the_recipes_of_full_are_what_they_say(tmp_path: Path) -> None:
    request = ExperimentRequest(scale="full", data=tmp_path)
    chosen = EXPERIMENTS["reconstruction"].resolved(request)
    for each in chosen.tokenizers:
        generated = [*chosen.training, *each.changes]
        training = resolve(TokenizerTraining, stage="tokenizer", recipe=chosen.recipe, overrides=generated)
        assert each.name == f"f{training.model.autoencoder.factor}-k{training.model.quantizer.codebook_size}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("tiny: [", "cannot read .*scales.yaml"),
        ("- tiny", "scales.yaml holds no scales"),
        ("tiny: {about: a, data: b, renders_scenes: true}", "scale tiny: the key 'settings' is missing"),
        ("tiny: {about: a, data: b, renders_scene: true, settings: {}}", "unknown key 'renders_scene'; did you mean"),
    ],
)
def test_scales_that_are_none_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "scales.yaml").write_text(content)
    with pytest.raises(SmaltiError, match=sentence):
        read_scales(tmp_path / "scales.yaml")
