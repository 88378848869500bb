"""What is read out of /proc."""

import os

import pytest

from bench.load.procfs import (
    CpuTime,
    Memory,
    cpu_time,
    machine_cpu_s,
    memory,
    parse_machine_stat,
    parse_stat,
    parse_status,
)

STAT = (
    "30308 (a) name (x) R 30300 30300 3787 0 -1 4194304 100 0 0 0 1234 56 0 0 20 0 1 0 128846 3133440 383 "
    "18446744073709551615 1 1 1 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0"
)
STATUS = "Name:\tpython\nVmHWM:\t  112640 kB\nVmRSS:\t   98304 kB\nThreads:\t7\n"


def test_cpu_times_are_found_behind_a_name_that_looks_like_fields():
    assert parse_stat(STAT, 100) == CpuTime(12.34, 0.56)


def test_cpu_time_spent_is_a_difference():
    spent = CpuTime(3.0, 1.5) - CpuTime(1.0, 0.5)
    assert spent.total_s == 3.0


def test_memory_is_in_bytes():
    assert parse_status(STATUS) == Memory(98304 * 1024, 112640 * 1024, 7)


def test_a_process_that_has_ended_has_no_memory_to_parse():
    with pytest.raises(KeyError):
        parse_status("Name:\tpython\nState:\tZ (zombie)\nThreads:\t1\n")


def test_the_machine_works_when_it_neither_waits_nor_is_taken_away():
    assert parse_machine_stat("cpu  100 20 30 4000 500 6 7 8000 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n", 10) == 16.3


def test_anything_but_the_sum_of_all_cpus_is_refused():
    with pytest.raises(ValueError, match="first line"):
        parse_machine_stat("cpu0 100 20 30 4000 500 6 7 8000 0 0\n", 10)


def test_this_process_can_be_read():
    assert 0 < cpu_time(os.getpid()).total_s <= machine_cpu_s()
    assert 0 < memory(os.getpid()).rss_bytes <= memory(os.getpid()).peak_rss_bytes
