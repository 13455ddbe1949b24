#include "scenario.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>

enum { LINE_MAX_BYTES = 256 };

enum setting_type { SETTING_COUNT, SETTING_NS, SETTING_REAL, SETTING_ADDRESS, SETTING_SEED };

struct setting {
    const char *name;
    enum setting_type type;
    size_t offset;
    double min;
    double max;
};

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

static const struct setting behaviour_settings[] = {
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

static const struct setting scenario_settings[] = {
    {"seed", SETTING_SEED, AT(seed), 0, 0},
    COUNT("hosts_max", hosts_max, 1, 1 << 26),
    COUNT("in_flight_max", in_flight_max, 1, 1 << 26),
    COUNT("ring_frames", ring_frames, 64, 1 << 18),
    COUNT("record_probes", record_probes, 0, 1),
};

struct reader {
    struct scenario *scenario;
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

static bool parse_number(const char *text, double *number) {
    char *end;
    errno = 0;
    *number = strtod(text, &end);
    return end != text && *end == '\0' && errno == 0;
}

static bool parse_seed(const char *text, uint64_t *seed) {
    char *end;
    errno = 0;
    *seed = strtoull(text, &end, 10);
    return end != text && *end == '\0' && errno == 0;
}

static bool parse_address(const char *text, struct address *address) {
    *address = (struct address){.family = strchr(text, ':') == NULL ? 4 : 6};
    return inet_pton(address->family == 4 ? AF_INET : AF_INET6, text, address->bytes) == 1;
}

static bool store_address(const struct setting *setting, void *field, const char *text) {
    struct address address;
    if (!parse_address(text, &address) || address.family != setting->min)
        return false;
    memcpy(field, &address, sizeof address);
    return true;
}

static bool store(const struct setting *setting, void *into, const char *text) {
    void *field = (char *)into + setting->offset;
    double number;
    if (setting->type == SETTING_ADDRESS)
        return store_address(setting, field, text);
    if (setting->type == SETTING_SEED)
        return parse_seed(text, field);
    if (!parse_number(text, &number) || !(number >= setting->min && number <= setting->max))
        return false;
    if (setting->type == SETTING_REAL)
        memcpy(field, &number, sizeof number);
    else if (setting->type == SETTING_COUNT)
        memcpy(field, &(uint32_t){(uint32_t)number}, sizeof(uint32_t));
    else
        memcpy(field, &(int64_t){(int64_t)number}, sizeof(int64_t));
    return true;
}

static bool read_setting(const struct reader *reader, const struct setting *settings, size_t n,
                         void *into, const char *name, const char *value) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(settings[i].name, name) != 0)
            continue;
        if (store(&settings[i], into, value))
            return true;
        return refuse(reader, "%s: not %s, or out of bounds", value, name);
    }
    return refuse(reader, "%s: no such setting here", name);
}

static bool read_mac(const struct reader *reader, const char *text) {
    unsigned octets[MAC_BYTES];
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &octets[0], &octets[1], &octets[2], &octets[3],
               &octets[4], &octets[5]) != MAC_BYTES)
        return refuse(reader, "%s: not a MAC address", text);
    for (int i = 0; i < MAC_BYTES; i++)
        reader->scenario->mac[i] = (uint8_t)octets[i];
    return true;
}

static bool read_gateway(const struct reader *reader, const char *text) {
    struct scenario *s = reader->scenario;
    if (s->gateway_count == GATEWAYS_MAX)
        return refuse(reader, "more than %d gateways", GATEWAYS_MAX);
    if (!parse_address(text, &s->gateways[s->gateway_count]))
        return refuse(reader, "%s: not an address", text);
    s->gateway_count++;
    return true;
}

static bool add_behaviour(const struct reader *reader) {
    struct scenario *s = reader->scenario;
    if (s->behaviour_count == BEHAVIOURS_MAX)
        return refuse(reader, "more than %d behaviours", BEHAVIOURS_MAX);
    struct behaviour *added = &s->behaviours[s->behaviour_count++];
    added->reply_ttl = 64;
    added->duplicate_copies = 1;
    added->forged = added->corrupted = added->foreign_error = added->noise =
        (struct injection){.copies = 1, .kinds = 1, .delay_ns = DELAY_AROUND};
    return true;
}

static bool read_prefix(const struct reader *reader, char *text) {
    struct scenario *s = reader->scenario;
    char address[LINE_MAX_BYTES];
    unsigned bits, behaviour;
    if (s->prefix_count == PREFIXES_MAX)
        return refuse(reader, "more than %d prefixes", PREFIXES_MAX);
    struct prefix *added = &s->prefixes[s->prefix_count];
    if (sscanf(text, "%255[^/]/%u %u", address, &bits, &behaviour) != 3 ||
        !parse_address(address, &added->address))
        return refuse(reader, "%s: not a prefix and a behaviour", text);
    if (bits > address_size(added->address.family) * 8 || behaviour >= s->behaviour_count)
        return refuse(reader, "%s: no such prefix length or behaviour", text);
    added->bits = (uint8_t)bits;
    added->behaviour = behaviour;
    s->prefix_count++;
    return true;
}

static bool read_line(struct reader *reader, char *line) {
    struct scenario *s = reader->scenario;
    char *value = strchr(line, ' ');
    if (value != NULL)
        *value++ = '\0';
    else
        value = line + strlen(line);
    if (reader->line == 1)
        return (strcmp(line, "netsim") == 0 && strcmp(value, "1") == 0) ||
               refuse(reader, "does not begin with: netsim 1");
    if (strcmp(line, "end") == 0)
        return reader->ended = true;
    if (strcmp(line, "mac") == 0)
        return read_mac(reader, value);
    if (strcmp(line, "gateway") == 0)
        return read_gateway(reader, value);
    if (strcmp(line, "behaviour") == 0)
        return add_behaviour(reader);
    if (strcmp(line, "prefix") == 0)
        return read_prefix(reader, value);
    if (s->behaviour_count == 0)
        return read_setting(reader, scenario_settings,
                            sizeof scenario_settings / sizeof *scenario_settings, s, line, value);
    return read_setting(reader, behaviour_settings,
                        sizeof behaviour_settings / sizeof *behaviour_settings,
                        &s->behaviours[s->behaviour_count - 1], line, value);
}

bool scenario_read(struct scenario *scenario, FILE *from) {
    struct reader reader = {.scenario = scenario};
    char line[LINE_MAX_BYTES];
    *scenario = (struct scenario){
        .hosts_max = 1 << 20, .in_flight_max = 1 << 22, .ring_frames = 1 << 15};
    scenario->behaviours = calloc(BEHAVIOURS_MAX, sizeof *scenario->behaviours);
    scenario->prefixes = calloc(PREFIXES_MAX, sizeof *scenario->prefixes);
    if (scenario->behaviours == NULL || scenario->prefixes == NULL)
        return refuse(&reader, "no memory");
    while (!reader.ended && fgets(line, sizeof line, from) != NULL) {
        reader.line++;
        line[strcspn(line, "\n")] = '\0';
        if (!read_line(&reader, line))
            return false;
    }
    return reader.ended || refuse(&reader, "ends without: end");
}

void scenario_free(struct scenario *scenario) {
    free(scenario->behaviours);
    free(scenario->prefixes);
}
