"""A small Llama with random weights, for the lab. It answers nonsense, but with the real engine's code."""

from __future__ import annotations

import array
import hashlib
import json
import random
import shutil
from itertools import product
from pathlib import Path

from quench.lab.progress import step

NAME, REVISION = "tiny-llama", "1"

_HIDDEN, _LAYERS, _HEADS, _INNER, _VOCABULARY, _CONTEXT = 128, 2, 4, 256, 512, 2048
_SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def ensure_model(folder: Path) -> str:
    """Write the model into `folder/NAME/REVISION` unless it is there. Returns the SHA-256 of its SHA256SUMS.

    The same bytes each time: the weights come from a fixed seed.
    """
    target = folder / NAME / REVISION
    sums = target / "SHA256SUMS"
    if not sums.exists():
        with step("making a small model"):
            part = target.with_name(f"{REVISION}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            _write(part)
            part.replace(target)
    return hashlib.sha256(sums.read_bytes()).hexdigest()


def _write(folder: Path) -> None:
    tokens = _tokens()
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": _HIDDEN,
            "intermediate_size": _INNER,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "max_position_embeddings": _CONTEXT,
            "vocab_size": _VOCABULARY,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "bos_token_id": tokens["<s>"],
            "eos_token_id": tokens["</s>"],
        },
        "generation_config.json": {"bos_token_id": tokens["<s>"], "eos_token_id": tokens["</s>"]},
        "tokenizer.json": _tokenizer(tokens),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": _CONTEXT,
            "chat_template": _CHAT_TEMPLATE,
        },
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data) + "\n")
    (folder / "model.safetensors").write_bytes(_weights())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(sums))


def _byte_characters() -> list[str]:
    # GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for code points from 256.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _merges() -> list[tuple[str, str]]:
    letters = "etaoinshrdlcumwf"
    pairs = [*product("Ġ", letters), *product(letters, letters)]
    return pairs[: _VOCABULARY - 256 - len(_SPECIAL)]


def _tokens() -> dict[str, int]:
    words = [*_SPECIAL, *_byte_characters(), *("".join(pair) for pair in _merges())]
    return {word: number for number, word in enumerate(words)}


def _tokenizer(tokens: dict[str, int]) -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": tokens[word],
                "content": word,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for word in _SPECIAL
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": tokens, "merges": [list(pair) for pair in _merges()]},
    }


def _weights() -> bytes:
    """The safetensors format: length of the header, a JSON header, then the tensors one after the other."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
        "lm_head.weight": (_VOCABULARY, _HIDDEN),
    }
    for layer in range(_LAYERS):
        start = f"model.layers.{layer}"
        shapes |= {f"{start}.self_attn.{name}_proj.weight": (_HIDDEN, _HIDDEN) for name in "qkvo"}
        shapes |= {f"{start}.mlp.{name}_proj.weight": (_INNER, _HIDDEN) for name in ("gate", "up")}
        shapes[f"{start}.mlp.down_proj.weight"] = (_HIDDEN, _INNER)
        shapes |= {f"{start}.{name}_layernorm.weight": (_HIDDEN,) for name in ("input", "post_attention")}
    generator = random.Random(20261121)  # noqa: S311 - weights, not secrets
    header: dict[str, object] = {}
    body = bytearray()
    for name, shape in shapes.items():
        size = shape[0] * (shape[1] if len(shape) == 2 else 1)
        values = [1.0] * size if len(shape) == 1 else [generator.gauss(0, 0.08) for _ in range(size)]
        data = array.array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(body)
