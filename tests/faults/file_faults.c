/* Numbers every change to files below a folder, and lets one of them fail.

   Loaded by LD_PRELOAD. The shared memory that FAULTS_CONTROL names holds what the test sets and
   what is counted, so that all threads and all child processes of a command share one numbering;
   `strace -e inject` counts for each thread by itself. See tests/faults/file_faults.py, which has
   the same layout of the memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT_ONLY, KILL, TORN, FAIL_ONE, FAIL_GROWTH, SIGNAL, SIGNAL_TWICE };

struct control {
  _Atomic long count;  /* changes so far */
  long at;             /* the change that fails, from 1; 0: none */
  int mode, error;     /* one of the enum, and its errno or its signal */
  char folder[1024];   /* with a slash at its end; empty: nothing is counted */
  char log[1024];      /* a file that gets a line for each change; empty: none */
};

static struct control *control;
/* What the fault itself does must not be counted. */
static __thread int inside;

__attribute__((constructor)) static void map_control(void) {
  const char *name = getenv("FAULTS_CONTROL");
  if (!name) return;
  int fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (found != MAP_FAILED) control = found;
}

static int on(void) { return control && control->folder[0] && !inside; }

/* Writes the path that a name relative to an open folder has. */
static void path_at(int folder, const char *name, char *path, size_t size) {
  char base[1024] = "";
  if (name[0] != '/') {
    if (folder == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t length = readlink(link, base, sizeof base - 1);
      base[length < 0 ? 0 : length] = 0;
    }
    snprintf(path, size, "%s/%s", base, name);
  } else {
    snprintf(path, size, "%s", name);
  }
}

static int path_of(int fd, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, size - 1);
  if (length < 0 || path[0] != '/') return 0;  /* a pipe, a socket, a terminal */
  path[length] = 0;
  return 1;
}

/* Counts a change. Returns 1 if it is to fail with errno, 2 if a write is to be torn, else 0. */
static int change(const char *what, const char *path, int grows) {
  if (strncmp(path, control->folder, strlen(control->folder))) return 0;
  long number = atomic_fetch_add(&control->count, 1) + 1;
  if (control->log[0]) {
    char line[1400];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, what,
                          path + strlen(control->folder));
    int fd = syscall(SYS_openat, AT_FDCWD, control->log,
                     O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0) {
      syscall(SYS_write, fd, line, length);
      syscall(SYS_close, fd);
    }
  }
  if (!control->at || number < control->at) return 0;
  if (control->mode == FAIL_GROWTH && grows) {
    errno = control->error;
    return 1;
  }
  if (control->mode == SIGNAL_TWICE && number == control->at + 3) kill(getpid(), control->error);
  if (number > control->at) return 0;
  if (control->mode == SIGNAL || control->mode == SIGNAL_TWICE) {
    kill(getpid(), control->error);
    return 0;
  }
  if (control->mode == TORN && !strcmp(what, "write")) return 2;
  if (control->mode == KILL || control->mode == TORN) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  if (control->mode == FAIL_ONE) {
    errno = control->error;
    return 1;
  }
  return 0;
}

#define REAL(name)                                             \
  static __typeof__(name) *real;                               \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define CHANGE_AT(what, folder, name, grows)                   \
  if (on()) {                                                  \
    char path_[2100];                                          \
    path_at(folder, name, path_, sizeof path_);                \
    if (change(what, path_, grows)) return -1;                 \
  }

#define CHANGE_FD(what, fd, grows)                             \
  if (on()) {                                                  \
    char path_[1024];                                          \
    if (path_of(fd, path_, sizeof path_) && change(what, path_, grows)) return -1; \
  }

/* Half of it arrives, and the process is gone. */
#define WRITE(fd, length, HALF)                                \
  if (on()) {                                                  \
    char path_[1024];                                          \
    if (path_of(fd, path_, sizeof path_)) {                    \
      int found_ = change("write", path_, 1);                  \
      if (found_ == 1) return -1;                              \
      if (found_ == 2) {                                       \
        inside = 1;                                            \
        HALF;                                                  \
        kill(getpid(), SIGKILL);                               \
        for (;;) pause();                                      \
      }                                                        \
    }                                                          \
  }

ssize_t write(int fd, const void *data, size_t length) {
  REAL(write);
  WRITE(fd, length, real(fd, data, length / 2))
  return real(fd, data, length);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
  REAL(pwrite);
  WRITE(fd, length, real(fd, data, length / 2, offset))
  return real(fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
  REAL(pwrite64);
  WRITE(fd, length, real(fd, data, length / 2, offset))
  return real(fd, data, length, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  WRITE(fd, count, real(fd, parts, count / 2))
  return real(fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  REAL(pwritev);
  WRITE(fd, count, real(fd, parts, count / 2, offset))
  return real(fd, parts, count, offset);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
  REAL(copy_file_range);
  WRITE(out, length, real(in, from, out, to, length / 2, flags))
  return real(in, from, out, to, length, flags);
}
#include <sys/sendfile.h>
ssize_t sendfile(int out, int in, off_t *offset, size_t length) {
  REAL(sendfile);
  WRITE(out, length, real(out, in, offset, length / 2))
  return real(out, in, offset, length);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t length) {
  REAL(sendfile64);
  WRITE(out, length, real(out, in, offset, length / 2))
  return real(out, in, offset, length);
}

int fsync(int fd) {
  REAL(fsync);
  CHANGE_FD("fsync", fd, 1)
  return real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  CHANGE_FD("fsync", fd, 1)
  return real(fd);
}
int ftruncate(int fd, off_t length) {
  REAL(ftruncate);
  CHANGE_FD("ftruncate", fd, 1)
  return real(fd, length);
}
int ftruncate64(int fd, off64_t length) {
  REAL(ftruncate64);
  CHANGE_FD("ftruncate", fd, 1)
  return real(fd, length);
}

int rename(const char *from, const char *to) {
  REAL(rename);
  CHANGE_AT("rename", AT_FDCWD, to, 1)
  return real(from, to);
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
  REAL(renameat);
  CHANGE_AT("rename", to_folder, to, 1)
  return real(from_folder, from, to_folder, to);
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
  REAL(renameat2);
  CHANGE_AT("rename", to_folder, to, 1)
  return real(from_folder, from, to_folder, to, flags);
}
int link(const char *from, const char *to) {
  REAL(link);
  CHANGE_AT("link", AT_FDCWD, to, 1)
  return real(from, to);
}
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
  REAL(linkat);
  CHANGE_AT("link", to_folder, to, 1)
  return real(from_folder, from, to_folder, to, flags);
}
int symlink(const char *target, const char *name) {
  REAL(symlink);
  CHANGE_AT("symlink", AT_FDCWD, name, 1)
  return real(target, name);
}
int unlink(const char *name) {
  REAL(unlink);
  CHANGE_AT("unlink", AT_FDCWD, name, 0)
  return real(name);
}
int unlinkat(int folder, const char *name, int flags) {
  REAL(unlinkat);
  CHANGE_AT("unlink", folder, name, 0)
  return real(folder, name, flags);
}
int rmdir(const char *name) {
  REAL(rmdir);
  CHANGE_AT("rmdir", AT_FDCWD, name, 0)
  return real(name);
}
int mkdir(const char *name, mode_t mode) {
  REAL(mkdir);
  CHANGE_AT("mkdir", AT_FDCWD, name, 1)
  return real(name, mode);
}
int mkdirat(int folder, const char *name, mode_t mode) {
  REAL(mkdirat);
  CHANGE_AT("mkdir", folder, name, 1)
  return real(folder, name, mode);
}

/* Opening for reading changes nothing, and is not counted. */
#define OPEN(name, flags_value, folder, call)                  \
  if (on() && (flags_value & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))) { \
    char path_[2100];                                          \
    path_at(folder, name, path_, sizeof path_);                \
    if (change("open", path_, flags_value & O_CREAT)) return -1; \
  }                                                            \
  return call;
#define MODE                                                   \
  va_list list_;                                               \
  va_start(list_, flags);                                      \
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list_, mode_t) : 0; \
  va_end(list_);

int open(const char *name, int flags, ...) {
  REAL(open);
  MODE OPEN(name, flags, AT_FDCWD, real(name, flags, mode))
}
int open64(const char *name, int flags, ...) {
  REAL(open64);
  MODE OPEN(name, flags, AT_FDCWD, real(name, flags, mode))
}
int openat(int folder, const char *name, int flags, ...) {
  REAL(openat);
  MODE OPEN(name, flags, folder, real(folder, name, flags, mode))
}
int openat64(int folder, const char *name, int flags, ...) {
  REAL(openat64);
  MODE OPEN(name, flags, folder, real(folder, name, flags, mode))
}
#define FOPEN(name, how)                                       \
  if (on() && (how[0] != 'r' || strchr(how, '+'))) {           \
    char path_[2100];                                          \
    path_at(AT_FDCWD, name, path_, sizeof path_);              \
    if (change("open", path_, 1)) return NULL;                 \
  }                                                            \
  return real(name, how);
FILE *fopen(const char *name, const char *how) {
  REAL(fopen);
  FOPEN(name, how)
}
FILE *fopen64(const char *name, const char *how) {
  REAL(fopen64);
  FOPEN(name, how)
}
