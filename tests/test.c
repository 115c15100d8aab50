/* SPDX-License-Identifier: MIT
 *
 * The checks of test.h, and assert_failed() for host builds of the pure code.
 */
#include "test.h"

#include <stdarg.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FAILURES_MAX = 20 };

static u64 checks, failures;
static char note[512];

_Noreturn void assert_failed(const char *file, int line, const char *expr)
{
    fflush(stdout);
    fprintf(stderr, "%s:%d: assertion failed: %s%s%s\n", file, line, expr, note[0] ? "\n  in " : "",
            note);
    abort();
}

static bool verdict(bool ok, const char *file, int line, const char *expr, const char *more)
{
    checks++;
    if (ok)
        return true;
    printf("  FAILED %s:%d: %s%s%s%s\n", file, line, expr, more, note[0] ? "\n    in " : "", note);
    fflush(stdout);
    if (++failures > FAILURES_MAX) {
        printf("too many failures\n");
        exit(1);
    }
    return false;
}

bool test_check(bool ok, const char *file, int line, const char *expr)
{
    return verdict(ok, file, line, expr, "");
}

bool test_check_u64(u64 a, u64 b, const char *file, int line, const char *expr)
{
    char more[96] = "";
    if (a != b)
        snprintf(more, sizeof(more), ": %llu (0x%llx), not %llu (0x%llx)", (unsigned long long)a,
                 (unsigned long long)a, (unsigned long long)b, (unsigned long long)b);
    return verdict(a == b, file, line, expr, more);
}

bool test_check_str(const char *a, const char *b, const char *file, int line, const char *expr)
{
    char more[400] = "";
    bool ok = a && b && !strcmp(a, b);
    if (!ok)
        snprintf(more, sizeof(more), ": \"%s\", not \"%s\"", a ? a : "(null)", b ? b : "(null)");
    return verdict(ok, file, line, expr, more);
}

bool test_check_err(const struct err *e, enum err_code want, const char *file, int line)
{
    char more[400] = "";
    if (e->code != want)
        snprintf(more, sizeof(more), ": %d, not %d (\"%s\" off %llu val %llu, %s:%d)", e->code,
                 want, e->what ? e->what : "", (unsigned long long)e->off,
                 (unsigned long long)e->val, e->file ? e->file : "", e->line);
    return verdict(e->code == want, file, line, "error code", more);
}

void test_note(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(note, sizeof(note), fmt, ap);
    va_end(ap);
}

u64 test_seed(u64 seed)
{
    printf("  seed 0x%llx\n", (unsigned long long)seed);
    return seed;
}

void test_run(const char *name, void (*fn)(void))
{
    u64 checks_before = checks, failures_before = failures;
    struct timespec t0, t1;
    printf("%s\n", name);
    fflush(stdout);
    test_note("%s", "");
    clock_gettime(CLOCK_MONOTONIC, &t0);
    fn();
    clock_gettime(CLOCK_MONOTONIC, &t1);
    test_note("%s", "");
    if (checks == checks_before)
        verdict(false, name, 0, "it checked nothing", "");
    double s = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
    printf("  %s: %llu checks, %.2f s\n", failures == failures_before ? "ok" : "FAILED",
           (unsigned long long)(checks - checks_before), s);
    fflush(stdout);
}

u64 test_failures(void)
{
    return failures;
}

int test_end(void)
{
    printf("%llu checks, %llu failures\n", (unsigned long long)checks,
           (unsigned long long)failures);
    return failures || !checks;
}

u64 rnd(u64 *state)
{
    u64 x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dull;
}

u64 rnd_below(u64 *state, u64 n)
{
    return (rnd(state) >> 11) % n;
}

const char *test_path(const char *name)
{
    static char path[8][256];
    static unsigned next;
    const char *dir = getenv("TMPDIR");
    char *p = path[next++ % 8];
    snprintf(p, sizeof(path[0]), "%s/instar-test-%d-%s", dir && dir[0] ? dir : "/tmp",
             (int)getpid(), name);
    return p;
}

int test_system(const char *fmt, ...)
{
    char cmd[1024], full[1200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cmd, sizeof(cmd), fmt, ap);
    va_end(ap);
    snprintf(full, sizeof(full), "timeout 60 %s >/dev/null 2>&1", cmd);
    int rc = system(full);
    return rc < 0 || !WIFEXITED(rc) ? -1 : WEXITSTATUS(rc);
}
