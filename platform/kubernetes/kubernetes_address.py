"""Where a service answers: a load balancer's address or host name, a node's port, an address in the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kubernetes_cluster import Cluster
from kubernetes_options import CLUSTER_IP, LOAD_BALANCER, NODE_PORT

from inference_service.contracts import PlatformStatus, Progress, Report
from inference_service.errors import Need, ToolError

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 5.0


def url(host: str, port: int) -> str:
    """The URL of a host, which may be an IPv6 address, and a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def load_balancer_host(service: Mapping[str, Any]) -> str | None:
    """The address that the cloud gave a Service, or its host name (AWS gives no address); None while it has neither."""
    for ingress in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ():
        host = ingress.get("ip") or ingress.get("hostname")
        if host:
            return str(host)
    return None


def wait_for_load_balancer(
    cluster: Cluster, namespace: str, name: str, timeout: float, status: Callable[[], PlatformStatus], report: Report
) -> str | None:
    """The host that the cloud gives the Service; None when none came within `timeout` seconds.

    Raises:
        ToolError: the Service is gone, or its pod died meanwhile.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
    while True:
        service = cluster.ask_or_none(cluster.core.read_namespaced_service, name, namespace)
        if service is None:
            raise ToolError("service_gone", f"somebody removed the Service {name} while it started", "start it again")
        host = load_balancer_host(service)
        if host:
            return host
        now = status()
        if now.dead:
            raise ToolError(
                "service_died",
                f"its pod ended before the load balancer had an address: {now.reason}",
                "correct that and start it again",
            )
        left = timeout - (time.monotonic() - began)
        if left <= 0:
            return None
        pending = f"; its pod: {now.reason}" if now.reason else ""
        report(Progress("address", f"waiting for the load balancer's address{pending}"))
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)


def question_without_address(name: str, timeout: float) -> Need:
    """What the user is asked when no address comes (facts: kubernetes)."""
    return Need(
        name="service_type",
        question=f"the cluster gave the Service {name} no address within {timeout:g} s: how else is it to be reached?",
        answer_with="--service-type",
        options=[
            {
                "service_type": CLUSTER_IP,
                "means": "through a port of this machine that is forwarded into the cluster; works everywhere",
            },
            {"service_type": NODE_PORT, "means": "through a port of the cluster's nodes, if this machine reaches them"},
            {"service_type": LOAD_BALANCER, "means": "wait longer: --address-timeout"},
        ],
    )


def node_host(cluster: Cluster, chosen: str | None) -> str:
    """The host that NodePorts are reached by: the one chosen, else a ready node's external, else internal address.

    Raises:
        ToolError: no node has an address, or this account may not list nodes.
    """
    if chosen:
        return chosen
    try:
        nodes = cluster.ask(cluster.core.list_node)["items"]
    except ToolError as error:
        if error.type != "kubernetes_forbidden":
            raise
        raise ToolError(
            "node_address_unknown",
            "this account may not list nodes, so their addresses are not known",
            "add --node-address HOST",
        ) from error
    host = best_node_address(nodes)
    if host is None:
        raise ToolError("node_address_unknown", "no ready node has an address", "add --node-address HOST")
    return host


def best_node_address(nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """The external address of the first ready node that has one, else an internal one."""
    for kind in ("ExternalIP", "ExternalDNS", "InternalIP", "Hostname"):
        for node in nodes:
            conditions = node["status"].get("conditions") or ()
            ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
            for address in node["status"].get("addresses") or ():
                if ready and address["type"] == kind:
                    return str(address["address"])
    return None


def node_port(service: Mapping[str, Any]) -> int:
    """The port of the nodes that the Service answers on."""
    return int(service["spec"]["ports"][0]["nodePort"])


def port(service: Mapping[str, Any]) -> int:
    """The Service's own port."""
    return int(service["spec"]["ports"][0]["port"])
