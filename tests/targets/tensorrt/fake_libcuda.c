/* A CUDA driver whose answers the environment says. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int asked(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text == NULL ? otherwise : atoi(text);
}

int cuInit(unsigned flags) {
    (void)flags;
    if (asked("FAKE_CUDA_CRASH", 0)) raise(SIGSEGV);
    if (asked("FAKE_CUDA_HANG", 0)) sleep(600);
    return asked("FAKE_CUDA_STATUS", 0);
}

int cuDeviceGet(int *device, int number) {
    *device = number;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, "NVIDIA Test", (size_t)size);
    return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = (size_t)8 << 30;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int sm = asked("FAKE_CUDA_SM", 89);
    (void)device;
    *value = attribute == 75 ? sm / 10 : sm % 10;
    return 0;
}
