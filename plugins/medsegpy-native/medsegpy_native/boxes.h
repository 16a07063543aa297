/* Read boxes of files. */
#ifndef MEDSEGPY_BOXES_H
#define MEDSEGPY_BOXES_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "voxels.h"

/* A system call costs about as much as copying this many bytes, so smaller gaps between runs are read too. */
#define GAP (12 << 10)
/* Bytes to convert at once, so that they stay in the cache of a core. */
#define BLOCK (128 << 10)

/* A box to read. medsegpy_core.hdf5.native passes jobs as rows of int64. */
typedef struct {
    int64_t text;            /* offset of stamp and path in `texts`; -1: `fd` is open */
    int64_t fd;              /* an open file whose stamp the caller has checked; -1: none */
    int64_t map;             /* index of the file's map in `maps`; -1: read the file */
    int64_t offset;          /* offset of the first voxel in the file, in bytes */
    int64_t count0, stride0; /* the outer axis: number of rows, and bytes between them */
    int64_t count1, stride1; /* the middle axis: number of runs, and bytes between them */
    int64_t run;             /* contiguous voxels */
    int64_t item;            /* bytes per voxel in the file */
    int64_t kind;            /* the stored type */
    int64_t out;             /* offset of the box in the output, in bytes; C order */
    int64_t status;          /* the result */
} Job;
_Static_assert(sizeof(Job) == 13 * sizeof(int64_t), "a job is a row of 13 int64");

typedef struct {
    int fd;
    const uint8_t *map;
    int64_t map_size;
    uint8_t *scratch;
    size_t scratch_size;
    Table table;
    int streaming;                       /* whether the output is larger than the caches */
    double opening, reading, converting; /* seconds */
    int64_t fetched;                     /* bytes */
} Work;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Return the bytes per voxel in the output; 0: the job is invalid. */
static int64_t out_item(const Job *job, const Table *table) {
    switch (job->kind) {
        case COPY: return job->item > 0 ? job->item : 0;
        case PLANES: return job->item >= 1 && job->item <= 8 ? (int64_t)table->entry : 0;
        case BITS: return job->item == 1 ? (int64_t)table->entry : 0;
        default: return job->kind >= I8 && job->kind <= F32_SWAPPED && job->item == TO_FLOATS[job->kind].item ? 4 : 0;
    }
}

static int convert(const Job *job, const Table *table, const uint8_t *from, size_t voxels, uint8_t *out,
                   int streaming) {
    switch (job->kind) {
        case COPY: copy(out, from, voxels * (size_t)job->item, streaming); return DONE;
        case PLANES: return expand(from, voxels, (size_t)job->item, 0, table, out, streaming);
        case BITS: return expand(from, voxels, 1, 1, table, out, streaming);
        default: TO_FLOATS[job->kind].function(from, voxels, out); return DONE;
    }
}

/* -- reading */

static int fetch(Work *work, int64_t offset, size_t size, uint8_t *into) {
    const double began = now();
    const int64_t wanted = (int64_t)size;
    while (size) {
        ssize_t got = pread(work->fd, into, size, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return LEFT;
        into += got;
        offset += got;
        size -= (size_t)got;
    }
    work->reading += now() - began;
    work->fetched += wanted;
    return DONE;
}

/* Return bytes of the file, valid until the next call; NULL on failure. */
static const uint8_t *bytes_at(Work *work, int64_t offset, size_t size) {
    if (work->map)
        return offset <= work->map_size && (int64_t)size <= work->map_size - offset ? work->map + offset : NULL;
    if (work->scratch_size < size) {
        free(work->scratch);
        work->scratch_size = 0;
        if (!(work->scratch = malloc(size))) return NULL;
        work->scratch_size = size;
    }
    return fetch(work, offset, size, work->scratch) == DONE ? work->scratch : NULL;
}

/* Read contiguous voxels. */
static int read_run(Work *work, const Job *job, int64_t offset, int64_t voxels, int64_t out_bytes, uint8_t *out) {
    if (job->kind == COPY && !work->map && !work->streaming)
        return fetch(work, offset, (size_t)(voxels * job->item), out);
    const int64_t block = BLOCK / job->item > TILE ? BLOCK / job->item / TILE * TILE : TILE;
    for (int64_t done = 0; done < voxels; done += block) {
        size_t some = (size_t)(voxels - done < block ? voxels - done : block);
        const uint8_t *from = bytes_at(work, offset + done * job->item, some * (size_t)job->item);
        if (!from) return LEFT;
        double began = now();
        int status = convert(job, &work->table, from, some, out + done * out_bytes, work->streaming);
        work->converting += now() - began;
        if (status != DONE) return status;
    }
    return DONE;
}

/* Read `rows` rows of `runs` runs that start at `offset`, with one read of the file. */
static int read_rows(Work *work, const Job *job, int64_t offset, int64_t rows, int64_t runs, int64_t out_bytes,
                     uint8_t *out) {
    const int64_t run_out = job->run * out_bytes, row_out = job->count1 * run_out;
    const int64_t span = (rows - 1) * job->stride0 + (runs - 1) * job->stride1 + job->run * job->item;
    const uint8_t *from = bytes_at(work, offset, (size_t)span);
    if (!from) return LEFT;
    const double began = now();
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < runs; k++) {
            int status = convert(job, &work->table, from + i * job->stride0 + k * job->stride1, (size_t)job->run,
                                 out + i * row_out + k * run_out, work->streaming);
            if (status != DONE) return status;
        }
    work->converting += now() - began;
    return DONE;
}

static int read_box(Work *work, const Job *job, int64_t out_bytes, uint8_t *out) {
    const int64_t run_bytes = job->run * job->item, run_out = job->run * out_bytes, row_out = job->count1 * run_out;
    if (job->count0 == 1 && job->count1 == 1) return read_run(work, job, job->offset, job->run, out_bytes, out);
    const int64_t span = (job->count1 - 1) * job->stride1 + run_bytes;
    /* Choose what to read at once: single runs, parts of a row, a row, or several rows. */
    int64_t rows = 1, runs = job->count1;
    if (!work->map && runs > 1 && job->stride1 - run_bytes > GAP)
        runs = 1;
    else if (span > BLOCK)
        runs = run_bytes < BLOCK && job->stride1 > 0 ? (BLOCK - run_bytes) / job->stride1 + 1 : 1;
    else if (job->stride0 > 0 && (work->map || job->stride0 - span <= GAP))
        rows = (BLOCK - span) / job->stride0 + 1;
    for (int64_t i = 0; i < job->count0; i += rows)
        for (int64_t k = 0; k < job->count1; k += runs) {
            const int64_t offset = job->offset + i * job->stride0 + k * job->stride1;
            uint8_t *into = out + i * row_out + k * run_out;
            int status = rows * runs == 1
                             ? read_run(work, job, offset, job->run, out_bytes, into)
                             : read_rows(work, job, offset, job->count0 - i < rows ? job->count0 - i : rows,
                                         job->count1 - k < runs ? job->count1 - k : runs, out_bytes, into);
            if (status != DONE) return status;
        }
    return DONE;
}

/* The fields of `Stamp` in medsegpy_core, which identifies the content of a file. */
typedef struct {
    int64_t size, modified; /* bytes, ns */
    uint64_t inode;
    int64_t changed; /* ns */
} Stamp;
_Static_assert(sizeof(Stamp) == 32, "a stamp has 32 bytes");

static int64_t nanoseconds(struct timespec time) { return (int64_t)time.tv_sec * 1000000000 + (int64_t)time.tv_nsec; }

/* Return whether a file is unchanged since it was located. */
static int same_stamp(const struct stat *found, const char *stamp) {
#ifdef __APPLE__
    const struct timespec modified = found->st_mtimespec, changed = found->st_ctimespec;
#else
    const struct timespec modified = found->st_mtim, changed = found->st_ctim;
#endif
    const Stamp now = {(int64_t)found->st_size, nanoseconds(modified), (uint64_t)found->st_ino, nanoseconds(changed)};
    return memcmp(&now, stamp, sizeof now) == 0;
}

static int read_named(Work *work, const Job *job, const char *stamp, int64_t out_bytes, uint8_t *out) {
    const char *path = stamp + sizeof(Stamp);
    struct stat found;
    double began = now();
    if (work->map) {
        if (stat(path, &found) || !same_stamp(&found, stamp)) return STALE;
        work->opening += now() - began;
        int status = read_box(work, job, out_bytes, out);
        return stat(path, &found) || !same_stamp(&found, stamp) ? CHANGED : status;
    }
    /* Without O_NONBLOCK, opening a pipe that replaced the file would wait forever. */
    if ((work->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0) return LEFT;
    int status = LEFT;
    if (fstat(work->fd, &found) == 0 && S_ISREG(found.st_mode)) {
        status = STALE;
        if (same_stamp(&found, stamp)) {
            work->opening += now() - began;
            status = read_box(work, job, out_bytes, out);
            if (fstat(work->fd, &found) || !same_stamp(&found, stamp)) status = CHANGED;
        }
    }
    close(work->fd);
    return status;
}

/* Return whether a job is valid and fits into an output of `size` bytes. */
static int fits(const Job *job, const Table *table, int64_t size, int64_t texts, int64_t maps) {
    int64_t voxels, bytes, extent, product;
    const int64_t item = out_item(job, table);
    if (item <= 0 || job->count0 < 1 || job->count1 < 1 || job->run < 1 || job->offset < 0 || job->out < 0) return 0;
    if (job->stride0 < 0 || job->stride1 < 0 || job->map >= maps) return 0;
    if (job->text >= 0 && job->text >= texts - (int64_t)sizeof(Stamp)) return 0;
    if (job->text < 0 && job->fd < 0 && job->map < 0) return 0;
    if (__builtin_mul_overflow(job->count0, job->count1, &voxels) ||
        __builtin_mul_overflow(voxels, job->run, &voxels) || __builtin_mul_overflow(voxels, item, &bytes) ||
        bytes > size || job->out > size - bytes)
        return 0;
    /* The offset of the last byte of the box in the file must not overflow. */
    return !__builtin_mul_overflow(job->run, job->item, &extent) &&
           !__builtin_mul_overflow(job->count1 - 1, job->stride1, &product) &&
           !__builtin_add_overflow(extent, product, &extent) &&
           !__builtin_mul_overflow(job->count0 - 1, job->stride0, &product) &&
           !__builtin_add_overflow(extent, product, &extent) && !__builtin_add_overflow(extent, job->offset, &extent);
}

#endif
