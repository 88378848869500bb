"""The HTTP parser of the load clients."""

import pytest

from bench.load.http import MAX_HEAD_BYTES, Answer, AnswerParser, LoadError

ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Fri\r\nContent-Type: application/json\r\nX-KMS-Next-Nonce:  abc \r\n"
    b"Content-Length: 5\r\n\r\nhello"
)


def test_an_answer_in_one_piece_is_parsed():
    answer = AnswerParser().feed(ANSWER)
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"hello")


def test_an_answer_byte_by_byte_is_the_same_answer():
    parser = AnswerParser()
    answers = [parser.feed(ANSWER[at : at + 1]) for at in range(len(ANSWER))]
    assert answers[:-1] == [None] * (len(ANSWER) - 1)
    assert answers[-1] == AnswerParser().feed(ANSWER)


def test_a_parser_takes_one_answer_after_the_other():
    parser = AnswerParser()
    empty = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    assert [parser.feed(piece).status for piece in (ANSWER, empty, ANSWER)] == [200, 404, 200]


def test_headers_are_found_in_any_case_and_stripped():
    answer = AnswerParser().feed(ANSWER)
    assert answer.header(b"x-kms-next-nonce") == b"abc"
    assert answer.header(b"nonce") is None
    assert answer.headers()[0] == (b"date", b"Fri")
    assert (b"content-length", b"5") in answer.headers()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(ANSWER + b"H", "more than the answer", id="bytes after the end"),
        pytest.param(b"HTTP/1.1 200 OK\r\ndate: Fri\r\n\r\n", "content-length", id="no length"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "content-length", id="length no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", "content-length", id="too long"),
        pytest.param(b"SMTP ready\r\n\r\n", "not HTTP", id="not HTTP"),
        pytest.param(b"HTTP/1.1 OK  \r\ncontent-length: 0\r\n\r\n", "not HTTP", id="no status"),
        pytest.param(b"x" * MAX_HEAD_BYTES, "does not end", id="endless head"),
    ],
)
def test_what_no_node_sends_stops_the_run(data, message):
    with pytest.raises(LoadError, match=message):
        AnswerParser().feed(data)


def test_an_answer_does_not_show_its_body():
    assert "hello" not in repr(Answer(200, b"", b"hello"))
