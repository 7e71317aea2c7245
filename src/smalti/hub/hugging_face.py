"""The Hugging Face Hub: a name there -> a folder here, and a folder here -> a repository there.

Tokens, the cache and `HF_HUB_OFFLINE` are huggingface_hub's business: a repository that is in the cache is read without
a network.
"""

from __future__ import annotations

import re
from pathlib import Path

from smalti.core.errors import SmaltiError
from smalti.core.version import __version__

PARTS = ("config.json", "model.safetensors")
"""The files of a model, at any depth of a repository."""
VOCABULARY = "tokenizer.json"
"""That of a prior which is conditioned on texts, beside its parts or below; it is downloaded too."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_name(text: str) -> bool:
    """Whether `text` has the form of a repository's name, owner/name."""
    return _NAME.fullmatch(text) is not None


def download(name: str) -> Path:
    """A repository's name -> the folder on this machine with its models, downloaded where the cache does not have it.

    Raises `SmaltiError` if it cannot be downloaded, with the Hub's reason.
    """
    from huggingface_hub import snapshot_download  # slow to import, and only needed here

    try:
        files = (*PARTS, VOCABULARY)
        return Path(snapshot_download(name, allow_patterns=[*files, *(f"**/{file}" for file in files)]))
    except Exception as error:  # the hub's client raises many kinds: offline, unknown, forbidden
        raise SmaltiError(
            f"there is no folder {name}, and the Hub did not give a model of that name ({_first_line(error)})"
        ) from error


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Send all files of `folder` to the repository `name`, created if necessary -> its address.

    What an earlier model left there is removed in the same commit: a half-new model is never to be seen. `private`
    holds for a new repository. Raises `SmaltiError` for a value that is not a name, and when the Hub refuses,
    with its reason.
    """
    if not is_name(name):
        raise SmaltiError(
            f"{name!r} is not a name of a repository; write owner/name, of letters, digits, '-', '_' and '.'"
        )
    from huggingface_hub import HfApi  # slow to import, and only needed here

    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=f"smalti {__version__}",
            delete_patterns=[*PARTS, "tokenizer/*", "prior/*"],
        )
    except Exception as error:  # as above: offline, no token, no right to write, a license that the Hub does not know
        raise SmaltiError(
            f"the Hub did not take {name} ({_first_line(error)}); log in with `hf auth login` or set HF_TOKEN, "
            "and try again"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
