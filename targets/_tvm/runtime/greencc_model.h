/* What a compiled model offers: open it, ask for shapes, run it, close it.
 *
 * All calls on one handle may come from any thread; they take turns. Handles are independent of each other: each has
 * its own threads and buffers. A forked child may go on with a handle that was not in use at that moment; with one that
 * was, calls fail. Every function returns a `greencc_status`, and on failure writes one line into `error`
 * (`error_size` bytes with the closing NUL).
 *
 * Shapes are passed flat: the dimensions of the first tensor, of the second, and so on, in the model's order.
 */
#ifndef GREENCC_MODEL_H
#define GREENCC_MODEL_H

#include <stddef.h>
#include <stdint.h>

#define GREENCC_ABI 1

typedef enum {
    GREENCC_OK = 0,
    GREENCC_BAD_SHAPE = 1, /* an input's shape, or a buffer's size, does not fit the model */
    GREENCC_NO_MEMORY = 2, /* buffers or threads could not be had */
    GREENCC_FAILED = 3,    /* a kernel reported an error */
    GREENCC_CORRUPT = 4    /* the plan or the weights are not what this code reads */
} greencc_status;

typedef struct greencc_handle greencc_handle;

/* GREENCC_ABI of the code inside. */
int greencc_abi(void);

/* Opens the model with its weights file and `threads` threads (the caller's among them). */
int greencc_open(const char *weights_path, int threads, greencc_handle **result, char *error, size_t error_size);

/* Like `greencc_open` for a plan that is not the one built in: it may be any bytes. */
int greencc_open_plan(const void *plan, size_t plan_size, const char *weights_path, int threads,
                      greencc_handle **result, char *error, size_t error_size);

/* Number of inputs, outputs, their dimensions in all, and steps: five numbers. */
void greencc_counts(const greencc_handle *handle, uint32_t counts[5]);

/* Names of an input or output; NULL for an index that is none. */
const char *greencc_input_name(const greencc_handle *handle, uint32_t index);
const char *greencc_output_name(const greencc_handle *handle, uint32_t index);

/* Bytes of one element, and number of dimensions, of an input (role 0) or output (role 1); 0 for one that is none. */
int greencc_tensor(const greencc_handle *handle, int role, uint32_t index, uint32_t *item_bytes, uint32_t *dims);

/* Shapes of the outputs for inputs of these shapes. */
int greencc_output_shapes(greencc_handle *handle, const int64_t *input_shapes, int64_t *output_shapes, char *error,
                          size_t error_size);

/* Runs once. Data are contiguous; those that do not start at a multiple of 64 bytes are copied. `output_bytes` has
 * the size of each output buffer, exactly what the shape needs. A batch may run in parts; then an error may leave the
 * first rows of outputs written. */
int greencc_run(greencc_handle *handle, const void *const *inputs, const int64_t *input_shapes, void *const *outputs,
                const uint64_t *output_bytes, char *error, size_t error_size);

/* Starts (1) or stops (0) taking the time of every step. */
void greencc_profile(greencc_handle *handle, int on);

/* Nanoseconds of each step, all parts together, in the last run with `greencc_profile` on; `count` is the number of
 * steps. */
int greencc_step_times(greencc_handle *handle, uint64_t *nanoseconds, uint32_t count);

/* Frees everything. NULL is allowed. */
void greencc_close(greencc_handle *handle);

#endif
