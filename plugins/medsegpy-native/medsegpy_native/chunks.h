/* Chunks that are compressed with gzip, perhaps shuffled before
 *
 * They are inflated by a library of the system, libdeflate or zlib, which is found while the module is imported, so
 * that no header of theirs is needed to compile this. */
#ifndef MEDSEGPY_CHUNKS_H
#define MEDSEGPY_CHUNKS_H

#include <dlfcn.h>

#include "boxes.h"

/* Axes of a dataset, and some to spare. */
#define MOST_AXES 8
/* Compressed chunks of this size at most are compared with the one before. */
#define SMALL 1024
/* Chunks are not larger, as the libraries that inflate them count in 32 bits. */
#define MOST_INFLATED (1 << 30)

/* `z_stream` of zlib.h, whose layout is a part of its binary interface. */
typedef struct {
    const uint8_t *next_in;
    unsigned avail_in;
    unsigned long total_in;
    uint8_t *next_out;
    unsigned avail_out;
    unsigned long total_out;
    const char *message;
    void *state, *alloc, *release, *opaque;
    int data_type;
    unsigned long checksum, reserved;
} ZlibStream;

static struct {
    void *(*deflate_begin)(void);
    int (*deflate_run)(void *, const void *, size_t, void *, size_t, size_t *);
    void (*deflate_end)(void *);
    int (*zlib_begin)(ZlibStream *, const char *, int);
    int (*zlib_run)(ZlibStream *, int);
    int (*zlib_reset)(ZlibStream *);
    int (*zlib_end)(ZlibStream *);
} library;

/* Sets the pointers to functions of the first of the libraries that has all of them. */
static int find_all(const char *const *files, const char *const *names, void *const *pointers, size_t count) {
    for (; *files; files++) {
        void *handle = dlopen(*files, RTLD_NOW | RTLD_LOCAL);
        if (!handle) continue;
        size_t found = 0;
        for (void *function; found < count && (function = dlsym(handle, names[found])); found++)
            memcpy(pointers[found], &function, sizeof function); /* C has no cast from data to functions */
        if (found == count) return 1;
        dlclose(handle);
    }
    return 0;
}

/* Returns the name of what was found, or nothing. `wanted`: "libdeflate", "zlib", or "" for the faster one. */
static const char *find_inflating_library(const char *wanted) {
    static const char *const deflate_files[] = {"libdeflate.so.0", "libdeflate.0.dylib", NULL};
    static const char *const deflate_names[] = {"libdeflate_alloc_decompressor", "libdeflate_zlib_decompress",
                                                "libdeflate_free_decompressor"};
    static const char *const zlib_files[] = {"libz.so.1", "libz.1.dylib", NULL};
    static const char *const zlib_names[] = {"inflateInit_", "inflate", "inflateReset", "inflateEnd"};
    void *const deflate_functions[] = {&library.deflate_begin, &library.deflate_run, &library.deflate_end};
    void *const zlib_functions[] = {&library.zlib_begin, &library.zlib_run, &library.zlib_reset, &library.zlib_end};
    if (strcmp(wanted, "zlib") && find_all(deflate_files, deflate_names, deflate_functions, 3)) return "libdeflate";
    library.deflate_begin = NULL;
    if (strcmp(wanted, "libdeflate") && find_all(zlib_files, zlib_names, zlib_functions, 4)) return "zlib";
    library.zlib_begin = NULL;
    return "";
}

typedef struct {
    size_t size, itemsize; /* of a chunk and of an element; 1: chunks were not shuffled */
    void *deflate;
    ZlibStream zlib;
    uint8_t *chunk, *shuffled; /* the chunk, and the same before its bytes are put in order */
    int is_empty;              /* whether it is nothing but zeros; asked of small ones only */
    uint8_t stored[SMALL];     /* what it was inflated from, where that is small: empty chunks follow each other */
    size_t stored_size;
} Inflater;

static int begin_inflating(Inflater *inflater, size_t size, size_t itemsize) {
    inflater->size = size;
    inflater->itemsize = itemsize;
    inflater->chunk = malloc(size);
    inflater->shuffled = itemsize > 1 ? malloc(size) : inflater->chunk;
    if (inflater->chunk && inflater->shuffled) {
        if (library.deflate_begin) {
            if ((inflater->deflate = library.deflate_begin())) return 1;
        } else if (library.zlib_begin && library.zlib_begin(&inflater->zlib, "1.2.11", (int)sizeof inflater->zlib) == 0)
            return 1;
    }
    if (itemsize > 1) free(inflater->shuffled);
    free(inflater->chunk);
    return 0;
}

static void end_inflating(Inflater *inflater) {
    if (inflater->deflate)
        library.deflate_end(inflater->deflate);
    else
        library.zlib_end(&inflater->zlib);
    if (inflater->itemsize > 1) free(inflater->shuffled);
    free(inflater->chunk);
}

/* Inflates to exactly the size of a chunk. */
static int inflate_exactly(Inflater *inflater, const uint8_t *from, size_t stored, uint8_t *out) {
    if (inflater->deflate) return library.deflate_run(inflater->deflate, from, stored, out, inflater->size, NULL) == 0;
    ZlibStream *zlib = &inflater->zlib;
    if (library.zlib_reset(zlib) != 0) return 0;
    zlib->next_in = from;
    zlib->avail_in = (unsigned)stored;
    zlib->next_out = out;
    zlib->avail_out = (unsigned)inflater->size;
    return library.zlib_run(zlib, 4 /* Z_FINISH */) == 1 /* Z_STREAM_END */ && zlib->avail_out == 0;
}

static FLAT void unshuffle_of(const uint8_t *from, size_t size, size_t itemsize, uint8_t *out) {
    const size_t count = size / itemsize;
    for (size_t i = 0; i < count; i++)
        for (size_t byte = 0; byte < itemsize; byte++) out[i * itemsize + byte] = from[byte * count + i];
    memcpy(out + count * itemsize, from + count * itemsize, size - count * itemsize);
}

static void unshuffle(const uint8_t *from, size_t size, size_t itemsize, uint8_t *out) {
    switch (itemsize) {
        case 2: unshuffle_of(from, size, 2, out); break;
        case 4: unshuffle_of(from, size, 4, out); break;
        case 8: unshuffle_of(from, size, 8, out); break;
        default: unshuffle_of(from, size, itemsize, out);
    }
}

/* Makes `chunk` of stored bytes. */
static int inflate_chunk(Inflater *inflater, const uint8_t *from, size_t stored) {
    if (stored == inflater->stored_size && memcmp(from, inflater->stored, stored) == 0) return 1;
    if (!inflate_exactly(inflater, from, stored, inflater->shuffled)) return 0;
    if (inflater->itemsize > 1) unshuffle(inflater->shuffled, inflater->size, inflater->itemsize, inflater->chunk);
    inflater->stored_size = stored <= SMALL ? stored : 0;
    memcpy(inflater->stored, from, inflater->stored_size);
    inflater->is_empty = inflater->stored_size && !any(inflater->chunk, inflater->size);
    return 1;
}

/* Parts of chunks: boxes that begin at the first element of a chunk. */
typedef struct {
    int64_t rank, item; /* axes, and bytes of what lies side by side in both */
    const int64_t *from_strides, *to_strides;
} Parts;

static FLAT void copy_items(const uint8_t *from, uint8_t *to, int64_t count, int64_t from_stride, int64_t to_stride,
                            size_t item) {
    for (int64_t i = 0; i < count; i++) memcpy(to + i * to_stride, from + i * from_stride, item);
}

static void put_part(const uint8_t *from, uint8_t *to, const int64_t *sizes, const Parts *parts) {
    int64_t last = parts->rank - 1, item = parts->item;
    const int64_t *from_strides = parts->from_strides, *to_strides = parts->to_strides;
    /* Axes along which items lie side by side in both make larger items. */
    while (last >= 0 && from_strides[last] == item && to_strides[last] == item) item *= sizes[last--];
    while (last > 0 && sizes[last] == 1) last--;
    const int64_t count = last < 0 ? 1 : sizes[last], from_stride = last < 0 ? 0 : from_strides[last],
                  to_stride = last < 0 ? 0 : to_strides[last];
    int64_t index[MOST_AXES] = {0};
    for (;;) {
        switch (item) {
            case 1: copy_items(from, to, count, from_stride, to_stride, 1); break;
            case 2: copy_items(from, to, count, from_stride, to_stride, 2); break;
            case 3: copy_items(from, to, count, from_stride, to_stride, 3); break;
            case 4: copy_items(from, to, count, from_stride, to_stride, 4); break;
            case 8: copy_items(from, to, count, from_stride, to_stride, 8); break;
            default: copy_items(from, to, count, from_stride, to_stride, (size_t)item);
        }
        int64_t axis = last - 1;
        for (; axis >= 0; axis--) {
            from += from_strides[axis];
            to += to_strides[axis];
            if (++index[axis] < sizes[axis]) break;
            from -= sizes[axis] * from_strides[axis];
            to -= sizes[axis] * to_strides[axis];
            index[axis] = 0;
        }
        if (axis < 0) return;
    }
}

/* Adds a * b, neither of them negative; 0: the sum is too large. */
static int add_product(int64_t *sum, int64_t a, int64_t b) {
    int64_t product;
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product) && !__builtin_add_overflow(*sum, product, sum);
}

/* Whether a row of chunks makes sense: (offset, stored bytes, place in the output, sizes of the part of it). */
static int chunk_fits(const int64_t *row, int64_t first, const Parts *parts, int64_t size, int64_t out) {
    int64_t from = 0, to = row[2];
    if (row[0] < first || row[1] < 1 || row[1] > MOST_INFLATED || to < 0) return 0;
    for (int64_t axis = 0; axis < parts->rank; axis++)
        if (row[3 + axis] < 1 || !add_product(&from, row[3 + axis] - 1, parts->from_strides[axis]) ||
            !add_product(&to, row[3 + axis] - 1, parts->to_strides[axis]))
            return 0;
    const int64_t last = parts->rank ? parts->item : size;
    return from <= size - last && to <= out - last;
}

#endif
