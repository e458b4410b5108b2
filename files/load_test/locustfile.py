"""A load of chat completions on an OpenAI-compatible server, by Locust: see docs/load-test.md.

    locust -f locustfile.py --headless --host http://127.0.0.1:8000 --model chat --rate 10 --run-time 60s

Closed loop, as Locust knows it: ``--users`` ask one question after the other. Open loop, ``--rate``: requests arrive
whatever the answers do, so that a server that pauses meets all that would have come in the meantime.
Exit code 0: every request was answered well; 1: a request failed or a limit was passed; 2: the test cannot run.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import gevent
import locust.stats
from chat_client import Answer, ChatClient
from gevent import GreenletExit
from gevent.event import Event
from gevent.pool import Group
from load_options import KEY_VARIABLE, add_options, arrival_times, headers, option_problems, request_bodies
from load_records import Records, sentence, shortcomings
from locust import User, events, task
from locust.env import Environment

locust.stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]
events.init_command_line_parser.add_listener(add_options)


class LoadTest:
    """What all requests of one test share. The options are those at its start: the web UI can change them."""

    def __init__(self, environment: Environment) -> None:
        self.environment, self.options = environment, Namespace(**vars(environment.parsed_options))
        self.client = ChatClient(
            self.options.host,
            self.options.path,
            headers(self.options, os.environ.get(KEY_VARIABLE, "")),
            self.options.timeout_seconds,
            self.options.stall_seconds,
            self.options.keep_alive,
        )
        self.bodies = request_bodies(self.options)
        self.records = Records(self.options.requests_file)
        self.clocks = time.time() - time.perf_counter()
        self.arrivals = arrival_times(self.options)
        self.begin, self.next_arrival = 0.0, 0.0
        self.in_flight = Group()

    def start(self) -> None:
        """Begin the open loop."""
        if not self.begin:
            self.begin = time.perf_counter()
            self.next_arrival = self.begin + next(self.arrivals)

    def arrive(self) -> None:
        """Send what is due; a late one is made up for at once and its time counts from when it was due."""
        while self.next_arrival <= time.perf_counter():
            if len(self.in_flight) < self.options.max_in_flight:
                self.in_flight.spawn(self.ask, self.next_arrival)
            else:
                self.refuse(self.next_arrival)
            self.next_arrival = self.begin + next(self.arrivals)

    def warm_up(self) -> str:
        """Ask as often as wanted, without counting; return what went wrong, empty for nothing."""
        for number in range(self.options.warm_up_requests):
            answer = self.client.ask(next(self.bodies), time.perf_counter())
            if answer.failure and answer.failure != "stall":
                return f"warm-up request {number + 1} failed: {answer.failure}: {answer.error}"
        return ""

    def ask(self, scheduled: float) -> None:
        self.count(self.client.ask(next(self.bodies), scheduled))

    def refuse(self, scheduled: float) -> None:
        """Count an arrival for which there is no room as failed: waiting would hide what it would have met."""
        answer = Answer(bool(next(self.bodies)["stream"]), scheduled, failure="not sent")
        answer.error = f"{self.options.max_in_flight} requests were in flight"
        self.count(answer)

    def count(self, answer: Answer) -> None:
        self.records.add(answer, answer.scheduled + self.clocks)
        self.environment.events.request.fire(
            request_type="stream" if answer.stream else "plain",
            name=self.client.path,
            response_time=answer.seconds * 1000,
            response_length=answer.length,
            exception=Exception(answer.failure) if answer.failure else None,
            context={},
        )

    def finish(self) -> None:
        """Say how it was, and let the exit code say it too."""
        self.client.close()
        self.records.close()
        summary = self.records.summary()
        limits = (self.options.min_requests, self.options.max_p99_seconds, self.options.max_first_token_p99_seconds)
        problems = shortcomings(summary, *limits)
        if self.options.summary_file:
            Path(self.options.summary_file).write_text(json.dumps(summary | {"problems": problems}, indent=2) + "\n")
        print(sentence(summary), flush=True)
        for problem in problems:
            print(f"load test: FAILED: {problem}", flush=True)
        self.environment.process_exit_code = 1 if problems else 0


class ChatUser(User):
    """Closed loop: one question after the other. Open loop: the source of the arrivals, one for all users."""

    test: LoadTest

    def on_start(self) -> None:
        if self.test.options.rate:
            self.test.start()

    def wait_time(self) -> float:
        """Seconds to the next arrival, none in the closed loop."""
        return max(self.test.next_arrival - time.perf_counter(), 0.0)

    @task
    def ask(self) -> None:
        if self.test.options.rate:
            self.test.arrive()
        else:
            self.test.ask(time.perf_counter())

    def on_stop(self) -> None:
        """Let the requests in flight end: what the last arrivals met counts as well."""
        self.test.in_flight.join()


def ready(environment: Environment) -> list[str]:
    """Check the options and warm up; return why the test cannot run."""
    problems = option_problems(environment.parsed_options)
    if problems:
        return problems
    try:
        ChatUser.test = LoadTest(environment)
    except OSError as error:
        return [f"--requests-file: {error}"]
    problem = ChatUser.test.warm_up()
    return [problem] if problem else []


@events.init.add_listener
def on_init(environment: Environment, **_: Any) -> None:
    """Without the web UI get ready before the clock of --run-time runs."""
    options = environment.parsed_options
    # Users that are in the middle of a request finish it at the end.
    environment.stop_timeout = max(environment.stop_timeout or 0, options.timeout_seconds + 5)
    if options.headless and (problems := ready(environment)):
        for problem in problems:
            print(f"load test: cannot run: {problem}", file=sys.stderr, flush=True)
        sys.exit(2)
    # The clock of --run-time stood still while Locust was loading: without this the test is shorter by that.
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def on_test_start(environment: Environment, **_: Any) -> None:
    """With the web UI get ready at each start, by the options of its form."""
    if not environment.parsed_options.headless and (problems := ready(environment)):
        logging.error("cannot run: %s", "; ".join(problems))
        raise GreenletExit  # ends this start, not the web UI


@events.test_stop.add_listener
def on_test_stop(**_: Any) -> None:
    ChatUser.test.finish()


@events.quitting.add_listener
def on_quitting(environment: Environment, **_: Any) -> None:
    """Wait for the requests in flight before Locust looks at the exit code, which it does first."""
    environment.runner.quit()
    if environment.parsed_options.csv_prefix:
        gevent.sleep(2 * locust.stats.CSV_STATS_INTERVAL_SEC)  # its writer can only be waited for: it knows no end
    if environment.parsed_options.headless and isinstance(gevent.getcurrent(), gevent.Greenlet):
        # SIGTERM: the main greenlet, which waited for the runner, now writes the HTML report and ends the process.
        Event().wait(60)
