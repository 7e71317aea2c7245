"""Published weights of pretrained networks: a name -> a local or downloaded file -> tensors.

A file is looked for in the folder that the environment variable `SMALTI_WEIGHTS` names, then in the cache folder
(`SMALTI_CACHE`, else `$XDG_CACHE_HOME/smalti`, else `~/.cache/smalti`), and is otherwise downloaded to the cache under
a temporary name, and renamed after its SHA-256 is checked. `SMALTI_OFFLINE=1` and `HF_HUB_OFFLINE=1` forbid downloads.
The hash of a file that is already there is not checked, since other conversions of the same weights are valid too; a
network that loads it checks keys and shapes.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import refusals_explained, write_atomically
from smalti.core.progress_callback import Progress, no_progress

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 30.0  # seconds without an answer


class PublishedFile(NamedTuple):
    """One published file.

    - `files`: the names under which it is accepted, `.pth` or `.safetensors`; a download gets the first.
    - `url`: where it is published, https.
    - `sha256`: of the file at `url`, in hexadecimal. Only the given leading digits are compared: torchvision publishes
      the first eight, in the file's name.
    - `about`: what it is. `license`: what its publisher states.
    """

    files: tuple[str, ...]
    url: str
    sha256: str
    about: str
    license: str


_TORCHVISION = "https://download.pytorch.org/models"
_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"

WEIGHTS: dict[str, PublishedFile] = {
    "squeezenet1_1": PublishedFile(
        files=("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1_torchvision_fp16.safetensors"),
        url=f"{_TORCHVISION}/squeezenet1_1-b8a52dc0.pth",
        sha256="b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        about="torchvision's SqueezeNet 1.1, trained on ImageNet (5 MB)",
        license="BSD-3-Clause (torchvision)",
    ),
    "vgg16": PublishedFile(
        files=("vgg16-397923af.pth",),
        url=f"{_TORCHVISION}/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        about="torchvision's VGG16, trained on ImageNet (553 MB)",
        license="BSD-3-Clause (torchvision)",
    ),
    "alexnet": PublishedFile(
        files=("alexnet-owt-7be5be79.pth",),
        url=f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",
        sha256="7be5be79",
        about="torchvision's AlexNet, trained on ImageNet (244 MB)",
        license="BSD-3-Clause (torchvision)",
    ),
    "resnet50": PublishedFile(
        files=("resnet50-0676ba61.pth",),
        url=f"{_TORCHVISION}/resnet50-0676ba61.pth",
        sha256="0676ba61",
        about="torchvision's ResNet-50, IMAGENET1K_V1: trained on ImageNet as in the paper (98 MB)",
        license="BSD-3-Clause (torchvision)",
    ),
    "resnet50-v2": PublishedFile(
        files=("resnet50-11ad3fa6.pth",),
        url=f"{_TORCHVISION}/resnet50-11ad3fa6.pth",
        sha256="11ad3fa6",
        about="torchvision's ResNet-50, IMAGENET1K_V2: trained on ImageNet by a later recipe (98 MB)",
        license="BSD-3-Clause (torchvision)",
    ),
    "lpips-squeeze": PublishedFile(
        files=("lpips_v0.1_squeeze.pth", "lpips_v0.1_squeeze_lin.safetensors"),
        url=f"{_LPIPS}/lpips/weights/v0.1/squeeze.pth",
        sha256="4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
        about="the linear weights of LPIPS 0.1 for SqueezeNet 1.1 (11 KB)",
        license="BSD-2-Clause (richzhang/PerceptualSimilarity)",
    ),
    "lpips-vgg": PublishedFile(
        files=("lpips_v0.1_vgg.pth", "lpips_v0.1_vgg_lin.safetensors"),
        url=f"{_LPIPS}/lpips/weights/v0.1/vgg.pth",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        about="the linear weights of LPIPS 0.1 for VGG16 (7 KB)",
        license="BSD-2-Clause (richzhang/PerceptualSimilarity)",
    ),
    "lpips-alex": PublishedFile(
        files=("lpips_v0.1_alex.pth", "lpips_v0.1_alex_lin.safetensors"),
        url=f"{_LPIPS}/lpips/weights/v0.1/alex.pth",
        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        about="the linear weights of LPIPS 0.1 for AlexNet (6 KB)",
        license="BSD-2-Clause (richzhang/PerceptualSimilarity)",
    ),
    "inception-fid": PublishedFile(
        files=("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
        url=f"{_FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        about="TensorFlow's InceptionV3 of 2015-12-05, with which FID is computed (96 MB)",
        license="Apache-2.0 (TensorFlow; converted by mseitzer/pytorch-fid and toshas/torch-fidelity)",
    ),
}


def cache_folder() -> Path:
    """Where downloads are kept: `$SMALTI_CACHE`, else `$XDG_CACHE_HOME/smalti`, else `~/.cache/smalti`."""
    if chosen := os.environ.get("SMALTI_CACHE"):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "smalti"


def find_weights(name: str, *, progress: Progress = no_progress) -> Path:
    """A name in `WEIGHTS` -> the path of its file, downloaded if it is in neither folder.

    Raises `SmaltiError` for an unknown name, a `SMALTI_WEIGHTS` that is not a folder, and when a download is needed but
    forbidden, refused, cut short or not the published file. The message says where to get the file and where to put it.
    """
    if name not in WEIGHTS:
        raise SmaltiError(f"unknown weights {name!r}; {suggestion(name, WEIGHTS)}")
    entry = WEIGHTS[name]
    found = found_weights(name)
    if found is not None:
        return found
    for variable in ("SMALTI_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on"):
            raise _missing(entry, f"{variable} forbids the download")
    _download(entry, cache_folder() / entry.files[0], progress)
    return cache_folder() / entry.files[0]


def found_weights(name: str) -> Path | None:
    """A name in `WEIGHTS` -> its file in one of the folders, None where it would have to be downloaded.

    Raises `SmaltiError` for a `SMALTI_WEIGHTS` that is not a folder.
    """
    paths = (folder / file for folder in _folders() for file in WEIGHTS[name].files)
    return next((path for path in paths if path.is_file()), None)


def load_weights(name: str, *, progress: Progress = no_progress) -> dict[str, Tensor]:
    """A name in `WEIGHTS` -> its tensors by the publisher's key, float32 (integers as they are), on the CPU.

    Raises `SmaltiError` as `find_weights` does, and for a damaged file. Nothing in a file is executed.
    """
    path = find_weights(name, progress=progress)
    try:
        pickled = path.suffix != ".safetensors"
        tensors = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
        return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    except Exception as error:  # a damaged pickle can raise anything; nothing but reading happens above
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise SmaltiError(
            f"cannot read {path}: it is damaged or no file of tensors ({reason}); "
            f"remove it, and get it again from {WEIGHTS[name].url}"
        ) from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Copy the tensors of the weights called `name` into `module`; keys and shapes must be exactly the module's.

    Raises `SmaltiError` with the first differences.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    problems = [f"{key} is missing" for key in wanted if key not in given]
    problems += [f"{key} is not known" for key in given if key not in wanted]
    problems += [
        f"{key} is {given[key]}, not {wanted[key]}" for key in wanted if given.get(key, wanted[key]) != wanted[key]
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SmaltiError(
            f"{find_weights(name)} does not hold {WEIGHTS[name].about}: {'; '.join(problems[:3])}{more}; "
            f"remove it, and get it again from {WEIGHTS[name].url}"
        )
    module.load_state_dict(dict(tensors))


def _folders() -> list[Path]:
    """The folders to look in, in order."""
    chosen = os.environ.get("SMALTI_WEIGHTS")
    if not chosen:
        return [cache_folder()]
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise SmaltiError(f"SMALTI_WEIGHTS is {chosen!r}, which is not a folder; name one that exists, or unset it")
    return [folder, cache_folder()]


def _missing(entry: PublishedFile, reason: str) -> SmaltiError:
    places = " or ".join(str(folder) for folder in _folders())
    hint = "" if os.environ.get("SMALTI_WEIGHTS") else " (or into any folder, and set SMALTI_WEIGHTS to it)"
    return SmaltiError(
        f"{entry.files[0]} is needed ({entry.about}) and was not found: {reason}. "
        f"Get it from {entry.url} and put it, as {' or '.join(entry.files)}, into {places}{hint}"
    )


def _download(entry: PublishedFile, path: Path, progress: Progress) -> None:
    """Download the file of `entry` to `path`, which exists afterward only if the hash is right."""
    logger.info("downloading %s from %s to %s", entry.about, entry.url, path)
    try:
        response = urllib.request.urlopen(entry.url, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        raise _missing(entry, f"the download failed ({_message_of(error)})") from error

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            digest = _copy(response, file, entry, progress)
        if not digest.startswith(entry.sha256):
            raise _missing(
                entry, f"the downloaded file is not the published file (SHA-256 {digest}, expected {entry.sha256})"
            )

    with response, refusals_explained(path):
        write_atomically(path, write)


def _copy(response: http.client.HTTPResponse, file: IO[bytes], entry: PublishedFile, progress: Progress) -> str:
    """Copy the response to the file -> the SHA-256 of the copied bytes."""
    total = int(response.headers.get("Content-Length") or 0)
    done = 0
    digest = hashlib.sha256()
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _missing(entry, f"the download was interrupted after {done} bytes ({_message_of(error)})") from error
        if not chunk:
            break
        digest.update(chunk)
        file.write(chunk)
        done += len(chunk)
        progress(done, total)
    if done < total:
        raise _missing(entry, f"the download was interrupted after {done} of {total} bytes")
    return digest.hexdigest()


def _message_of(error: Exception) -> str:
    return str(error) or type(error).__name__
