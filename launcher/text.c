/* SPDX-License-Identifier: MIT
 *
 * One UTF-8 decoder serves both escapers. It takes nothing for granted: overlong forms, surrogates
 * and numbers past U+10FFFF are no UTF-8.
 */
#include "text.h"

#include <stdbool.h>
#include <stdlib.h>

/* The length of the character at p (1 to 4) and its number, or 0 if p holds no valid UTF-8. */
static size_t utf8_char(const uint8_t *p, size_t len, uint32_t *c)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc0 ? 2 : 0;
    if (n == 0 || p[0] >= 0xf8 || n > len)
        return 0;
    *c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        *c = *c << 6 | (p[i] & 0x3f);
    }
    if (*c < least[n] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000))
        return 0;
    return n;
}

/* Control characters; what joins, hides, separates lines or turns the direction of writing: all
 * that Unicode says is shown as nothing (Default_Ignorable_Code_Point), and the rest of its Cf, Zl,
 * Zp, but for the marks that go around numbers. */
static bool is_control(uint32_t c)
{
    static const struct {
        uint32_t first, last;
    } range[] = {{0, 0x1f},          {0x7f, 0x9f},       {0xad, 0xad},       {0x34f, 0x34f},
                 {0x61c, 0x61c},     {0x115f, 0x1160},   {0x17b4, 0x17b5},   {0x180b, 0x180f},
                 {0x200b, 0x200f},   {0x2028, 0x202e},   {0x2060, 0x206f},   {0x3164, 0x3164},
                 {0xfe00, 0xfe0f},   {0xfeff, 0xfeff},   {0xffa0, 0xffa0},   {0xfff0, 0xfffb},
                 {0x13430, 0x1345f}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe0fff}};
    for (size_t i = 0; i < sizeof range / sizeof range[0]; i++)
        if (c >= range[i].first && c <= range[i].last)
            return true;
    return false;
}

void text_safe(FILE *to, const void *bytes, size_t len, enum text_lines lines)
{
    const uint8_t *p = bytes, *end = p + len;
    uint32_t c = 0;
    while (p < end) {
        size_t n = utf8_char(p, (size_t)(end - p), &c);
        bool pass = n && (!is_control(c) || (c == '\n' && lines == TEXT_KEEP_LINES));
        n += n == 0;
        if (pass)
            fwrite(p, 1, n, to);
        for (size_t i = 0; i < n && !pass; i++)
            fprintf(to, "\\x%02x", p[i]);
        p += n;
    }
}

char *text_safe_copy(const void *bytes, size_t len)
{
    char *copy = NULL;
    size_t copy_len;
    FILE *to = open_memstream(&copy, &copy_len);
    if (!to)
        abort();
    text_safe(to, bytes, len, TEXT_ONE_LINE);
    fclose(to);
    return copy;
}

void text_json(FILE *to, const void *bytes, size_t len)
{
    const uint8_t *p = bytes, *end = p + len;
    uint32_t c = 0;
    putc('"', to);
    while (p < end) {
        size_t n = utf8_char(p, (size_t)(end - p), &c);
        if (n == 0)
            fprintf(to, "\\\\x%02x", *p);
        else if (c == '"' || c == '\\')
            fprintf(to, "\\%c", (int)c);
        else if (c == '\n')
            fputs("\\n", to);
        else if (c < 0x10000 && is_control(c))
            fprintf(to, "\\u%04x", (unsigned)c);
        else if (is_control(c)) /* a pair of surrogates */
            fprintf(to, "\\u%04x\\u%04x", (unsigned)(0xd7c0 + (c >> 10)),
                    (unsigned)(0xdc00 + (c & 0x3ff)));
        else
            fwrite(p, 1, n, to);
        p += n ? n : 1;
    }
    putc('"', to);
}

void text_size(FILE *to, uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    unsigned i = 0;
    for (; value >= 1000 && i < 6; i++)
        value /= 1024;
    fprintf(to, "%0.3g %s", value, unit[i]);
}
