/* SPDX-License-Identifier: MIT
 *
 * Writes the benchmark's large qcow2: every 64 KiB cluster of a disk of 1 TiB and 1 GiB is
 * allocated, and they lie in the file in random order. Sparse: only metadata is written (162 MiB),
 * the data is one hole. In this order: header, refcount table, L1 table, refcount blocks, L2
 * tables, data.
 *
 *     bench-image FILE SEED
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

enum { BITS = 16, CLUSTER = 1 << BITS, PER_TABLE = CLUSTER / 8, PER_BLOCK = CLUSTER / 2 };

#define SIZE ((1ull << 40) + (1ull << 30))
#define DATA (SIZE >> BITS) /* clusters */
#define TABLES (DATA / PER_TABLE)
#define BLOCKS ((3 + TABLES + DATA) / PER_BLOCK + 1)
#define FIRST_TABLE (3 + BLOCKS)
#define FIRST_DATA (FIRST_TABLE + TABLES)
#define COPIED (1ull << 63)

static uint64_t state;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void put(uint8_t *p, int bytes, uint64_t v)
{
    while (bytes--) {
        p[bytes] = (uint8_t)v;
        v >>= 8;
    }
}

static void write_cluster(int fd, uint64_t cluster, const void *data)
{
    if (pwrite(fd, data, CLUSTER, (off_t)(cluster << BITS)) != CLUSTER) {
        perror("bench-image");
        exit(1);
    }
}

/* `cnt` offsets of clusters from `first` on, of which each entry is one. */
static void write_offsets(int fd, uint64_t at, uint64_t first, uint64_t cnt, uint64_t flags)
{
    static uint8_t buf[CLUSTER];
    memset(buf, 0, sizeof buf);
    for (uint64_t i = 0; i < cnt; i++)
        put(buf + i * 8, 8, (first + i) << BITS | flags);
    write_cluster(fd, at, buf);
}

static void write_header(int fd)
{
    static uint8_t h[CLUSTER];
    put(h, 4, 0x514649fb);
    put(h + 4, 4, 3);
    put(h + 20, 4, BITS);
    put(h + 24, 8, SIZE);
    put(h + 36, 4, TABLES);
    put(h + 40, 8, 2ull << BITS);
    put(h + 48, 8, 1ull << BITS);
    put(h + 56, 4, 1);
    put(h + 96, 4, 4);
    put(h + 100, 4, 104);
    write_cluster(fd, 0, h);
}

static void write_counts(int fd)
{
    static uint8_t buf[CLUSTER];
    for (uint64_t b = 0; b < BLOCKS; b++) {
        for (uint64_t i = 0; i < PER_BLOCK; i++)
            put(buf + i * 2, 2, b * PER_BLOCK + i < FIRST_DATA + DATA);
        write_cluster(fd, 3 + b, buf);
    }
}

static void write_tables(int fd)
{
    static uint8_t buf[CLUSTER];
    uint32_t *order = malloc(DATA * sizeof *order);
    if (!order)
        exit(1);
    for (uint64_t i = 0; i < DATA; i++) { /* inside out */
        uint64_t j = rnd() % (i + 1);
        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
    for (uint64_t t = 0; t < TABLES; t++) {
        for (uint64_t i = 0; i < PER_TABLE; i++)
            put(buf + i * 8, 8, (FIRST_DATA + order[t * PER_TABLE + i]) << BITS | COPIED);
        write_cluster(fd, FIRST_TABLE + t, buf);
    }
    free(order);
}

int main(int argc, char **argv)
{
    int fd = argc == 3 ? open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0666) : -1;
    if (fd < 0 || ftruncate(fd, (off_t)((FIRST_DATA + DATA) << BITS)) < 0) {
        fprintf(stderr, "usage: bench-image FILE SEED, where a sparse file of 1 TiB can be\n");
        return 1;
    }
    state = strtoull(argv[2], NULL, 0) | 1;
    write_header(fd);
    write_offsets(fd, 1, 3, BLOCKS, 0);
    write_offsets(fd, 2, FIRST_TABLE, TABLES, COPIED);
    write_counts(fd);
    write_tables(fd);
    return close(fd) < 0;
}
