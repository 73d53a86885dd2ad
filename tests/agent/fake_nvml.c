/* A double of NVIDIA's management library: two GPUs, whose figures the environment gives.
   NVML_DOUBLE = "energy" (the counters move), "instant" (power now alone), "average", or "none". */
#include <stdlib.h>
#include <string.h>

static const char *kind(void) {
    const char *told = getenv("NVML_DOUBLE");
    return told ? told : "energy";
}

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned value_type;
    int returned;
    union {
        double d;
        unsigned ui;
        unsigned long long ull;
    } value;
} field_value;

int nvmlInit_v2(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 2;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(size_t)(0x7000000000UL + index);
    return index < 2 ? 0 : 2;
}
static unsigned number(void *handle) { return (unsigned)((size_t)handle - 0x7000000000UL); }
int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    strncpy(name, number(handle) ? "NVIDIA L4" : "NVIDIA H200", size);
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules) {
    static unsigned long long counted[2] = {5000000ULL, 7000000000000ULL};
    if (strcmp(kind(), "energy") != 0) return 3;
    *millijoules = counted[number(handle)] += 1500;
    return 0;
}
int nvmlDeviceGetFieldValues(void *handle, int count, field_value *values) {
    if (count != 1 || values->field != 186) return 2;
    values->returned = strcmp(kind(), "instant") == 0 ? 0 : 3;
    values->value.ui = number(handle) ? 30000 : 123456;
    return 0;
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    *milliwatts = number(handle) ? 31000 : 120000;
    return strcmp(kind(), "average") == 0 ? 0 : 3;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    *celsius = number(handle) ? 41 : 55;
    return sensor == 0 ? 0 : 2;
}
int nvmlDeviceGetClockInfo(void *handle, int clock, unsigned *megahertz) {
    *megahertz = number(handle) ? 2040 : 1980;
    return clock == 1 ? 0 : 2;
}
