"""The planner: what is done with each application, in which way, and through which configurations.

GPUs are logical resources here: a node is what is free on it, a replica what it takes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible.module_utils import ray_serve_config as conf
from ansible.module_utils.ray_serve_leave import leave
from ansible.module_utils.ray_serve_planner import Cluster
from ansible.module_utils.ray_serve_waves import Plan

App = dict[str, Any]
MODEL = "LLMServer:m"
GROUPS: dict[str, Any] = {}
INGRESS_NEEDS = {"replicas": 1, "ray_actor_options": {"num_cpus": 1}}


def llm(source: str = "/models/m/1", replicas: int | tuple[int, int] = 1, **more: Any) -> App:
    """An application of ray.serve.llm as its operator writes it."""
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    config = {
        "model_loading_config": {"model_id": more.pop("model_id", "m"), "model_source": source},
        **more.pop("llm", {}),
    }
    entry = {"name": MODEL, "autoscaling_config": {"min_replicas": least, "max_replicas": most}}
    app = {"name": "chat", "route_prefix": "/", "import_path": conf.LLM_BUILDER, "args": {"llm_configs": [config]}}
    return {**app, "deployments": [entry], **more}


def needs(gpus: float = 1, tensor: int = 1, strategy: str = "PACK", deployment: str = MODEL) -> dict[str, Any]:
    bundles = [{"GPU": gpus, "CPU": 1}] * tensor
    model = {"replicas": 1, "placement_group_bundles": bundles, "placement_group_strategy": strategy}
    return {deployment: model, conf.INGRESS: INGRESS_NEEDS}


def details(
    app: App, counts: dict[str, int], takes: dict[str, Any], status: str = "RUNNING", state: str = "RUNNING"
) -> Any:
    """An application as Serve's REST interface gives it, replicas on node n0, n1, … in turn."""
    deployments = {}
    for name, count in counts.items():
        actor = f"SERVE_REPLICA::{app['name']}#{name}#"
        replicas = [{"node_id": f"n{i}", "state": state, "actor_name": f"{actor}{i}"} for i in range(count)]
        options = takes.get(name, {})
        # As Ray's state API tells it, a packed replica here always being on one node.
        GROUPS.update(
            {f"{actor}{i}": [[f"n{i}", b] for b in options.get("placement_group_bundles") or []] for i in range(count)}
        )
        told = {key: value for key, value in options.items() if not key.startswith("placement_group")}
        deployments[name] = {"deployment_config": {"name": name, **told}, "replicas": replicas}
    return {"status": status, "deployed_app_config": app, "deployments": deployments}


def runs(app: App, replicas: int = 1, takes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    lifted = conf.lifted(app)[0]
    return {conf.name_of(app): details(lifted, {MODEL: replicas, conf.INGRESS: 1}, takes or needs(), **more)}


def plan(
    apps: list[App], running: dict[str, Any], gpus: list[float], takes: dict[str, Any] | None = None, **options: Any
) -> Plan:
    free = {f"n{i}": {"GPU": float(free), "CPU": 16.0} for i, free in enumerate(gpus)}
    takes = takes or {conf.name_of(app): needs() for app in apps}
    return Plan({"applications": apps}, Cluster({"applications": running}, free, GROUPS), takes, options)


def names(apps: list[App]) -> dict[str, str | None]:
    return {conf.name_of(app): conf.route_of(app) for app in apps}


CHANGED = llm("/models/m/2")


def test_nothing_to_do() -> None:
    made = plan([llm()], runs(llm()), [0])
    assert made.steps["chat"]["action"] == "unchanged" and not made.waves and not made.problems


def test_add() -> None:
    made = plan([llm()], {}, [1])
    assert made.steps["chat"]["action"] == "add" and not made.problems
    (wave,) = made.waves
    assert names(wave["start"]) == {"chat": "/"} == names(wave["final"]) and not wave["switch"]


def test_add_without_room_says_what_is_short() -> None:
    made = plan([llm()], {}, [0.5], {"chat": needs(gpus=2)})
    assert "short of 1.5 GPU" in made.problems[0]


def test_add_with_tensor_parallel_needs_the_gpus_on_one_node_when_packed_strictly() -> None:
    packed = {"chat": needs(tensor=2, strategy="STRICT_PACK")}
    assert "short of 2 GPU" in plan([llm()], {}, [1, 1], packed).problems[0]
    assert not plan([llm()], {}, [2, 0], packed).problems
    assert not plan([llm()], {}, [1, 1], {"chat": needs(tensor=2)}).problems


def test_room_is_on_as_many_nodes_as_max_replicas_per_node_asks_for() -> None:
    """Regression: a start waited for a second node that had no GPU, and was taken back only when its time was over."""
    takes = {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0, "num_gpus": 1}}
    app = {"name": "chat", "route_prefix": "/", "import_path": "chat:build", "deployments": [{"name": "Chat", **takes}]}
    judged = {"chat": {"Chat": {**takes, "replicas": 2}}}
    assert "short of 1 nodes by max_replicas_per_node" in plan([app], {}, [0, 2], judged).problems[0]
    assert "short of 1 GPU" in plan([app], {}, [0, 1], judged).problems[0]
    assert not plan([app], {}, [1, 1], judged).problems


def test_replace_with_room_is_blue_green() -> None:
    made = plan([CHANGED], runs(llm()), [1])
    step = made.steps["chat"]
    assert (step["way"], step["live"], step["next"]) == ("blue_green", "chat", "chat--green")
    assert (step["gpus_before"], step["gpus_peak"]) == (1, 2)
    (wave,) = made.waves
    assert names(wave["start"]) == {"chat": "/", "chat--green": "/.raymetal/chat--green"}
    assert names(wave["switch"]) == {"chat": None, "chat--green": "/"}
    assert names(wave["final"]) == {"chat--green": "/"} and wave["gone"] == ["chat"]
    assert made.names() == {"chat": "chat--green"} and "restarts every engine" in "\n".join(made.lines())


def test_the_second_run_after_blue_green_changes_nothing_and_the_next_goes_back_to_the_first_name() -> None:
    made = plan([CHANGED], runs(llm()), [1])
    (final,) = made.waves[0]["final"]
    running = {"chat--green": details(final, {MODEL: 1, conf.INGRESS: 1}, needs())}
    assert plan([CHANGED], running, [1]).steps["chat"]["action"] == "unchanged"
    assert plan([llm("/models/m/3")], running, [1]).steps["chat"]["next"] == "chat"


def test_the_candidate_starts_as_large_as_what_it_replaces() -> None:
    before, after = llm(replicas=(1, 4)), llm("/models/m/2", replicas=(1, 4))
    made = plan([after], runs(before, 3), [3, 0, 0])
    (candidate,) = [app for app in made.waves[0]["start"] if app["name"] == "chat--green"]
    assert conf.entries(candidate)[MODEL]["autoscaling_config"]["min_replicas"] == 3
    (final,) = made.waves[0]["final"]
    assert conf.entries(final)[MODEL]["autoscaling_config"]["min_replicas"] == 1
    assert made.steps["chat"]["gpus_peak"] == 6


def test_room_for_one_more_replica_is_a_surge() -> None:
    made = plan([llm("/models/m/2", replicas=2)], runs(llm(replicas=2), 2), [1, 0])
    step = made.steps["chat"]
    assert step["way"] == "surge" and step["gpus_peak"] == 3 and step["next"] == "chat"
    (start,) = made.waves[0]["start"]
    assert conf.entries(start)[MODEL]["max_surge_percent"] == 50
    assert conf.entries(start)[conf.INGRESS]["max_surge_percent"] == 100
    assert "short of 1 GPU" in step["chosen"]


def test_two_replicas_and_no_room_roll() -> None:
    made = plan([llm("/models/m/2", replicas=2)], runs(llm(replicas=2), 2), [0, 0])
    step = made.steps["chat"]
    assert step["way"] == "roll" and step["gpus_peak"] == 2 and "one replica fewer" in step["reduced"]
    (start,) = made.waves[0]["start"]
    assert conf.entries(start)[MODEL]["max_surge_percent"] == 0
    assert conf.entries(start)[conf.INGRESS]["max_surge_percent"] == 100  # one replica, but CPUs have room


def test_one_replica_and_no_room_is_refused_unless_told() -> None:
    made = plan([CHANGED], runs(llm()), [0], seconds={"chat": 73})
    assert "73 s the last time" in made.problems[0] and "ray_serve_ways: {chat: queue}" in made.problems[0]
    made = plan([CHANGED], runs(llm()), [0], ways={"chat": "queue"})
    assert not made.problems and made.steps["chat"]["way"] == "queue"


def test_a_forced_way_that_is_impossible_says_how_many_gpus_are_short() -> None:
    made = plan([CHANGED], runs(llm()), [0], ways={"chat": "blue_green"})
    assert "blue_green is impossible" in made.problems[0] and "short of 1 GPU" in made.problems[0]
    made = plan([CHANGED], runs(llm()), [0], way="surge")
    assert "surge is impossible" in made.problems[0] and "short of 1 GPU" in made.problems[0]
    made = plan([CHANGED], runs(llm()), [0], ways={"chat": "roll"})
    assert "fewer than two replicas" in made.problems[0]


def test_a_larger_model_that_fits_nowhere_is_an_error() -> None:
    made = plan([CHANGED], runs(llm()), [1], {"chat": needs(gpus=4)})
    assert "cannot be replaced" in made.problems[0] and "short of 2 GPU" in made.problems[0]


def test_fractional_gpus_are_counted_as_such() -> None:
    takes = needs(gpus=0.5)
    made = plan([CHANGED], runs(llm(), takes=takes), [0.5], {"chat": takes})
    assert made.steps["chat"]["way"] == "blue_green" and made.steps["chat"]["gpus_peak"] == 1
    assert plan([CHANGED], runs(llm(), takes=takes), [0.4], {"chat": takes}).problems


def test_replica_bounds_are_light() -> None:
    made = plan([llm(replicas=(1, 3))], runs(llm()), [2])
    step = made.steps["chat"]
    assert step["action"] == "light" and "nothing restarts" in step["why"] and step["next"] == "chat"


def test_replica_bounds_written_as_the_seed_does_are_lifted_and_light() -> None:
    def written(least: int, most: int) -> App:
        bounds = {"autoscaling_config": {"min_replicas": least, "max_replicas": most}}
        return llm(llm={"deployment_config": bounds}, deployments=[])

    made = plan([written(2, 3)], runs(written(1, 1)), [2])
    assert made.steps["chat"]["action"] == "light"
    (app,) = made.waves[0]["final"]
    assert "deployment_config" not in app["args"]["llm_configs"][0]
    scaling = conf.entries(app)[MODEL]["autoscaling_config"]
    assert scaling == {"min_replicas": 2, "max_replicas": 3, "target_ongoing_requests": conf.LLM_TARGET}
    assert "llm_configs[0].deployment_config.autoscaling_config" in "\n".join(made.lines())


def test_more_replicas_than_there_is_room_for_is_an_error() -> None:
    assert "short of 1 GPU" in plan([llm(replicas=3)], runs(llm()), [1]).problems[0]


def test_fewer_replicas_need_no_room() -> None:
    made = plan([llm(replicas=1)], runs(llm(replicas=2), 2), [0, 0])
    assert made.steps["chat"]["action"] == "light" and not made.problems


def test_automatic_replicas_are_light() -> None:
    def written(**options: Any) -> App:
        return llm(llm={"deployment_config": options}, deployments=[])

    made = plan([written(num_replicas="auto")], runs(written(num_replicas=1)), [1])
    assert made.steps["chat"]["action"] == "light"
    scaling = conf.entries(made.now["chat"])[MODEL]["autoscaling_config"]
    assert scaling == {"min_replicas": 1, "max_replicas": 100, "target_ongoing_requests": 2}


def test_a_route_and_a_user_config_are_light() -> None:
    made = plan([{**llm(), "route_prefix": "/chat"}], runs(llm()), [0])
    assert made.steps["chat"]["action"] == "light" and names(made.waves[0]["final"]) == {"chat": "/chat"}
    other = copy.deepcopy(llm())
    other["deployments"][0]["user_config"] = {"a": 1}
    assert plan([other], runs(llm()), [0]).steps["chat"]["action"] == "light"


@pytest.mark.parametrize(
    "change",
    [
        {"ray_actor_options": {"num_gpus": 2}},
        {"request_router_config": {"request_router_class": "a:B"}},
        {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1, "policy": {"policy_function": "a:b"}}},
    ],
)
def test_what_ray_restarts_for_is_no_light_change(change: dict[str, Any]) -> None:
    other = copy.deepcopy(llm())
    other["deployments"][0] |= change
    assert plan([other], runs(llm()), [4]).steps["chat"]["action"] == "replace"


def test_an_application_that_vanishes_needs_consent_and_goes_last() -> None:
    other = {**llm(), "name": "other", "route_prefix": "/other"}
    running = {**runs(llm()), **runs(other)}
    assert "would vanish" in plan([CHANGED], running, [1]).problems[0]
    made = plan([CHANGED], running, [1], remove=["other"])
    (wave,) = made.waves
    assert "other" in names(wave["switch"]) and "other" not in names(wave["final"])
    assert set(wave["gone"]) == {"chat", "other"}


def test_a_rename_is_add_then_remove_with_a_swap() -> None:
    renamed = {**llm(), "name": "talk"}
    made = plan([renamed], runs(llm()), [1])
    assert made.steps["talk"]["way"] == "blue_green" and not made.problems
    (wave,) = made.waves
    assert names(wave["start"]) == {"chat": "/", "talk": "/.raymetal/talk"}
    assert names(wave["switch"]) == {"chat": None, "talk": "/"}
    assert names(wave["final"]) == {"talk": "/"}
    assert "outage" in plan([renamed], runs(llm()), [1], way="surge").problems[0]


def test_another_model_id_is_never_changed_in_place() -> None:
    other = llm(model_id="n", deployments=[])
    takes = {"chat": needs(deployment="LLMServer:n")}
    made = plan([other], runs(llm(replicas=2), 2), [2, 0], takes)
    assert made.steps["chat"]["way"] == "blue_green" and "other model ids" in made.steps["chat"]["why"]
    assert "outage" in plan([other], runs(llm(replicas=2), 2), [0, 0], takes).problems[0]


def test_two_replacements_with_room_for_one_go_one_after_the_other() -> None:
    second = {**llm(), "name": "other", "route_prefix": "/other"}
    running = {**runs(llm()), **runs(second)}
    wanted = [CHANGED, {**llm("/models/m/2"), "name": "other", "route_prefix": "/other"}]
    made = plan(wanted, running, [1])
    assert not made.problems and [w["applications"] for w in made.waves] == [["chat"], ["other"]]
    assert names(made.waves[0]["final"]) == {"chat--green": "/", "other": "/other"}
    assert names(made.waves[1]["final"]) == {"chat--green": "/", "other--green": "/other"}
    assert len(plan(wanted, running, [2]).waves) == 1


def test_an_application_that_serves_nobody_is_restarted_in_place() -> None:
    made = plan([CHANGED], runs(llm(), status="DEPLOY_FAILED", state="STARTING"), [1])
    assert made.steps["chat"]["action"] == "restart" and made.steps["chat"]["next"] == "chat"


def test_a_candidate_left_by_an_interrupted_change_is_taken_over() -> None:
    begun = plan([CHANGED], runs(llm()), [1])
    candidate = next(app for app in begun.waves[0]["start"] if app["name"] == "chat--green")
    running = {**runs(llm()), "chat--green": details(candidate, {MODEL: 1, conf.INGRESS: 1}, needs())}
    made = plan([CHANGED], running, [0])  # its room is the candidate's already
    assert made.steps["chat"]["way"] == "blue_green" and not made.problems
    assert names(made.waves[0]["start"]) == names(begun.waves[0]["start"])


def test_an_interruption_after_the_switch_is_finished() -> None:
    begun = plan([CHANGED], runs(llm()), [1])
    old, new = begun.waves[0]["switch"]
    counts = {MODEL: 1, conf.INGRESS: 1}
    running = {"chat": details(old, counts, needs()), "chat--green": details(new, counts, needs())}
    made = plan([CHANGED], running, [0], begun={"chat": "replace"})
    assert made.steps["chat"]["action"] == "finish" and made.waves[0]["gone"] == ["chat"]
    assert names(made.waves[0]["final"]) == {"chat--green": "/"} and not made.problems


def test_an_interrupted_surge_is_finished() -> None:
    made = plan([llm()], runs(llm()), [0], begun={"chat": "replace"})
    assert made.steps["chat"]["action"] == "finish" and names(made.waves[0]["final"]) == {"chat": "/"}


def test_old_replicas_get_time_to_drain_before_they_are_replaced_in_place() -> None:
    made = plan([llm("/models/m/2", replicas=2)], runs(llm(replicas=2), 2), [1, 0], drain_seconds=600)
    (wave,) = made.waves
    (app,) = wave["prepare"]
    assert conf.entries(app)[MODEL]["graceful_shutdown_timeout_s"] == 600
    assert conf.code_of(app) == conf.code_of(conf.lifted(llm(replicas=2))[0])


def test_what_the_role_adds_is_no_difference() -> None:
    made = plan([llm()], {}, [1], drain_seconds=600)
    app = made.waves[0]["final"][0]
    assert conf.entries(app)[MODEL]["graceful_shutdown_timeout_s"] == 600
    running = {"chat": details(app, {MODEL: 1, conf.INGRESS: 1}, needs())}
    assert plan([llm()], running, [0], drain_seconds=600).steps["chat"]["action"] == "unchanged"


def test_an_application_of_before_the_lifting_is_left_alone() -> None:
    """What step by step became lifted must not restart what runs unlifted and is otherwise the same."""
    plain = llm(
        llm={"deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}}, deployments=[]
    )
    running = {"chat": details(plain, {MODEL: 1, conf.INGRESS: 1}, needs())}
    assert plan([plain], running, [1]).steps["chat"]["action"] == "unchanged"
    more = llm(
        llm={"deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}}, deployments=[]
    )
    assert plan([more], running, [1]).steps["chat"]["action"] == "replace"


def test_a_builder_that_only_runs_tell_is_planned_by_what_runs() -> None:
    app = {"name": "own", "route_prefix": "/own", "import_path": "m:build", "args": {"a": 1}}
    takes = {"Own": {"ray_actor_options": {"num_gpus": 1, "num_cpus": 1}}}
    running = {"own": details(app, {"Own": 2}, takes)}
    changed = {**app, "args": {"a": 2}}
    made = plan([changed], running, [0, 0], {"own": {}})
    assert made.steps["own"]["way"] == "roll"
    assert plan([changed], running, [2, 0], {"own": {}}).steps["own"]["way"] == "blue_green"


def test_of_such_a_builder_what_the_operator_writes_counts() -> None:
    """Once it was taken for as small as what runs, and its start waited for room that never came."""
    app = {"name": "own", "route_prefix": "/own", "import_path": "m:build", "args": {"a": 1}}
    running = {"own": details(app, {"Own": 2}, {"Own": {"ray_actor_options": {"num_gpus": 1}}})}
    larger = {**app, "deployments": [{"name": "Own", "num_replicas": 2, "ray_actor_options": {"num_gpus": 2}}]}
    made = plan([larger], running, [1, 1], {"own": {}}, ways={"own": "blue_green"})
    assert "the way blue_green is impossible" in made.problems[0] and "short of 2 GPU" in made.problems[0]


def test_what_never_served_is_not_waited_for() -> None:
    """Once a candidate without room, its host lost, held up the way back for drain_seconds."""

    def seconds(app: App) -> float:
        return float(conf.entries(app)[MODEL]["graceful_shutdown_timeout_s"])

    made = plan([CHANGED], runs(llm()), [1], drain_seconds=600)
    (wave,) = made.waves
    found = {
        stage: seconds(next(a for a in wave[stage] if a["name"] == "chat--green")) for stage in ("start", "switch")
    }
    assert found == {"start": 20, "switch": 600} and seconds(wave["final"][0]) == 600
    (wave,) = plan([llm()], {}, [1], drain_seconds=600).waves
    assert (seconds(wave["start"][0]), seconds(wave["final"][0])) == (20, 600)


def test_of_such_a_builder_that_does_not_run_yet_too() -> None:
    entry = {"name": "Own", "num_replicas": 1, "ray_actor_options": {"num_gpus": 2}}
    own = {"name": "own", "route_prefix": "/own", "import_path": "m:build", "deployments": [entry]}
    assert "short of 1 GPU" in plan([own], {}, [1], {"own": {}}).problems[0]
    assert not plan([own], {}, [2], {"own": {}}).problems


@pytest.mark.parametrize(
    ("before", "after", "started"),
    [
        ({"num_replicas": 2}, {"num_replicas": 4}, {"num_replicas": 2}),
        ({"num_replicas": 4}, {"num_replicas": 2}, {"num_replicas": 2}),
        (
            {"autoscaling_config": {"min_replicas": 2, "max_replicas": 2}},
            {"autoscaling_config": {"min_replicas": 4, "max_replicas": 8}},
            {"autoscaling_config": {"min_replicas": 2, "initial_replicas": 2, "max_replicas": 8}},
        ),
    ],
)
def test_in_place_more_replicas_come_when_the_old_ones_are_gone(
    before: dict[str, Any], after: dict[str, Any], started: dict[str, Any]
) -> None:
    """Once a larger number and other options in one change waited for room that the old replicas held."""
    half, whole = ({"ray_actor_options": {"num_gpus": gpus}} for gpus in (0.5, 1))
    app = {"name": "own", "route_prefix": "/own", "import_path": "m:build", "args": {"a": 1}}
    old: App = {**app, "deployments": [{"name": "Own", **before, **whole}]}
    new = {**app, "deployments": [{"name": "Own", **after, **half}]}
    count = conf.bounds(old["deployments"][0], 1)[0]
    running = {"own": details(old, {"Own": count}, {"Own": whole})}
    made = plan([new], running, [0] * count, {"own": {}}, way="roll")
    assert not made.problems
    (wave,) = made.waves
    assert {k: v for k, v in conf.entries(wave["start"][0])["Own"].items() if k in started} == started
    assert {k: v for k, v in conf.entries(wave["final"][0])["Own"].items() if k in after} == after


def test_what_was_changed_in_place_is_taken_back_in_the_same_way() -> None:
    """Once the way back from a surge stopped the ingress before it started the old one: 12 s without an answer."""
    made = plan([llm("/models/m/2", replicas=2)], runs(llm(replicas=2), 2), [1, 0], drain_seconds=600)
    (app,) = made.back()
    surges = {name: entry.get("max_surge_percent") for name, entry in conf.entries(app).items()}
    assert surges == {MODEL: 50, conf.INGRESS: 100} and made.steps["chat"]["way"] == "surge"
    assert conf.code_of(app) == conf.code_of(conf.lifted(llm(replicas=2))[0])
    assert plan([CHANGED], runs(llm()), [1]).back() == [conf.lifted(llm())[0]], "beside it nothing is touched"


def test_other_code_has_deployments_of_its_own() -> None:
    """Once it was given those of the code that ran, and Ray refused it."""
    own = {"name": "chat", "route_prefix": "/", "import_path": "m:build", "deployments": [{"name": "Own"}]}
    made = plan([own], runs(llm()), [1], {"chat": {}}, drain_seconds=600)
    assert made.steps["chat"]["way"] == "blue_green"
    (app,) = made.waves[0]["final"]
    assert conf.entries(app) == {"Own": {"name": "Own", "graceful_shutdown_timeout_s": 600}}


def test_before_there_is_a_cluster_nothing_is_short() -> None:
    """A dry run on empty hosts says what would be done; the room is not known."""
    assert not plan([llm()], {}, []).problems
    assert "short of" in plan([llm()], {}, [0]).problems[0]


def test_an_application_without_a_route_keeps_its_name() -> None:
    """Others call it by its name; and another one without a route is not the same under a new name."""
    inner = {"name": "inner", "route_prefix": None, "import_path": "m:build", "args": {"a": 1}}
    running = {"inner": details(inner, {"D": 1}, {"D": {"num_gpus": 1}})}
    wanted = {**inner, "args": {"a": 2}}
    made = plan([wanted], running, [2], {"inner": {"D": {"num_gpus": 1}}})
    assert made.steps["inner"]["way"] == "surge" and made.steps["inner"]["next"] == "inner"
    assert "others call it by its name" in made.steps["inner"]["chosen"]
    other = plan([{**inner, "name": "other"}], running, [2], {"other": {"D": {"num_gpus": 1}}})
    assert other.steps["other"]["action"] == "add" and "inner runs and would vanish" in other.problems[0]


def test_replicas_that_follow_one_another_get_their_time() -> None:
    assert plan([CHANGED], runs(llm(), 3), [9]).waves[0]["rounds"] == 0, "a copy starts at once"
    new, running = llm("/models/m/2", replicas=3), runs(llm(replicas=3), 3)
    for app in running.values():
        app["deployments"][conf.INGRESS]["replicas"] *= 2
    assert plan([new], running, [0, 0, 0], way="roll").waves[0]["rounds"] == 3


def test_what_a_node_that_came_back_holds_already_is_no_room() -> None:
    """Regression: Ray's report was older than the replicas there; others waited for room they never got."""
    total = {node: {"GPU": 1.0, "CPU": 16.0} for node in ("n0", "n1")}
    report = {"n0": {"GPU": 0.0, "CPU": 14.0}, "n1": {"GPU": 1.0, "CPU": 16.0}}
    cluster = Cluster({"applications": runs(llm(), 2)}, report, GROUPS, total)
    assert cluster.free["n1"] == {"GPU": 0.0, "CPU": 15.0}
    found = leave(cluster, ["n0"])
    assert (found.stuck, found.moved, found.lost) == (1, {"chat": 1}, []), "the ingress moves, the engine cannot"
    assert found.reduced == [f"chat/{MODEL} has 1 replica(s) instead of 2"]


def test_replicas_on_nodes_that_leave_move_where_there_is_room() -> None:
    free = {"n0": {"GPU": 0.0, "CPU": 14.0}, "n1": {"GPU": 1.0, "CPU": 16.0}}
    cluster = Cluster({"applications": runs(llm())}, free, GROUPS)
    found = leave(cluster, ["n0"])
    assert (found.stuck, found.moved, found.reduced, found.lost) == (0, {"chat": 2}, [], [])
    alone = leave(Cluster({"applications": runs(llm())}, {**free, "n1": {"CPU": 16.0}}, GROUPS), ["n0"])
    assert alone.lost == [f"chat/{MODEL} has no replica: no other node has room for one"]


def test_what_runs_is_asked_for_its_own_models() -> None:
    """Regression: a changed model id was refused, since the running application did not know the new one."""
    ask = {
        "method": "POST",
        "path": "/v1/chat/completions",
        "body": {"model": "new", "max_tokens": 4},
        "contains": None,
    }
    old = {**ask, "body": {"model": "m", "max_tokens": 4}}
    get = {"method": "GET", "path": "/v1/models", "body": None}
    assert conf.fitting([ask], llm()) == [old]
    assert conf.fitting([ask, old], llm()) == [old]
    assert conf.fitting([get], llm()) == [get]
    assert conf.fitting([ask], {"name": "chat", "import_path": "chat:build"}) == [ask]
