/* The wall clock of a process, off by the seconds that stand in a file; the monotonic clock is left alone.
 *
 * Loaded before everything else (LD_PRELOAD). The file is mapped, so the clock jumps at once when somebody
 * writes there. No lock, no header, nothing to initialise: it may be called from any thread and after a fork.
 * Linux with 64 bits only.
 */

struct timespec { long tv_sec, tv_nsec; };
struct timeval { long tv_sec, tv_usec; };

void *dlsym(void *handle, const char *name);
char *getenv(const char *name);
int open(const char *path, int flags, ...);
void *mmap(void *place, unsigned long size, int access, int flags, int file, long from);
int close(int file);

static const volatile long right;
static const volatile long *off_by;
static int (*true_time)(int clock, struct timespec *at);

static void begin(void)
{
    const char *path = getenv("WAYBILL_CHAOS_CLOCK");
    int file = path ? open(path, 0 /* O_RDONLY */) : -1;
    void *page = file < 0 ? (void *)-1L : mmap(0, sizeof right, 1 /* PROT_READ */, 1 /* MAP_SHARED */, file, 0);

    if (file >= 0)
        close(file);
    true_time = dlsym((void *)-1L /* RTLD_NEXT */, "clock_gettime");
    off_by = page == (void *)-1L ? &right : page;
}

int clock_gettime(int clock, struct timespec *at)
{
    int failed;

    if (!off_by)
        begin();
    failed = true_time(clock, at);
    if (!failed && (clock == 0 /* CLOCK_REALTIME */ || clock == 5 /* its coarse one */))
        at->tv_sec += *off_by;
    return failed;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;

    (void)zone;
    clock_gettime(0, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

long time(long *at)
{
    struct timespec now;

    clock_gettime(0, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
