"""Route messages over media: built-in and custom topologies, as networkx graphs."""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec

from prism.errors import ConfigError
from prism.units import parse_rate, parse_seconds

Topology = Literal["access-point", "switch", "direct"]
Routes = dict[tuple[int, int], tuple[Any, ...]]
Graph = Any  # nx.Graph of ranks and of named relays; edges carry medium, rate_bps, latency_s


class Edge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link of a custom topology.

    between: numbers of devices as text ("0" is the leader), or names of relays. medium: links that name the same one
    share it; without one each direction has its own rate.
    """

    between: tuple[str, str]
    rate: str
    latency: str = "0ms"
    medium: str = ""


def _devices(ranks: int) -> Graph:
    import networkx as nx  # here and below: it takes a quarter of the time that prism-sim needs to start

    graph: Graph = nx.Graph()
    graph.add_nodes_from(range(ranks))
    return graph


def graph_of(edges: Sequence[Edge], ranks: int) -> "Graph":
    """Build the topology of `ranks` devices. Raises ConfigError where it can't be."""
    graph = _devices(ranks)
    for edge in edges:
        a, b = (int(name) if name.isdigit() else name for name in edge.between)
        graph.add_edge(
            a, b, medium=edge.medium or None, rate_bps=parse_rate(edge.rate), latency_s=parse_seconds(edge.latency)
        )
    check_topology(graph, ranks)
    return graph


def topology(kind: Topology, ranks: int, rate_bps: float, latency_s: float) -> Graph:
    """Build a built-in topology. latency_s: of a message between neighbours.

    access-point: every byte crosses the one air twice. switch: a full-duplex cable for each rank.
    direct: cables from rank to rank in a row; ranks pass on what isn't for them.
    """
    graph = _devices(ranks)
    if kind == "direct":
        for rank in range(ranks - 1):
            graph.add_edge(rank, rank + 1, medium=None, rate_bps=rate_bps, latency_s=latency_s)
        return graph
    hub, medium = ("ap", "air") if kind == "access-point" else ("switch", None)
    for rank in range(ranks):
        graph.add_edge(rank, hub, medium=medium, rate_bps=rate_bps, latency_s=latency_s / 2)
    return graph


def routes_of(graph: Graph, ranks: int) -> Routes:
    """Find the hops from every rank to every other. Raises ConfigError for a topology that can't be."""
    import networkx as nx

    check_topology(graph, ranks)
    return {
        (source, target): tuple(itertools.pairwise(nx.shortest_path(graph, source, target)))
        for source, target in itertools.permutations(range(ranks), 2)
    }


@lru_cache(maxsize=64)
def known_routes(kind: Topology, ranks: int) -> Routes:
    """Find the routes of a built-in topology, whatever its rates."""
    return routes_of(topology(kind, ranks, 1.0, 0.0), ranks)


def check_topology(graph: Graph, ranks: int, names: Sequence[str] = ()) -> None:
    """Check that there is one way between any two ranks. Raises ConfigError for an isolated device or a cycle."""
    import networkx as nx

    def called(node: Any) -> str:
        return names[node] if isinstance(node, int) and node < len(names) else str(node)

    reached = nx.node_connected_component(graph, 0)
    for rank in range(ranks):
        if rank not in reached:
            raise ConfigError(
                f"device {called(rank)} is isolated: no link leads to {called(0)}; add one to the topology"
            )
    if ranks > 1 and not nx.is_forest(graph):
        cycle = " - ".join(called(edge[0]) for edge in nx.find_cycle(graph))
        raise ConfigError(
            f"the topology has a cycle ({cycle}), so a message's way isn't unique; leave one of these links out"
        )
