"""Reads manifests as KServe's own Python models have them, in the environment that `make clients` makes.

    python kserve_models.py FILE…

Each field must be one that the model of its place knows, and of the kind that it has there. Prints kind and name.
"""

import re
import sys
from typing import Any

import kserve.models
import kubernetes.client.models
import yaml

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
PREFIX = {"serving.kserve.io/v1alpha1": "V1alpha1", "serving.kserve.io/v1beta1": "V1beta1"}


def model(name: str) -> Any:
    return getattr(kserve.models, name, None) or getattr(kubernetes.client.models, name)


def check(value: Any, kind: str, at: str) -> None:
    inner = re.fullmatch(r"([Ll]ist|[Dd]ict)[\[(](?:str, ?)?(.*)[\])]", kind)
    if inner:
        assert isinstance(value, {"list": list, "dict": dict}[inner[1].lower()]), f"{at}: {kind}"
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            check(one, inner[2], f"{at}.{key}")
    elif kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{at}: {value!r} is no {kind}"  # type: ignore[arg-type]
    elif kind == "ResourceQuantity":
        assert isinstance(value, str | int), at
    else:
        known = model(kind)
        names = {output: own for own, output in known.attribute_map.items()}
        assert isinstance(value, dict), f"{at}: {kind}"
        for key, one in value.items():
            assert key in names, f"{at}.{key}: {kind} has no such field"
            check(one, known.openapi_types[names[key]], f"{at}.{key}")
        known(**{names[key]: one for key, one in value.items()})  # which refuses to lack what it needs


for path in sys.argv[1:]:
    with open(path) as file:
        for manifest in yaml.safe_load_all(file):
            check(manifest, PREFIX[manifest["apiVersion"]] + manifest["kind"], manifest["kind"])
            print(manifest["kind"], manifest["metadata"]["name"])
