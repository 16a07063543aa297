/* Boxes of files into arrays, and voxels into categories, without Python's lock.
 *
 * What is read here are byte ranges that medsegpy_core has located and checked; nothing of a file's structure is parsed.
 * Whatever is not as expected (a file that changed, a short read, a mask that is not binary) is a status, not an error:
 * the caller then takes its own way, which says what is wrong.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "These kernels are for little-endian machines; medsegpy_core works without them."
#endif

/* A box that is to be read; medsegpy_core.hdf5.kernels makes rows of int64 of them. */
typedef struct {
    int64_t text;    /* where path and stamp lie in `texts`, each ended by a 0; -1: `fd` is open */
    int64_t fd;      /* an open file whose content the caller has checked; -1: none */
    int64_t map;     /* which of `maps` holds the file's bytes; -1: none, it is read */
    int64_t offset;  /* of the first voxel, in bytes from the beginning of the file */
    int64_t count0, stride0; /* the outer axis: how many, and how many bytes from one to the next */
    int64_t count1, stride1; /* the middle axis */
    int64_t run;     /* voxels that lie side by side */
    int64_t item;    /* bytes of a voxel in the file */
    int64_t kind;    /* what is stored */
    int64_t out;     /* where the box begins in the output, in bytes; C order */
    int64_t status;  /* what became of it */
} Job;
_Static_assert(sizeof(Job) == 13 * sizeof(int64_t), "a job is a row of 13 int64");

enum { COPY, PLANES, BITS, I8, U8, I16, U16, I32, U32, I16_SWAPPED, U16_SWAPPED, I32_SWAPPED, U32_SWAPPED, F32_SWAPPED };
enum { DONE, LEFT, STALE, CHANGED, NOT_BINARY };

/* A system call costs about what copying so many bytes costs: gaps that are smaller are read as well. */
#define GAP (12 << 10)
/* What is converted in one go: it stays in the cache of a core. */
#define BLOCK (128 << 10)
/* Functions that are compiled anew for each size that they are called with. */
#define FLAT inline __attribute__((always_inline))
/* Voxels that are looked at together, and the largest row of a table. */
#define TILE 64
#define LARGEST_ENTRY 64
#define MOST_AXES 8
/* Compressed chunks of this size at most are compared with the one before. */
#define SMALL 1024
/* Chunks are not larger, as the libraries that inflate them count in 32 bits. */
#define MOST_INFLATED (1 << 30)
/* Outputs from this size on are written past the cache, which they would not fit. */
#define STREAMED (8 << 20)
/* A slice that is collated by itself is one of many. */
#define COLLATED_STREAMED (1 << 20)

typedef struct {
    const uint8_t *entries; /* 256 rows: what each combination of channels becomes */
    size_t entry;           /* bytes of a row */
    uint8_t empty[TILE * LARGEST_ENTRY]; /* what a tile of empty voxels becomes */
} Table;

typedef struct {
    int fd;
    const uint8_t *map;
    int64_t map_size;
    uint8_t *scratch;
    size_t scratch_size;
    Table table;
    int streaming; /* whether the output is larger than the caches */
    double opening, reading, converting; /* seconds */
    int64_t fetched;                     /* bytes */
} Work;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -- writing past the cache */

/* Sixteen bytes at a time, both ends of the output on a border of sixteen. Lines of the cache are then written without
 * being read first, three times as fast; quickest where outputs as a whole begin at the border of a line. */
static inline void stream(uint8_t *out, const uint8_t *from, size_t size) {
#ifdef __SSE2__
    for (size_t i = 0; i < size; i += 16)
        _mm_stream_si128((__m128i *)(out + i), _mm_loadu_si128((const __m128i *)(from + i)));
#else
    memcpy(out, from, size);
#endif
}

static void copy(uint8_t *out, const uint8_t *from, size_t size, int streaming) {
    if (streaming && (uintptr_t)out % 16 == 0 && size % 16 == 0)
        stream(out, from, size);
    else
        memcpy(out, from, size);
}

/* What was streamed is seen by other threads after this. */
static inline void end_streaming(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* -- voxels into categories */

static inline uint64_t load64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

static inline uint64_t load_some(const uint8_t *p, size_t n) {
    uint64_t x = 0;
    memcpy(&x, p, n);
    return x;
}

static inline int any(const uint8_t *from, size_t size) {
    uint64_t found = 0;
    size_t at = 0;
    for (; at + 8 <= size; at += 8) found |= load64(from + at);
    return found || load_some(from + at, size - at);
}

/* The channels of a voxel, one a byte, as bits: channel c is bit c. */
static inline unsigned pack_bits(uint64_t x) { return (unsigned)((x * UINT64_C(0x0102040810204080)) >> 56); }

/* A tile of voxels with `item` channels, one a byte, 0 or 1. */
static FLAT int planes_of(const uint8_t *from, size_t voxels, size_t item, const uint8_t *entries, size_t entry, uint8_t *out) {
    const uint64_t wanted = item == 8 ? ~UINT64_C(0) : (UINT64_C(1) << (8 * item)) - 1;
    /* Of the last voxels, eight bytes would reach beyond the end. */
    const size_t whole = voxels * item >= 8 ? (voxels * item - 8) / item + 1 : 0;
    uint64_t seen = 0;
    for (size_t voxel = 0; voxel < whole; voxel++) {
        uint64_t x = load64(from + voxel * item) & wanted;
        seen |= x;
        memcpy(out + voxel * entry, entries + pack_bits(x) * entry, entry);
    }
    for (size_t voxel = whole; voxel < voxels; voxel++) {
        uint64_t x = load_some(from + voxel * item, item);
        seen |= x;
        memcpy(out + voxel * entry, entries + pack_bits(x) * entry, entry);
    }
    return seen & ~UINT64_C(0x0101010101010101) ? NOT_BINARY : DONE;
}

static FLAT int bits_of(const uint8_t *from, size_t voxels, const uint8_t *entries, size_t entry, uint8_t *out) {
    for (size_t voxel = 0; voxel < voxels; voxel++) memcpy(out + voxel * entry, entries + from[voxel] * entry, entry);
    return DONE;
}

/* `entry` is known to the compiler where this is called. Most tiles of most masks are empty. */
static FLAT int expand_of(const uint8_t *from, size_t voxels, size_t item, int bits, const Table *table, size_t entry, uint8_t *out, int streaming) {
    uint8_t tile[TILE * LARGEST_ENTRY];
    for (size_t done = 0; done < voxels; done += TILE, from += TILE * item, out += TILE * entry) {
        const size_t some = voxels - done < TILE ? voxels - done : TILE, size = some * entry;
        const int streamed = streaming && (uintptr_t)out % 16 == 0 && size % 16 == 0;
        const uint8_t *ready = table->empty;
        if (any(from, some * item)) {
            uint8_t *into = streamed ? tile : out;
            int status = bits ? bits_of(from, some, table->entries, entry, into) : planes_of(from, some, item, table->entries, entry, into);
            if (status != DONE) return status;
            ready = into;
        }
        if (streamed)
            stream(out, ready, size);
        else if (ready != out)
            memcpy(out, ready, size);
    }
    return DONE;
}

static int expand(const uint8_t *from, size_t voxels, size_t item, int bits, const Table *table, uint8_t *out, int streaming) {
#define EXPAND(ENTRY) return expand_of(from, voxels, item, bits, table, ENTRY, out, streaming)
    switch (table->entry) {
    case 1: EXPAND(1);
    case 2: EXPAND(2);
    case 3: EXPAND(3);
    case 4: EXPAND(4);
    case 8: EXPAND(8);
    case 12: EXPAND(12);
    case 16: EXPAND(16);
    case 20: EXPAND(20);
    case 24: EXPAND(24);
    case 28: EXPAND(28);
    case 32: EXPAND(32);
    default: EXPAND(table->entry);
    }
#undef EXPAND
}

/* -- numbers into float32 */

#define TO_FLOAT(NAME, TYPE, LOAD)                                           \
    static void NAME(const uint8_t *from, size_t voxels, uint8_t *out) {     \
        for (size_t i = 0; i < voxels; i++) {                                \
            TYPE stored;                                                     \
            memcpy(&stored, from + i * sizeof(TYPE), sizeof(TYPE));          \
            float value = (float)LOAD(stored);                               \
            memcpy(out + 4 * i, &value, 4);                                  \
        }                                                                    \
    }
#define AS_IS(x) (x)
#define SWAP_I16(x) ((int16_t)__builtin_bswap16((uint16_t)(x)))
#define SWAP_I32(x) ((int32_t)__builtin_bswap32((uint32_t)(x)))
TO_FLOAT(from_i8, int8_t, AS_IS)
TO_FLOAT(from_u8, uint8_t, AS_IS)
TO_FLOAT(from_i16, int16_t, AS_IS)
TO_FLOAT(from_u16, uint16_t, AS_IS)
TO_FLOAT(from_i32, int32_t, AS_IS)
TO_FLOAT(from_u32, uint32_t, AS_IS)
TO_FLOAT(from_i16_swapped, int16_t, SWAP_I16)
TO_FLOAT(from_u16_swapped, uint16_t, __builtin_bswap16)
TO_FLOAT(from_i32_swapped, int32_t, SWAP_I32)
TO_FLOAT(from_u32_swapped, uint32_t, __builtin_bswap32)

static void from_f32_swapped(const uint8_t *from, size_t voxels, uint8_t *out) {
    for (size_t i = 0; i < voxels; i++) {
        uint32_t stored;
        memcpy(&stored, from + 4 * i, 4);
        stored = __builtin_bswap32(stored);
        memcpy(out + 4 * i, &stored, 4);
    }
}

typedef void (*ToFloat)(const uint8_t *, size_t, uint8_t *);
static const struct { ToFloat function; int64_t item; } TO_FLOATS[] = {
    [I8] = {from_i8, 1}, [U8] = {from_u8, 1}, [I16] = {from_i16, 2}, [U16] = {from_u16, 2},
    [I32] = {from_i32, 4}, [U32] = {from_u32, 4}, [I16_SWAPPED] = {from_i16_swapped, 2},
    [U16_SWAPPED] = {from_u16_swapped, 2}, [I32_SWAPPED] = {from_i32_swapped, 4},
    [U32_SWAPPED] = {from_u32_swapped, 4}, [F32_SWAPPED] = {from_f32_swapped, 4},
};

/* How many bytes a voxel takes in the output; 0: such a job cannot be. */
static int64_t out_item(const Job *job, const Table *table) {
    switch (job->kind) {
    case COPY: return job->item > 0 ? job->item : 0;
    case PLANES: return job->item >= 1 && job->item <= 8 ? (int64_t)table->entry : 0;
    case BITS: return job->item == 1 ? (int64_t)table->entry : 0;
    default: return job->kind >= I8 && job->kind <= F32_SWAPPED && job->item == TO_FLOATS[job->kind].item ? 4 : 0;
    }
}

static int convert(const Job *job, const Table *table, const uint8_t *from, size_t voxels, uint8_t *out, int streaming) {
    switch (job->kind) {
    case COPY: copy(out, from, voxels * (size_t)job->item, streaming); return DONE;
    case PLANES: return expand(from, voxels, (size_t)job->item, 0, table, out, streaming);
    case BITS: return expand(from, voxels, 1, 1, table, out, streaming);
    default: TO_FLOATS[job->kind].function(from, voxels, out); return DONE;
    }
}

/* -- bytes of a file */

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

/* Bytes that stay valid until the next call; NULL: they are not to be had. */
static const uint8_t *bytes_at(Work *work, int64_t offset, size_t size) {
    if (work->map) return offset <= work->map_size && (int64_t)size <= work->map_size - offset ? work->map + offset : NULL;
    if (work->scratch_size < size) {
        free(work->scratch);
        work->scratch_size = 0;
        if (!(work->scratch = malloc(size))) return NULL;
        work->scratch_size = size;
    }
    return fetch(work, offset, size, work->scratch) == DONE ? work->scratch : NULL;
}

/* Voxels that lie side by side. */
static int read_run(Work *work, const Job *job, int64_t offset, int64_t voxels, int64_t out_bytes, uint8_t *out) {
    if (job->kind == COPY && !work->map && !work->streaming) return fetch(work, offset, (size_t)(voxels * job->item), out);
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

/* `rows` rows of `runs` runs, of which the first byte is at `offset`. */
static int read_rows(Work *work, const Job *job, int64_t offset, int64_t rows, int64_t runs, int64_t out_bytes, uint8_t *out) {
    const int64_t run_out = job->run * out_bytes, row_out = job->count1 * run_out;
    const int64_t span = (rows - 1) * job->stride0 + (runs - 1) * job->stride1 + job->run * job->item;
    const uint8_t *from = bytes_at(work, offset, (size_t)span);
    if (!from) return LEFT;
    const double began = now();
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < runs; k++) {
            int status = convert(job, &work->table, from + i * job->stride0 + k * job->stride1, (size_t)job->run, out + i * row_out + k * run_out, work->streaming);
            if (status != DONE) return status;
        }
    work->converting += now() - began;
    return DONE;
}

static int read_box(Work *work, const Job *job, int64_t out_bytes, uint8_t *out) {
    const int64_t run_bytes = job->run * job->item, run_out = job->run * out_bytes, row_out = job->count1 * run_out;
    if (job->count0 == 1 && job->count1 == 1) return read_run(work, job, job->offset, job->run, out_bytes, out);
    const int64_t span = (job->count1 - 1) * job->stride1 + run_bytes;
    /* What is read at once: single runs, parts of a row, a row, or several rows. */
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
            int status = rows * runs == 1 ? read_run(work, job, offset, job->run, out_bytes, into)
                                   : read_rows(work, job, offset, job->count0 - i < rows ? job->count0 - i : rows,
                                               job->count1 - k < runs ? job->count1 - k : runs, out_bytes, into);
            if (status != DONE) return status;
        }
    return DONE;
}

/* Whether the content of a file is what it was when it was located: `Stamp` of medsegpy_core. */
static int same_stamp(const struct stat *found, const char *stamp) {
#ifdef __APPLE__
    const struct timespec changed = found->st_mtimespec;
#else
    const struct timespec changed = found->st_mtim;
#endif
    char text[80];
    snprintf(text, sizeof text, "%lld %lld %llu", (long long)found->st_size,
             (long long)changed.tv_sec * 1000000000LL + (long long)changed.tv_nsec, (unsigned long long)found->st_ino);
    return strcmp(text, stamp) == 0;
}

static int read_named(Work *work, const Job *job, const char *path, int64_t out_bytes, uint8_t *out) {
    const char *stamp = path + strlen(path) + 1;
    struct stat found;
    double began = now();
    if (work->map) {
        if (stat(path, &found) || !same_stamp(&found, stamp)) return STALE;
        work->opening += now() - began;
        int status = read_box(work, job, out_bytes, out);
        return stat(path, &found) || !same_stamp(&found, stamp) ? CHANGED : status;
    }
    /* Without O_NONBLOCK, opening a pipe that took the place of a file would wait for ever. */
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

/* -- chunks that are compressed with gzip, perhaps shuffled before
 *
 * They are inflated by a library of the system, libdeflate or zlib, which is found while the module is imported, so that
 * no header of theirs is needed to compile this. */

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

static int find_all(const char *const *files, const char *const *names, void **functions[], size_t count) {
    for (; *files; files++) {
        void *handle = dlopen(*files, RTLD_NOW | RTLD_LOCAL);
        if (!handle) continue;
        size_t found = 0;
        while (found < count && (*functions[found] = dlsym(handle, names[found]))) found++;
        if (found == count) return 1;
        dlclose(handle);
    }
    return 0;
}

/* Returns the name of what was found, or nothing. `wanted`: "libdeflate", "zlib", or "" for the faster one. */
static const char *find_inflating_library(const char *wanted) {
    static const char *const deflate_files[] = {"libdeflate.so.0", "libdeflate.0.dylib", NULL};
    static const char *const deflate_names[] = {"libdeflate_alloc_decompressor", "libdeflate_zlib_decompress", "libdeflate_free_decompressor"};
    static const char *const zlib_files[] = {"libz.so.1", "libz.1.dylib", NULL};
    static const char *const zlib_names[] = {"inflateInit_", "inflate", "inflateReset", "inflateEnd"};
    void **deflate_functions[] = {(void **)&library.deflate_begin, (void **)&library.deflate_run, (void **)&library.deflate_end};
    void **zlib_functions[] = {(void **)&library.zlib_begin, (void **)&library.zlib_run, (void **)&library.zlib_reset, (void **)&library.zlib_end};
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

static FLAT void copy_items(const uint8_t *from, uint8_t *to, int64_t count, int64_t from_stride, int64_t to_stride, size_t item) {
    for (int64_t i = 0; i < count; i++) memcpy(to + i * to_stride, from + i * from_stride, item);
}

static void put_part(const uint8_t *from, uint8_t *to, const int64_t *sizes, const Parts *parts) {
    int64_t last = parts->rank - 1, item = parts->item;
    const int64_t *from_strides = parts->from_strides, *to_strides = parts->to_strides;
    /* Axes along which items lie side by side in both make larger items. */
    while (last >= 0 && from_strides[last] == item && to_strides[last] == item) item *= sizes[last--];
    while (last > 0 && sizes[last] == 1) last--;
    const int64_t count = last < 0 ? 1 : sizes[last], from_stride = last < 0 ? 0 : from_strides[last], to_stride = last < 0 ? 0 : to_strides[last];
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

/* -- the functions that Python calls */

/* Whether a job stays inside the output and its numbers make sense; `size` is that of the output. */
static int fits(const Job *job, const Table *table, int64_t size, int64_t texts, int64_t maps) {
    int64_t voxels, bytes, extent, product;
    const int64_t item = out_item(job, table);
    if (item <= 0 || job->count0 < 1 || job->count1 < 1 || job->run < 1 || job->offset < 0 || job->out < 0) return 0;
    if (job->stride0 < 0 || job->stride1 < 0 || job->map >= maps || job->text >= texts) return 0;
    if (job->text < 0 && job->fd < 0 && job->map < 0) return 0;
    if (__builtin_mul_overflow(job->count0, job->count1, &voxels) || __builtin_mul_overflow(voxels, job->run, &voxels) ||
        __builtin_mul_overflow(voxels, item, &bytes) || bytes > size || job->out > size - bytes)
        return 0;
    /* The last byte of the box in the file is a number that can be. */
    return !__builtin_mul_overflow(job->run, job->item, &extent) && !__builtin_mul_overflow(job->count1 - 1, job->stride1, &product) &&
           !__builtin_add_overflow(extent, product, &extent) && !__builtin_mul_overflow(job->count0 - 1, job->stride0, &product) &&
           !__builtin_add_overflow(extent, product, &extent) && !__builtin_add_overflow(extent, job->offset, &extent);
}

static int table_of(const Py_buffer *buffer, Table *table) {
    table->entries = buffer->buf;
    table->entry = (size_t)buffer->len / 256;
    if (buffer->len % 256 || table->entry > LARGEST_ENTRY) {
        PyErr_SetString(PyExc_ValueError, "A table has 256 rows, none of them larger than 64 bytes.");
        return 0;
    }
    for (size_t voxel = 0; voxel < TILE; voxel++) memcpy(table->empty + voxel * table->entry, table->entries, table->entry);
    return 1;
}

static const char read_boxes_doc[] =
    "read_boxes(jobs, texts, maps, out, table)\n--\n\n"
    "Read boxes of files into `out`; what the arguments are is told by medsegpy_core.hdf5.kernels.Kernels.";

static PyObject *read_boxes(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer jobs_buffer, texts, out, table;
    PyObject *maps;
    if (!PyArg_ParseTuple(args, "w*y*O!w*y*", &jobs_buffer, &texts, &PyTuple_Type, &maps, &out, &table)) return NULL;
    PyObject *result = NULL;
    Work work = {.fd = -1};
    Py_ssize_t held = 0, n_maps = PyTuple_Size(maps);
    Py_buffer *views = calloc((size_t)n_maps + 1, sizeof *views);
    Job *jobs = jobs_buffer.buf;
    const int64_t count = (int64_t)((size_t)jobs_buffer.len / sizeof(Job));
    const char *text = texts.buf;
    if (!views) {
        PyErr_NoMemory();
        goto end;
    }
    for (; held < n_maps; held++)
        if (PyObject_GetBuffer(PyTuple_GetItem(maps, held), &views[held], PyBUF_SIMPLE)) goto end;
    if ((size_t)jobs_buffer.len % sizeof(Job) || (uintptr_t)jobs % 8 || !table_of(&table, &work.table)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "Jobs are rows of 13 int64.");
        goto end;
    }
    /* Two ends, so that a path at the end of the texts still has a stamp, if an empty one. */
    if (texts.len < 2 || text[texts.len - 1] || text[texts.len - 2]) {
        PyErr_SetString(PyExc_ValueError, "The texts end with two zeros.");
        goto end;
    }
    for (int64_t i = 0; i < count; i++)
        if (!fits(&jobs[i], &work.table, out.len, texts.len - 1, n_maps)) {
            PyErr_Format(PyExc_ValueError, "Job %lld does not fit its output, or is none.", (long long)i);
            goto end;
        }
    work.streaming = out.len >= STREAMED;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < count; i++) {
        Job *job = &jobs[i];
        uint8_t *into = (uint8_t *)out.buf + job->out;
        work.fd = (int)job->fd;
        work.map = job->map < 0 ? NULL : views[job->map].buf;
        work.map_size = job->map < 0 ? 0 : views[job->map].len;
        job->status = job->text < 0 ? read_box(&work, job, out_item(job, &work.table), into)
                                    : read_named(&work, job, text + job->text, out_item(job, &work.table), into);
    }
    end_streaming();
    free(work.scratch);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("(dddL)", work.opening, work.reading, work.converting, (long long)work.fetched);
end:
    for (Py_ssize_t i = 0; i < held; i++) PyBuffer_Release(&views[i]);
    free(views);
    PyBuffer_Release(&jobs_buffer);
    PyBuffer_Release(&texts);
    PyBuffer_Release(&out);
    PyBuffer_Release(&table);
    return result;
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

static const char inflate_chunks_doc[] =
    "inflate_chunks(fd, file, first, chunks, strides, item, size, itemsize, out)\n--\n\n"
    "Decode chunks of a file; what the arguments are is told by medsegpy_core.hdf5.kernels.Kernels.";

static PyObject *inflate_chunks(PyObject *self, PyObject *args) {
    (void)self;
    int fd;
    long long first, item, size, itemsize;
    Py_buffer file, chunks, strides, out;
    if (!PyArg_ParseTuple(args, "iy*Ly*y*LLLw*", &fd, &file, &first, &chunks, &strides, &item, &size, &itemsize, &out)) return NULL;
    PyObject *result = NULL;
    const int64_t *rows = chunks.buf, rank = strides.len / 16, columns = 3 + rank, count = chunks.len / 8 / columns;
    const Parts parts = {.rank = rank, .item = item, .from_strides = strides.buf, .to_strides = (const int64_t *)strides.buf + rank};
    Work work = {.fd = fd, .map = fd < 0 ? file.buf : NULL, .map_size = file.len};
    Inflater inflater = {0};
    if (strides.len % 16 || rank > MOST_AXES || chunks.len % (8 * columns) || (count && (uintptr_t)rows % 8) || (rank && (uintptr_t)strides.buf % 8) ||
        size < 1 || size > MOST_INFLATED || itemsize < 1 || itemsize > size || item < 1 || item > size || first < 0) {
        PyErr_SetString(PyExc_ValueError, "Chunks are rows of int64, all of one size.");
        goto end;
    }
    for (int64_t i = 0; i < count; i++)
        if (!chunk_fits(rows + i * columns, first, &parts, size, out.len)) {
            PyErr_Format(PyExc_ValueError, "Chunk %lld does not fit the output, or is none.", (long long)i);
            goto end;
        }
    int64_t done = 0;
    double decoding;
    Py_BEGIN_ALLOW_THREADS
    const double began = now();
    if (begin_inflating(&inflater, (size_t)size, (size_t)itemsize)) {
        for (; done < count; done++) {
            const int64_t *row = rows + done * columns;
            const uint8_t *from = bytes_at(&work, row[0] - first, (size_t)row[1]);
            if (!from || !inflate_chunk(&inflater, from, (size_t)row[1])) break;
            uint8_t *into = (uint8_t *)out.buf + row[2];
            if (rank == 0)
                memcpy(into, inflater.chunk, (size_t)size);
            else if (!inflater.is_empty) /* the caller has set the output to 0 */
                put_part(inflater.chunk, into, row + 3, &parts);
        }
        end_inflating(&inflater);
    }
    free(work.scratch);
    decoding = now() - began - work.reading;
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("(LddL)", (long long)(done < count ? done : -1), work.reading, decoding, (long long)work.fetched);
end:
    PyBuffer_Release(&file);
    PyBuffer_Release(&chunks);
    PyBuffer_Release(&strides);
    PyBuffer_Release(&out);
    return result;
}

static const char collate_doc[] =
    "collate(stored, item, bits, out, table)\n--\n\n"
    "Collate voxels that are in memory; False: they are not binary.";

static PyObject *collate(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer stored, out, table_buffer;
    Py_ssize_t item;
    int bits;
    if (!PyArg_ParseTuple(args, "y*npw*y*", &stored, &item, &bits, &out, &table_buffer)) return NULL;
    PyObject *result = NULL;
    Table table;
    if (!table_of(&table_buffer, &table)) goto end;
    const Job job = {.kind = bits ? BITS : PLANES, .item = item};
    if (out_item(&job, &table) <= 0 || stored.len % item || stored.len / item > PY_SSIZE_T_MAX / (Py_ssize_t)table.entry ||
        stored.len / item * (Py_ssize_t)table.entry != out.len) {
        PyErr_SetString(PyExc_ValueError, "Stored voxels, table and output do not fit together.");
        goto end;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = convert(&job, &table, stored.buf, (size_t)(stored.len / item), out.buf, out.len >= COLLATED_STREAMED);
    end_streaming();
    Py_END_ALLOW_THREADS
    result = PyBool_FromLong(status == DONE);
end:
    PyBuffer_Release(&stored);
    PyBuffer_Release(&out);
    PyBuffer_Release(&table_buffer);
    return result;
}

static const char inflate_with_doc[] =
    "inflate_with(name)\n--\n\n"
    "Inflate with one library, for tests: libdeflate, zlib, or the faster one. Returns what was found.";

static PyObject *inflate_with(PyObject *self, PyObject *args) {
    (void)self;
    const char *wanted;
    if (!PyArg_ParseTuple(args, "s", &wanted)) return NULL;
    return PyUnicode_FromString(find_inflating_library(wanted));
}

static PyMethodDef methods[] = {
    {"read_boxes", read_boxes, METH_VARARGS, read_boxes_doc},
    {"collate", collate, METH_VARARGS, collate_doc},
    {"inflate_with", inflate_with, METH_VARARGS, inflate_with_doc},
    {"inflate_chunks", inflate_chunks, METH_VARARGS, inflate_chunks_doc},
    {NULL, NULL, 0, NULL},
};

static int find_library(PyObject *module) { return PyModule_AddStringConstant(module, "INFLATES_WITH", find_inflating_library("")); }

static PyModuleDef_Slot slots[] = {{Py_mod_exec, find_library}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "medsegpy_native._kernels", "Boxes of files into arrays, and voxels into categories.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
