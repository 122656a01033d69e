"""Which tokenizers rewards can read, and the bytes of their tokens."""

import pytest

from vpjax.scoring.host_text import normalize
from vpjax.scoring.texts import byte_table
from vpjax.types import UserError

pytestmark = pytest.mark.slow  # transformers is imported


def tokenizer_of(texts, folder, size):
    from vpjax.data.text import Text
    from vpjax.data.tokenizer import train_tokenizer

    train_tokenizer(texts, folder, size)
    return Text.load(folder).tokenizer


def test_the_table_holds_the_text_of_each_token(tmp_path):
    tokenizer = tokenizer_of(["a  b\n\n\ncaf\u00e9 ------- 12"] * 5, tmp_path, 300)
    table = byte_table(tokenizer)
    assert table.lengths.shape == (len(tokenizer),)
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token], skip_special_tokens=True)
        row = bytes(table.bytes[token, : table.lengths[token]])
        if "\ufffd" not in text:  # a whole character
            assert normalize(row.decode()) == normalize(text if "---" not in text else "--")


def test_added_words_are_read_and_special_ones_are_not(tmp_path):
    tokenizer = tokenizer_of(["a b"], tmp_path, 264)
    tokenizer.add_tokens(["<think>"])
    table, (added,) = byte_table(tokenizer), tokenizer.convert_tokens_to_ids(["<think>"])
    assert bytes(table.bytes[added, : table.lengths[added]]) == b"<think>"
    assert not table.lengths[tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|video_pad|>"])].any()


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    metaspace = Tokenizer(models.WordLevel({"\u2581a": 0, "?": 1}, unk_token="?"))
    metaspace.decoder = decoders.Metaspace()
    with pytest.raises(UserError, match="byte-level BPE"):
        byte_table(PreTrainedTokenizerFast(tokenizer_object=metaspace))
