"""Sends a finished model to the Hugging Face Hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token

from lit_unlearn.errors import UserError

_STALE = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json"]
"""Of a model that was there before, what would be read in place of this one or on top of it."""
_LONGEST = 300
"""Characters of what the Hub or the network has to say."""
LOGIN = "run `hf auth login`, or set HF_TOKEN in the environment"


def check_hub(repository: str) -> None:
    """Raises UserError where it is known without the network that nothing can be sent."""
    key = f"export.push_to_hub={repository}"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{key}, but HF_HUB_OFFLINE is set: unset it, or set export.push_to_hub=null")
    if get_token() is None:
        raise UserError(f"{key}, but there is no token of the Hub on this machine: {LOGIN}")


def push(directory: Path, repository: str, private: bool) -> str:
    """Put the files of a model into a repository, which is made where there is none; its address comes back.

    The token is the one of the environment or of ``hf auth login``; it is never an argument.

    Raises:
        UserError: it did not work; ``directory`` is as it was, and how to try again is said.
    """
    api, done = HfApi(), "made or found"
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        done = "checked"
        if private and not api.model_info(repository).private:
            raise ValueError("it is there already and public: set export.private=false, or choose another ID")
        done = "filled"
        told = "Model and card by lit_unlearn"
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message=told, delete_patterns=_STALE)
    except Exception as error:  # of the network, of the Hub, of the files; the run itself is finished
        line = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        again = f"hf upload {repository} {shlex.quote(str(directory))} . {'--private' if private else '--no-private'}"
        raise UserError(
            f"the run is finished and {directory} is whole, but {repository} on the Hub could not be {done}: {line}; "
            f"send it again by: {again}"
        ) from error
    return str(address)
