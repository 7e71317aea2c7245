"""A text as prefix codes: a caption, split into pieces by byte pair encoding (BPE).

The codes of the text precede those of the image, as in DALL-E (Ramesh et al., arXiv 2102.12092, section 2.2). The
pieces are of bytes, as in GPT-2, so every text has codes: unknown words become smaller pieces, in the end bytes.

Notation: B batch, P prefix codes, V pieces of the vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
import torch
from pydantic import Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from smalti.conditions.base import Grid, UnsizedCondition, WindowPrefix, constant_prefix
from smalti.conditions.previews import render_text
from smalti.core.errors import SmaltiError
from smalti.core.files import read_text, write_text
from smalti.core.settings import Positive, as_mapping, settings
from smalti.hub import hugging_face
from smalti.images.io import Array

logger = logging.getLogger("smalti")

FILE = hugging_face.VOCABULARY
"""The vocabulary in a prior's folder, in the format of the library `tokenizers`."""
_BYTES = 256  # the smallest V: a piece for each byte
_SIDE = 128  # pixels of a preview
_COLUMNS, _LINES = 21, 9  # characters in a line of a preview, and lines


@settings
class TextOptions:
    """How the captions of a data set become codes.

    `length`: P, codes per text; of longer texts the first ones are kept. `vocabulary`: the largest V. `vocabulary_of`:
    a model of texts whose vocabulary is used, and none is learned. `swap_sides`: whether the words left and right are
    exchanged where the image is mirrored.
    """

    length: Positive = 64
    vocabulary: Annotated[int, Field(ge=_BYTES, le=2**15)] = 4096
    vocabulary_of: str = ""
    swap_sides: bool = True


@settings
class TextSettings:
    """`length`: P, codes per text. `vocabulary`: V. `fingerprint`: the digest of the vocabulary's file."""

    name: Literal["text"] = "text"
    length: Positive
    vocabulary: Positive
    fingerprint: str


def train_vocabulary(captions: Iterable[str], *, max_size: int) -> str:
    """Captions -> the BPE vocabulary of at most `max_size` pieces that is learned from them, as the text of a JSON
    file.

    Texts are normalized before they are split: Unicode's form NFKC, lower case, single spaces. The same captions give
    the same vocabulary, whatever their order.
    """
    _forbid_threads()
    tokenizer = Tokenizer(models.BPE())
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), spaces, normalizers.Strip()]
    )
    # A space before the first word makes it the same piece as anywhere else.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(map(_valid, captions), trainer)
    return tokenizer.to_str(pretty=True) + "\n"


def text_condition(vocabulary: str, *, length: int) -> Text:
    """The result of `train_vocabulary`, and P -> the condition."""
    size = Tokenizer.from_str(vocabulary).get_vocab_size()
    return Text(TextSettings(length=length, vocabulary=size, fingerprint=_digest(vocabulary)), vocabulary)


def read_vocabulary(folder: Path) -> str:
    """The vocabulary that `Text.save` wrote below `folder`. Raises `SmaltiError` for a missing or damaged file."""
    path = folder / FILE
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SmaltiError(
            f"cannot read the vocabulary of the text in {path} ({error}); copy the whole folder again"
        ) from error


@final
class Text(UnsizedCondition):
    """Texts -> (B,P): the pieces of each, in [0,V), and after the last of them the code V.

    A text of more than P pieces is cut, with a warning. A blank text is not a text: generation is unconditional.
    """

    key = "text"
    blank_is_none = True

    def __init__(self, settings: TextSettings, vocabulary: str) -> None:
        """`vocabulary`: the content of its file. Raises `SmaltiError` if it does not belong to the settings."""
        _forbid_threads()
        if _digest(vocabulary) != settings.fingerprint:
            raise SmaltiError(
                f"the vocabulary of the text, {FILE}, is {_digest(vocabulary)} and the prior was trained with "
                f"{settings.fingerprint}; copy the whole folder again"
            )
        self.settings, self.vocabulary, self._cut_texts = settings, vocabulary, set[int]()
        self._tokenizer = Tokenizer.from_str(vocabulary)
        self.size, self.length = settings.vocabulary + 1, settings.length

    def read(self, text: str) -> str:
        return text

    def pieces(self, text: str) -> list[int]:
        """A text -> the codes of all its pieces, as many as it has."""
        return list(self._tokenizer.encode(_valid(text)).ids)

    def padded(self, pieces: Sequence[int]) -> Tensor:
        """The codes of a text's pieces -> (P,): the first P of them, and V where there are fewer."""
        kept = list(pieces[: self.length])
        return torch.tensor([*kept, *[self.settings.vocabulary] * (self.length - len(kept))], dtype=torch.int64)

    def encode(self, values: Sequence[Any]) -> Tensor:
        rows = []
        for value in values:
            if not isinstance(value, str):
                raise SmaltiError(f"a text is a string, not {value!r:.60}; give it in quotes, or leave it out")
            pieces = self.pieces(value)
            if len(pieces) > self.length:
                self._warn_of_cut(pieces)
            rows.append(self.padded(pieces))
        return torch.stack(rows) if rows else torch.empty(0, self.length, dtype=torch.int64)

    def _warn_of_cut(self, pieces: Sequence[int]) -> None:
        """Say once for each text that it is cut."""
        text = hash(tuple(pieces))
        if text not in self._cut_texts:
            self._cut_texts.add(text)
            logger.warning(
                "the text has %s codes, and this model reads %s of them: all after '... %s' is ignored",
                f"{len(pieces):,}",
                self.length,
                self.decode(pieces[: self.length])[-40:],
            )

    def encode_windows(self, values: Sequence[Any], *, grid: Grid) -> WindowPrefix:
        return constant_prefix(self.encode(values))

    def decode(self, codes: Iterable[int]) -> str:
        """Codes -> the normalized text, without what is not a piece. A character that was cut through becomes
        U+FFFD."""
        return str(self._tokenizer.decode([code for code in codes if code < self.settings.vocabulary])).strip()

    def preview(self, codes: Tensor) -> Array:
        """As many lines of the text as there is room for, on an image of the same size for every text."""
        lines = textwrap.wrap(self.decode(codes.tolist()), _COLUMNS, max_lines=_LINES, placeholder=" ...")
        words = render_text("\n".join(lines) or "no text")[:_SIDE, :_SIDE]
        image = np.full((_SIDE, _SIDE, 3), 255, dtype=np.uint8)
        image[: words.shape[0], : words.shape[1]] = words
        return image

    def save(self, folder: Path) -> dict[str, Any]:
        write_text(folder / FILE, self.vocabulary)
        return as_mapping(self.settings)


def _digest(vocabulary: str) -> str:
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def _valid(text: str) -> str:
    """A text -> the same without halves of characters, which a shell's arguments may have: they become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _forbid_threads() -> None:
    """Without this the library warns when a process that used its threads is forked, as data loaders do."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
