/* Zeroed arrays of a fixed size that take memory only where they are touched. */
#ifndef NETSIM_ARENA_H
#define NETSIM_ARENA_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Return n zeroed elements that never move; ends the program when there is no address space. */
static inline void *arena_open(size_t n, size_t element_bytes) {
    void *at = mmap(NULL, n * element_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("netsim: map memory");
        exit(EXIT_FAILURE);
    }
    return at;
}

static inline void arena_close(void *at, size_t n, size_t element_bytes) {
    munmap(at, n * element_bytes);
}

#endif
