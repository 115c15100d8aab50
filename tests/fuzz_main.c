/* SPDX-License-Identifier: MIT
 *
 * A fuzz target without a fuzzer: runs it over the files and the directories' files that are named,
 * so that the corpus is tried with any compiler. A trial that takes more than TIMEOUT seconds ends
 * by SIGALRM.
 */
#include "fuzz_input.h"
#include "test.h"

#include <dirent.h>
#include <unistd.h>

enum { TIMEOUT = 20 };

size_t LLVMFuzzerMutate(u8 *data, size_t size, size_t max)
{
    (void)data, (void)max;
    return size;
}

static unsigned run_file(const char *path)
{
    static u8 buf[1 << 20];
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(2);
    }
    size_t n = fread(buf, 1, sizeof(buf), f);
    fclose(f);
    u8 *copy = malloc(n ? n : 1); /* exactly as long as it is, for the sanitizer */
    memcpy(copy, buf, n);
    fprintf(stderr, "%s\n", path);
    alarm(TIMEOUT);
    LLVMFuzzerTestOneInput(copy, n);
    alarm(0);
    free(copy);
    return 1;
}

static unsigned run_dir(const char *path)
{
    unsigned cnt = 0;
    DIR *d = opendir(path);
    if (!d)
        return run_file(path);
    for (struct dirent *x; (x = readdir(d));) {
        char name[1024];
        if (x->d_name[0] == '.')
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, x->d_name);
        cnt += run_file(name);
    }
    closedir(d);
    return cnt;
}

int main(int argc, char **argv)
{
    unsigned cnt = 0;
    for (int i = 1; i < argc; i++)
        cnt += run_dir(argv[i]);
    printf("%u inputs\n", cnt);
    return !cnt;
}
