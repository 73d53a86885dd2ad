/* Threads, and what generated code asks of its runtime: parallel loops, scratch memory, errors.
 *
 * A pool belongs to one handle. The thread that runs the model is its first; the others wait for work, first by
 * looking (most loops of a model follow each other within microseconds), then asleep.
 */
#define _POSIX_C_SOURCE 200809L
#include "internal.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SPINS = 2000 };

/* The lane of the thread that runs: generated code does not say for whom it asks. A key, and no thread-local variable,
 * because those would need the dynamic linker's library. */
static pthread_key_t current;
static int current_made;

__attribute__((constructor)) static void make_key(void) { current_made = pthread_key_create(&current, NULL) == 0; }

__attribute__((destructor)) static void delete_key(void) {
    if (current_made) pthread_key_delete(current);
}

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

void *aligned_memory(uint64_t size) {
    if (size > SIZE_MAX / 2) return NULL;
    uint64_t rounded = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return aligned_alloc(ALIGNMENT, rounded == 0 ? ALIGNMENT : (size_t)rounded);
}

static int run_task(lane *l, int task, pool *p) {
    l->busy = 1;
    int status = p->function(task, &p->env, p->data);
    l->busy = 0;
    if (status != 0) atomic_store(&p->failed, 1);
    return status;
}

static void *work(void *argument) {
    lane *l = argument;
    pool *p = l->owner;
    pthread_setspecific(current, l);
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < p->spins && atomic_load_explicit(&p->generation, memory_order_acquire) == seen; i++)
            pause_briefly();
        if (atomic_load(&p->generation) == seen) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleepers, 1);
            while (atomic_load(&p->generation) == seen) pthread_cond_wait(&p->wake, &p->lock);
            atomic_fetch_sub(&p->sleepers, 1);
            pthread_mutex_unlock(&p->lock);
        }
        seen = atomic_load(&p->generation);
        if (atomic_load(&p->stop)) return NULL;
        if (l->id < p->env.num_task) run_task(l, l->id, p);
        if (atomic_fetch_sub(&p->pending, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void announce(pool *p) {
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers) > 0) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
}

int pool_open(pool *p, int threads) {
    memset(p, 0, sizeof *p);
    if (!current_made) return GREENCC_NO_MEMORY;
    p->threads = threads;
    p->process = getpid();
    /* Who waits must not keep the processor from who works. */
    p->spins = threads <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 0;
    p->lanes = calloc((size_t)threads, sizeof *p->lanes);
    if (p->lanes == NULL) return GREENCC_NO_MEMORY;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    p->started = 1;
    /* Signals are for the program's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int failed = 0;
    for (int i = 0; i < threads; i++) {
        p->lanes[i].owner = p;
        p->lanes[i].id = i;
        if (i > 0 && !failed) {
            failed = pthread_create(&p->lanes[i].thread, NULL, work, &p->lanes[i]) != 0;
            if (!failed) p->started = i + 1;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        pool_close(p);
        return GREENCC_NO_MEMORY;
    }
    return GREENCC_OK;
}

void pool_close(pool *p) {
    if (p->lanes == NULL) return;
    /* A forked child has the memory but not the threads. */
    if (p->process == getpid()) {
        atomic_store(&p->stop, 1);
        announce(p);
        for (int i = 1; i < p->started; i++) pthread_join(p->lanes[i].thread, NULL);
        pthread_cond_destroy(&p->wake);
        pthread_cond_destroy(&p->done);
        pthread_mutex_destroy(&p->lock);
    }
    for (int i = 0; i < p->threads; i++) {
        for (size_t b = 0; b < p->lanes[i].block_count; b++) free(p->lanes[i].blocks[b].memory);
        free(p->lanes[i].blocks);
    }
    free(p->lanes);
    p->lanes = NULL;
}

void pool_enter(pool *p) {
    for (int i = 0; i < p->threads; i++) p->lanes[i].error[0] = 0;
    /* In a forked child only this thread is left: loops run on it alone. */
    p->lanes[0].busy = p->threads > 1 && p->process != getpid();
    pthread_setspecific(current, &p->lanes[0]);
}

void pool_leave(pool *p) {
    p->lanes[0].busy = 0;
    pthread_setspecific(current, NULL);
}

const char *pool_error(const pool *p) {
    for (int i = 0; i < p->threads; i++)
        if (p->lanes[i].error[0] != 0) return p->lanes[i].error;
    return "no reason given";
}

static int launch(parallel_function function, void *data, int tasks) {
    lane *l = pthread_getspecific(current);
    pool *p = l == NULL ? NULL : l->owner;
    if (p == NULL || l->busy || p->alone || p->threads == 1 || tasks == 1) {
        parallel_env alone = {NULL, 1};
        return function(0, &alone, data);
    }
    p->function = function;
    p->data = data;
    p->env.sync_handle = p;
    p->env.num_task = tasks <= 0 || tasks > p->threads ? p->threads : tasks;
    atomic_store(&p->barrier_count, 0);
    atomic_store(&p->failed, 0);
    atomic_store(&p->pending, p->threads - 1);
    announce(p);
    run_task(l, 0, p);
    for (int i = 0; i < p->spins && atomic_load_explicit(&p->pending, memory_order_acquire) > 0; i++) pause_briefly();
    if (atomic_load(&p->pending) > 0) {
        pthread_mutex_lock(&p->lock);
        atomic_store(&p->waiting, 1);
        while (atomic_load(&p->pending) > 0) pthread_cond_wait(&p->done, &p->lock);
        atomic_store(&p->waiting, 0);
        pthread_mutex_unlock(&p->lock);
    }
    return atomic_load(&p->failed) ? -1 : 0;
}

static int barrier(int task, parallel_env *env) {
    (void)task;
    pool *p = env->sync_handle;
    if (p == NULL || env->num_task <= 1) return 0;
    unsigned phase = atomic_load(&p->barrier_phase);
    if (atomic_fetch_add(&p->barrier_count, 1) + 1 == (unsigned)env->num_task) {
        atomic_store(&p->barrier_count, 0);
        atomic_fetch_add(&p->barrier_phase, 1);
        return 0;
    }
    for (int i = 0; atomic_load(&p->barrier_phase) == phase; i++) {
        if (i < p->spins) pause_briefly();
        else sched_yield();
    }
    return 0;
}

static block *free_block(lane *l, uint64_t size) {
    block *best = NULL, *any = NULL;
    for (size_t i = 0; i < l->block_count; i++) {
        block *b = &l->blocks[i];
        if (b->taken) continue;
        any = b;
        if (b->memory != NULL && b->size >= size && (best == NULL || b->size < best->size)) best = b;
    }
    if (best != NULL) return best;
    if (any == NULL) {
        block *grown = realloc(l->blocks, (l->block_count + 1) * sizeof *grown);
        if (grown == NULL) return NULL;
        l->blocks = grown;
        any = &grown[l->block_count++];
        memset(any, 0, sizeof *any);
    }
    free(any->memory);
    any->memory = aligned_memory(size);
    any->size = any->memory == NULL ? 0 : (size_t)size;
    return any->memory == NULL ? NULL : any;
}

static void *allocate(int device, int id, uint64_t size, int code, int bits) {
    (void)device, (void)id, (void)code, (void)bits;
    lane *l = pthread_getspecific(current);
    if (l == NULL) return NULL;
    block *b = free_block(l, size);
    if (b == NULL) {
        report(l->error, sizeof l->error, "out of memory: %llu bytes", (unsigned long long)size);
        return NULL;
    }
    b->taken = 1;
    return b->memory;
}

static int release(int device, int id, void *memory) {
    (void)device, (void)id;
    lane *l = pthread_getspecific(current);
    for (size_t i = 0; l != NULL && i < l->block_count; i++) {
        if (l->blocks[i].memory == memory && l->blocks[i].taken) {
            l->blocks[i].taken = 0;
            return 0;
        }
    }
    return -1;
}

/* Generated code calls through these; its own definitions are weak. */
extern int (*__TVMBackendParallelLaunch)(parallel_function, void *, int);
extern int (*__TVMBackendParallelBarrier)(int, parallel_env *);
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
int (*__TVMBackendParallelLaunch)(parallel_function, void *, int) = launch;
int (*__TVMBackendParallelBarrier)(int, parallel_env *) = barrier;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    lane *l = pthread_getspecific(current);
    if (l == NULL) return;
    size_t used = (size_t)snprintf(l->error, sizeof l->error, "%s: ", kind == NULL ? "error" : kind);
    for (int32_t i = 0; i < count && used < sizeof l->error; i++)
        if (parts[i] != NULL) used += (size_t)snprintf(l->error + used, sizeof l->error - used, "%s", parts[i]);
    for (char *c = l->error; *c != 0; c++)
        if (*c == '\n') *c = ' ';
}
