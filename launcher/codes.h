/* SPDX-License-Identifier: MIT
 *
 * What each code of the contract is called and means to a user.
 */
#ifndef LAUNCHER_CODES_H
#define LAUNCHER_CODES_H

#include "instar.pb.h"

struct code_row {
    int status;         /* of the process */
    const char *name;   /* as in the contract, and in JSON */
    const char *text;   /* the message where none came with the code */
    const char *advice; /* one more line for people, or NULL */
};

/* `code` is one of the contract's. */
const struct code_row *code_row(instar_Code code);

#endif
