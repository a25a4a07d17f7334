"""Text files become a vocabulary, tokens, and the inputs of each step."""

import codecs

import pytest
import torch

from rnn_ext.charlm import CharLMError, corpus, escape_controls
from rnn_ext.charlm.corpus import prepare
from rnn_ext.charlm.streams import Streams, windows


@pytest.fixture
def tokenize(tmp_path):
    """Writes these texts to files; returns vocabulary and tokens."""

    def make(*texts, min_count=1, encoding="utf-8"):
        paths = []
        for i, text in enumerate(texts):
            path = tmp_path / f"{i}.txt"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            paths.append(str(path))
        vocabulary, facts = prepare(paths, tmp_path / "tokens.bin", min_count, encoding)
        return vocabulary, facts.map(tmp_path / "tokens.bin")

    return make


def test_tokens_are_the_characters_of_all_files_in_order(tokenize):
    vocabulary, tokens = tokenize("hello\n", "wörld 春\r\n")
    assert vocabulary.unknown is None
    assert vocabulary.decode(tokens) == "hello\nwörld 春\r\n"
    assert tokens.dtype == torch.uint8
    assert vocabulary.idx2char == tuple(sorted(set("hello\nwörld 春\r\n")))


def test_byte_order_mark_is_not_part_of_the_text(tokenize):
    vocabulary, tokens = tokenize(b"\xef\xbb\xbfabcd")
    assert vocabulary.decode(tokens) == "abcd"


def test_text_is_read_in_chunks(tokenize, monkeypatch):
    text = "".join(chr(c) for c in range(0x20, 0x600)) + "🎈" * 5
    whole = tokenize(text)[1].clone()
    monkeypatch.setattr(corpus, "_CHUNK", 333)
    vocabulary, tokens = tokenize(text)
    assert torch.equal(tokens, whole)
    assert vocabulary.decode(tokens) == text


@pytest.mark.parametrize(
    ("distinct", "dtype"), [(256, torch.uint8), (257, torch.int16), (40000, torch.int32)]
)
def test_tokens_take_the_narrowest_type(tokenize, distinct, dtype):
    text = "".join(map(chr, range(0x10000, 0x10000 + distinct)))
    vocabulary, tokens = tokenize(text)
    assert tokens.dtype == dtype
    assert vocabulary.decode(tokens) == text


def test_rare_characters_become_unknown(tokenize):
    vocabulary, tokens = tokenize("aabbcaabbd", min_count=2)
    assert vocabulary.idx2char == ("a", "b", "<unk>")
    assert vocabulary.unknown == 2
    assert tokens.tolist() == [0, 0, 1, 1, 2, 0, 0, 1, 1, 2]
    assert tokenize("aabb", min_count=2)[0].unknown is None


def test_unknown_stands_for_every_other_character(tokenize):
    vocabulary, _ = tokenize("aabbcaabbd", min_count=2)
    assert vocabulary.encode("ack").tolist() == [0, 2, 2]
    assert repr(vocabulary) == "Vocabulary('ab', with_unknown=True)"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "0.txt is empty; pass text files to learn from"),
        (b"\xef\xbb\xbf", "0.txt is empty; pass text files to learn from"),
        (bytes(range(128)), "0.txt contains zero bytes, so it is not a text file; pass another"),
        (
            b"ab\ncd\xff\xfe",
            "0.txt is not UTF-8 text: byte 0xff at offset 5, in line 2; specify its encoding",
        ),
        (b"ab\nc\xe6\x98", "0.txt is not UTF-8 text: byte 0xe6 at offset 4, in line 2;"),
        (b"abc", "the text has 3 characters, and at least 4 are needed"),
    ],
)
def test_rejects_files_that_are_not_text(tokenize, tmp_path, content, sentence):
    with pytest.raises(CharLMError, match=sentence):
        tokenize(content)
    assert not [*tmp_path.glob("tokens*"), *tmp_path.glob(".*")]


def test_rejects_a_min_count_that_leaves_no_character(tokenize):
    with pytest.raises(CharLMError, match="no character occurs 3 times; choose a smaller"):
        tokenize("abcdabcd", min_count=3)


def test_rejects_a_folder(tmp_path):
    with pytest.raises(CharLMError, match="is not a file"):
        prepare([str(tmp_path)], tmp_path / "tokens.bin", 1, "utf-8")


@pytest.mark.parametrize("after", ["abcdabcd", "abcx"])
def test_text_that_changes_while_it_is_read_is_refused(tokenize, monkeypatch, after):
    count = corpus._count

    def count_and_append(sources, encoding):
        counts = count(sources, encoding)
        sources[0].path.write_text(after)
        return counts

    monkeypatch.setattr(corpus, "_count", count_and_append)
    with pytest.raises(CharLMError, match="a text changed while it was read"):
        tokenize("abcd")


@pytest.mark.parametrize("damage", [b"", b"abc", b"12345678"])
def test_rejects_tokens_that_do_not_match_the_run(tmp_path, damage):
    text, file = tmp_path / "text", tmp_path / "tokens.bin"
    text.write_text("abcdabcd")
    _, facts = prepare([str(text)], file, 1, "utf-8")
    assert facts.count == 8
    file.write_bytes(damage)
    with pytest.raises(CharLMError, match=r"tokens\.bin has changed since the run started"):
        facts.map(file)


def test_streams_continue_where_the_previous_step_ended():
    tokens = torch.arange(50)
    streams = Streams(tokens, 3, 4, slice(None))
    first, second = streams.read(1), streams.read(2)
    assert first[0].tolist() == [[0, 16, 33], [1, 17, 34], [2, 18, 35], [3, 19, 36]]
    assert torch.equal(first[1], first[0] + 1)
    assert torch.equal(second[0][0], first[1][-1])


def test_streams_wrap_around_and_any_step_can_be_read_alone():
    tokens = torch.arange(7)
    inputs, targets = Streams(tokens, 2, 5, slice(None)).read(1000)
    assert inputs[:, 0].tolist() == [(999 * 5 + i) % 7 for i in range(5)]
    assert torch.equal(targets, (inputs + 1) % 7)


def test_shares_of_the_streams_are_columns_of_all():
    tokens = torch.randint(9, (100,))
    whole = Streams(tokens, 4, 6, slice(None)).read(3)[0]
    parts = [Streams(tokens, 4, 6, slice(i, i + 2)).read(3)[0] for i in (0, 2)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize(("length", "count", "seq_len"), [(23, 3, 3), (2, 8, 5), (41, 4, 100)])
def test_windows_predict_every_character_but_the_first_of_a_stream(length, count, seq_len):
    tokens = torch.arange(length)
    result = windows(tokens, count, seq_len)
    streams = min(count, length // 2)
    each = length // streams
    targets = torch.cat([targets for _, targets in result])
    assert targets.t().tolist() == [
        list(range(s * each + 1, (s + 1) * each)) for s in range(streams)
    ]
    assert all(torch.equal(inputs + 1, targets) for inputs, targets in result)
    assert all(len(inputs) <= seq_len for inputs, _ in result)


TEXT = "Größe\n春眠\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark_selects_the_encoding(tokenize, encoding):
    vocabulary, tokens = tokenize(TEXT.encode(encoding))
    assert vocabulary.decode(tokens) == TEXT


def test_big_endian_mark_is_recognized(tokenize):
    vocabulary, tokens = tokenize(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"))
    assert vocabulary.decode(tokens) == TEXT


@pytest.mark.parametrize(("encoding", "text"), [("latin-1", "Größe"), ("gb18030", TEXT)])
def test_encoding_can_be_named(tokenize, encoding, text):
    vocabulary, tokens = tokenize(text.encode(encoding), encoding=encoding)
    assert vocabulary.decode(tokens) == text


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_characters_may_span_two_chunks(tokenize, monkeypatch, encoding):
    monkeypatch.setattr(corpus, "_CHUNK", 3)
    vocabulary, tokens = tokenize(TEXT.encode(encoding), encoding=encoding)
    assert vocabulary.decode(tokens) == TEXT


def test_offset_of_a_bad_byte_counts_all_chunks(tokenize, monkeypatch):
    monkeypatch.setattr(corpus, "_CHUNK", 3)
    with pytest.raises(CharLMError, match="byte 0xff at offset 9, in line 3"):
        tokenize("a\n春\nbcd".encode() + b"\xff")


@pytest.mark.parametrize("name", ["hex", "klingon", ""])
def test_rejects_an_unknown_encoding(tokenize, name):
    with pytest.raises(CharLMError, match="is not the name of a text encoding"):
        tokenize("abcd", encoding=name)


def test_control_characters_are_escaped_for_a_terminal():
    assert escape_controls("a\tb\n\x1b[31m\r\x9bé") == "a\tb\n\\x1b[31m\\x0d\\x9bé"
