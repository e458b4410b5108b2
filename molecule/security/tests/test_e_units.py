"""How far each unit is shut in, as systemd itself counts (0 to 10, less is better): the table of docs/security.md."""

import re

import pytest

UNITS = ("raymetal.service", "raymetal-gateway.service")
# Highest exposure that passes. A unit of ours that is not here stops the test.
BOUNDS = {
    "raymetal.service": 3.6,
    "raymetal-sweep.service": 1.6,
    "raymetal-gateway.service": 1.5,
    "raymetal-firewall.service": 1.8,
}


def units(here):
    listed = here.run("systemctl", "list-unit-files", "--plain", "--no-legend", "raymetal*.service").stdout
    return [line.split()[0] for line in listed.splitlines()]


@pytest.mark.parametrize(("name", "expected"), [("head", "raymetal.service"), ("worker1", "raymetal.service")])
def test_nodes(place, name, expected):
    shut_in(place(name), expected)


def test_the_gateway(place):
    shut_in(place("edge"), "raymetal-gateway.service")


def shut_in(here, expected):
    found = units(here)
    assert expected in found
    for unit in found:
        said = here.run("systemd-analyze", "security", "--no-pager", unit).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        assert exposure, said
        print(f"{here.name} {unit} {exposure[1]}")
        assert float(exposure[1]) <= BOUNDS[unit], said


@pytest.mark.parametrize("name", ["head", "worker1", "edge"])
def test_no_service_of_ours_runs_as_root(place, name):
    here = place(name)
    processes = [line.split() for line in here.run("ps", "-eo", "unit=,user:20=").stdout.splitlines()]
    for unit in units(here):
        owners = {owner for name, owner in processes if name == unit}
        # What is done once has no process any more: the firewall's rules are loaded by root.
        done = here.run("systemctl", "show", "--value", "-p", "Type", unit).stdout.strip() == "oneshot"
        assert (owners or done) and "root" not in owners, unit


def test_the_gateway_has_no_right_but_the_low_ports(place):
    here = place("edge")
    pid = here.run("systemctl", "show", "--value", "-p", "MainPID", "raymetal-gateway").stdout.strip()
    status = dict(line.split(":\t", 1) for line in here.read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {1 << 10}  # CAP_NET_BIND_SERVICE
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
