"""A second node on a host that has one: at an address, with a user, with ports of its own."""

import json

import yaml
from trial import INVENTORY, Cluster, host_of

PORTS = {
    "node_manager_port": 6491,
    "object_manager_port": 6492,
    "dashboard_agent_grpc_port": 6493,
    "runtime_env_agent_port": 6494,
    "metrics_export_port": 6495,
    "dashboard_agent_listen_port": 52465,
    "min_worker_port": 20000,
    "max_worker_port": 29999,
}


def test_a_second_worker_on_one_host(host, playbook, tmp_path):
    worker = host_of("worker1")
    variables = worker.ansible.get_variables()
    own = variables["ansible_host"]
    address = own.rpartition(".")[0] + ".112"
    device = worker.check_output("ip -o -4 route show default").split()[4]
    worker.check_output(f"ip address replace {address}/24 dev {device}")
    second = {
        **{f"ansible_{key}": variables[f"ansible_{key}"] for key in ("port", "private_key_file", "user")},
        "ansible_host": address,
        # It is the same machine, with the same key.
        "ansible_ssh_common_args": f"{variables['ansible_ssh_common_args']} -o HostKeyAlias={own}",
        "ray_node_service": "raymetal-b",
        "cluster_user": "raymetal-b",
        "cluster_config_dir": "/etc/raymetal-b",
        "cluster_state_dir": "/var/lib/raymetal-b",
        "ray_node_options": {**PORTS, "num_cpus": 1, "object_store_memory": 100000000, "resources": {"second": 1}},
    }
    for name in INVENTORY.iterdir():
        (tmp_path / name.name).symlink_to(name)
    (tmp_path / "second.yml").write_text(
        yaml.safe_dump({group: {"hosts": {"worker2": second}} for group in ("ray_cluster", "ray_workers")})
    )
    done = playbook("site.yml", "--tags", "install,models,cluster,health", inventory=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    listed = Cluster(host).rest("/api/v0/nodes?detail=1")["data"]["result"]["result"]
    alive = {node["node_ip"]: node["resources_total"] for node in listed if node["state"] == "ALIVE"}
    assert len(alive) == 3 and alive[address]["second"] == 1 and "second" not in alive[own]
    names = {name for c in json.loads(worker.check_output("podman ps --format json")) for name in c["Names"]}
    assert names == {"raymetal", "raymetal-b"}
    # Its removal leaves the other: what both have below /opt/raymetal is the tests' own.
    given = {"host": "worker2", "gpu_host_root": "/srv/raymetal", "model_store_root": "/srv/raymetal/models"}
    removed = playbook("playbooks/remove.yml", inventory=tmp_path, variables=given)
    assert removed.returncode == 0, removed.stdout[-4000:]
    assert not worker.user("raymetal-b").exists and worker.user("raymetal").exists
    (container,) = json.loads(worker.check_output("podman ps --all --format json"))
    assert container["Names"] == ["raymetal"]
    assert Cluster(host).running() == {"smollm2": "RUNNING"}
