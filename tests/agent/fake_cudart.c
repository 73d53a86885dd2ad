/* A CUDA runtime without a GPU: "device" addresses lie 2^60 above the memory that they stand for, so that one taken for
 * the other crashes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AWAY ((uintptr_t)1 << 60)

static long asked(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text == NULL ? otherwise : strtol(text, NULL, 10);
}

int cudaSetDeviceFlags(unsigned flags) { return flags == 4 ? 0 : 1; }

int cudaGetDeviceCount(int *count) {
    *count = (int)asked("FAKE_CUDA_DEVICES", 1);
    return *count > 0 ? 0 : 100;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    long sm = asked("FAKE_CUDA_SM", 87);
    if (device != 0 || (attribute != 75 && attribute != 76)) return 1;
    *value = (int)(attribute == 75 ? sm / 10 : sm % 10);
    return 0;
}

int cudaRuntimeGetVersion(int *version) {
    *version = 12060;
    return 0;
}

int cudaMalloc(void **address, size_t size) {
    if (size > (size_t)asked("FAKE_CUDA_MEMORY", 1l << 40)) return 2;
    void *found = malloc(size);
    if (found == NULL) return 2;
    *address = (void *)((uintptr_t)found + AWAY);
    return 0;
}

int cudaMallocHost(void **address, size_t size) {
    *address = malloc(size);
    return *address == NULL ? 2 : 0;
}

int cudaFree(void *address) {
    free((void *)((uintptr_t)address - AWAY));
    return 0;
}

int cudaFreeHost(void *address) {
    free(address);
    return 0;
}

int cudaStreamCreate(void **stream) {
    *stream = malloc(1);
    return 0;
}

int cudaStreamSynchronize(void *stream) { return stream == NULL; }

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    if (stream == NULL) return 1;
    if (kind == 1) memcpy((void *)((uintptr_t)to - AWAY), from, size);
    else if (kind == 2) memcpy(to, (const void *)((uintptr_t)from - AWAY), size);
    else return 1;
    return 0;
}

const char *cudaGetErrorString(int status) { return status == 2 ? "out of memory" : status == 100 ? "no CUDA-capable device is detected" : "an error"; }
