/* A clock that steps when a file says so, for the processes that preload this library.
 *
 * ERRATA_TEST_CLOCK names a file of two 64-bit integers: by how many seconds the clock is off, and since
 * which second of the machine's own clock. Files that were written since then bear the stepped time, as they
 * would if the whole machine had stepped. The monotonic clocks are left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct step { int64_t seconds, since; };
static const struct step none = {0, 0};
static const volatile struct step *step = &none;

__attribute__((constructor)) static void map_step(void) {
    const char *name = getenv("ERRATA_TEST_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(NULL, sizeof(struct step), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED)
        step = page;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        now->tv_sec += step->seconds;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}

static int dated(int failed, struct stat64 *status) {
    if (!failed && status->st_mtim.tv_sec >= step->since)
        status->st_mtim.tv_sec += step->seconds;
    return failed;
}

#define REAL(name, ...)                                                                                      \
    static int (*real)(__VA_ARGS__);                                                                         \
    if (!real)                                                                                               \
        real = (int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);

int stat64(const char *restrict path, struct stat64 *restrict status) {
    REAL("stat64", const char *, struct stat64 *)
    return dated(real(path, status), status);
}

int lstat64(const char *restrict path, struct stat64 *restrict status) {
    REAL("lstat64", const char *, struct stat64 *)
    return dated(real(path, status), status);
}

int fstat64(int file, struct stat64 *status) {
    REAL("fstat64", int, struct stat64 *)
    return dated(real(file, status), status);
}

int fstatat64(int folder, const char *restrict path, struct stat64 *restrict status, int flags) {
    REAL("fstatat64", int, const char *, struct stat64 *, int)
    return dated(real(folder, path, status, flags), status);
}
