"""What a teardown of nodes in containers leaves: the engine, and nothing that runs in it."""

TEARDOWN = {"teardown_confirm": "trial", "gpu_host_root": "/srv/raymetal", "model_store_root": "/srv/raymetal/models"}


def test_teardown_leaves_neither_container_nor_image(host, playbook):
    if host.backend.get_hostname() == "head":
        result = playbook("teardown.yml", variables=TEARDOWN)
        assert result.returncode == 0, result.stdout[-4000:]
    assert host.check_output("podman ps --all --quiet") == ""
    assert "localhost/trial" not in host.check_output("podman images --all --format '{{.Repository}}'").split()
    assert host.run("ps -eo args | grep -E '[r]aylet|[r]ay::|[V]LLM|[g]cs_server'").stdout == ""
    for path in ("/etc/raymetal", "/var/lib/raymetal", "/etc/systemd/system/raymetal.service"):
        assert not host.file(path).exists, path
