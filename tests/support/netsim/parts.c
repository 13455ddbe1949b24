/* The settings of each part of a scenario: names, places and bounds. */
#include "scenario.h"
#include "settings.h"

#define AT(field) offsetof(struct behaviour, field)
#define SHARE(name, field) {name, SETTING_REAL, AT(field), 0, 1}
#define COUNT(name, field, min, max) {name, SETTING_COUNT, AT(field), min, max}
#define REAL(name, field, max) {name, SETTING_REAL, AT(field), 0, max}
#define DELAY(name, field) {name, SETTING_NS, AT(field), 0, (double)DELAY_MAX_NS}
#define ADDRESS(name, field, family) {name, SETTING_ADDRESS, AT(field), family, family}

#define DISTRIBUTION(name, field)                                                                 \
    COUNT(name ".kind", field.kind, 0, DISTRIBUTION_KINDS - 1),                                   \
        REAL(name ".location_ns", field.location_ns, (double)DELAY_MAX_NS),                       \
        REAL(name ".spread", field.spread, (double)DELAY_MAX_NS),                                 \
        DELAY(name ".min_ns", field.min_ns), DELAY(name ".max_ns", field.max_ns)

#define ICMP_ERROR(name, field)                                                                   \
    COUNT(name ".type4", field.type4, 0, 255), COUNT(name ".code4", field.code4, 0, 255),         \
        COUNT(name ".type6", field.type6, 0, 255), COUNT(name ".code6", field.code6, 0, 255),     \
        ADDRESS(name ".from4", field.from4, 4), ADDRESS(name ".from6", field.from6, 6),           \
        COUNT(name ".quoted_bytes", field.quoted_bytes, 0, 1500)

#define INJECTION(name, field, kinds_n)                                                           \
    SHARE(name ".share", field.share), COUNT(name ".copies", field.copies, 1, COPIES_MAX),        \
        COUNT(name ".kinds", field.kinds, 1, (1 << (kinds_n)) - 1),                               \
        {name ".delay_ns", SETTING_NS, AT(field.delay_ns), DELAY_AROUND, (double)DELAY_MAX_NS}

static const struct setting behaviour_parts[] = {
    DISTRIBUTION("host_delay", host_delay),
    DISTRIBUTION("jitter", jitter),
    COUNT("reply_ttl", reply_ttl, 1, 255),
    SHARE("loss", loss),
    SHARE("burst_loss.to_bad", burst_loss.to_bad),
    SHARE("burst_loss.to_good", burst_loss.to_good),
    SHARE("burst_loss.loss_good", burst_loss.loss_good),
    SHARE("burst_loss.loss_bad", burst_loss.loss_bad),
    SHARE("reorder.share", reorder_share),
    DELAY("reorder.delay_ns", reorder_delay_ns),
    SHARE("duplicate.share", duplicate_share),
    COUNT("duplicate.copies", duplicate_copies, 1, COPIES_MAX),
    DELAY("duplicate.spacing_ns", duplicate_spacing_ns),
    SHARE("elsewhere.share", elsewhere_share),
    ADDRESS("elsewhere.from4", elsewhere4, 4),
    ADDRESS("elsewhere.from6", elsewhere6, 6),
    SHARE("truncate.share", truncate_share),
    COUNT("truncate.payload_bytes", truncate_payload_bytes, 0, 1500),
    SHARE("error.share", error_share),
    ICMP_ERROR("error", error),
    COUNT("rate_limit.scope", rate_limit.scope, 0, LIMIT_SCOPES - 1),
    REAL("rate_limit.per_second", rate_limit.per_second, 1e9),
    REAL("rate_limit.burst", rate_limit.burst, 1e9),
    COUNT("rate_limit.says_error", rate_limit.says_error, 0, 1),
    ICMP_ERROR("rate_limit", rate_limit.error),
    INJECTION("forged", forged, FORGED_KINDS),
    INJECTION("corrupted", corrupted, CORRUPTED_KINDS),
    INJECTION("foreign_error", foreign_error, FOREIGN_KINDS),
    ICMP_ERROR("foreign_error", foreign),
    INJECTION("noise", noise, NOISE_KINDS),
};

#undef AT
#define AT(field) offsetof(struct scenario, field)

static const struct setting scenario_parts[] = {
    {"seed", SETTING_SEED, AT(seed), 0, 0},
    COUNT("hosts_max", hosts_max, 1, 1 << 26),
    COUNT("in_flight_max", in_flight_max, 1, 1 << 26),
    COUNT("ring_frames", ring_frames, 64, 1 << 18),
    COUNT("record_probes", record_probes, 0, 1),
};

#undef AT
#define AT(field) offsetof(struct router, field)

static const struct setting router_parts[] = {
    ADDRESS("address4", address4, 4),
    ADDRESS("address6", address6, 6),
    COUNT("silent", is_silent, 0, 1),
    COUNT("balance", balance, 0, BALANCES - 1),
    {"seed", SETTING_SEED, AT(seed), 0, 0},
    REAL("limit.per_second", limit_per_second, 1e9),
    REAL("limit.burst", limit_burst, 1e9),
    COUNT("quoted_bytes", quoted_bytes, 0, 1500),
    COUNT("quoted_ttl", quoted_ttl, 0, 1),
    COUNT("reply_ttl", reply_ttl, 1, 255),
    COUNT("tos", tos, 0, TOS_KEPT),
    DELAY("answer_delay_ns", answer_delay_ns),
    COUNT("copies", copies, 1, COPIES_MAX),
    {"extension", SETTING_BYTES, AT(extension), 0, 0},
    COUNT("extension.length", extension_length, 0, LENGTH_FIELDS - 1),
    ADDRESS("nat.address4", nat.address4, 4),
    ADDRESS("nat.address6", nat.address6, 6),
    COUNT("nat.ports", nat.has_ports, 0, 1),
    COUNT("nat.restores", nat.restores, 0, RESTORES - 1),
    COUNT("refuses.protocols", refusal.protocols, 0, REFUSES_ANY),
    COUNT("refuses.first", refusal.is_first, 0, 1),
    COUNT("refuses.silently", refusal.is_silent, 0, 1),
    COUNT("refuses.type4", refusal.type4, 0, 255),
    COUNT("refuses.code4", refusal.code4, 0, 255),
    COUNT("refuses.type6", refusal.type6, 0, 255),
    COUNT("refuses.code6", refusal.code6, 0, 255),
};

#undef AT
#define AT(field) offsetof(struct route, field)

static const struct setting route_parts[] = {
    COUNT("return_hops", return_hops, 0, 255),
    COUNT("echo", echo, 0, ECHO_ANSWERS - 1),
    COUNT("udp", udp, 0, UDP_ANSWERS - 1),
    COUNT("tcp", tcp, 0, TCP_ANSWERS - 1),
    ADDRESS("from4", from4, 4),
    ADDRESS("from6", from6, 6),
    COUNT("quoted_bytes", quoted_bytes, 0, 1500),
    COUNT("reply_ttl", reply_ttl, 1, 255),
    REAL("limit.per_second", limit_per_second, 1e9),
    REAL("limit.burst", limit_burst, 1e9),
};

#undef AT
#define AT(field) offsetof(struct edge, field)

static const struct setting edge_parts[] = {
    COUNT("mtu", mtu, 0, 65535),
    COUNT("reported_mtu", reported_mtu, 0, 65535),
    COUNT("black_hole", is_black_hole, 0, 1),
    DELAY("delay_ns", delay_ns),
    DELAY("return_delay_ns", return_delay_ns),
    DELAY("jitter_ns", jitter_ns),
    SHARE("loss", loss),
    SHARE("return_loss", return_loss),
};

#define TABLE(parts) {parts, sizeof parts / sizeof *parts}

const struct setting_table scenario_settings = TABLE(scenario_parts);
const struct setting_table behaviour_settings = TABLE(behaviour_parts);
const struct setting_table router_settings = TABLE(router_parts);
const struct setting_table route_settings = TABLE(route_parts);
const struct setting_table edge_settings = TABLE(edge_parts);
