"""Print the options of the installed `ray start` as roles/ray_node/vars/main/options.yml: `make lock` runs it."""

import ray
from ray.scripts.scripts import start

print(f"---\n# Made by `make lock` from the click command of Ray {ray.__version__}, hidden options included.")
print("__ray_node_known_options:")
for option in sorted(start.params, key=lambda p: p.name):
    if option.is_flag:
        kind = "switch"
    elif getattr(option.type, "choices", None):
        kind = "choice:" + "|".join(option.type.choices)
    else:
        kind = {"loads": "json", "integer range": "integer"}.get(option.type.name, option.type.name)
    print(f'  {option.name}: {{flag: {option.opts[-1]}, type: "{kind}"}}')
