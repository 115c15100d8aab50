/* SPDX-License-Identifier: MIT
 *
 * qemu-img's size grammar (parity A.2), with its 7.2 messages. Three quirks of 7.2 are not
 * repeated: .5k is 512, as in later versions; a hexadecimal number takes no suffix, as in later
 * versions; a fraction of any length is right.
 */
#include "size.h"

#include <ctype.h>
#include <string.h>

/* The multiplier that a suffix stands for; 0 if it is none. End of text: bytes. */
static uint64_t multiplier(char suffix)
{
    static const char letters[] = "bkmgtpe";
    if (suffix == '\0')
        return 1;
    const char *at = strchr(letters, tolower((unsigned char)suffix));
    return at ? 1ull << 10 * (at - letters) : 0;
}

/* Digits in `base` from *p on; saturates just above 2^64, so that "too large" is not forgotten. */
static unsigned __int128 digits(const char **p, unsigned base)
{
    const unsigned __int128 huge = (unsigned __int128)1 << 64;
    unsigned __int128 value = 0;
    for (; base == 16 ? isxdigit((unsigned char)**p) : isdigit((unsigned char)**p); ++*p) {
        unsigned char c = (unsigned char)**p;
        value = value * base + (unsigned)(isdigit(c) ? c - '0' : tolower(c) - 'a' + 10);
        value = value < huge ? value : huge;
    }
    return value;
}

/* The decimal digits after the point: numerator and denominator. Nineteen are exact enough to
 * round an exbibyte's fraction to a byte; the rest only have to be digits. */
static void fraction(const char **p, uint64_t *num, uint64_t *den)
{
    *num = 0;
    *den = 1;
    for (; isdigit((unsigned char)**p); ++*p) {
        if (*den < 10000000000000000000ull) {
            *num = *num * 10 + (uint64_t)(**p - '0');
            *den *= 10;
        } else if (**p != '0' && *num == 0) {
            *num = 1; /* not nothing: 1.00000000000000000001 is no whole number */
        }
    }
}

static int invalid(const char *parameter, struct err *e)
{
    return err_set(e, instar_Code_INVALID_NEW_SIZE,
                   "Parameter '%s' expects a non-negative number below 2^64\n"
                   "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                   "and exabytes, respectively.",
                   parameter);
}

int size_parse(const char *text, const char *parameter, uint64_t *bytes, struct err *e)
{
    const char *p = text;
    while (isspace((unsigned char)*p))
        p++;
    p += *p == '+';
    bool hex = p[0] == '0' && (p[1] == 'x' || p[1] == 'X') && isxdigit((unsigned char)p[2]);
    p += hex ? 2 : 0;
    const char *start = p;
    unsigned __int128 value = digits(&p, hex ? 16 : 10);
    size_t seen = (size_t)(p - start);
    uint64_t num = 0, den = 1, mul = 1;
    if (!hex) {
        if (*p == '.') {
            const char *point = ++p;
            fraction(&p, &num, &den);
            seen += (size_t)(p - point);
        }
        mul = multiplier(*p);
        p += *p != '\0';
    }
    if (seen == 0 || *p != '\0' || mul == 0 || (mul == 1 && num != 0))
        return invalid(parameter, e);
    value = value * mul + ((unsigned __int128)num * mul * 2 + den) / den / 2;
    if (value > UINT64_MAX)
        return err_set(e, instar_Code_INVALID_NEW_SIZE,
                       "Value '%s' is out of range for parameter '%s'", text, parameter);
    *bytes = (uint64_t)value;
    return 0;
}

int size_parse_change(const char *text, instar_ResizeRequest *r, struct err *e)
{
    r->kind = *text == '+'   ? instar_SizeKind_PLUS
              : *text == '-' ? instar_SizeKind_MINUS
                             : instar_SizeKind_ABSOLUTE;
    return size_parse(text + (r->kind != instar_SizeKind_ABSOLUTE), "size", &r->size, e);
}
