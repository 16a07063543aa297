/* Decompress chunks with the filters gzip and, optionally, shuffle.
 *
 * The system's libdeflate does the decompression. It is loaded when the module is imported, so its header is not needed
 * to compile this file, and the library is not needed for the other kernels. zlib is not used, because it is slower
 * than the libraries that medsegpy_core calls from Python. */
#ifndef MEDSEGPY_CHUNKS_H
#define MEDSEGPY_CHUNKS_H

#include <dlfcn.h>

#include "boxes.h"

/* More axes than any supported dataset has. */
#define MOST_AXES 8
/* Compressed chunks of at most this size are compared with the previous one. */
#define SMALL 1024
/* The largest compressed chunk: decompression libraries count in 32 bits. */
#define MOST_INFLATED (1 << 30)

static struct {
    void *(*begin)(void);
    int (*inflate)(void *, const void *, size_t, void *, size_t, size_t *);
    void (*end)(void *);
} library;

/* Load the library; return 0 if it is not installed. */
static int find_library(void) {
    static const char *const files[] = {"libdeflate.so.0", "libdeflate.0.dylib", NULL};
    static const char *const names[] = {"libdeflate_alloc_decompressor", "libdeflate_zlib_decompress",
                                        "libdeflate_free_decompressor"};
    void *const pointers[] = {&library.begin, &library.inflate, &library.end};
    for (const char *const *file = files; *file; file++) {
        void *handle = dlopen(*file, RTLD_NOW | RTLD_LOCAL), *function;
        size_t found = 0;
        for (; handle && found < 3 && (function = dlsym(handle, names[found])); found++)
            memcpy(pointers[found], &function, sizeof function); /* ISO C has no cast from data to functions */
        if (found == 3) return 1;
        if (handle) dlclose(handle);
    }
    library.begin = NULL;
    return 0;
}

typedef struct {
    size_t size, itemsize;     /* of a chunk and of an element; itemsize 1: chunks are not shuffled */
    void *state;               /* of the library */
    uint8_t *chunk, *shuffled; /* the chunk, and the chunk before unshuffling */
    int is_empty;              /* whether the chunk is all zeros; only checked for small stored chunks */
    uint8_t stored[SMALL];     /* the stored chunk if it is small, because empty chunks often repeat */
    size_t stored_size;
} Inflater;

static int begin_inflating(Inflater *inflater, size_t size, size_t itemsize) {
    inflater->size = size;
    inflater->itemsize = itemsize;
    inflater->chunk = malloc(size);
    inflater->shuffled = itemsize > 1 ? malloc(size) : inflater->chunk;
    if (inflater->chunk && inflater->shuffled && library.begin && (inflater->state = library.begin())) return 1;
    if (itemsize > 1) free(inflater->shuffled);
    free(inflater->chunk);
    return 0;
}

static void end_inflating(Inflater *inflater) {
    library.end(inflater->state);
    if (inflater->itemsize > 1) free(inflater->shuffled);
    free(inflater->chunk);
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

/* Decompress stored bytes into `chunk`. */
static int inflate_chunk(Inflater *inflater, const uint8_t *from, size_t stored) {
    if (stored == inflater->stored_size && memcmp(from, inflater->stored, stored) == 0) return 1;
    /* With NULL for the actual size, the library fails unless it produces exactly one whole chunk. */
    if (library.inflate(inflater->state, from, stored, inflater->shuffled, inflater->size, NULL) != 0) return 0;
    if (inflater->itemsize > 1) unshuffle(inflater->shuffled, inflater->size, inflater->itemsize, inflater->chunk);
    inflater->stored_size = stored <= SMALL ? stored : 0;
    memcpy(inflater->stored, from, inflater->stored_size);
    inflater->is_empty = inflater->stored_size && !any(inflater->chunk, inflater->size);
    return 1;
}

/* Parts of chunks: boxes that start at the first element of a chunk. */
typedef struct {
    int64_t rank, item; /* axes, and bytes that are contiguous in both arrays */
    const int64_t *from_strides, *to_strides;
} Parts;

static FLAT void copy_items(const uint8_t *from, uint8_t *to, int64_t count, int64_t from_stride, int64_t to_stride,
                            size_t item) {
    for (int64_t i = 0; i < count; i++) memcpy(to + i * to_stride, from + i * from_stride, item);
}

static void put_part(const uint8_t *from, uint8_t *to, const int64_t *sizes, const Parts *parts) {
    int64_t last = parts->rank - 1, item = parts->item;
    const int64_t *from_strides = parts->from_strides, *to_strides = parts->to_strides;
    /* Merge axes that are contiguous in both arrays into larger items. */
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

/* Add a * b to the sum; return 0 if one is negative or the sum overflows. */
static int add_product(int64_t *sum, int64_t a, int64_t b) {
    int64_t product;
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product) && !__builtin_add_overflow(*sum, product, sum);
}

/* Return whether a row of chunks is valid: (offset, stored bytes, offset in the output, sizes of the part). */
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
