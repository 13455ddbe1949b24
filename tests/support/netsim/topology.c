#include "topology.h"

#include "arena.h"

void topology_open(struct topology *topology) {
    *topology = (struct topology){
        .routers = arena_open(ROUTERS_MAX, sizeof *topology->routers),
        .routes = arena_open(ROUTES_MAX, sizeof *topology->routes),
        .nodes = arena_open(NODES_MAX, sizeof *topology->nodes),
        .edges = arena_open(EDGES_MAX, sizeof *topology->edges),
    };
}

void topology_close(struct topology *topology) {
    arena_close(topology->routers, ROUTERS_MAX, sizeof *topology->routers);
    arena_close(topology->routes, ROUTES_MAX, sizeof *topology->routes);
    arena_close(topology->nodes, NODES_MAX, sizeof *topology->nodes);
    arena_close(topology->edges, EDGES_MAX, sizeof *topology->edges);
}

static const char *node_fault(const struct topology *topology, const struct route *route,
                              uint32_t index) {
    const struct node *node = &topology->nodes[route->first_node + index];
    if ((node->router == ROUTER_NONE) != (index == 0))
        return "not the first node alone is the host";
    if (node->router < ROUTER_DESTINATION && node->router >= topology->router_count)
        return "a node is no router";
    if (node->router == ROUTER_DESTINATION && node->edge_count != 0)
        return "a destination has edges";
    for (uint32_t i = 0; i < node->edge_count; i++) {
        uint32_t to = topology->edges[node->first_edge + i].to;
        if (to == 0 || to >= route->node_count)
            return "an edge leads to no node";
    }
    return NULL;
}

const char *topology_fault(const struct topology *topology) {
    for (uint32_t i = 0; i < topology->route_count; i++) {
        const struct route *route = &topology->routes[i];
        const char *fault = route->node_count == 0 ? "a route has no nodes" : NULL;
        for (uint32_t node = 0; fault == NULL && node < route->node_count; node++)
            fault = node_fault(topology, route, node);
        if (fault != NULL)
            return fault;
    }
    return NULL;
}
