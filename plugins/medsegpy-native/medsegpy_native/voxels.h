/* Convert stored voxels to the contents of a batch: categories and float32. */
#ifndef MEDSEGPY_VOXELS_H
#define MEDSEGPY_VOXELS_H

#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "These kernels are for little-endian machines; medsegpy_core works without them."
#endif

/* Functions to inline, so that the compiler specializes them for constant sizes. */
#define FLAT inline __attribute__((always_inline))
/* Voxels that are processed together, and the largest row of a table in bytes. */
#define TILE 64
#define LARGEST_ENTRY 64

/* The kind of stored voxels, and the status of a job. */
enum {
    COPY,
    PLANES,
    BITS,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I16_SWAPPED,
    U16_SWAPPED,
    I32_SWAPPED,
    U32_SWAPPED,
    F32_SWAPPED
};
enum { DONE, LEFT, STALE, CHANGED, NOT_BINARY };

typedef struct {
    const uint8_t *entries;              /* 256 rows: the output for each combination of channels */
    size_t entry;                        /* bytes per row */
    uint8_t empty[TILE * LARGEST_ENTRY]; /* the output for a tile of empty voxels */
} Table;

/* -- streaming stores */

/* Copy 16 bytes at a time; both ends of the output must be aligned to 16. Streaming stores do not read cache lines
 * before writing them, which is three times as fast; fastest if the whole output starts at a cache line. */
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

/* Make streaming stores visible to other threads. */
static inline void end_streaming(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* -- conversion to categories */

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

/* Pack the channels of a voxel, one byte each, into bits: channel c is bit c. */
static inline unsigned pack_bits(uint64_t x) { return (unsigned)((x * UINT64_C(0x0102040810204080)) >> 56); }

/* Convert a tile of voxels with `item` channels of one byte each, 0 or 1. */
static FLAT int planes_of(const uint8_t *from, size_t voxels, size_t item, const uint8_t *entries, size_t entry,
                          uint8_t *out) {
    const uint64_t wanted = item == 8 ? ~UINT64_C(0) : (UINT64_C(1) << (8 * item)) - 1;
    /* For the last voxels, a load of 8 bytes would exceed the input. */
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

/* Callers pass a constant `entry`. Empty tiles are handled first, because most tiles of most masks are empty. */
static FLAT int expand_of(const uint8_t *from, size_t voxels, size_t item, int bits, const Table *table, size_t entry,
                          uint8_t *out, int streaming) {
    uint8_t tile[TILE * LARGEST_ENTRY];
    for (size_t done = 0; done < voxels; done += TILE, from += TILE * item, out += TILE * entry) {
        const size_t some = voxels - done < TILE ? voxels - done : TILE, size = some * entry;
        const int streamed = streaming && (uintptr_t)out % 16 == 0 && size % 16 == 0;
        const uint8_t *ready = table->empty;
        if (any(from, some * item)) {
            uint8_t *into = streamed ? tile : out;
            int status = bits ? bits_of(from, some, table->entries, entry, into)
                              : planes_of(from, some, item, table->entries, entry, into);
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

static int expand(const uint8_t *from, size_t voxels, size_t item, int bits, const Table *table, uint8_t *out,
                  int streaming) {
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

/* -- conversion to float32 */

#define TO_FLOAT(NAME, TYPE, LOAD)                                       \
    static void NAME(const uint8_t *from, size_t voxels, uint8_t *out) { \
        for (size_t i = 0; i < voxels; i++) {                            \
            TYPE stored;                                                 \
            memcpy(&stored, from + i * sizeof(TYPE), sizeof(TYPE));      \
            float value = (float)LOAD(stored);                           \
            memcpy(out + 4 * i, &value, 4);                              \
        }                                                                \
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
static const struct {
    ToFloat function;
    int64_t item;
} TO_FLOATS[] = {
    [I8] = {from_i8, 1},
    [U8] = {from_u8, 1},
    [I16] = {from_i16, 2},
    [U16] = {from_u16, 2},
    [I32] = {from_i32, 4},
    [U32] = {from_u32, 4},
    [I16_SWAPPED] = {from_i16_swapped, 2},
    [U16_SWAPPED] = {from_u16_swapped, 2},
    [I32_SWAPPED] = {from_i32_swapped, 4},
    [U32_SWAPPED] = {from_u32_swapped, 4},
    [F32_SWAPPED] = {from_f32_swapped, 4},
};

#endif
