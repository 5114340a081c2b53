"""A Ray cluster of two nodes on this machine, for tests: prints its address, kills the second when it reads a line."""

import sys

import ray
from ray.cluster_utils import Cluster

STORE = 100 << 20  # bytes of each node's object store

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
others = [cluster.add_node(num_cpus=1, object_store_memory=STORE)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(others.pop(), allow_graceful=False)
    print("gone", flush=True)
ray.shutdown()
cluster.shutdown()
