/* Values of the text that is read: `NAME VALUE`, by tables that say where each goes. */
#ifndef NETSIM_SETTINGS_H
#define NETSIM_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "address.h"

enum setting_type {
    SETTING_COUNT,   /* uint32_t */
    SETTING_NS,      /* int64_t */
    SETTING_REAL,    /* double */
    SETTING_ADDRESS, /* struct address; its bounds are its family */
    SETTING_SEED,    /* uint64_t, without bounds */
    SETTING_BYTES,   /* struct bytes, in hexadecimal digits, without bounds */
};

struct setting {
    const char *name;
    enum setting_type type;
    size_t offset;
    double min;
    double max;
};

struct setting_table {
    const struct setting *settings;
    size_t n;
};

enum setting_result { SETTING_STORED, SETTING_WRONG, SETTING_UNKNOWN };

/* Read the value of a setting into the structure the table is of. */
enum setting_result setting_store(const struct setting_table *table, void *into, const char *name,
                                  const char *value);

/* An address of either family. */
bool parse_address(const char *text, struct address *address);

/* What there are tables for. */
extern const struct setting_table scenario_settings;
extern const struct setting_table behaviour_settings;
extern const struct setting_table router_settings;
extern const struct setting_table route_settings;
extern const struct setting_table edge_settings;

#endif
