"""Two reviewers at work while their servers are killed: nothing that was said is lost, and nothing counts twice."""

import random
import signal
import threading
import uuid

import httpx
import pytest
from browser import serving
from sklearn.metrics import cohen_kappa_score

from pipeline.dataset.curated import open_run
from pipeline.review.agreement import agreement
from pipeline.review.log import ReviewLog

SAID, KILLS = 200, 3


def reviewer_at_work(run_url, name, lines, kills, answered):
    """Sends lines one after the other. Before some of them the server is killed while it has a request, and started
    again; what was not answered is sent again as it was."""
    while lines:
        with serving("pipeline.cli", "review", run_url, "--reviewer", name) as (url, server):
            client = httpx.Client(base_url=url, timeout=20)
            while lines:
                if kills and len(lines) <= kills[0]:
                    kills.pop(0)
                    threading.Timer(0.004, server.send_signal, [signal.SIGKILL]).start()
                try:
                    answer = client.post("api/say", json=lines[0])
                except httpx.TransportError:
                    break
                assert answer.status_code == 200, answer.text
                answered.append(lines.pop(0)["id"])


@pytest.mark.slow
@pytest.mark.long
def test_two_reviewers_and_three_kills(copied):
    run_url = str(copied / "small")
    ids = list(open_run(run_url).manifest.sample_id)
    chance = random.Random(0)
    lines = {name: [{"id": uuid.UUID(int=chance.getrandbits(128)).hex, "sample_id": chance.choice(ids),
                     "action": "verdict", "value": chance.choice(["kept", "rejected"])} for _ in range(SAID // 2)]
             for name in ("ada", "bob")}  # fmt: skip
    last = {name: {line["sample_id"]: line["value"] == "kept" for line in own} for name, own in lines.items()}
    sent = [line["id"] for own in lines.values() for line in own]
    kills = {"ada": [70, 30], "bob": [50]}
    answered = {"ada": [], "bob": []}
    at_work = [threading.Thread(target=reviewer_at_work, args=(run_url, name, lines[name], kills[name], answered[name]))
               for name in lines]  # fmt: skip
    for thread in at_work:
        thread.start()
    for thread in at_work:
        thread.join()
    assert sorted(answered["ada"] + answered["bob"]) == sorted(sent)
    assert not any(kills.values())
    stored = [row.id for row in ReviewLog(run_url).rows()]
    assert sorted(stored) == sorted(sent)

    (row,) = [row for row in agreement(open_run(run_url).run) if row["who"] == "ada"]
    both = sorted(last["ada"].keys() & last["bob"].keys())
    assert row["samples"] == len(both)
    assert row["kappa"] == cohen_kappa_score([last["ada"][i] for i in both], [last["bob"][i] for i in both])
