/* Runs a model, and plans that are made from its own by changing bytes, until all went well or one call crashes.
 *
 *     harness PLAN WEIGHTS THREADS FIRST LAST
 *
 * Seed 0 leaves the plan as it is. Prints how many plans were refused, and how many ran.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "greencc_model.h"

enum { LIMIT = 1 << 20 };

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static void change(unsigned char *plan, size_t size) {
    for (uint32_t times = 1 + draw(3); times > 0; times--) {
        size_t at = draw((uint32_t)size);
        switch (draw(4)) {
        case 0: plan[at] ^= (unsigned char)(1u << draw(8)); break;
        case 1: plan[at] = (unsigned char)draw(256); break;
        case 2: memset(plan + at / 4 * 4, (int)draw(2) * 255, at / 4 * 4 + 4 <= size ? 4 : 0); break;
        default: plan[at / 4 * 4] = (unsigned char)draw(12); break;
        }
    }
}

static int run(greencc_handle *handle, char *error, size_t error_size) {
    uint32_t counts[5];
    greencc_counts(handle, counts);
    if (counts[0] > 64 || counts[1] > 64 || counts[2] > 512 || counts[3] > 512) return GREENCC_BAD_SHAPE;
    int64_t input_shapes[512], output_shapes[512];
    void *inputs[64] = {0}, *outputs[64] = {0};
    uint64_t output_bytes[64] = {0};
    static const int64_t usual[] = {3, 4, 4};
    for (uint32_t i = 0; i < counts[2]; i++) input_shapes[i] = usual[i % 3];
    int status = greencc_output_shapes(handle, input_shapes, output_shapes, error, error_size);
    const int64_t *shape = input_shapes;
    for (int role = 0; role < 2 && status == GREENCC_OK; role++, shape = output_shapes) {
        for (uint32_t i = 0; i < counts[role] && status == GREENCC_OK; i++) {
            uint32_t bytes, rank;
            uint64_t size = 1;
            status = greencc_tensor(handle, role, i, &bytes, &rank);
            for (uint32_t d = 0; d < rank && size <= LIMIT; d++) size *= (uint64_t)*shape++;
            if (size > LIMIT) status = GREENCC_BAD_SHAPE;
            void *data = calloc(size == 0 || size > LIMIT ? 1 : size, bytes);
            if (role == 0) inputs[i] = data;
            else outputs[i] = data, output_bytes[i] = size * bytes;
        }
    }
    if (status == GREENCC_OK)
        status = greencc_run(handle, (const void *const *)inputs, input_shapes, outputs, output_bytes, error,
                             error_size);
    for (int i = 0; i < 64; i++) free(inputs[i]), free(outputs[i]);
    return status;
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    FILE *file = fopen(arguments[1], "rb");
    static unsigned char plan[1 << 16], changed[1 << 16];
    size_t size = file == NULL ? 0 : fread(plan, 1, sizeof plan, file);
    if (size == 0 || size == sizeof plan) return 2;
    fclose(file);
    long refused = 0, ran = 0, failed = 0;
    for (long seed = atol(arguments[4]); seed <= atol(arguments[5]); seed++) {
        char error[256] = "";
        greencc_handle *handle;
        state = (uint64_t)seed * 7919;
        memcpy(changed, plan, size);
        size_t used = size;
        if (seed > 0) {
            change(changed, size);
            if (draw(20) == 0) used = draw((uint32_t)size);
        }
        int status = greencc_open_plan(changed, used, arguments[2], atoi(arguments[3]), &handle, error, sizeof error);
        if (status != GREENCC_OK) {
            refused++;
        } else {
            /* The plan itself again and again: threads meet in every way. */
            for (int turn = 0; status == GREENCC_OK && turn < (seed == 0 ? 200 : 1); turn++)
                status = run(handle, error, sizeof error);
            if (status == GREENCC_OK) ran++;
            else failed++;
            greencc_close(handle);
        }
        if (status != GREENCC_OK && (error[0] == 0 || strchr(error, '\n') != NULL) && status != GREENCC_BAD_SHAPE) {
            printf("seed %ld: status %d without a line that says why\n", seed, status);
            return 1;
        }
        if (seed == 0 && status != GREENCC_OK) {
            printf("the plan itself: %s\n", error);
            return 1;
        }
    }
    printf("%ld refused, %ld failed, %ld ran\n", refused, failed, ran);
    return 0;
}
