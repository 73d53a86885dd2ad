/* Runs a plan: a fixed sequence of kernel calls on buffers whose sizes follow from the inputs' shapes.
 *
 * Buffers and arguments are made when shapes change, and kept: a further run of the same shapes only sets the
 * addresses of inputs and outputs.
 *
 * A plan may say that rows do not depend on each other, and how many of them the caches hold. More rows than that run
 * in parts: buffers are those of a part, whatever the batch.
 */
#define _POSIX_C_SOURCE 200809L
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Symbols from the shapes of the inputs; a symbol is the first dimension that it alone stands for. */
static int bind_symbols(greencc_handle *h, const int64_t *shapes, const message *m) {
    const plan *p = &h->plan;
    for (uint32_t i = 0; i < p->head.symbols; i++) h->symbols[i] = -1;
    const int64_t *given = shapes;
    for (uint32_t i = 0; i < p->head.inputs; i++) {
        const plan_tensor *t = &p->tensors[p->inputs[i].tensor];
        for (uint32_t d = 0; d < t->ndim; d++, given++) {
            int64_t symbol = plan_symbol(p, p->dims[t->first_dim + d]);
            if (*given < 0) {
                report(m->text, m->size, "input '%s' has %lld as dimension %u", greencc_input_name(h, i),
                       (long long)*given, d);
                return GREENCC_BAD_SHAPE;
            }
            if (symbol >= 0 && h->symbols[symbol] < 0) h->symbols[symbol] = *given;
        }
    }
    given = shapes;
    for (uint32_t i = 0; i < p->head.inputs; i++) {
        const plan_tensor *t = &p->tensors[p->inputs[i].tensor];
        for (uint32_t d = 0; d < t->ndim; d++, given++) {
            int64_t expected = -1;
            if (!plan_evaluate(p, p->dims[t->first_dim + d], h->symbols, &expected) || expected != *given) {
                report(m->text, m->size, "input '%s' has %lld as dimension %u, the model takes %lld there",
                       greencc_input_name(h, i), (long long)*given, d, (long long)expected);
                return GREENCC_BAD_SHAPE;
            }
        }
    }
    return GREENCC_OK;
}

static int too_large(const message *m) {
    report(m->text, m->size, "these shapes give tensors that are too large, or of negative size");
    return GREENCC_BAD_SHAPE;
}

/* Dimensions and bytes of every tensor, offsets of storages. */
static int measure(greencc_handle *h, const message *m) {
    const plan *p = &h->plan;
    for (uint32_t i = 0; i < p->head.expressions; i++)
        if (!plan_evaluate(p, i, h->symbols, &h->values[i])) return too_large(m);
    for (uint32_t i = 0; i < p->head.tensors; i++) {
        const plan_tensor *t = &p->tensors[i];
        uint64_t bytes = item_bytes(t);
        for (uint32_t d = 0; d < t->ndim; d++) {
            int64_t size = h->values[p->dims[t->first_dim + d]];
            if (size < 0 || __builtin_mul_overflow(bytes, (uint64_t)size, &bytes) || bytes > SIZE_MAX / 4)
                return too_large(m);
            h->tensors[i].shape[d] = size;
        }
        h->bytes[i] = bytes;
    }
    uint64_t end = 0;
    for (uint32_t i = 0; i < p->head.storages; i++) {
        int64_t size = h->values[p->storages[i]];
        if (size < 0 || (uint64_t)size > SIZE_MAX / 4) return too_large(m);
        h->offsets[i] = end;
        end += ((uint64_t)size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        if (end > SIZE_MAX / 2) return too_large(m);
    }
    h->offsets[p->head.storages] = end;
    return GREENCC_OK;
}

/* A tensor must fit where it lies: a plan that is wrong must not reach memory of others. */
static int check_places(const greencc_handle *h, const message *m) {
    const plan *p = &h->plan;
    for (uint32_t i = 0; i < p->head.tensors; i++) {
        const plan_tensor *t = &p->tensors[i];
        uint64_t room;
        if (t->place == PLACE_CONSTANT) room = p->head.weights_bytes - t->offset;
        else if (t->place == PLACE_STORAGE) room = h->offsets[t->index + 1] - h->offsets[t->index];
        else room = h->bytes[(t->place == PLACE_INPUT ? p->inputs : p->outputs)[t->index].tensor];
        if (h->bytes[i] > room) {
            report(m->text, m->size, "the plan is corrupt: a tensor does not fit its place");
            return GREENCC_CORRUPT;
        }
    }
    for (uint32_t i = 0; i < p->head.steps; i++) {
        const plan_step *s = &p->steps[i];
        const uint32_t *args = p->args + s->first_arg;
        if (s->kernel == COPY && h->bytes[args[0]] != h->bytes[args[1]]) {
            report(m->text, m->size, "the plan is corrupt: a copy changes the size");
            return GREENCC_CORRUPT;
        }
    }
    return GREENCC_OK;
}

static char *place_of(greencc_handle *h, const plan_tensor *t) {
    static char nothing[ALIGNMENT] __attribute__((aligned(ALIGNMENT)));
    if (t->place == PLACE_STORAGE) return h->arena + h->offsets[t->index];
    if (t->place == PLACE_CONSTANT && h->weights != NULL && t->offset < h->weights_size)
        return (char *)h->weights + t->offset;
    return nothing; /* without elements, or set for every run */
}

/* Everything that follows from the shapes of the inputs; nothing to do when they are the last ones. */
static int prepare(greencc_handle *h, const int64_t *shapes, const message *m) {
    const plan *p = &h->plan;
    size_t bytes = h->input_dims * sizeof *shapes;
    if (h->prepared && memcmp(shapes, h->shapes, bytes) == 0) return GREENCC_OK;
    h->prepared = 0;
    int status = bind_symbols(h, shapes, m);
    if (status == GREENCC_OK) status = measure(h, m);
    if (status == GREENCC_OK) status = check_places(h, m);
    if (status != GREENCC_OK) return status;
    uint64_t needed = h->offsets[p->head.storages];
    if (h->arena == NULL || needed > h->arena_size) {
        free(h->arena);
        h->arena = aligned_memory(needed);
        h->arena_size = h->arena == NULL ? 0 : needed;
        if (h->arena == NULL) {
            report(m->text, m->size, "out of memory: %llu bytes of buffers", (unsigned long long)needed);
            return GREENCC_NO_MEMORY;
        }
    }
    for (uint32_t i = 0; i < p->head.tensors; i++) h->tensors[i].data = place_of(h, &p->tensors[i]);
    for (uint32_t i = 0; i < p->head.steps; i++) {
        const plan_step *s = &p->steps[i];
        const char *pattern = plan_kernel(s)->pattern;
        for (uint32_t a = s->first_arg; a < s->first_arg + s->args; a++) {
            ffi_any *arg = &h->args[a];
            arg->zero_padding = 0;
            arg->value.bits = 0;
            if (pattern[a - s->first_arg] != 'i') {
                arg->type_index = FFI_TENSOR;
                arg->value.pointer = &h->tensors[p->args[a]];
            } else {
                arg->type_index = FFI_INT;
                arg->value.integer = h->values[p->args[a]];
            }
        }
    }
    memcpy(h->shapes, shapes, bytes);
    h->prepared = 1;
    return GREENCC_OK;
}

/* The rows of a run, and how they are split: into `parts` that differ by a row at most. */
typedef struct {
    int64_t rows, parts;
} split;

static int64_t part_start(const split *s, int64_t part) {
    int64_t longer = s->rows % s->parts;
    return s->rows / s->parts * part + (part < longer ? part : longer);
}

/* Bytes of a row, of an input or output of a plan that comes in parts, while a part of it is prepared. */
static uint64_t row_bytes(const greencc_handle *h, uint32_t tensor) {
    return h->bytes[tensor] / (uint64_t)h->tensors[tensor].shape[0];
}

static int prepare_part(greencc_handle *h, const int64_t *shapes, int64_t rows, const message *m) {
    const plan *p = &h->plan;
    memcpy(h->part_shapes, shapes, h->input_dims * sizeof *shapes);
    int64_t *first = h->part_shapes;
    for (uint32_t i = 0; i < p->head.inputs; first += p->tensors[p->inputs[i].tensor].ndim, i++) *first = rows;
    return prepare(h, h->part_shapes, m);
}

/* Prepares everything, or the first part where there are several: `s->parts` says which. */
static int prepare_split(greencc_handle *h, const int64_t *shapes, split *s, const message *m) {
    const plan *p = &h->plan;
    *s = (split){0, 1};
    if (p->head.part == 0) return prepare(h, shapes, m);
    int status = bind_symbols(h, shapes, m);
    if (status != GREENCC_OK) return status;
    const int64_t rows = h->symbols[0], most = p->head.part;
    if (rows <= most) return prepare(h, shapes, m);
    *s = (split){rows, rows / most + (rows % most != 0)};
    status = prepare_part(h, shapes, part_start(s, 1), m);
    if (status != GREENCC_OK) return status;
    for (uint32_t i = 0; i < p->head.inputs + p->head.outputs; i++) {
        uint32_t tensor = (i < p->head.inputs ? &p->inputs[i] : &p->outputs[i - p->head.inputs])->tensor;
        uint64_t row = row_bytes(h, tensor), all;
        if (__builtin_mul_overflow(row, (uint64_t)rows, &all) || all > SIZE_MAX / 4) return too_large(m);
        /* Nothing to split; and the number of parts must be bounded by what the caller holds. */
        if (row == 0) {
            *s = (split){0, 1};
            return prepare(h, shapes, m);
        }
    }
    return GREENCC_OK;
}

GREENCC_EXPORT int greencc_output_shapes(greencc_handle *h, const int64_t *input_shapes, int64_t *output_shapes,
                                         char *error, size_t error_size) {
    message m = {error, error_size};
    split s;
    int status = take_turn(h, &m);
    if (status != GREENCC_OK) return status;
    status = prepare_split(h, input_shapes, &s, &m);
    for (uint32_t i = 0; status == GREENCC_OK && i < h->plan.head.outputs; i++) {
        const dl_tensor *tensor = &h->tensors[h->plan.outputs[i].tensor];
        for (int32_t d = 0; d < tensor->ndim; d++)
            *output_shapes++ = d == 0 && s.parts > 1 ? s.rows : tensor->shape[d];
    }
    end_turn(h);
    return status;
}

static int misaligned(const void *data) { return (uintptr_t)data % ALIGNMENT != 0; }

static void *room(bounce *b, uint64_t size, const message *m) {
    if (b->memory == NULL || b->size < size) {
        free(b->memory);
        b->memory = aligned_memory(size);
        b->size = b->memory == NULL ? 0 : size;
        if (b->memory == NULL) report(m->text, m->size, "out of memory: %llu bytes", (unsigned long long)size);
    }
    return b->memory;
}

static int check_outputs(const greencc_handle *h, const split *s, const uint64_t *output_bytes, const message *m) {
    const plan *p = &h->plan;
    for (uint32_t i = 0; i < p->head.outputs; i++) {
        uint32_t tensor = p->outputs[i].tensor;
        uint64_t bytes = s->parts > 1 ? row_bytes(h, tensor) * (uint64_t)s->rows : h->bytes[tensor];
        if (output_bytes[i] != bytes) {
            report(m->text, m->size, "the buffer of output '%s' has %llu bytes, it needs %llu",
                   greencc_output_name(h, i), (unsigned long long)output_bytes[i], (unsigned long long)bytes);
            return GREENCC_BAD_SHAPE;
        }
    }
    return GREENCC_OK;
}

/* Where a row of an input or output starts. */
static size_t row_offset(const greencc_handle *h, uint32_t tensor, int64_t row) {
    return row == 0 ? 0 : (size_t)(row_bytes(h, tensor) * (uint64_t)row);
}

/* Addresses of inputs and outputs from a row on, and of the tensors that are views of them. */
static int attach(greencc_handle *h, const void *const *inputs, void *const *outputs, int64_t row,
                  const message *m) {
    const plan *p = &h->plan;
    for (uint32_t i = 0; i < p->head.inputs; i++) {
        dl_tensor *tensor = &h->tensors[p->inputs[i].tensor];
        uint64_t bytes = h->bytes[p->inputs[i].tensor];
        if (bytes == 0) continue;
        const char *given = (const char *)inputs[i] + row_offset(h, p->inputs[i].tensor, row);
        void *data = (void *)(uintptr_t)given;
        if (misaligned(data)) {
            data = room(&h->copies[i], bytes, m);
            if (data == NULL) return GREENCC_NO_MEMORY;
            memcpy(data, given, (size_t)bytes);
        }
        tensor->data = data;
    }
    for (uint32_t i = 0; i < p->head.outputs; i++) {
        dl_tensor *tensor = &h->tensors[p->outputs[i].tensor];
        uint64_t bytes = h->bytes[p->outputs[i].tensor];
        if (bytes == 0) continue;
        void *data = (char *)outputs[i] + row_offset(h, p->outputs[i].tensor, row);
        tensor->data = misaligned(data) ? room(&h->copies[p->head.inputs + i], bytes, m) : data;
        if (tensor->data == NULL) return GREENCC_NO_MEMORY;
    }
    for (uint32_t i = 0; i < p->head.tensors; i++) {
        const plan_tensor *t = &p->tensors[i];
        if (t->place == PLACE_INPUT) h->tensors[i].data = h->tensors[p->inputs[t->index].tensor].data;
        if (t->place == PLACE_OUTPUT) h->tensors[i].data = h->tensors[p->outputs[t->index].tensor].data;
    }
    return GREENCC_OK;
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int is_small(const greencc_handle *h, const plan_step *s) {
    const plan *p = &h->plan;
    if (s->args == 0 || plan_kernel(s)->alone == 0) return 0;
    const dl_tensor *written = &h->tensors[p->args[s->first_arg + s->args - 1]];
    return written->ndim > 0 && written->shape[0] <= plan_kernel(s)->alone;
}

static int run_steps(greencc_handle *h, const message *m) {
    const plan *p = &h->plan;
    uint64_t before = h->profiled ? now() : 0;
    for (uint32_t i = 0; i < p->head.steps; i++) {
        const plan_step *s = &p->steps[i];
        const ffi_any *args = h->args + s->first_arg;
        if (s->kernel == COPY) {
            const uint32_t *ids = p->args + s->first_arg;
            memcpy(h->tensors[ids[1]].data, h->tensors[ids[0]].data, (size_t)h->bytes[ids[1]]);
        } else {
            ffi_any result = {0, 0, {0}};
            h->pool.alone = is_small(h, s);
            if (greencc_kernels[s->kernel].function(NULL, args, (int32_t)s->args, &result) != 0) {
                report(m->text, m->size, "step %u (%s) failed: %s", i, p->text + s->name, pool_error(&h->pool));
                return GREENCC_FAILED;
            }
        }
        if (h->profiled) {
            uint64_t after = now();
            h->times[i] += after - before;
            before = after;
        }
    }
    return GREENCC_OK;
}

/* Runs what is prepared, with inputs and outputs from a row on. */
static int run_from(greencc_handle *h, const void *const *inputs, void *const *outputs, int64_t row,
                    const message *m) {
    const plan *p = &h->plan;
    int status = attach(h, inputs, outputs, row, m);
    if (status == GREENCC_OK) status = run_steps(h, m);
    for (uint32_t i = 0; status == GREENCC_OK && i < p->head.outputs; i++) {
        uint32_t tensor = p->outputs[i].tensor;
        if (h->bytes[tensor] == 0) continue;
        char *wanted = (char *)outputs[i] + row_offset(h, tensor, row);
        const void *data = h->tensors[tensor].data;
        if (data != wanted) memcpy(wanted, data, (size_t)h->bytes[tensor]);
    }
    return status;
}

GREENCC_EXPORT int greencc_run(greencc_handle *h, const void *const *inputs, const int64_t *input_shapes,
                               void *const *outputs, const uint64_t *output_bytes, char *error, size_t error_size) {
    message m = {error, error_size};
    split s;
    int status = take_turn(h, &m);
    if (status != GREENCC_OK) return status;
    status = prepare_split(h, input_shapes, &s, &m);
    if (status == GREENCC_OK) status = check_outputs(h, &s, output_bytes, &m);
    if (status == GREENCC_OK) {
        if (h->profiled) memset(h->times, 0, h->plan.head.steps * sizeof *h->times);
        pool_enter(&h->pool);
        for (int64_t part = 0; status == GREENCC_OK && part < s.parts; part++) {
            int64_t row = part_start(&s, part);
            if (part > 0) status = prepare_part(h, input_shapes, part_start(&s, part + 1) - row, &m);
            if (status == GREENCC_OK) status = run_from(h, inputs, outputs, row, &m);
        }
        pool_leave(&h->pool);
    }
    end_turn(h);
    return status;
}

GREENCC_EXPORT void greencc_profile(greencc_handle *h, int on) {
    if (take_turn(h, NULL) != GREENCC_OK) return;
    h->profiled = on != 0;
    end_turn(h);
}

GREENCC_EXPORT int greencc_step_times(greencc_handle *h, uint64_t *nanoseconds, uint32_t count) {
    if (count != h->plan.head.steps) return GREENCC_BAD_SHAPE;
    if (take_turn(h, NULL) != GREENCC_OK) return GREENCC_FAILED;
    memcpy(nanoseconds, h->times, count * sizeof *nanoseconds);
    end_turn(h);
    return GREENCC_OK;
}
