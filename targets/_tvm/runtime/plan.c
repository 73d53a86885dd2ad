/* Reads a plan: bytes that may be anything become sections whose indices are all in bounds. */
#define _POSIX_C_SOURCE 200809L
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void report(char *error, size_t size, const char *format, ...) {
    if (error == NULL || size == 0) return;
    va_list values;
    va_start(values, format);
    vsnprintf(error, size, format, values);
    va_end(values);
}

static int bad(char *error, size_t size, const char *what) {
    report(error, size, "the plan is corrupt: %s", what);
    return GREENCC_CORRUPT;
}

static int check_expression(const plan *p, uint32_t index) {
    const plan_expression *e = &p->expressions[index];
    if (e->count == 0 || (uint64_t)e->first + e->count > p->head.words) return 0;
    uint32_t depth = 0;
    for (uint32_t i = e->first, end = e->first + e->count; i < end; i++) {
        int64_t op = p->words[i];
        if (op == OP_CONST || op == OP_SYMBOL) {
            if (++i == end || ++depth > MAX_DEPTH) return 0;
            if (op == OP_SYMBOL && (p->words[i] < 0 || p->words[i] >= p->head.symbols)) return 0;
        } else {
            if (op < OP_ADD || op > OP_MOD || depth < 2) return 0;
            depth--;
        }
    }
    return depth == 1;
}

static int check_tensor(const plan *p, uint32_t index) {
    const plan_tensor *t = &p->tensors[index];
    if (t->ndim > MAX_RANK || (uint64_t)t->first_dim + t->ndim > p->head.dims) return 0;
    uint32_t bits = (uint32_t)t->bits * t->lanes;
    if (bits == 0 || bits % 8 != 0) return 0;
    switch (t->place) {
    case PLACE_INPUT: return t->index < p->head.inputs;
    case PLACE_OUTPUT: return t->index < p->head.outputs;
    case PLACE_STORAGE: return t->index < p->head.storages;
    case PLACE_CONSTANT: return t->offset % ALIGNMENT == 0 && t->offset <= p->head.weights_bytes;
    default: return 0;
    }
}

static int same_place(const plan_tensor *a, const plan_tensor *b) {
    return a->place == b->place && a->index == b->index && a->place != PLACE_CONSTANT;
}

const kernel_entry *plan_kernel(const plan_step *step) {
    static const kernel_entry copy = {NULL, 2, "rw", 0};
    return step->kernel == COPY ? &copy : &greencc_kernels[step->kernel];
}

/* Kernels may write only where no other argument lies, and never into inputs or constants. */
static int check_step(const plan *p, const plan_step *s) {
    if (s->kernel != COPY && s->kernel >= greencc_kernel_count) return 0;
    const kernel_entry *kernel = plan_kernel(s);
    if (s->args != kernel->args) return 0;
    if ((uint64_t)s->first_arg + s->args > p->head.args || s->name >= p->head.text_bytes) return 0;
    const uint32_t *args = p->args + s->first_arg;
    for (uint32_t i = 0; i < s->args; i++)
        if (args[i] >= (kernel->pattern[i] == 'i' ? p->head.expressions : p->head.tensors)) return 0;
    for (uint32_t i = 0; i < s->args; i++) {
        if (kernel->pattern[i] != 'w') continue;
        const plan_tensor *written = &p->tensors[args[i]];
        if (written->place != PLACE_OUTPUT && written->place != PLACE_STORAGE) return 0;
        for (uint32_t j = 0; j < s->args; j++)
            if (j != i && kernel->pattern[j] != 'i' && same_place(written, &p->tensors[args[j]])) return 0;
    }
    return 1;
}

static int check_ports(const plan *p, const plan_port *ports, uint32_t count, uint32_t place) {
    for (uint32_t i = 0; i < count; i++) {
        if (ports[i].tensor >= p->head.tensors || ports[i].name >= p->head.text_bytes) return 0;
        const plan_tensor *t = &p->tensors[ports[i].tensor];
        if (t->place != place || t->index != i) return 0;
    }
    return 1;
}

int64_t plan_symbol(const plan *p, uint32_t expression) {
    const plan_expression *e = &p->expressions[expression];
    return e->count == 2 && p->words[e->first] == OP_SYMBOL ? p->words[e->first + 1] : -1;
}

/* Every symbol must be a dimension of an input, where its value comes from. */
static int check_symbols(const plan *p, char *error, size_t error_size) {
    uint32_t found = 0;
    unsigned char *seen = calloc(p->head.symbols + (size_t)1, 1);
    if (seen == NULL) {
        report(error, error_size, "out of memory");
        return GREENCC_NO_MEMORY;
    }
    for (uint32_t i = 0; i < p->head.inputs; i++) {
        const plan_tensor *t = &p->tensors[p->inputs[i].tensor];
        for (uint32_t d = 0; d < t->ndim; d++) {
            int64_t symbol = plan_symbol(p, p->dims[t->first_dim + d]);
            if (symbol >= 0 && !seen[symbol]) {
                seen[symbol] = 1;
                found++;
            }
        }
    }
    free(seen);
    return found == p->head.symbols ? GREENCC_OK : bad(error, error_size, "a dimension has no source");
}

static int is_fixed(const plan *p, uint32_t expression) {
    const plan_expression *e = &p->expressions[expression];
    return e->count == 2 && p->words[e->first] == OP_CONST;
}

/* Parts are runs of rows: the only symbol is the first dimension of every input and output, and no other. */
static int check_part(const plan *p) {
    if (p->head.part == 0) return 1;
    if (p->head.symbols != 1 || p->head.inputs == 0 || p->head.outputs == 0) return 0;
    for (uint32_t i = 0; i < p->head.inputs + p->head.outputs; i++) {
        const plan_port *port = i < p->head.inputs ? &p->inputs[i] : &p->outputs[i - p->head.inputs];
        const plan_tensor *t = &p->tensors[port->tensor];
        if (t->ndim == 0 || plan_symbol(p, p->dims[t->first_dim]) != 0) return 0;
        for (uint32_t d = 1; d < t->ndim; d++)
            if (!is_fixed(p, p->dims[t->first_dim + d])) return 0;
    }
    return 1;
}

static int check(const plan *p, char *error, size_t error_size) {
    const plan_header *h = &p->head;
    if (h->text_bytes == 0 || p->text[h->text_bytes - 1] != 0) return bad(error, error_size, "names");
    for (uint32_t i = 0; i < h->expressions; i++)
        if (!check_expression(p, i)) return bad(error, error_size, "an expression");
    for (uint32_t i = 0; i < h->dims; i++)
        if (p->dims[i] >= h->expressions) return bad(error, error_size, "a dimension");
    for (uint32_t i = 0; i < h->storages; i++)
        if (p->storages[i] >= h->expressions) return bad(error, error_size, "a storage");
    for (uint32_t i = 0; i < h->tensors; i++)
        if (!check_tensor(p, i)) return bad(error, error_size, "a tensor");
    if (!check_ports(p, p->inputs, h->inputs, PLACE_INPUT)) return bad(error, error_size, "an input");
    if (!check_ports(p, p->outputs, h->outputs, PLACE_OUTPUT)) return bad(error, error_size, "an output");
    for (uint32_t i = 0; i < h->steps; i++)
        if (!check_step(p, &p->steps[i])) return bad(error, error_size, "a step");
    if (!check_part(p)) return bad(error, error_size, "its inputs and outputs do not come in parts");
    return check_symbols(p, error, error_size);
}

int plan_read(plan *result, const void *bytes, size_t size, char *error, size_t error_size) {
    memset(result, 0, sizeof *result);
    if (size < sizeof(plan_header)) return bad(error, error_size, "it is too short");
    memcpy(&result->head, bytes, sizeof(plan_header));
    const plan_header *h = &result->head;
    if (h->magic != PLAN_MAGIC) return bad(error, error_size, "it does not start as one");
    if (h->version != PLAN_VERSION) return bad(error, error_size, "it is of another version");
    if (h->kernels != greencc_kernel_count) return bad(error, error_size, "it is of another library");
    uint64_t sizes[10] = {
        (uint64_t)h->words * 8,   (uint64_t)h->tensors * sizeof(plan_tensor), (uint64_t)h->expressions * 8,
        (uint64_t)h->steps * 16,  (uint64_t)h->inputs * 8,                    (uint64_t)h->outputs * 8,
        (uint64_t)h->args * 4,    (uint64_t)h->dims * 4,                      (uint64_t)h->storages * 4,
        (uint64_t)h->text_bytes,
    };
    uint64_t starts[10], total = sizeof(plan_header);
    for (int i = 0; i < 10; i++) {
        starts[i] = total;
        total += sizes[i];
    }
    /* Every section has at least a byte per element, so counts are bounded by the size too. */
    if (total != size) return bad(error, error_size, "its size is not what it says");
    if (h->symbols > h->dims) return bad(error, error_size, "it has too many symbols");
    char *memory = malloc(size);
    if (memory == NULL) {
        report(error, error_size, "out of memory");
        return GREENCC_NO_MEMORY;
    }
    memcpy(memory, bytes, size);
    result->memory = memory;
    result->words = (const int64_t *)(const void *)(memory + starts[0]);
    result->tensors = (const plan_tensor *)(const void *)(memory + starts[1]);
    result->expressions = (const plan_expression *)(const void *)(memory + starts[2]);
    result->steps = (const plan_step *)(const void *)(memory + starts[3]);
    result->inputs = (const plan_port *)(const void *)(memory + starts[4]);
    result->outputs = (const plan_port *)(const void *)(memory + starts[5]);
    result->args = (const uint32_t *)(const void *)(memory + starts[6]);
    result->dims = (const uint32_t *)(const void *)(memory + starts[7]);
    result->storages = (const uint32_t *)(const void *)(memory + starts[8]);
    result->text = memory + starts[9];
    int status = check(result, error, error_size);
    if (status != GREENCC_OK) plan_free(result);
    return status;
}

void plan_free(plan *result) {
    free(result->memory);
    result->memory = NULL;
}

static int apply(int64_t op, int64_t a, int64_t b, int64_t *value) {
    if (op == OP_ADD) return !__builtin_add_overflow(a, b, value);
    if (op == OP_SUB) return !__builtin_sub_overflow(a, b, value);
    if (op == OP_MUL) return !__builtin_mul_overflow(a, b, value);
    if (op == OP_MAX || op == OP_MIN) {
        *value = (op == OP_MAX) == (a > b) ? a : b;
        return 1;
    }
    if (b == 0 || (b == -1 && a == INT64_MIN)) return 0;
    int64_t rest = a % b;
    int below = rest != 0 && (rest < 0) != (b < 0);
    if (op == OP_DIV || op == OP_FLOORDIV) {
        *value = a / b - (op == OP_FLOORDIV && below);
    } else {
        *value = op == OP_FLOORMOD && below ? rest + b : rest;
    }
    return 1;
}

int plan_evaluate(const plan *p, uint32_t expression, const int64_t *symbols, int64_t *value) {
    const plan_expression *e = &p->expressions[expression];
    int64_t stack[MAX_DEPTH] = {0};
    uint32_t depth = 0;
    for (uint32_t i = e->first, end = e->first + e->count; i < end; i++) {
        int64_t op = p->words[i];
        if (op == OP_CONST) {
            stack[depth++] = p->words[++i];
        } else if (op == OP_SYMBOL) {
            stack[depth++] = symbols[p->words[++i]];
        } else {
            depth--;
            if (!apply(op, stack[depth - 1], stack[depth], &stack[depth - 1])) return 0;
        }
    }
    *value = stack[0];
    return 1;
}
