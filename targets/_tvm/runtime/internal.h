/* Shared by the files of the executor: the plan as it lies in memory, kernels, threads. */
#ifndef GREENCC_INTERNAL_H
#define GREENCC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "greencc_model.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "plans are little endian"
#endif

#define GREENCC_EXPORT __attribute__((visibility("default")))

enum { ALIGNMENT = 64, MAX_DEPTH = 32, MAX_RANK = 16, MAX_THREADS = 256, ERROR_BYTES = 512 };

/* What generated code calls and is called by: layouts of DLPack 1 and of TVM's FFI (tvm/ffi/c_api.h), and of its
 * backend (tvm/runtime/c_backend_api.h), version 0.27. */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} dl_tensor;

typedef struct {
    int32_t type_index;
    uint32_t zero_padding;
    union {
        int64_t integer;
        void *pointer;
        uint64_t bits;
    } value;
} ffi_any;

enum { FFI_INT = 1, FFI_TENSOR = 7, DEVICE_CPU = 1 };

typedef int (*kernel_function)(void *self, const ffi_any *args, int32_t count, ffi_any *result);

/* Made for each model: what its plan's steps may call, and how. The pattern has a letter per argument: 'r' a tensor
 * that is read, 'w' one that is written, 'i' an integer. One thread computes it alone where the last argument, a tensor,
 * has a first dimension of at most `alone`: others would be woken for less than that costs. */
typedef struct {
    kernel_function function;
    uint32_t args;
    const char *pattern;
    int64_t alone;
} kernel_entry;

extern const kernel_entry greencc_kernels[];
extern const uint32_t greencc_kernel_count;
extern const unsigned char greencc_plan[];
extern const size_t greencc_plan_size;

/* The plan's sections, in this order and of these sizes; `greencc.targets._tvm.plan` writes them. */
enum { PLAN_MAGIC = 0x4c504347, PLAN_VERSION = 2, COPY = 0xffffffff };
enum { PLACE_INPUT, PLACE_OUTPUT, PLACE_CONSTANT, PLACE_STORAGE };
enum { OP_CONST, OP_SYMBOL, OP_ADD, OP_SUB, OP_MUL, OP_FLOORDIV, OP_FLOORMOD, OP_MAX, OP_MIN, OP_DIV, OP_MOD };

typedef struct {
    uint32_t magic, version;
    uint64_t weights_bytes;
    uint32_t symbols, kernels, words, tensors, expressions, steps, inputs, outputs, args, dims, storages, text_bytes;
    uint32_t part; /* rows of inputs and outputs to run at once, 0: all */
    uint32_t reserved;
} plan_header;

typedef struct {
    uint64_t offset; /* in the weights, of a constant */
    uint32_t place, index;
    uint32_t first_dim, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    uint32_t reserved;
} plan_tensor;

typedef struct {
    uint32_t first, count;
} plan_expression;

typedef struct {
    uint32_t kernel, first_arg, args, name;
} plan_step;

typedef struct {
    uint32_t tensor, name;
} plan_port;

typedef struct {
    plan_header head;
    const int64_t *words;
    const plan_tensor *tensors;
    const plan_expression *expressions;
    const plan_step *steps;
    const plan_port *inputs;
    const plan_port *outputs;
    const uint32_t *args; /* tensors, or expressions where the kernel takes integers */
    const uint32_t *dims; /* expressions */
    const uint32_t *storages;
    const char *text;
    void *memory;
} plan;

/* Writes one line, shortened where it does not fit. */
void report(char *error, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* What a step calls. */
const kernel_entry *plan_kernel(const plan_step *step);

/* Copies and checks a plan: afterwards every index in it is good. */
int plan_read(plan *result, const void *bytes, size_t size, char *error, size_t error_size);
void plan_free(plan *result);

/* The symbol that a dimension is, or -1 for any other expression. */
int64_t plan_symbol(const plan *p, uint32_t expression);

/* Value of an expression; 0 where it overflows or divides by 0. */
int plan_evaluate(const plan *p, uint32_t expression, const int64_t *symbols, int64_t *value);

/* Bytes of an element. */
static inline uint32_t item_bytes(const plan_tensor *tensor) { return (uint32_t)tensor->bits * tensor->lanes / 8; }

/* Memory that a kernel asks for while it runs; kept for the next time. */
typedef struct {
    void *memory;
    size_t size;
    int taken;
} block;

/* One thread's part of a pool. */
typedef struct pool pool;
typedef struct {
    pool *owner;
    int id;
    int busy; /* inside a parallel loop: a nested one runs here alone */
    block *blocks;
    size_t block_count;
    char error[ERROR_BYTES];
    pthread_t thread;
} lane;

typedef struct {
    void *sync_handle;
    int32_t num_task;
} parallel_env;

typedef int (*parallel_function)(int task, parallel_env *env, void *data);

struct pool {
    int threads;
    int started;
    int alone; /* loops run on the thread that launches them */
    int spins; /* how often to look for work, or its end, before sleeping */
    pid_t process;
    lane *lanes;
    parallel_function function;
    void *data;
    parallel_env env;
    atomic_uint generation;
    atomic_int pending, failed, stop, sleepers, waiting;
    atomic_uint barrier_count, barrier_phase;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
};

int pool_open(pool *p, int threads);
void pool_close(pool *p);

/* Makes the calling thread the pool's first until `pool_leave`. */
void pool_enter(pool *p);
void pool_leave(pool *p);

/* What the lane that failed said. */
const char *pool_error(const pool *p);

/* Contiguous memory at a multiple of 64 bytes, never NULL for a size of 0; NULL where there is none. */
void *aligned_memory(uint64_t size);

/* An aligned copy of an input or output whose own buffer is not. */
typedef struct {
    void *memory;
    uint64_t size;
} bounce;

struct greencc_handle {
    plan plan;
    pool pool;
    pthread_mutex_t turn;
    atomic_int running;   /* the process that has the turn, 0: none */
    void *weights;
    size_t weights_size;
    int64_t *symbols;
    int64_t *values;      /* of expressions */
    int64_t *dims;        /* of tensors, one after the other */
    int64_t *shapes;      /* of the inputs, that everything is prepared for */
    int64_t *part_shapes; /* of a part of the inputs */
    dl_tensor *tensors;
    uint64_t *bytes;      /* of tensors */
    uint64_t *offsets;    /* of storages, and their end */
    ffi_any *args;
    bounce *copies;       /* of inputs, then outputs */
    uint64_t *times;
    uint32_t input_dims, output_dims;
    char *arena;
    uint64_t arena_size;
    int prepared, profiled;
};

typedef struct {
    char *text;
    size_t size;
} message;

/* Wait for one's turn with a handle, and end it. In a child that was forked while a thread of its parent had the turn,
 * nobody would ever end that: it fails, and says so. */
int take_turn(greencc_handle *h, const message *m);
void end_turn(greencc_handle *h);

#endif
