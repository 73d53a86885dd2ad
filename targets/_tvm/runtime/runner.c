/* Runs a compiled model where there is no Python: by hand on a device, or under an emulator at the end of two pipes.
 *
 *     runner model.so weights.bin input.bin output.bin [--threads T] [--repeat N]
 *     runner model.so weights.bin --serve [--threads T]
 *     runner model.so weights.bin --drive inputs.bin [--threads T]
 *     runner model.so weights.bin --profile inputs.bin [--threads T] [--repeat N]
 *
 * A file of inputs has, for every input in the model's order: its dimensions (int64 each), the number of its bytes
 * (uint64), and the bytes. A file of outputs is the same of the outputs. Everything is little-endian, as the processors
 * are that this is built for. With --repeat the model runs N times after a warm-up, and the smallest, the median and the
 * largest milliseconds are printed; not under emulation, where they would say nothing.
 *
 * With --serve it says what the model is, and then answers until its input ends:
 *
 *     hello     "GCR1", uint32 inputs, uint32 outputs, and for every input, then every output: uint32 bytes of an
 *               element, uint32 dimensions
 *     request   inputs, as in a file
 *     answer    uint32 status: 0, and outputs as in a file; or uint32 length and a line of text
 *
 * With --drive it keeps the inputs of a file (one run's after the other), runs each once, and times stretches:
 *
 *     hello     as above, and uint32: 1 where it finds that it is emulated
 *     request   double seconds (negative: by runs), uint64 runs, double rate (0: flat out), uint64 first (where in the
 *               inputs to begin), uint64 due (all bits: none), and as many doubles: seconds from the beginning
 *     answer    uint32 status: 0, then double begin, double end (seconds of CLOCK_MONOTONIC), uint64 runs, uint64
 *               requests that started later than they were due by more than their service time, and, for each run,
 *               double milliseconds of the run, and then double milliseconds from when it was due; or as above
 *
 * With --profile it runs the first inputs of a file once, and then N times (default 1) with the time of every step:
 *
 *     hello     as above, and uint32: 1 where it finds that it is emulated
 *     answer    uint32 status: 0, then uint32 steps, and for each of N runs: uint64 nanoseconds of every step; or as
 *               above
 *
 * Exit codes: 0; 1 the model reported an error; 2 the command line; 3 a file; 4 the processor lacks instructions. */
#define _XOPEN_SOURCE 700
#include "greencc_model.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>

#define ALIGNMENT 64
#define TEXT 512

/* What the model was compiled to use: bits of the auxiliary vector. */
typedef struct {
    int word; /* 0: AT_HWCAP, 1: AT_HWCAP2, 2: the end */
    unsigned long bit;
    const char *name;
} need;

#if defined(__aarch64__)
static const need needs[] = {
#include "needs.h"
    {2, 0, ""},
};
#endif

enum { EXIT_MODEL = 1, EXIT_USAGE = 2, EXIT_FILE = 3, EXIT_PROCESSOR = 4 };

typedef struct {
    int (*abi)(void);
    int (*open)(const char *, int, greencc_handle **, char *, size_t);
    void (*counts)(const greencc_handle *, uint32_t *);
    int (*tensor)(const greencc_handle *, int, uint32_t, uint32_t *, uint32_t *);
    int (*shapes)(greencc_handle *, const int64_t *, int64_t *, char *, size_t);
    int (*run)(greencc_handle *, const void *const *, const int64_t *, void *const *, const uint64_t *, char *, size_t);
    void (*profile)(greencc_handle *, int);
    int (*step_times)(greencc_handle *, uint64_t *, uint32_t);
    void (*close)(greencc_handle *);
} model_code;

typedef struct {
    uint32_t item_bytes, dims;
    void *data;
    uint64_t room, bytes;
} tensor;

typedef struct {
    model_code code;
    greencc_handle *handle;
    uint32_t count[2];  /* of inputs and outputs */
    uint32_t dims[2];
    uint32_t steps;
    tensor *tensors[2];
    int64_t *shapes[2];
    const void **inputs;
    void **outputs;
    uint64_t *output_bytes;
    char error[TEXT];
} session;

static void die(int code, const char *what, const char *why) {
    fprintf(stderr, "runner: %s: %s\n", what, why);
    exit(code);
}

static void *memory(size_t count, size_t size) {
    void *found = calloc(count == 0 ? 1 : count, size);
    if (found == NULL) die(EXIT_MODEL, "memory", "none is left");
    return found;
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) die(EXIT_FILE, name, "the library has no such function: it is no model of greencc");
    return found;
}

/* A function pointer from an object pointer, which ISO C has no conversion for. */
#define BIND(field, name)                                    \
    do {                                                     \
        void *address_ = symbol(library, name);              \
        memcpy(&s->code.field, &address_, sizeof address_);  \
    } while (0)

static void check_processor(void) {
#if defined(__aarch64__)
    for (const need *n = needs; n->word < 2; n++) {
        if (getauxval(n->word == 0 ? AT_HWCAP : AT_HWCAP2) & n->bit) continue;
        char text[TEXT];
        snprintf(text, sizeof text, "it has no %s, which the model was compiled to use", n->name);
        die(EXIT_PROCESSOR, "processor", text);
    }
#endif
}

static void open_model(session *s, const char *path, const char *weights, int threads) {
    /* A name without a slash is looked for in the system's folders alone. */
    char place[PATH_MAX];
    if (realpath(path, place) == NULL) die(EXIT_FILE, path, strerror(errno));
    void *library = dlopen(place, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) die(EXIT_FILE, path, dlerror());
    BIND(abi, "greencc_abi");
    BIND(open, "greencc_open");
    BIND(counts, "greencc_counts");
    BIND(tensor, "greencc_tensor");
    BIND(shapes, "greencc_output_shapes");
    BIND(run, "greencc_run");
    BIND(profile, "greencc_profile");
    BIND(step_times, "greencc_step_times");
    BIND(close, "greencc_close");
    if (s->code.abi() != GREENCC_ABI) die(EXIT_FILE, path, "it was made by another version of greencc");
    if (s->code.open(weights, threads, &s->handle, s->error, TEXT) != GREENCC_OK) die(EXIT_MODEL, path, s->error);
    uint32_t counts[5];
    s->code.counts(s->handle, counts);
    s->steps = counts[4];
    for (int role = 0; role < 2; role++) {
        s->count[role] = counts[role];
        s->dims[role] = counts[2 + role];
        s->tensors[role] = memory(s->count[role], sizeof(tensor));
        s->shapes[role] = memory(s->dims[role], sizeof(int64_t));
        for (uint32_t i = 0; i < s->count[role]; i++) {
            tensor *t = &s->tensors[role][i];
            if (s->code.tensor(s->handle, role, i, &t->item_bytes, &t->dims) != GREENCC_OK)
                die(EXIT_MODEL, path, "it does not know its own tensors");
        }
    }
    s->inputs = memory(s->count[0], sizeof *s->inputs);
    s->outputs = memory(s->count[1], sizeof *s->outputs);
    s->output_bytes = memory(s->count[1], sizeof *s->output_bytes);
}

static void make_room(tensor *t, uint64_t bytes) {
    t->bytes = bytes;
    if (t->data != NULL && t->room >= bytes) return;
    free(t->data);
    t->data = NULL;
    t->room = bytes < ALIGNMENT ? ALIGNMENT : bytes;
    if (t->room > SIZE_MAX / 2 || posix_memalign(&t->data, ALIGNMENT, (size_t)t->room) != 0)
        die(EXIT_MODEL, "memory", "the tensors do not fit into it");
}

/* 0: read whole; 1: the stream ended before the first byte; 2: it ended later. */
static int read_all(FILE *from, void *to, uint64_t bytes) {
    size_t got = fread(to, 1, (size_t)bytes, from);
    return got == bytes ? 0 : got == 0 ? 1 : 2;
}

static int product(const int64_t *shape, uint32_t dims, uint64_t item, uint64_t *bytes) {
    *bytes = item;
    for (uint32_t d = 0; d < dims; d++)
        if (shape[d] < 0 || __builtin_mul_overflow(*bytes, (uint64_t)shape[d], bytes)) return 0;
    return 1;
}

/* The inputs of one run; 0 where the stream has ended instead. Anything else that is wrong ends the program: what
 * comes after it could not be told from data. */
static int read_inputs(session *s, FILE *from, const char *name) {
    int64_t *shape = s->shapes[0];
    for (uint32_t i = 0; i < s->count[0]; i++) {
        tensor *t = &s->tensors[0][i];
        uint64_t bytes, wanted;
        int status = 0;
        if (t->dims > 0) status = read_all(from, shape, t->dims * sizeof *shape);
        if (status == 1 && i == 0) return 0;
        if (status == 0) {
            status = read_all(from, &bytes, sizeof bytes);
            if (status == 1 && i == 0 && t->dims == 0) return 0;
        }
        if (status != 0) die(EXIT_FILE, name, "it ends within an input");
        if (!product(shape, t->dims, t->item_bytes, &wanted) || wanted != bytes)
            die(EXIT_FILE, name, "the bytes of an input do not fit its dimensions");
        make_room(t, bytes);
        if (bytes > 0 && read_all(from, t->data, bytes) != 0) die(EXIT_FILE, name, "it ends within an input");
        s->inputs[i] = t->data;
        shape += t->dims;
    }
    return 1;
}

static int run_once(session *s) {
    int status = s->code.shapes(s->handle, s->shapes[0], s->shapes[1], s->error, TEXT);
    if (status != GREENCC_OK) return status;
    const int64_t *shape = s->shapes[1];
    for (uint32_t i = 0; i < s->count[1]; i++) {
        tensor *t = &s->tensors[1][i];
        uint64_t bytes;
        if (!product(shape, t->dims, t->item_bytes, &bytes)) die(EXIT_MODEL, "model", "an output is too large");
        make_room(t, bytes);
        s->outputs[i] = t->data;
        s->output_bytes[i] = bytes;
        shape += t->dims;
    }
    return s->code.run(s->handle, s->inputs, s->shapes[0], s->outputs, s->output_bytes, s->error, TEXT);
}

static void put(FILE *to, const void *data, uint64_t bytes, const char *name) {
    if (bytes > 0 && fwrite(data, 1, (size_t)bytes, to) != bytes) die(EXIT_FILE, name, strerror(errno));
}

static void put_number(FILE *to, uint32_t value, const char *name) { put(to, &value, sizeof value, name); }

static void write_outputs(session *s, FILE *to, const char *name) {
    const int64_t *shape = s->shapes[1];
    for (uint32_t i = 0; i < s->count[1]; i++) {
        const tensor *t = &s->tensors[1][i];
        put(to, shape, t->dims * sizeof *shape, name);
        put(to, &t->bytes, sizeof t->bytes, name);
        put(to, t->data, t->bytes, name);
        shape += t->dims;
    }
    if (fflush(to) != 0) die(EXIT_FILE, name, strerror(errno));
}

static void greet(session *s) {
    const char *out = "standard output";
    put(stdout, "GCR1", 4, out);
    put_number(stdout, s->count[0], out);
    put_number(stdout, s->count[1], out);
    for (int role = 0; role < 2; role++)
        for (uint32_t i = 0; i < s->count[role]; i++) {
            put_number(stdout, s->tensors[role][i].item_bytes, out);
            put_number(stdout, s->tensors[role][i].dims, out);
        }
}

static void refuse(session *s, int status) {
    const char *out = "standard output";
    put_number(stdout, (uint32_t)status, out);
    put_number(stdout, (uint32_t)strlen(s->error), out);
    put(stdout, s->error, strlen(s->error), out);
    if (fflush(stdout) != 0) die(EXIT_FILE, out, strerror(errno));
}

static void serve(session *s) {
    const char *out = "standard output";
    greet(s);
    if (fflush(stdout) != 0) die(EXIT_FILE, out, strerror(errno));
    while (read_inputs(s, stdin, "standard input")) {
        int status = run_once(s);
        if (status != GREENCC_OK) {
            refuse(s, status);
            continue;
        }
        put_number(stdout, GREENCC_OK, out);
        write_outputs(s, stdout, out);
    }
}

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Under user-mode emulation /proc/cpuinfo is that of the emulating machine, or says that it is QEMU's. */
static int emulated(void) {
#if defined(__aarch64__)
    FILE *facts = fopen("/proc/cpuinfo", "r");
    if (facts == NULL) return 1;
    char line[TEXT];
    int arm = 0, qemu = 0;
    while (fgets(line, sizeof line, facts) != NULL) {
        arm |= strncmp(line, "CPU implementer", 15) == 0;
        qemu |= strstr(line, "QEMU") != NULL;
    }
    fclose(facts);
    return !arm || qemu;
#else
    return 0;
#endif
}

static void repeat(session *s, long runs) {
    if (emulated()) {
        fprintf(stderr, "runner: no times are taken under emulation: they would say nothing about the device\n");
        return;
    }
    double *times = memory((size_t)runs, sizeof *times);
    for (long i = -3; i < runs; i++) {
        double start = now_ms();
        if (run_once(s) != GREENCC_OK) die(EXIT_MODEL, "model", s->error);
        if (i >= 0) times[i] = now_ms() - start;
    }
    qsort(times, (size_t)runs, sizeof *times, by_size);
    printf("%ld runs, milliseconds: smallest %.4f, median %.4f, largest %.4f\n", runs, times[0], times[runs / 2],
           times[runs - 1]);
    free(times);
}

/* Inputs of one run, kept. */
typedef struct {
    int64_t *shapes;
    void **data;
} feed;

/* Numbers that grow; those of a long stretch are many. */
typedef struct {
    double *values;
    size_t count, room;
} series;

static void append(series *to, double value) {
    if (to->count == to->room) {
        to->room = to->room == 0 ? 4096 : 2 * to->room;
        to->values = realloc(to->values, to->room * sizeof *to->values);
        if (to->values == NULL) die(EXIT_MODEL, "memory", "none is left for the times");
    }
    to->values[to->count++] = value;
}

/* The tensors' own memory goes to the feed; the next reading gets new. */
static feed keep_feed(session *s) {
    feed f = {memory(s->dims[0], sizeof(int64_t)), memory(s->count[0], sizeof(void *))};
    memcpy(f.shapes, s->shapes[0], s->dims[0] * sizeof *f.shapes);
    for (uint32_t i = 0; i < s->count[0]; i++) {
        tensor *t = &s->tensors[0][i];
        f.data[i] = t->data;
        t->data = NULL;
        t->room = 0;
    }
    return f;
}

static int run_feed(session *s, const feed *f) {
    memcpy(s->shapes[0], f->shapes, s->dims[0] * sizeof *f->shapes);
    for (uint32_t i = 0; i < s->count[0]; i++) s->inputs[i] = f->data[i];
    return run_once(s);
}

static double now(void) { return now_ms() / 1e3; }

static void sleep_until(double moment) {
    struct timespec until = {(time_t)moment, (long)((moment - (double)(time_t)moment) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
}

typedef struct {
    double seconds;
    uint64_t runs;
    double rate;
    uint64_t first, due;
} stretch;

/* One request at least, within the stretch; what is due before its end is finished. */
static int drive_once(session *s, const feed *feeds, size_t count, const stretch *p, const double *due) {
    series services = {0}, latencies = {0};
    uint64_t done = 0, late = 0;
    int listed = p->due != UINT64_MAX, paced = listed || p->rate > 0.0, status = GREENCC_OK;
    double start = now(), moment = start;
    while (p->seconds >= 0.0 || done < p->runs) {
        double offset = moment - start;
        if (listed) {
            if (done >= p->due && (done > 0 || p->seconds < 0.0)) break;
            offset = done < p->due ? due[done] : p->seconds;
        } else if (p->rate > 0.0) {
            offset = (double)done / p->rate;
        }
        if (p->seconds >= 0.0) {
            if (done > 0 && offset >= p->seconds) break;
            if (offset > p->seconds) offset = p->seconds;
        }
        double wanted = start + offset;
        if (wanted > moment) sleep_until(wanted);
        double began = now();
        status = run_feed(s, &feeds[(p->first + done) % count]);
        moment = now();
        if (status != GREENCC_OK) break;
        done++;
        append(&services, (moment - began) * 1e3);
        append(&latencies, (moment - wanted) * 1e3);
        late += paced && began - wanted > moment - began;
    }
    if (status != GREENCC_OK) {
        refuse(s, status);
    } else {
        const char *out = "standard output";
        if (paced && p->seconds >= 0.0 && moment - start < p->seconds) {
            sleep_until(start + p->seconds);
            moment = now();
        }
        put_number(stdout, GREENCC_OK, out);
        put(stdout, &start, sizeof start, out);
        put(stdout, &moment, sizeof moment, out);
        put(stdout, &done, sizeof done, out);
        put(stdout, &late, sizeof late, out);
        put(stdout, services.values, services.count * sizeof(double), out);
        put(stdout, latencies.values, latencies.count * sizeof(double), out);
        if (fflush(stdout) != 0) die(EXIT_FILE, out, strerror(errno));
    }
    free(services.values);
    free(latencies.values);
    return status;
}

static void drive(session *s, const char *input) {
    const char *out = "standard output", *in = "standard input";
    FILE *from = fopen(input, "rb");
    if (from == NULL) die(EXIT_FILE, input, strerror(errno));
    feed *feeds = NULL;
    size_t count = 0;
    while (read_inputs(s, from, input)) {
        feeds = realloc(feeds, (count + 1) * sizeof *feeds);
        if (feeds == NULL) die(EXIT_MODEL, "memory", "the inputs do not fit into it");
        feeds[count++] = keep_feed(s);
    }
    fclose(from);
    if (count == 0) die(EXIT_FILE, input, "it is empty");
    for (size_t i = 0; i < count; i++)
        if (run_feed(s, &feeds[i]) != GREENCC_OK) die(EXIT_MODEL, "model", s->error);
    greet(s);
    put_number(stdout, (uint32_t)emulated(), out);
    if (fflush(stdout) != 0) die(EXIT_FILE, out, strerror(errno));
    double fixed[5];
    for (int status; (status = read_all(stdin, fixed, sizeof fixed)) != 1;) {
        if (status != 0) die(EXIT_FILE, in, "it ends within a request");
        stretch p = {fixed[0], 0, fixed[2], 0, 0};
        memcpy(&p.runs, &fixed[1], sizeof p.runs);
        memcpy(&p.first, &fixed[3], sizeof p.first);
        memcpy(&p.due, &fixed[4], sizeof p.due);
        size_t listed = p.due == UINT64_MAX ? 0 : (size_t)p.due;
        if (listed > SIZE_MAX / sizeof(double) / 2) die(EXIT_FILE, in, "a request lists too many moments");
        double *due = memory(listed, sizeof *due);
        if (listed > 0 && read_all(stdin, due, listed * sizeof *due) != 0) die(EXIT_FILE, in, "it ends within a request");
        drive_once(s, feeds, count, &p, due);
        free(due);
    }
}

static void profile(session *s, const char *input, long runs) {
    const char *out = "standard output";
    FILE *from = fopen(input, "rb");
    if (from == NULL) die(EXIT_FILE, input, strerror(errno));
    if (!read_inputs(s, from, input)) die(EXIT_FILE, input, "it is empty");
    fclose(from);
    greet(s);
    put_number(stdout, (uint32_t)emulated(), out);
    uint64_t *times = memory((size_t)runs * s->steps, sizeof *times);
    int status = run_once(s);
    s->code.profile(s->handle, 1);
    for (long i = 0; i < runs && status == GREENCC_OK; i++) {
        status = run_once(s);
        if (status == GREENCC_OK) status = s->code.step_times(s->handle, times + (size_t)i * s->steps, s->steps);
    }
    if (status != GREENCC_OK) {
        refuse(s, status);
        return;
    }
    put_number(stdout, GREENCC_OK, out);
    put_number(stdout, s->steps, out);
    put(stdout, times, (uint64_t)runs * s->steps * sizeof *times, out);
    if (fflush(stdout) != 0) die(EXIT_FILE, out, strerror(errno));
    free(times);
}

static void by_hand(session *s, const char *input, const char *output, long runs) {
    FILE *from = fopen(input, "rb");
    if (from == NULL) die(EXIT_FILE, input, strerror(errno));
    if (!read_inputs(s, from, input) && s->count[0] > 0) die(EXIT_FILE, input, "it is empty");
    if (fgetc(from) != EOF) die(EXIT_FILE, input, "there is more in it than the inputs of the model");
    fclose(from);
    if (run_once(s) != GREENCC_OK) die(EXIT_MODEL, "model", s->error);
    FILE *to = fopen(output, "wb");
    if (to == NULL) die(EXIT_FILE, output, strerror(errno));
    write_outputs(s, to, output);
    if (fclose(to) != 0) die(EXIT_FILE, output, strerror(errno));
    if (runs > 0) repeat(s, runs);
}

static long number(const char *text, const char *what, long most) {
    char *end = NULL;
    errno = 0;
    long value = text == NULL ? 0 : strtol(text, &end, 10);
    if (text == NULL || *end != '\0' || errno != 0 || value < 1 || value > most)
        die(EXIT_USAGE, what, "a whole number above 0 must follow");
    return value;
}

int main(int argc, char **argv) {
    const char *files[4], *driven = NULL, *profiled = NULL;
    int count = 0, serving = 0;
    long threads = 1, runs = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--serve") == 0) serving = 1;
        else if (strcmp(argv[i], "--drive") == 0 && i + 1 < argc) driven = argv[++i];
        else if (strcmp(argv[i], "--profile") == 0 && i + 1 < argc) profiled = argv[++i];
        else if (strcmp(argv[i], "--threads") == 0) threads = number(argv[++i], "--threads", 1024);
        else if (strcmp(argv[i], "--repeat") == 0) runs = number(argv[++i], "--repeat", 10000000);
        else if (count < 4) files[count++] = argv[i];
        else die(EXIT_USAGE, argv[i], "unknown");
    }
    if (count != (serving || driven != NULL || profiled != NULL ? 2 : 4)) {
        fprintf(stderr, "usage: %s model.so weights.bin input.bin output.bin [--threads T] [--repeat N]\n", argv[0]);
        return EXIT_USAGE;
    }
    check_processor();
    session s = {0};
    open_model(&s, files[0], files[1], (int)threads);
    if (driven != NULL) drive(&s, driven);
    else if (profiled != NULL) profile(&s, profiled, runs > 0 ? runs : 1);
    else if (serving) serve(&s);
    else by_hand(&s, files[2], files[3], runs);
    s.code.close(s.handle);
    return 0;
}
