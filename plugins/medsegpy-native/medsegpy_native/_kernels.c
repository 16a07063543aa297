/* Read boxes of files into arrays, and convert voxels to categories, without the GIL.
 *
 * The kernels read byte ranges that medsegpy_core has located and checked; they do not parse files. An unexpected
 * condition (a changed file, a short read, a mask that is not binary) is a status, not an error: the caller then reads
 * the data itself, and raises the error.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "boxes.h"
#include "chunks.h"
#include "voxels.h"

/* Outputs of at least this size do not fit the cache, and are written with streaming stores. */
#define STREAMED (8 << 20)
/* The same for single slices, of which many follow each other. */
#define COLLATED_STREAMED (1 << 20)

static int table_of(const Py_buffer *buffer, Table *table) {
    table->entries = buffer->buf;
    table->entry = (size_t)buffer->len / 256;
    if (buffer->len % 256 || table->entry > LARGEST_ENTRY) {
        PyErr_SetString(PyExc_ValueError, "A table has 256 rows of at most 64 bytes.");
        return 0;
    }
    for (size_t voxel = 0; voxel < TILE; voxel++)
        memcpy(table->empty + voxel * table->entry, table->entries, table->entry);
    return 1;
}

static const char read_boxes_doc[] =
    "read_boxes(jobs, texts, maps, out, table)\n--\n\n"
    "Read boxes of files into `out`; see medsegpy_core.hdf5.native.Kernels for the arguments.";

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
    if (texts.len && text[texts.len - 1]) {
        PyErr_SetString(PyExc_ValueError, "The texts end with a zero.");
        goto end;
    }
    for (int64_t i = 0; i < count; i++)
        if (!fits(&jobs[i], &work.table, out.len, texts.len, n_maps)) {
            PyErr_Format(PyExc_ValueError, "Job %lld is invalid or does not fit the output.", (long long)i);
            goto end;
        }
    work.streaming = out.len >= STREAMED;
    Py_BEGIN_ALLOW_THREADS for (int64_t i = 0; i < count; i++) {
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
    Py_END_ALLOW_THREADS result =
        Py_BuildValue("(dddL)", work.opening, work.reading, work.converting, (long long)work.fetched);
end:
    for (Py_ssize_t i = 0; i < held; i++) PyBuffer_Release(&views[i]);
    free(views);
    PyBuffer_Release(&jobs_buffer);
    PyBuffer_Release(&texts);
    PyBuffer_Release(&out);
    PyBuffer_Release(&table);
    return result;
}

static const char inflate_chunks_doc[] =
    "inflate_chunks(fd, file, first, chunks, strides, item, size, itemsize, out)\n--\n\n"
    "Decode chunks of a file; see medsegpy_core.hdf5.native.Kernels for the arguments.";

static PyObject *inflate_chunks(PyObject *self, PyObject *args) {
    (void)self;
    int fd;
    long long first, item, size, itemsize;
    Py_buffer file, chunks, strides, out;
    if (!PyArg_ParseTuple(args, "iy*Ly*y*LLLw*", &fd, &file, &first, &chunks, &strides, &item, &size, &itemsize, &out))
        return NULL;
    PyObject *result = NULL;
    const int64_t *rows = chunks.buf, rank = strides.len / 16, columns = 3 + rank, count = chunks.len / 8 / columns;
    const Parts parts = {
        .rank = rank, .item = item, .from_strides = strides.buf, .to_strides = (const int64_t *)strides.buf + rank};
    Work work = {.fd = fd, .map = fd < 0 ? file.buf : NULL, .map_size = file.len};
    Inflater inflater = {0};
    if (strides.len % 16 || rank > MOST_AXES || chunks.len % (8 * columns) || (count && (uintptr_t)rows % 8) ||
        (rank && (uintptr_t)strides.buf % 8) || size < 1 || size > MOST_INFLATED || itemsize < 1 || itemsize > size ||
        item < 1 || item > size || first < 0) {
        PyErr_SetString(PyExc_ValueError, "Chunks are rows of int64 of equal size.");
        goto end;
    }
    for (int64_t i = 0; i < count; i++)
        if (!chunk_fits(rows + i * columns, first, &parts, size, out.len)) {
            PyErr_Format(PyExc_ValueError, "Chunk %lld is invalid or does not fit the output.", (long long)i);
            goto end;
        }
    int64_t done = 0;
    double decoding;
    Py_BEGIN_ALLOW_THREADS const double began = now();
    if (begin_inflating(&inflater, (size_t)size, (size_t)itemsize)) {
        for (; done < count; done++) {
            const int64_t *row = rows + done * columns;
            const uint8_t *from = bytes_at(&work, row[0] - first, (size_t)row[1]);
            if (!from || !inflate_chunk(&inflater, from, (size_t)row[1])) break;
            uint8_t *into = (uint8_t *)out.buf + row[2];
            if (rank == 0)
                memcpy(into, inflater.chunk, (size_t)size);
            else if (!inflater.is_empty) /* the caller has zeroed the output */
                put_part(inflater.chunk, into, row + 3, &parts);
        }
        end_inflating(&inflater);
    }
    free(work.scratch);
    decoding = now() - began - work.reading;
    Py_END_ALLOW_THREADS result =
        Py_BuildValue("(LddL)", (long long)(done < count ? done : -1), work.reading, decoding, (long long)work.fetched);
end:
    PyBuffer_Release(&file);
    PyBuffer_Release(&chunks);
    PyBuffer_Release(&strides);
    PyBuffer_Release(&out);
    return result;
}

static const char collate_doc[] =
    "collate(stored, item, bits, out, table)\n--\n\n"
    "Collate voxels in memory; returns False if they are not binary.";

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
    if (out_item(&job, &table) <= 0 || stored.len % item ||
        stored.len / item > PY_SSIZE_T_MAX / (Py_ssize_t)table.entry ||
        stored.len / item * (Py_ssize_t)table.entry != out.len) {
        PyErr_SetString(PyExc_ValueError, "Stored voxels, table and output do not match.");
        goto end;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS status =
        convert(&job, &table, stored.buf, (size_t)(stored.len / item), out.buf, out.len >= COLLATED_STREAMED);
    end_streaming();
    Py_END_ALLOW_THREADS result = PyBool_FromLong(status == DONE);
end:
    PyBuffer_Release(&stored);
    PyBuffer_Release(&out);
    PyBuffer_Release(&table_buffer);
    return result;
}

static PyMethodDef methods[] = {
    {"read_boxes", read_boxes, METH_VARARGS, read_boxes_doc},
    {"collate", collate, METH_VARARGS, collate_doc},
    {"inflate_chunks", inflate_chunks, METH_VARARGS, inflate_chunks_doc},
    {NULL, NULL, 0, NULL},
};

static int add_constants(PyObject *module) { return PyModule_AddIntConstant(module, "INFLATES", find_library()); }

static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_constants}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "medsegpy_native._kernels",
    "Read boxes of files into arrays, and convert voxels to categories.",
    0,
    methods,
    slots,
    NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
