"""What schemathesis has to know of a VMM that an OpenAPI document cannot say.

Before each request the virtual machine is brought into the state that VM_STATE names. Paths stay
inside of the VMM's folder. A virtual machine that was created is booted.
"""

import atexit
import http.client
import itertools
import json
import os

import schemathesis

STATE = os.environ["VM_STATE"]
KERNEL = os.environ["VM_KERNEL"]
PORT = int(os.environ["API_PORT"])

# What leads from no virtual machine to each state.
WAYS = {
    "None": [],
    "Created": ["vm.create"],
    "Running": ["vm.create", "vm.boot"],
    "Paused": ["vm.create", "vm.boot", "vm.pause"],
    "Shutdown": ["vm.create", "vm.boot", "vm.shutdown"],
}
# vCPUs beyond which booting takes long.
MANY_VCPUS = 8

count = itertools.count()
# What became of requests, so that a run in which nothing happened is noticed.
seen = {"created": 0, "booted": 0}


@atexit.register
def say_what_was_seen():
    with open("seen.json", "w", encoding="utf-8") as file:
        json.dump(seen, file)


def put(route, body=None):
    """Asks for something; returns the status and what was answered."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    text = json.dumps(body) if body is not None else None
    method = "GET" if route == "vm.info" else "PUT"
    connection.request(method, f"/api/v1/{route}", text, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, json.loads(answer) if answer else None


def plain():
    """A virtual machine with two NUMA nodes whose guest does nothing for as long as it is let."""
    home = {"guest_numa_id": 0, "cpus": [0], "memory_zones": ["mem0"]}
    return {
        "payload": {"kernel": KERNEL, "cmdline": os.environ["VM_WORDS"]},
        "memory": {"size": 64 << 20},
        "numa": [home, {"guest_numa_id": 1}],
    }


def bring_about():
    """Brings the virtual machine into the state that this run is about."""
    assert put("vm.delete") == (204, None)
    for route in WAYS[STATE]:
        status, answer = put(route, plain() if route == "vm.create" else None)
        assert status == 204, (route, status, answer)


def contain(value):
    """The same with every path in it inside of the folder that the VMM runs in."""
    if isinstance(value, list):
        return [contain(item) for item in value]
    if not isinstance(value, dict):
        return value
    contained = {}
    for key, item in value.items():
        if key in ("file", "initramfs", "kernel", "path", "socket") and isinstance(item, str):
            # Of the same length, which may be what is wrong with it.
            item = item.replace("/", "_").replace("..", "__")
        contained[key] = contain(item)
    return contained


def bootable(config):
    """A configuration in which nothing contradicts anything, with the rest as it was."""
    config = dict(config)
    config["payload"] = dict(config["payload"], kernel=KERNEL, initramfs=None)
    config["memory"] = plain()["memory"]
    for key in ("devices", "user_devices", "numa", "pci_segments", "debug_console"):
        config[key] = None
    if isinstance(config.get("cpus"), dict):
        cpus = dict(config["cpus"], topology=None, affinity=None)
        # Fewer bits hold no RAM.
        if cpus.get("max_phys_bits") is not None:
            cpus["max_phys_bits"] = max(cpus["max_phys_bits"], 36)
        cpus["boot_vcpus"] = min(cpus["boot_vcpus"], MANY_VCPUS)
        cpus["max_vcpus"] = max(cpus["boot_vcpus"], min(cpus["max_vcpus"], MANY_VCPUS))
        config["cpus"] = cpus
    if isinstance(config.get("platform"), dict):
        config["platform"] = dict(config["platform"], serial_number=None, uuid=None, acpi=True)
    # What disks and sources of randomness would be opened is nowhere; interfaces of this machine are left
    # alone.
    config["disks"] = None
    config["net"] = None
    if isinstance(config.get("rng"), dict):
        config["rng"] = dict(config["rng"], src="/dev/urandom")
    if isinstance(config.get("vsock"), dict):
        config["vsock"] = dict(config["vsock"], socket="vsock")
    for key in ("serial", "console"):
        if isinstance(config.get(key), dict):
            mode = config[key]["mode"]
            # There is one terminal, which only one of them can have.
            config[key] = {"mode": "Null" if mode == "Tty" else mode}
            if mode in ("File", "Socket"):
                # A socket would be where a file is.
                config[key][mode.lower()] = f"{key}.{mode.lower()}"
    return config


@schemathesis.hook
def before_call(context, case, kwargs):
    bring_about()
    case.body = contain(case.body)
    creates = case.operation.path == "/vm.create"
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    # Every other one, so that both what is refused and what boots are seen.
    if creates and positive and next(count) % 2:
        case.body = bootable(case.body)


@schemathesis.check
def what_was_created_boots_or_says_why(context, response, case):
    if case.operation.path != "/vm.create" or response.status_code != 204:
        return
    seen["created"] += 1
    status, info = put("vm.info")
    assert status == 200 and info["state"] == "Created", (status, info)
    # What is given back can be given again.
    assert put("vm.delete")[0] == 204
    status, answer = put("vm.create", info["config"])
    assert status == 204, (status, answer, info)
    assert put("vm.info") == (200, info)
    if info["config"]["cpus"]["max_vcpus"] > MANY_VCPUS or info["config"].get("net"):
        return
    status, answer = put("vm.boot")
    boots = info["config"]["payload"]["kernel"] == KERNEL
    assert status == 204 or not boots, (answer, info["config"])
    assert status in (204, 500), (status, answer)
    seen["booted"] += status == 204
    states = ["Running"] if status == 204 else ["Created", "Shutdown"]
    status, info = put("vm.info")
    assert status == 200 and info["state"] in states, (status, info)
