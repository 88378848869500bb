"""The console: kept up to a bound, and harmless to a terminal."""

import threading

from appliance.devnet.emulator.console import MAX_LOG_BYTES, Console


def test_what_is_printed_is_kept_and_shown_without_control_characters() -> None:
    shown: list[bytes] = []
    console = Console(threading.Condition(), shown.append)
    console.feed(b"boot\r\n\x1b]0;title\x07\x1b[2J\ttab \xc3\xa9\x7f\x9b31m\n")
    console.feed(b"more")

    assert console.text() == "boot\n]0;title[2J\ttab 31m\nmore"
    assert b"".join(shown).decode() == console.text()


def test_a_guest_that_floods_the_console_fills_no_memory() -> None:
    shown: list[bytes] = []
    console = Console(threading.Condition(), shown.append)
    console.feed(b"first")
    for _ in range(3):
        console.feed(b"x" * (MAX_LOG_BYTES // 2))

    assert len(console.text()) == MAX_LOG_BYTES
    assert console.text().startswith("first")
    assert sum(map(len, shown)) == 5 + 3 * (MAX_LOG_BYTES // 2)


def test_news_wakes_whoever_waits() -> None:
    news = threading.Condition()
    console = Console(news)
    seen: list[bool] = []

    def wait() -> None:
        with news:
            seen.append(news.wait_for(lambda: "ready" in console.text(), 10))

    thread = threading.Thread(target=wait)
    thread.start()
    console.feed(b"rea")
    console.feed(b"dy")
    thread.join(10)

    assert seen == [True]
