"""A real Ray cluster of two nodes on this machine makes the bytes that processes make, also when a node is lost."""

import threading
import time
from unittest import mock

import pytest
import ray
from small.curation import small_config
from troubled.runs import PLANNED, config, contents, outcome

from data_schemas.errors import UserError
from pipeline.curate import curate
from pipeline.engines import ray_cluster


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.long
def test_two_nodes_make_the_bytes_that_threads_make_and_one_that_is_lost_costs_nothing(cluster, tmp_path):
    """The second node goes while its parts are at work; one sample kills the process of its part."""
    trouble = {"crash": [3], "folder": str(tmp_path), "rest": 0.4, "batch_size": 2}
    second = cluster.add_node(num_cpus=1)
    lost = threading.Event()

    def lose() -> None:
        while not (tmp_path / "made").exists():
            time.sleep(0.1)
        time.sleep(1)
        cluster.remove_node(second, allow_graceful=False)
        lost.set()

    losing = threading.Thread(target=lose)
    losing.start()
    settings = {"trouble": trouble, "part_size": 2}
    result = curate(config(tmp_path / "ray", "ray", ray_address=cluster.address, **settings))
    losing.join()
    assert lost.is_set()
    expected = dict.fromkeys(range(PLANNED), ("ok", None)) | {3: ("error", "crashed")}
    assert outcome(result) == expected
    curate(config(tmp_path / "local", "local", **settings))
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    with mock.patch("ray.init", side_effect=AssertionError("what is there needs no cluster")):
        curate(config(tmp_path / "ray", "ray", ray_address=cluster.address, **settings))


@pytest.mark.slow
@pytest.mark.long
def test_stages_of_this_project_need_nothing_to_be_sent_along(tmp_path):
    some = {"samples": 4, "part_size": 4, "planning": {"test_share": 0.5}}
    curate(small_config(tmp_path / "ray", engine="ray", workers=1, **some))
    curate(small_config(tmp_path / "threads", **some))
    assert contents(tmp_path / "ray") == contents(tmp_path / "threads")


@ray.remote
class NotInstalled:
    """What a machine makes of an actor whose module it has not."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'pipeline'")

    def runs(self) -> None:
        pass


@pytest.mark.slow
def test_actors_that_cannot_be_started_end_the_run_with_one_line(tmp_path):
    with (
        mock.patch.object(ray_cluster, "Maker", NotInstalled),
        pytest.raises(
            UserError, match=r"engine ray: an actor cannot be started \(.*No module named 'pipeline'\); install"
        ),
    ):
        curate(config(tmp_path, "ray", workers=2, part_size=2))


@pytest.mark.slow
def test_an_actor_that_was_lost_at_the_end_connects_to_no_cluster_anew(tmp_path):
    """Any call of Ray connects by itself to a cluster that it finds, and lost actors are asked again later."""
    cluster = ray_cluster.Cluster(config(tmp_path, "ray"))
    cluster.starter.submit(cluster._start).result()
    cluster.actors = [ray_cluster.Maker.remote()]
    cluster._offer(cluster.actors[0])
    actor = cluster.places.get(timeout=60)
    ray.kill(actor)
    with mock.patch.object(ray_cluster, "AGAIN", 0.5), mock.patch("threading.Timer", wraps=threading.Timer) as timer:
        cluster._offer(actor)
        while not timer.called:
            time.sleep(0.01)
        with mock.patch("ray.init") as connect:
            cluster.close()
            time.sleep(1)
    connect.assert_not_called()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"engine ray: 127.0.0.1:1 cannot be had .*check ray_address"):
        curate(config(tmp_path, "ray", ray_address="127.0.0.1:1"))
