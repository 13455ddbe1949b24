#include "scenario.h"

#include <stdarg.h>
#include <stdlib.h>

#include "arena.h"
#include "settings.h"

enum { LINE_MAX_BYTES = 2 * BYTES_MAX + 64 };

struct reader {
    struct scenario *scenario;
    const struct setting_table *table; /* of the part that is read */
    void *part;
    unsigned line;
    bool ended;
};

__attribute__((format(printf, 2, 3))) static bool refuse(const struct reader *reader,
                                                         const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "netsim: line %u: ", reader->line);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return false;
}

static bool read_setting(struct reader *reader, const char *name, const char *value) {
    switch (setting_store(reader->table, reader->part, name, value)) {
    case SETTING_STORED:
        return true;
    case SETTING_WRONG:
        return refuse(reader, "%s: not %s, or out of bounds", value, name);
    default:
        return refuse(reader, "%s: no such setting here", name);
    }
}

/* ---- what has no table ----------------------------------------------------------------------- */

static bool read_mac(struct reader *reader, char *text) {
    unsigned octets[MAC_BYTES];
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &octets[0], &octets[1], &octets[2], &octets[3],
               &octets[4], &octets[5]) != MAC_BYTES)
        return refuse(reader, "%s: not a MAC address", text);
    for (int i = 0; i < MAC_BYTES; i++)
        reader->scenario->mac[i] = (uint8_t)octets[i];
    return true;
}

static bool read_gateway(struct reader *reader, char *text) {
    struct scenario *s = reader->scenario;
    if (s->gateway_count == GATEWAYS_MAX)
        return refuse(reader, "more than %d gateways", GATEWAYS_MAX);
    if (!parse_address(text, &s->gateways[s->gateway_count]))
        return refuse(reader, "%s: not an address", text);
    s->gateway_count++;
    return true;
}

static bool read_prefix(struct reader *reader, char *text) {
    struct scenario *s = reader->scenario;
    char address[LINE_MAX_BYTES];
    unsigned bits, behaviour, route = ROUTE_NONE;
    if (s->prefix_count == PREFIXES_MAX)
        return refuse(reader, "more than %d prefixes", PREFIXES_MAX);
    struct prefix *added = &s->prefixes[s->prefix_count];
    _Static_assert(LINE_MAX_BYTES > 255, "the next line relies on it");
    if (sscanf(text, "%255[^/]/%u %u %u", address, &bits, &behaviour, &route) < 3 ||
        !parse_address(address, &added->address))
        return refuse(reader, "%s: not a prefix and a behaviour", text);
    if (bits > address_size(added->address.family) * 8 || behaviour >= s->behaviour_count)
        return refuse(reader, "%s: no such prefix length or behaviour", text);
    if (route != ROUTE_NONE && route >= s->topology.route_count)
        return refuse(reader, "%s: no such route", text);
    added->bits = (uint8_t)bits;
    added->behaviour = behaviour;
    added->route = route;
    s->prefix_count++;
    return true;
}

static bool end(struct reader *reader, char *text) {
    const char *fault = topology_fault(&reader->scenario->topology);
    (void)text;
    if (fault != NULL)
        return refuse(reader, "%s", fault);
    return reader->ended = true;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* Begin a part, whose settings follow. */
static void begin(struct reader *reader, const struct setting_table *table, void *part) {
    reader->table = table;
    reader->part = part;
}

static bool add_behaviour(struct reader *reader, char *text) {
    struct scenario *s = reader->scenario;
    (void)text;
    if (s->behaviour_count == BEHAVIOURS_MAX)
        return refuse(reader, "more than %d behaviours", BEHAVIOURS_MAX);
    struct behaviour *added = &s->behaviours[s->behaviour_count++];
    added->reply_ttl = 64;
    added->duplicate_copies = 1;
    added->forged = added->corrupted = added->foreign_error = added->noise =
        (struct injection){.copies = 1, .kinds = 1, .delay_ns = DELAY_AROUND};
    begin(reader, &behaviour_settings, added);
    return true;
}

static bool add_router(struct reader *reader, char *text) {
    struct topology *t = &reader->scenario->topology;
    (void)text;
    if (t->router_count == ROUTERS_MAX)
        return refuse(reader, "more than %d routers", ROUTERS_MAX);
    struct router *added = &t->routers[t->router_count++];
    added->quoted_ttl = 1;
    added->reply_ttl = 255;
    added->tos = TOS_KEPT;
    added->copies = 1;
    begin(reader, &router_settings, added);
    return true;
}

static bool add_route(struct reader *reader, char *text) {
    struct topology *t = &reader->scenario->topology;
    (void)text;
    if (t->route_count == ROUTES_MAX)
        return refuse(reader, "more than %d routes", ROUTES_MAX);
    struct route *added = &t->routes[t->route_count++];
    added->first_node = t->node_count;
    added->reply_ttl = 64;
    begin(reader, &route_settings, added);
    return true;
}

static bool add_node(struct reader *reader, char *text) {
    struct topology *t = &reader->scenario->topology;
    unsigned router = strcmp(text, "host") == 0 ? ROUTER_NONE : ROUTER_DESTINATION;
    if (t->route_count == 0 || t->node_count == NODES_MAX)
        return refuse(reader, "no route, or more than %d nodes", NODES_MAX);
    if (strcmp(text, "host") != 0 && strcmp(text, "destination") != 0 &&
        sscanf(text, "%u", &router) != 1)
        return refuse(reader, "%s: not a router", text);
    t->nodes[t->node_count++] = (struct node){.router = router, .first_edge = t->edge_count};
    t->routes[t->route_count - 1].node_count++;
    return true;
}

static bool add_edge(struct reader *reader, char *text) {
    struct topology *t = &reader->scenario->topology;
    unsigned to;
    if (t->node_count == 0 || t->edge_count == EDGES_MAX || sscanf(text, "%u", &to) != 1)
        return refuse(reader, "%s: not a node, or more than %d edges", text, EDGES_MAX);
    struct edge *added = &t->edges[t->edge_count++];
    added->to = to;
    t->nodes[t->node_count - 1].edge_count++;
    begin(reader, &edge_settings, added);
    return true;
}

/* ---- lines ----------------------------------------------------------------------------------- */

static bool read_line(struct reader *reader, char *line) {
    static const struct {
        const char *name;
        bool (*read)(struct reader *reader, char *text);
    } words[] = {
        {"end", end},           {"mac", read_mac},     {"gateway", read_gateway},
        {"prefix", read_prefix}, {"router", add_router}, {"behaviour", add_behaviour},
        {"route", add_route},   {"node", add_node},    {"edge", add_edge},
    };
    char *value = strchr(line, ' ');
    if (value != NULL)
        *value++ = '\0';
    else
        value = line + strlen(line);
    if (reader->line == 1)
        return (strcmp(line, "netsim") == 0 && strcmp(value, "1") == 0) ||
               refuse(reader, "does not begin with: netsim 1");
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(line, words[i].name) == 0)
            return words[i].read(reader, value);
    return read_setting(reader, line, value);
}

bool scenario_read(struct scenario *scenario, FILE *from) {
    struct reader reader = {
        .scenario = scenario, .table = &scenario_settings, .part = scenario};
    char line[LINE_MAX_BYTES];
    *scenario = (struct scenario){
        .hosts_max = 1 << 20, .in_flight_max = 1 << 22, .ring_frames = 1 << 15};
    scenario->behaviours = arena_open(BEHAVIOURS_MAX, sizeof *scenario->behaviours);
    scenario->prefixes = arena_open(PREFIXES_MAX, sizeof *scenario->prefixes);
    topology_open(&scenario->topology);
    while (!reader.ended && fgets(line, sizeof line, from) != NULL) {
        reader.line++;
        line[strcspn(line, "\n")] = '\0';
        if (!read_line(&reader, line))
            return false;
    }
    return reader.ended || refuse(&reader, "ends without: end");
}

void scenario_free(struct scenario *scenario) {
    topology_close(&scenario->topology);
    arena_close(scenario->behaviours, BEHAVIOURS_MAX, sizeof *scenario->behaviours);
    arena_close(scenario->prefixes, PREFIXES_MAX, sizeof *scenario->prefixes);
}
