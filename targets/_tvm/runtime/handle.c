/* Opens and closes models, and tells what they take and give. */
#define _POSIX_C_SOURCE 200809L
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_weights(greencc_handle *h, const char *path, const message *m) {
    uint64_t wanted = h->plan.head.weights_bytes;
    if (wanted == 0) return GREENCC_OK;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat facts;
    if (file < 0 || fstat(file, &facts) != 0) {
        report(m->text, m->size, "cannot read %s: %s", path, strerror(errno));
        if (file >= 0) close(file);
        return GREENCC_CORRUPT;
    }
    if (facts.st_size < 0 || (uint64_t)facts.st_size != wanted || wanted > SIZE_MAX) {
        report(m->text, m->size, "%s has %lld bytes, the model needs %llu", path, (long long)facts.st_size,
               (unsigned long long)wanted);
        close(file);
        return GREENCC_CORRUPT;
    }
    void *memory = mmap(NULL, (size_t)wanted, PROT_READ, MAP_PRIVATE, file, 0);
    int reason = errno;
    close(file);
    if (memory == MAP_FAILED) {
        report(m->text, m->size, "cannot map %s: %s", path, strerror(reason));
        return GREENCC_NO_MEMORY;
    }
    h->weights = memory;
    h->weights_size = (size_t)wanted;
    return GREENCC_OK;
}

static void *zeros(uint64_t count, size_t size) { return calloc(count == 0 ? 1 : (size_t)count, size); }

/* Everything whose size does not depend on shapes. */
static int make_tables(greencc_handle *h) {
    const plan *p = &h->plan;
    const plan_header *head = &p->head;
    uint64_t dims = 0;
    for (uint32_t i = 0; i < head->tensors; i++) dims += p->tensors[i].ndim;
    for (uint32_t i = 0; i < head->inputs; i++) h->input_dims += p->tensors[p->inputs[i].tensor].ndim;
    for (uint32_t i = 0; i < head->outputs; i++) h->output_dims += p->tensors[p->outputs[i].tensor].ndim;
    h->symbols = zeros(head->symbols, sizeof *h->symbols);
    h->values = zeros(head->expressions, sizeof *h->values);
    h->dims = zeros(dims, sizeof *h->dims);
    h->shapes = zeros(h->input_dims, sizeof *h->shapes);
    h->part_shapes = zeros(h->input_dims, sizeof *h->part_shapes);
    h->tensors = zeros(head->tensors, sizeof *h->tensors);
    h->bytes = zeros(head->tensors, sizeof *h->bytes);
    h->offsets = zeros((uint64_t)head->storages + 1, sizeof *h->offsets);
    h->args = zeros(head->args, sizeof *h->args);
    h->copies = zeros((uint64_t)head->inputs + head->outputs, sizeof *h->copies);
    h->times = zeros(head->steps, sizeof *h->times);
    if (!h->symbols || !h->values || !h->dims || !h->shapes || !h->part_shapes || !h->tensors || !h->bytes ||
        !h->offsets || !h->args || !h->copies || !h->times)
        return GREENCC_NO_MEMORY;
    int64_t *next = h->dims;
    for (uint32_t i = 0; i < head->tensors; i++) {
        const plan_tensor *from = &p->tensors[i];
        dl_tensor *to = &h->tensors[i];
        to->device.type = DEVICE_CPU;
        to->ndim = (int32_t)from->ndim;
        to->dtype.code = from->code;
        to->dtype.bits = from->bits;
        to->dtype.lanes = from->lanes;
        to->shape = next;
        next += from->ndim;
    }
    return GREENCC_OK;
}

static int open_handle(greencc_handle *h, const void *bytes, size_t size, const char *weights, int threads,
                       const message *m) {
    int status = plan_read(&h->plan, bytes, size, m->text, m->size);
    if (status == GREENCC_OK) status = open_weights(h, weights, m);
    if (status != GREENCC_OK) return status;
    status = make_tables(h);
    if (status == GREENCC_OK) status = pool_open(&h->pool, threads);
    if (status != GREENCC_OK) report(m->text, m->size, "out of memory, or of threads: %d were asked for", threads);
    return status;
}

int take_turn(greencc_handle *h, const message *m) {
    int process = (int)getpid(), running = atomic_load(&h->running);
    if (running != 0 && running != process) {
        if (m != NULL)
            report(m->text, m->size, "this process was forked while the model was running: open it again here");
        return GREENCC_FAILED;
    }
    pthread_mutex_lock(&h->turn);
    atomic_store(&h->running, process);
    return GREENCC_OK;
}

void end_turn(greencc_handle *h) {
    atomic_store(&h->running, 0);
    pthread_mutex_unlock(&h->turn);
}

GREENCC_EXPORT int greencc_abi(void) { return GREENCC_ABI; }

GREENCC_EXPORT int greencc_open_plan(const void *bytes, size_t size, const char *weights_path, int threads,
                                     greencc_handle **result, char *error, size_t error_size) {
    *result = NULL;
    if (threads < 1 || threads > MAX_THREADS) {
        report(error, error_size, "%d threads: from 1 to %d are possible", threads, MAX_THREADS);
        return GREENCC_BAD_SHAPE;
    }
    greencc_handle *h = calloc(1, sizeof *h);
    if (h == NULL) {
        report(error, error_size, "out of memory");
        return GREENCC_NO_MEMORY;
    }
    pthread_mutex_init(&h->turn, NULL);
    message m = {error, error_size};
    int status = open_handle(h, bytes, size, weights_path, threads, &m);
    if (status != GREENCC_OK) {
        greencc_close(h);
        return status;
    }
    *result = h;
    return GREENCC_OK;
}

GREENCC_EXPORT int greencc_open(const char *weights_path, int threads, greencc_handle **result, char *error,
                                size_t error_size) {
    return greencc_open_plan(greencc_plan, greencc_plan_size, weights_path, threads, result, error, error_size);
}

GREENCC_EXPORT void greencc_close(greencc_handle *h) {
    if (h == NULL) return;
    pool_close(&h->pool);
    if (h->weights != NULL) munmap(h->weights, h->weights_size);
    for (uint32_t i = 0; h->copies != NULL && i < h->plan.head.inputs + h->plan.head.outputs; i++)
        free(h->copies[i].memory);
    free(h->symbols), free(h->values), free(h->dims), free(h->shapes), free(h->tensors), free(h->bytes);
    free(h->offsets), free(h->args), free(h->copies), free(h->times), free(h->arena), free(h->part_shapes);
    plan_free(&h->plan);
    pthread_mutex_destroy(&h->turn);
    free(h);
}

GREENCC_EXPORT void greencc_counts(const greencc_handle *h, uint32_t counts[5]) {
    counts[0] = h->plan.head.inputs;
    counts[1] = h->plan.head.outputs;
    counts[2] = h->input_dims;
    counts[3] = h->output_dims;
    counts[4] = h->plan.head.steps;
}

GREENCC_EXPORT const char *greencc_input_name(const greencc_handle *h, uint32_t index) {
    return index < h->plan.head.inputs ? h->plan.text + h->plan.inputs[index].name : NULL;
}

GREENCC_EXPORT const char *greencc_output_name(const greencc_handle *h, uint32_t index) {
    return index < h->plan.head.outputs ? h->plan.text + h->plan.outputs[index].name : NULL;
}

GREENCC_EXPORT int greencc_tensor(const greencc_handle *h, int role, uint32_t index, uint32_t *bytes,
                                  uint32_t *dims) {
    const plan *p = &h->plan;
    if (role < 0 || role > 1 || index >= (role == 0 ? p->head.inputs : p->head.outputs)) return GREENCC_BAD_SHAPE;
    const plan_tensor *tensor = &p->tensors[(role == 0 ? p->inputs : p->outputs)[index].tensor];
    *bytes = item_bytes(tensor);
    *dims = tensor->ndim;
    return GREENCC_OK;
}
