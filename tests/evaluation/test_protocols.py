"""Protocols: named settings, changes that are kept, and mistakes that are named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import pytest

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping, parse
from smalti.evaluation.features import NETWORKS, SCORES
from smalti.evaluation.protocols import (
    ALL_SCORES,
    PRIOR_PROTOCOLS,
    SET_PROTOCOLS,
    TOKENIZER_PROTOCOLS,
    FeatureProtocol,
    select_protocol,
)

TABLES: list[Mapping[str, Any]] = [TOKENIZER_PROTOCOLS, PRIOR_PROTOCOLS, SET_PROTOCOLS]
ALL = [(name, protocol) for table in TABLES for name, protocol in table.items()]


@pytest.mark.parametrize(("name", "protocol"), ALL, ids=[f"{type(p).__name__}-{n}" for n, p in ALL])
def test_a_protocol_is_its_plain_values(name: str, protocol: Any) -> None:
    assert parse(type(protocol), as_mapping(protocol), where=name) == protocol
    assert protocol.about.endswith(".")
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.about = "another"
    features = protocol.features
    assert (features is not None and features.network == "squeezenet") <= (
        "squeezenet" in name or name == "tokenizer"
    ), "a protocol in SqueezeNet's features says so in its name; the tokenizer's says it in the name of the score"
    assert (features is not None and features.network == "efficientnet") <= ("efficientnet" in name)


def test_the_scores_and_networks_are_those_there_are() -> None:
    assert ALL_SCORES == SCORES
    for network in NETWORKS:
        assert parse(FeatureProtocol, {"network": network}, where="test").network == network


def test_the_named_ones_are_what_their_names_say() -> None:
    validation = TOKENIZER_PROTOCOLS["imagenet-val-50k-center256"]
    assert (validation.images.count, validation.images.size) == (50_000, (256, 256))
    assert validation.features is not None
    assert validation.features.network == "inception"
    adm = SET_PROTOCOLS["adm-train-stats"]
    assert (adm.samples.count, adm.reference.count) == (50_000, None)
    assert next(iter(SET_PROTOCOLS.values())).features.network == "inception", "the default is FID itself"


def test_changes_are_merged_over() -> None:
    changed = select_protocol(
        TOKENIZER_PROTOCOLS,
        "tokenizer",
        overrides=["images.size=[32,48]", "lpips=[]", "rounding=down", "features=null"],
    )
    assert (changed.images.size, changed.lpips, changed.rounding, changed.features) == ((32, 48), (), "down", None)
    assert TOKENIZER_PROTOCOLS["tokenizer"].rounding == "nearest"
    generated = select_protocol(PRIOR_PROTOCOLS, "prior", overrides=["features.network=squeezenet", "sampler.top_k=5"])
    assert generated.features == FeatureProtocol(network="squeezenet")
    assert generated.sampler.top_k == 5


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        ("tokenzer", [], r"no protocol 'tokenzer'; did you mean 'tokenizer'\?"),
        ("tokenizer", ["images.sise=[8,8]"], r"unknown key 'images.sise'; did you mean 'size'"),
        ("tokenizer", ["images.size=[0,8]"], r"images\.size"),
        ("tokenizer", ["images.held_out=1"], r"images\.held_out = 1"),
        ("tokenizer", ["rounding=up"], r"rounding = 'up'"),
        ("tokenizer", ["rounding"], r"'rounding' is not of the form a\.b=value"),
        ("tokenizer", ["rounding.way=up"], r"'rounding' is a single value, not a section"),
        ("tokenizer", ["lpips=[squeezenet"], r"the value is not YAML"),
        ("tokenizer", ["features.scores=[fid]"], r"features\.scores"),
        ("tokenizer", ["features.subset_size=1"], r"features\.subset_size = 1"),
    ],
)
def test_mistakes_are_named(name: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(SmaltiError) as refused:
        select_protocol(TOKENIZER_PROTOCOLS, name, overrides=overrides)
    assert re.search(sentence, str(refused.value)), refused.value
