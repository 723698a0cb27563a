"""The real scheduler against simulated hosts: benchmarks/simulator.py, with few hosts."""

from __future__ import annotations

import math
import sys

import pytest

from benchmarks.simulator import Setting, Simulation, expected, without_stragglers
from jamtasks import holding, scheduler

FILES = {holding.__file__, scheduler.__file__}


@pytest.mark.parametrize("seed", range(5))
def test_deaths_and_stragglers_do_not_change_the_answer(seed):
    setting = Setting(
        tasks=1500, hosts=6, workers=8, seed=seed, host_life=100.0, worker_deaths=0.02,
        stragglers=0.2,
    )  # fmt: skip
    outcome = Simulation(setting).run()
    assert outcome.result == expected(1500)
    assert outcome.retried > 0


def test_the_same_seed_is_the_same_run():
    def run(seed):
        outcome = Simulation(Setting(tasks=500, hosts=4, seed=seed, host_life=60.0)).run()
        return outcome.seconds, outcome.busy, outcome.retried, outcome.dead_hosts

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("median", [0.5, 2.0, 6.0, 15.0, 20.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_one_host_ten_times_slower_costs_a_run_of_a_minute_little(hosts, median, seed):
    tasks = round((hosts - 1) * 4 * 60 / median / 1.083)  # of the mean of such a spread
    setting = Setting(
        tasks=tasks, hosts=hosts, workers=4, median=median, seed=seed, stragglers=1 / hosts,
        host_life=math.inf, worker_deaths=0.0,
    )  # fmt: skip
    usual = Simulation(without_stragglers(setting)).run().seconds
    assert 45 < usual < 100
    assert Simulation(setting).run().seconds <= 1.3 * usual


def test_the_scheduler_does_no_more_per_task_with_more_hosts():
    """Lines are counted, which no other process on this machine can spoil."""

    def lines(hosts):
        simulation = Simulation(Setting(tasks=25 * hosts, hosts=hosts, workers=2, seed=1))
        count = 0

        def of_line(_frame, event, _arg):
            nonlocal count
            count += event == "line"
            return of_line

        def of_call(frame, _event, _arg):
            return of_line if frame.f_code.co_filename in FILES else None

        before = sys.gettrace()
        sys.settrace(of_call)
        try:
            simulation.run()
        finally:
            sys.settrace(before)
        return count / (25 * hosts)

    assert lines(200) < 1.5 * lines(4)
