import hashlib
import json
import math

import pytest

from quench.lab import models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    models.ensure_model(root)
    return root / models.NAME / models.REVISION


@pytest.fixture(scope="module")
def header(folder):
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), length, len(data)


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_model_is_the_same_bytes_each_time(folder, tmp_path):
    sha256 = models.ensure_model(tmp_path)
    again = tmp_path / models.NAME / models.REVISION
    assert (again / "SHA256SUMS").read_text() == (folder / "SHA256SUMS").read_text()
    assert sha256 == hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()


def test_a_model_that_is_there_is_not_written_again(folder):
    before = (folder / "SHA256SUMS").stat().st_mtime_ns
    models.ensure_model(folder.parent.parent)
    assert (folder / "SHA256SUMS").stat().st_mtime_ns == before


def test_every_file_has_its_checksum(folder):
    rows = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(rows) == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    for name, sha256 in rows.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256


def test_the_tensors_lie_one_after_the_other_and_fill_the_file(header):
    tensors, length, size = header
    end = 0
    for tensor in tensors.values():
        start, stop = tensor["data_offsets"]
        assert start == end
        assert stop - start == 4 * math.prod(tensor["shape"])
        end = stop
    assert 8 + length + end == size


def test_the_tensors_start_at_a_multiple_of_eight_as_safetensors_asks(header):
    assert header[1] % 8 == 0


def test_every_layer_of_the_configuration_has_its_weights(folder, header):
    config = read(folder, "config.json")
    layers = {name.split(".")[2] for name in header[0] if name.startswith("model.layers.")}
    assert layers == {str(number) for number in range(config["num_hidden_layers"])}
    assert header[0]["lm_head.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    assert config["hidden_size"] % config["num_attention_heads"] == 0


def test_the_vocabulary_has_as_many_words_as_the_model_has_rows_each_with_its_own_number(folder, header):
    vocabulary = read(folder, "tokenizer.json")["model"]["vocab"]
    rows = header[0]["model.embed_tokens.weight"]["shape"][0]
    assert sorted(vocabulary.values()) == list(range(rows))
    assert len(vocabulary) == rows


def test_every_merge_makes_a_word_of_words_that_are_there(folder):
    model = read(folder, "tokenizer.json")["model"]
    for left, right in model["merges"]:
        assert {left, right, left + right} <= set(model["vocab"])


def test_every_byte_has_a_character_of_its_own_so_that_any_text_can_be_read(folder):
    vocabulary = read(folder, "tokenizer.json")["model"]["vocab"]
    # GPT-2 writes the space as Ġ and the newline as Ċ.
    assert {"Ġ", "Ċ", "a", "~", "ÿ"} <= set(vocabulary)
    assert len([word for word in vocabulary if len(word) == 1]) == 256


def test_the_special_words_of_the_chat_template_are_words(folder):
    tokenizer = read(folder, "tokenizer.json")
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert special.items() <= tokenizer["model"]["vocab"].items()
    assert {f"<|{role}|>" for role in ("user", "assistant", "system")} <= set(special)
    assert read(folder, "config.json")["eos_token_id"] == special["</s>"]
