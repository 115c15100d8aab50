/* SPDX-License-Identifier: MIT
 *
 * ops/newsize.c: qemu-img's arithmetic and range checks for a new size, in its order (the cases
 * are those measured on qemu-img 7.2).
 */
#include "newsize.h"
#include "test.h"

#define ABS instar_SizeKind_ABSOLUTE
#define PLUS instar_SizeKind_PLUS
#define MINUS instar_SizeKind_MINUS
#define OFF instar_Preallocation_PREALLOCATION_OFF
#define META instar_Preallocation_PREALLOCATION_METADATA
#define MAX_SIZE 9223372035781033984ull

static const char positive[] = "New image size must be positive";
static const char prealloc[] = "Preallocation can only be used for growing images";
static const char shrink[] = "Use the --shrink option to perform a shrink operation.";
static const char offset[] = "offset({val}) exceeds maximum(9223372035781033984)";

/* clang-format off */
static const struct {
    instar_SizeKind kind;
    u64 size, current;
    bool shrink;
    instar_Preallocation pre;
    instar_Code code;
    u64 want;
    const char *what;
} cases[] = {
    { ABS, 2048, 1024, false, OFF, instar_Code_OK, 2048, NULL },
    { ABS, 1024, 1024, false, OFF, instar_Code_OK, 1024, NULL },
    /* the current size counts in whole sectors, the new one is not rounded */
    { PLUS, 0, 513, false, OFF, instar_Code_OK, 1024, NULL },
    { PLUS, 1, 513, false, OFF, instar_Code_OK, 1025, NULL },
    { MINUS, 1, 513, true, OFF, instar_Code_OK, 1023, NULL },
    { ABS, 600, 513, false, OFF, instar_Code_SHRINK_WITHOUT_FLAG, 0, shrink },
    { ABS, 600, 513, true, OFF, instar_Code_OK, 600, NULL },
    { PLUS, 5ull << 30, 20ull << 30, false, OFF, instar_Code_OK, 25ull << 30, NULL },
    /* positive */
    { ABS, 0, 1024, true, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { MINUS, 1024, 1024, true, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { MINUS, 1025, 1024, true, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { MINUS, UINT64_MAX, 1024, true, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { PLUS, UINT64_MAX, 1024, false, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { ABS, 1ull << 63, 1024, false, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { PLUS, 1ull << 63, 1024, false, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { ABS, UINT64_MAX, 1024, false, OFF, instar_Code_INVALID_NEW_SIZE, 0, positive },
    { ABS, 0, 1024, false, META, instar_Code_INVALID_NEW_SIZE, 0, positive },
    /* preallocation comes before shrink */
    { ABS, 1024, 1024, false, META, instar_Code_INVALID_OPTION, 0, prealloc },
    { ABS, 512, 1024, false, META, instar_Code_INVALID_OPTION, 0, prealloc },
    { ABS, 512, 1024, true, META, instar_Code_INVALID_OPTION, 0, prealloc },
    { ABS, 2048, 1024, false, META, instar_Code_OK, 2048, NULL },
    /* shrink */
    { ABS, 512, 1024, false, OFF, instar_Code_SHRINK_WITHOUT_FLAG, 0, shrink },
    { MINUS, 1, 1024, false, OFF, instar_Code_SHRINK_WITHOUT_FLAG, 0, shrink },
    { MINUS, 512, 1024, true, OFF, instar_Code_OK, 512, NULL },
    { ABS, 2048, 1024, true, OFF, instar_Code_OK, 2048, NULL },
    /* the block layer's limit */
    { ABS, MAX_SIZE, 1024, false, OFF, instar_Code_OK, MAX_SIZE, NULL },
    { ABS, MAX_SIZE + 1, 1024, false, OFF, instar_Code_INVALID_NEW_SIZE, MAX_SIZE + 1, offset },
    { ABS, INT64_MAX, 1024, false, OFF, instar_Code_INVALID_NEW_SIZE, INT64_MAX, offset },
};
/* clang-format on */

static void qemus_order(void)
{
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        instar_ResizeRequest r = {.kind = cases[i].kind,
                                  .size = cases[i].size,
                                  .shrink = cases[i].shrink,
                                  .preallocation = cases[i].pre};
        uint64_t size = 0, val = 0;
        const char *what = "";
        test_note("case %u", i);
        CHECK_EQ_U64(newsize(&r, cases[i].current, &size, &what, &val), cases[i].code);
        if (cases[i].code == instar_Code_OK)
            CHECK_EQ_U64(size, cases[i].want);
        else
            CHECK_STR(what, cases[i].what);
        if (cases[i].what == offset)
            CHECK_EQ_U64(val, cases[i].want);
    }
}

static void no_current_size_wraps(void)
{
    static const u64 currents[] = {UINT64_MAX, UINT64_MAX - 510, UINT64_MAX - 511,
                                   1ull << 63, INT64_MAX,        MAX_SIZE};
    for (unsigned i = 0; i < 6; i++)
        for (int k = 0; k < 3; k++) {
            instar_ResizeRequest r = {.kind = (instar_SizeKind)k, .size = 512, .shrink = true};
            uint64_t size = 0, val = 0;
            const char *what = "";
            instar_Code c = newsize(&r, currents[i], &size, &what, &val);
            test_note("current %llu kind %d", (unsigned long long)currents[i], k);
            CHECK(c == instar_Code_OK ? size > 0 && size <= MAX_SIZE : what[0] != 0);
        }
}

/* Rounded up before anything is judged: a shrink may become none, and growth pass the limit. */
static void aligned(void)
{
    enum { MIB = 1 << 20 };
    static const struct {
        instar_SizeKind kind;
        u64 size, current, want;
    } t[] = {{ABS, MIB + 512, MIB, 2 * MIB}, {ABS, 2 * MIB, MIB, 2 * MIB},
             {PLUS, 1, MIB, 2 * MIB},        {PLUS, 0, MIB, MIB},
             {MINUS, 512, 2 * MIB, 2 * MIB}, {MINUS, MIB, 2 * MIB, MIB},
             {ABS, 1, 3 * MIB, MIB},         {ABS, MAX_SIZE - 1, MIB, MAX_SIZE},
             {ABS, UINT64_MAX - 5, MIB, 0},  {PLUS, UINT64_MAX - 2 * MIB, MIB, 0}};
    for (unsigned i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
        instar_ResizeRequest r = {
            .kind = t[i].kind, .size = t[i].size, .shrink = true, .align = MIB};
        uint64_t size = 0, val = 0;
        const char *what = "";
        test_note("case %u", i);
        instar_Code c = newsize(&r, t[i].current, &size, &what, &val);
        CHECK_EQ_U64(c, t[i].want ? instar_Code_OK : instar_Code_INVALID_NEW_SIZE);
        CHECK_EQ_U64(size, t[i].want);
    }
    test_note("%s", "");
}

int main(void)
{
    RUN(qemus_order);
    RUN(aligned);
    RUN(no_current_size_wraps);
    return test_end();
}
