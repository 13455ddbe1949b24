#include "settings.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "topology.h"

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

static bool parse_bytes(const char *text, struct bytes *bytes) {
    size_t digits = strlen(text);
    if (digits % 2 != 0 || digits / 2 > BYTES_MAX)
        return false;
    for (size_t i = 0; i < digits / 2; i++)
        if (sscanf(text + 2 * i, "%2hhx", &bytes->bytes[i]) != 1)
            return false;
    bytes->size = (uint32_t)(digits / 2);
    return true;
}

bool parse_address(const char *text, struct address *address) {
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

static bool store_number(const struct setting *setting, void *field, const char *text) {
    double number;
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

static bool store(const struct setting *setting, void *into, const char *text) {
    void *field = (char *)into + setting->offset;
    switch (setting->type) {
    case SETTING_ADDRESS:
        return store_address(setting, field, text);
    case SETTING_SEED:
        return parse_seed(text, field);
    case SETTING_BYTES:
        return parse_bytes(text, field);
    default:
        return store_number(setting, field, text);
    }
}

enum setting_result setting_store(const struct setting_table *table, void *into, const char *name,
                                  const char *value) {
    for (size_t i = 0; i < table->n; i++)
        if (strcmp(table->settings[i].name, name) == 0)
            return store(&table->settings[i], into, value) ? SETTING_STORED : SETTING_WRONG;
    return SETTING_UNKNOWN;
}
