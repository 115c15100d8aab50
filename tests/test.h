/* SPDX-License-Identifier: MIT
 *
 * What every C test shares: checks that count, names that are printed, seeds that are fixed. A test
 * program calls RUN() on its functions and returns test_end(); a function that checked nothing has
 * failed, and so has a program whose failures pass twenty (it stops there).
 */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"

#define CHECK(cond) test_check((cond), __FILE__, __LINE__, #cond)
#define CHECK_EQ_U64(a, b) test_check_u64((a), (b), __FILE__, __LINE__, #a " == " #b)
#define CHECK_STR(a, b) test_check_str((a), (b), __FILE__, __LINE__, #a " == " #b)
/* The code of a struct err (and its text on failure). */
#define CHECK_ERR(e, want) test_check_err((e), (want), __FILE__, __LINE__)
#define RUN(fn) test_run(#fn, fn)

/* Bytes. */
#define KI(n) ((u64)(n) << 10)
#define MI(n) ((u64)(n) << 20)
#define GI(n) ((u64)(n) << 30)
#define TI(n) ((u64)(n) << 40)

/* Each returns whether it held. */
bool test_check(bool ok, const char *file, int line, const char *expr);
bool test_check_u64(u64 a, u64 b, const char *file, int line, const char *expr);
bool test_check_str(const char *a, const char *b, const char *file, int line, const char *expr);
bool test_check_err(const struct err *e, enum err_code want, const char *file, int line);

void test_run(const char *name, void (*fn)(void));
/* What is being tried; printed with every failure until the next call. "" for nothing. */
void test_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Prints and returns the seed. */
u64 test_seed(u64 seed);
int test_end(void);
u64 test_failures(void);

/* xorshift64*: *state must not be 0. */
u64 rnd(u64 *state);
u64 rnd_below(u64 *state, u64 n);

/* A path below the directory for temporary files; the name is unique to this process. */
const char *test_path(const char *name);
/* The exit status of a command line with a timeout of 60 s; its output is dropped. */
int test_system(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
