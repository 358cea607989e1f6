"""A language model: from the hub, a folder, an installed package's folder or GGUF file, or random weights."""

import importlib.util
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from shadow.artifacts.files import alone, making
from shadow.checkpoint.quantizer import METHOD
from shadow.errors import UserError, first_line
from shadow.models.config_file import read_config
from shadow.models.gguf_files import dequantise
from shadow.models.layouts import require_layout
from shadow.models.numbers import require_dtype, require_finite
from shadow.models.packages import assemble, require_package
from shadow.models.tokenizers import byte_tokenizer, load_tokenizer

log = logging.getLogger(__name__)


class LM(NamedTuple):
    """bos: the model reads nothing well that does not begin with BOS: it stays where a prompt loses its
    beginning, and is never scored. The tokenizer begins texts with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bos: bool = False


DeviceMap = str | dict[str, int | str] | None  # accelerate's: `auto`, or a device of each module
Source = Callable[..., LM]  # (dtype=, device_map=, and if it is asked for trust_remote_code=) -> LM


def load(
    source: Source, path: str | None, dtype: str, device_map: DeviceMap, trust_remote_code: bool = False
) -> LM:
    """The model in evaluation mode, every weight frozen; a local folder `path` replaces `source`.

    trust_remote_code: run Python code that lies beside the weights, of a folder or a hub's model alone.
    """
    chosen = require_dtype("model.dtype", dtype)
    if not isinstance(trust_remote_code, bool):  # the word "false" would count as true
        raise UserError(f"model.trust_remote_code must be true or false, got {trust_remote_code!r}")
    transformers_logging.disable_progress_bar()
    if path:
        lm = from_folder(path, chosen, device_map, trust_remote_code)
    else:
        trust = {"trust_remote_code": True} if trust_remote_code else {}
        lm = source(dtype=chosen, device_map=device_map, **trust)
    lm.model.eval().requires_grad_(False)
    require_finite(lm.model)
    return lm


def require_folder(path: str) -> Path:
    folder = Path(str(path)).expanduser()  # a number is no folder either
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path must be a Hugging Face model folder with a config.json, got {path!r}")
    return folder


def describe_folder(path: str) -> dict[str, int]:
    """Name and time of change of every file in a model folder: tells one state of it from another."""
    return {
        file.name: file.stat().st_mtime_ns
        for file in sorted(require_folder(path).iterdir())
        if file.is_file()
    }


def from_folder(path: str, dtype: torch.dtype, device_map: DeviceMap, trust_remote_code: bool = False) -> LM:
    folder = str(require_folder(path))
    return _pretrained(folder, None, dtype, device_map, True, trust_remote_code)


def from_hub(
    hub_id: str,
    revision: str | None,
    dtype: torch.dtype,
    device_map: DeviceMap,
    trust_remote_code: bool = False,
) -> LM:
    try:
        online = _reachable(hub_id, revision)
        return _pretrained(hub_id, revision, dtype, device_map, not online, trust_remote_code)
    except OSError as error:
        reason = first_line(error)
        raise UserError(
            f"could not load model {hub_id!r} from the Hugging Face hub ({reason}): "
            "check the network, or give a local copy with model.path=/some/folder"
        ) from error


def _reachable(hub_id: str, revision: str | None) -> bool:
    """Whether the hub answers, asked once: transformers would ask six times a file, half a minute in all."""
    url = hf_hub_url(hub_id, "config.json", revision=revision)
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True  # a refusal is an answer: transformers will say which
    except OSError as error:
        kept = try_to_load_from_cache(hub_id, "config.json", revision=revision)
        if not isinstance(kept, str):  # None, or a mark that there is none
            raise ConnectionError(f"the hub cannot be reached: {error}") from error
        log.warning(
            "the hub cannot be reached (%s): %s at revision %s is the one in the cache, %s",
            error,
            hub_id,
            revision or "main",
            Path(kept).parent.name,
        )
        return False
    return True


def _pretrained(
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    device_map: DeviceMap,
    local_files_only: bool,
    trust_remote_code: bool = False,
) -> LM:
    # said even if false: left open, transformers would ask on the terminal
    where = {
        "revision": revision,
        "local_files_only": local_files_only,
        "trust_remote_code": trust_remote_code,
    }
    config = read_config(name, **where)
    require_layout(config.model_type)  # before gigabytes are read
    require_dense(name, config)
    tokenizer = load_tokenizer(name, **where)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device_map, **where)
    return LM(model, tokenizer)


def require_dense(name: str, config: PretrainedConfig) -> None:
    found = getattr(config, "quantization_config", None)
    if isinstance(found, dict) and found.get("quant_method") == METHOD:
        raise UserError(
            f"model {name!r} is a checkpoint of `shadow export`, sparse when it is loaded, and would be made "
            "sparse twice: give the dense model's folder"
        )


def from_package(
    package: str,
    gguf_file: str,
    install: str,
    cache: str,
    dtype: torch.dtype,
    device_map: DeviceMap,
    parts: Sequence[str] = (),
    sha256: str = "",
    bos: bool = False,
) -> LM:
    """The GGUF file in an installed Python package; dequantised weights are kept in `cache`.

    parts: `package/file` of each piece, where the file comes in several; sha256: of the whole.
    bos: as `LM` has it; without it a text begins as the file says.
    """
    folder = Path(cache)
    if not (folder / "config.json").is_file():
        source = require_package(package, install)
        pieces = [
            require_package(name, install) / file for name, _, file in (p.partition("/") for p in parts)
        ]
        with alone(folder):
            if not (folder / "config.json").is_file():  # else another process was faster
                log.info("dequantising %s once (about 30 s) -> %s", gguf_file, folder)
                with making(folder) as unfinished:
                    if pieces:
                        assemble(pieces, unfinished / gguf_file, sha256, install)
                        source = unfinished
                    dequantise(source, gguf_file, unfinished)
                    (unfinished / gguf_file).unlink(missing_ok=True)
    lm = _pretrained(str(folder), None, dtype, device_map, local_files_only=True)
    return beginning_with_bos(lm) if bos else lm


def beginning_with_bos(lm: LM) -> LM:
    """With a tokenizer that begins each text so: whoever cuts windows asks it, and so does lm-eval."""
    lm.tokenizer.add_bos_token = True
    begins = lm.tokenizer("")["input_ids"]
    assert begins == [lm.tokenizer.bos_token_id], f"a text begins with {begins}"
    return lm._replace(bos=True)


def from_installed(module: str, dtype: torch.dtype, device_map: DeviceMap) -> LM:
    """A model folder inside an installed package of ours."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the model comes with this project as {module!r}, which is not installed: pip install -e ."
        )
    folder = spec.submodule_search_locations[0]
    return _pretrained(folder, None, dtype, device_map, local_files_only=True)


def random_opt(
    layers: int,
    hidden: int,
    heads: int,
    neurons: int,
    positions: int,
    seed: int,
    dtype: torch.dtype,
    device_map: DeviceMap,
) -> LM:
    """An OPT of random weights and a byte tokenizer, for tests and for trying a configuration in seconds."""
    tokenizer = byte_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=neurons,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LM(random_weights(config, seed, dtype), tokenizer)


def random_llama(
    layers: int,
    hidden: int,
    heads: int,
    key_value_heads: int,
    neurons: int,
    positions: int,
    seed: int,
    dtype: torch.dtype,
    device_map: DeviceMap,
) -> LM:
    """A Llama with grouped-query attention, otherwise as `random_opt`."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=neurons,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LM(random_weights(config, seed, dtype), tokenizer)


def random_weights(config: PretrainedConfig, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    config.initializer_range = 0.2  # the usual 0.02 makes so small a model nearly linear, every unit alike
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
