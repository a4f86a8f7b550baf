/* Faults of the disk and of the clock for one process, steered from outside while it runs.

   LD_PRELOAD=disk_shim.so DISK_SHIM_CONTROL=/path/control DISK_SHIM_DIRECTORY=/path/data [DISK_SHIM_BOOT_ID=/path/id]

   Only what lies below DISK_SHIM_DIRECTORY is touched: regular files, and for syncs directories; never sockets, events or
   logs. DISK_SHIM_BOOT_ID is read instead of the kernel's boot id. The control file is mapped; its 64 bytes, which
   shim.py writes (little-endian):

      0  i32 write_errno      writes fail with it; 0: they go through
      4  i32 write_left       so many more writes fail; -1: all
      8  i32 write_extends    1: only those that make their file longer fail, as on a full disk
     12  i32 sync_errno       the same for syncs
     16  i32 sync_left
     20  i32 sync_lies        1: syncs say that all is well, and do nothing
     24  i32 sync_delay_us    syncs take that much longer
     28  i32 skipped_percent  of the writes and syncs that would fail, so many go through
     32  i64 clock_offset_ms  added to the wall clock
     40  u32 writes_failed    what was done, counted here
     44  u32 syncs_failed
     48  u32 syncs_lied
     52  u32 clocks_turned

   A write that fails with EIO is torn: half of its first buffer lands all the same. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    volatile int32_t write_errno, write_left, write_extends, sync_errno, sync_left, sync_lies, sync_delay_us, skipped_percent;
    volatile int64_t clock_offset_ms;
    volatile uint32_t writes_failed, syncs_failed, syncs_lied, clocks_turned;
    uint32_t unused[2];
};

static struct control nothing;
static struct control* control = &nothing;
static char directory[PATH_MAX];
static const char* boot_id;
static uint32_t drawn;

#define REAL(name) ({ static __typeof__(&name) found; if (!found) found = dlsym(RTLD_NEXT, #name); found; })
#define COUNT(field) __atomic_add_fetch(&control->field, 1, __ATOMIC_RELAXED)

__attribute__((constructor)) static void begin(void) {
    const char* path = getenv("DISK_SHIM_CONTROL");
    const char* below = getenv("DISK_SHIM_DIRECTORY");
    boot_id = getenv("DISK_SHIM_BOOT_ID");
    if (!path || !below) return;
    snprintf(directory, sizeof directory, "%s/", below);
    int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
    void* mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        perror("disk_shim: the control file cannot be used");
        _exit(70);
    }
    close(fd);
    control = mapped;
}

static int is_below(const char* path) {
    size_t length = strlen(directory);
    return !strncmp(path, directory, length) || (strlen(path) == length - 1 && !strncmp(path, directory, length - 1));
}

static int is_ours(int fd, struct stat* status) {
    char link[40], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_below(path) && fstat(fd, status) == 0 && (S_ISREG(status->st_mode) || S_ISDIR(status->st_mode));
}

static int takes_one(volatile int32_t* left) {
    /* 1 when this call is one of those that fail. */
    if (control->skipped_percent) {
        uint32_t draw = __atomic_add_fetch(&drawn, 1, __ATOMIC_RELAXED) * 2654435761u;
        if ((int32_t)((draw >> 8) % 100) < control->skipped_percent) return 0;
    }
    int32_t now = __atomic_load_n(left, __ATOMIC_RELAXED);
    while (now > 0)
        if (__atomic_compare_exchange_n(left, &now, now - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return 1;
    return now < 0;
}

static int write_fails(int fd, off_t end) {
    /* end: where the write ends in its file; -1: at the file's end. The errno to fail with, or 0. */
    struct stat status;
    int error = control->write_errno;
    if (!error || !is_ours(fd, &status) || !S_ISREG(status.st_mode)) return 0;
    if (control->write_extends && end >= 0 && end <= status.st_size) return 0;
    if (!takes_one(&control->write_left)) return 0;
    COUNT(writes_failed);
    return error;
}

static ssize_t fail(int fd, int error, const void* first, size_t size, off_t position) {
    if (error == EIO && position >= 0 && size > 1) REAL(pwrite)(fd, first, size / 2, position);
    errno = error;
    return -1;
}

static size_t total(const struct iovec* vectors, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += vectors[i].iov_len;
    return size;
}

#define WRITE(name, parameters, arguments, first, size, position, end)                   \
    ssize_t name parameters {                                                            \
        int error = control->write_errno ? write_fails(fd, end) : 0;                     \
        return error ? fail(fd, error, first, size, position) : REAL(name) arguments;    \
    }
#define BYTES (int fd, const void* at, size_t size, off_t position)
#define VECTORS (int fd, const struct iovec* at, int count, off_t position)
#define FIRST (count > 0 ? at->iov_base : NULL)
#define FIRST_SIZE (count > 0 ? at->iov_len : 0)
#define FLAGGED (int fd, const struct iovec* at, int count, off_t position, int flags)
#define VECTORS_END position + (off_t)total(at, count)

WRITE(write, (int fd, const void* at, size_t size), (fd, at, size), at, size, -1, -1)
WRITE(writev, (int fd, const struct iovec* at, int count), (fd, at, count), FIRST, FIRST_SIZE, -1, -1)
WRITE(pwrite, BYTES, (fd, at, size, position), at, size, position, position + (off_t)size)
WRITE(pwrite64, BYTES, (fd, at, size, position), at, size, position, position + (off_t)size)
WRITE(pwritev, VECTORS, (fd, at, count, position), FIRST, FIRST_SIZE, position, VECTORS_END)
WRITE(pwritev64, VECTORS, (fd, at, count, position), FIRST, FIRST_SIZE, position, VECTORS_END)
WRITE(pwritev2, FLAGGED, (fd, at, count, position, flags), FIRST, FIRST_SIZE, position, VECTORS_END)
WRITE(pwritev64v2, FLAGGED, (fd, at, count, position, flags), FIRST, FIRST_SIZE, position, VECTORS_END)

#define ALLOCATE(name, parameters, arguments, failed)                                    \
    int name parameters {                                                                \
        int error = control->write_errno ? write_fails(fd, position + size) : 0;         \
        return error ? failed : REAL(name) arguments;                                    \
    }
ALLOCATE(fallocate, (int fd, int mode, off_t position, off_t size), (fd, mode, position, size), (errno = error, -1))
ALLOCATE(fallocate64, (int fd, int mode, off_t position, off_t size), (fd, mode, position, size), (errno = error, -1))
ALLOCATE(posix_fallocate, (int fd, off_t position, off_t size), (fd, position, size), error)
ALLOCATE(posix_fallocate64, (int fd, off_t position, off_t size), (fd, position, size), error)

static int sync_answers(int fd, int* answer) {
    /* 1 when the disk is not to be asked; then *answer is what the caller gets, with errno set. */
    struct stat status;
    if (!control->sync_errno && !control->sync_lies && !control->sync_delay_us) return 0;
    if (!is_ours(fd, &status)) return 0;
    if (control->sync_delay_us) usleep((useconds_t)control->sync_delay_us);
    if (control->sync_errno && takes_one(&control->sync_left)) {
        COUNT(syncs_failed);
        errno = control->sync_errno;
        *answer = -1;
        return 1;
    }
    if (!control->sync_lies) return 0;
    COUNT(syncs_lied);
    *answer = 0;
    return 1;
}

#define SYNC(name, parameters, arguments)                                                \
    int name parameters {                                                                \
        int answer;                                                                      \
        return sync_answers(fd, &answer) ? answer : REAL(name) arguments;                \
    }
SYNC(fsync, (int fd), (fd))
SYNC(fdatasync, (int fd), (fd))
SYNC(syncfs, (int fd), (fd))

int sync_file_range(int fd, off64_t position, off64_t size, unsigned int flags) {
    /* Promises nothing, so it never fails here; under a lie it must not bring to disk what no sync did. */
    struct stat status;
    if (control->sync_lies && is_ours(fd, &status)) return 0;
    return REAL(sync_file_range)(fd, position, size, flags);
}

#define SPACE(name, type)                                                                \
    int name(const char* path, struct type* found) {                                     \
        int answer = REAL(name)(path, found);                                            \
        if (answer == 0 && control->write_errno == ENOSPC && is_below(path)) found->f_bavail = found->f_bfree = 0; \
        return answer;                                                                   \
    }
SPACE(statvfs, statvfs)
SPACE(statvfs64, statvfs64)

#define OPEN(name)                                                                       \
    int name(const char* path, int flags, ...) {                                         \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        mode_t mode = va_arg(rest, mode_t);                                              \
        va_end(rest);                                                                    \
        if (boot_id && !strcmp(path, "/proc/sys/kernel/random/boot_id")) path = boot_id; \
        return REAL(name)(path, flags, mode);                                            \
    }
OPEN(open)
OPEN(open64)

int clock_gettime(clockid_t clock, struct timespec* now) {
    int answer = REAL(clock_gettime)(clock, now);
    int64_t offset = control->clock_offset_ms;
    if (answer != 0 || !offset || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return answer;
    COUNT(clocks_turned);
    int64_t nanoseconds = now->tv_sec * 1000000000LL + now->tv_nsec + offset * 1000000LL;
    now->tv_sec = nanoseconds / 1000000000LL;
    now->tv_nsec = nanoseconds % 1000000000LL;
    return 0;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
    struct timespec precise;
    if (zone) return REAL(gettimeofday)(now, zone);
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t* now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
